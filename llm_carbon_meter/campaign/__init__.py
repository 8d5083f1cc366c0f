"""Measures true energy of prefill and decode on the GPUs at hand; never imported when serving."""
