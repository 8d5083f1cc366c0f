"""Model shapes from config.json and GPU data sheets, against the public parameter counts."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.physics.gpu_specs import gpu_spec, gpu_specs
from llm_carbon_meter.physics.model_list import built_in_config, built_in_model
from llm_carbon_meter.physics.model_specs import model_spec
from llm_carbon_meter.records import SpecError
from tests.support.made.tiny_configs import tiny_config

KNOWN_GPUS = sorted({spec.name for spec in gpu_specs().values()})

# type, h, f, layers, n_h, n_kv, d, V, tied, parameters.
MORE_SHAPES = [
    ("bloom", 4096, 16384, 30, 32, 32, 128, 250880, True, 7069016064),
    ("bloom", 2560, 10240, 30, 32, 32, 80, 250880, True, 3002557440),
    ("gemma", 2048, 16384, 18, 8, 1, 256, 256000, True, 2506172416),
    ("gemma", 3072, 24576, 28, 16, 16, 256, 256000, True, 8537680896),
    ("gemma2", 3584, 14336, 42, 16, 8, 256, 256000, True, 9241705984),
    ("gemma2", 4608, 36864, 46, 32, 16, 128, 256000, True, 27227128320),
    ("qwen2", 1536, 8960, 28, 12, 2, 128, 151936, True, 1543714304),
    ("qwen2", 3584, 18944, 28, 28, 4, 128, 152064, False, 7615616512),
    ("qwen2", 8192, 29568, 80, 64, 8, 128, 152064, False, 72706203648),
]


@pytest.mark.parametrize(
    ("family", "h", "f", "layers", "heads", "kv", "d", "vocab", "tied", "parameters"), MORE_SHAPES
)
def test_other_configs_have_the_published_parameter_counts(
    family: str,
    h: int,
    f: int,
    layers: int,
    heads: int,
    kv: int,
    d: int,
    vocab: int,
    tied: bool,
    parameters: int,
) -> None:
    """A config.json of the paper's other models leads to the published count as well."""
    spec = model_spec(
        {
            "model_type": family,
            "hidden_size": h,
            "intermediate_size": f,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "head_dim": d,
            "vocab_size": vocab,
            "tie_word_embeddings": tied,
        }
    )
    assert spec.parameters == parameters


def test_active_parameters_count_both_embeddings_and_only_the_chosen_experts() -> None:
    """As the note of seed 000 does, tied or not."""
    llama, qwen = built_in_model("Llama-3.1-8B"), built_in_model("Qwen2-0.5b")
    mixtral = built_in_model("Mixtral-8x7B")
    assert llama.active_parameters == llama.parameters
    assert qwen.active_parameters == qwen.parameters + 151936 * 896
    assert mixtral.parameters - mixtral.active_parameters == 6 * 3 * 4096 * 14336 * 32


def test_head_dim_of_the_config_wins_over_the_quotient() -> None:
    """Gemma2 has d = 256 although h / n_h is 288; without the field the quotient is taken."""
    assert built_in_model("Gemma2-2b").head_dim == 256
    assert model_spec(tiny_config()).head_dim == 16
    assert model_spec(tiny_config(head_dim=32)).head_dim == 32


def test_missing_fields_have_the_defaults_of_transformers() -> None:
    """No KV heads means as many as heads; ties of embeddings and contexts are as in the family."""
    spec = model_spec(tiny_config(num_key_value_heads=None, tie_word_embeddings=None))
    assert spec.num_kv_heads == spec.num_heads
    assert not spec.tied_head
    assert built_in_model("Gemma2-2b").tied_head
    assert built_in_model("Bloom-560m").tied_head
    assert built_in_model("Falcon-7b").max_context == 2048


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 4.0), ("float16", 2.0), ("bfloat16", 2.0), ("float8_e4m3fn", 1.0)],
)
@pytest.mark.parametrize("field", ["torch_dtype", "dtype"])
def test_element_size_follows_the_dtype(field: str, dtype: str, size: float) -> None:
    """Weights, activations and KV cache have the size of the config's type, old name or new."""
    spec = model_spec(tiny_config(**{field: dtype}))
    assert (spec.weight_bytes, spec.activation_bytes, spec.kv_bytes) == (size, size, size)


