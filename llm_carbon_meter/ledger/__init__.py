"""The book of joules: counter ticks divided over steps, steps over their requests."""
