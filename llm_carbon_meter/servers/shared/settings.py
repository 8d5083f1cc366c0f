"""The settings of a server's process, as they come from its environment."""

import dataclasses
import logging

from llm_carbon_meter.config import Config, share_channel_dir, told_before
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.servers.shared.channel import choose_directory

logger = logging.getLogger("llm_carbon_meter")


def read_settings(faults: Faults) -> Config:
    """Let our lines be seen, and note what is wrong.

    Raises:
        ConfigError: a setting is wrong, and the settings are strict.
    """
    _show_lines()
    return checked_settings(faults)


def checked_settings(faults: Faults) -> Config:
    """Note what is wrong, in the first process that reads it.

    Raises:
        ConfigError: a setting is wrong, and the settings are strict.
    """
    config, problems = Config.from_environment()
    if problems and not told_before():
        faults.note("settings", "; ".join(map(str, problems)), "Defaults are used.")
    return config


def with_channel(config: Config) -> Config:
    """Choose the channel's directory for this process and its children, where none is set.

    Raises:
        ConfigError: there is no place for it.
    """
    if config.channel_dir:
        return config
    config = dataclasses.replace(config, channel_dir=choose_directory())
    share_channel_dir(config.channel_dir)
    return config


def _show_lines() -> None:
    """Let lines of level INFO be seen, unless somebody has set logging up.

    A level of our own: an API server of vLLM raises the root logger's to ERROR. A handler of our
    own: Python's last resort shows warnings only.
    """
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.addFilter(lambda _record: not logging.root.handlers)
        logger.addHandler(handler)
