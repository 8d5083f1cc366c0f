"""Settings: defaults, every refusal, and the table in the README."""

import math
import os
import socket
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.config import (
    CHANNEL_DIR_VARIABLE,
    DATA_VARIABLE,
    PREFIX,
    Config,
    cuda_visible_devices,
    data_folder,
    place,
    runtime_folder,
    settings_table,
    share_channel_dir,
    shown_value,
)
from llm_carbon_meter.records import ConfigError, MeterError


def test_an_empty_environment_gives_the_defaults() -> None:
    """Without any variable the meter is on, divides by Shapley, and logs no requests."""
    config, problems = Config.from_environment({})
    assert config == Config()
    assert problems == []
    assert (config.enabled, config.strict, config.power) == (True, False, "auto")
    assert (config.assume_gpu, config.policy, config.idle) == ("H100", "shapley", "separate")
    assert (config.final_wait_s, config.request_log) == (0.0, "")


def test_foreign_variables_are_left_alone() -> None:
    """Only our own prefix is read."""
    config, problems = Config.from_environment({"POLICY": "equal", "VLLM_PORT": "1"})
    assert (config, problems) == (Config(), [])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("enabled", "0", False),
        ("enabled", " True ", True),
        ("strict", "yes", True),
        ("strict", "no", False),
        ("power", "replay:/tmp/trace.csv", "replay:/tmp/trace.csv"),
        ("power", "nvml", "nvml"),
        ("power", "modelled", "modelled"),
        ("sample_hz", "0.1", 0.1),
        ("sample_hz", "20", 20.0),
        ("counter_lag_s", "0.25", 0.25),
        ("counter_lag_s", "0", 0.0),
        ("policy", "tokens", "tokens"),
        ("idle", "by_time", "by_time"),
        ("carbon_intensity", "0", 0.0),
        ("pue", "1.58", 1.58),
        ("zone", "DE", "DE"),
        ("power", "rapl", "rapl"),
        ("power", "rapl:/host/sys", "rapl:/host/sys"),
        ("host_energy", "rapl", "rapl"),
        ("host_energy", "rapl:/host/sys", "rapl:/host/sys"),
        ("host_energy", "redfish:https://u:p@bmc", "redfish:https://u:p@bmc"),
        ("host_energy", "250.50", "250.5"),
        ("host_share", "0.25", 0.25),
        ("water_litres_per_kwh", "1.8", 1.8),
        ("receipt_key", "/keys/key.pem", "/keys/key.pem"),
        ("estimator", "none", "none"),
        ("drift_threshold", "0.1", 0.1),
        ("records", "1", 1),
        ("request_log_max_bytes", "1000", 1000),
        ("request_log", "/var/log/requests.jsonl", "/var/log/requests.jsonl"),
        ("request_log_max_age_s", "3600", 3600.0),
        ("otlp_logs", "http://collector:4317", "http://collector:4317"),
    ],
)
def test_settings_are_read(name: str, text: str, value: object) -> None:
    """A variable sets its field and nothing else."""
    config, problems = Config.from_environment({PREFIX + name.upper(): text})
    assert problems == []
    assert getattr(config, name) == value
    others = {field.name for field in fields(Config)} - {name}
    assert all(getattr(config, other) == getattr(Config(), other) for other in others)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("enabled", "maybe", "expected 1 or 0"),
        ("strict", "", "expected 1 or 0"),
        ("power", "stub", "expected auto, nvml, rapl, rapl:FOLDER, modelled or replay:FILE"),
        ("power", "replay:", "expected auto, nvml, rapl, rapl:FOLDER, modelled or replay:FILE"),
        ("sample_hz", "0", "expected a number from 0.1 to 20"),
        ("sample_hz", "20.1", "expected a number from 0.1 to 20"),
        ("sample_hz", "fast", "expected a number from 0.1 to 20"),
        ("counter_lag_s", "-0.1", "expected a number from 0 to 2"),
        ("counter_lag_s", "learn", "expected a number from 0 to 2"),
        ("pue", "0.9", "expected a number from 1 to 5"),
        ("pue", "nan", "expected a number from 1 to 5"),
        ("carbon_intensity", "inf", "expected a number from 0 to 5000"),
        ("policy", "fair", "expected one of shapley, tokens, flops, equal"),
        ("host_energy", "ipmi", "expected none, rapl, rapl:FOLDER, redfish:URL, or watts from 0"),
        ("host_energy", "rapl:", "expected none, rapl, rapl:FOLDER, redfish:URL, or watts from 0"),
        ("host_energy", "-1", "expected none, rapl, rapl:FOLDER, redfish:URL, or watts from 0"),
        ("host_share", "1.1", "expected a number from 0 to 1"),
        ("water_litres_per_kwh", "wet", "expected a number from 0 to 1000"),
        ("idle", "spread", "expected one of separate, by_time"),
        ("estimator", "oracle", "expected one of gnn, flop, none"),
        ("drift_threshold", "0", "expected a number from 0.01 to 100"),
        ("drift_min_requests", "8193", "expected a whole number from 1 to 8192"),
        ("records", "0", "expected a whole number from 1"),
        ("records", "1e3", "expected a whole number from 1"),
        ("records", "9" * 5000, "expected a whole number from 1"),
        ("pue", "1e400", "expected a number from 1 to 5"),
        ("final_wait_s", "-inf", "expected a number from 0 to 10"),
        ("request_log_max_bytes", "999", "expected a whole number from 1000"),
        ("request_log_files", "0", "expected a whole number from 1 to 9999"),
        ("request_log_max_age_s", "0", "expected a number from 1 to"),
    ],
)
def test_a_wrong_value_is_named_and_its_default_used(name: str, text: str, reason: str) -> None:
    """The report has the variable, the value, the reason and what is used instead."""
    variable = PREFIX + name.upper()
    config, (problem,) = Config.from_environment({variable: text})
    assert config == Config()
    assert f"{variable}={text!r}: " in str(problem)
    assert reason in str(problem)
    assert f"the default is {getattr(Config(), name)!r}" in str(problem)


