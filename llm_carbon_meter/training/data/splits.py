"""Which rows are held out together: frozen rules, by group and never by row.

A split says in which attributes its sides differ (``apart``), and `assert_no_leak` holds it to
that. Whatever the rule, a configuration is never on both sides.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.training.data.physics_features import engine_name
from llm_carbon_meter.training.data.rows import Row

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]

RANDOM_FOLDS: Final = 5
ARCHITECTURE_FOLDS: Final = 8

ATTRIBUTES: Final[Mapping[str, Callable[[Row], str]]] = {
    "architecture": lambda row: row.architecture,
    "family": lambda row: row.family,
    "gpu": lambda row: row.gpu,
    "engine": engine_name,
    "source": lambda row: row.source,
}


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Row numbers to fit on and to judge on."""

    name: str
    held_out: str
    """What the test rows have in common."""
    train: Indices
    test: Indices
    apart: tuple[str, ...]
    """Attributes of which no value is on both sides."""
    confounded: str
    """GPUs and engines that are also new in the test rows, though the split is not about them."""


def configuration(row: Row) -> tuple[object, ...]:
    """What repeated runs have in common; GPUs and prompts of equal length are not told apart."""
    return (
        row.model,
        row.gpu,
        row.num_gpus,
        row.quantisation,
        row.engine,
        row.engine_version,
        row.concurrency,
        row.prompt_tokens,
        row.output_tokens,
    )


def random_leaky(rows: Sequence[Row], seed: int = 0, folds: int = RANDOM_FOLDS) -> list[Split]:
    """Whole configurations at random: leaky, since near-copies are on both sides; the easiest."""
    groups = _numbered([configuration(row) for row in rows])
    fold = np.random.default_rng(seed).permutation(groups.max() + 1) % folds
    return [
        _split(rows, "random (leaky)", f"fold {number}", fold[groups] == number)
        for number in range(folds)
    ]


def leave_architecture_out(
    rows: Sequence[Row], only: Callable[[Row], bool] = lambda row: True
) -> list[Split]:
    """One group of near-twin architectures at a time; judged on those rows that ``only`` takes."""
    judged = np.array([only(row) for row in rows])
    return _leave_out(rows, "leave-architecture-out", "architecture", judged)


def architecture_folds(rows: Sequence[Row], folds: int = ARCHITECTURE_FOLDS) -> list[Split]:
    """Architecture groups dealt to folds of about the same weight."""
    fold = dealt([row.architecture for row in rows], [row.weight for row in rows], folds)
    return [
        _split(
            rows, "architecture folds", f"fold {number}", fold == number, apart=("architecture",)
        )
        for number in np.unique(fold)
    ]


def dealt(groups: Sequence[str], weights: Sequence[float], folds: int) -> Indices:
    """The fold of every row: whole groups, of about the same weight, the heaviest dealt first."""
    heavy: dict[str, float] = defaultdict(float)
    for group, weight in zip(groups, weights, strict=True):
        heavy[group] += weight
    loads, fold_of = [0.0] * folds, {}
    for group in sorted(heavy, key=lambda name: (-heavy[name], name)):
        fold_of[group] = loads.index(min(loads))
        loads[fold_of[group]] += heavy[group]
    return np.array([fold_of[group] for group in groups], np.int64)


def leave_family_out(rows: Sequence[Row]) -> list[Split]:
    """One family at a time; its near-twins of other families are not trained on either."""
    return _leave_out(rows, "leave-family-out", "family", also_apart=("architecture",))


def leave_gpu_out(rows: Sequence[Row]) -> list[Split]:
    """One GPU at a time; variants of one chip are GPUs of their own."""
    return _leave_out(rows, "leave-GPU-out", "gpu")


def leave_engine_out(rows: Sequence[Row]) -> list[Split]:
    """One engine and version at a time."""
    return _leave_out(rows, "leave-engine-out", "engine")


def leave_source_out(rows: Sequence[Row]) -> list[Split]:
    """One data set at a time: catches what is peculiar to a laboratory."""
    return _leave_out(rows, "leave-source-out", "source")


def batch_up(rows: Sequence[Row]) -> list[Split]:
    """The largest third of the concurrencies of every deployment."""
    return [_batch_range(rows, "batch up", "the largest", largest=True)]


