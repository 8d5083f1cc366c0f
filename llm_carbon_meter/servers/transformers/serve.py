"""``llm-carbon-meter serve-transformers``: Hugging Face's own command, with its classes wrapped.

transformers has no way to load a plugin: `serve` wraps its classes and then calls its own command;
instrumentor.py wraps them where OpenTelemetry starts that command.
"""

import sys
from collections.abc import Sequence

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import ConfigError, MeterError
from llm_carbon_meter.servers.shared import hooks
from llm_carbon_meter.servers.shared.settings import read_settings, with_channel
from llm_carbon_meter.servers.transformers.application import ApplicationHooks
from llm_carbon_meter.servers.transformers.batching import BatchingHooks
from llm_carbon_meter.servers.transformers.hooks import APPLICATION, BATCHING, LIFECYCLE, NEEDED
from llm_carbon_meter.servers.transformers.lifecycle import ServedModel

_installed = False


def serve(arguments: Sequence[str]) -> int:
    """Run ``transformers serve`` with these arguments, metered.

    Raises:
        MeterError: transformers is not installed or has no such command.
        ConfigError: it does not fit, or a setting is wrong, and the settings are strict.
    """
    try:
        from transformers.cli.transformers import main
    except ImportError as error:
        raise MeterError(
            f"this transformers cannot serve ({error}): "
            "pip install 'transformers[serving]>=5.6' requests, where torch is installed already"
        ) from error
    install()
    sys.argv = ["transformers", "serve", *arguments]
    main()
    return 0


def install() -> None:
    """Wrap transformers' classes, once; where they do not fit, say so and leave them alone.

    Raises:
        ConfigError: they do not fit, a setting is wrong, or the channel has no place, and the
            settings are strict.
    """
    global _installed
    if _installed:
        return
    faults = Faults()
    config = read_settings(faults)
    if not config.enabled:
        return
    try:
        _check_fit()
        install_hooks(with_channel(config), faults)
        _installed = True
    except ConfigError as error:
        if config.strict:
            raise
        faults.note("install", error, "Nothing is metered.")


def _check_fit() -> None:
    lacking = hooks.missing(NEEDED)
    if lacking:
        raise ConfigError(
            f"this transformers does not fit: it has no {', no '.join(lacking)}; 5.6 is the oldest "
            "that can be metered"
        )


def install_hooks(config: Config, faults: Faults) -> None:
    """Wrap transformers' classes; nothing starts until a model is loaded.

    Args:
        config: settings.
        faults: counts of what went wrong in this process.
    """
    served = ServedModel(config, faults)
    hooks.install(LIFECYCLE, served)
    hooks.install(BATCHING, BatchingHooks(served))
    hooks.install(APPLICATION, ApplicationHooks(served))
