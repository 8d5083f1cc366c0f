"""Request logs that tests write, and reports of them."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from llm_carbon_meter.cli import main
from llm_carbon_meter.report.database import database
from llm_carbon_meter.report.files import files_of
from llm_carbon_meter.report.periods import Period, moment
from llm_carbon_meter.report.summary import Question, Report, load_lines, make_report

NOON: Final = moment("2026-03-01T12:00:00Z")
COVERS: Final = "energy of the GPUs alone, grams times PUE 1; embodied: the whole GPU board (pcf)"
WHOLE: Final = Period()


def line(**changes: Any) -> dict[str, Any]:
    """A record of version 1: 1 Wh, 100 prompt and 400 output tokens, estimated at 0.8 Wh."""
    record = {
        "model": "Llama",
        "zone": "FR",
        "source": "measured",
        "quality": "counter",
        "prompt_tokens": 100,
        "output_tokens": 400,
        "energy_joules": 3600.0,
        "prefill_joules": 360.0,
        "decode_joules": 2880.0,
        "recompute_joules": 180.0,
        "waste_joules": 180.0,
        "idle_joules": 0.0,
        "operational_grams": 0.5,
        "embodied_grams": 0.1,
        "covers": COVERS,
        "intensity_source": "France 2024",
        "estimate": {
            "facility": False,
            "energy_joules": 1.0,
            "calibrated": {"energy_joules": 2880},
        },
        "features": {"arrived_unix_s": NOON},
    }
    return {**record, **changes}


def new_line(**changes: Any) -> dict[str, Any]:
    """The same in version 2."""
    old = line()
    del old["estimate"], old["features"]
    place = {"version": 2, "kind": "request", "arrived_unix_s": NOON}
    return {**place, **old, "estimate_calibrated_joules": 2880.0, **changes}


def at(unix_s: float) -> dict[str, Any]:
    """The field of a request of version 1 that came then."""
    return {"features": {"arrived_unix_s": unix_s}}


def write(path: Path, *records: dict[str, Any] | str) -> Path:
    """A log of these records; text is written as it is."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def report_of(folder: Path, *records: dict[str, Any] | str, by: str = "model") -> Report:
    """The report of a whole log."""
    return made(write(folder / "requests.jsonl", *records), by=by)


def made(log: Path, period: Period = WHOLE, by: str = "model") -> Report:
    """The report of a log."""
    with reported(log, period, by) as (_, report):
        return report


@contextmanager
def reported(log: Path, period: Period = WHOLE, by: str = "model") -> Iterator[tuple[Any, Report]]:
    """With the data base that its page is made of."""
    files, question = files_of(str(log)), Question(period, by.split(","))
    with database("a test") as connection:
        broken = load_lines(connection, files, question)
        yield connection, make_report(connection, files, broken, question)


def csv_rows(
    folder: Path, *records: dict[str, Any] | str, by: str = "model", options: tuple[str, ...] = ()
) -> list[dict[str, str]]:
    """What the verb writes with ``--csv``."""
    log, target = write(folder / "requests.jsonl", *records), folder / "out.csv"
    assert main(["report", str(log), "--by", by, "--csv", str(target), *options]) == 0
    return list(csv.DictReader(target.read_text("utf-8").splitlines()))
