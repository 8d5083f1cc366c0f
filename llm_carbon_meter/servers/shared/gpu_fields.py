"""What a server's deployment says of its GPUs, for estimates, attribution and records."""

from collections.abc import Callable, Sequence

from llm_carbon_meter.config import Config
from llm_carbon_meter.physics.deployed_gpu import NAME, POWER_LIMIT
from llm_carbon_meter.physics.gpu_specs import is_known
from llm_carbon_meter.power.nvml.engine_gpus import engine_gpus
from llm_carbon_meter.records import PowerError


def gpu_fields(
    config: Config, devices: Callable[[], Sequence[str]], name: str = ""
) -> dict[str, str | float]:
    """Name and enforced power limit of an engine's GPUs.

    NVML is asked where it may count their joules, too. What it does not say is left out; why, the
    meter says when it opens NVML.

    Args:
        config: settings.
        devices: gives the NVML indices or UUIDs of the engine's GPUs; may raise PowerError.
        name: as the engine knows it; where that is empty NVML's, if it is that of a known GPU.
    """
    if config.power not in ("auto", "nvml"):
        return {NAME: name}
    try:
        seen = engine_gpus(devices())
    except PowerError:
        return {NAME: name}
    limit = seen.power_limit_watts
    named = name or (seen.name if is_known(seen.name) else "")
    return {NAME: named, **({} if limit is None else {POWER_LIMIT: limit})}
