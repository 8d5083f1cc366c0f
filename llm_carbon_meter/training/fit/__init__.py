"""Fits the predictor and writes its weights."""
