"""A proxy that meters an OpenAI-compatible server from outside."""
