"""The paper's equations as printed, against hand-worked examples, to the last byte."""

from collections.abc import Mapping

import pytest

from llm_carbon_meter.physics.kernels import KernelTotals
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.training.study.paper_kernels import Reading, paper_totals

PROMPT, OUTPUT = 1020, 129

# name: O, M of prefill, O, M of decode per layer; norm and add stand twice in a layer
LLAMA: Mapping[str, tuple[int, int, int, int]] = {
    "norm_attn": (29245440, 16711680, 3670016, 2097152),
    "q_proj": (34225520640, 58621952, 4294967296, 4297064448),
    "k_proj": (8556380160, 16744448, 1073741824, 1075052544),
    "v_proj": (8556380160, 16744448, 1073741824, 1075052544),
    "fuse_attn": (17212377600, 16711680, 2314513872, 1147113472),
    "out_proj": (34225520640, 58621952, 4294967296, 4297064448),
    "allreduce_1": (4177920, 16711680, 524288, 2097152),
    "add_attn": (4177920, 16711680, 524288, 2097152),
    "norm_mlp": (29245440, 16711680, 3670016, 2097152),
    "gate_proj": (119789322240, 184287232, 15032385536, 15037104128),
    "up_proj": (119789322240, 184287232, 15032385536, 15037104128),
    "act_mlp": (8355840, 25067520, 1048576, 6291456),
    "down_proj": (119789322240, 163397632, 15032385536, 15037104128),
    "allreduce_2": (4177920, 16711680, 524288, 2097152),
    "add_mlp": (4177920, 16711680, 524288, 2097152),
}
# of one GPU of four
SHARDED: Mapping[str, tuple[int, int, int, int]] = {
    "norm_attn": (7311360, 4177920, 917504, 524288),
    "q_proj": (8556380160, 14655488, 1073741824, 1074266112),
    "k_proj": (2139095040, 4186112, 268435456, 268763136),
    "v_proj": (2139095040, 4186112, 268435456, 268763136),
    "fuse_attn": (4303094400, 4177920, 578628468, 286778368),
    "out_proj": (8556380160, 14655488, 1073741824, 1074266112),
    "allreduce_1": (1044480, 4177920, 131072, 524288),
    "add_attn": (1044480, 4177920, 131072, 524288),
    "norm_mlp": (7311360, 4177920, 917504, 524288),
    "gate_proj": (29947330560, 46071808, 3758096384, 3759276032),
    "up_proj": (29947330560, 46071808, 3758096384, 3759276032),
    "act_mlp": (2088960, 6266880, 262144, 1572864),
    "down_proj": (29947330560, 40849408, 3758096384, 3759276032),
    "allreduce_2": (1044480, 4177920, 131072, 524288),
    "add_mlp": (1044480, 4177920, 131072, 524288),
}
BLOOM: Mapping[str, tuple[int, int, int, int]] = {
    "norm_attn": (7311360, 4177920, 917504, 524288),
    "q_proj": (2139095040, 8364032, 268435456, 268959744),
    "k_proj": (2139095040, 4186112, 268435456, 268959744),
    "v_proj": (2139095040, 4186112, 268435456, 268959744),
    "fuse_attn": (4344710400, 10444800, 584224488, 1146327040),
    "out_proj": (2139095040, 8364032, 268435456, 268959744),
    "allreduce_1": (1044480, 4177920, 131072, 524288),
    "add_attn": (1044480, 4177920, 131072, 524288),
    "norm_mlp": (7311360, 4177920, 917504, 524288),
    "gate_proj": (8556380160, 27189248, 1073741824, 1075052544),
    "up_proj": (8556380160, 27189248, 1073741824, 1075052544),
    "act_mlp": (2088960, 6266880, 262144, 1572864),
    "down_proj": (8556380160, 20922368, 1073741824, 1075052544),
    "allreduce_2": (1044480, 4177920, 131072, 524288),
    "add_mlp": (1044480, 4177920, 131072, 524288),
}
EAGER: Mapping[str, tuple[int, int, int, int]] = {
    "matmul_qk": (8355840, 304423488, 1146064896, 2219520),
    "softmax": (163200, 17907264, 22384080, 130560),
    "matmul_sv": (8355840, 304423488, 1146064896, 2219520),
}


def figures(
    model: str, gpus: int = 1, reading: Reading | None = None
) -> Mapping[str, tuple[float, float, float, float]]:
    """Operations and bytes per layer of both phases, by kernel."""
    totals = paper_totals(built_in_model(model), gpus, 1, PROMPT, OUTPUT, reading or Reading())
    return {
        first.name: (first.operations, first.moved_bytes, rest.operations, rest.moved_bytes)
        for first, rest in zip(*totals, strict=True)
    }


