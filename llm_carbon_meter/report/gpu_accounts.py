"""All energy of the GPUs in a period: of the requests in the log, and of none.

Lines of the kind ``accounts`` have it; what is idle, overhead and unattributed adds up with the
requests to the counters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import TYPE_CHECKING, Any, Final

from llm_carbon_meter.exporters.log_line import ACCOUNTS, REQUEST
from llm_carbon_meter.records import REQUEST_ACCOUNTS
from llm_carbon_meter.report.database import clean
from llm_carbon_meter.report.groups import OF_REQUESTS, Value, label_expression
from llm_carbon_meter.units import watt_hours

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

HEADING: Final = (
    *("requests_wh", "not_in_log_wh", "idle_wh", "overhead_wh", "unattributed_wh", "gpus_wh"),
    *("operational_grams", "embodied_grams"),
)
ROUNDING: Final = 1e-9
"""What sums of the same joules in another order may differ by, relative to them."""
_CHARGED: Final = " + ".join(f"coalesce({a.label}_joules, 0)" for a in REQUEST_ACCOUNTS)


@dataclass(frozen=True, slots=True)
class GpuEnergy:
    """What the GPUs of a server used in a part of the period."""

    labels: Sequence[str]
    source: str
    figures: Sequence[Value]
    """In the order of `HEADING`; Wh and gCO2eq of all GPUs."""


def gpu_labels(by: Sequence[str]) -> list[str]:
    """The groupings that the GPUs have too; by model where there is none."""
    return [name for name in by if name not in OF_REQUESTS] or ["model"]


def gpu_energy(
    connection: "DuckDBPyConnection", by: Sequence[str], zone: tzinfo, where: str
) -> list[GpuEnergy]:
    """A row for each label and source that has lines of accounts, in order.

    Args:
        connection: with the table ``lines``.
        by: as of `gpu_labels`.
        zone: of the session.
        where: condition of the lines that count.
    """
    some = f"SELECT 1 FROM lines WHERE {where} AND kind = '{ACCOUNTS}' LIMIT 1"
    if not connection.execute(some).fetchall():
        return []
    labels = [f"{label_expression(name, zone)} AS label_{name}" for name in by]
    names = ", ".join(f"label_{name}" for name in by)

    def sum_of(kind: str, expression: str) -> str:
        return f"coalesce(sum({expression}) FILTER (kind = '{kind}'), 0)"

    rows = connection.execute(
        f"SELECT source, {names}, {sum_of(REQUEST, 'energy_joules - coalesce(idle_joules, 0)')}, "
        f"{sum_of(ACCOUNTS, _CHARGED)}, {sum_of(ACCOUNTS, 'idle_joules')}, "
        f"{sum_of(ACCOUNTS, 'overhead_joules')}, {sum_of(ACCOUNTS, 'unattributed_joules')}, "
        f"{sum_of(ACCOUNTS, 'operational_grams')}, "
        f"sum(embodied_grams) FILTER (kind = '{ACCOUNTS}') "
        f"FROM (SELECT *, {', '.join(labels)} FROM lines WHERE {where}) "
        f"GROUP BY source, {names} HAVING count(*) FILTER (kind = '{ACCOUNTS}') > 0 "
        f"ORDER BY source, {names}"
    ).fetchall()
    return [_row(row, len(by)) for row in rows]


def _row(row: Sequence[Any], labels: int) -> GpuEnergy:
    source, *rest = row
    logged, charged, idle, overhead, unattributed, operational, embodied = rest[labels:]
    missing = charged - logged
    if abs(missing) <= ROUNDING * charged:
        missing = 0.0
    joules = logged, missing, idle, overhead, unattributed
    energies = [*map(watt_hours, joules), watt_hours(sum(joules))]
    names = [clean(label) for label in rest[:labels]]
    return GpuEnergy(names, source, [*energies, operational, embodied])
