"""Rows of ``llm-carbon-meter campaign``, as the predictor learns from them.

Prefill alone is a request whose answer is one token: that one comes from the prefill.
"""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Final

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.model_list import built_in_config, built_in_model
from llm_carbon_meter.physics.model_specs import model_spec
from llm_carbon_meter.physics.number_formats import with_dtype
from llm_carbon_meter.records import ConfigError, SpecError
from llm_carbon_meter.training.data.campaign_columns import OCCASION, PREFILL
from llm_carbon_meter.training.data.files import Refused
from llm_carbon_meter.training.data.rows import Row, Table, architecture_group

Raw = Mapping[str, str]

SOURCE: Final = "campaign"


def read_campaigns(paths: Iterable[Path]) -> Table:
    """Measured, good repetitions; those of one configuration and phase are one row.

    Raises:
        ConfigError: a file cannot be read, or is not a campaign's.
    """
    return table_of(raw for path in paths for raw in _records(path))


def table_of(raws: Iterable[Raw]) -> Table:
    """A table of rows that were read."""
    repeats: dict[tuple[str, ...], list[Raw]] = defaultdict(list)
    reasons: Counter[str] = Counter()
    for raw in raws:
        reason = _why_not(raw)
        if reason:
            reasons[reason] += 1
        else:
            repeats[tuple(str(raw[name]) for name in OCCASION)].append(raw)
    refused = [Refused(SOURCE, reason, count) for reason, count in reasons.items()]
    return Table([_row(same) for same in repeats.values()], refused)


def checksums(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, for the card of what is trained on it."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _records(path: Path) -> Sequence[Raw]:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            heading, records = reader.fieldnames or (), list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--campaign {path}: it cannot be read: {error}") from error
    missing = [name for name in (*OCCASION, "status") if name not in heading]
    if missing:
        raise ConfigError(
            f"--campaign {path}: it has no column {missing[0]}; give the file that "
            "`llm-carbon-meter campaign --out` wrote"
        )
    return records


def _why_not(raw: Raw) -> str | None:
    if raw["source"] != "measured":
        return f"{raw['source']}, not measured"
    if raw["status"] != "ok":
        return f"status {raw['status']}"
    try:
        built_in_model(raw["model"])
        gpu_spec(raw["gpu"])
    except SpecError as error:
        return str(error)
    return None


def _row(same: Sequence[Raw]) -> Row:
    raw = same[0]
    joules = [float(repetition["joules_per_request"]) for repetition in same]
    changed = {**built_in_config(raw["model"]), **json.loads(raw["changes"] or "{}")}
    config = with_dtype(changed, raw["dtype"])
    spec = model_spec(config, built_in_model(raw["model"]).name)
    seconds = median(
        float(repetition["seconds"]) / int(repetition["batches"]) for repetition in same
    )
    batch = int(raw["batch"])
    output_tokens = 1.0 if raw["phase"] == PREFILL else float(raw["output_tokens"])
    return Row(
        source=SOURCE,
        model=raw["model"],
        spec=spec,
        architecture=architecture_group(spec),
        family=str(config["model_type"]),
        task=raw["phase"],
        gpu=gpu_spec(raw["gpu"]).name,
        num_gpus=int(raw["tensor_parallel"]),
        tensor_parallel=int(raw["tensor_parallel"]),
        expert_parallel=1,
        data_parallel=1,
        dtype=raw["dtype"],
        quantisation=raw["quantisation"],
        engine=raw["engine"],
        engine_version=raw["engine_version"],
        concurrency=float(batch),
        prompt_tokens=float(raw["prompt_tokens"]),
        prompt_tokens_assumed=False,
        output_tokens=output_tokens,
        energy_joules=median(joules),
        power_watts=batch * median(joules) / seconds,
        output_tokens_per_s=batch * output_tokens / seconds,
        time_per_output_token_s=None,
        noise=stdev(joules) / fmean(joules) if len(joules) > 1 else None,
        weight=1.0,
        flags=frozenset(),
    )
