"""Response headers, the SSE comment and the JSON of a record: what clients see, by name."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from llm_carbon_meter.exporters.receipts import Sign, unsigned
from llm_carbon_meter.records import (
    Cost,
    EnergyEstimate,
    RequestEnergy,
    RequestRecord,
    Source,
    Whose,
)
from llm_carbon_meter.units import watt_hours

PREFIX: Final = "LLM-Carbon-"


def decimal(value: float) -> str:
    """A plain decimal with six significant digits, never with an exponent."""
    return format(Decimal(f"{value:.6g}"), "f")


def estimate_headers(estimate: EnergyEstimate) -> dict[str, str]:
    """Headers of what was estimated before the request ran, calibrated."""
    shown = estimate.calibrated
    return {
        PREFIX + "Estimated-Wh": decimal(watt_hours(shown.joules)),
        PREFIX + "Estimated-Low-Wh": decimal(watt_hours(shown.low_joules)),
        PREFIX + "Estimated-High-Wh": decimal(watt_hours(shown.high_joules)),
        PREFIX + "Estimated-gCO2eq": decimal(shown.operational_grams),
    }


def energy_headers(energy: RequestEnergy) -> dict[str, str]:
    """Headers of what the request used; named after the source, never measured for modelled."""
    source = "Measured" if energy.source is Source.MEASURED else "Modelled"
    return {
        f"{PREFIX}{source}-Wh": decimal(watt_hours(energy.joules)),
        f"{PREFIX}{source}-gCO2eq": decimal(energy.operational_grams),
        PREFIX + "Quality": energy.quality,
        PREFIX + "Status": energy.status,
    }


def record_json(record: RequestRecord) -> dict[str, Any]:
    """The record of the SSE comment and the look-up."""
    energy = record.energy
    body: dict[str, Any] = {
        "id": record.id,
        "external_ids": list(record.external_ids),
        "internal_ids": list(record.internal_ids),
        "instance": record.place.instance,
        "model": record.model,
        "deployment": dict(record.deployment),
        "boundary": record.boundary,
        "status": energy.status if energy else "provisional",
    }
    if energy is not None:
        body |= {
            "engine": energy.engine,
            "source": energy.source,
            "quality": energy.quality,
            "outcome": energy.outcome,
            "prompt_tokens": energy.prompt_tokens,
            "cached_tokens": energy.cached_tokens,
            "output_tokens": energy.output_tokens,
            "tokens_from": record.tokens_from,
            **_figures(energy),
        }
    body |= _whose(record.whose) | _cost(record.cost)
    body["provisional"] = _figures(record.provisional) if record.provisional else None
    body["estimate"] = estimate_json(record.estimate) if record.estimate else None
    body["conditional"] = estimate_json(record.conditional) if record.conditional else None
    return body | {
        "intensity_g_per_kwh": record.intensity_g_per_kwh,
        "intensity_source": record.intensity_source,
        "zone": record.zone,
        "pue": record.pue,
        "covers": record.covers,
        "features": _features(record),
    }


def _whose(whose: Whose) -> dict[str, str]:
    return {name: value for name, value in whose._asdict().items() if value}


def _cost(cost: Cost | None) -> dict[str, Any]:
    if cost is None:
        return {}
    return {"energy_cost": cost.energy, "gpu_cost": cost.gpu, "currency": cost.currency}


def record_text(record: RequestRecord, sign: Sign = unsigned) -> str:
    """The record's JSON as text, on one line, signed once its figures are final."""
    body = record_json(record)
    return msgspec.json.encode(sign(body) if record.is_final else body).decode()


def _features(record: RequestRecord) -> dict[str, Any]:
    features, energy = record.features, record.energy
    return {
        "arrived_unix_s": features.arrived_unix_s,
        "max_tokens": features.max_tokens,
        "num_sequences": features.num_sequences,
        "concurrency": features.concurrency,
        "num_steps": energy.num_steps if energy else 0,
        "decode_steps": energy.decode_steps if energy else 0,
        "decode_tokens": energy.decode_tokens if energy else 0,
        "mean_running": energy.mean_running if energy else 0.0,
    }


def _figures(energy: RequestEnergy) -> dict[str, Any]:
    joules = {"energy": energy.joules, **energy.accounts.by_name}
    return with_watt_hours(joules) | {
        **_host(energy),
        **({} if energy.water_litres is None else {"water_litres": energy.water_litres}),
        "operational_grams": energy.operational_grams,
        "embodied_grams": energy.embodied_grams,
        "gpu_seconds": energy.gpu_seconds,
        "uncertainty": energy.uncertainty,
        "status": energy.status,
    }


def _host(energy: RequestEnergy) -> dict[str, Any]:
    """The host's joules beside the GPUs': absent where they are not known."""
    if energy.host_joules is None:
        return {}
    return {**with_watt_hours({"host": energy.host_joules}), "host_source": energy.host_source}


def with_watt_hours(joules: Mapping[str, float]) -> dict[str, Any]:
    """``x_joules`` and ``x_wh`` for every x."""
    fields: dict[str, Any] = {}
    for name, value in joules.items():
        fields[f"{name}_joules"] = value
        fields[f"{name}_wh"] = watt_hours(value)
    return fields


def estimate_json(estimate: EnergyEstimate) -> dict[str, Any]:
    """An estimate as it stands in records and in the answer of ``/v1/carbon/estimate``.

    Its own figures are the model's; those that headers show are in ``calibrated``.
    """
    return {
        "method": estimate.method,
        **_estimate_figures(estimate),
        "output_tokens": estimate.output_tokens,
        "cached_tokens": estimate.cached_tokens,
        "facility": estimate.facility,
        "out_of_domain": estimate.out_of_domain,
        "calibration": estimate.calibration,
        "calibrated": _estimate_figures(estimate.calibrated),
    }


def _estimate_figures(estimate: EnergyEstimate) -> dict[str, Any]:
    joules = {
        "energy": estimate.joules,
        "prefill": estimate.prefill_joules,
        "decode": estimate.decode_joules,
        "low": estimate.low_joules,
        "high": estimate.high_joules,
    }
    return with_watt_hours(joules) | {
        "operational_grams": estimate.operational_grams,
        "embodied_grams": estimate.embodied_grams,
    }


def sse_comment(record: RequestRecord) -> bytes:
    """The last event of a stream: a comment that clients who do not know it skip."""
    return f": llm-carbon {record_text(record)}\n\n".encode()
