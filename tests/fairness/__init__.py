"""Is the division among requests right? A simulated GPU knows what each request truly caused.

No part of serving: ``python -m tests.fairness`` judges the shipped ledger against that truth.
"""
