"""`llm-carbon-meter demo`: a real server, metered, under the Azure trace's traffic."""

import argparse
import asyncio
import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llm_carbon_meter.config import Config
from llm_carbon_meter.data.azure_trace import conversation_quantiles
from llm_carbon_meter.demo import picture, table
from llm_carbon_meter.demo.replay import Answer, Prompts, replay
from llm_carbon_meter.demo.trace import TraceRequest, draw
from llm_carbon_meter.exporters.columns import figure
from llm_carbon_meter.extras import require
from llm_carbon_meter.power.replay import read_trace
from llm_carbon_meter.testing.scrape import Scrape, Watch, fetch_record, scrape
from llm_carbon_meter.testing.servers import (
    MODEL_NAME,
    Server,
    TransformersServer,
    VllmServer,
    cuda_available,
)
from llm_carbon_meter.testing.shaped_model import longest, make_shaped_model
from llm_carbon_meter.testing.stub_power import StubPower
from llm_carbon_meter.testing.tiny_model import make_tiny_model

REQUESTS: Final = 60
AT_ONCE: Final = 8
# Together they fit the context of 1024 tokens with the chat template around them.
MAX_PROMPT: Final = 512
MAX_OUTPUT: Final = 480
CHAT_TOKENS: Final = 32
"""Of the chat template around a prompt."""
MIDDLEWARE: Final = "llm_carbon_meter.CarbonHeadersMiddleware"
SETTLING_S: Final = 2.0
"""After the end: the last counter ticks have been settled by then."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument(
        "--engine", choices=("vllm", "transformers"), default="vllm", help="default: vllm"
    )
    parser.add_argument(
        "--power",
        default="auto",
        help="auto, nvml, rapl, modelled, replay:FILE, or stub: NVML through our own stub library "
        "(default: auto, which is rapl or modelled where there is no GPU)",
    )
    parser.add_argument(
        "--requests",
        type=_whole,
        default=REQUESTS,
        help=f"how many in all (default: {REQUESTS})",
    )
    parser.add_argument(
        "--pace", type=_positive, default=1.0, help="times the trace's own pace (default: 1)"
    )
    parser.add_argument(
        "--at-once", type=_whole, default=AT_ONCE, help=f"requests in flight (default: {AT_ONCE})"
    )
    parser.add_argument(
        "--model",
        default="",
        metavar="NAME",
        help="of the built-in list: its true shape with random weights (default: a toy)",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="of the traffic (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the results")
    parser.add_argument("--keep", action="store_true", help="leave the server running until Ctrl-C")


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0.0 < value < math.inf:
            return value
    raise argparse.ArgumentTypeError("expected a number above 0")


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError("expected a whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("expected a whole number, 0 or above")
    return int(text)


@dataclass(frozen=True, slots=True)
class Result:
    """Everything the demo saw."""

    answers: Sequence[Answer]
    records: Sequence[Mapping[str, Any] | None]
    scrapes: Sequence[Scrape]
    seconds: float

    @property
    def last(self) -> Scrape:
        """The final state of /metrics."""
        return self.scrapes[-1]


def run(options: argparse.Namespace) -> int:
    """Run the demo; 0 when every request has its record and the balance is right.

    Raises:
        MeterError: the extra ``demo`` is not installed, the power source is not known or not
            readable, the server does not start, or the stub does not compile.
    """
    require("demo", "demo", "torch", "tokenizers", "openai", "matplotlib")
    _check_power(options.power)
    options.out.mkdir(parents=True, exist_ok=True)
    stub = StubPower.prepare(options.out / "nvml-stub") if options.power == "stub" else None
    model = _model(options)
    try:
        with _ended_by_sigterm(), _server(options, model, stub) as server:
            result = _drive(server, model, options)
            failures = _show(result, stub, options)
            if options.keep:
                _keep(server, result)
    except KeyboardInterrupt:
        return 130  # as a shell reports Ctrl-C
    return 1 if failures else 0


def _model(options: argparse.Namespace) -> Path:
    """The folder of the toy, or of a model's true shape."""
    name = options.model or MODEL_NAME
    print(f"making {name} of random weights …", flush=True)
    if options.model:
        return make_shaped_model(name, options.out / name)
    return make_tiny_model(options.out / name)


def _lengths(options: argparse.Namespace) -> tuple[int, int]:
    return longest(options.model) if options.model else (MAX_PROMPT, MAX_OUTPUT)


def _traffic(options: argparse.Namespace) -> Sequence[TraceRequest]:
    return draw(options.requests, options.seed, *_lengths(options))


def _check_power(power: str) -> None:
    """Refuse before a server is started what it would refuse after half a minute."""
    if power != "stub":
        Config.from_environment({"LLM_CARBON_METER_POWER": power, "LLM_CARBON_METER_STRICT": "1"})
    if power.startswith("replay:"):
        read_trace(Path(power.removeprefix("replay:")))


