"""The kernel table against hand-worked examples (`corrected`), to the last byte."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.physics.kernels import (
    Kernel,
    StepCosts,
    context_sum,
    kernel_table,
    step_costs,
    windowed_sum,
)
from llm_carbon_meter.physics.model_list import built_in_model, built_in_names
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.records import SpecError
from tests.support.steps.rows import MIXED, Row

PROMPT, OUTPUT = 1020, 129
GEMMA_2B = {
    "model_type": "gemma",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 256000,
}


class Work(NamedTuple):
    """Exact totals of one or more steps."""

    operations: int
    weights: int
    """Bytes of weights, experts and LM head included."""
    other: int
    """Bytes of activations and KV cache."""
    network: int

    def __add__(self, other: object) -> "Work":
        assert isinstance(other, Work)
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def moved(self) -> int:
        """All bytes of memory."""
        return self.weights + self.other


def whole(value: float) -> int:
    """The value as an integer, which it must be."""
    assert float(value).is_integer()
    return int(value)


def step(costs: StepCosts, rows: Sequence[Row]) -> Work:
    """One engine step."""
    new, cached, sampled = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    touched = float(costs.touched_experts(np.array([new.sum()]))[0])
    weights = costs.weight_bytes + costs.expert_bytes * touched
    return Work(
        whole(costs.operations(new, cached, sampled).sum()),
        round(weights + (costs.head_bytes if sampled.any() else 0)),
        whole((costs.activation_bytes(new, sampled) + costs.kv_bytes(new, cached)).sum()),
        whole(costs.network_per_token * new.sum() + costs.network_per_sample * sampled.sum()),
    )


def prefill(costs: StepCosts, batch: int = 1, length: int = PROMPT) -> Work:
    """Whole prompts in one step."""
    return step(costs, [Row(length, 0, 1)] * batch)


def decode(costs: StepCosts, batch: int = 1, length: int = PROMPT, output: int = OUTPUT) -> Work:
    """The N - 1 decode steps of a batch."""
    work = Work(0, 0, 0, 0)
    for cached in range(length, length + output - 1):
        work += step(costs, [Row(1, cached, 1)] * batch)
    return work


def kernel(model: ModelSpec, name: str, tensor_parallel: int = 1) -> Kernel:
    """The first kernel of a name."""
    return next(found for found in kernel_table(model, tensor_parallel) if found.name == name)


def per_layer(one: Kernel, new: Sequence[int], cached: Sequence[int]) -> tuple[int, int]:
    """Operations, and bytes with weights, of one kernel over several steps of one request."""
    tokens, before = np.array(new, np.float64), np.array(cached, np.float64)
    operations = one.ops_per_token * tokens + one.ops_per_context * context_sum(tokens, before)
    moved = one.weight_bytes + one.bytes_per_token * tokens + one.bytes_per_kv * (tokens + before)
    return whole(operations.sum()), whole(moved.sum())


DECODE_STEPS = ([1] * (OUTPUT - 1), list(range(PROMPT, PROMPT + OUTPUT - 1)))

# name: O prefill, M prefill, O decode, M decode per layer
LLAMA_LAYER: Mapping[str, tuple[int, int, int, int]] = {
    "norm_attn": (16711680, 16719872, 2097152, 3145728),
    "q_proj": (34225520640, 50266112, 4294967296, 4297064448),
    "k_proj": (8556380160, 18833408, 1073741824, 1075052544),
    "v_proj": (8556380160, 18833408, 1073741824, 1075052544),
    "rope": (15667200, 20889600, 1966080, 2621440),
    "fuse_attn": (8614626240, 20889600, 2296571904, 570687488),
    "out_proj": (34225520640, 50266112, 4294967296, 4297064448),
    "add_attn": (4177920, 25067520, 524288, 3145728),
    "gate_proj": (119789322240, 155041792, 15032385536, 15037104128),
    "up_proj": (119789322240, 155041792, 15032385536, 15037104128),
    "act_mlp": (73113600, 87736320, 9175040, 11010048),
    "down_proj": (119789322240, 155041792, 15032385536, 15037104128),
    "final_norm": (16711680, 16719872, 2097152, 3145728),
}
BLOOM_LAYER: Mapping[str, tuple[int, int, int, int]] = {
    "norm_attn": (7311360, 4182016, 917504, 1048576),
    "q_proj": (2140139520, 6277120, 268566528, 269221888),
    "k_proj": (2140139520, 6277120, 268566528, 269221888),
    "fuse_attn": (2182816320, 8355840, 581916672, 569114624),
    "out_proj": (2140139520, 6277120, 268566528, 269221888),
    "add_attn": (1044480, 6266880, 131072, 786432),
    "up_proj": (8560558080, 18841600, 1074266112, 1076101120),
    "act_mlp": (33423360, 16711680, 4194304, 2097152),
    "down_proj": (8557424640, 18835456, 1073872896, 1075314688),
    "final_norm": (7311360, 4182016, 917504, 1048576),
}
# of one GPU of four
SHARDED_LAYER: Mapping[str, tuple[int, int, int, int]] = {
    "q_proj": (8556380160, 18833408, 1073741824, 1075052544),
    "k_proj": (2139095040, 10975232, 268435456, 269549568),
    "rope": (3916800, 5222400, 491520, 655360),
    "fuse_attn": (2153656560, 5222400, 574142976, 142671872),
    "out_proj": (8556380160, 18833408, 1073741824, 1075052544),
    "allreduce_1": (3133440, 25067520, 393216, 3145728),
    "gate_proj": (29947330560, 45027328, 3758096384, 3760062464),
    "act_mlp": (18278400, 21934080, 2293760, 2752512),
    "down_proj": (29947330560, 45027328, 3758096384, 3760062464),
}


@pytest.mark.parametrize(
    ("model", "tensor_parallel", "name", "expected"),
    [("Llama-3.1-8B", 1, *row) for row in LLAMA_LAYER.items()]
    + [("Bloom-560m", 1, *row) for row in BLOOM_LAYER.items()]
    + [("Llama-3.1-8B", 4, *row) for row in SHARDED_LAYER.items()],
)
def test_every_kernel_of_a_layer(
    model: str, tensor_parallel: int, name: str, expected: tuple[int, int, int, int]
) -> None:
    """Operations and bytes per layer of both phases are those of the worked examples."""
    one = kernel(built_in_model(model), name, tensor_parallel)
    assert per_layer(one, [PROMPT], [0]) + per_layer(one, *DECODE_STEPS) == expected


def test_llama_alone() -> None:
    """Worked example: model totals of prefill and decode on one GPU."""
    costs = step_costs(built_in_model("Llama-3.1-8B"))
    first, rest = prefill(costs), decode(costs)
    assert (first.operations, first.moved) == (14518729930752, 27209640448)
    assert first.weights == 15009849344
    assert (rest.operations, rest.moved) == (1995209244672, 1941003632640)
    assert rest.weights == 1921260716032
    assert first.network == rest.network == 0


def test_llama_batch_of_eight() -> None:
    """Worked example: eight equal requests cost eight times everything but the weights."""
    costs = step_costs(built_in_model("Llama-3.1-8B"))
    assert prefill(costs, 8) == Work(116149839446016, 15009849344, 97598328832, 0)
    assert decode(costs, 8) == Work(15961673957376, 1921260716032, 157943332864, 0)


def test_llama_on_four_gpus() -> None:
    """Worked example: one GPU's totals, all-reduce and logit gather on the interconnect."""
    costs = step_costs(built_in_model("Llama-3.1-8B"), tensor_parallel=4)
    first, rest = prefill(costs), decode(costs)
    assert (first.operations, first.moved) == (3630901390848, 11866454656)
    assert (first.weights, first.network) == (3752861696, 814886784)
    assert (rest.operations, rest.moved) == (498955272192, 485938249728)
    assert (rest.weights, rest.network) == (480366297088, 126861312)


