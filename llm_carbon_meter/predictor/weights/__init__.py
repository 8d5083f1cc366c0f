"""Weights of the shipped predictor, and their card."""
