"""Throughput under the roofline, against hand-worked figures."""

import pytest

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.kernels import KernelTotals
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.phases import phase_totals
from llm_carbon_meter.physics.roofline import seconds

LLAMA = built_in_model("Llama-3.1-8B")

# kernel, GPUs: A100 prefill, decode, H100 prefill, decode, T4 prefill, decode [OP/s]
ROOFLINE: list[tuple[str, int, tuple[float, ...]]] = [
    ("q_proj", 1, (3.12e14, 2.038004880e12, 9.89e14, 3.348365056e12, 6.5e13, 3.198438263e11)),
    ("fuse_attn", 1, (3.12e14, 8.205384226e12, 9.89e14, 1.348113642e13, 6.5e13, 1.287750345e12)),
    (
        "norm_attn",
        1,
        (
            2.038000980e12,
            1.359333333e12,
            3.348358648e12,
            2.233333333e12,
            3.198432141e11,
            2.133333333e11,
        ),
    ),
    ("allreduce_1", 4, (7.5e10, 7.5e10, 1.125e11, 1.125e11, 4e9, 4e9)),
    (
        "lm_head",
        1,
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


def both(name: str, gpus: int) -> list[KernelTotals]:
    """A kernel's prefill and decode."""
    phases = phase_totals(LLAMA, gpus, 1, 1020, 129)
    return [next(one for one in phase if one.name == name) for phase in phases]


@pytest.mark.parametrize(("name", "gpus", "expected"), ROOFLINE)
def test_throughput(name: str, gpus: int, expected: tuple[float, ...]) -> None:
    """Operations over seconds: compute, memory or network bound, with dense peaks."""
    throughputs = [
        kernel.operations / seconds(kernel, gpu_spec(gpu))
        for gpu in ("A100", "H100", "T4")
        for kernel in both(name, gpus)
    ]
    assert throughputs == pytest.approx(expected, rel=1e-9)


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


def test_kernels_without_operations_take_the_time_of_their_bytes() -> None:
    """The embedding only moves bytes."""
    embed = phase_totals(LLAMA, 1, 1, 1020, 1).prefill[0]
    assert embed.name == "embed"
    assert seconds(embed, gpu_spec("A100")) == 16711680 / 2039e9
