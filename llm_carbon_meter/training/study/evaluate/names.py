"""Predictors, splits and files that are spoken of by name."""

from typing import Final

OURS: Final = "GNN"
PHYSICS: Final = "physics alone"
"""The predictor without its network."""
RESIDUAL_FORM: Final = "+ physics residual"
"""`OURS` as the last line of the ablation."""
FOLDS: Final = "architecture folds"
MODERN: Final = "leave-architecture-out, modern dense"
ENGINES: Final = "leave-engine-out"
GPUS: Final = "leave-GPU-out"
RANDOM: Final = "random (leaky)"
RESULTS: Final = "results.json"
PLOTS: Final = {
    "measured.png": "predicted against measured",
    "errors.png": "error against batch and output length",
    "coverage.png": "stated against observed share of measurements inside",
    "own.png": "error against the number of a deployment's own measurements",
    "live.png": "error against the number of live requests, in worlds made of measured kernels",
}
"""File -> what it shows."""
