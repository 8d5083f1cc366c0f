"""Whose requests are, and what they cost, on a real server with two adapters."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.testing.servers import MODEL_NAME
from tests.support.servers.adapters import make_adapter
from tests.support.servers.metered import Metered, StartServer, attributes
from tests.support.waiting import eventually

pytestmark = pytest.mark.engine

KEYS = {"sk-alice": "alice", "sk-bob": "bob", "sk-carol": "carol"}
ADMIN = "sk-boss"
ASKED = (
    ("sk-alice", MODEL_NAME),
    ("sk-alice", "mine"),
    ("sk-bob", "mine"),
    ("sk-bob", "yours"),
    ("sk-bob", "yours"),
    ("sk-carol", MODEL_NAME),
)
ENERGY_PRICE, GPU_HOUR_PRICE = 0.3, 2.0


@pytest.fixture(scope="module")
def metered(
    start_server: StartServer, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Metered]:
    """A server with keys, adapters and prices; carol is not in the list of tenants."""
    folder = tmp_path_factory.mktemp("tenants")
    keys = folder / "keys.toml"
    keys.write_text("".join(f'"{key}" = "{name}"\n' for key, name in KEYS.items()))
    adapters = [f"{name}={make_adapter(folder / name, tiny_model)}" for name in ("mine", "yours")]
    environment = {
        "LLM_CARBON_METER_TENANT_FROM": "api_key",
        "LLM_CARBON_METER_TENANT_KEYS_FILE": str(keys),
        "LLM_CARBON_METER_TENANTS": "alice, bob",
        "LLM_CARBON_METER_ADMIN_KEY": ADMIN,
        "LLM_CARBON_METER_ENERGY_PRICE": str(ENERGY_PRICE),
        "LLM_CARBON_METER_GPU_HOUR_PRICE": str(GPU_HOUR_PRICE),
        "LLM_CARBON_METER_CURRENCY": "EUR",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }
    lora = ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--lora-modules")
    with start_server(
        *("--api-key", *KEYS, ADMIN, *lora, *adapters), key=ADMIN, environment=environment
    ) as metered:
        yield metered


def look_up(metered: Metered, key: str, request_id: str) -> tuple[int, dict[str, Any]]:
    """A record as somebody sees it."""
    header = {"Authorization": f"Bearer {key}"}
    status, _, body = metered.http(f"/v1/carbon/requests/{request_id}", None, header, False)
    return status, json.loads(body)


def ask(metered: Metered, key: str, model: str) -> str:
    """A completion's id."""
    body = {"model": model, "prompt": [7] * 50, "max_tokens": 20, "ignore_eos": True}
    status, _, answer = metered.http(
        "/v1/completions", body, {"Authorization": f"Bearer {key}"}, False
    )
    assert status == 200, answer
    found: str = json.loads(answer)["id"]
    return found


@pytest.fixture(scope="module")
def records(metered: Metered) -> list[dict[str, Any]]:
    """Of `ASKED`, in order."""
    ids = [ask(metered, key, model) for key, model in ASKED]
    return [metered.record(request_id) for request_id in ids]


def test_a_record_says_whose_it_is(metered: Metered, records: list[dict[str, Any]]) -> None:
    """Under the tenant's own name, whatever the list of the metrics; in the log, too."""
    expected = [(KEYS[key], None if model == MODEL_NAME else model) for key, model in ASKED]
    assert [(one["tenant"], one.get("adapter")) for one in records] == expected
    logged = {line["id"]: line for line in metered.logged()}
    assert [logged[one["id"]]["tenant"] for one in records] == [name for name, _ in expected]
    assert not any("sk-" in line for line in metered.request_log.read_text().splitlines())


def test_a_record_says_what_it_costs(records: list[dict[str, Any]]) -> None:
    """Energy at its price, the GPU's time at its own."""
    for record in records:
        assert record["currency"] == "EUR"
        assert record["energy_cost"] == pytest.approx(
            record["energy_joules"] / 3.6e6 * ENERGY_PRICE
        )
        assert record["gpu_cost"] == pytest.approx(record["gpu_seconds"] / 3600 * GPU_HOUR_PRICE)


