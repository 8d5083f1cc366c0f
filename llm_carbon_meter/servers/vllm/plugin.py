"""vLLM's entry point: runs in every process of a deployment, wraps, starts nothing."""

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import ConfigError
from llm_carbon_meter.servers.shared import hooks
from llm_carbon_meter.servers.shared.settings import read_settings, with_channel
from llm_carbon_meter.servers.vllm.engine_hooks import EngineHooks
from llm_carbon_meter.servers.vllm.frontend_hooks import FrontendHooks
from llm_carbon_meter.servers.vllm.hooks import API_SERVER, ENGINE_CORE, HOOKS

_registered = False


def register() -> None:
    """Install the hooks; calling again changes nothing.

    Raises:
        ConfigError: a setting is wrong, vLLM does not fit, or the channel has no place, and
            LLM_CARBON_METER_STRICT=1.
    """
    global _registered
    if _registered:
        return
    _registered = True
    faults = Faults()
    config = read_settings(faults)
    if not config.enabled:
        return
    try:
        _install(config, faults)
    except ConfigError as error:
        if config.strict:
            raise
        faults.note("install", error, "Nothing is metered; `llm-carbon-meter check` says more.")


def _install(config: Config, faults: Faults) -> None:
    lacking = hooks.missing(HOOKS)
    if lacking:
        raise ConfigError(f"this vLLM does not fit: it has no {', no '.join(lacking)}")
    config = with_channel(config)
    hooks.install(ENGINE_CORE, EngineHooks(config, faults))
    hooks.install(API_SERVER, FrontendHooks(config, faults))
