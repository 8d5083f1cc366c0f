"""``make bench``: what metering costs, as ratios and figures measured side by side in one run."""
