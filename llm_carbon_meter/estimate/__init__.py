"""`llm-carbon-meter estimate`: what a request costs, without a server."""
