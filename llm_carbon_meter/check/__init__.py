"""``llm-carbon-meter check``: would this host meter, and how good would its figures be?"""
