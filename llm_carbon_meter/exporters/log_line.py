"""The names of the request log: its columns in JSON lines, in Parquet and in OTLP logs.

A line is a request, or what the GPUs of an engine used altogether in a while: ``kind`` says which.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, NamedTuple

from llm_carbon_meter.exporters.headers import record_json
from llm_carbon_meter.records import ACCOUNT_NAMES, Place, RequestRecord

VERSION: Final = 2
"""Of the form of a line; a line that names none has version 1."""
REQUEST: Final = "request"
ACCOUNTS: Final = "accounts"


class Column(NamedTuple):
    """One field of a line."""

    name: str
    kind: type
    """str, int, float, bool, list (of texts) or dict (text to text or number)."""
    unit: str
    meaning: str


def _joules() -> list[Column]:
    meanings = {name: f"of them, the account {name}" for name in ACCOUNT_NAMES}
    return [Column(f"{name}_joules", float, "J", text) for name, text in meanings.items()]


COLUMNS: Final = (
    Column("version", int, "", "of this form"),
    Column("kind", str, "", "request; or accounts: all that an engine's GPUs used in a while"),
    Column("id", str, "", "internal id of the request; unique within an instance"),
    Column("external_ids", list, "", "ids that clients know; they may repeat them"),
    Column("internal_ids", list, "", "of its engine requests"),
    Column("instance", str, "", "of the API server, a new one at every start"),
    Column("host", str, "", "name of the API server's host"),
    Column("pod", str, "", "of Kubernetes, likewise"),
    Column("node", str, "", "of Kubernetes, likewise"),
    Column("namespace", str, "", "of Kubernetes, likewise"),
    Column("model", str, "", "as the server calls it"),
    Column("engine", int, "", "index of the engine"),
    Column("deployment", dict, "", "engine, GPU, number formats, parallelism"),
    Column("tenant", str, "", "who pays"),
    Column("adapter", str, "", "LoRA adapter"),
    Column("zone", str, "", "of the grid"),
    Column("arrived_unix_s", float, "s", "when the request came, or the while began; Unix time"),
    Column("until_unix_s", float, "s", "when the while ended; of accounts alone"),
    Column("source", str, "", "measured or modelled; never add the two"),
    Column("quality", str, "", "how far to trust the energy"),
    Column("status", str, "", "final"),
    Column("outcome", str, "", "how the request ended"),
    Column("prompt_tokens", int, "", "cached ones too"),
    Column("cached_tokens", int, "", "of the prompt, found in the prefix cache"),
    Column("output_tokens", int, "", "generated"),
    Column("tokens_from", str, "", "who counted the tokens"),
    Column("energy_joules", float, "J", "of the GPUs, all accounts together"),
    *_joules(),
    Column("overhead_joules", float, "J", "likewise; of accounts alone"),
    Column("unattributed_joules", float, "J", "likewise; of accounts alone"),
    Column("uncertainty", float, "", "half of a 90 % interval, relative to the energy"),
    Column("gpu_seconds", float, "s", "the request's share of the GPUs' time"),
    Column("host_joules", float, "J", "of the host; never part of the GPUs' energy"),
    Column("host_source", str, "", "where they come from"),
    Column("operational_grams", float, "gCO2eq", "of the energy, PUE in it"),
    Column("embodied_grams", float, "gCO2eq", "of the hardware's making"),
    Column("water_litres", float, "l", "of the energy"),
    Column("energy_cost", float, "currency", "of the energy"),
    Column("gpu_cost", float, "currency", "of the GPUs' time"),
    Column("currency", str, "", "of the costs"),
    Column("intensity_g_per_kwh", float, "gCO2eq/kWh", "of the grid"),
    Column("intensity_source", str, "", "who says so"),
    Column("pue", float, "", "power usage effectiveness"),
    Column("boundary", str, "", "what the energy is of"),
    Column("covers", str, "", "what the figures are of, in words"),
    Column("estimate_method", str, "", "of the estimate before the request ran"),
    Column("estimate_joules", float, "J", "as the model says, not calibrated"),
    Column("estimate_calibrated_joules", float, "J", "as the client was told"),
    Column("estimate_low_joules", float, "J", "calibrated; one in ten costs less"),
    Column("estimate_high_joules", float, "J", "calibrated; one in ten costs more"),
    Column("estimate_output_tokens", float, "", "expected"),
    Column("estimate_facility", bool, "", "true where the estimate has the facility's share in it"),
    Column("conditional_joules", float, "J", "calibrated; for the true length and company"),
    Column("max_tokens", int, "", "bound of the output that the client set"),
    Column("num_sequences", int, "", "engine requests of the exchange"),
    Column("concurrency", int, "", "requests in the engine when it came, itself too"),
    Column("num_steps", int, "", "engine steps that it was in"),
    Column("decode_steps", int, "", "of them, after its first token"),
    Column("decode_tokens", int, "", "computed in these, rejected drafts too"),
    Column("mean_running", float, "", "requests in its steps, averaged"),
    Column("receipt", dict, "", "signature of all the rest"),
)
"""A column that a line has not is null: the line's maker did not know it."""
NAMES: Final = tuple(column.name for column in COLUMNS)
PLACE: Final = tuple(field.name for field in fields(Place))

Line = dict[str, Any]
"""Values by the names of `COLUMNS`."""


def request_line(record: RequestRecord) -> Line:
    """A finished request; what is empty or not known is left out."""
    body = _flat(record_json(record))
    return columns_of({"version": VERSION, "kind": REQUEST, **body, **place_columns(record.place)})


def place_columns(place: Place) -> Line:
    """The columns of a place; `dataclasses.asdict` takes twenty times as long."""
    return {name: getattr(place, name) for name in PLACE}


def from_version_1(body: Mapping[str, Any]) -> Line:
    """What a line of version 1, the record's whole JSON, has of `COLUMNS`."""
    return columns_of(_flat(body))


def columns_of(values: Mapping[str, Any]) -> Line:
    """Those of the values that have a column and are not empty, in the order of `COLUMNS`."""
    return {
        name: value
        for name in NAMES
        if (value := values.get(name)) is not None and value != "" and value != []
    }


def _flat(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record's JSON with features and estimates beside the other fields."""
    features, estimate = body.get("features") or {}, body.get("estimate") or {}
    conditional = body.get("conditional") or {}
    shown = estimate.get("calibrated", estimate)
    return {
        **body,
        **features,
        "estimate_method": estimate.get("method"),
        "estimate_joules": estimate.get("energy_joules"),
        "estimate_calibrated_joules": shown.get("energy_joules"),
        "estimate_low_joules": shown.get("low_joules"),
        "estimate_high_joules": shown.get("high_joules"),
        "estimate_output_tokens": estimate.get("output_tokens"),
        "estimate_facility": estimate.get("facility"),
        "conditional_joules": conditional.get("calibrated", conditional).get("energy_joules"),
    }


SQL_TYPES: Final[Mapping[type, str]] = {
    str: "VARCHAR",
    int: "BIGINT",
    float: "DOUBLE",
    bool: "BOOLEAN",
    list: "VARCHAR[]",
    dict: "JSON",
}
"""Of DuckDB; in Parquet a JSON is a text."""


def columns_table() -> str:
    """The schema in Markdown."""
    rows = ["| column | type | unit | meaning |", "| --- | --- | --- | --- |"]
    rows += [f"| `{c.name}` | {SQL_TYPES[c.kind]} | {c.unit} | {c.meaning} |" for c in COLUMNS]
    return "\n".join(rows)
