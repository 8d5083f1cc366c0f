"""Looks at everything that metering needs: one function a topic. No engine is started."""

import dataclasses
from importlib import metadata, util
from typing import Final

from llm_carbon_meter.carbon.grid import constant, open_grid
from llm_carbon_meter.check.findings import Finding, Report, Verdict
from llm_carbon_meter.check.gpus import check_power
from llm_carbon_meter.config import PREFIX, Config, shown_value, vllm_plugins
from llm_carbon_meter.exporters.columns import figure
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import ConfigError, MeterError
from llm_carbon_meter.servers.shared.channel import Publisher, choose_directory, engine_name
from llm_carbon_meter.servers.shared.hooks import Fit, installed_fit

PLUGIN: Final = "llm_carbon_meter"
POLL_S: Final = 2.0
"""How long the counters are watched."""


def check_host(poll_s: float) -> Report:
    """Look at this host as a server started in this environment would find it.

    Args:
        poll_s: how long the counters are watched.
    """
    config, settings = _settings()
    power, quality = check_power(config, poll_s)
    findings = [settings, *_engines(), *power, _channel(config), _carbon(config)]
    return Report(findings, quality)


def _settings() -> tuple[Config, Finding]:
    try:
        config, problems = Config.from_environment()
    except ConfigError as error:  # strict
        return Config(), Finding("settings", Verdict.FAILS, str(error))
    if not config.enabled:
        text = f"{PREFIX}ENABLED=0 switches metering off; remove it"
        return config, Finding("settings", Verdict.FAILS, text)
    if problems:
        return config, Finding("settings", Verdict.NOTE, "; ".join(map(str, problems)))
    return config, Finding("settings", Verdict.OK, _changed(config))


def _changed(config: Config) -> str:
    """The settings that are not at their defaults."""
    defaults = dataclasses.asdict(Config())
    changed = [
        f"{PREFIX}{name.upper()}={shown_value(name, value)}"
        for name, value in dataclasses.asdict(config).items()
        if value != defaults[name]
    ]
    return ", ".join(changed) or "all at their defaults"


def _engines() -> list[Finding]:
    """vLLM, and transformers where it is installed; a host needs one that fits."""
    if util.find_spec("transformers") is None:
        return [_vllm()]
    fit = installed_fit("transformers")
    transformers = _fit("transformers", fit, "transformers 5.6 or newer")
    if util.find_spec("vllm") is None:
        return [Finding("vllm", Verdict.NOTE, "not installed here"), transformers]
    if fit.missing:  # vLLM brings a transformers, which need not serve
        transformers = dataclasses.replace(transformers, verdict=Verdict.NOTE)
    return [_vllm(), transformers]


def _vllm() -> Finding:
    problem = _unplugged()
    if problem:
        return Finding("vllm", Verdict.FAILS, problem)
    return _fit("vllm", installed_fit("vllm"), "vLLM 0.27 to 0.32")


def _unplugged() -> str:
    """Why vLLM would not load the plugin; empty where it would."""
    if util.find_spec("vllm") is None:
        return "not installed here; run this in the environment of your vLLM"
    if not metadata.entry_points(group="vllm.general_plugins", name=PLUGIN):
        return f"{PLUGIN} is no plugin of this environment; install its wheel there"
    allowed = vllm_plugins()
    if allowed is not None and PLUGIN not in allowed:
        return f"VLLM_PLUGINS={','.join(allowed)} leaves {PLUGIN} out; add it"
    return ""


def _fit(engine: str, fit: Fit, wanted: str) -> Finding:
    version = fit.version or "of an unknown version"
    figures = {"version": fit.version, "missing": list(fit.missing)}
    if fit.missing:
        text = f"{version}: does not fit, it has no {', no '.join(fit.missing)}; use {wanted}"
        return Finding(engine, Verdict.FAILS, text, figures)
    return Finding(engine, Verdict.OK, f"{version}: all {len(fit.wrapped)} hooks fit", figures)


def _channel(config: Config) -> Finding:
    try:
        directory = config.channel_dir or choose_directory()
        Publisher(directory, engine_name(0), Faults()).close()
    except MeterError as error:
        return Finding("channel", Verdict.FAILS, str(error))
    text = f"sockets in {directory}, private to this user"
    return Finding("channel", Verdict.OK, text, {"directory": directory})


def _carbon(config: Config) -> Finding:
    faults = Faults()
    now = open_grid(config, faults).asked()
    grams = figure(now.grams_per_kwh)
    text = f"{grams} gCO2eq/kWh, {now.provider} (zone {now.zone}), PUE {config.pue:g}"
    figures = {**dataclasses.asdict(now), "pue": config.pue}
    if faults.counts:
        text += f"; {config.carbon_provider} has no answer for zone {config.zone}"
    elif now == constant(Config(), faults):
        text += f"; set {PREFIX}CARBON_INTENSITY to your grid's"
    else:
        return Finding("carbon", Verdict.OK, text, figures)
    return Finding("carbon", Verdict.NOTE, text, figures)