def batch_down(rows: Sequence[Row]) -> list[Split]:
    """The smallest third of the concurrencies of every deployment."""
    return [_batch_range(rows, "batch down", "the smallest", largest=False)]


SPLITS: Final[Mapping[str, Callable[[Sequence[Row]], list[Split]]]] = {
    "random (leaky)": random_leaky,
    "leave-architecture-out": leave_architecture_out,
    "architecture folds": architecture_folds,
    "leave-family-out": leave_family_out,
    "leave-GPU-out": leave_gpu_out,
    "leave-engine-out": leave_engine_out,
    "leave-source-out": leave_source_out,
    "batch up": batch_up,
    "batch down": batch_down,
}


def assert_no_leak(split: Split, rows: Sequence[Row]) -> None:
    """Check that a split keeps apart what it says, and configurations.

    Raises:
        MeterError: names what is on both sides.
    """
    train, test = ([rows[number] for number in side] for side in (split.train, split.test))
    for name in split.apart:
        of = ATTRIBUTES[name]
        _refuse_shared(split, name, set(map(of, train)) & set(map(of, test)))
    shared = set(map(configuration, train)) & set(map(configuration, test))
    _refuse_shared(split, "configuration", shared)


def _refuse_shared(split: Split, name: str, shared: Iterable[object]) -> None:
    both = sorted(map(str, shared))
    if both:
        raise MeterError(
            f"{split.name}, {split.held_out}: {len(both)} values of {name} are on both sides, "
            f"such as {both[0]}; split by group"
        )


def _leave_out(
    rows: Sequence[Row],
    name: str,
    attribute: str,
    judged: Mask | None = None,
    also_apart: tuple[str, ...] = (),
) -> list[Split]:
    """A split for each value of an attribute that has rows to judge on."""
    values = np.array([ATTRIBUTES[attribute](row) for row in rows])
    allowed = np.ones(len(rows), np.bool_) if judged is None else judged
    apart = (attribute, *also_apart)
    return [
        _split(rows, name, str(value), (values == value) & allowed, apart=apart)
        for value in np.unique(values[allowed])
    ]


def _batch_range(rows: Sequence[Row], name: str, held_out: str, *, largest: bool) -> Split:
    """A deployment with one concurrency is only trained on."""
    deployments = _numbered([(row.model, row.gpu, row.engine, row.task) for row in rows])
    concurrency = np.array([row.concurrency for row in rows])
    test = np.zeros(len(rows), np.bool_)
    for number in range(deployments.max() + 1):
        same = deployments == number
        levels = np.unique(concurrency[same])
        third = max(1, len(levels) // 3) if len(levels) > 1 else 0
        chosen = levels[len(levels) - third :] if largest else levels[:third]
        test |= same & np.isin(concurrency, chosen)
    return _split(rows, name, f"{held_out} third", test)


def _numbered(keys: Sequence[object]) -> Indices:
    """A number for every key, in order of appearance."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _split(
    rows: Sequence[Row], name: str, held_out: str, test: Mask, apart: tuple[str, ...] = ()
) -> Split:
    """Train on everything that shares neither ``apart`` nor a configuration with the test rows."""
    is_train = ~test
    for of in (configuration, *(ATTRIBUTES[attribute] for attribute in apart)):
        values = [of(row) for row in rows]
        held = {value for value, is_test in zip(values, test, strict=True) if is_test}
        is_train &= np.array([value not in held for value in values])
    train, judged = np.flatnonzero(is_train), np.flatnonzero(test)
    return Split(name, held_out, train, judged, apart, _confounded(rows, train, judged, apart))


def _confounded(rows: Sequence[Row], train: Indices, test: Indices, apart: tuple[str, ...]) -> str:
    """GPUs and engines of the test rows that training never sees, unless that is the point."""
    new = []
    for name in ("gpu", "engine"):
        of = ATTRIBUTES[name]
        unseen = {of(rows[n]) for n in test} - {of(rows[n]) for n in train}
        if unseen and name not in apart:
            new.append(f"{name} {', '.join(sorted(unseen))}")
    return "; ".join(new)
