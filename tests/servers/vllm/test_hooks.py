"""The table of wrapped names: it is what the hooks wrap, and it says what a vLLM lacks."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import ConfigError
from llm_carbon_meter.servers.shared import hooks
from llm_carbon_meter.servers.shared.hooks import load
from llm_carbon_meter.servers.vllm import plugin as vllm_plugin
from llm_carbon_meter.servers.vllm.engine_hooks import EngineHooks
from llm_carbon_meter.servers.vllm.frontend_hooks import FrontendHooks
from llm_carbon_meter.servers.vllm.hooks import HOOKED


def stand_in(place: str) -> Any:
    """A class, or a module, with the table's names and nothing else."""
    owner: Any = type("Owner", (), {}) if ":" in place else SimpleNamespace()
    for name in HOOKED[place]:
        setattr(owner, name, lambda self: None)
    return owner


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A vLLM of stand-ins, by place."""
    made = {place: stand_in(place) for place in HOOKED}
    monkeypatch.setattr(hooks, "_owner", made.__getitem__)
    return made


def test_the_hooks_wrap_the_names_of_the_table_and_no_other(owners: dict[str, Any]) -> None:
    """Nothing else is touched, and every name of it is."""
    before = {place: dict(vars(owner)) for place, owner in owners.items()}
    found, missing = load(HOOKED)
    assert not missing
    EngineHooks(Config(), Faults()).install(*found[:3])
    FrontendHooks(Config(), Faults()).install(*found[3:])
    for place, owner in owners.items():
        changed = {name for name, value in vars(owner).items() if before[place].get(name) != value}
        assert changed == set(HOOKED[place])


@pytest.mark.parametrize("place", [place for place, names in HOOKED.items() if names[1:]])
def test_every_name_that_is_missing_is_said(owners: dict[str, Any], place: str) -> None:
    """With the place where it was looked for."""
    name = HOOKED[place][-1]
    delattr(owners[place], name)
    assert load(HOOKED)[1] == [f"{place}.{name}"]


def test_a_vllm_that_does_not_fit_is_left_alone(
    owners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is wrapped, not even what is there; one fault, or an error where it is strict."""
    del owners["vllm.entrypoints.serve"].register_vllm_serve_api_routers
    scheduler = owners["vllm.v1.core.sched.scheduler:Scheduler"]
    before = dict(vars(scheduler))
    faults = Faults()
    monkeypatch.setattr(vllm_plugin, "Faults", lambda: faults)
    monkeypatch.setattr(vllm_plugin, "_registered", False)
    monkeypatch.setenv("LLM_CARBON_METER_CHANNEL_DIR", "/nowhere")
    vllm_plugin.register()
    assert dict(vars(scheduler)) == before
    assert faults.counts == {"install": 1}
    monkeypatch.setattr(vllm_plugin, "_registered", False)
    monkeypatch.setenv("LLM_CARBON_METER_STRICT", "1")
    with pytest.raises(ConfigError, match=r"no vllm\.entrypoints\.serve\.register"):
        vllm_plugin.register()


def test_warnings_are_seen_under_a_quiet_root_logger(
    owners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in vLLM's API server, where only errors of others would be; a level of one's own stays."""
    monkeypatch.setattr(vllm_plugin, "_registered", False)
    monkeypatch.setattr(vllm_plugin.logger, "level", logging.NOTSET)
    monkeypatch.setattr(logging.root, "level", logging.ERROR)
    monkeypatch.setenv("LLM_CARBON_METER_ENABLED", "0")
    vllm_plugin.register()
    assert vllm_plugin.logger.isEnabledFor(logging.WARNING)
    monkeypatch.setattr(vllm_plugin, "_registered", False)
    vllm_plugin.logger.setLevel(logging.CRITICAL)
    vllm_plugin.register()
    assert vllm_plugin.logger.level == logging.CRITICAL
