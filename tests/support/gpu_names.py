"""UUIDs of the GPUs that the stub of NVML shows."""

UUIDS = [f"GPU-00000000-0000-0000-0000-{gpu:012d}" for gpu in range(4)]
MIG_UUID = UUIDS[0].replace("GPU-", "MIG-")