def test_kv_heads_are_replicated_where_there_are_too_few() -> None:
    """Worked example: Gemma-2b has one KV head on four GPUs, each projects and reads all of it."""
    model = model_spec(GEMMA_2B)
    assert per_layer(kernel(model, "q_proj", 4), [PROMPT], [0])[0] == 2139095040
    assert per_layer(kernel(model, "k_proj", 4), [PROMPT], [0]) == (1069547520, 5748736)
    assert per_layer(kernel(model, "fuse_attn", 4), *DECODE_STEPS) == (285683328, 142409728)


def test_bloom_alone() -> None:
    """Worked example: LayerNorm with bias, no gate, ALiBi, embedding norm, tied head."""
    costs = step_costs(built_in_model("Bloom-560m"))
    first, rest = prefill(costs), decode(costs)
    assert (first.operations, first.moved) == (670404236800, 3136868352)
    assert first.weights == 1118429184
    assert (rest.operations, rest.moved) == (157223239680, 157110239232)
    assert rest.weights == 143158935552


def test_mixtral_on_four_gpus() -> None:
    """Worked example: a prompt touches all eight experts, a single token two."""
    costs = step_costs(built_in_model("Mixtral-8x7B"), tensor_parallel=4)
    first, rest = prefill(costs), decode(costs)
    assert first == Work(6508906769920, 23287832576, 34677388928 - 23287832576, 814742400)
    assert rest == Work(834908536832, 816179052544, 822155952128 - 816179052544, 108380160)


