"""Estimates before execution."""
