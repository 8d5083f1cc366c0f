"""vLLM's hooks."""
