"""``GET /v1/carbon/requests/{id}`` and ``POST /v1/carbon/estimate``: routes of the server's own
application, so inside its authentication. Errors have the OpenAI shape."""

import asyncio
import reprlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llm_carbon_meter.exporters.headers import estimate_json
from llm_carbon_meter.frontend.exchanges import bounded_id
from llm_carbon_meter.frontend.frontend_meter import MOST_FOUND, FrontendMeter
from llm_carbon_meter.frontend.sums import sum_estimates
from llm_carbon_meter.frontend.tenants import RawHeaders
from llm_carbon_meter.predictor.served import Prompt
from llm_carbon_meter.records import EnergyEstimate, EstimateQuery, MeterError

MAX_BODY: Final = 1_000_000
"""Bytes of an estimate's body."""
MAX_SEQUENCES: Final = 1024
"""Prompts of an estimate's body, and answers to each."""
MAX_TOKENS: Final = 10_000_000
"""Of a prompt or an answer, where the model's context is not known: no model's is longer."""
HOLD_S: Final = 0.0005
"""Work of ours after which others have the event loop; the piece under way takes as long again."""

EXPECTED_PROMPT: Final = "expected text, token ids, or a list of them"

ReadPrompts = Callable[[Request, Mapping[str, Any]], Awaitable[list[Prompt]]]
"""Gives each prompt of a chat or completion body, in tokens."""
Tokenize = Callable[[Mapping[str, Any]], Awaitable[Prompt]]
"""Of one conversation (``messages``, ``tools``) or one text (``prompt``)."""


class ServedModels(NamedTuple):
    """What a server answers for; nothing where nobody knows all of it."""

    names: Collection[str] = ()
    """Of its model."""
    adapters: Collection[str] = ()
    """Of LoRA."""


Served = Callable[[Request], ServedModels]
TOGETHER: Final = 16
"""Requests that are estimated together: of many, each takes a tenth of one alone."""


class RefusedError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind

    def response(self) -> JSONResponse:
        """As OpenAI's API words errors."""
        error = {"message": str(self), "type": self.kind, "param": None, "code": self.status}
        return JSONResponse({"error": error}, status_code=self.status)


class Turns:
    """Gives others the event loop, first at once, then whenever it was ours for `HOLD_S`."""

    def __init__(self) -> None:
        self._since_s = 0.0

    async def give(self) -> None:
        """Between two pieces of work."""
        if time.perf_counter() - self._since_s > HOLD_S:
            await asyncio.sleep(0)
            self._since_s = time.perf_counter()


async def prompts_of(body: Mapping[str, Any], tokenize: Tokenize) -> list[Prompt]:
    """Each prompt of a chat or completion body.

    Args:
        body: with ``messages`` or ``prompt``.
        tokenize: of the server.

    Raises:
        RefusedError: there is no prompt in it.
    """
    if "messages" in body:
        chat = {"messages": body["messages"], "tools": body.get("tools")}
        return [await _tokens(tokenize, chat)]
    prompt = body["prompt"]
    entries = prompt if isinstance(prompt, list) and not _are_token_ids(prompt) else [prompt]
    if len(entries) > MAX_SEQUENCES:
        raise RefusedError(400, f"`prompt` holds {len(entries)} prompts, at most {MAX_SEQUENCES}")
    read, turns = list[Prompt](), Turns()
    for entry in entries:
        if isinstance(entry, str):
            read.append(await _tokens(tokenize, {"prompt": entry}))
        elif _are_token_ids(entry):
            read.append(Prompt(len(entry), entry))
        else:
            found = type(entry).__name__ if entry else "nothing"
            raise RefusedError(400, f"`prompt` holds {found}; {EXPECTED_PROMPT}")
        await turns.give()
    if not read:
        raise RefusedError(400, f"`prompt` is empty; {EXPECTED_PROMPT}")
    return read


async def _tokens(tokenize: Tokenize, query: Mapping[str, Any]) -> Prompt:
    try:
        return await tokenize(query)
    except RefusedError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {reprlib.repr(str(error))}"
        raise RefusedError(400, f"the server cannot read the body: {reason}") from error


def _are_token_ids(entry: Any) -> bool:
    return isinstance(entry, list) and bool(entry) and all(type(one) is int for one in entry)


