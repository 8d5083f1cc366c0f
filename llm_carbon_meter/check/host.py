"""Looks at everything that metering needs: one function a topic. No engine is started."""

import dataclasses
from collections.abc import Iterator
from importlib import metadata, util
from typing import Final

from llm_carbon_meter.carbon.grid import constant, open_grid
from llm_carbon_meter.check.bills import check_bills
from llm_carbon_meter.check.files import check_files
from llm_carbon_meter.check.findings import Finding, Verdict
from llm_carbon_meter.check.gpus import check_power
from llm_carbon_meter.check.host_energy import check_host_energy
from llm_carbon_meter.config import PREFIX, Config, metrics_folder, shown_value, vllm_plugins
from llm_carbon_meter.exporters.columns import figure
from llm_carbon_meter.exporters.prometheus import check_metrics_folder
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.model_list import named_config
from llm_carbon_meter.physics.model_specs import model_spec
from llm_carbon_meter.records import ConfigError, MeterError, SpecError
from llm_carbon_meter.servers.shared.channel import Publisher, choose_directory, engine_name
from llm_carbon_meter.servers.shared.hooks import Fit, installed_fit

PLUGIN: Final = "llm_carbon_meter"
POLL_S: Final = 2.0
"""How long the counters are watched."""


def check_host(poll_s: float, model: str = "") -> Iterator[Finding]:
    """Look at this host as a server started in this environment would find it.

    Args:
        poll_s: how long the counters are watched.
        model: a built-in name or a config.json; empty for none.
    """
    config, settings = _settings()
    yield settings
    yield from _engines()
    yield from _model(model)
    yield from check_power(config, poll_s)
    yield from check_host_energy(config)
    yield _channel(config)
    yield from _metrics()
    yield from check_files(config)
    yield from check_bills(config)
    yield from _token(config)
    yield _carbon(config)


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


def _engines() -> Iterator[Finding]:
    """vLLM, and transformers where it is installed; a host needs one that fits."""
    if util.find_spec("transformers") is None:
        yield _vllm()
        return
    fit = installed_fit("transformers")
    transformers = _fit("transformers", fit, "transformers 5.6 or newer")
    if util.find_spec("vllm") is None:
        yield Finding("vllm", Verdict.NOTE, "not installed here")
        yield transformers
        return
    if fit.missing:  # vLLM brings a transformers, which need not serve
        transformers = dataclasses.replace(transformers, verdict=Verdict.NOTE)
    yield _vllm()
    yield transformers


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


def _model(model: str) -> Iterator[Finding]:
    """Whether requests of a model would be estimated, and shared by what its steps cost."""
    if not model:
        return
    try:
        spec = model_spec(named_config(model), model, any_format=True)
    except SpecError as error:
        text = f"{error}; its requests would be metered and have no estimate"
        yield Finding("model", Verdict.NOTE, text)
        return
    billions = figure(spec.parameters / 1e9)
    figures = {"parameters": spec.parameters}
    text = f"{model} is known: {billions} billion parameters"
    yield Finding("model", Verdict.OK, text, figures)


def _metrics() -> Iterator[Finding]:
    folder = metrics_folder()
    if folder is None:
        return
    try:
        check_metrics_folder()
    except ConfigError as error:
        yield Finding("metrics", Verdict.FAILS, str(error))
        return
    yield Finding("metrics", Verdict.OK, f"PROMETHEUS_MULTIPROC_DIR={folder} can be written")


def _token(config: Config) -> Iterator[Finding]:
    if config.carbon_provider != "electricitymaps":
        return
    token, variable = config.electricitymaps_token, f"{PREFIX}ELECTRICITYMAPS_TOKEN"
    if not token:
        text = f"{variable} is not set: Electricity Maps answers nobody without one"
        yield Finding("token", Verdict.NOTE, text)
    elif not (token.isascii() and token.isprintable() and token == token.strip()):
        text = f"{variable} has characters that no token has, such as an end of line; set it anew"
        yield Finding("token", Verdict.NOTE, text)
    else:
        yield Finding("token", Verdict.OK, f"{variable} is set, {len(token)} characters")


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
