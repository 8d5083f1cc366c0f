"""Looks at the host's energy beside its GPUs: whether it can be read, and what is drawn now."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from llm_carbon_meter.check.findings import Finding, Verdict
from llm_carbon_meter.config import PREFIX, Config
from llm_carbon_meter.exporters.columns import figure
from llm_carbon_meter.power.host_energy import count_gpus, open_source, rapl_folder
from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.power.rapl import POWERCAP, open_rapl
from llm_carbon_meter.records import PowerError, Quality

WATCHED_S: Final = 1.0
TOPIC: Final = "host energy"


def check_host_energy(config: Config) -> Iterator[Finding]:
    """Look at the source of the settings; where they want none, say whether RAPL would be one."""
    if config.host_energy == "none":
        yield _off()
        return
    if config.power.startswith("rapl"):
        text = f"the CPU's joules are the requests' own already; set {PREFIX}HOST_ENERGY=none"
        yield Finding(TOPIC, Verdict.NOTE, text)
        return
    try:
        meter, _, covers = open_source(config.host_energy, count_gpus())
        with closing(meter):
            watts = _watts(meter)
    except PowerError as error:
        yield Finding(TOPIC, Verdict.NOTE, f"{error}; the host's energy would not be told")
        return
    yield Finding(TOPIC, Verdict.OK, f"{covers}; {_told(watts)}", {"watts": watts})


def check_rapl(config: Config) -> Finding:
    """RAPL as the power source of an engine on the CPU."""
    try:
        watts = _watts(open_rapl(rapl_folder(config.power), together=True))
    except PowerError as error:
        return Finding("power", Verdict.FAILS, str(error))
    text = f"CPU packages and memory by RAPL, with all that runs on this host; {_told(watts)}"
    return Finding("power", Verdict.OK, text, {"watts": watts}, Quality.PACKAGE)


def rapl_problem(folder: Path = POWERCAP) -> str:
    """Why RAPL cannot be read here; empty where it can."""
    try:
        open_rapl(folder)
    except PowerError as error:
        return str(error)
    return ""


def _off() -> Finding:
    problem = rapl_problem()
    rapl = f"RAPL cannot be read: {problem}" if problem else "RAPL can be read"
    return Finding(TOPIC, Verdict.OK, f"not asked for ({PREFIX}HOST_ENERGY); {rapl}")


def _watts(meter: PowerMeter) -> dict[str, float]:
    """What each domain draws, watched for a moment."""
    first = {reading.gpu: reading for reading in meter.read()}
    time.sleep(WATCHED_S)
    return {
        reading.gpu: (reading.joules - first[reading.gpu].joules)
        / (reading.monotonic_s - first[reading.gpu].monotonic_s)
        for reading in meter.read()
    }


def _told(watts: dict[str, float]) -> str:
    return ", ".join(f"{name} {figure(drawn)} W" for name, drawn in watts.items()) + " now"