def _server(options: argparse.Namespace, model: Path, stub: StubPower | None) -> Server:
    # Strict: a power source that cannot be opened ends the demo instead of going unmetered.
    environment = {
        "LLM_CARBON_METER_POWER": "nvml" if stub else options.power,
        "LLM_CARBON_METER_STRICT": "1",
    }
    if stub is not None:
        environment |= stub.environment()
    log = options.out / "server.log"
    print(
        f"starting {options.engine} with the meter, power {options.power}; its log: {log}",
        flush=True,
    )
    common: dict[str, Any] = {"log": log, "environment": environment, "on_wait": _show_wait}
    if options.engine == "transformers":
        return TransformersServer(model, **common)
    arguments = ["--middleware", MIDDLEWARE]
    if options.model:
        arguments += ["--max-model-len", str(sum(_lengths(options)) + CHAT_TOKENS)]
        # The toy's steps need no graphs; a GPU's do.
        arguments += ["--no-enforce-eager"] if cuda_available() else []
    return VllmServer(model, name=model.name, extra_args=arguments, **common)


def _show_wait(elapsed_s: float) -> None:
    # One line that counts on a terminal, a line every ten seconds in a log file.
    if sys.stderr.isatty():
        print(f"\rwaiting for the server: {elapsed_s:.0f} s ", end="", file=sys.stderr, flush=True)
    elif elapsed_s % 10.0 < 0.25:
        print(f"waiting for the server: {elapsed_s:.0f} s", file=sys.stderr, flush=True)


def _drive(server: Server, model: Path, options: argparse.Namespace) -> Result:
    requests = _traffic(options)
    trace = conversation_quantiles()
    print(
        f"\nreplaying {len(requests)} requests at {options.pace:g} times the pace of the trace "
        f"({trace.rows} conversations, {trace.source}), longest prompt and answer "
        f"{' and '.join(map(str, _lengths(options)))} tokens",
        flush=True,
    )
    prompts, url = Prompts(model, options.seed), server.url
    started = time.monotonic()
    with Watch(url) as watch:
        answers = asyncio.run(
            replay(server, requests, prompts, pace=options.pace, at_once=options.at_once)
        )
        seconds = time.monotonic() - started
        time.sleep(SETTLING_S)
    records = [
        None if answer.response_id is None else fetch_record(url, answer.response_id)
        for answer in answers
    ]
    return Result(answers, records, [*watch.scrapes, scrape(url)], seconds)


def _show(result: Result, stub: StubPower | None, options: argparse.Namespace) -> list[str]:
    last = result.last
    print(f"\n{table.request_table(result.answers, result.records)}\n")
    print(f"{table.account_table(last)}\n")
    print(f"{len(result.answers)} requests in {figure(result.seconds)} s")
    print(table.headers_line(result.answers))
    print(table.records_line(result.records, last))
    failures = table.problems(result.answers, result.records, last)
    if stub is not None:
        lines, wrong = stub.compare(last)
        print("\n".join(lines))
        failures += wrong
    image = options.out / "power.png"
    picture.draw(image, result.scrapes, result.answers, _title(last, options))
    print(f"picture: {image}")
    print(f"\n{table.estimate_table(result.records)}")
    print(f"{table.error_note(result.records)}\n")
    print(f"{table.grams_table(result.records)}\n")
    print(table.balance_line(last))
    for failure in failures:
        print(f"NOT AS IT SHOULD BE: {failure}", file=sys.stderr)
    return failures


def _title(last: Scrape, options: argparse.Namespace) -> str:
    source = "/".join(last.sources) or "unknown"
    gpus = ", ".join(last.gpus) or "no GPU"
    power = f"power of {gpus}, {source} (--power {options.power})"
    return f"{options.model or MODEL_NAME} on real {options.engine}: {power}"


def _keep(server: Server, result: Result) -> None:
    print(_invitation(server, result), flush=True)
    try:
        server.process.wait()
        print(f"the server ended by itself; see {server.log}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nstopping the server")


def _invitation(server: Server, result: Result) -> str:
    url = server.url
    response_ids = [answer.response_id for answer in result.answers if answer.response_id]
    chat = {
        "model": server.model_name,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 40,
    }
    post = f"curl -i {url}/v1/chat/completions -H 'Content-Type: application/json' -d"
    estimate = f"curl {url}/v1/carbon/estimate -H 'Content-Type: application/json' -d"
    return "\n".join(
        [
            f"\nthe server stays at {url} (Ctrl-C ends it); try",
            f"  {post} '{json.dumps(chat)}'",
            f"  {post} '{json.dumps({**chat, 'stream': True})}'",
            f"  {estimate} '{json.dumps(chat)}'",
            f"  curl {url}/v1/carbon/requests/{response_ids[-1] if response_ids else 'ID'}",
            f"  curl -s {url}/metrics | grep llm_carbon_meter",
        ]
    )


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: with its server."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
