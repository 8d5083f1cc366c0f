"""The command `llm-carbon-meter sidecar`, and its clock."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter import cli
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.servers.shared.meter_process import Setup
from llm_carbon_meter.servers.sidecar import proxy as sidecar
from llm_carbon_meter.servers.sidecar import serve as sidecar_serve
from llm_carbon_meter.testing.servers import free_port


def command(*arguments: str) -> int:
    """Its exit status."""
    return cli.main(["sidecar", *arguments])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--upstream", "localhost:8000"), "expected a URL such as http://127.0.0.1:8000"),
        (("--upstream", "http://x:99999"), "expected a URL such as http://127.0.0.1:8000"),
        (("--upstream", "http://x", "--gpus", "0,,1"), "--gpus 0,,1: expected indices or UUIDs"),
        (("--upstream", "http://x", "--listen", "8010"), "expected HOST:PORT"),
        (("--upstream", "http://x", "--listen", "127.0.0.1:x"), "expected HOST:PORT"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    arguments: Sequence[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was given, and what is expected."""
    assert command(*arguments) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "url", ["htps://user:SECRET@x", "http://user:SECRET", "http://x/?token=SECRET", "http://x:S%"]
)
def test_an_address_that_is_refused_is_not_shown(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have a password in it."""
    assert command("--upstream", url) == 1
    said = capsys.readouterr().err
    assert "expected a URL such as http://127.0.0.1:8000, without a query" in said
    assert "SECRET" not in said


def test_a_meter_that_is_switched_off_is_no_proxy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says which variable did that."""
    monkeypatch.setenv("LLM_CARBON_METER_ENABLED", "0")
    assert command("--upstream", "http://127.0.0.1:1") == 1
    assert "LLM_CARBON_METER_ENABLED=0" in capsys.readouterr().err


def test_without_a_temporary_folder_it_ends_with_one_line(
    no_temporary_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what to set."""
    assert command("--upstream", "http://127.0.0.1:1") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "set TMPDIR to a folder that can be written" in line


def test_metrics_that_cannot_be_written_end_it_with_one_line(tmp_path: Path) -> None:
    """In a process of its own: prometheus_client looks at the folder when it is imported."""
    options = {"--listen": "127.0.0.1:0", "--upstream": f"http://127.0.0.1:{free_port()}"}
    words = [word for option in options.items() for word in option]
    done = subprocess.run(
        [sys.executable, "-m", "llm_carbon_meter.cli", "sidecar", *words],
        env={
            **os.environ,
            "LLM_CARBON_METER_POWER": "modelled",
            "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "none"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert f"PROMETHEUS_MULTIPROC_DIR={tmp_path}/none: metrics cannot be written there" in last


def test_the_server_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no default to meter by mistake."""
    with pytest.raises(SystemExit):
        command()
    assert "--upstream" in capsys.readouterr().err


async def test_a_tick_that_fails_is_counted_and_the_next_one_comes() -> None:
    """Nothing of the meter ends the clock that cuts steps."""
    faults, ticked = Faults(), asyncio.Event()

    class Broken:
        def tick(self) -> None:
            if faults.counts:
                ticked.set()
            raise ValueError("broken")

    ticking = asyncio.create_task(sidecar._tick(Broken(), faults))  # type: ignore[arg-type]
    await asyncio.wait_for(ticked.wait(), 5)
    ticking.cancel()
    assert faults.counts["engine"] >= 1


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        assert command("--upstream", "http://127.0.0.1:1", "--listen", place) == 1
    assert f"--listen {place}: Address already in use" in capsys.readouterr().err


def test_it_starts_before_its_server_and_without_a_model(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for each; then it goes on."""
    started = []

    def stop_here(setup: Setup, *_: Any, **__: Any) -> None:
        started.append(setup)
        raise MeterError("far enough")

    monkeypatch.setattr(sidecar_serve, "LocalMeter", stop_here)
    monkeypatch.setenv("LLM_CARBON_METER_CHANNEL_DIR", "/nowhere")
    url = f"http://127.0.0.1:{free_port()}"
    secret = url.replace("//", "//user:SECRET@") + "/SECRET"
    assert command("--upstream", secret, "--listen", "127.0.0.1:0", "--gpus", "1,2") == 1
    (setup,) = started
    assert (setup.gpus, setup.model, setup.outside) == (["1", "2"], None, True)
    unreachable, unknown = (line.getMessage() for line in caplog.records)
    assert f"Until {url} answers, clients get status 502" in unreachable
    assert "SECRET" not in caplog.text
    assert "does not say which model it serves" in unknown
