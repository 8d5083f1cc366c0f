"""The command `llm-carbon-meter sidecar`, and its clock."""

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llm_carbon_meter import cli
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.servers.sidecar.capture import OutsideCapture
from llm_carbon_meter.testing.servers import free_port
from tests.support.servers.proxied import CHAT, USAGE, Sidecar, running
from tests.support.waiting import eventually


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

    class Broken(OutsideCapture):
        def tick(self) -> None:
            if faults.counts:
                ticked.set()
            raise ValueError("broken")

    ticking = asyncio.create_task(Broken(faults).keep_time())
    await asyncio.wait_for(ticked.wait(), 5)
    ticking.cancel()
    assert faults.counts["engine"] >= 1


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        assert command("--upstream", "http://127.0.0.1:1", "--listen", place) == 1
    assert f"--listen {place}: Address already in use" in capsys.readouterr().err


def serving(listed: Response) -> Starlette:
    """A server with a list of models."""

    async def models(_request: Request) -> Response:
        return listed

    async def chat(request: Request) -> Response:
        model = (await request.json()).get("model")
        return JSONResponse({"id": f"chat-of-{model}", "model": model, "usage": USAGE})

    routes = [Route("/v1/models", models), Route(CHAT, chat, methods=["POST"])]
    return Starlette(routes=routes)


def test_it_learns_the_model_of_a_server_that_comes_later(tmp_path: Path) -> None:
    """Until then it says that nothing is metered, and clients get 502; then there are estimates."""
    port = free_port()
    with Sidecar(f"http://127.0.0.1:{port}", tmp_path) as sidecar:
        assert sidecar.chat().status_code == 502
        app = serving(JSONResponse({"data": [{"id": "Llama-3.1-8B"}]}))
        with running(app, port=port):

            def metered() -> bool:
                return "llm-carbon-estimated-wh" in sidecar.chat().headers

            eventually(metered, "an estimate", timeout_s=30)
            assert 'model_name="Llama-3.1-8B"' in sidecar.get("/metrics").text
        said = sidecar.log.read_text()
        assert said.count("nothing is metered") == said.count("engine 0 is metered") == 1
        assert "estimates: gnn" in said


def test_a_server_that_asks_for_a_key_is_not_one_that_is_away(tmp_path: Path) -> None:
    """Its requests are metered without an estimate; the line names the status and --model."""
    refusal = JSONResponse({"error": "no key"}, 401)
    with running(serving(refusal)) as url, Sidecar(url, tmp_path) as sidecar:
        answer = sidecar.chat()
        assert (answer.status_code, "llm-carbon-quality" in answer.headers) == (200, True)
        said = sidecar.log.read_text()
    assert f"/v1/models of {url} answers 401 Unauthorized" in said
    assert "--model takes a name or a config.json" in said
    assert "cannot be reached" not in said


def test_a_login_of_the_server_is_used_and_not_shown(tmp_path: Path) -> None:
    """Neither where it is away nor in any other line."""
    url = f"http://127.0.0.1:{free_port()}"
    with Sidecar(url.replace("//", "//user:SECRET@") + "/SECRET", tmp_path) as sidecar:
        sidecar.chat()
        said = sidecar.log.read_text()
    assert f"{url} cannot be reached" in said
    assert "SECRET" not in said


def test_a_server_of_several_models(tmp_path: Path) -> None:
    """Each request has its own; one that is not known has no estimate, and is no new series."""
    table = tmp_path / "models.toml"
    table.write_text('"big:8b" = "Llama-3.1-8B"\n"of no list" = "Qwen3-8B"\n')
    listed = JSONResponse({"data": [{"id": name} for name in ("big:8b", "odd", "Qwen3-8B")]})
    asked = ("big:8b", "Qwen3-8B", "of no list", "odd", "who")
    with running(serving(listed)) as url, Sidecar(url, tmp_path, "--models", str(table)) as sidecar:
        answers = {model: sidecar.chat(model=model) for model in asked}
        estimated = [
            model for model in asked if "llm-carbon-estimated-wh" in answers[model].headers
        ]

        def record(model: str) -> dict[str, Any] | None:
            found: dict[str, Any] = sidecar.get(f"/v1/carbon/requests/chat-of-{model}").json()
            return found if found.get("status") == "final" else None

        records = {model: eventually(lambda: record(model), model) for model in asked}  # noqa: B023
        metrics = sidecar.get("/metrics").text
        said = sidecar.log.read_text()
    assert estimated == ["big:8b", "Qwen3-8B", "of no list"]
    assert [records[model]["model"] for model in asked] == list(asked)
    assert [bool(records[model]["conditional"]) for model in asked] == [True] * 3 + [False] * 2
    counted = re.findall(r'meter_requests_total\{.*model_name="([^"]+)".* (\S+)', metrics)
    assert sorted(counted) == [
        *(("Qwen3-8B", "1.0"), ("big:8b", "2.0"), ("odd", "1.0"), ("of no list", "1.0")),
    ]
    assert "odd" in said


@pytest.mark.parametrize("text", [None, "what", '"a" = 7'])
def test_a_table_of_models_that_cannot_be_used(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names it."""
    table = tmp_path / "models.toml"
    if text is not None:
        table.write_text(text)
    assert command("--upstream", "http://127.0.0.1:1", "--models", str(table)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--models {table} cannot be used" in line
