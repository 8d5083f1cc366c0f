"""Power sources: one protocol (meter.py), one file each for NVML, a trace, a data sheet."""