def test_mixtral_batch_of_eight_on_four_gpus() -> None:
    """Worked example: eight tokens touch 7.199 experts, so weight bytes rise 3.3 times."""
    costs = step_costs(built_in_model("Mixtral-8x7B"), tensor_parallel=4)
    first, rest = prefill(costs, 8), decode(costs, 8)
    assert (first.operations, first.moved, first.network) == (
        52071254159360,
        114404283392,
        6517939200,
    )
    assert (rest.operations, rest.network) == (6679268294656, 867041280)
    assert rest.weights == pytest.approx(2691894870016, rel=1e-12)
    assert rest.moved == pytest.approx(2739710066688, rel=1e-12)


def test_mixed_step() -> None:
    """Worked example: one prefill chunk and three decodes in a step."""
    costs = step_costs(built_in_model("Llama-3.1-8B"))
    assert step(costs, MIXED) == Work(7404980202496, 15009849344, 6895934976, 0)


def test_mixed_step_is_the_sum_of_its_parts_with_the_weights_paid_once() -> None:
    """Worked example: operations and activation bytes add up; 13959176192 bytes are shared."""
    costs = step_costs(built_in_model("Llama-3.1-8B"))
    chunk, decodes = step(costs, MIXED[:1]), step(costs, MIXED[1:])
    assert chunk == Work(7357238345728, 13959176192, 6190792704, 0)
    assert decodes == Work(47741856768, 15009849344, 705142272, 0)
    both = step(costs, MIXED)
    assert both.operations == chunk.operations + decodes.operations
    assert both.other == chunk.other + decodes.other
    assert chunk.weights + decodes.weights - both.weights == 13959176192


def test_mixed_step_per_layer() -> None:
    """Worked example: the attention of 515 tokens on 6127 cached and new ones."""
    attention = kernel(built_in_model("Llama-3.1-8B"), "fuse_attn")
    rows = per_layer(attention, [row.new for row in MIXED], [row.cached for row in MIXED])
    assert rows == (6594024800, 33533952)


@pytest.mark.parametrize(
    ("rows", "expected", "attention"),
    [
        (
            [Row(1020, 0, 1)],
            Work(14518729930752, 15009849344, 12199791104, 0),
            (8614626240, 20889600),
        ),
        (
            [Row(512, 0, 0), Row(508, 512, 1)],
            Work(14518729930752, 28969025536, 12266899968, 0),
            (8614626240, 22986752),
        ),
        (
            [Row(512, 256, 0), Row(252, 768, 1)],
            Work(10926848964608, 28969025536, 9272166912, 0),
            (8070394816, 19841024),
        ),
        (
            [Row(764, 256, 1)],
            Work(10926848964608, 15009849344, 9171503616, 0),
            (8070394816, 16695296),
        ),
    ],
    ids=["one pass", "chunks", "cached, chunks", "cached, one pass"],
)
def test_chunks_and_cached_prefix(
    rows: list[Row], expected: Work, attention: tuple[int, int]
) -> None:
    """Worked example: chunks read the weights again, a cached prefix is not computed again."""
    model = built_in_model("Llama-3.1-8B")
    costs, total = step_costs(model), Work(0, 0, 0, 0)
    for row in rows:
        total += step(costs, [row])
    assert total == expected
    one = kernel(model, "fuse_attn")
    assert per_layer(one, [r.new for r in rows], [r.cached for r in rows]) == attention


