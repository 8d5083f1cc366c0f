"""What the clients of every endpoint get: real servers, asked by the official clients.

``python -m tests.comparisons.endpoints`` writes the table into llm_carbon_meter/servers/README.md;
a slow test repeats it.
"""

import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import anthropic
import openai

from llm_carbon_meter.testing.nvml_stub import build
from llm_carbon_meter.testing.servers import MODEL_NAME
from llm_carbon_meter.testing.tiny_model import make_tiny_model
from tests.support.documents import SERVERS, replaced
from tests.support.servers.metered import MIDDLEWARE, Metered, StartServer, starter
from tests.support.servers.proxied import Sidecar

PART: Final = "endpoints"
TOKENS: Final = 5
SAYS: Final = [{"role": "user", "content": "hello there"}]
STORE: Final = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
STRANGE_ID: Final = "a/b c?d"


class Told(NamedTuple):
    """What a client reads in an answer."""

    id: str
    prompt_tokens: int | None = None
    """As the usage has them; None where the answer has none."""
    output_tokens: int | None = None


class Clients:
    """The official ones, of a server."""

    def __init__(self, url: str) -> None:
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.anthropic = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
        self._url = url

    def raw(self, path: str, **body: Any) -> Mapping[str, Any]:
        """For endpoints that no official client has."""
        answer = self.openai.with_options(base_url=self._url).post(
            path, body={"model": MODEL_NAME, **body}, cast_to=object
        )
        found: Mapping[str, Any] = answer
        return found


Ask = Callable[[Clients], Told]


def _usage(answer: Any) -> Told:
    usage = answer.usage
    names = ("prompt_tokens", "completion_tokens")
    if not hasattr(usage, names[0]):
        names = ("input_tokens", "output_tokens")
    return Told(answer.id, *(getattr(usage, name) for name in names))


def _chat(**more: Any) -> Ask:
    def ask(clients: Clients) -> Told:
        return _usage(
            clients.openai.chat.completions.create(
                model=MODEL_NAME, messages=SAYS, max_tokens=TOKENS, **more
            )
        )

    return ask


