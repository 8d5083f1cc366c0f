"""Looks at what makes a bill: prices, tenants, and the keys by which they are told."""

import stat
from collections.abc import Iterator
from pathlib import Path

from llm_carbon_meter.carbon.money import prices_of
from llm_carbon_meter.check.findings import Finding, Verdict
from llm_carbon_meter.config import Config
from llm_carbon_meter.frontend.tenants import read_keys
from llm_carbon_meter.records import ConfigError


def check_bills(config: Config) -> Iterator[Finding]:
    """One finding for prices and one for tenants, where the settings have them."""
    try:
        prices = prices_of(config)
        if prices is not None:
            what = {"a kWh": bool(prices.per_kwh), "a GPU's hour": prices.per_gpu_hour is not None}
            named = " and ".join(name for name, is_priced in what.items() if is_priced)
            yield Finding("prices", Verdict.OK, f"of {named} in {prices.currency}")
    except ConfigError as error:
        yield Finding("prices", Verdict.NOTE, f"{error}; nothing would have a price")
    if config.tenant_from:
        yield _tenants(config)


def _tenants(config: Config) -> Finding:
    if config.tenant_from == "api_key" and config.tenant_keys_file:
        return _keys(Path(config.tenant_keys_file))
    named = ", ".join(config.tenants) or f"the first {config.tenant_limit} that come"
    return Finding("tenants", Verdict.OK, f"told by {config.tenant_from}; metrics name {named}")


def _keys(path: Path) -> Finding:
    try:
        tenants = set(read_keys(path).values())
        others = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    except (ConfigError, OSError) as error:
        text = f"{error}; tenants would be digits of their keys' SHA-256"
        return Finding("tenants", Verdict.NOTE, text)
    if others:
        text = f"{path}: others can read it, and it holds keys; chmod 600, or write their digests"
        return Finding("tenants", Verdict.NOTE, text)
    return Finding(
        "tenants", Verdict.OK, f"{path}: keys of {', '.join(sorted(tenants)) or 'nobody'}"
    )