def attention_only(model: ModelSpec) -> StepCosts:
    """The sums of a model whose only kernels are its attentions."""
    full, windowed = (one for one in kernel_table(model) if one.kind == "fuse_attn")
    assert windowed.windowed
    assert not full.windowed
    costs = step_costs(model)
    assert costs.ops_per_context == full.count * full.ops_per_context
    assert costs.ops_per_windowed_context == windowed.count * windowed.ops_per_context
    return replace(
        costs,
        ops_per_token=0.0,
        ops_per_sample=0.0,
        bytes_per_token=sum(one.count * one.bytes_per_token for one in (full, windowed)),
        bytes_per_sample=0.0,
    )


@pytest.mark.parametrize(
    ("length", "full", "windowed"),
    [
        (
            1000,
            (4132128000, 12288000, 1124929536, 559153152),
            (4132128000, 12288000, 1124929536, 559153152),
        ),
        (
            6000,
            (148632768000, 73728000, 6408769536, 3180593152),
            (133660016640, 73728000, 4328521728, 2148532224),
        ),
    ],
)
def test_sliding_window(
    length: int, full: tuple[int, int, int, int], windowed: tuple[int, int, int, int]
) -> None:
    """Worked example: thirteen layers of Gemma2 see 4096 tokens, thirteen see all."""
    model = built_in_model("Gemma2-2b")
    costs = attention_only(model)
    counts = {one.windowed: one.count for one in kernel_table(model) if one.kind == "fuse_attn"}
    assert counts == {False: 13, True: 13}
    first, rest = prefill(costs, length=length), decode(costs, length=length)
    both = tuple(13 * (a + b) for a, b in zip(full, windowed, strict=True))
    assert (first.operations, first.other, rest.operations, rest.other) == both


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama-3.1-8B", 15009849344),
        ("Bloom-560m", 1118429184),
        ("Gemma2-2b", 5228683776),
        ("Qwen2-0.5b", 988065536),
        ("Mixtral-8x7B", 93143441408),
    ],
)
def test_weights_of_a_step(name: str, expected: int) -> None:
    """Every weight but the embedding is read once."""
    costs = step_costs(built_in_model(name))
    weights = costs.weight_bytes + costs.head_bytes + costs.num_experts * costs.expert_bytes
    assert whole(weights) == expected


def test_heads_must_be_divisible_among_the_gpus() -> None:
    """A group that the heads do not fit is refused by name and number, as is none at all."""
    model = built_in_model("Qwen2-0.5b")
    with pytest.raises(SpecError, match=r"14 heads of Qwen2-0\.5b on 4 GPUs"):
        kernel_table(model, 4)
    with pytest.raises(SpecError, match="on 0 GPUs"):
        step_costs(model, 0)


def test_int4_weights() -> None:
    """Worked example: the seven linear kernels shrink, norms, embedding and LM head do not."""
    model = replace(built_in_model("Llama-3.1-8B"), weight_bytes=0.51953125)
    costs = step_costs(model)
    plain = step_costs(built_in_model("Llama-3.1-8B"))
    assert costs.weight_bytes + costs.head_bytes == 4677181440
    assert decode(costs).weights == 598679224320
    assert replace(costs, weight_bytes=plain.weight_bytes) == plain


