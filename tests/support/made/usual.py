"""A request as a cluster logs it, with names as long as they come."""

from dataclasses import replace
from typing import Final

from llm_carbon_meter.exporters.log_line import Line, request_line
from llm_carbon_meter.records import Place, RequestRecord

from .records import RECORD

LINE_BYTES: Final = 1_750
"""Of a line of the request log with long names; a test has one."""
PACKED: Final = 4
"""So many times less, of lines whose ids and figures have nothing in common; a test packs some."""
DEPLOYMENT: Final = {
    "engine": "vllm",
    "engine_version": "0.33.0",
    "gpu": "NVIDIA H100 80GB HBM3",
    "power_limit_watts": 700.0,
    "weights": "bf16",
    "kv_cache": "bf16",
    "tensor_parallel_size": 8,
    "pipeline_parallel_size": 1,
    "max_num_batched_tokens": 8192,
}
COVERS: Final = "energy of the GPUs alone, grams times PUE 1.2; embodied: the whole GPU board (pcf)"
PLACE: Final = Place(
    "f" * 32, *(["vllm-deployment-7d9c5b7f4-abcde"] * 2), node="gpu-node-17", namespace="inference"
)


def a_usual_record() -> RequestRecord:
    """Of one engine request."""
    name = "chatcmpl-" + "f" * 32
    assert RECORD.energy is not None
    return replace(
        RECORD,
        energy=replace(RECORD.energy, host_joules=None, host_source=None, water_litres=None),
        id=name,
        external_ids=(name,),
        internal_ids=(name,),
        model="meta-llama/Llama-3.1-70B-Instruct",
        deployment=DEPLOYMENT,
        covers=COVERS,
        place=PLACE,
    )


def a_usual_line() -> Line:
    """Its line."""
    return request_line(a_usual_record())
