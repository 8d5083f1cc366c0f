"""What the predictor says of the campaign's configurations: the machinery of the verb estimate."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from truth import Configuration

from llm_carbon_meter.campaign.command import TINY_CONFIG
from llm_carbon_meter.campaign.plan import TINY_MODEL
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.model_list import named_config
from llm_carbon_meter.physics.model_specs import model_spec
from llm_carbon_meter.physics.number_formats import with_dtype
from llm_carbon_meter.predictor.energy_model import BoundModel, Deployment
from llm_carbon_meter.predictor.models import energy_model

MODEL = "gnn"


@cache
def _bound(model: str, gpu: str, dtype: str, engine: str, version: str) -> BoundModel:
    config = TINY_CONFIG if model == TINY_MODEL else named_config(model)
    spec = model_spec(with_dtype(config, dtype), model)
    return energy_model(MODEL).bind(Deployment(spec, gpu_spec(gpu), 1, engine, version))


def estimated(measured: Sequence[Configuration]) -> list[tuple[float, float]]:
    """Joules of prefill and of decode of one request, not calibrated.

    Raises:
        SpecError: the GPU or a model is not known.
    """
    found = []
    for one in measured:
        bound = _bound(one.model, one.gpu, one.dtype, one.engine, one.engine_version)
        asked = np.array([[one.batch], [one.prompt_tokens], [one.output_tokens]], np.float64)
        energy = bound.phases(asked[0], asked[1], asked[2])
        found.append((energy.prefill_joules.item(), energy.decode_joules.item()))
    return found
