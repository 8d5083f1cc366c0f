"""The hooks of Hugging Face's `transformers serve` and of `generate`."""
