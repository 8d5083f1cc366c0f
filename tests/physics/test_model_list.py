"""The built-in list of models: shapes, names and the published numbers of parameters."""

import json
from importlib import resources

import pytest

from llm_carbon_meter.physics.model_list import built_in_config, built_in_model, built_in_names
from llm_carbon_meter.physics.model_specs import model_spec
from llm_carbon_meter.records import SpecError

# Parameters as published with the weights, a tied head counted once, without layers that predict
# further tokens. Llama 4 with its vision part (0.9e9), the other multimodal ones without. From
# Qwen3.5 on as transformers' own code builds them from the published configuration, but Kimi K3 as
# published (2.78e12).
PUBLISHED = [
    ("LLaMA-7B", 6738415616),
    ("LLaMA-13B", 13015864320),
    ("LLaMA-30B", 32528943616),
    ("LLaMA-65B", 65285660672),
    ("Llama-2-7B", 6738415616),
    ("Llama-2-13B", 13015864320),
    ("Llama-2-70B", 68976648192),
    ("CodeLlama-7B", 6738546688),
    ("CodeLlama-13B", 13016028160),
    ("CodeLlama-34B", 33743970304),
    ("CodeLlama-70B", 68976910336),
    ("XGen-7B", 6895702016),
    ("Llama-3-8B", 8030261248),
    ("Llama-3-70B", 70553706496),
    ("Llama-3.1-8B", 8030261248),
    ("Llama-3.1-70B", 70553706496),
    ("Llama-3.1-405B", 405853388800),
    ("Llama-3.2-1B", 1235814400),
    ("Llama-3.2-3B", 3212749824),
    ("TinyLlama-1.1B", 1100048384),
    ("Yi-1.5-6B", 6061035520),
    ("Yi-1.5-9B", 8829407232),
    ("Yi-1.5-34B", 34388917248),
    ("DeepSeek-LLM-7B", 6910365696),
    ("Llama-4-Scout", 108641793536),
    ("Llama-4-Maverick", 401583781376),
    ("Mistral-7B-v0.1", 7241732096),
    ("Mistral-7B-v0.2", 7241732096),
    ("Mistral-7B", 7248023552),
    ("Ministral-8B", 8019808256),
    ("Mistral-Nemo", 12247782400),
    ("Mistral-Small-22B", 22247282688),
    ("Mistral-Small-24B", 23572403200),
    ("Mistral-Large", 122610069504),
    ("Mixtral-8x7B", 46702792704),
    ("Mixtral-8x22B", 140630071296),
    ("Qwen2-0.5b", 494032768),
    ("Qwen2-1.5b", 1543714304),
    ("Qwen2.5-3B", 3085938688),
    ("Qwen2-7b", 7615616512),
    ("Qwen2.5-14B", 14770033664),
    ("Qwen2.5-32B", 32763876352),
    ("Qwen2-72b", 72706203648),
    ("Qwen3-0.6B", 596049920),
    ("Qwen3-1.7B", 1720574976),
    ("Qwen3-4B", 4022468096),
    ("Qwen3-8B", 8190735360),
    ("Qwen3-14B", 14768307200),
    ("Qwen3-32B", 32762123264),
    ("Qwen3-30B-A3B", 30532122624),
    ("Qwen3-235B-A22B", 235093634560),
    ("Qwen3-Coder-480B-A35B", 480154875392),
    ("Gemma-2b", 2506172416),
    ("Gemma-7b", 8537680896),
    ("Gemma2-2b", 2614341888),
    ("Gemma2-9b", 9241705984),
    ("Gemma2-27b", 27227128320),
    ("Gemma3-1b", 999885952),
    ("Gemma3-4b", 3880263168),
    ("Gemma3-12b", 11766034176),
    ("Gemma3-27b", 27009346304),
    ("Phi-3-mini", 3821079552),
    ("Phi-3.5-mini", 3821079552),
    ("Phi-3-medium", 13960238080),
    ("Phi-3-small", 7392272384),
    ("Phi-4", 14659507200),
    ("Phi-4-mini", 3836021760),
    ("StarCoder2-3b", 3030371328),
    ("StarCoder2-7b", 7173923840),
    ("StarCoder2-15b", 15957889024),
    ("Falcon-7b", 6921720704),
    ("Falcon-40b", 41303293952),
    ("Falcon-180B", 178557088768),
    ("Pythia-70m", 70426624),
    ("Pythia-160m", 162322944),
    ("Pythia-410m", 405334016),
    ("Pythia-1b", 1011781632),
    ("Pythia-1.4b", 1414647808),
    ("Pythia-2.8b", 2775208960),
    ("Pythia-6.9b", 6857302016),
    ("RedPajama-INCITE-7B", 6857302016),
    ("Pythia-12b", 11846072320),
    ("StableLM-Alpha-7b", 7869358080),
    ("GPT-NeoX-20b", 20554567680),
    ("OPT-125m", 125239296),
    ("OPT-1.3b", 1315758080),
    ("OPT-2.7b", 2651596800),
    ("OPT-6.7b", 6658473984),
    ("OPT-13b", 12853473280),
    ("OPT-30b", 29974540288),
    ("OPT-66b", 65719701504),
    ("gpt-oss-20b", 20914757184),
    ("gpt-oss-120b", 116829156672),
    ("DeepSeek-V2-Lite", 15706484224),
    ("DeepSeek-V2", 235741434880),
    ("DeepSeek-V3", 671026419200),
    ("Nemotron-Nano-9B-v2", 8888227328),
    ("Nemotron-Nano-12B-v2", 12310001152),
    ("Bloom-560m", 559214592),
    ("Bloom-1b1", 1065314304),
    ("Bloom-1b7", 1722408960),
    ("Bloom-3b", 3002557440),
    ("Bloom-7b1", 7069016064),
    ("Bloom-176b", 176247271424),
    ("Qwen3.5-27B", 26895998464),
    ("Qwen3.5-35B-A3B", 34660610688),
    ("Qwen3.5-122B-A10B", 122111526912),
    ("Qwen3.5-397B-A17B", 396346350336),
    ("Qwen3-Next-80B-A3B", 79674391296),
    ("GLM-4.5", 352797814784),
    ("GLM-4.5-Air", 106852245504),
    ("GLM-5", 743911199232),
    ("GLM-5.2", 743377000704),
    ("MiniMax-M2", 228689748992),
    ("MiniMax-M3", 426174565632),
    ("DeepSeek-V3.2", 671877929216),
    ("DeepSeek-V4-Flash", 284332230231),
    ("DeepSeek-V4-Pro", 1572997179491),
    ("Kimi-K2", 1026408232448),
    ("Kimi-K2.5", 1026408232448),
    ("Kimi-K3", 2780000000000),
    ("Kimi-Linear-48B-A3B", 49122675072),
    ("MiMo-7B", 7622619136),
    ("MiMo-V2-Flash", 308778768832),
    ("Gemma4-26B-A4B", 25233141760),
    ("Gemma4-31B", 30697345280),
    ("Gemma3n-E4B", 6835235568),
    ("Gemma3n-E2B", 4435182688),
    ("Nemotron-3-Nano-30B-A3B", 31577937344),
    ("Nemotron-3-Super-120B-A12B", 120668687360),
    ("Nemotron-3-Ultra-550B-A55B", 549308968960),
    ("Nemotron-H-56B", 56324350464),
    ("Step-3.5-Flash", 196956118272),
    ("OLMo-2-7B", 7298617344),
    ("OLMo-2-13B", 13716198400),
    ("OLMo-2-32B", 32234279936),
    ("OLMo-3-7B", 7298011136),
    ("OLMo-3-32B", 32233522176),
    ("OLMoE-1B-7B", 6919161856),
    ("SmolLM3-3B", 3075098624),
    ("Command-R", 34980831232),
    ("Command-R-plus", 103810674688),
    ("Command-R7B", 8028033024),
    ("Command-A", 111057580032),
    ("Granite-4.0-H-Small", 32207337984),
    ("Granite-4.0-H-Tiny", 6939037248),
    ("Granite-4.0-H-Micro", 3191396096),
    ("Granite-4.0-Micro", 3402836480),
    ("GLM-4-9B", 9400279040),
    ("GLM-4-32B", 32566081536),
    ("Chameleon-7B", 7013404672),
]


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED)
def test_listed_models_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    """The closed form of every listed shape is within 1 % of what was published."""
    assert built_in_model(name).parameters == pytest.approx(parameters, rel=0.01)


