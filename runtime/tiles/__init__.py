"""The geometry of one picture in NumPy: tiles, enlarging, blending, the clock; no file and no library."""
