"""Figures that the package ships, each with its source in the file."""
