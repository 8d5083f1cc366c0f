"""Measured energy of LLM requests from public data sets, as one table.

Gross joules of all GPUs per request. Every row that is not used is counted with its reason.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.records import SpecError
from llm_carbon_meter.training.data.files import (
    Manifest,
    Refused,
    accepted_text,
    csv_records,
    manifest,
    require,
)
from llm_carbon_meter.training.data.rows import Row, Table
from llm_carbon_meter.training.data.sources import DATA_SETS, DataSet, Raw
from llm_carbon_meter.training.data.withheld import why_withheld

OTHER_NETWORKS = {
    "RWKV/rwkv-raven-7b": "a recurrent network without attention",
    "lmsys/fastchat-t5-3b-v1.0": "an encoder and a decoder",
}


def read_table(folder: Path, prompt_scale: float = 1.0, accepted: Manifest | None = None) -> Table:
    """Read every data set of a folder.

    ``prompt_scale`` multiplies the prompt lengths that are assumed: 1/3 and 3 show how much
    hangs on them. ``accepted`` is the package's own manifest if it is not given.

    Raises:
        ConfigError: a file is missing.
    """
    require(folder, (dataset.path for dataset in DATA_SETS))
    rows: list[Row] = []
    refused: list[Refused] = []
    for dataset in DATA_SETS:
        text = accepted_text(folder, dataset.path, manifest() if accepted is None else accepted)
        if isinstance(text, Refused):
            refused.append(text)
            continue
        rows_kept, reasons = _kept(dataset, csv_records(text))
        rows += dataset.rows(dataset, rows_kept, prompt_scale)
        refused += [Refused(dataset.name, reason, count) for reason, count in reasons.items()]
    return Table(rows, refused)


def _kept(dataset: DataSet, raws: Iterable[Raw]) -> tuple[Sequence[Raw], Counter[str]]:
    """The rows that may and can be used, and how many may not for each reason."""
    rows_kept: dict[tuple[str, ...], Raw] = {}
    reasons: Counter[str] = Counter()
    for raw in raws:
        cells = tuple(raw.values())
        reason = "exact duplicate" if cells in rows_kept else _why_not(dataset, raw)
        if reason is None:
            rows_kept[cells] = raw
        else:
            reasons[reason] += 1
    return list(rows_kept.values()), reasons


def _why_not(dataset: DataSet, raw: Raw) -> str | None:
    return why_withheld(raw, raw["gpu"]) or dataset.why_not(raw) or _why_no_shape(raw["model"])


def _why_no_shape(model: str) -> str | None:
    if model in OTHER_NETWORKS:
        return f"{model} is {OTHER_NETWORKS[model]}"
    try:
        built_in_model(model)
    except SpecError as error:
        return f"{model}: {str(error).partition(';')[0]}"
    return None


def summary(table: Table) -> str:
    """What was read and what was refused, for people."""
    lines = [
        f"{'set':<24} {'rows':>5} {'used':>5} {'weight':>7} {'groups':>6} {'models':>6}  "
        "GPUs; engines"
    ]
    used = set(map(id, table.for_training()))
    for source in dict.fromkeys(row.source for row in table.rows):
        rows = [row for row in table.rows if row.source == source]
        lines.append(_source_line(source, rows, sum(id(row) in used for row in rows)))
    lines.append(_source_line("all", table.rows, len(used)))
    lines.append("")
    lines.append(f"{'refused':<24} {'count':>5}  reason")
    lines += [
        f"{refusal.source:<24} {refusal.count:>5}  {refusal.reason}" for refusal in table.refused
    ]
    return "\n".join(lines)


def _source_line(source: str, rows: Sequence[Row], num_used: int) -> str:
    groups = {row.architecture for row in rows}
    models = {row.spec.name for row in rows}
    gpus = ", ".join(sorted({row.gpu for row in rows}))
    engines = ", ".join(sorted({f"{row.engine} {row.engine_version}".strip() for row in rows}))
    weight = sum(row.weight for row in rows)
    return (
        f"{source:<24} {len(rows):>5} {num_used:>5} {weight:>7.1f} {len(groups):>6} "
        f"{len(models):>6}  {gpus}; {engines}"
    )
