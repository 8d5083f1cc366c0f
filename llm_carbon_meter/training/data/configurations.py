"""What can be measured, how near two of them are, and which are locked away for the test."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from llm_carbon_meter.physics.model_list import built_in_config
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.physics.number_formats import with_dtype
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.training.data.rows import Row, architecture_group

Group = tuple[str, str]
"""Near-twin architectures on one GPU."""
Changes = tuple[tuple[str, int], ...]
"""Fields of a config.json and their values."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What one measurement is of: a model on GPUs, under equal requests."""

    model: ModelSpec
    """With the element sizes that are served."""
    gpu: str
    num_gpus: int
    engine: str
    engine_version: str
    batch: float
    """Requests at once."""
    prompt_tokens: float
    output_tokens: float
    dtype: str = ""
    """Number format; empty for the model's own."""
    changes: Changes = ()
    """Fields of config.json in which this differs from the model of the built-in list."""

    @classmethod
    def of(cls, row: Row) -> "Configuration":
        """What a recorded row was measured of."""
        return cls(
            model=row.spec,
            gpu=row.gpu,
            num_gpus=row.num_gpus,
            engine=row.engine,
            engine_version=row.engine_version,
            batch=row.concurrency,
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            dtype="" if row.quantisation == "none" else row.quantisation,
        )

    @property
    def config(self) -> Mapping[str, Any]:
        """The config.json to serve, with weights of any value, for what is measured."""
        return with_dtype({**built_in_config(self.model.name), **dict(self.changes)}, self.dtype)

    @property
    def group(self) -> Group:
        """What is locked away together."""
        return architecture_group(self.model), self.gpu


FIELDS: Final[Mapping[str, Callable[[Configuration], float]]] = {
    "layers": lambda one: one.model.num_layers,
    "heads": lambda one: one.model.num_heads,
    "kv_heads": lambda one: one.model.num_kv_heads,
    "head_dim": lambda one: one.model.head_dim,
    "hidden": lambda one: one.model.hidden_size,
    "intermediate": lambda one: one.model.intermediate_size,
    "experts": lambda one: one.model.num_experts,
    "expert": lambda one: one.model.expert_size,
    "vocabulary": lambda one: one.model.vocab_size,
    "bits": lambda one: 8 * one.model.weight_bytes,
    "expert_bits": lambda one: 8 * one.model.expert_weight_bytes,
    "gpus": lambda one: one.num_gpus,
    "batch": lambda one: one.batch,
    "prompt_tokens": lambda one: one.prompt_tokens,
    "output_tokens": lambda one: one.output_tokens,
}


class Tolerance(NamedTuple):
    """How far two values may be from each other: the larger of both bounds."""

    absolute: float = 0.0
    relative: float = 0.0
    """To the larger value."""


Radius = Mapping[str, Tolerance]
"""C of Algorithm 1 for some of `FIELDS`; the others are equal."""

PAPER_RADIUS: Final[Radius] = {
    "layers": Tolerance(1),
    "heads": Tolerance(1),
    "kv_heads": Tolerance(1),
    "hidden": Tolerance(128),
    "intermediate": Tolerance(512),
    "prompt_tokens": Tolerance(10),
    "output_tokens": Tolerance(1),
}
"""Layers and tokens as the paper says; it is silent on the rest: a head and what it is wide."""

SHAPE: Final = (
    *("layers", "heads", "kv_heads", "head_dim", "hidden"),
    *("intermediate", "expert", "vocabulary"),
)
RECORDED_RADIUS: Final[Radius] = {
    **{name: Tolerance(relative=0.2) for name in SHAPE},
    **{name: Tolerance(relative=0.5) for name in ("batch", "prompt_tokens", "output_tokens")},
}
"""For a pool that is given: within the paper's, four in five of the public rows have no other.

Factors of 1.25 in shape and of 2 in load, about nn-Meter's range around a bad point.
"""


def within(first: Configuration, second: Configuration, radius: Radius) -> bool:
    """Whether two are on the same GPUs and engine and no field differs by more than its C."""
    places = {(point.gpu, point.engine, point.engine_version) for point in (first, second)}
    return len(places) == 1 and all(
        math.isclose(of(first), of(second), rel_tol=allowed.relative, abs_tol=allowed.absolute)
        for of, allowed in ((of, radius.get(name, Tolerance())) for name, of in FIELDS.items())
    )


@dataclass(frozen=True, slots=True)
class Locked:
    """Configurations of a test set, without what they cost: nothing near them is sampled."""

    configurations: Sequence[Configuration]
    groups: frozenset[Group]
    radius: Radius

    def admits(self, configuration: Configuration) -> bool:
        """Whether a configuration is of no locked group and outside the radius of all."""
        return configuration.group not in self.groups and not any(
            within(configuration, locked, self.radius) for locked in self.configurations
        )


NOTHING_LOCKED: Final = Locked((), frozenset(), {})


def lock(
    drawn: Iterable[Configuration], share: float, radius: Radius, rng: np.random.Generator
) -> Locked:
    """Lock whole groups at random until a share of what was drawn is locked.

    Do so before anything is sampled. Which groups there are follows from the draw.

    Args:
        drawn: from the distribution that the predictor is for.
        share: of ``drawn``, reached or exceeded by the last group.
        radius: around what is locked, in which no sample may be.
        rng: of the choice.

    Raises:
        MeterError: nothing would be left to sample, or to test on.
    """
    every = list(drawn)
    groups = sorted({configuration.group for configuration in every})
    chosen: set[Group] = set()
    for place in rng.permutation(len(groups)):
        if sum(configuration.group in chosen for configuration in every) >= share * len(every):
            break
        chosen.add(groups[place])
    if not 0 < len(chosen) < len(groups):
        raise MeterError(
            f"locking {share:g} of {len(every)} configurations took {len(chosen)} of "
            f"{len(groups)} groups of architecture and GPU; give a share between 0 and 1 and "
            "configurations of more groups, so that some are left on either side"
        )
    return Locked(
        [configuration for configuration in every if configuration.group in chosen],
        frozenset(chosen),
        radius,
    )
