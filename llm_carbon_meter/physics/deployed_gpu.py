"""Which data sheet a server takes for its GPU, and at which power limit."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.gpu_parts import mig_instance
from llm_carbon_meter.physics.gpu_specs import GpuSpec, at_limit, gpu_spec
from llm_carbon_meter.records import SpecError

NAME: Final = "gpu"
POWER_LIMIT: Final = "power_limit_watts"
"""Fields of a deployment, as records have them."""


class DeployedGpu(NamedTuple):
    """A data sheet, and how sure it is that it is the GPU's own."""

    spec: GpuSpec
    remark: str
    """What was assumed; empty where nothing was."""
    unknown: SpecError | None = None
    """Why the GPU's name has no data sheet."""


def gpu_of(config: Config, deployment: Mapping[str, str | float], faults: Faults) -> DeployedGpu:
    """The data sheet of a server's GPU.

    It is the GPU's own where the table has its name, with or without a sensor;
    ``LLM_CARBON_METER_ASSUME_GPU`` is for a host without a GPU, or with one that is not known.

    Args:
        config: settings.
        deployment: has the GPU's name as CUDA or NVML gives it, empty where there is none, and the
            power limit that is enforced, where it is known: the lowest of the engine's GPUs, since
            none of them goes on before the slowest.
        faults: where an assumed GPU is noted that is not known.

    Raises:
        SpecError: the assumed GPU is not known, and the settings are strict.
    """
    name, limit = str(deployment.get(NAME, "")), deployment.get(POWER_LIMIT)
    whole = mig_instance(name) if config.mig_parent else None
    found = _named(whole.whole if whole else name, assumed_gpu(config, faults))
    # A limit above the data sheet's changes nothing: what the board would draw then is not known.
    if limit is None or float(limit) >= found.spec.board_watts / found.spec.part:
        return found
    try:
        return found._replace(spec=at_limit(found.spec, float(limit)))
    except SpecError as error:
        return found._replace(remark="; ".join(filter(None, (found.remark, f"not taken: {error}"))))


def _named(name: str, assumed: GpuSpec) -> DeployedGpu:
    if not name:
        return DeployedGpu(assumed, f"no GPU was found, {assumed.name} is assumed")
    try:
        return DeployedGpu(gpu_spec(name), "")
    except SpecError as error:
        remark = f"the GPU {name} is not known, {assumed.name} is assumed"
        return DeployedGpu(assumed, remark, error)


def assumed_gpu(config: Config, faults: Faults) -> GpuSpec:
    """The data sheet of the settings; the default's where the settings name no known GPU.

    Raises:
        SpecError: not known, and the settings are strict.
    """
    try:
        return gpu_spec(config.assume_gpu)
    except SpecError as error:
        if config.strict:
            raise
        default = Config().assume_gpu
        faults.note("settings", error, f"{default} is assumed instead.")
        return gpu_spec(default)
