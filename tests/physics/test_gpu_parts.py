"""GPUs under the names that NVML prints: whole ones, MIG instances, virtual ones, and others'."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.physics.gpu_specs import GpuSpec, gpu_spec, gpu_specs
from llm_carbon_meter.records import SpecError

# NVML's name, ours, FP16 [TFLOP/s], memory [GB], bandwidth [GB/s], board [W]
PRINTED = [
    ("NVIDIA A2", "A2", 18, 16, 200, 60),
    ("NVIDIA L20", "L20", 119.5, 48, 864, 275),
    ("NVIDIA H20", "H20", 148, 96, 4000, 400),
    ("NVIDIA H20-3e", "H20-141GB", 148, 141, 4800, 400),
    ("NVIDIA H800", "H800", 989, 80, 3350, 700),
    ("NVIDIA H800 PCIe", "H800-PCIe", 756, 80, 2040, 350),
    ("NVIDIA A800-SXM4-80GB", "A800", 312, 80, 2039, 400),
    ("NVIDIA A800 80GB PCIe", "A800-PCIe", 312, 80, 1935, 300),
    ("NVIDIA GH200 144G HBM3e", "GH200-144GB", 989, 144, 4900, 700),
    ("NVIDIA B300 SXM6 AC", "B300", 2250, 288, 7700, 1100),
    ("NVIDIA GB300", "GB300", 2500, 288, 8000, 1400),
    ("NVIDIA GB10", "GB10", 125, 128, 273, 140),
    ("NVIDIA GeForce RTX 3090", "RTX3090", 71, 24, 936, 350),
    ("NVIDIA GeForce RTX 4090 D", "RTX4090D", 147.1, 24, 1008, 425),
    ("NVIDIA GeForce RTX 5090", "RTX5090", 209.5, 32, 1792, 575),
    (
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        *("RTX-PRO-6000", 503.8, 96, 1792, 600),
    ),
    (
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        *("RTX-PRO-6000-Max-Q", 438.9, 96, 1792, 300),
    ),
    (
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        *("RTX-PRO-6000-Server", 480, 96, 1597, 600),
    ),
]


@pytest.mark.parametrize(("nvml", "short", "tflops", "gigabytes", "gb_s", "watts"), PRINTED)
def test_a_gpu_is_found_under_the_name_that_nvml_prints(
    nvml: str, short: str, tflops: float, gigabytes: float, gb_s: float, watts: float
) -> None:
    """With the figures that its maker published."""
    gpu = gpu_spec(nvml)
    assert gpu is gpu_spec(short)
    assert (gpu.name, gpu.approximation, gpu.part) == (short, "", 1.0)
    assert (gpu.compute_ops_per_s, gpu.memory_bytes) == (tflops * 1e12, gigabytes * 1e9)
    assert (gpu.bandwidth_bytes_per_s, gpu.board_watts) == (gb_s * 1e9, watts)
    assert gpu.limit_watts == gpu.board_watts


# MIG instance, share of the computing, share of the bandwidth, GB
INSTANCES = [
    ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 1 / 7, 1 / 8, 10),
    ("NVIDIA A100-SXM4-80GB MIG 1g.20gb", 1 / 7, 2 / 8, 20),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb+me", 1 / 7, 1 / 8, 5),
    ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 3 / 7, 4 / 8, 40),
    ("NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb", 1 / 7, 4 / 8, 40),
    ("NVIDIA H200 MIG 2g.35gb", 2 / 7, 2 / 8, 35),
    ("NVIDIA H200 MIG 7g.141gb", 1, 1, 141),
    ("NVIDIA B200 MIG 1g.23gb", 1 / 7, 1 / 8, 23),
    ("NVIDIA A30 MIG 1g.6gb", 1 / 4, 1 / 4, 6),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 2g.48gb-me", 2 / 4, 1 / 2, 48),
    ("GRID A100D-1-10C", 1 / 7, 1 / 8, 10),
    ("GRID A100DX-3-40C", 3 / 7, 4 / 8, 40),
    ("GRID A100-1-5CME", 1 / 7, 1 / 8, 5),
]


def whole_of(name: str) -> GpuSpec:
    """The GPU that a MIG instance or a virtual GPU is a part of."""
    virtual = {"GRID A100D": "A100-PCIe", "GRID A100DX": "A100", "GRID A100": "A100-PCIe-40GB"}
    return gpu_spec(virtual.get(name.split("-")[0]) or name.split(" MIG ")[0])


@pytest.mark.parametrize(("name", "computing", "streaming", "gigabytes"), INSTANCES)
def test_a_mig_instance_has_its_slices_of_the_gpu(
    name: str, computing: float, streaming: float, gigabytes: float
) -> None:
    """Arithmetic and power by compute slices, bandwidth by eighths of the memory; and says so."""
    part, whole = gpu_spec(name), whole_of(name)
    assert part.part == pytest.approx(computing)
    for peak in ("bfloat16", "int8", "vector"):
        assert part.peak(peak) == pytest.approx(whole.peak(peak) * computing)
    assert part.board_watts == part.limit_watts == pytest.approx(whole.board_watts * computing)
    assert part.idle_watts == pytest.approx(whole.idle_watts * computing)
    assert part.bandwidth_bytes_per_s == pytest.approx(whole.bandwidth_bytes_per_s * streaming)
    assert part.memory_bytes == gigabytes * 1e9
    assert f"slices of {whole.name}" in part.approximation
    assert gpu_spec(part.name) == part


def test_the_instances_of_a_gpu_add_up_to_it() -> None:
    """Seven of one slice draw what the board draws."""
    assert 7 * gpu_spec("NVIDIA H100 80GB HBM3 MIG 1g.10gb").board_watts == pytest.approx(700)


@pytest.mark.parametrize(
    ("name", "ours", "whole", "gigabytes"),
    [
        ("GRID T4-16Q", "T4-16Q", "T4", 16),
        ("GRID A100D-40C", "A100D-40C", "A100-PCIe", 40),
        ("GRID A100DX-80C", "A100DX-80C", "A100", 80),
        ("GRID V100DX-32C", "V100DX-32C", "V100-32GB", 32),
        ("NVIDIA A40-48Q", "A40-48Q", "A40", 48),
        ("NVIDIA L40S-24C", "L40S-24C", "L40S", 24),
        ("NVIDIA H100XM-80C", "H100XM-80C", "H100", 80),
        ("NVIDIA H100L-94C", "H100L-94C", "H100-NVL", 94),
        ("NVIDIA H200X-141C", "H200X-141C", "H200", 141),
        ("nvidia rtx6000-ada-48q", "RTX6000-Ada-48Q", "RTX-6000-Ada", 48),
        (
            *("NVIDIA RTX Pro 6000 Blackwell DC-96C", "RTX Pro 6000 Blackwell DC-96C"),
            *("RTX-PRO-6000-Server", 96),
        ),
    ],
)
def test_a_virtual_gpu_has_its_memory_and_the_whole_gpu(
    name: str, ours: str, whole: str, gigabytes: float
) -> None:
    """It takes turns on the GPU, and how often nobody says."""
    gpu, physical = gpu_spec(name), gpu_spec(whole)
    assert (gpu.name, gpu.memory_bytes) == (ours, gigabytes * 1e9)
    assert (gpu.board_watts, gpu.part) == (physical.board_watts, 1.0)
    assert gpu.compute_ops_per_s == physical.compute_ops_per_s
    assert f"the whole {whole}" in gpu.approximation
    assert gpu_spec(ours) == gpu


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NVIDIA A100-SXM4-80GB MIG 8g.80gb", "8 slices of A100; MIG cuts it into 7"),
        ("NVIDIA A100-SXM4-80GB MIG 0g.10gb", "0 slices"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.0gb", "has 0 GB; A100 has 80 GB"),
        ("NVIDIA A100-SXM4-80GB MIG 7g.96gb", "has 96 GB; A100 has 80 GB"),
        ("Tesla T4 MIG 1g.5gb", "it has no MIG"),
        ("GRID T4-32Q", "has 32 GB; T4 has 16 GB"),
        ("NVIDIA A100-SXM4-88GB MIG 1g.10gb", "nearest is A100"),
        ("NVIDIA A41-48Q", "nearest is A40"),
        ("NVIDIA A40-8A", "is not in data/gpus.toml"),
    ],
)
def test_a_part_that_no_gpu_has_is_refused(name: str, words: str) -> None:
    """The text says what the GPU has."""
    with pytest.raises(SpecError, match=words):
        gpu_spec(name)


@pytest.mark.parametrize(
    "name",
    [
        *("AMD Instinct MI300X", "AMD_Instinct_MI325_OAM", "MI300X", "Intel Gaudi 3", "Gaudi2"),
        *("HL-225", "TPU v5e", "Google TPU v6e", "Intel(R) Data Center GPU Max 1550"),
    ],
)
def test_accelerators_of_other_makers_are_named_as_unknown(name: str) -> None:
    """No NVIDIA GPU is suggested for them."""
    with pytest.raises(SpecError, match="is no NVIDIA GPU, and unknown here") as refused:
        gpu_spec(name)
    assert name in str(refused.value)
    assert "nearest" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        *[("H101", "H100"), ("B20", "B200"), ("L5", "L4"), ("NVIDIA H200 NVM", "H200-NVL")],
        *[("GeForce RTX 4090 E", "RTX4090D"), ("NVIDIA GB301", "GB300")],
    ],
)
def test_a_name_that_is_a_letter_off_is_suggested_and_not_taken(name: str, near: str) -> None:
    """Whoever meant it writes it."""
    with pytest.raises(SpecError, match=rf"nearest is ({near}|\w*{near}\w*); known"):
        gpu_spec(name)


def test_nothing_is_suggested_where_nothing_is_similar() -> None:
    """The list of all is there."""
    with pytest.raises(SpecError, match=r"'Voodoo' is not in data/gpus.toml; known: T4, V100"):
        gpu_spec("Voodoo")


@given(
    gpu=st.sampled_from(sorted({spec.name for spec in gpu_specs().values() if spec.mig_slices})),
    slices=st.integers(0, 9),
    gigabytes=st.integers(0, 400),
)
def test_every_mig_instance_is_less_than_its_gpu_or_refused(
    gpu: str, slices: int, gigabytes: int
) -> None:
    """Whatever the profile says, no part is faster, larger or hungrier than the whole."""
    whole = gpu_spec(gpu)
    try:
        part = gpu_spec(f"{gpu} MIG {slices}g.{gigabytes}gb")
    except SpecError:
        return
    assert 0 < part.compute_ops_per_s <= whole.compute_ops_per_s
    assert 0 < part.bandwidth_bytes_per_s <= whole.bandwidth_bytes_per_s
    assert 0 < part.idle_watts < part.board_watts <= whole.board_watts
