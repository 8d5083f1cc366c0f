"""vLLM's entry point: runs in every process of a deployment, wraps, starts nothing."""

import dataclasses
import logging

from llm_carbon_meter.config import Config, share_channel_dir
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import ConfigError
from llm_carbon_meter.servers.channel import choose_directory
from llm_carbon_meter.servers.vllm_engine import EngineHooks
from llm_carbon_meter.servers.vllm_frontend import FrontendHooks

logger = logging.getLogger("llm_carbon_meter")

_registered = False


def register() -> None:
    """Install the hooks; calling again changes nothing.

    Raises:
        ConfigError: a setting is wrong and LLM_CARBON_METER_STRICT=1.
    """
    global _registered
    if _registered:
        return
    _registered = True
    config, problems = Config.from_environment()
    faults = Faults()
    for problem in problems:
        faults.note("settings", problem, "The default is used.")
    if not config.enabled:
        return
    if not config.channel_dir:
        config = dataclasses.replace(config, channel_dir=choose_directory())
        share_channel_dir(config.channel_dir)
    try:
        _install(config, faults)
    except (ImportError, AttributeError) as error:
        if config.strict:
            raise ConfigError(f"this vLLM does not fit llm_carbon_meter: {error}") from error
        faults.note("install", error, "This vLLM does not fit; nothing is metered.")


def _install(config: Config, faults: Faults) -> None:
    import vllm.entrypoints.serve as serve
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.executor.abstract import Executor

    EngineHooks(config, faults).install(Scheduler, EngineCore, Executor)
    FrontendHooks(config, faults).install(AsyncLLM, OutputProcessor, serve)
