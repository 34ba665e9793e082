"""Calibration pictures and crops."""