def test_fp8_kv_cache() -> None:
    """Worked example: only the stores of keys and values and the loads of attention shrink."""
    model = replace(built_in_model("Llama-3.1-8B"), kv_bytes=1.0)
    costs = step_costs(model)
    assert prefill(costs).other == 12066097664
    assert decode(costs).other == 10637082624
    assert per_layer(kernel(model, "fuse_attn"), *DECODE_STEPS)[1] == 286392320
    assert per_layer(kernel(model, "k_proj"), *DECODE_STEPS)[1] == 1074921472


@pytest.mark.parametrize("name", built_in_names())
def test_names_are_unique_and_every_operation_has_a_peak(name: str) -> None:
    """A name is one node; what computes is bounded by tensor or vector units."""
    model = built_in_model(name)
    table = kernel_table(model, 1 if model.num_heads % 2 else 2)
    assert len({one.name for one in table}) == len(table)
    assert {one.kind for one in table if not one.peak} <= {"embed", "logit_gather"}


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Bloom-560m", "Gemma2-2b"])
@pytest.mark.parametrize("gpus", [2, 4])
def test_sharded_kernels_add_up_to_the_whole(name: str, gpus: int) -> None:
    """G GPUs together do the products of one."""
    model = built_in_model(name)
    alone = {one.name: one for one in kernel_table(model)}
    for one in kernel_table(model, gpus):
        if one.name in {"q_proj", "gate_proj", "up_proj", "fuse_attn"}:
            assert gpus * one.ops_per_token == alone[one.name].ops_per_token
            assert gpus * one.ops_per_context == alone[one.name].ops_per_context


@pytest.mark.parametrize(
    ("tokens", "experts"), [(1, 2), (2, 3.5), (4, 5.469), (8, 7.199), (16, 7.920), (32, 7.999)]
)
def test_expected_experts(tokens: int, experts: float) -> None:
    """X(T) for Mixtral."""
    costs = step_costs(built_in_model("Mixtral-8x7B"))
    assert costs.touched_experts(np.array([float(tokens)]))[0] == pytest.approx(experts, abs=5e-4)


def test_dense_models_have_no_experts() -> None:
    """X is 0, and no bytes hang on it."""
    costs = step_costs(built_in_model("Llama-3.1-8B"))
    assert costs.touched_experts(np.array([1.0, 64.0])).tolist() == [0, 0]
    assert costs.expert_bytes == 0


whole_numbers = st.integers(0, 3000)


@given(new=whole_numbers, cached=whole_numbers, window=st.integers(1, 4000))
def test_context_sums_equal_the_loop(new: int, cached: int, window: int) -> None:
    """The closed forms are the sums over tokens that they stand for."""
    contexts = [cached + j for j in range(1, new + 1)]
    tokens, before = np.array([float(new)]), np.array([float(cached)])
    assert context_sum(tokens, before)[0] == sum(contexts)
    assert windowed_sum(tokens, before, window)[0] == sum(min(c, window) for c in contexts)


@given(
    name=st.sampled_from(["Llama-3.1-8B", "Gemma2-2b", "Mixtral-8x7B", "Bloom-560m"]),
    length=st.integers(2, 8000),
    data=st.data(),
)
def test_chunked_prefill_computes_what_one_pass_computes(
    name: str, length: int, data: st.DataObject
) -> None:
    """Chunks change bytes, never operations."""
    cut = data.draw(st.integers(1, length - 1))
    costs = step_costs(built_in_model(name))
    once = step(costs, [Row(length, 0, 1)])
    twice = step(costs, [Row(cut, 0, 0)]) + step(costs, [Row(length - cut, cut, 1)])
    assert twice.operations == once.operations
    assert twice.other >= once.other


def test_early_chunks_do_not_read_the_head() -> None:
    """A step that samples nothing leaves out the LM head; drafts count each position."""
    costs = step_costs(built_in_model("Llama-3.1-8B"))
    early, last = step(costs, [Row(64, 0, 0)]), step(costs, [Row(64, 0, 1)])
    assert last.weights - early.weights == 128256 * 4096 * 2
    assert last.operations - early.operations == 2 * 4096 * 128256
    drafts = step(costs, [Row(64, 0, 5)])
    assert drafts.operations - early.operations == 5 * 2 * 4096 * 128256
    assert drafts.weights == last.weights
