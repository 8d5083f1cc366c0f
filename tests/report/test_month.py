"""A month of three tenants and two adapters, scaled down, on a real server: every form agrees."""

import csv
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from llm_carbon_meter import cli
from llm_carbon_meter.testing.nvml_stub import read_log
from llm_carbon_meter.testing.servers import MODEL_NAME
from tests.grafana.conftest import prometheus_tools as prometheus_tools
from tests.grafana.tools import Prometheus, Tools
from tests.support.servers.adapters import make_adapter
from tests.support.servers.metered import Metered, StartServer
from tests.support.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TENANTS = ("acme", "zeta", "=1+1")
ADAPTERS = ("mine", "yours")
ASKED = [
    (tenant, model)
    for tenant in TENANTS
    for model in (MODEL_NAME, *ADAPTERS)
    for _ in range(len(tenant))
]
ENVIRONMENT = {
    "LLM_CARBON_METER_TENANT_FROM": "header:X-Tenant",
    "LLM_CARBON_METER_ENERGY_PRICE": "0.3",
    "LLM_CARBON_METER_CURRENCY": "EUR",
}
Sums = Mapping[tuple[str, str], float]
"""By tenant and adapter."""


@dataclass(frozen=True)
class Month:
    """What each form says, in joules."""

    csv: Sums
    parquet: Sums
    prometheus: Sums
    """By tenant, and by adapter."""
    gpus: Mapping[str, float]
    """Of the report: its table of all energy of the GPUs, Wh."""
    counters: list[float]
    """Every value of the stub's counter, in joules since the first."""
    prometheus_total: float
    """All accounts at one moment."""
    folder: Path


def asked(metered: Metered) -> None:
    """Every request of the month, one after the other."""
    for tenant, model in ASKED:
        body = {"model": model, "prompt": [7] * 60, "max_tokens": 16, "ignore_eos": True}
        status, _, answer = metered.http("/v1/completions", body, {"X-Tenant": tenant})
        assert status == 200, answer
    eventually(lambda: metered.metric("llm_carbon_meter_requests_total") == len(ASKED), "the last")


