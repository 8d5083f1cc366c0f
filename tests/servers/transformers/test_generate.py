"""``generate`` of a real model, metered through the compiled NVML: every mode, threads, faults."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_carbon_meter import meter_generate
from llm_carbon_meter.config import Config
from llm_carbon_meter.records import MeterError, Outcome, Quality
from llm_carbon_meter.servers.transformers.generate import GenerateMeter
from tests.support.scripted_nvml import Stub

pytestmark = pytest.mark.engine

PROMPT, ANSWER = 40, 12
MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
    "chunks": {"prefill_chunk_size": 16},
    "static cache": {"cache_implementation": "static"},
    "without a cache": {"use_cache": False},
}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    """The tiny model in this process."""
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


@pytest.fixture
def meter(model: Any, stub: Stub) -> Iterator[GenerateMeter]:
    """A meter of a GPU that draws 300 W."""
    stub.steady(300.0)
    with meter_generate(model, Config(power="nvml")) as meter:
        yield meter


def generate(model: Any, prompts: int = 2, **options: Any) -> Any:
    """Answers of an exact length."""
    ids = torch.arange(5, 5 + prompts * PROMPT).reshape(prompts, PROMPT)
    exact = {"max_new_tokens": ANSWER, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, **exact, **options)


def accounts(meter: GenerateMeter) -> dict[str, float]:
    """The books, which add up to the counter."""
    assert meter.totals is not None
    (gpu,) = meter.totals.gpus
    assert sum(gpu.account_joules) == pytest.approx(gpu.counter_joules, rel=1e-9)
    return {"prefill": gpu.account_joules[0], "decode": gpu.account_joules[1]}


@pytest.mark.parametrize("mode", MODES)
def test_prompts_of_a_batch_get_all_joules_of_its_steps(
    model: Any, meter: GenerateMeter, mode: str
) -> None:
    """Equal prompts equal parts, prefill and decode apart, and nothing is lost."""
    generate(model, **MODES[mode])
    energy = meter.energy()
    first, second = energy.sequences
    assert first.prefill_joules == pytest.approx(second.prefill_joules)
    assert min(first.prefill_joules, first.decode_joules) > 0
    assert (first.prompt_tokens, first.output_tokens) == (PROMPT, ANSWER)
    assert (first.outcome, first.quality) == (Outcome.FINISHED, Quality.COUNTER)
    booked = accounts(meter)
    assert energy.total.prefill_joules == pytest.approx(booked["prefill"], rel=1e-9)
    assert energy.total.decode_joules == pytest.approx(booked["decode"], rel=1e-9)


def test_a_chunked_prompt_is_prefill_to_its_end(model: Any, meter: GenerateMeter) -> None:
    """Three chunks of at most 16 tokens, and one step for each further token."""
    generate(model, prompts=1, prefill_chunk_size=16)
    assert meter.energy().total.num_steps == 3 + ANSWER - 1
    assert meter.totals is not None
    assert meter.totals.tokens["prefill"] == PROMPT


def test_drafts_are_decode_work(model: Any, meter: GenerateMeter) -> None:
    """Fewer steps than tokens, and at least as many tokens computed as come out."""
    ids = torch.tensor([[7, 8, 9] * 12])
    named = {"max_new_tokens": 40, "eos_token_id": None, "pad_token_id": 0}
    model.generate(ids, prompt_lookup_num_tokens=3, **named)
    total = meter.energy().total
    assert total.output_tokens == 40
    assert total.num_steps < 40
    assert meter.totals is not None
    assert meter.totals.tokens["decode"] >= 39


def test_an_assistant_works_inside_the_step(
    model: Any, meter: GenerateMeter, tiny_model: Path
) -> None:
    """Its own calls are no calls of this model."""
    assistant = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    generate(model, prompts=1, assistant_model=assistant)
    (only,) = meter.energy().sequences
    assert only.output_tokens == ANSWER
    assert only.decode_joules > 0
    with pytest.raises(MeterError, match="no call 1; so far 1"):
        meter.energy(1)


def test_two_threads_have_calls_of_their_own(model: Any, meter: GenerateMeter) -> None:
    """At the same time on one model: each has its energy, together they have all of it."""
    threads = [threading.Thread(target=generate, args=(model, prompts)) for prompts in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    energies = [meter.energy(call) for call in (0, 1)]
    assert sorted(len(energy.sequences) for energy in energies) == [1, 3]
    booked = accounts(meter)
    joules = sum(energy.total.joules for energy in energies)
    assert joules == pytest.approx(booked["prefill"] + booked["decode"], rel=1e-9)


def test_a_streamer_gets_its_tokens(model: Any, meter: GenerateMeter) -> None:
    """As without us: the prompt, each token, the end."""

    class Streamer:
        put_tokens = 0
        ended = False

        def put(self, tokens: torch.Tensor) -> None:
            self.put_tokens += tokens.numel()

        def end(self) -> None:
            self.ended = True

    streamer = Streamer()
    generate(model, prompts=1, streamer=streamer)
    assert (streamer.put_tokens, streamer.ended) == (PROMPT + ANSWER, True)
    assert meter.energy().total.output_tokens == ANSWER


def test_a_call_that_fails_keeps_what_it_used(model: Any, meter: GenerateMeter) -> None:
    """The error is the caller's, the joules are the call's."""

    class StopsError(Exception):
        pass

    def stop(*_: Any, **__: Any) -> bool:
        raise StopsError

    with pytest.raises(StopsError):
        generate(model, prompts=1, stopping_criteria=[stop])
    total = meter.energy().total
    assert total.outcome is Outcome.FAILED
    assert total.joules > 0


def test_the_model_is_as_before_after_the_block(model: Any, stub: Stub) -> None:
    """Also where the block fails."""
    stub.steady(300.0)
    before = dict(vars(model))

    def fail() -> None:
        with meter_generate(model, Config(power="nvml")):
            assert "generate" in vars(model)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert vars(model) == before


@pytest.mark.parametrize("found", ["tiny-qwen2", None, torch.nn.Linear(1, 1)])
def test_what_is_no_model_is_named(found: Any) -> None:
    """With what it lacks, before any sensor is opened."""
    says = f"meter_generate got a {type(found).__name__}, which has no .*generate"
    with pytest.raises(MeterError, match=says), meter_generate(found):
        pass
