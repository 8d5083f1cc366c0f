"""What the predictor is trained on; never imported when serving."""
