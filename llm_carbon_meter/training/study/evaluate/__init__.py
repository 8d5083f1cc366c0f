"""``llm-carbon-meter evaluate``: fits (jobs) -> figures -> text (report) and plots.

Every figure is of rows that no fit has seen; what may be shared besides, the split's name says.
"""