def test_bloom_uses_its_own_field_names() -> None:
    """n_layer, n_head and seq_length are read, the MLP is four times the hidden size."""
    bloom = built_in_model("Bloom-560m")
    assert (bloom.num_layers, bloom.num_heads, bloom.num_kv_heads) == (24, 16, 16)
    assert (bloom.intermediate_size, bloom.max_context) == (4096, 2048)
    old_name = {**built_in_config("Bloom-560m"), "n_embed": 1024}
    del old_name["hidden_size"]
    assert model_spec(old_name, "Bloom-560m") == bloom


def test_unknown_architecture_says_that_metering_goes_on() -> None:
    """The error names the type, the known ones, and what happens instead."""
    with pytest.raises(SpecError, match=r"'mamba'.*nearest is jamba.*llama.*divided by tokens"):
        model_spec(tiny_config(model_type="mamba"))


@pytest.mark.parametrize(
    "field",
    [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    ],
)
@pytest.mark.parametrize("value", [None, 0, -3, "64", 1.5])
def test_bad_sizes_are_named(field: str, value: object) -> None:
    """A size that is missing or no whole number above 0 is named with its value."""
    with pytest.raises(SpecError, match=rf"{field}.* is .*expected a whole number > 0"):
        model_spec(tiny_config(**{field: value}))


def test_config_without_a_type_is_unknown() -> None:
    """An empty config.json is an error with a text, not a KeyError."""
    with pytest.raises(SpecError, match="model type ''"):
        model_spec({})


def test_gpus_are_found_by_short_and_by_nvml_name_in_any_case() -> None:
    """Both lead to the same data sheet."""
    assert gpu_spec("h100") is gpu_spec("NVIDIA H100 80GB HBM3")
    assert gpu_spec("Tesla T4").name == "T4"
    assert gpu_spec("NVIDIA A100-SXM4-80GB").name == "A100"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("NVIDIA H100 80GB HBM2", "H100"),
        ("L4S", "L40S"),
        ("NVIDIA A100-SXM4-400GB", "A100-40GB"),
    ],
)
def test_unknown_gpu_suggests_the_nearest(name: str, nearest: str) -> None:
    """The error names the GPU, the nearest one and all known ones."""
    with pytest.raises(SpecError, match=rf"nearest is {nearest}; known: .*T4.*H200"):
        gpu_spec(name)


@given(st.text())
def test_any_gpu_name_is_found_or_refused(name: str) -> None:
    """No name leads to anything but a data sheet or a SpecError."""
    with contextlib.suppress(SpecError):
        assert gpu_spec(name).name in KNOWN_GPUS


@pytest.mark.parametrize("name", KNOWN_GPUS)
def test_data_sheets_are_in_si_units(name: str) -> None:
    """Figures lie where they must, and a GPU idles below its board power."""
    gpu = gpu_spec(name)
    assert 1e12 < gpu.vector_ops_per_s < 2e14
    assert gpu.vector_ops_per_s < gpu.compute_ops_per_s < 1e16
    assert 1e11 < gpu.bandwidth_bytes_per_s < 1e13
    assert 1e10 < gpu.link_bytes_per_s < 1e12
    assert 0 < gpu.idle_watts < gpu.board_watts < 2000
    assert 1e10 < gpu.memory_bytes < 1e12
    assert 1e6 < gpu.l2_bytes < 1e9
    assert 10 <= gpu.num_sms < 200
    assert 1 < gpu.die_area_cm2 < 20
    assert gpu.process_nm in (3, 5, 7, 8, 12)
    assert gpu.source.startswith("NVIDIA")


