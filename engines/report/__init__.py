"""One HTML page about engines, their pictures and their calibration: `build_report` of `build` makes it."""