class CarbonRoutes:
    """The two endpoints.

    Args:
        meter: of this process.
        read_prompts: tokenises a body as the server would.
        served: the models that may be asked for.
    """

    def __init__(self, meter: FrontendMeter, read_prompts: ReadPrompts, served: Served) -> None:
        self._meter = meter
        self._read_prompts = read_prompts
        self._served = served

    async def request(self, request: Request) -> Response:
        """Look a record up by an internal or external id."""
        try:
            return self._found(request.path_params["request_id"], request.headers.raw)
        except RefusedError as refusal:
            return refusal.response()

    def _found(self, request_id: str, headers: RawHeaders) -> Response:
        records = self._meter.find(request_id, headers)
        if not records:
            raise RefusedError(
                404,
                f"no record of request {bounded_id(request_id)!r}: not known, or older than the "
                f"{self._meter.config.records} that are kept",
                "not_found_error",
            )
        if len(records) > 1:
            number = f"{len(records)} or more" if len(records) == MOST_FOUND else len(records)
            raise RefusedError(
                409,
                f"{number} requests have the id {bounded_id(request_id)!r}; ask for one of "
                + ", ".join(records),
                "conflict_error",
            )
        return Response(next(iter(records.values())), media_type="application/json")

    async def estimate(self, request: Request) -> Response:
        """Estimate a chat or completion body, or plain token counts; nothing is generated."""
        try:
            body = _parse(await _read(request))
            estimate = await self._estimate(request, body)
        except RefusedError as refusal:
            return refusal.response()
        except MeterError as error:
            return RefusedError(400, str(error)).response()
        return JSONResponse({"model": self._meter.model_name, "estimate": estimate_json(estimate)})

    async def _estimate(self, request: Request, body: Mapping[str, Any]) -> EnergyEstimate:
        """Of all prompts together."""
        if not self._meter.estimates_requests:
            raise RefusedError(501, "this model's architecture has no estimate")
        adapter = self._adapter(request, body.get("model"))
        output, sequences = _output_tokens(body), _whole(body, "n", MAX_SEQUENCES, 1)
        prompts = await self._prompts(request, body)
        concurrency = self._meter.concurrency.with_more(sequences * len(prompts))
        queries, turns = list[EstimateQuery](), Turns()
        for prompt in prompts:
            queries.append(
                self._meter.query(
                    replace(prompt, adapter=adapter),
                    output.at_most,
                    concurrency=concurrency,
                    num_sequences=sequences,
                    output_tokens=output.exactly,
                )
            )
            await turns.give()
        return sum_estimates(await self._estimates(queries, turns))

    def _adapter(self, request: Request, name: Any) -> str:
        """That is asked for; empty for the model itself."""
        served = self._served(request)
        names = [*served.names, *served.adapters]
        if name is not None and names and name not in names:
            raise RefusedError(
                400, f"`model` is {reprlib.repr(name)}; this server has {', '.join(names)}"
            )
        return name if name in served.adapters else ""

    async def _prompts(self, request: Request, body: Mapping[str, Any]) -> list[Prompt]:
        if "prompt_tokens" in body:
            return [Prompt(_whole(body, "prompt_tokens", MAX_TOKENS))]
        if "messages" in body or "prompt" in body:
            return await self._read_prompts(request, body)
        raise RefusedError(
            400, "give `messages`, `prompt` or `prompt_tokens`, and `max_tokens` or `output_tokens`"
        )

    async def _estimates(
        self, queries: Sequence[EstimateQuery], turns: Turns
    ) -> list[EnergyEstimate]:
        """Of equal ones one is estimated."""
        different = list(dict.fromkeys(queries))
        made: dict[EstimateQuery, EnergyEstimate] = {}
        for first in range(0, len(different), TOGETHER):
            some = different[first : first + TOGETHER]
            made.update(zip(some, self._meter.estimates(some), strict=True))
            await turns.give()
        return [made[query] for query in queries]


async def metrics(_request: Request) -> Response:
    """Prometheus' text, for servers that have none."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


class _Output(NamedTuple):
    at_most: int | None
    exactly: int | None


def _output_tokens(body: Mapping[str, Any]) -> _Output:
    limits = ("max_completion_tokens", "max_tokens")
    at_most = [_whole(body, name, MAX_TOKENS) for name in limits if body.get(name) is not None]
    exactly = None
    if body.get("output_tokens") is not None:
        exactly = _whole(body, "output_tokens", MAX_TOKENS)
    return _Output(at_most[0] if at_most else None, exactly)


def _whole(body: Mapping[str, Any], name: str, most: int, default: int | None = None) -> int:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise RefusedError(
            400, f"`{name}` is {reprlib.repr(value)}; expected a whole number of 1 to {most}"
        )
    return value


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise RefusedError(413, f"the body is larger than {MAX_BODY} bytes")
    return bytes(body)


def _parse(data: bytes) -> Mapping[str, Any]:
    try:
        body = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise RefusedError(400, f"the body is a {type(body).__name__}; expected an object")
    return body