def test_metrics_of_tenants_and_adapters_add_up(
    metered: Metered, records: list[dict[str, Any]]
) -> None:
    """To the records, and with idle and overhead to the counter; carol is one of the others."""
    joules: Counter[tuple[str, str]] = Counter()
    for record in metered.logged():  # another test may have asked, too
        name = record["tenant"] if record["tenant"] != "carol" else "other"
        joules["tenant", name] += record["energy_joules"]
        if "adapter" in record:
            joules["adapter", record["adapter"]] += record["energy_joules"]
    for (whose, name), expected in joules.items():
        metric = f"llm_carbon_meter_{whose}_energy_joules_total"
        assert metered.metric(metric, **{whose: name}) == pytest.approx(expected, rel=1e-9)
    tenants = metered.metric("llm_carbon_meter_tenant_energy_joules_total")
    accounts = metered.accounts()
    charged = sum(accounts[name] for name in ("prefill", "decode", "recompute", "waste"))
    assert tenants == pytest.approx(charged, rel=1e-6)
    cost = sum(record["energy_cost"] for record in metered.logged())
    told = metered.metric("llm_carbon_meter_tenant_cost_total", kind="energy", currency="EUR")
    assert told == pytest.approx(cost, rel=1e-9)


def test_every_account_costs_what_its_energy_costs(metered: Metered) -> None:
    """Idle and overhead, too: of one scrape, so that none goes on between two."""
    costs: Counter[str] = Counter()
    for sample in metered.samples():
        name = sample.name.removeprefix("llm_carbon_meter_")
        if name in ("energy_joules_total", "cost_total") and sample.labels.get("kind") != "gpu":
            account = sample.labels["account"]
            costs[account] += (
                sample.value if name == "cost_total" else -sample.value / 3.6e6 * ENERGY_PRICE
            )
    assert len(costs) == 7
    assert costs == pytest.approx(dict.fromkeys(costs, 0.0), abs=1e-12)


def test_a_tenant_reads_its_own_records_alone(
    metered: Metered, records: list[dict[str, Any]]
) -> None:
    """Others get what they get for an id that nobody has; the admin's key reads all."""
    of_alice = records[0]["id"]
    status, record = look_up(metered, "sk-alice", of_alice)
    assert (status, record["tenant"]) == (200, "alice")
    assert look_up(metered, ADMIN, of_alice)[0] == 200
    status, refusal = look_up(metered, "sk-bob", of_alice)
    nobody = look_up(metered, "sk-bob", "nobody")[1]
    assert status == 404
    assert refusal["error"]["message"].replace(of_alice, "nobody") == nobody["error"]["message"]


def test_an_adapter_that_is_loaded_later_is_named(
    metered: Metered, tiny_model: Path, tmp_path: Path
) -> None:
    """And unloaded again: what it used stays."""
    path = str(make_adapter(tmp_path / "later", tiny_model))
    before = metered.http("/v1/carbon/estimate", {"prompt_tokens": 5, "model": "later"})
    assert (before[0], b"this server has" in before[2]) == (400, True)
    load = {"lora_name": "later", "lora_path": path}
    assert metered.http("/v1/load_lora_adapter", load)[0] == 200
    assert metered.http("/v1/carbon/estimate", {"prompt_tokens": 5, "model": "later"})[0] == 200
    record = metered.record(ask(metered, "sk-bob", "later"))
    assert record["adapter"] == "later"
    assert metered.http("/v1/unload_lora_adapter", {"lora_name": "later"})[0] == 200
    told = metered.metric("llm_carbon_meter_adapter_energy_joules_total", adapter="later")
    assert told == pytest.approx(record["energy_joules"], rel=1e-9)


def test_spans_say_whose_they_are(metered: Metered, records: list[dict[str, Any]]) -> None:
    """In the child that ends with the final figure."""
    wanted = {("bob", "yours"), ("alice", None)}

    def are_told() -> bool:
        seen = {
            (told.get("llm_carbon_meter.tenant"), told.get("llm_carbon_meter.adapter"))
            for told in map(attributes, metered.spans.named("llm_carbon_meter.request"))
        }
        return wanted <= seen

    assert eventually(are_told, "spans of bob and alice")
