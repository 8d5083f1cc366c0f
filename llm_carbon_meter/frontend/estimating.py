"""Opens the estimator of a server's own deployment, as the settings say."""

from collections.abc import Mapping

from llm_carbon_meter.carbon.emissions import embodied_rate
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.deployed_gpu import gpu_of
from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.memory import Memory, check_weights, memory_of
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.predictor.energy_model import EnergyModel
from llm_carbon_meter.predictor.estimator import DeploymentEstimator
from llm_carbon_meter.predictor.live import LiveEstimator
from llm_carbon_meter.predictor.models import energy_model, placed
from llm_carbon_meter.records import CarbonIntensity, MeterError, SpecError


def open_estimator(
    config: Config,
    deployment: Mapping[str, str | float],
    model: ModelSpec | None,
    intensity: CarbonIntensity,
    faults: Faults,
    cache_block_tokens: int = 0,
) -> LiveEstimator | None:
    """The estimator of a server; None where it has none.

    Args:
        config: settings.
        deployment: engine, version, GPU and parallelism, as records have them.
        model: shape; None where the architecture is not known.
        intensity: of the grid.
        faults: counts what went wrong.
        cache_block_tokens: of the engines' prefix cache; 0 where they have none.
    """
    if model is None or config.estimator == "none":
        return None
    gpu, remark = _gpu(config, deployment, faults)
    place = placed(model, gpu, deployment)
    rate = embodied_rate(config.embodied, gpu, host=config.embodied_host)
    try:
        memory = memory_of(model, gpu, place.num_gpus, _stages(deployment))
        remark = "; ".join(filter(None, (remark, _too_heavy(memory))))
        estimator = DeploymentEstimator(
            _energy_model(config, faults), place, intensity, config.pue, remark, rate
        )
    except MeterError as error:
        faults.note("estimator", error, "Requests have no estimate.")
        return None
    return LiveEstimator(estimator, cache_block_tokens, memory)


def _too_heavy(memory: Memory) -> str:
    """What is wrong where a server runs that by its data sheets cannot; empty where it can."""
    try:
        check_weights(memory)
    except SpecError as error:
        return f"{error}; it runs, so something is not counted"
    return ""


def _energy_model(config: Config, faults: Faults) -> EnergyModel:
    try:
        return energy_model(config.estimator)
    except MeterError as error:
        faults.note("estimator", error, "Estimates are those of the FLOP formula.")
        return energy_model("flop")


def _gpu(
    config: Config, deployment: Mapping[str, str | float], faults: Faults
) -> tuple[GpuSpec, str]:
    """The data sheet to estimate with, and what makes the estimate less certain."""
    gpu = gpu_of(config, deployment, faults)
    if gpu.unknown is not None:
        faults.note("gpu", gpu.unknown, f"Estimates assume {gpu.spec.name}.")
    stages = _stages(deployment)
    staged = f"{stages} pipeline stages counted as one" if stages > 1 else ""
    return gpu.spec, "; ".join(filter(None, (gpu.remark, staged)))


def _stages(deployment: Mapping[str, str | float]) -> int:
    """Of pipeline parallelism."""
    return int(deployment.get("pipeline_parallel_size", 1))
