"""Power sources: one protocol (meter.py), one file each for NVML, a recorded trace and the data sheet."""
