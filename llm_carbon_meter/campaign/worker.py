"""A process that measures one model: whatever happens to it, rows that it sent are kept.

``python -m llm_carbon_meter.campaign.worker FD`` receives a `job.Job` on a connection and sends
rows (campaign/rows.py), one per repetition, and a `job.Done` at the end.
"""

import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, Final

from llm_carbon_meter.campaign.engines import Engine, OutOfMemory, load_engine
from llm_carbon_meter.campaign.gauge import Gauge, SheetGauge, Span, open_counter
from llm_carbon_meter.campaign.job import Done, Job, Occasion
from llm_carbon_meter.campaign.plan import Load
from llm_carbon_meter.campaign.rows import Row, Status
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.power.nvml.state import THROTTLED, State, StateReader
from llm_carbon_meter.power.nvml.survey import survey
from llm_carbon_meter.records import MeterError

IDLE_S: Final = 0.5
"""Idle power is measured so long before and after a repetition; after one is before the next."""
STATE_S: Final = 0.5
"""While work runs, the GPU is asked this often what slows it down."""
UNSTABLE: Final = 0.1
"""A repetition is unstable if its joules per request are further off the median of the others."""
FEW: Final = 3
"""With fewer others nothing is said of stability."""
SPARE: Final = 2
"""Repetitions more than asked for, where some are not good."""


def main(descriptor: int) -> None:
    """Measure the job that comes on a connection."""
    connection = Connection(descriptor)
    job: Job = pickle.loads(connection.recv_bytes())  # noqa: S301 - over our own pipe

    def send(message: Row | Done) -> None:
        connection.send_bytes(pickle.dumps(message))

    try:
        for row in measure(job):
            send(row)
        send(Done())
    except MeterError as error:
        send(Done(str(error)))


def measure(job: Job) -> Iterator[Row]:
    """Rows of a job, as they are measured.

    Raises:
        MeterError: the GPUs cannot be read, or the engine cannot be used.
    """
    with ExitStack() as sessions:
        gauge: Gauge = open_counter(job.gpus) if job.gpus else SheetGauge(gpu_spec(job.gpu))
        sessions.callback(gauge.close)
        states = StateReader(job.gpus) if job.gpus else None
        if states is not None:
            sessions.callback(states.close)
        yield from _measure(job, gauge, states)


def _measure(job: Job, gauge: Gauge, states: StateReader | None) -> Iterator[Row]:
    common = _common(job, gauge, states)
    try:
        engine = load_engine(
            job.engine,
            job.config,
            job.checkpoint,
            job.dtype,
            job.tensor_parallel,
            [occasion.load for occasion in job.occasions],
        )
    except OutOfMemory as error:
        yield from _none(job, common, Status.OUT_OF_MEMORY, error)
        return
    except MeterError:
        raise
    except Exception as error:  # noqa: BLE001 - boundary: an engine that does not start
        traceback.print_exc()
        yield from _none(job, common, Status.FAILED, error)
        return
    for occasion in job.occasions:
        for row in _repetitions(job, occasion, engine, gauge, states):
            yield common | _of(occasion) | row


def _none(job: Job, common: Row, status: Status, error: Exception) -> Iterator[Row]:
    """Nothing of a model could be measured."""
    return (
        {**common, **_of(occasion), **_not_measured(status, error)} for occasion in job.occasions
    )


def _repetitions(
    job: Job, occasion: Occasion, engine: Engine, gauge: Gauge, states: StateReader | None
) -> Iterator[dict[str, Any]]:
    """Until enough are good, or time is up."""
    good: list[float] = []
    try:
        batch_s = _seconds(lambda: engine.run(occasion.run))  # compiles, and says how long it takes
        idle_watts = gauge.idle_watts(IDLE_S)
        for number in range(occasion.done + 1, occasion.done + occasion.wanted + SPARE + 1):
            needed_s = max(job.least_s, batch_s) + batch_s + IDLE_S
            if len(good) >= occasion.wanted or time.monotonic() + needed_s > job.deadline_s:
                return
            row = _repetition(job, occasion, engine, gauge, states, idle_watts)
            idle_watts = row["idle_watts_after"]
            row["repetition"] = number
            if row["status"] == Status.OK and _is_off(row["joules_per_request"], good):
                row["status"] = Status.UNSTABLE
            if row["status"] == Status.OK:
                good.append(row["joules_per_request"])
            yield row
    except OutOfMemory as error:
        yield _not_measured(Status.OUT_OF_MEMORY, error)
    except MeterError:
        raise
    except Exception as error:  # noqa: BLE001 - boundary: one configuration of an engine
        traceback.print_exc()
        yield _not_measured(Status.FAILED, error)


