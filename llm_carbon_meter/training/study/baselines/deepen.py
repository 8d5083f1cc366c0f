"""DeepEn and nn-Meter, ported: one random forest for each kind of kernel, the sum over kernels.

The labels here are of whole requests: each row's joules are dealt to its kernels in proportion to
their roofline time. Features are the configuration of a launch and its platform, without phase and
without roofline. Forests learn logarithms, since a launch costs microjoules or joules; they have
370 trees in nn-Meter.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.kernels import KernelTotals
from llm_carbon_meter.physics.roofline import seconds
from llm_carbon_meter.training.data.physics_features import engine_name, placement, row_phases
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.study.baselines.baseline import Fitted, Floats, distinct

TREES: Final = 100
DEPTH: Final = 50


class Launches(NamedTuple):
    """All launches of one kernel in one phase of one row."""

    kind: str
    row: int
    launches: float
    """Steps times places in the model."""
    features: tuple[float, ...]
    """Of one launch on one GPU."""
    roofline_s: float
    """Of one launch."""


class Platforms(NamedTuple):
    """The GPUs and engines of the training rows."""

    gpus: list[str]
    engines: list[str]


def fit_deepen(rows: Sequence[Row], seed: int, trees: int = TREES) -> Fitted:
    """Forests on the energy of a launch on one GPU; a kind without a forest counts nothing."""
    platforms = Platforms(
        distinct([row.gpu for row in rows]), distinct([engine_name(row) for row in rows])
    )
    launched = list(_launches(rows, platforms))
    joules = _launch_joules(rows, launched)
    of_kind = _by_kind(launched)
    forests = {
        kind: _forest(
            [launched[place] for place in places], joules[places], rows, trees=trees, seed=seed
        )
        for kind, places in of_kind.items()
    }

    def predict(rows: Sequence[Row]) -> Floats:
        total = np.zeros(len(rows))
        launched = list(_launches(rows, platforms))
        for kind, places in _by_kind(launched).items():
            if kind not in forests:
                continue
            some = [launched[place] for place in places]
            each = np.exp(forests[kind].predict(np.array([one.features for one in some])))
            of_row = np.array([one.row for one in some])
            times = np.array([one.launches for one in some])
            total += np.bincount(of_row, each * times, minlength=len(rows))
        return total * _gpus_per_request(rows)

    return Fitted(predict)


def _forest(
    some: Sequence[Launches], joules: Floats, rows: Sequence[Row], *, trees: int, seed: int
) -> RandomForestRegressor:
    forest = RandomForestRegressor(trees, max_depth=DEPTH, max_features=1.0, random_state=seed)
    weights = np.array([rows[one.row].weight for one in some])
    features = np.array([one.features for one in some])
    return forest.fit(features, np.log(joules), sample_weight=weights)


def _by_kind(launched: Sequence[Launches]) -> dict[str, list[int]]:
    """Places in the list."""
    places = defaultdict(list)
    for place, one in enumerate(launched):
        places[one.kind].append(place)
    return places


def _launch_joules(rows: Sequence[Row], launched: Sequence[Launches]) -> Floats:
    """Energy of each launch on one GPU: the row's joules per second of roofline time."""
    of_row = np.array([one.row for one in launched])
    each_s = np.array([one.roofline_s for one in launched])
    times = np.array([one.launches for one in launched])
    row_s = np.bincount(of_row, each_s * times, minlength=len(rows))
    energy = np.array([row.energy_joules for row in rows]) / _gpus_per_request(rows)
    joules: Floats = (energy / row_s)[of_row] * each_s
    return joules


def _gpus_per_request(rows: Sequence[Row]) -> Floats:
    return np.array([row.num_gpus / row.concurrency for row in rows])


def _launches(rows: Sequence[Row], platforms: Platforms) -> Iterator[Launches]:
    for number, row in enumerate(rows):
        gpu, phases = gpu_spec(row.gpu), row_phases(row)
        batch = max(1.0, row.concurrency / placement(row).replicas)
        platform = _place(row.gpu, platforms.gpus), _place(engine_name(row), platforms.engines)
        prefill = batch * row.prompt_tokens, (row.prompt_tokens + 1) / 2
        decode = batch, row.prompt_tokens + row.output_tokens / 2
        for kernels, steps, (tokens, context) in (
            (phases.prefill, 1.0, prefill),
            (phases.decode, row.output_tokens - 1, decode),
        ):
            for kernel in kernels if steps else ():
                features = _features(row, kernel, steps, tokens, context)
                yield Launches(
                    kind=kernel.kind,
                    row=number,
                    launches=steps * kernel.count,
                    features=(*features, *platform),
                    roofline_s=seconds(kernel, gpu) / steps,
                )


def _features(
    row: Row, kernel: KernelTotals, steps: float, tokens: float, context: float
) -> tuple[float, ...]:
    """Of one launch; heads and the mean context only where the kernel knows them."""
    model, attends = row.spec, kernel.kind == "fuse_attn"
    heads = (model.num_heads, model.num_kv_heads, model.head_dim, context)
    return (
        tokens,
        kernel.d_in,
        kernel.d_out,
        *(heads if attends else (0.0,) * len(heads)),
        model.weight_bytes,
        kernel.operations / steps,
        kernel.weight_bytes / steps / model.weight_bytes,
    )


def _place(name: str, known: Sequence[str]) -> float:
    return float(known.index(name)) if name in known else -1.0
