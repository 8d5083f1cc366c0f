"""The energy models by name."""

from collections.abc import Callable, Mapping
from typing import Final

from llm_carbon_meter.predictor.energy_model import EnergyModel
from llm_carbon_meter.predictor.flop import FlopModel
from llm_carbon_meter.predictor.gnn import GnnModel
from llm_carbon_meter.records import MeterError

ENERGY_MODELS: Final[Mapping[str, Callable[[], EnergyModel]]] = {
    "gnn": GnnModel,
    "flop": FlopModel,
}


def energy_model(name: str) -> EnergyModel:
    """An energy model by its name.

    Raises:
        MeterError: there is none of that name.
    """
    if name not in ENERGY_MODELS:
        raise MeterError(f"no energy model {name!r}; known: {', '.join(ENERGY_MODELS)}")
    return ENERGY_MODELS[name]()
