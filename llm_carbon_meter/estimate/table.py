"""``llm-carbon-meter estimate --input``: a table of requests in, the same with their energy out.

Rows of one deployment are evaluated together. A bad row gets its reason and stops no other.
"""

import csv
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from llm_carbon_meter.estimate.one_request import check_request, make_deployment, memory_at
from llm_carbon_meter.exporters.columns import yes_or_no
from llm_carbon_meter.physics.memory import Memory
from llm_carbon_meter.physics.phases import Serving
from llm_carbon_meter.predictor.energy_model import BoundModel, Deployment, EnergyModel, Floats
from llm_carbon_meter.predictor.estimator import check_cached
from llm_carbon_meter.progress import progress
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.units import JOULES_PER_WATT_HOUR

DEPLOYMENT_COLUMNS: Final = ("model_config", "gpu", "num_gpus", "dtype", "engine", "engine_version")
REQUEST_COLUMNS: Final = ("concurrency", "prompt_tokens", "output_tokens")
INPUT_COLUMNS: Final = (*DEPLOYMENT_COLUMNS, *REQUEST_COLUMNS)
CACHED_COLUMN: Final = "cached_tokens"
"""Of the prompt, in the prefix cache; a table may leave it out."""
LIMIT_COLUMN: Final = "power_limit_w"
"""Of each GPU, empty for the data sheet's; a table may leave it out."""
ENERGY_COLUMNS: Final = ("prefill_wh", "decode_wh", "energy_wh", "low_wh", "high_wh")
TRUST_COLUMNS: Final = ("measured", "out_of_domain")
"""Whether requests were measured on such a GPU and engine, and what of a deployment was not."""
ERROR_COLUMN: Final = "error"

_PROGRESS_AFTER_S: Final = 1.0