@pytest.mark.parametrize("text", ["", "auto"])
def test_the_lag_of_the_counter_is_learnt_unless_it_is_set(text: str) -> None:
    """Empty is the same as the default."""
    assert Config.from_environment({PREFIX + "COUNTER_LAG_S": text}) == (Config(), [])
    assert Config().counter_lag_s == "auto"


def test_a_secret_is_not_in_any_message() -> None:
    """Neither a webhook that is refused nor one that is taken stands in a log."""
    config, (problem,) = Config.from_environment({PREFIX + "DRIFT_WEBHOOK": "chat.example/T0/key"})
    assert config == Config()
    assert "T0" not in str(problem)
    assert "http://" in str(problem)
    config, _ = Config.from_environment({PREFIX + "DRIFT_WEBHOOK": "https://chat.example/T0/key"})
    assert config.drift_webhook == "https://chat.example/T0/key"
    assert "T0" not in repr(config)


@pytest.mark.parametrize("name", ["HOST_ENERGY", "WATER_LITRES_PER_KWH", "RECEIPT_KEY"])
def test_an_empty_variable_asks_for_nothing(name: str) -> None:
    """As files of settings for containers have it."""
    assert Config.from_environment({PREFIX + name: ""}) == (Config(), [])


@pytest.mark.parametrize(
    "text",
    [
        "redfish:user:SECRET@bmc",
        "redfish:https://user:SECRET",
        "redfsh:https://user:SECRET@bmc",
        "https://user:SECRET@bmc",
        "redfish:https://user:SECRET@bmc?x",
    ],
)
def test_a_controller_that_is_refused_is_not_shown(text: str) -> None:
    """Its address has a password, however it is written."""
    config, (problem,) = Config.from_environment({PREFIX + "HOST_ENERGY": text})
    assert config == Config()
    assert f"{PREFIX}HOST_ENERGY=(not shown): expected" in str(problem)
    assert "SECRET" not in str(problem)


@pytest.mark.parametrize("name", ["CARBON_URL", "DRIFT_WEBHOOK"])
@pytest.mark.parametrize(
    "url",
    [
        "htps://user:SECRET@host",
        "http://user:SECRET",
        "http://[user:SECRET@host",
        "http://user:SECRET@ho\u2100st",
        "http://user:SECRET@host:99999",
    ],
)
def test_an_address_that_is_refused_is_not_shown(name: str, url: str) -> None:
    """Neither by us nor by the library that took it apart."""
    config, (problem,) = Config.from_environment({PREFIX + name: url})
    assert config == Config()
    assert f"{PREFIX}{name}=(not shown): expected a URL such as http://" in str(problem)
    assert "SECRET" not in str(problem)


def test_the_address_of_a_service_has_no_query() -> None:
    """A path is put behind it; its token has a setting of its own."""
    url = "http://host/?token=SECRET"
    _, (problem,) = Config.from_environment({PREFIX + "CARBON_URL": url})
    assert "SECRET" not in str(problem)
    assert "nothing behind a ?" in str(problem)


def test_a_setting_is_shown_without_its_secrets() -> None:
    """Of an address scheme, host and port."""
    config = Config(carbon_url="http://user:SECRET@host:1/x", electricitymaps_token="SECRET")
    assert "SECRET" not in repr(config)
    assert shown_value("carbon_url", config.carbon_url) == "http://host:1"
    assert shown_value("electricitymaps_token", "SECRET") == "(not shown)"
    assert shown_value("pue", 1.5) == 1.5
    controller = Config(host_energy="redfish:https://user:SECRET@bmc/redfish/v1/Chassis/1")
    assert "SECRET" not in repr(controller)
    assert shown_value("host_energy", controller.host_energy) == "redfish:https://bmc"
    assert shown_value("host_energy", "rapl:/host/sys") == "rapl:/host/sys"


def test_an_unknown_variable_is_named() -> None:
    """A typing error is reported rather than silently ignored."""
    config, (problem,) = Config.from_environment({PREFIX + "POLICE": "tokens"})
    assert config == Config()
    assert PREFIX + "POLICE is not a setting" in str(problem)


