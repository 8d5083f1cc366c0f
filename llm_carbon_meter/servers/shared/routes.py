"""``GET /v1/carbon/requests/{id}`` and ``POST /v1/carbon/estimate``: routes of the server's own
application, so inside its authentication. Errors have the OpenAI shape."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llm_carbon_meter.exporters.headers import estimate_json
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.frontend.sums import sum_estimates
from llm_carbon_meter.predictor.served import Prompt
from llm_carbon_meter.records import EnergyEstimate, MeterError

MAX_BODY: Final = 1_000_000
"""Bytes of an estimate's body."""

EXPECTED_PROMPT: Final = "expected text, token ids, or a list of them"

ReadPrompts = Callable[[Request, Mapping[str, Any]], Awaitable[list[Prompt]]]
"""Gives each prompt of a chat or completion body, in tokens."""
TOGETHER: Final = 16
"""Prompts of a list that are read or estimated before others have the event loop again."""


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


async def prompts_of(
    body: Mapping[str, Any], tokenize: Callable[[Mapping[str, Any]], Awaitable[Prompt]]
) -> list[Prompt]:
    """Each prompt of a chat or completion body.

    Args:
        body: with ``messages`` or ``prompt``.
        tokenize: one conversation (``messages``, ``tools``) or one text (``prompt``).

    Raises:
        RefusedError: there is no prompt in it.
    """
    if "messages" in body:
        return [await tokenize({"messages": body["messages"], "tools": body.get("tools")})]
    prompt = body["prompt"]
    entries = prompt if isinstance(prompt, list) and not _are_token_ids(prompt) else [prompt]
    read: list[Prompt] = []
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, str):
            read.append(await tokenize({"prompt": entry}))
        elif _are_token_ids(entry):
            read.append(Prompt(len(entry), entry))
        else:
            found = type(entry).__name__ if entry else "nothing"
            raise RefusedError(400, f"`prompt` holds {found}; {EXPECTED_PROMPT}")
        if number % TOGETHER == 0:
            await asyncio.sleep(0)
    if not read:
        raise RefusedError(400, f"`prompt` is empty; {EXPECTED_PROMPT}")
    return read


def _are_token_ids(entry: Any) -> bool:
    return isinstance(entry, list) and bool(entry) and all(type(one) is int for one in entry)


class CarbonRoutes:
    """The two endpoints.

    Args:
        meter: of this process.
        read_prompts: tokenises a body as the server would.
    """

    def __init__(self, meter: FrontendMeter, read_prompts: ReadPrompts) -> None:
        self._meter = meter
        self._read_prompts = read_prompts

    async def request(self, request: Request) -> Response:
        """Look a record up by an internal or external id."""
        try:
            return self._found(request.path_params["request_id"])
        except RefusedError as refusal:
            return refusal.response()

    def _found(self, request_id: str) -> Response:
        records = self._meter.find(request_id)
        if not records:
            raise RefusedError(
                404,
                f"no record of request {request_id!r}: not known, or older than the "
                f"{self._meter.config.records} that are kept",
                "not_found_error",
            )
        if len(records) > 1:
            raise RefusedError(
                409,
                f"{len(records)} requests have the id {request_id!r}; ask for one of "
                + ", ".join(records),
                "conflict_error",
            )
        return Response(next(iter(records.values())), media_type="application/json")

    async def estimate(self, request: Request) -> Response:
        """Estimate a chat or completion body, or plain token counts; nothing is generated."""
        try:
            body = _parse(await _read(request))
            estimates = await self._estimates(request, body)
        except RefusedError as refusal:
            return refusal.response()
        except MeterError as error:
            return RefusedError(400, str(error)).response()
        if not estimates:
            return RefusedError(501, "this model's architecture has no estimate").response()
        return JSONResponse(
            {"model": self._meter.model_name, "estimate": estimate_json(sum_estimates(estimates))}
        )

    async def _estimates(self, request: Request, body: Mapping[str, Any]) -> list[EnergyEstimate]:
        """Of each prompt; none where nothing can be said about this model."""
        output = _output_tokens(body)
        sequences = _whole(body, "n", 1)
        if "prompt_tokens" in body:
            prompts = [Prompt(_whole(body, "prompt_tokens"))]
        elif "messages" in body or "prompt" in body:
            prompts = await self._read_prompts(request, body)
        else:
            raise RefusedError(
                400,
                "give `messages`, `prompt` or `prompt_tokens`, and `max_tokens` or `output_tokens`",
            )
        concurrency = self._meter.concurrency.with_more(sequences * len(prompts))
        estimates = []
        for first in range(0, len(prompts), TOGETHER):
            estimates += self._meter.estimate(
                prompts[first : first + TOGETHER],
                output.at_most,
                concurrency=concurrency,
                num_sequences=sequences,
                output_tokens=output.exactly,
            )
            await asyncio.sleep(0)
        return estimates


async def metrics(_request: Request) -> Response:
    """Prometheus' text, for servers that have none."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


class _Output(NamedTuple):
    at_most: int | None
    exactly: int | None


def _output_tokens(body: Mapping[str, Any]) -> _Output:
    at_most = next(
        (
            _whole(body, name)
            for name in ("max_completion_tokens", "max_tokens")
            if body.get(name) is not None
        ),
        None,
    )
    exactly = _whole(body, "output_tokens") if body.get("output_tokens") is not None else None
    return _Output(at_most, exactly)


def _whole(body: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RefusedError(400, f"`{name}` is {value!r}; expected a whole number of at least 1")
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