def _chat_stream(clients: Clients) -> Told:
    chunks = clients.openai.chat.completions.create(
        model=MODEL_NAME,
        messages=SAYS,
        max_tokens=TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    return _usage(list(chunks)[-1])


def _completion(prompt: Any = "hi", **more: Any) -> Ask:
    def ask(clients: Clients) -> Told:
        return _usage(
            clients.openai.completions.create(
                model=MODEL_NAME, prompt=prompt, max_tokens=TOKENS, **more
            )
        )

    return ask


def _response(**more: Any) -> Ask:
    def ask(clients: Clients) -> Told:
        answer = clients.openai.responses.create(
            model=MODEL_NAME, input="hi", max_output_tokens=TOKENS, **more
        )
        while answer.status in ("queued", "in_progress"):
            answer = clients.openai.responses.retrieve(answer.id)
        return _usage(answer)

    return ask


def _response_stream(**more: Any) -> Ask:
    def ask(clients: Clients) -> Told:
        events = clients.openai.responses.create(
            model=MODEL_NAME, input="hi", max_output_tokens=TOKENS, stream=True, **more
        )
        return _usage([event.response for event in events if hasattr(event, "response")][-1])

    return ask


def _message(clients: Clients) -> Told:
    return _usage(
        clients.anthropic.messages.create(model=MODEL_NAME, messages=SAYS, max_tokens=TOKENS)
    )


def _message_stream(clients: Clients) -> Told:
    with clients.anthropic.messages.stream(
        model=MODEL_NAME, messages=SAYS, max_tokens=TOKENS
    ) as stream:
        return _usage(stream.get_final_message())


def _raw(path: str, **body: Any) -> Ask:
    def ask(clients: Clients) -> Told:
        answer = clients.raw(path, **body)
        usage = answer.get("usage") or {}
        return Told(answer["id"], usage.get("prompt_tokens"), usage.get("completion_tokens", 0))

    return ask


def _embedding(texts: Any) -> Ask:
    def ask(clients: Clients) -> Told:
        answer = clients.openai.embeddings.create(model=MODEL_NAME, input=texts)
        return Told(answer.model_extra["id"], answer.usage.prompt_tokens, 0)

    return ask


BEAM: Final = {"n": 2, "extra_body": {"use_beam_search": True}}
GENERATING: Final[Sequence[tuple[str, str, Ask]]] = (
    ("`/v1/chat/completions`", "openai", _chat()),
    ("`/v1/chat/completions`, streamed", "openai", _chat_stream),
    ("`/v1/chat/completions`, `n` 2", "openai", _chat(n=2)),
    (
        f"`/v1/chat/completions`, `X-Request-Id: {STRANGE_ID}`",
        "openai",
        _chat(extra_headers={"X-Request-Id": STRANGE_ID}),
    ),
    (
        "`/v1/chat/completions/batch`, three chats",
        "(httpx)",
        _raw("/v1/chat/completions/batch", messages=[SAYS] * 3, max_tokens=TOKENS),
    ),
    ("`/v1/completions`", "openai", _completion()),
    ("`/v1/completions`, two prompts", "openai", _completion(["hi", "ho"])),
    ("`/v1/completions`, beam search of 2", "openai", _completion(**BEAM)),
    ("`/v1/responses`", "openai", _response()),
    ("`/v1/responses`, streamed", "openai", _response_stream()),
    ("`/v1/responses`, in the background", "openai", _response(background=True, store=True)),
    (
        "`/v1/responses`, in the background and streamed",
        "openai",
        _response_stream(background=True),
    ),
    ("`/v1/messages`", "anthropic", _message),
    ("`/v1/messages`, streamed", "anthropic", _message_stream),
    (
        "`/generative_scoring`, two items",
        "(httpx)",
        _raw("/generative_scoring", query="hi", items=["a", "b"], label_token_ids=[5, 6]),
    ),
)
POOLING: Final[Sequence[tuple[str, str, Ask]]] = (
    ("`/v1/embeddings`", "openai", _embedding("hi there")),
    ("`/v1/embeddings`, two texts", "openai", _embedding(["hi", "ho"])),
    ("`/pooling`", "(httpx)", _raw("/pooling", input="hi")),
    ("`/v1/score`, two pairs", "(httpx)", _raw("/v1/score", text_1="hi", text_2=["a", "b"])),
    ("`/v1/rerank`, two", "(httpx)", _raw("/v1/rerank", query="hi", documents=["a", "b"])),
)


class Row(NamedTuple):
    """What a client got; the fields are the table's columns."""

    metered_by: str
    endpoint: str
    client: str
    its_id: str
    engine_requests: str
    tokens_of_the_record: str
    tokens_of_the_usage: str
    outcome: str


def rows(by: str, metered: Metered, asks: Sequence[tuple[str, str, Ask]]) -> list[Row]:
    """Ask a server, and look each record up by the id that the client got."""
    clients = Clients(metered.url)
    return [_row(by, metered, name, client, ask(clients)) for name, client, ask in asks]


def _row(by: str, metered: Metered, name: str, client: str, told: Told) -> Row:
    record = metered.record(quote(told.id))
    assert record["energy_joules"] > 0.0
    return Row(
        by,
        name,
        client,
        f"`{told.id.rstrip('0123456789abcdef')}…`" if STRANGE_ID not in told.id else "its own",
        str(len(record["internal_ids"])),
        f"{record['prompt_tokens']} + {record['output_tokens']}",
        f"{told.prompt_tokens} + {told.output_tokens}",
        record["outcome"],
    )


def probe(start: StartServer) -> list[Row]:
    """The rows of both servers; every joule charged to requests is in one of their records."""
    hooked, proxied = [], []
    for arguments, asks in ((MIDDLEWARE, GENERATING), ((*MIDDLEWARE, *POOLS), POOLING)):
        with start(*arguments, environment=STORE) as metered:
            hooked += rows("hook", metered, asks)
            _check_sums(metered, len(asks))
            with Sidecar(metered.url, metered.request_log.parent) as sidecar:
                outside = replace(metered, server=sidecar)
                proxied += rows("sidecar", outside, [ask for ask in asks if ask[0] in OUTSIDE])
    return hooked + proxied


OUTSIDE: Final = (
    *("`/v1/chat/completions`", "`/v1/chat/completions`, streamed", "`/v1/completions`"),
    *("`/v1/responses`", "`/v1/responses`, streamed", "`/v1/messages`", "`/v1/messages`, streamed"),
    *("`/v1/embeddings`", "`/v1/score`, two pairs", "`/v1/rerank`, two"),
)
"""Endpoints that the proxy meters, too."""
POOLS: Final = ("--runner", "pooling")


def _check_sums(metered: Metered, asked: int) -> None:
    logged, accounts = metered.logged(), metered.accounts()
    assert len(logged) == metered.metric("llm_carbon_meter_requests_total") == asked
    charged = sum(accounts[name] for name in ("prefill", "decode", "recompute", "waste"))
    assert abs(sum(line["energy_joules"] for line in logged) / charged - 1) < 1e-6


def table(found: Sequence[Row]) -> str:
    """All rows under their heads."""
    heads = [name.replace("_", " ") for name in Row._fields]
    lines = [heads, ["---"] * len(heads), *found]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Ask every endpoint and write the table."""
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), itertools.count()

        def new_folder(kind: str) -> Path:
            made = folder / f"{kind}-{next(numbers)}"
            made.mkdir(mode=0o700)
            return made

        model, stub = make_tiny_model(folder / "tiny-qwen2"), build(folder / "nvml")
        text = table(probe(starter(model, stub, new_folder)))
    SERVERS.write_text(replaced(SERVERS.read_text("utf-8"), PART, text), "utf-8")
    print(json.dumps(text.splitlines(), indent=1))


if __name__ == "__main__":
    main()
