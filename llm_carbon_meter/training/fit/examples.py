"""Rows of the table as the arrays that are trained on, made by the code that serves.

Repeated runs of one configuration are one example, their mean.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.predictor.features import (
    EXPAND,
    NODE_FEATURES,
    DeploymentGraph,
    ReferenceGraph,
    neighbours,
    static_nodes,
)
from llm_carbon_meter.training.data.physics_features import engine_name, placement
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.data.splits import configuration

Floats = npt.NDArray[np.float64]

MAX_KERNELS: Final = 32


@dataclass(frozen=True, slots=True)
class Examples:
    """Arrays of n examples; kernels are padded to one number."""

    terms: Floats
    """Shape (n, 2, terms)."""
    nodes: Floats
    """Shape (n, 2, kernels, features)."""
    linked: Floats
    """Shape (n, kernels, kernels)."""
    mask: Floats
    """Shape (n, kernels)."""
    described: Floats
    """Shape (n, 2, features)."""
    reference_nodes: Floats
    """Of the deployment, shape (n, kernels, features)."""
    reference_described: Floats
    """Shape (n, features)."""
    deployments: npt.NDArray[np.str_]
    """A name for each deployment."""
    board_joules: Floats
    """Per request and second of board power: what physics counts in, shape (n,)."""
    joules: Floats
    """Measured per request."""
    output_tokens: Floats
    batch_seconds: Floats
    """Measured time of a whole batch; nan where unknown."""
    engines: npt.NDArray[np.str_]
    gpus: npt.NDArray[np.str_]
    weights: Floats

    def __len__(self) -> int:
        return len(self.joules)

    def of(self, places: npt.NDArray[np.intp]) -> "Examples":
        """Some of them."""
        return Examples(*(getattr(self, field.name)[places] for field in fields(self)))


def merge_repeats(rows: Sequence[Row]) -> list[Row]:
    """One row for all runs of a configuration: means, and the sum of the weights."""
    runs = defaultdict(list)
    for row in rows:
        runs[configuration(row)].append(row)
    return [_mean(same) for same in runs.values()]


def _mean(rows: Sequence[Row]) -> Row:
    def mean(name: str) -> Any:
        values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        return float(np.mean(values)) if values else None

    names = ("energy_joules", "power_watts", "output_tokens_per_s", "time_per_output_token_s")
    return replace(
        rows[0],
        weight=sum(row.weight for row in rows),
        **{name: mean(name) for name in names},
    )


def deployment_of(row: Row) -> Deployment:
    """Where one replica of a row runs."""
    gpus = placement(row).tensor_parallel
    return Deployment(row.spec, gpu_spec(row.gpu), gpus, row.engine, row.engine_version)


def deployment_name(row: Row) -> str:
    """What rows of one deployment have in common."""
    formats = f"{row.quantisation} {row.spec.weight_bytes:g}"
    return f"{row.spec.name} {formats} {row.num_gpus} x {row.gpu} {engine_name(row)}"


def examples(rows: Sequence[Row]) -> Examples:
    """Arrays of some rows, in their order."""
    return Examples(*(np.stack(column) for column in zip(*map(_example, rows), strict=True)))


def _example(row: Row) -> tuple[Any, ...]:
    graph, linked, fixed, mask, reference = _prepared(
        row.spec, row.gpu, placement(row).tensor_parallel, row.engine
    )
    batch = row.concurrency / placement(row).replicas
    columns = (
        np.array([max(number, 1.0)]) for number in (batch, row.prompt_tokens, row.output_tokens)
    )
    inputs = graph.inputs(*columns)
    nodes = np.zeros((2, MAX_KERNELS, len(NODE_FEATURES)))
    kernels, kinds = fixed.shape
    nodes[:, :kernels, :kinds] = fixed
    nodes[:, :kernels, kinds:] = (inputs.basis[:, 0] @ EXPAND).swapaxes(0, 1)
    seconds = np.nan
    if row.output_tokens_per_s:
        seconds = row.concurrency * row.output_tokens / row.output_tokens_per_s
    return (
        inputs.terms[0] * [[1.0], [max(row.output_tokens - 1.0, 0.0)]],
        nodes,
        linked,
        mask,
        np.concatenate((inputs.described[0], graph.constants), 1),
        *reference,
        deployment_name(row),
        gpu_spec(row.gpu).board_watts * row.num_gpus / row.concurrency,
        row.energy_joules,
        row.output_tokens,
        seconds,
        engine_name(row),
        gpu_spec(row.gpu).name,
        row.weight,
    )


@cache
def _prepared(
    model: ModelSpec, gpu: str, parallel: int, engine: str
) -> tuple[DeploymentGraph, Floats, Floats, Floats, ReferenceGraph]:
    graph = DeploymentGraph.of(Deployment(model, gpu_spec(gpu), parallel, engine))
    linked, fixed = neighbours(model, parallel), static_nodes(model, parallel)
    missing = MAX_KERNELS - len(fixed)
    mask = np.concatenate((np.ones(len(fixed)), np.zeros(missing)))
    nodes, described = graph.reference()
    padded = ReferenceGraph(np.pad(nodes, ((0, missing), (0, 0))), described)
    return graph, np.pad(linked, (0, missing)), fixed, mask, padded