def test_every_listed_model_is_checked() -> None:
    """A model that joins the list joins the table of published counts."""
    assert {name for name, _ in PUBLISHED} == set(built_in_names())


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("llama-3.1-8b", "Llama-3.1-8B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("META-LLAMA/llama-3.1-8b-instruct", "Llama-3.1-8B"),
        ("Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("lmsys/vicuna-7B", "LLaMA-7B"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen2-7b"),
    ],
)
def test_models_are_found_by_short_name_and_hub_id_in_any_case(name: str, listed: str) -> None:
    """All lead to the same shape under the listed name."""
    assert built_in_model(name).name == listed
    assert built_in_model(name) == model_spec(built_in_config(listed), listed)


def test_no_alias_leads_to_two_models() -> None:
    """Every name and alias belongs to one model."""
    text = (resources.files("llm_carbon_meter") / "data" / "models.json").read_text("utf-8")
    models = json.loads(text).items()
    names = [alias.casefold() for name, model in models for alias in (name, *model["aliases"])]
    assert len(names) == len(set(names))


def test_unknown_model_suggests_the_nearest_and_the_config() -> None:
    """The error says what is near and what else can be given."""
    with pytest.raises(SpecError, match=r"'Llama-9-8B'.*nearest is Llama-3-8B.*config\.json"):
        built_in_config("Llama-9-8B")
