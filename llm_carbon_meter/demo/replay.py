"""Sends the trace's requests to the server through the official openai client."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from llm_carbon_meter.demo.trace import TraceRequest
from llm_carbon_meter.testing.servers import Server

HEADER_PREFIX: Final = "llm-carbon-"
_TIMEOUT_S: Final = 120.0
_MIN_WORD: Final = 4
NOT_SENT: Final = "not sent: the time was over"
"""The failure of a request that was too late."""
NOT_ANSWERED: Final = "given up: the time was over"
"""That of one whose answer was."""


def _nothing(_number: int, _answer: "Answer") -> None:
    pass


@dataclass(slots=True)
class Answer:
    """What the client saw of one request; times are of the monotonic clock."""

    kind: str
    streamed: bool
    started_s: float = 0.0
    first_token_s: float | None = None
    """Known for streams alone."""
    ended_s: float = 0.0
    response_id: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    """The meter's headers, names in lower case."""
    failure: str | None = None

    @property
    def label(self) -> str:
        """Kind and manner in a few letters."""
        return f"{self.kind}, stream" if self.streamed else self.kind


class Prompts:
    """Text of an exact number of tokens: words that the tokenizer knows as one token each."""

    def __init__(self, model: Path, seed: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        # In the byte-level alphabet \u0120 stands for a space.
        words = [
            " " + word[1:]
            for word in sorted(self._tokenizer.get_vocab())
            if word.startswith("\u0120") and word[1:].isalpha() and len(word) > _MIN_WORD
        ]
        # A token that only occurs inside longer words is split when it stands alone.
        self._words = np.array([word for word in words if self.count(word) == 1])
        self._random = np.random.default_rng(seed)
        self._chat_overhead = self.count("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n")

    def count(self, text: str) -> int:
        """The tokens of a text."""
        return len(self._tokenizer.encode(text).ids)

    def text(self, tokens: int) -> str:
        """Random words, one token each."""
        return "".join(self._random.choice(self._words, size=max(tokens, 1)))

    def chat(self, tokens: int) -> list[dict[str, str]]:
        """One user message that makes ``tokens`` with the template around it, where it can."""
        return [{"role": "user", "content": self.text(tokens - self._chat_overhead)}]


async def replay(
    server: Server,
    requests: Sequence[TraceRequest],
    prompts: Prompts,
    *,
    pace: float,
    at_once: int,
    until_s: float = math.inf,
    answered_within_s: float = math.inf,
    on_answer: Callable[[int, Answer], None] = _nothing,
) -> list[Answer]:
    """Send the requests at their time divided by ``pace``, at most ``at_once`` in flight.

    Args:
        server: that answers.
        requests: with their arrivals.
        prompts: makes their texts.
        pace: times the arrivals' own.
        at_once: in flight.
        until_s: monotonic; what would be sent later fails instead.
        answered_within_s: after that; an answer that takes longer is given up.
        on_answer: gets the place of each request whose answer has come.
    """
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    from llm_carbon_meter.progress import progress

    free = asyncio.Semaphore(at_once)
    started = time.monotonic()
    client = AsyncOpenAI(
        base_url=server.url + "/v1",
        api_key="none",
        max_retries=0,
        timeout=_TIMEOUT_S,
        http_client=DefaultAsyncHttpxClient(trust_env=False),  # the server is on this host
    )
    common = {"model": server.model_name, "extra_body": dict(server.exact)}
    async with client:
        with progress(total=len(requests), desc="requests", unit="request") as bar:

            async def one(number: int, request: TraceRequest) -> Answer:
                arrival = started + request.arrival_s / pace
                await asyncio.sleep(max(arrival - time.monotonic(), 0.0))
                async with free:
                    left_s = until_s - time.monotonic()
                    if left_s < 0:
                        return Answer("request", False, failure=NOT_SENT)
                    most_s = left_s + answered_within_s
                    try:
                        async with asyncio.timeout(most_s if most_s < math.inf else None):
                            answer = await _send(client, common, number, request, prompts)
                    except TimeoutError:
                        return Answer("request", False, failure=NOT_ANSWERED)
                on_answer(number, answer)
                bar.update()
                return answer

            return await asyncio.gather(*(one(i, r) for i, r in enumerate(requests)))


async def _send(
    client: Any, common: Mapping[str, Any], number: int, request: TraceRequest, prompts: Prompts
) -> Answer:
    from openai import OpenAIError

    # Every combination of chat or completion, stream or not, in turn.
    answer = Answer(kind=("chat", "completion")[number // 2 % 2], streamed=bool(number % 2))
    body: dict[str, Any] = {**common, "max_tokens": request.output_tokens}
    if answer.streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if answer.kind == "chat":
        body["messages"] = prompts.chat(request.prompt_tokens)
        create = client.chat.completions.with_raw_response.create
    else:
        body["prompt"] = prompts.text(request.prompt_tokens)
        create = client.completions.with_raw_response.create
    answer.started_s = time.monotonic()
    try:
        await _receive(await create(**body), answer)
    except OpenAIError as error:
        answer.failure = str(error)
    answer.ended_s = time.monotonic()
    return answer


async def _receive(raw: Any, answer: Answer) -> None:
    answer.headers = {
        name.lower(): value
        for name, value in raw.headers.items()
        if name.lower().startswith(HEADER_PREFIX)
    }
    parsed = raw.parse()
    if not answer.streamed:
        _note(parsed, answer)
        return
    async for chunk in parsed:
        if answer.first_token_s is None:
            answer.first_token_s = time.monotonic()
        _note(chunk, answer)


def _note(part: Any, answer: Answer) -> None:
    answer.response_id = part.id
    if part.usage is not None:
        answer.prompt_tokens = part.usage.prompt_tokens
        answer.output_tokens = part.usage.completion_tokens
