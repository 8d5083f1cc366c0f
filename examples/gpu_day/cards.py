"""What a day leaves for the repository: rows with a card, the sensor's row, lines for README.

`write_cards` writes them under OUT/repository. `adopt` copies those of a real GPU to their places;
nothing of a rehearsal is ever adopted.
"""

import re
import shutil
from pathlib import Path

import truth
from part_campaign import FILE
from rows import MEASURED, NAME, DayError, of_kind
from tables import HEADING, Findings, markdown, table

from llm_carbon_meter.campaign.sensors_file import row, write
from llm_carbon_meter.power.nvml.architectures import MEASURED_FILE

FOLDER = "repository"
"""Under OUT."""
DATA = Path("llm_carbon_meter") / "data"
README_LINES = "README-lines.md"
ROOT = Path(__file__).resolve().parents[2]
METHOD = """
Rows of `{rows}` are JSON, one a line, each with its part, kind and source. A part of a GPU day:

* `sensor`: the counter, polled every millisecond: steady loads, starts of a load, bursts.
* `shares`: joules of one step of every subset of some requests of a decoder in torch, repeated.
* `served`: requests of the Azure conversation trace of 2023 (lengths and arrivals, no text) on a
  server with random weights: the estimate before, the record afterwards, joules in joules.
* `throughput`: tokens per second of a server with the meter and of one without, by turns.

`{campaign}` is the file of `llm-carbon-meter campaign`: gross joules of prefill alone and of whole
answers. All joules are of the GPU alone: no host, network or cooling.
"""


def write_cards(out: Path, found: Findings) -> list[Path]:
    """Files as they would stand in the repository, under OUT."""
    folder, name = out / FOLDER, day_name(found)
    data = folder / DATA / "measurements"
    data.mkdir(parents=True, exist_ok=True)
    written = [data / f"{name}.md", folder / README_LINES]
    written[0].write_text(card(found, name), "utf-8")
    written[1].write_text(readme_lines(found), "utf-8")
    for source, suffix in ((NAME, ".jsonl"), (FILE, ".csv")):
        if (out / source).exists():
            shutil.copy(out / source, data / f"{name}{suffix}")
            written.append(data / f"{name}{suffix}")
    if notes := sensor_notes(found):
        write(folder / DATA / MEASURED_FILE, found.host["gpu"], notes)
        written += [path for path in [folder / DATA / MEASURED_FILE] if path.exists()]
    return written


def day_name(found: Findings) -> str:
    """Of its files: the GPU and the day."""
    gpu = re.sub(r"[^a-z0-9]+", "-", str(found.host["gpu"]).lower()).strip("-")
    rehearsal = "-rehearsal" if found.simulated else ""
    return f"{gpu}-{found.host['utc'][:10]}{rehearsal}"


def card(found: Findings, name: str) -> str:
    """Hardware, versions, method and date; its first line says whether anything was measured."""
    host = found.host
    sums = "\n".join(
        f"* {part}: {sum(each['part'] == part for each in found.rows)} rows"
        for part in dict.fromkeys(str(each["part"]) for each in found.rows)
    )
    versions = ", ".join(f"{key} {value}" for key, value in host["versions"].items())
    source = "measured" if not found.simulated else "SIMULATED (stub library of NVML, no GPU)"
    first = f"Source: {source}. {host['gpu']}, {host['utc'][:10]} (UTC), by `make gpu-day`."
    about = f"Driver {host['driver']}; Python {host['python']}, {versions}."
    method = METHOD.format(rows=f"{name}.jsonl", campaign=f"{name}.csv").strip()
    licence = "" if found.simulated else "Licence: CC-BY-4.0."
    sections = [first, f"# {name}", about, sums, method, licence]
    return "\n\n".join(filter(None, sections)) + "\n"


def readme_lines(found: Findings) -> str:
    """The day's table, to be put where README says that nobody has measured yet."""
    from report import REPORT, SIMULATED_LINE

    first = SIMULATED_LINE if found.simulated else f"Measured on one {found.host['gpu']}:"
    return f"{first}\n\n{markdown(HEADING, list(table(found)))}\n\nAll of it: {REPORT}\n"


def sensor_notes(found: Findings) -> dict[str, object]:
    """What sensors.json has of a GPU; nothing while period or lag are missing."""
    loads = {
        each["key"]: {key: value for key, value in each.items() if key not in ABOUT}
        for each in of_kind(found.rows, "sensor", "load")
    }
    notes: dict[str, object] = {
        "source": found.host["source"],
        "architecture": found.host["architecture"],
        "driver": found.host["driver"],
        "loads": loads,
        "onset_lags_s": truth.onset_lags_s(found.rows),
    }
    return notes if {"period_s", "lag_s"} <= row(notes).keys() else {}


ABOUT = ("part", "kind", "key", "source", "utc")
"""Columns of every row."""


def adopt(out: Path, root: Path = ROOT) -> int:
    """Copy a measured day's files into the repository.

    Raises:
        DayError: the day is a rehearsal.
    """
    from report import findings

    found = findings(out)
    if found.host["source"] != MEASURED:
        raise DayError(f"{out} is {found.host['source']}: only what a GPU measured is adopted")
    files = write_cards(out, found)
    for file in files:
        target = root / file.relative_to(out / FOLDER)
        if file.name == README_LINES:
            print(f"for README.md, by hand: {file}")
        elif file.name == MEASURED_FILE:
            write(target, found.host["gpu"], sensor_notes(found))
            print(f"written: {target}")
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
            print(f"written: {target}")
    return 0
