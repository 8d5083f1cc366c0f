"""How the predictor compares: baselines, evaluation, the LLMCO2 paper's own form."""
