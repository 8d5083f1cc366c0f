"""``llm-carbon-meter report``: what a request log says about a period, as text, CSV and a page."""
