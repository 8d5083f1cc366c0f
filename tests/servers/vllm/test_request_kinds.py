"""What a request brings besides its length: cached prompts, several answers, adapters, images."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.servers.vllm.frontend_hooks import prompt_of
from llm_carbon_meter.testing.servers import MODEL_NAME
from tests.support.servers.adapters import make_adapter
from tests.support.servers.completions import complete
from tests.support.servers.metered import Metered, StartServer

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def metered(
    start_server: StartServer, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Metered]:
    """A server with an adapter and a prefix cache."""
    adapter = make_adapter(tmp_path_factory.mktemp("lora") / "adapter", tiny_model)
    lora = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"mine={adapter}")
    with start_server(*lora) as metered:
        yield metered


def estimate(metered: Metered, **body: Any) -> dict[str, Any]:
    """Of the route, for answers of eight tokens."""
    status, _, answer = metered.http("/v1/carbon/estimate", {"max_tokens": 8, **body})
    assert status == 200, answer
    found: dict[str, Any] = json.loads(answer)["estimate"]
    return found


def test_what_the_prefix_cache_will_hold_is_known_before(metered: Metered) -> None:
    """Of a prompt that comes again, of one that begins alike, and of none that is new."""
    prompt = list(range(100, 500))
    first, again = (complete(metered, prompt, 8) for _ in range(2))
    alike = complete(metered, prompt[:200] + [9] * 200, 8)
    for record, cached in ((first, 0), (again, 384), (alike, 192)):
        assert record["estimate"]["cached_tokens"] == record["cached_tokens"] == cached
    figures = [record["estimate"]["prefill_joules"] for record in (first, alike, again)]
    assert figures == sorted(figures, reverse=True)
    # The route looks, and leaves nothing behind.
    assert estimate(metered, prompt=prompt)["cached_tokens"] == 384
    other = list(range(500, 900))
    assert [estimate(metered, prompt=other)["cached_tokens"] for _ in range(2)] == [0, 0]


def test_text_is_looked_up_as_the_server_reads_it(metered: Metered) -> None:
    """A chat that comes again, by the tokens of its template."""
    chat = {"messages": [{"role": "user", "content": "say it again and again " * 20}]}
    body = {"model": MODEL_NAME, "max_tokens": 8, **chat}
    assert metered.http("/v1/chat/completions", body)[0] == 200
    found = estimate(metered, **chat)
    _, _, answer = metered.http("/v1/chat/completions", body)
    assert found["cached_tokens"] == metered.record(json.loads(answer)["id"])["cached_tokens"] > 0


def test_several_answers_share_their_prompt(metered: Metered) -> None:
    """Three answers: two find the prompt of the first, and the route says so before."""
    prompt = [11] * 300
    before = estimate(metered, prompt=prompt, n=3)
    record = complete(metered, prompt, 8, n=3)
    assert before["cached_tokens"] == record["cached_tokens"] == 2 * 288
    assert record["estimate"]["cached_tokens"] == 2 * 288
    assert record["estimate"]["output_tokens"] == pytest.approx(24, rel=0.01)
    assert record["output_tokens"] == 24


def test_a_beam_search_is_one_request(metered: Metered) -> None:
    """It is found under the id of its answer; its single tokens teach no length of answers."""
    before = estimate(metered, prompt_tokens=10, max_tokens=200)["output_tokens"]
    for _ in range(40):
        record = complete(metered, [12] * 40, 3, n=2, use_beam_search=True)
    assert len(record["internal_ids"]) > 2
    assert record["estimate"]["cached_tokens"] == record["cached_tokens"]
    after = estimate(metered, prompt_tokens=10, max_tokens=200)["output_tokens"]
    assert after == pytest.approx(before, rel=0.2)


def test_an_adapter_is_named(metered: Metered) -> None:
    """Nothing of it is in the estimate, which says so; its prompts have a cache of their own."""
    prompt = list(range(1000, 1400))
    plain = complete(metered, prompt, 8)
    adapted, again = (complete(metered, prompt, 8, model="mine") for _ in range(2))
    assert "adapter" not in plain["estimate"]["out_of_domain"]
    assert "adapter mine not measured" in adapted["estimate"]["out_of_domain"]
    assert "adapter mine not measured" in adapted["conditional"]["out_of_domain"]
    for record, cached in ((adapted, 0), (again, 384)):
        assert record["estimate"]["cached_tokens"] == record["cached_tokens"] == cached


def test_images_count_as_their_tokens_and_their_encoder_does_not() -> None:
    """Their tokens are in the prompt; another image is another prompt."""
    from vllm import SamplingParams
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
    from vllm.v1.engine import EngineCoreRequest

    def request(*images: str) -> Any:
        features = [
            MultiModalFeatureSpec(None, "image", name, PlaceholderRange(offset=2, length=4))
            for name in images
        ]
        tokens, sampling = [1, 2, 9, 9, 9, 9], SamplingParams(max_tokens=5)
        return EngineCoreRequest("a", tokens, features, sampling, None, 0, None, None, 0)

    one, other, none = (prompt_of(request(*images)) for images in (["one"], ["other"], []))
    assert one.num_tokens == none.num_tokens == 6
    assert one.remark == "encoding of images or audio left out"
    assert none.remark == ""
    assert len({one.cache_key, other.cache_key, none.cache_key}) == 3
    assert none.cache_key is None
