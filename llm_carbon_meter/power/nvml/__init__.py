"""Everything that touches NVML, through the module pynvml of nvidia-ml-py."""
