"""What is metered how in each version of an engine: probes of real servers, and the table of what
they find in llm_carbon_meter/servers/README.md.

``python -m tests.comparisons.versions`` writes the table; a slow test repeats the probes.
"""

import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest

from llm_carbon_meter.testing.nvml_stub import SCRIPT_VARIABLE, StubScript, build
from llm_carbon_meter.testing.tiny_model import make_tiny_model
from tests.support.documents import SERVERS, replaced
from tests.support.environments import Environment, Environments
from tests.support.metered import (
    MIDDLEWARE,
    Metered,
    StartServer,
    assert_balanced,
    eventually,
    starter,
)

VERSIONS: Final = {
    "vLLM": ("0.27.1", "0.32.0"),
    "transformers": ("5.5.4", "5.6.0", "5.19.0", "5.23.0"),
}
"""The oldest that fits and the newest that can be had; of transformers also the last that does not
fit, and the one that comes with vLLM."""
VLLM_SERVER: Final = "vllm.entrypoints.openai.api_server"
"""The only module that starts every version."""
OUR_COMMAND: Final = ("-m", "llm_carbon_meter.cli", "serve-transformers")
PART: Final = "engines"
UNMETERED: Final = re.compile(r"install: this \w+ does not fit: it has no (.*?)[;.] ")
GENERATE: Final = Path(__file__).parents[1] / "support" / "generate_metered.py"
BALANCED: Final = "all joules"
TOKENS: Final = 12
LONG: Final = 400


class Way(NamedTuple):
    """How a server is started."""

    shown: str
    engine: str
    program: Sequence[str]
    arguments: Sequence[str] = ()


WAYS: Final[Mapping[str, Sequence[Way]]] = {
    "vLLM": (Way("`vllm serve`", "vllm", ("-m", VLLM_SERVER), MIDDLEWARE),),
    "transformers": (
        Way(
            "`serve-transformers --continuous-batching`",
            "transformers",
            OUR_COMMAND,
        ),
        Way("`serve-transformers`", "transformers-plain", OUR_COMMAND),
    ),
}


class Row(NamedTuple):
    """What a run found; the fields are the table's columns."""

    engine: str
    version: str
    started_by: str
    metered: str
    headers: str = ""
    stream: str = ""
    client_leaves: str = ""
    one_id_twice: str = ""
    accounts: str = ""


class Place(NamedTuple):
    """What the probes need beside an environment."""

    model: Path
    stub: Path
    start: StartServer


def probe(engine: str, version: str, environment: Environment, place: Place) -> list[Row]:
    """The rows of a version."""
    rows = []
    for way in WAYS[engine]:
        with place.start(
            *way.arguments,
            engine=way.engine,
            program=(environment.python, *way.program),
            environment=environment.variables,
        ) as metered:
            rows.append(Row(engine, version, way.shown, *_server(metered, version)))
    if engine == "transformers":
        found = _generate(environment, place)
        rows.append(Row(engine, version, "`meter_generate`", _energy(found), accounts=_sums(found)))
    return rows


def _server(metered: Metered, version: str) -> Iterator[str]:
    """The cells of a server, from how its energy is measured on."""
    status, headers, answer = _chat(metered, TOKENS, "first")
    assert status == 200, answer
    unmetered = UNMETERED.findall(metered.server.log.read_text())
    if unmetered:
        (missing,) = unmetered
        assert not _told(headers)
        yield f"not metered: has no {_short(missing)}"
        return
    record, usage = metered.record(json.loads(answer)["id"]), json.loads(answer)["usage"]
    assert record["deployment"]["engine_version"] == version
    assert record["prompt_tokens"] == usage["prompt_tokens"]
    assert record["output_tokens"] == usage["completion_tokens"] == TOKENS
    yield _energy(record | record["features"])
    yield _told(headers)
    yield _stream(metered)
    yield _leave(metered)
    yield _twice(metered)
    yield _accounts(metered)


def _chat(
    metered: Metered, tokens: int, name: str, **more: Any
) -> tuple[int, Mapping[str, str], bytes]:
    return metered.http("/v1/chat/completions", _body(metered, tokens, **more), _named(name))


def _body(metered: Metered, tokens: int, **more: Any) -> dict[str, Any]:
    """A conversation with an answer of an exact length."""
    asked = {"messages": [{"role": "user", "content": "hello " * 40}], "max_tokens": tokens}
    return {"model": metered.server.model_name, **asked, **metered.server.exact, **more}


def _named(name: str) -> dict[str, str]:
    return {"X-Request-Id": name}


