"""Closed forms of a static batch, against the same batch step by step."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.physics.kernels import KernelTotals, step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.phases import PLAIN, Serving, mean_steps, num_steps, phase_totals
from llm_carbon_meter.physics.step_work import StepRows, step_sums
from llm_carbon_meter.records import SpecError

PROMPT, OUTPUT = 1020, 129


def sums(phase: tuple[KernelTotals, ...]) -> tuple[float, float, float, float]:
    """Operations, weight bytes, other bytes and network bytes of the whole model."""
    return (
        sum(one.count * one.operations for one in phase),
        sum(one.count * one.weight_bytes for one in phase),
        sum(one.count * one.other_bytes for one in phase),
        sum(one.count * one.network_bytes for one in phase),
    )


@pytest.mark.parametrize(
    ("model", "gpus", "batch", "prefill", "decode"),
    [
        (
            "Llama-3.1-8B",
            1,
            1,
            (14518729930752, 15009849344, 12199791104, 0),
            (1995209244672, 1921260716032, 19742916608, 0),
        ),
        (
            "Llama-3.1-8B",
            1,
            8,
            (116149839446016, 15009849344, 97598328832, 0),
            (15961673957376, 1921260716032, 157943332864, 0),
        ),
        (
            "Llama-3.1-8B",
            4,
            1,
            (3630901390848, 3752861696, 8113592960, 814886784),
            (498955272192, 480366297088, 5571952640, 126861312),
        ),
        (
            "Bloom-560m",
            1,
            1,
            (670404236800, 1118429184, 2018439168, 0),
            (157223239680, 143158935552, 13951303680, 0),
        ),
        (
            "Mixtral-8x7B",
            4,
            1,
            (6508906769920, 23287832576, 11389556352, 814742400),
            (834908536832, 816179052544, 5976899584, 108380160),
        ),
        (
            "Mixtral-8x7B",
            4,
            8,
            (52071254159360, 23287832576, 91116450816, 6517939200),
            (6679268294656, 2691894870016, 47815196672, 867041280),
        ),
    ],
)
def test_model_totals(
    model: str, gpus: int, batch: int, prefill: tuple[int, ...], decode: tuple[int, ...]
) -> None:
    """Worked by hand: the sum over all kernels, per layer and once in the model."""
    totals = phase_totals(built_in_model(model), gpus, batch, PROMPT, OUTPUT)
    assert sums(totals.prefill) == pytest.approx(prefill, rel=1e-12)
    assert sums(totals.decode) == pytest.approx(decode, rel=1e-12)


@pytest.mark.parametrize(
    ("length", "name", "expected"),
    [
        (1000, "fuse_attn", (4132128000, 12288000, 1124929536, 559153152)),
        (1000, "fuse_attn_windowed", (4132128000, 12288000, 1124929536, 559153152)),
        (6000, "fuse_attn", (148632768000, 73728000, 6408769536, 3180593152)),
        (6000, "fuse_attn_windowed", (133660016640, 73728000, 4328521728, 2148532224)),
    ],
)
def test_sliding_window(length: int, name: str, expected: tuple[int, int, int, int]) -> None:
    """Gemma2's two kinds of attention, each by itself."""
    totals = phase_totals(built_in_model("Gemma2-2b"), 1, 1, length, OUTPUT)
    first, rest = (next(one for one in phase if one.name == name) for phase in totals)
    assert (first.count, rest.count) == (13, 13)
    assert (first.operations, first.moved_bytes) == expected[:2]
    assert (rest.operations, rest.moved_bytes) == expected[2:]


@given(
    name=st.sampled_from(["Qwen2-0.5b", "Gemma2-2b", "Mixtral-8x7B", "Bloom-560m"]),
    gpus=st.sampled_from([1, 2]),
    batch=st.integers(1, 9),
    prompt=st.integers(1, 300),
    output=st.integers(1, 40),
    window=st.integers(1, 320),
)
def test_closed_forms_are_the_sum_over_steps(
    name: str, gpus: int, batch: int, prompt: int, output: int, window: int
) -> None:
    """Prefill in one step and N - 1 decode steps of the batch, as attribution counts them."""
    model = built_in_model(name)
    model = replace(model, sliding_window=window if model.sliding_window else None)
    costs = step_costs(model, gpus)

    def step(new: int, cached: int) -> tuple[float, float, float]:
        row = (np.array([float(new)]), np.array([float(cached)]), np.array([1.0]))
        touched = float(costs.touched_experts(np.array([float(batch * new)]))[0])
        weights = costs.weight_bytes + costs.head_bytes + costs.expert_bytes * touched
        return (
            batch * float(costs.operations(*row)[0]),
            weights,
            batch * float(costs.activation_bytes(row[0], row[2])[0] + costs.kv_bytes(*row[:2])[0]),
        )

    totals = phase_totals(model, gpus, batch, prompt, output)
    assert sums(totals.prefill)[:3] == pytest.approx(step(prompt, 0), rel=1e-12)
    steps = [step(1, cached) for cached in range(prompt, prompt + output - 1)]
    expected = [sum(values) for values in zip(*steps, strict=True)] or [0, 0, 0]
    assert sums(totals.decode)[:3] == pytest.approx(expected, rel=1e-12)


