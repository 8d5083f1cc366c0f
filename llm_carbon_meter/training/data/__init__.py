"""Measured data sets: where they come from, their rows, splits and samples."""
