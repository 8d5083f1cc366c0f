"""PromQL as functions: the metrics of the chosen servers, their rates, shares and quantiles."""

from typing import Final

PREFIX: Final = "llm_carbon_meter_"
SERVER: Final = 'job=~"$job",model_name=~"$model_name"'
ENGINE: Final = f'{SERVER},engine=~"$engine"'
SOURCE: Final = 'source="$source"'
"""Measured or modelled, one at a time: the two are never added."""
TOTAL: Final = 'phase="total"'
REQUEST_ENERGY: Final = "request_energy_watt_hours"


def metric(name: str, *labels: str, of: str = ENGINE) -> str:
    """A metric of the chosen servers."""
    return f"{PREFIX}{name}{{{','.join((of, *labels))}}}"


def rate(name: str, *labels: str, of: str = ENGINE) -> str:
    """Its increase per second."""
    return f"rate({metric(name, *labels, of=of)}[$__rate_interval])"


def share(part: str, whole: str) -> str:
    """Part of a whole; nothing where the whole is 0."""
    return f"{part} / ({whole} > 0)"


def quantile(q: float, name: str, by: str, *labels: str) -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({q}, sum by ({by}) ({rate(name + '_bucket', *labels)}))"


def joules_rate(*labels: str) -> str:
    """Watts of the chosen source, by whatever is summed over."""
    return rate("energy_joules_total", SOURCE, *labels)


def account_share(account: str) -> str:
    """Part of all energy that is in an account."""
    part = joules_rate(f'account="{account}"')
    return share(f"sum({part})", f"sum({joules_rate()})")


def watt_hours_per_thousand_tokens(phase: str) -> str:
    """Of the requests' own work in a phase."""
    joules, tokens = joules_rate(f'account="{phase}"'), rate("tokens_total", f'phase="{phase}"')
    return share(f"1000 / 3600 * sum({joules})", f"sum({tokens})")


def mean(name: str, by: str, *labels: str) -> str:
    """Mean of a histogram's observations, as a ratio of sums."""
    total, count = (rate(f"{name}_{part}", *labels) for part in ("sum", "count"))
    return share(f"sum by ({by}) ({total})", f"sum by ({by}) ({count})")
