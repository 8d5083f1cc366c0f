"""Adapters to serving engines: the only place that knows vLLM's internals."""
