"""The settings of a server's process, as they come from its environment."""

import dataclasses

from llm_carbon_meter.config import Config, share_channel_dir
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.servers.shared.channel import choose_directory


def read_settings(faults: Faults) -> Config:
    """Note what is wrong.

    Raises:
        ConfigError: a setting is wrong, and the settings are strict.
    """
    config, problems = Config.from_environment()
    for problem in problems:
        faults.note("settings", problem, "The default is used.")
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
