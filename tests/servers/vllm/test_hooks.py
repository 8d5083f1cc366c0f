"""The table of wrapped names: it is what the hooks wrap, and it says what a vLLM lacks."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import ConfigError
from llm_carbon_meter.servers.shared import hooks
from llm_carbon_meter.servers.vllm import plugin as vllm_plugin
from llm_carbon_meter.servers.vllm.engine_hooks import EngineHooks
from llm_carbon_meter.servers.vllm.frontend_hooks import FrontendHooks
from llm_carbon_meter.servers.vllm.hooks import API_SERVER, ENGINE_CORE, HOOKS

NAMES = {
    target: [hook.method for hook in HOOKS if hook.target == target]
    for target in dict.fromkeys(hook.target for hook in HOOKS)
}


def stand_in(place: str) -> Any:
    """A class, or a module, with the table's names and nothing else."""
    owner: Any = type("Owner", (), {}) if ":" in place else SimpleNamespace()
    for name in NAMES[place]:
        setattr(owner, name, lambda self: None)
    return owner


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A vLLM of stand-ins, by place."""
    made = {place: stand_in(place) for place in NAMES}
    monkeypatch.setattr(hooks, "owner_of", made.__getitem__)
    return made


def test_the_hooks_wrap_the_names_of_the_table_and_no_other(owners: dict[str, Any]) -> None:
    """Nothing else is touched, and every name of it is."""
    before = {place: dict(vars(owner)) for place, owner in owners.items()}
    assert not hooks.missing(HOOKS)
    hooks.install(ENGINE_CORE, EngineHooks(Config(), Faults()))
    hooks.install(API_SERVER, FrontendHooks(Config(), Faults()))
    for place, owner in owners.items():
        changed = {name for name, value in vars(owner).items() if before[place].get(name) != value}
        assert changed == set(NAMES[place])


@pytest.mark.parametrize("place", [place for place, names in NAMES.items() if names[1:]])
def test_every_name_that_is_missing_is_said(owners: dict[str, Any], place: str) -> None:
    """With the place where it was looked for."""
    name = NAMES[place][-1]
    delattr(owners[place], name)
    assert hooks.missing(HOOKS) == [f"{place}.{name}"]


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


def test_without_a_temporary_folder_vllm_serves_unmetered(
    owners: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    no_temporary_folder: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line that says what to set, and an error where the settings are strict."""
    monkeypatch.setattr(vllm_plugin, "_registered", False)
    vllm_plugin.register()
    (line,) = caplog.records
    assert "set TMPDIR to a folder that can be written" in line.getMessage()
    assert line.exc_info is None
    monkeypatch.setattr(vllm_plugin, "_registered", False)
    monkeypatch.setenv("LLM_CARBON_METER_STRICT", "1")
    with pytest.raises(ConfigError, match="set TMPDIR"):
        vllm_plugin.register()


def test_warnings_are_seen_under_a_quiet_root_logger(
    owners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in vLLM's API server, where only errors of others would be; a level of one's own stays."""
    logger = logging.getLogger("llm_carbon_meter")
    monkeypatch.setattr(vllm_plugin, "_registered", False)
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setattr(logging.root, "level", logging.ERROR)
    monkeypatch.setenv("LLM_CARBON_METER_ENABLED", "0")
    vllm_plugin.register()
    assert logger.isEnabledFor(logging.INFO)
    monkeypatch.setattr(vllm_plugin, "_registered", False)
    logger.setLevel(logging.CRITICAL)
    vllm_plugin.register()
    assert logger.level == logging.CRITICAL
