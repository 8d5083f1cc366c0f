"""``llm-carbon-meter estimate`` of one request: an estimate without a server."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_carbon_meter.exporters.columns import aligned, figure, first_unmeasured, yes_or_no
from llm_carbon_meter.physics.gpu_specs import all_gpus, at_limit, gpu_spec
from llm_carbon_meter.physics.memory import Memory, check_context, check_memory, memory_of
from llm_carbon_meter.physics.model_list import named_config
from llm_carbon_meter.physics.model_specs import model_spec
from llm_carbon_meter.physics.number_formats import with_dtype
from llm_carbon_meter.physics.parallel import check_tensor_parallel
from llm_carbon_meter.predictor.energy_model import Deployment, EnergyModel
from llm_carbon_meter.predictor.estimator import DeploymentEstimator
from llm_carbon_meter.predictor.flop import FlopModel, note_flop
from llm_carbon_meter.predictor.lengths import exact_length
from llm_carbon_meter.records import (
    CarbonIntensity,
    EnergyEstimate,
    EstimateQuery,
    MeterError,
    SpecError,
)
from llm_carbon_meter.units import watt_hours


def make_deployment(
    model: str,
    gpu: str,
    num_gpus: int,
    dtype: str = "",
    engine: str = "",
    engine_version: str = "",
    *,
    power_limit_watts: float | None = None,
    folder: Path | None = None,
    approximate: bool = False,
) -> Deployment:
    """A deployment by the names of its parts.

    Args:
        model: see `named_config`.
        gpu: of data/gpus.toml.
        num_gpus: of the tensor-parallel group.
        dtype: number format; empty for what the configuration says.
        engine: empty where unknown.
        engine_version: empty where unknown.
        power_limit_watts: of each GPU, where it is set lower than the data sheet's.
        folder: see `named_config`.
        approximate: count an unknown architecture as Llama.

    Raises:
        SpecError: one of them is not known, the model cannot be divided among the GPUs, or they
            cannot have that power limit.
    """
    config = with_dtype(named_config(model, folder), dtype)
    spec = model_spec(config, model, approximate=approximate)
    check_tensor_parallel(spec, num_gpus)
    sheet = gpu_spec(gpu)
    limited = sheet if power_limit_watts is None else at_limit(sheet, power_limit_watts)
    return Deployment(spec, limited, num_gpus, engine, engine_version)


def memory_at(deployment: Deployment) -> Memory:
    """What the GPUs of a deployment hold."""
    return memory_of(deployment.model, deployment.gpu, deployment.num_gpus)


def check_request(
    memory: Memory, concurrency: float, prompt_tokens: float, output_tokens: float
) -> None:
    """Refuse what cannot run on a deployment.

    Raises:
        MeterError: a number below 1, more tokens than the context holds, or more weights and cache
            than the GPUs.
    """
    numbers = {
        "concurrency": concurrency,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
    }
    for name, value in numbers.items():
        if not value >= 1:  # also refuses nan
            raise MeterError(f"{name} is {value:g}; it must be at least 1")
    check_context(memory.model, prompt_tokens, output_tokens)
    check_memory(memory, concurrency, prompt_tokens, output_tokens)


_METHODS: Mapping[str, str] = {"flop": "the FLOP formula of the LLM-BENCH note", "gnn": "the GNN"}


class _Placed(NamedTuple):
    """An estimate on one GPU."""

    gpu: str
    estimate: EnergyEstimate
    measured: bool
    """Whether requests were measured on that GPU and engine."""


class OfflineEstimate:
    """One request on one deployment, and as text.

    Args:
        model: predicts the energy.
        deployment: where the request would run.
        query: with its prompt, its company and exactly as many output tokens.
        intensity: of the grid.
        pue: on top of figures that do not contain it.
    """

    def __init__(
        self,
        model: EnergyModel,
        deployment: Deployment,
        query: EstimateQuery,
        intensity: CarbonIntensity,
        pue: float,
    ) -> None:
        self._output_tokens = query.output_tokens or 0
        self._model = model
        self._deployment = deployment
        self._query = query
        self._intensity = intensity
        self._pue = pue

    @cached_property
    def _estimate(self) -> EnergyEstimate:
        return self._on(self._deployment).estimate

    def _on(self, deployment: Deployment) -> _Placed:
        query = self._query
        memory = memory_at(deployment)
        check_request(memory, query.concurrency, query.prompt_tokens, self._output_tokens)
        estimator = DeploymentEstimator(self._model, deployment, self._intensity, self._pue)
        estimate = estimator.estimate(query, exact_length(self._output_tokens))
        return _Placed(deployment.gpu.label, estimate, estimator.measured)

    def table(self) -> str:
        """Both phases and the total.

        Raises:
            SpecError: the request does not fit there.
            MeterError: it makes no sense.
        """
        estimate = self._estimate
        grams = estimate.operational_grams / estimate.joules
        rows = {
            "prefill": estimate.prefill_joules,
            "decode": estimate.decode_joules,
            "total": estimate.joules,
        }
        flop = self._flop()
        lines = [["phase", *(["FLOP"] if flop else []), "Wh", "gCO2eq"]]
        lines += [
            [
                phase,
                *([figure(flop[phase])] if flop else []),
                figure(watt_hours(joules)),
                figure(joules * grams),
            ]
            for phase, joules in rows.items()
        ]
        return "\n".join([self._title(), aligned(lines), *self._remarks()])

    def _title(self) -> str:
        deployment, query = self._deployment, self._query
        cached = f" ({query.cached_tokens:g} of them cached)" if query.cached_tokens else ""
        return (
            f"{deployment.model.name} on {deployment.num_gpus} x {deployment.gpu.label}, "
            f"{query.prompt_tokens} prompt{cached} and {query.output_tokens} output tokens, "
            f"{query.concurrency:g} at once; estimated by {_METHODS[self._model.name]}"
        )

    def _flop(self) -> Mapping[str, int]:
        """Operations by phase, where it is these that were counted; else nothing."""
        if not isinstance(self._model, FlopModel) or self._query.cached_tokens:
            return {}
        flop = note_flop(
            self._deployment.model,
            np.array(self._query.prompt_tokens, np.float64),
            np.array(self._output_tokens, np.float64),
        )
        prefill, decode = round(float(flop.prefill)), round(float(flop.decode))
        return {"prefill": prefill, "decode": decode, "total": prefill + decode}

    def _remarks(self) -> list[str]:
        estimate, grid = self._estimate, self._intensity
        low, high = watt_hours(estimate.low_joules), watt_hours(estimate.high_joules)
        overhead = "a facility figure, no PUE on top" if estimate.facility else f"PUE {self._pue:g}"
        lines = [f"10 % to 90 %: {figure(low)} to {figure(high)} Wh"] if low < high else []
        lines.append(f"at {figure(grid.grams_per_kwh)} gCO2eq/kWh ({grid.zone}); {overhead}")
        if estimate.out_of_domain:
            lines.append(f"wider, since: {estimate.out_of_domain}")
        return lines

    def comparison(self) -> str:
        """The same on every GPU of the table that such requests fit on, cheapest first; the others
        at their board power.

        Raises:
            MeterError: the request makes no sense.
        """
        placed, too_small, here = [], [], self._deployment.gpu
        for gpu in (here, *(other for other in all_gpus() if other.name != here.name)):
            try:
                placed.append(self._on(replace(self._deployment, gpu=gpu)))
            except SpecError:
                too_small.append(gpu.name)
        placed.sort(key=lambda one: one.estimate.joules)
        lines = []
        if placed:
            rows = [["GPU", "Wh", "low Wh", "high Wh", "gCO2eq", "measured", "out_of_domain"]]
            rows += map(self._compared, placed)
            first = placed[0]
            wh = f"{figure(watt_hours(first.estimate.joules))} Wh"
            lines = [aligned(rows, (0, 5, 6)), *first_unmeasured(first.measured, first.gpu, wh)]
        if too_small:
            names = ", ".join(too_small) if placed else "any GPU of the table"
            lines.append(f"such requests do not fit on {names}")
        return "\n".join(lines)

    def _compared(self, placed: _Placed) -> list[str]:
        estimate, own = placed.estimate, placed.gpu == self._deployment.gpu.label
        joules = (estimate.joules, estimate.low_joules, estimate.high_joules)
        figures = [*map(watt_hours, joules), estimate.operational_grams]
        return [
            placed.gpu + " *" * own,
            *map(figure, figures),
            yes_or_no(placed.measured),
            estimate.out_of_domain,
        ]
