"""Ten configurations that do not fit: one by one, in a table, and on a server's route."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from llm_carbon_meter.cli import main
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.concurrency import Concurrency
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.servers.shared.routes import CarbonRoutes, ServedModels


class Unfit(NamedTuple):
    """A configuration, why it is refused, and what the route of such a server says."""

    model: str
    gpu: str
    num_gpus: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    words: str
    on_the_route: str


WEIGHTS: Final = "it runs, so something is not counted"
UNFIT: Final = (
    Unfit("Llama-3.1-70B", "H100", 1, 1, 1000, 500, "it fits on 2 GPUs", WEIGHTS),
    Unfit("Llama-3.1-405B", "A100-40GB", 8, 1, 1000, 500, "it fits on 32 GPUs", WEIGHTS),
    Unfit("DeepSeek-V3", "H100", 8, 1, 1000, 500, "it fits on 16 GPUs", WEIGHTS),
    Unfit("Mixtral-8x22B", "A100", 2, 1, 1000, 500, "on 4 GPUs or with 8-bit", WEIGHTS),
    Unfit("Llama-3.1-8B", "T4", 1, 1, 1000, 500, "on 2 GPUs or with 8-bit", WEIGHTS),
    Unfit("gpt-oss-120b", "L40S", 1, 1, 1000, 500, "it fits on 2 GPUs", WEIGHTS),
    Unfit(
        *("Llama-3.1-8B", "L4", 1, 1, 60_000, 300),
        "no such request of Llama-3.1-8B fits on 1 x L4",
        "a cache of 60000 prompt tokens and an answer does not fit by the data sheet",
    ),
    Unfit(
        *("Llama-3.1-8B", "H100", 1, 400, 1500, 300),
        "concurrency is 400; at most 278 such requests",
        "400 at once, counted as the 289 that the cache holds by the data sheet",
    ),
    Unfit(
        *("Qwen3-32B", "H100", 1, 64, 8000, 1000),
        "concurrency is 64; at most 4 such requests",
        "64 at once, counted as the 4 that the cache holds by the data sheet",
    ),
    Unfit(
        *("Llama-2-7B", "H100", 1, 1, 4000, 500),
        "4000 prompt and 500 output tokens are 4500; the context of Llama-2-7B holds 4096",
        "the context of Llama-2-7B holds 4096",
    ),
)


@pytest.mark.parametrize("unfit", UNFIT)
@pytest.mark.parametrize("method", ["gnn", "flop"])
def test_one_request_is_refused(
    unfit: Unfit, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says why, and no figure, whatever the method."""
    options = {
        "--method": method,
        "--model": unfit.model,
        "--gpu": unfit.gpu,
        "--num-gpus": unfit.num_gpus,
        "--concurrency": unfit.concurrency,
        "--prompt-tokens": unfit.prompt_tokens,
        "--output-tokens": unfit.output_tokens,
    }
    assert main(["estimate", *(str(word) for pair in options.items() for word in pair)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert unfit.words in printed.err
    assert printed.err.count("\n") == 1


def test_a_table_refuses_its_rows_and_answers_the_others(tmp_path: Path) -> None:
    """Each for its own reason; what fits has a figure, and whether it was measured."""
    fits = UNFIT[0]._replace(num_gpus=4)
    unmeasured = fits._replace(gpu="B200")
    columns = ("model_config", *Unfit._fields[1:6], "dtype", "engine", "engine_version")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([*one[:6], "", "vllm", ""] for one in (*UNFIT, fits, unmeasured))
    out = tmp_path / "out.csv"
    assert main(["estimate", "--input", str(tmp_path / "rows.csv"), "--output", str(out)]) == 1
    with out.open(newline="") as file:
        *refused, measured, new = csv.DictReader(file)
    for row, unfit in zip(refused, UNFIT, strict=True):
        assert unfit.words in row["error"]
        assert row["energy_wh"] == row["measured"] == row["out_of_domain"] == ""
    assert (measured["measured"], measured["out_of_domain"]) == ("yes", "")
    assert (new["measured"], new["out_of_domain"]) == ("no", "GPU B200 not measured")
    assert float(measured["energy_wh"]) > 0 < float(new["energy_wh"])


def meter_of(unfit: Unfit, num_stages: int = 1) -> FrontendMeter:
    """An API server of that deployment, with all but one of its requests under way."""
    return FrontendMeter(
        Config(),
        unfit.model,
        built_in_model(unfit.model),
        {
            "engine": "vllm",
            "gpu": unfit.gpu,
            "tensor_parallel_size": unfit.num_gpus,
            "pipeline_parallel_size": num_stages,
        },
        index=0,
        concurrency=Concurrency(0, lambda: unfit.concurrency - 1, most=None),
        tracing=False,
        share=lambda *_: None,
        faults=Faults(),
        registry=CollectorRegistry(),
    )


async def asked(unfit: Unfit, num_stages: int = 1) -> tuple[int, Mapping[str, Any]]:
    """Status and body of ``POST /v1/carbon/estimate``."""

    async def no_prompts(*_: Any) -> Any:
        raise AssertionError

    app = Starlette()
    routes = CarbonRoutes(meter_of(unfit, num_stages), no_prompts, lambda _: ServedModels())
    app.router.add_route("/v1/carbon/estimate", routes.estimate, ["POST"])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        body = {"prompt_tokens": unfit.prompt_tokens, "max_tokens": unfit.output_tokens}
        answer = await client.post("/v1/carbon/estimate", json=body)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("unfit", UNFIT)
async def test_the_route_says_what_does_not_fit(unfit: Unfit) -> None:
    """What runs all the same is flagged; what the server would refuse is 400, as OpenAI has it."""
    status, body = await asked(unfit)
    if unfit.prompt_tokens + unfit.output_tokens > built_in_model(unfit.model).max_context:
        assert status == 400
        assert unfit.on_the_route in body["error"]["message"]
        assert body["error"]["type"] == "invalid_request_error"
    else:
        assert status == 200
        assert unfit.on_the_route in body["estimate"]["out_of_domain"]


async def test_the_route_counts_those_that_wait_in_no_batch() -> None:
    """400 at once cost each of them what the largest batch costs, which is less than in a smaller.

    ``max_tokens`` only bounds the answer: more fit than where all are that long.
    """
    crowded = UNFIT[7]
    (_, crowd), (_, full), (_, few) = [
        await asked(crowded._replace(concurrency=number)) for number in (400, 289, 200)
    ]
    assert full["estimate"]["out_of_domain"] == few["estimate"]["out_of_domain"] == ""
    assert crowd["estimate"]["energy_wh"] == full["estimate"]["energy_wh"]
    assert full["estimate"]["energy_wh"] < few["estimate"]["energy_wh"]


async def test_stages_of_a_pipeline_share_the_weights() -> None:
    """70 billion on three stages of one H100 each fit, and nothing is said of their weights."""
    _, body = await asked(UNFIT[0], num_stages=3)
    assert body["estimate"]["out_of_domain"] == "3 pipeline stages counted as one"
