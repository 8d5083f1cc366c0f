"""What our routes take and answer, for servers that describe themselves in OpenAPI (FastAPI's).

FastAPI has pydantic; other servers need neither.
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from llm_carbon_meter.servers.shared.routes import MAX_SEQUENCES, MAX_TOKENS

TOKENS: Final = {"type": "integer", "minimum": 1, "maximum": MAX_TOKENS}
IDS: Final = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
TEXT: Final = {"type": "string"}
BODY: Final[Mapping[str, Any]] = {
    "type": "object",
    "description": "A chat, a completion, or plain token counts.",
    "anyOf": [{"required": [name]} for name in ("messages", "prompt", "prompt_tokens")],
    "properties": {
        "model": {**TEXT, "description": "one that the server has"},
        "messages": {"type": "array", "items": {"type": "object"}},
        "prompt": {
            "oneOf": [
                TEXT,
                IDS,
                {"type": "array", "minItems": 1, "maxItems": MAX_SEQUENCES, "items": TEXT},
                {"type": "array", "minItems": 1, "maxItems": MAX_SEQUENCES, "items": IDS},
            ]
        },
        "prompt_tokens": {**TOKENS, "description": "instead of messages or prompt"},
        "max_tokens": {**TOKENS, "description": "of each answer, at most"},
        "max_completion_tokens": {**TOKENS, "description": "the same"},
        "output_tokens": {**TOKENS, "description": "of each answer, where they are known"},
        "n": {"type": "integer", "minimum": 1, "maximum": MAX_SEQUENCES},
    },
}


class Figures(BaseModel):
    """Joules by account, each beside its watt-hours, and grams."""

    model_config = ConfigDict(extra="allow")

    energy_joules: float
    energy_wh: float
    operational_grams: float
    embodied_grams: float | None


class Estimate(Figures):
    """Before a request runs."""

    method: str
    low_joules: float
    high_joules: float
    output_tokens: float
    cached_tokens: float
    out_of_domain: str
    calibration: float
    calibrated: Figures


class EstimateAnswer(BaseModel):
    """Of all prompts and answers together."""

    model: str
    estimate: Estimate


class Record(BaseModel):
    """A request, in flight or finished; one of which nothing was heard yet has no figures."""

    model_config = ConfigDict(extra="allow")

    id: str
    external_ids: list[str]
    internal_ids: list[str]
    model: str
    status: str
    source: str | None = None
    quality: str | None = None
    outcome: str | None = None
    energy_joules: float | None = None
    energy_wh: float | None = None
    operational_grams: float | None = None
    uncertainty: float | None = None
    provisional: Figures | None
    estimate: Estimate | None
    conditional: Estimate | None


class Refusal(BaseModel):
    """Why there is no answer."""

    message: str
    type: str
    param: str | None
    code: int


class Refused(BaseModel):
    """As OpenAI's API words errors."""

    error: Refusal


REFUSED: Final = {"model": Refused}
RECORD: Final[Mapping[str, Any]] = {
    "summary": "What a request used",
    "tags": ["carbon"],
    "response_model": None,
    "responses": {200: {"model": Record}, 404: {"description": "No such record"}, 409: REFUSED},
    "openapi_extra": {
        "parameters": [
            {
                "name": "request_id",
                "in": "path",
                "required": True,
                "schema": TEXT,
                "description": "in the answer, X-Request-Id, or the engine's own",
            }
        ]
    },
}
ESTIMATE: Final[Mapping[str, Any]] = {
    "summary": "What a request would use; nothing is generated",
    "tags": ["carbon"],
    "response_model": None,
    "responses": {200: {"model": EstimateAnswer}, 400: REFUSED, 413: REFUSED, 501: REFUSED},
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": BODY}},
        }
    },
}