def layer_sum(rows: Mapping[str, tuple[float, float, float, float]]) -> tuple[float, ...]:
    """Of all nodes of a layer."""
    return tuple(map(sum, zip(*rows.values(), strict=True)))


@pytest.mark.parametrize(
    ("model", "gpus", "expected"),
    [
        ("Llama-3.1-8B", 1, LLAMA),
        ("Llama-3.1-8B", 4, SHARDED),
        ("Mixtral-8x7B", 4, SHARDED),
        ("Bloom-560m", 1, BLOOM),
    ],
)
def test_every_node_of_a_layer(
    model: str, gpus: int, expected: Mapping[str, tuple[int, int, int, int]]
) -> None:
    """The fifteen nodes in the paper's order; Mixtral is one dense expert, Bloom has a gate."""
    assert figures(model, gpus) == expected
    assert list(figures(model, gpus)) == list(expected)


def test_bytes_on_the_interconnect() -> None:
    """Only the all-reduce nodes send, and on one GPU they send nothing."""
    for gpus, sent in ((1, (0, 0)), (4, (6266880, 786432))):
        totals = paper_totals(built_in_model("Llama-3.1-8B"), gpus, 1, PROMPT, OUTPUT)
        for phase, expected in zip(totals, sent, strict=True):
            network = {kernel.name: kernel.network_bytes for kernel in phase}
            assert network.pop("allreduce_1") == network.pop("allreduce_2") == expected
            assert set(network.values()) == {0}


@pytest.mark.parametrize(
    ("model", "gpus", "layer", "total"),
    [
        (
            "Llama-3.1-8B",
            1,
            (462227704320, 824754176, 58159574480, 57021534208),
            (14791286538240, 26392133632, 1861106383360, 1824689094656),
        ),
        (
            "Llama-3.1-8B",
            4,
            (115556926080, 206188544, 14539893620, 14255383552),
            (3697821634560, 6598033408, 465276595840, 456172273664),
        ),
        (
            "Bloom-560m",
            1,
            (38591120640, 142180352, 4881813224, 5452042240),
            (926186895360, 3412328448, 117163517376, 130849013760),
        ),
    ],
)
def test_sums(model: str, gpus: int, layer: tuple[int, ...], total: tuple[int, ...]) -> None:
    """Of a layer, and of all layers."""
    assert layer_sum(figures(model, gpus)) == layer
    assert tuple(built_in_model(model).num_layers * value for value in layer) == total


def test_single_store() -> None:
    """Outputs of prefill stored once: 10.6 % fewer bytes for Llama, nothing else changes."""
    single = Reading(linear_store="single")
    llama, bloom = figures("Llama-3.1-8B", reading=single), figures("Bloom-560m", reading=single)
    assert layer_sum(llama)[1] == 745373696
    assert layer_sum(bloom)[1] == 123379712
    printed = layer_sum(figures("Llama-3.1-8B"))
    assert (layer_sum(llama)[0], *layer_sum(llama)[2:]) == (printed[0], *printed[2:])


def test_blocks_of_the_cache() -> None:
    """[s_block] multiplies the cache's bytes; 128 makes decode attention 128 times as heavy."""
    assert figures("Llama-3.1-8B", reading=Reading(kv_blocks=128))["fuse_attn"][3] == 146697355264


def test_without_flash_attention() -> None:
    """Table 7 with its memory columns as printed: prefill has the bytes of decode."""
    rows = figures("Llama-3.1-8B", reading=Reading(flash=False))
    assert {name: rows[name] for name in EAGER} == EAGER
    assert layer_sum(rows) == (445032201600, 1434796736, 58159574480, 55878990336)
    assert len(rows) == 17


def test_flash_and_eager_attention_agree_but_for_the_missing_length() -> None:
    """Decode operations are the same; in prefill Table 7 is L times too small."""
    flash = figures("Llama-3.1-8B")["fuse_attn"]
    eager = figures("Llama-3.1-8B", reading=Reading(flash=False))
    operations = layer_sum({name: eager[name] for name in EAGER})
    assert flash[2] == operations[2]
    assert flash[0] == PROMPT * operations[0]


def test_a_half_square_may_be_a_half() -> None:
    """(2L + N) N / 2 is not rounded."""
    totals = paper_totals(built_in_model("Llama-3.1-8B"), 1, 1, 10, 3)
    attention: KernelTotals = next(one for one in totals.decode if one.name == "fuse_attn")
    assert attention.operations == (4 * 128 + 5) * 32 * 34.5
