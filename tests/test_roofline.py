"""Throughput under the roofline, against hand-worked figures of both modes."""

import pytest

from llm_carbon_meter.kernels import KernelTotals
from llm_carbon_meter.phases import Mode, phase_totals
from llm_carbon_meter.roofline import seconds, throughput
from llm_carbon_meter.specs import built_in_model, gpu_spec

LLAMA = built_in_model("Llama-3.1-8B")

# kernel, GPUs, mode: A100 prefill, decode, H100 prefill, decode, T4 prefill, decode [OP/s]
ROOFLINE: list[tuple[str, int, Mode, tuple[float, ...]]] = [
    (
        "q_proj",
        1,
        "paper",
        (6.24e14, 2.038004880e12, 1.955845724e15, 3.348365056e12, 6.5e13, 3.198438263e11),
    ),
    (
        "q_proj",
        1,
        "corrected",
        (3.12e14, 2.038004880e12, 9.89e14, 3.348365056e12, 6.5e13, 3.198438263e11),
    ),
    (
        "fuse_attn",
        1,
        "paper",
        (6.24e14, 4.114060117e12, 1.979e15, 6.759245411e12, 6.5e13, 6.456592631e11),
    ),
    (
        "fuse_attn",
        1,
        "corrected",
        (3.12e14, 8.205384226e12, 9.89e14, 1.348113642e13, 6.5e13, 1.287750345e12),
    ),
    ("norm_attn", 1, "paper", (3.56825e12, 3.56825e12, 5.8625e12, 5.8625e12, 5.6e11, 5.6e11)),
    (
        "norm_attn",
        1,
        "corrected",
        (
            2.038000980e12,
            1.359333333e12,
            3.348358648e12,
            2.233333333e12,
            3.198432141e11,
            2.133333333e11,
        ),
    ),
    ("allreduce_1", 1, "paper", (6.24e14, 6.24e14, 1.979e15, 1.979e15, 6.5e13, 6.5e13)),
    ("allreduce_1", 4, "paper", (1e11, 1e11, 1.5e11, 1.5e11, 1.0666666667e10, 1.0666666667e10)),
    ("allreduce_1", 4, "corrected", (7.5e10, 7.5e10, 1.125e11, 1.125e11, 4e9, 4e9)),
    (
        "lm_head",
        1,
        "corrected",
        (
            2.038486429e12,
            2.038486429e12,
            3.349156222e12,
            3.349156222e12,
            3.199194003e11,
            3.199194003e11,
        ),
    ),
]


def both(name: str, gpus: int, mode: Mode) -> list[KernelTotals]:
    """A kernel's prefill and decode."""
    phases = phase_totals(LLAMA, gpus, 1, 1020, 129, mode)
    return [next(one for one in phase if one.name == name) for phase in phases]


@pytest.mark.parametrize(("name", "gpus", "mode", "expected"), ROOFLINE)
def test_throughput(name: str, gpus: int, mode: Mode, expected: tuple[float, ...]) -> None:
    """Compute, memory or network bound, with the paper's peaks or dense ones."""
    found = [
        throughput(kernel, gpu_spec(gpu), mode)
        for gpu in ("A100", "H100", "T4")
        for kernel in both(name, gpus, mode)
    ]
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("gpu", "gpus", "prefill", "decode"),
    [
        ("A100", 1, 0.050066, 0.951939),
        ("H100", 1, 0.016835, 0.579404),
        ("A100", 4, 0.016229, 0.238644),
        ("H100", 4, 0.006697, 0.145277),
    ],
)
def test_time_of_a_phase(gpu: str, gpus: int, prefill: float, decode: float) -> None:
    """The sum over all kernels of the time of their slowest resource."""
    phases = phase_totals(LLAMA, gpus, 1, 1020, 129)
    times = [sum(one.count * seconds(one, gpu_spec(gpu)) for one in phase) for phase in phases]
    assert times == pytest.approx([prefill, decode], abs=5e-7)


def test_kernels_without_operations_have_no_throughput() -> None:
    """The embedding only moves bytes, in time; decode of a single token costs nothing at all."""
    embed = phase_totals(LLAMA, 1, 1, 1020, 1).prefill[0]
    assert embed.name == "embed"
    assert throughput(embed, gpu_spec("A100")) == 0
    assert seconds(embed, gpu_spec("A100")) == 16711680 / 2039e9
    decode = phase_totals(LLAMA, 1, 1, 1020, 1).decode
    assert {throughput(one, gpu_spec("A100")) for one in decode} == {0}