@pytest.mark.parametrize("name", KNOWN_GPUS)
def test_peaks_rise_with_narrower_types(name: str) -> None:
    """FP8 and INT8 at least double the 16-bit peak, FP4 doubles them."""
    gpu = gpu_spec(name)
    assert gpu.peak("float32") == gpu.peak("vector") == gpu.vector_ops_per_s
    for kind in {"fp8", "int8"} & set(gpu.tensor_ops_per_s):
        assert gpu.peak(kind) >= 1.99 * gpu.compute_ops_per_s
    if "fp4" in gpu.tensor_ops_per_s:
        assert gpu.peak("fp4") >= 2 * gpu.peak("fp8")


def test_types_without_tensor_cores_of_their_own_compute_in_16_bits() -> None:
    """The A100 has no FP8: such weights are widened first."""
    gpu = gpu_spec("A100")
    assert gpu.peak("fp8") == gpu.peak("bfloat16") == 312e12
    assert gpu.peak("int8") == 624e12


# FP16, INT8, vector [TOP/s], memory, link [GB/s], W, mm2
DATA_SHEETS = {
    "T4": (65, 130, 8.1, 320, 16, 70, 545),
    "L4": (121, 242, 30.3, 300, 32, 72, 294),
    "A100": (312, 624, 19.5, 2039, 300, 400, 826),
    "H100": (989, 1979, 67, 3350, 450, 700, 814),
}


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_the_gpus_of_the_paper(name: str) -> None:
    """Dense peaks, one direction of the link."""
    gpu = gpu_spec(name)
    assert (
        gpu.compute_ops_per_s / 1e12,
        gpu.peak("int8") / 1e12,
        gpu.vector_ops_per_s / 1e12,
        gpu.bandwidth_bytes_per_s / 1e9,
        gpu.link_bytes_per_s / 1e9,
        gpu.board_watts,
        gpu.die_area_cm2 * 100,
    ) == pytest.approx(DATA_SHEETS[name])


@pytest.mark.parametrize(
    ("nvml", "short"),
    [
        ("NVIDIA A100 80GB PCIe", "A100-PCIe"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIe-40GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("A100-SXM4-80GB", "A100"),
        ("nvidia h200 nvl", "H200-NVL"),
        ("GH200 480GB", "GH200"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("GeForce RTX 4090", "RTX4090"),
        ("h100 nvl", "H100-NVL"),
    ],
)
def test_names_are_tolerant(nvml: str, short: str) -> None:
    """With or without the maker's name, in any case, with spaces or hyphens."""
    assert gpu_spec(nvml).name == short


def test_h100_data_sheet() -> None:
    """The assumed GPU of hosts without one, figure by figure."""
    gpu = gpu_spec("H100")
    assert (gpu.compute_ops_per_s, gpu.vector_ops_per_s) == (989e12, 67e12)
    assert (gpu.bandwidth_bytes_per_s, gpu.link_bytes_per_s) == (3350e9, 450e9)
    assert gpu.board_watts == 700


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_key_value_heads", 0),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", "x"),
        ("head_dim", 0),
        ("hidden_size", True),
        ("num_attention_heads", 10**6),
        ("num_local_experts", 1),
        ("num_local_experts", [1]),
        ("num_local_experts", -8),
        ("layer_types", 5),
        ("moe_layer_freq", "x"),
        ("quantization_config", "fp8"),
        ("quantization_config", {"quant_method": "gptq", "bits": "four"}),
        ("max_position_embeddings", "z"),
    ],
)
def test_fields_that_cannot_be_are_refused(field: str, value: object) -> None:
    """A wrong type, a zero or a contradiction is a SpecError, never a number."""
    with pytest.raises(SpecError):
        model_spec({**built_in_config("Mixtral-8x7B"), "sliding_window": 64, field: value})
