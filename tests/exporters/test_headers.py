"""What clients see: numbers without exponents, and both units of every energy."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.exporters.headers import (
    decimal,
    energy_headers,
    estimate_headers,
    estimate_json,
    record_json,
    sse_comment,
)
from llm_carbon_meter.records import Quality, Source
from tests.support.made.records import CONDITIONAL, ENERGY, ESTIMATE, RECORD


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.0486448845, "0.0486449"),
        (1.23456789e-9, "0.00000000123457"),
        (123456789.0, "123457000"),
        (1e22, "10000000000000000000000"),
        (-0.5, "-0.5"),
    ],
)
def test_decimals(value: float, text: str) -> None:
    """Six significant digits, never an exponent."""
    assert decimal(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_is_a_plain_decimal(value: float) -> None:
    """It reads back to within half a unit of the sixth digit."""
    text = decimal(value)
    assert set(text) <= set("-.0123456789")
    assert len(Decimal(text).as_tuple().digits) <= 6 or text.rstrip("0") != text
    assert math.isclose(float(text), value, rel_tol=5.0000001e-6)


def test_headers_of_an_estimate() -> None:
    """Wh with low and high, and grams."""
    assert estimate_headers(ESTIMATE) == {
        "LLM-Carbon-Estimated-Wh": "0.0486449",
        "LLM-Carbon-Estimated-Low-Wh": "0.0277778",
        "LLM-Carbon-Estimated-High-Wh": "0.0555556",
        "LLM-Carbon-Estimated-gCO2eq": "0.02",
    }


def test_headers_of_a_measurement() -> None:
    """All accounts together, grams, and how far to trust it."""
    assert energy_headers(ENERGY) == {
        "LLM-Carbon-Measured-Wh": "0.00107639",
        "LLM-Carbon-Measured-gCO2eq": "0.000511458",
        "LLM-Carbon-Quality": "counter",
        "LLM-Carbon-Status": "final",
    }


def test_modelled_headers_have_their_own_names() -> None:
    """Absent, not 0: no measured name beside a modelled figure."""
    modelled = replace(ENERGY, source=Source.MODELLED, quality=Quality.MODELLED)
    assert set(energy_headers(modelled)) == {
        "LLM-Carbon-Modelled-Wh",
        "LLM-Carbon-Modelled-gCO2eq",
        "LLM-Carbon-Quality",
        "LLM-Carbon-Status",
    }


def inner_objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in some JSON."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from inner_objects(inner)


def test_every_joule_has_its_watt_hours_beside_it() -> None:
    """In the record, its provisional part and its estimate."""
    found = 0
    for inner in inner_objects(record_json(RECORD)):
        for name in [name for name in inner if name.endswith("_joules")]:
            found += 1
            assert inner[name.removesuffix("_joules") + "_wh"] == inner[name] / 3600
    assert found == 7 + 7 + 2 * (5 + 5)


def test_a_record_in_full() -> None:
    """Ids, figures, features and the grid; the accounts add up to the energy."""
    body = record_json(RECORD)
    assert (body["id"], body["model"], body["boundary"]) == ("a", "llama", "gpu")
    assert body["covers"] == "energy of the GPUs alone"
    assert (body["gpu_seconds"], body["embodied_grams"]) == (2.5, 0.004)
    assert body["water_litres"] == 0.002
    assert (body["host_joules"], body["host_wh"], body["host_source"]) == (7.2, 0.002, "measured")
    assert body["external_ids"] == ["mine", "chatcmpl-1"]
    assert body["internal_ids"] == ["a", "b"]
    assert (body["status"], body["source"], body["quality"]) == ("final", "measured", "counter")
    assert (body["outcome"], body["engine"]) == ("finished", 2)
    assert (body["prompt_tokens"], body["cached_tokens"], body["output_tokens"]) == (10, 4, 5)
    assert body["tokens_from"] == "engine"
    accounts = ("prefill", "decode", "recompute", "waste", "idle")
    assert sum(body[f"{name}_joules"] for name in accounts) == body["energy_joules"] == 3.875
    assert body["operational_grams"] == ENERGY.operational_grams
    assert body["provisional"]["status"] == "provisional"
    assert body["provisional"]["energy_joules"] == 2.875
    assert body["estimate"] == estimate_json(ESTIMATE)
    assert body["conditional"] == estimate_json(CONDITIONAL)
    assert (body["zone"], body["intensity_source"], body["pue"]) == ("world", "static", 1.2)
    assert body["features"] == {
        "arrived_unix_s": 1.7e9,
        "max_tokens": 500,
        "num_sequences": 2,
        "concurrency": 3,
        "num_steps": 6,
        "decode_steps": 4,
        "decode_tokens": 12,
        "mean_running": 1.5,
    }


def test_what_is_not_known_is_absent() -> None:
    """Before any figure there is no energy, not an energy of 0; nor water without a factor,
    nor the host without a sensor."""
    body = record_json(
        replace(RECORD, energy=None, provisional=None, estimate=None, conditional=None)
    )
    assert body["status"] == "provisional"
    assert not [name for name in body if name.endswith(("_joules", "_wh"))]
    assert [body[name] for name in ("provisional", "estimate", "conditional")] == [None] * 3
    alone = replace(ENERGY, water_litres=None, host_joules=None)
    body = record_json(replace(RECORD, energy=alone, provisional=None))
    assert not [name for name in body if name.startswith(("water", "host"))]


def test_an_estimate_says_that_it_is_a_facility_figure() -> None:
    """No PUE goes on top of it."""
    body = estimate_json(ESTIMATE)
    assert body["facility"] is True
    assert body["method"] == "flop"
    assert body["energy_wh"] == pytest.approx(0.0486448845, abs=5e-11)


def test_an_estimate_shows_raw_and_calibrated() -> None:
    """The model's own figures, the factor, what headers show, and why to trust it less."""
    body = estimate_json(CONDITIONAL)
    assert body["calibration"] == 0.5
    assert body["out_of_domain"] == "old GPU"
    assert body["energy_joules"] == CONDITIONAL.joules
    for name in ("energy_wh", "prefill_wh", "decode_wh", "low_wh", "high_wh", "operational_grams"):
        assert body["calibrated"][name] == pytest.approx(0.5 * body[name])
    told = body["calibrated"]["energy_wh"]
    assert estimate_headers(CONDITIONAL)["LLM-Carbon-Estimated-Wh"] == decimal(told)
    assert not any("domain" in name.lower() for name in estimate_headers(CONDITIONAL))


@given(model=st.text(), external_id=st.text())
def test_the_comment_is_one_line_of_json(model: str, external_id: str) -> None:
    """Whatever a client chose as its id, it cannot break out of the comment."""
    comment = sse_comment(replace(RECORD, model=model, external_ids=(external_id,)))
    assert comment.startswith(b": llm-carbon {")
    assert comment.endswith(b"}\n\n")
    assert comment.count(b"\n") == 2
    assert b"\r" not in comment
    body = json.loads(comment.removeprefix(b": llm-carbon "))
    assert (body["model"], body["external_ids"]) == (model, [external_id])
