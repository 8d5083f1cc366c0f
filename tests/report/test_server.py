"""Reports from a real Prometheus, with samples that were made up."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_carbon_meter.report.periods import Period
from llm_carbon_meter.report.server import server_report
from llm_carbon_meter.report.summary import Question
from llm_carbon_meter.units import watt_hours
from tests.grafana.conftest import prometheus_tools as prometheus_tools
from tests.grafana.tools import Tools

STEP_S = 15
NOW_S = int(time.time()) // 3600 * 3600 - 7200
"""Samples of a minute from now would not be in a block."""


def samples(model: str, first_s: int, counted: list[float]) -> Iterator[str]:
    """A sample each 15 s, with the labels of a GPU's energy."""
    labels = f'model_name="{model}",source="measured",account="decode",gpu="GPU-a",engine="0"'
    for number, joules in enumerate(counted):
        at_s = first_s + number * STEP_S
        yield f"llm_carbon_meter_energy_joules_total{{{labels}}} {joules} {at_s}"


def rising(first: float, count: int) -> list[float]:
    """A counter of 300 W that has something when it is first seen."""
    return [first + 300.0 * STEP_S * number for number in range(count)]


@pytest.mark.slow
def test_a_server_that_began_in_the_period_loses_nothing(
    prometheus_tools: Tools, tmp_path: Path
) -> None:
    """Of a new series all is counted, of an old one what it grew by, also after a reset."""
    begin_s, count = NOW_S - 3600, 240
    texts = [
        "# TYPE llm_carbon_meter_energy_joules counter",
        *samples("new", begin_s + 600, rising(90_000.0, count - 40)),
        *samples("old", begin_s - 3600, rising(5e6, 2 * count)),
        *samples("gap", begin_s - 86_400, rising(7e6, 4)),
        *samples("gap", begin_s + 600, rising(8e6, count - 40)),
        "# EOF\n",
    ]
    (tmp_path / "samples").write_text("\n".join(texts))
    data = str(tmp_path / "data")
    prometheus_tools.promtool(
        "tsdb", "create-blocks-from", "openmetrics", str(tmp_path / "samples"), data
    )
    (tmp_path / "config.yml").write_text("global: {}\n")
    with prometheus_tools.prometheus(tmp_path / "config.yml") as prometheus:
        question = Question(Period(begin_s, NOW_S))
        rows = {str(row["model"]): row for row in server_report(prometheus.url, question).rows}
    last = rising(90_000.0, count - 40)[-1]
    assert rows["new"]["decode_wh"] == pytest.approx(watt_hours(last), rel=1e-9)
    assert rows["old"]["decode_wh"] == pytest.approx(watt_hours(300.0 * 3600), rel=0.01)
    assert rows["gap"]["decode_wh"] == pytest.approx(watt_hours(300.0 * 3000), rel=0.01)