def test_all_problems_are_reported_and_the_good_ones_kept() -> None:
    """One wrong setting does not spoil the others."""
    config, problems = Config.from_environment(
        {PREFIX + "PUE": "0", PREFIX + "POLICY": "equal", PREFIX + "RECORDS": "x", PREFIX + "X": ""}
    )
    assert (config.policy, config.pue) == ("equal", 1.0)
    assert len(problems) == 3


def test_strict_raises_with_all_problems() -> None:
    """With STRICT=1 the first start with a wrong setting is the last."""
    wrong = {PREFIX + "STRICT": "1", PREFIX + "PUE": "0", PREFIX + "POLICE": "tokens"}
    with pytest.raises(ConfigError, match=r"PUE='0'.*; .*POLICE is not a setting"):
        Config.from_environment(wrong)


def test_strict_is_content_with_good_settings() -> None:
    """Nothing wrong, nothing raised."""
    config, problems = Config.from_environment({PREFIX + "STRICT": "1", PREFIX + "PUE": "1.2"})
    assert (config.strict, config.pue, problems) == (True, 1.2, [])


def test_variables_of_the_demo_and_of_training_are_known() -> None:
    """What other parts read is not called unknown."""
    assert Config.from_environment({PREFIX + "DATA": "/data"}) == (Config(), [])


@given(
    name=st.sampled_from([field.name for field in fields(Config) if field.name != "strict"]),
    text=st.text(),
)
def test_any_text_is_a_value_or_a_problem(name: str, text: str) -> None:
    """No text of any setting raises, and no number leaves its range."""
    config, problems = Config.from_environment({PREFIX + name.upper(): text})
    assert len(problems) <= 1
    value = getattr(config, name)
    assert not isinstance(value, float) or math.isfinite(value)


def test_the_table_lists_every_setting() -> None:
    """Each field is a row with its variable, default and meaning."""
    lines = settings_table().splitlines()
    assert len(lines) == 2 + len(fields(Config))
    for field, line in zip(fields(Config), lines[2:], strict=True):
        assert line.startswith(f"| `{PREFIX}{field.name.upper()}` |")
        assert line.endswith(f"| {field.metadata['doc']} |")
        assert line.count(" | ") == 2
    assert "| `LLM_CARBON_METER_ENABLED` | `1` |" in lines[2]
    assert "| `LLM_CARBON_METER_REQUEST_LOG` |  |" in settings_table()


def test_the_channel_directory_travels_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What one process shares, the ones started from it read."""
    monkeypatch.setenv(CHANNEL_DIR_VARIABLE, "/nowhere")
    share_channel_dir("/tmp/lcm")
    assert Config.from_environment(os.environ)[0].channel_dir == "/tmp/lcm"


@pytest.mark.parametrize(
    ("mode", "place"), [(0o700, "{own}/llm-carbon-meter"), (0o755, "{tmp}/llm-carbon-meter-user-")]
)
def test_meters_meet_where_no_other_user_has_a_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int, place: str
) -> None:
    """In XDG_RUNTIME_DIR, unless others may write there, as after ``sudo -E``."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own").chmod(mode)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    expected = place.format(own=tmp_path / "own", tmp=tmp_path / "none")
    assert str(runtime_folder()).startswith(expected)


@pytest.mark.parametrize("value", [None, "", "0,1"])
def test_visible_devices_are_those_of_cuda(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """Not set and empty are different: all GPUs, and none."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert cuda_visible_devices() == value


def test_a_config_error_is_a_meter_error() -> None:
    """One class for callers to catch."""
    assert issubclass(ConfigError, MeterError)


def test_data_folder_is_what_was_given_else_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An argument wins over ``LLM_CARBON_METER_DATA``; there is no default."""
    argument, named = tmp_path / "argument", tmp_path / "named"
    argument.mkdir()
    named.mkdir()
    monkeypatch.setenv(DATA_VARIABLE, str(named))
    assert data_folder(str(argument)) == argument
    assert data_folder() == named
    monkeypatch.delenv(DATA_VARIABLE)
    with pytest.raises(ConfigError, match=f"--data or set {DATA_VARIABLE}"):
        data_folder()
    with pytest.raises(ConfigError, match="does not exist"):
        data_folder(str(tmp_path / "gone"))


def test_a_place_is_known_by_the_names_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere by the host alone; the instance is another one each time."""
    for name in ("KUBERNETES_SERVICE_HOST", "POD_NAME", "NODE_NAME", "POD_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOSTNAME", "pod-1")
    here = place()
    assert (here.host, here.pod, here.node) == (socket.gethostname(), "", "")
    assert len({place().instance for _ in range(3)} | {here.instance}) == 4
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert place().pod == "pod-1"
    variables = {"POD_NAME": "pod-2", "NODE_NAME": "node", "POD_NAMESPACE": "space"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    there = place()
    assert (there.pod, there.node, there.namespace) == ("pod-2", "node", "space")