def scraped(metered: Metered, tools: Tools, folder: Path) -> tuple[Sums, float]:
    """What a Prometheus has of the server: joules by tenant and by adapter, and of all accounts."""
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "vllm",
                "static_configs": [{"targets": [metered.url.removeprefix("http://")]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with tools.prometheus(folder / "prometheus.yml") as prometheus:
        eventually(lambda: _sum(prometheus, "energy", "account"), "a scrape")
        of = {whose: _sum(prometheus, f"{whose}_energy", whose) for whose in ("tenant", "adapter")}
        total = sum(_sum(prometheus, "energy", "account").values())
    sums = {("tenant", name): joules for name, joules in of["tenant"].items()}
    return {**sums, **{("adapter", name): value for name, value in of["adapter"].items()}}, total


def _sum(prometheus: Prometheus, name: str, label: str) -> dict[str, float]:
    query = f"sum by ({label}) (llm_carbon_meter_{name}_joules_total)"
    found = prometheus.ask("query", query=query)["result"]
    return {one["metric"][label]: float(one["value"][1]) for one in found}


@pytest.fixture(scope="module")
def month(
    start_server: StartServer,
    tiny_model: Path,
    prometheus_tools: Tools,
    tmp_path_factory: pytest.TempPathFactory,
) -> Month:
    """Served, scraped, stopped, reported and exported."""
    folder = tmp_path_factory.mktemp("month")
    adapters = [f"{name}={make_adapter(folder / name, tiny_model)}" for name in ADAPTERS]
    lora = ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--lora-modules")
    with start_server(*lora, *adapters, environment=ENVIRONMENT) as metered:
        asked(metered)
        prometheus, total = scraped(metered, prometheus_tools, folder)
    log, table, warehouse = str(metered.request_log), folder / "month.csv", folder / "warehouse"
    options = ("--by", "tenant,adapter", "--csv", str(table), "--html", str(folder / "month.html"))
    options += ("--period", "this-month", "--html-per", "tenant", str(folder / "customers"))
    options += ("--json", str(folder / "month.json"))
    assert cli.main(["report", log, *options]) == 0
    assert cli.main(["export", log, "--parquet", str(warehouse)]) == 0
    reads = [read.millijoules for read in read_log(metered.log) if read.gpu == 0][1:]
    lines = [json.loads(line) for line in metered.request_log.read_text().splitlines()]
    (gpus,) = (line for line in lines if line["kind"] == "accounts")
    return Month(
        _csv(table),
        _parquet(warehouse),
        prometheus,
        gpus,
        [(read - reads[0]) / 1000 for read in reads],
        total,
        folder,
    )


def _csv(table: Path) -> Sums:
    with table.open() as file:
        rows = list(csv.DictReader(file))
    return {
        (row["tenant"].removeprefix("'"), row["adapter"]): 3600 * float(row["energy_wh"])
        for row in rows
        if row["tenant"] != "all"
    }


def _parquet(warehouse: Path) -> Sums:
    rows = duckdb.sql(
        "SELECT tenant, coalesce(adapter, 'none'), sum(energy_joules) "
        f"FROM read_parquet('{warehouse}/**/*.parquet') WHERE kind = 'request' GROUP BY 1, 2"
    ).fetchall()
    return {(tenant, adapter): joules for tenant, adapter, joules in rows}


def test_every_form_has_the_same_joules(month: Month) -> None:
    """Of each tenant and adapter, to a millionth."""
    assert set(month.csv) == {
        (tenant, adapter) for tenant in TENANTS for adapter in (*ADAPTERS, "none")
    }
    assert month.csv == pytest.approx(month.parquet, rel=1e-6)
    sums: Counter[tuple[str, str]] = Counter()
    for (tenant, adapter), joules in month.csv.items():
        sums["tenant", tenant] += joules
        if adapter != "none":
            sums["adapter", adapter] += joules
    assert month.prometheus == pytest.approx(dict(sums), rel=1e-6)


def test_requests_idle_and_overhead_are_the_counter(month: Month) -> None:
    """The log's at the end of the server, Prometheus' when it looked."""
    requests, gpus = sum(month.csv.values()), month.gpus
    charged = sum(gpus[f"{name}_joules"] for name in ("prefill", "decode", "recompute", "waste"))
    assert charged == pytest.approx(requests, rel=1e-6)
    assert gpus["idle_joules"] > 0
    rest = gpus["idle_joules"] + gpus["overhead_joules"] + gpus["unattributed_joules"]
    assert gpus["energy_joules"] == pytest.approx(requests + rest, rel=1e-6)
    for total in (gpus["energy_joules"], month.prometheus_total):
        nearest = min(month.counters, key=lambda joules: abs(joules - total))
        assert total == pytest.approx(nearest, rel=1e-6)


def test_pages_and_scores_agree(month: Month) -> None:
    """A customer's page has nothing of another's; a cell that is no formula stays none."""
    scores: Any = json.loads((month.folder / "month.json").read_text())["scores"]
    kwh = [one["E_kwh"] for one in scores if one["functional_unit"] == "request"]
    whole = [one["E_kwh"] for one in scores if one["group"] == {"tenant": "all"}]
    requests = sum(month.csv.values()) / 3.6e6
    assert sum(kwh) - sum(whole[:1]) == pytest.approx(requests, rel=1e-6)
    pages = {path.name: path.read_text() for path in (month.folder / "customers").glob("*.html")}
    assert len(pages) == len(TENANTS)
    assert "acme" in pages["acme.html"]
    assert not any(name in pages["acme.html"] for name in ("zeta", "=1+1", str(month.folder)))
    page = (month.folder / "month.html").read_text()
    assert all(name in page for name in ("acme", "zeta", "mine", "yours", "idle"))
    assert "\n'=1+1," in (month.folder / "month.csv").read_text()
