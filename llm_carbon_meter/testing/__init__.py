"""What the tests, the demo and users' own tests share: NVML stub, tiny models, servers."""