def _repetition(
    job: Job,
    occasion: Occasion,
    engine: Engine,
    gauge: Gauge,
    states: StateReader | None,
    before_watts: float,
) -> dict[str, Any]:
    """Batch after batch for as long as a sensor needs."""
    work = _Work(engine, occasion.run, job.least_s, states)
    span = gauge.measure(work, before_watts)
    after_watts = gauge.idle_watts(IDLE_S)
    slowed = work.slowed_by
    return {
        "status": Status.THROTTLED if slowed & THROTTLED else Status.OK,
        "joules": span.joules,
        "seconds": span.seconds,
        "batches": work.batches,
        "joules_per_request": _per_request(span, work.batches, occasion.load),
        "idle_watts_before": before_watts,
        "idle_watts_after": after_watts,
        "sm_clock_mhz_lowest": work.clock_mhz,
        "temperature_c_highest": work.temperature_c,
        "slowed_by": " ".join(sorted(slowed)),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _per_request(span: Span, batches: int, load: Load) -> float:
    return span.joules / (batches * load.batch)


def _is_off(value: float, others: Sequence[float]) -> bool:
    if len(others) < FEW:
        return False
    middle = median(others)
    return abs(value - middle) > UNSTABLE * middle


class _Work:
    """Runs batches, and asks in between what the GPU says of itself."""

    def __init__(
        self, engine: Engine, load: Load, least_s: float, states: StateReader | None
    ) -> None:
        self._engine = engine
        self._load = load
        self._least_s = least_s
        self._states = states
        self.batches = 0
        self.slowed_by: frozenset[str] = frozenset()
        self.clock_mhz: float | None = None
        self.temperature_c: float | None = None

    def __call__(self) -> None:
        end_s = time.monotonic() + self._least_s
        asked_s = float("-inf")
        while not self.batches or time.monotonic() < end_s:
            self._engine.run(self._load)
            self.batches += 1
            if self._states is not None and time.monotonic() - asked_s > STATE_S:
                asked_s = time.monotonic()
                self._note(self._states.read())

    def _note(self, state: State) -> None:
        self.slowed_by |= state.reasons
        self.clock_mhz = _known(min, self.clock_mhz, state.sm_clock_mhz)
        self.temperature_c = _known(max, self.temperature_c, state.temperature_c)


def _known(choose: Callable[[list[float]], float], *values: float | None) -> float | None:
    numbers = [value for value in values if value is not None]
    return choose(numbers) if numbers else None


def _seconds(call: Callable[[], None]) -> float:
    begun_s = time.monotonic()
    call()
    return time.monotonic() - begun_s


def _of(occasion: Occasion) -> dict[str, Any]:
    return {**occasion.load._asdict(), "phase": occasion.phase}


def _not_measured(status: Status, error: Exception) -> dict[str, Any]:
    lines = str(error).strip().splitlines() or [""]
    note = f"{type(error).__name__}: {lines[0]}"
    return {
        "status": status,
        "note": note[:200],
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _common(job: Job, gauge: Gauge, states: StateReader | None) -> dict[str, Any]:
    import torch

    return {
        **job.identity,
        "torch_version": torch.__version__,
        "driver": survey(job.gpus).driver if job.gpus else "",
        "power_limit_watts": states.power_limit_watts() if states else None,
        "quality": gauge.quality,
    }


if __name__ == "__main__":
    main(int(sys.argv[1]))
