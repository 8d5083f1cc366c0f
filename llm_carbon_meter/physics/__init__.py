"""What a model's step is made of and what it costs: shapes, kernels, roofline, step work."""
