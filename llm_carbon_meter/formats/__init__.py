"""Versioned forms of what outlives a process or leaves it: messages, log lines, kept state."""
