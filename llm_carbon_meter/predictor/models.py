"""The energy models by name."""

from collections.abc import Callable, Mapping
from math import inf
from typing import Final

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.predictor.energy_model import Deployment, EnergyModel
from llm_carbon_meter.predictor.flop import FlopModel
from llm_carbon_meter.predictor.gnn import GnnModel
from llm_carbon_meter.records import MeterError

UNKNOWN: Final = "unknown"
"""Engine of a server behind a proxy; measurements of an engine that is not stated are not of it."""
ENERGY_MODELS: Final[Mapping[str, Callable[[], EnergyModel]]] = {
    "gnn": GnnModel,
    "flop": FlopModel,
}


def placed(model: ModelSpec, gpu: GpuSpec, where: Mapping[str, str | float]) -> Deployment:
    """A deployment of a server's own model.

    Args:
        model: its shape.
        gpu: that it runs on.
        where: engine, version, parallelism and the tokens of a step, as records have them.
    """
    engine = str(where.get("engine", ""))
    return Deployment(
        model,
        gpu,
        int(where.get("tensor_parallel_size", 1)),
        "" if engine == UNKNOWN else engine,
        str(where.get("engine_version", "")),
        float(where.get("max_num_batched_tokens", inf)),
    )


def energy_model(name: str) -> EnergyModel:
    """An energy model by its name.

    Raises:
        MeterError: there is none of that name.
    """
    if name not in ENERGY_MODELS:
        raise MeterError(f"no energy model {name!r}; known: {', '.join(ENERGY_MODELS)}")
    return ENERGY_MODELS[name]()
