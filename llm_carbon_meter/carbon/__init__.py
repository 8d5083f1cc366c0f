"""Joules to grams of CO2 equivalent: what a grid emits, and what the hardware's making did."""