def _short(missing: str) -> str:
    """Names of `hooks.load` without their modules."""
    return ", ".join(f"`{name.rpartition(':')[2]}`" for name in missing.split(", no "))


def _energy(found: Mapping[str, Any]) -> str:
    """What is told apart; a request has a step for each token, and more where its prompt is cut."""
    assert min(found["prefill_joules"], found["decode_joules"]) > 0
    return "each step" if found["num_steps"] >= found["output_tokens"] else "prefill and decode"


def _told(headers: Mapping[str, str]) -> str:
    """Which of our figures are in the headers of an answer."""
    names = {name.lower() for name in headers}
    kinds = ("estimated", "measured", "modelled")
    return ", ".join(kind for kind in kinds if f"llm-carbon-{kind}-wh" in names)


def _stream(metered: Metered) -> str:
    _, headers, text = _chat(metered, TOKENS, "stream", stream=True)
    lines = [line for line in text.decode().splitlines() if line.startswith(": llm-carbon ")]
    (record,) = (json.loads(line.removeprefix(": llm-carbon ")) for line in lines)
    assert record["output_tokens"] == TOKENS
    return f"{_told(headers)}, then {record['source']}"


def _leave(metered: Metered) -> str:
    """A client that takes some chunks and goes; the first may have no token yet."""
    url, asked = f"{metered.url}/v1/chat/completions", _body(metered, LONG, stream=True)
    with httpx.stream("POST", url, json=asked, headers=_named("left"), timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        *_, chunk = itertools.islice(lines, 4)
    record = metered.record(json.loads(chunk.removeprefix("data: "))["id"])
    assert 0 < record["output_tokens"] < LONG
    assert record["energy_joules"] > 0
    return str(record["outcome"])


def _twice(metered: Metered) -> str:
    """Two at once under one id; an unmetered `transformers serve` never answers the first."""
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: _chat(metered, 5 * TOKENS, "twice"), range(2)))
    answered = [status for status, *_ in answers].count(200)

    def records() -> set[str]:
        return {record["id"] for record in metered.logged() if "twice" in record["id"]}

    eventually(lambda: len(records()) >= answered, "the records of both")
    return f"{answered} answers, {len(records())} records"


def _accounts(metered: Metered) -> str:
    accounts = assert_balanced(metered)
    charged = sum(record["energy_joules"] for record in metered.logged())
    spent = sum(accounts[name] for name in ("prefill", "decode", "recompute", "waste"))
    assert charged == pytest.approx(spent, rel=1e-9)
    assert metered.metric("llm_carbon_meter_errors_total") == 0
    return BALANCED


def _sums(found: Mapping[str, Any]) -> str:
    assert sum(found["account_joules"]) == pytest.approx(found["counter_joules"], rel=1e-9)
    return BALANCED


def _generate(environment: Environment, place: Place) -> Mapping[str, Any]:
    """What `meter_generate` says of a call in another process."""
    script = StubScript(1, {0: [(0.0, 300.0)]}, period_ms=20).write(place.stub / "script")
    variables = {
        "LLM_CARBON_METER_POWER": "nvml",
        "LD_LIBRARY_PATH": str(place.stub),
        SCRIPT_VARIABLE: str(script),
        **environment.variables,
    }
    done = subprocess.run(
        [environment.python, str(GENERATE), str(place.model)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["output_tokens"] == TOKENS
    return found


def line(row: Sequence[str]) -> str:
    """A row as Markdown."""
    return f"| {' | '.join(row)} |"


def table(rows: Sequence[Row]) -> str:
    """All rows under their heads."""
    heads = [name.replace("_", " ") for name in Row._fields]
    return "\n".join([line(heads), line(["---"] * len(heads)), *map(line, rows)])


def main() -> None:
    """Probe every version and write the table."""
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), itertools.count()

        def new_folder(kind: str) -> Path:
            made = folder / f"{kind}-{next(numbers)}"
            made.mkdir()
            return made

        model, stub = make_tiny_model(folder / "tiny-qwen2"), build(folder / "nvml")
        place = Place(model, stub, starter(model, stub, new_folder))
        environments = Environments(new_folder("environments"))
        rows = [
            row
            for engine, versions in VERSIONS.items()
            for version in versions
            for row in probe(engine, version, environments.of(engine, version), place)
        ]
    SERVERS.write_text(replaced(SERVERS.read_text("utf-8"), PART, table(rows)), "utf-8")


if __name__ == "__main__":
    main()