class Table(NamedTuple):
    """A CSV file."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def read_table(path: Path) -> Table:
    """Read a file of requests.

    Raises:
        MeterError: it cannot be read, is no table, or lacks columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = [row for row in csv.reader(lines, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MeterError(f"{path} cannot be read as CSV: {error}") from error
    if not rows:
        raise MeterError(f"{path} is empty; expected the columns {_listed(INPUT_COLUMNS)}")
    columns = [name.strip() for name in rows[0]]
    missing = [name for name in INPUT_COLUMNS if name not in columns]
    if missing:
        raise MeterError(f"{path} lacks the columns {_listed(missing)}; it has {_listed(columns)}")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise MeterError(f"{path} has columns of the same name: {_listed(twice)}")
    return Table(columns, rows[1:])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


@dataclass(slots=True)
class _Group:
    """The good rows of one deployment."""

    memory: Memory
    bound: BoundModel
    rows: list[int] = field(default_factory=list)
    requests: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Concurrency, prompt, output and cached tokens."""


class _Key(NamedTuple):
    """The cells that name a deployment."""

    model_config: str
    gpu: str
    num_gpus: str
    dtype: str
    engine: str
    engine_version: str
    power_limit_w: str


class BatchEstimator:
    """Estimates of many rows; every distinct deployment is prepared once.

    Args:
        model: predicts the energy.
        folder: where relative paths of configurations are looked for after the working directory.
        note: told once of every model that is only counted approximately.
    """

    def __init__(self, model: EnergyModel, folder: Path, note: Callable[[str], None]) -> None:
        self._model = model
        self._folder = folder
        self._note = note
        self._deployments: dict[_Key, _Group | str] = {}
        """Or why there is none."""

    def run(self, table: Table) -> Table:
        """The table with energies or errors; columns of these names that it had are replaced."""
        at = {name: place for place, name in enumerate(table.columns)}
        keys = [at.get(name) for name in (*DEPLOYMENT_COLUMNS, LIMIT_COLUMN)]
        numbers = [(name, at[name]) for name in (*REQUEST_COLUMNS, CACHED_COLUMN) if name in at]
        errors: dict[int, str] = {}
        rows = progress(table.rows, disable=None, delay=_PROGRESS_AFTER_S, unit=" rows")
        for number, row in enumerate(rows):
            try:
                self._enter(number, row, len(table.columns), keys, numbers)
            except MeterError as error:
                errors[number] = str(error)
        return _with_answers(table, self._answers(), errors)

    def _enter(
        self,
        number: int,
        row: Sequence[str],
        width: int,
        keys: Sequence[int | None],
        numbers: Sequence[tuple[str, int]],
    ) -> None:
        """Put a row with those of its deployment."""
        if len(row) != width:
            raise MeterError(f"the row has {len(row)} cells, the header {width}")
        names = ("" if place is None else row[place].strip() for place in keys)
        group = self._group(_Key._make(names))
        cells = {name: row[place] for name, place in numbers}
        cells[CACHED_COLUMN] = cells.get(CACHED_COLUMN, "").strip() or "0"
        values = {name: _number(name, text) for name, text in cells.items()}
        asked = [values[name] for name in REQUEST_COLUMNS]
        check_request(group.memory, *asked)
        check_cached(values[CACHED_COLUMN], values["prompt_tokens"])
        group.rows.append(number)
        group.requests.append((asked[0], asked[1], asked[2], values[CACHED_COLUMN]))

    def _group(self, key: _Key) -> _Group:
        prepared = self._deployments.get(key)
        if prepared is None:
            try:
                deployment = self._deployment(key)
                prepared = _Group(memory_at(deployment), self._model.bind(deployment))
            except MeterError as error:
                prepared = str(error)
            self._deployments[key] = prepared
        if isinstance(prepared, str):
            raise MeterError(prepared)
        return prepared

    def _deployment(self, key: _Key) -> Deployment:
        deployment = make_deployment(
            key.model_config,
            key.gpu,
            _whole("num_gpus", key.num_gpus),
            key.dtype.lower(),
            key.engine,
            key.engine_version,
            power_limit_watts=_number(LIMIT_COLUMN, key.power_limit_w)
            if key.power_limit_w
            else None,
            folder=self._folder,
            approximate=True,
        )
        if deployment.model.approximation:
            self._note(f"{key.model_config}: {deployment.model.approximation}")
        return deployment

    def _answers(self) -> Mapping[int, Sequence[str]]:
        """`ENERGY_COLUMNS` and `TRUST_COLUMNS` of every good row."""
        answers: dict[int, Sequence[str]] = {}
        for group in self._deployments.values():
            if isinstance(group, str) or not group.rows:
                continue
            trust = yes_or_no(group.bound.measured), group.bound.out_of_domain
            for number, energies in zip(group.rows, _watt_hours(group).tolist(), strict=True):
                answers[number] = (*(f"{value:.10g}" for value in energies), *trust)
        return answers


def _with_answers(
    table: Table, answers: Mapping[int, Sequence[str]], errors: Mapping[int, str]
) -> Table:
    ours = (*ENERGY_COLUMNS, *TRUST_COLUMNS, ERROR_COLUMN)
    places = [place for place, name in enumerate(table.columns) if name not in ours]
    empty = [""] * (len(ours) - 1)
    rows = [
        [
            *(row[place] if place < len(row) else "" for place in places),
            *answers.get(number, empty),
            errors.get(number, ""),
        ]
        for number, row in enumerate(table.rows)
    ]
    return Table([*(table.columns[place] for place in places), *ours], rows)


def _watt_hours(group: _Group) -> Floats:
    """Shape (requests, 5), as `ENERGY_COLUMNS` names them."""
    concurrency, prompt, output, cached = np.array(group.requests, np.float64).T.copy()
    energy = group.bound.phases(concurrency, prompt, output, Serving(cached=cached))
    prefill, decode, factor = energy.prefill_joules, energy.decode_joules, np.exp(energy.width)
    total = prefill + decode
    joules = (prefill, decode, total, total / factor, total * factor)
    return np.stack(joules, axis=1) / JOULES_PER_WATT_HOUR


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise MeterError(f"{name} is {text!r}; expected a number") from None
    if not math.isfinite(value):
        raise MeterError(f"{name} is {text!r}; expected a finite number")
    return value


def _whole(name: str, text: str) -> int:
    value = _number(name, text)
    if value != int(value):
        raise MeterError(f"{name} is {text!r}; expected a whole number")
    return int(value)


def estimate_file(model: EnergyModel, source: Path, target: Path) -> int:
    """Answer a file of requests with another one.

    Returns:
        How many rows have an error.

    Raises:
        MeterError: a file cannot be read or written, or is no table of requests.
    """
    table = read_table(source)
    if target.is_dir() or not target.parent.is_dir():
        fault = "is a folder" if target.is_dir() else "is in no folder that exists"
        raise MeterError(f"the output {target} {fault}; give the name of a file")

    def note(text: str) -> None:
        print(f"llm-carbon-meter: {text}", file=sys.stderr)

    answered = BatchEstimator(model, source.parent, note).run(table)
    try:
        with target.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(answered.columns)
            writer.writerows(answered.rows)
    except OSError as error:
        raise MeterError(f"the output {target} cannot be written: {error}") from error
    return sum(bool(row[-1]) for row in answered.rows)
