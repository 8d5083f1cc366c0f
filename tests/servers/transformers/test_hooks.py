"""The table of wrapped names of transformers: what is installed is what it lists."""

from types import SimpleNamespace
from typing import Any

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.servers.shared import hooks
from llm_carbon_meter.servers.transformers.application import ApplicationHooks
from llm_carbon_meter.servers.transformers.batching import BatchingHooks
from llm_carbon_meter.servers.transformers.hooks import (
    APPLICATION,
    BATCHING,
    HOOKS,
    LIFECYCLE,
    NEEDED,
)
from llm_carbon_meter.servers.transformers.lifecycle import ServedModel


def stand_in(target: str) -> Any:
    """A class, or a module, with the table's names and nothing else."""
    names = {hook.method: lambda self: None for hook in HOOKS if hook.target == target}
    return type("Owner", (), names) if ":" in target else SimpleNamespace(**names)


def test_the_hooks_wrap_the_names_of_the_table_and_no_other() -> None:
    """Nothing else is touched, and every name of it is."""
    owners = {hook.target: stand_in(hook.target) for hook in HOOKS}
    before = {target: dict(vars(owner)) for target, owner in owners.items()}
    served = ServedModel(Config(), Faults())
    hooks.install(LIFECYCLE, served, owners.__getitem__)
    hooks.install(BATCHING, BatchingHooks(served), owners.__getitem__)
    hooks.install(APPLICATION, ApplicationHooks(served), owners.__getitem__)
    for target, owner in owners.items():
        changed = {name for name, value in vars(owner).items() if before[target].get(name) != value}
        assert changed == {hook.method for hook in HOOKS if hook.target == target}


def test_the_installed_transformers_has_every_name() -> None:
    """Also those that are looked at and not wrapped."""
    assert hooks.missing(NEEDED) == []