def test_one_token_has_no_decode() -> None:
    """The first token comes from prefill."""
    assert sums(phase_totals(built_in_model("Llama-3.1-8B"), 4, 2, 10, 1).decode) == (0, 0, 0, 0)


def test_both_phases_have_the_same_kernels() -> None:
    """Same names, kinds, sizes and order."""
    prefill, decode = phase_totals(built_in_model("Gemma2-2b"), 2, 1, 10, 5)
    shapes = [
        [(one.name, one.kind, one.count, one.peak, one.d_in, one.d_out) for one in phase]
        for phase in (prefill, decode)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("sizes", [(0, 10, 5), (1, 0, 5), (1, 10, 0), (-1, 10, 5)])
def test_batches_without_tokens_are_refused(sizes: tuple[int, int, int]) -> None:
    """The figures are in the message; so are heads that do not fit."""
    model = built_in_model("Llama-3.1-8B")
    with pytest.raises(SpecError, match=r"must be at least 1"):
        phase_totals(model, 1, *sizes)
    with pytest.raises(SpecError, match="32 heads of Llama"):
        phase_totals(model, 3, 1, 10, 5)


@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Mistral-7B-v0.1", "Qwen3-30B-A3B"])
def test_steps_of_equal_requests_sum_to_the_mean_step(model: str) -> None:
    """One prefill and N - 1 decodes of B requests, by rows and in closed form."""
    spec, batch, prompt, output = built_in_model(model), 3, 5000, 7
    new = np.array([prompt] * batch + [1] * batch * (output - 1), np.float64)
    cached = np.array([0] * batch + [prompt + step for step in range(output - 1)] * batch, float)
    cached[batch:] = np.sort(cached[batch:])
    rows = StepRows(np.full(output, batch), new, cached, np.ones(len(new)))
    prefill, *decodes = step_sums(rows, step_costs(spec))
    expected = np.array(mean_steps(spec, float(batch), float(prompt), float(output)))
    assert prefill == pytest.approx(expected[0])
    assert np.mean(decodes, axis=0) == pytest.approx(expected[1])


def played(model: str, rows: list[list[tuple[int, int, int]]]) -> np.ndarray:
    """Mean `SUMS` of steps whose rows have so many new, cached and sampled tokens."""
    columns = np.array([row for step in rows for row in step], np.float64).T
    made = StepRows(np.array([len(step) for step in rows]), *columns)
    return np.asarray(step_sums(made, step_costs(built_in_model(model))).mean(0))


MODELS = ["Llama-3.1-8B", "Mistral-7B-v0.1", "Qwen3-30B-A3B"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("batch", "prompt", "serving", "rows"),
    [
        # the prefix cache holds some of each prompt
        (3, 5000, Serving(cached=4800.0), [[(200, 4800, 1)] * 3]),
        # a prompt in four chunks, and what is left of one in two
        (1, 4096, Serving(budget=1024.0), [[(1024, 1024 * n, n == 3)] for n in range(4)]),
        (1, 4096, Serving(2048.0, budget=1024.0), [[(1024, 1024 * n, n == 3)] for n in (2, 3)]),
        # two steps of two prompts each
        (4, 512, Serving(budget=1024.0), [[(512, 0, 1)] * 2] * 2),
    ],
)
def test_prefill_as_it_is_served(
    model: str,
    batch: int,
    prompt: int,
    serving: Serving,
    rows: list[list[tuple[int, int, int]]],
) -> None:
    """Cached tokens are read and not computed; chunks stream weights and read the cache again."""
    asked = float(batch), float(prompt), 1.0, serving
    prefill, _ = mean_steps(built_in_model(model), *asked)
    assert num_steps(*asked)[0] == len(rows)
    # Over several chunks the reading of a sliding window is an approximation.
    exact = len(rows) == 1 or model != "Mistral-7B-v0.1" or batch > 1
    assert prefill == pytest.approx(played(model, rows), rel=1e-9 if exact else 0.01)


@pytest.mark.parametrize("model", MODELS)
def test_decode_verifies_drafts(model: str) -> None:
    """Two drafts a step, one of them accepted: half the steps, three positions in each."""
    serving, steps = Serving(verified=3.0, accepted=2.0), 8
    asked = 4.0, 1000.0, 1.0 + 2.0 * steps, serving
    _, decode = mean_steps(built_in_model(model), *asked)
    assert num_steps(*asked)[1] == steps
    rows = [[(3, 1000 + 2 * step, 3)] * 4 for step in range(steps)]
    assert decode == pytest.approx(played(model, rows), rel=1e-3)


def test_an_embedding_samples_nothing() -> None:
    """And has no decode."""
    prefill, _ = mean_steps(built_in_model("Llama-3.1-8B"), 2.0, 100.0, 0.0)
    assert prefill == pytest.approx(played("Llama-3.1-8B", [[(100, 0, 0)] * 2]))
    assert num_steps(2.0, 100.0, 0.0, PLAIN) == [1.0, 0.0]
