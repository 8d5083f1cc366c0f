"""Servers of the day's model: with the meter and without it, transformers' or vLLM's."""

from collections.abc import Mapping
from typing import Any

from part import Day, Options
from part_model import model_folder

from llm_carbon_meter.demo.command import CHAT_TOKENS, MAX_OUTPUT, MAX_PROMPT, MIDDLEWARE
from llm_carbon_meter.testing.servers import Server, TransformersServer, VllmServer, cuda_available
from llm_carbon_meter.testing.shaped_model import longest

ATTENTION = ("--attn-implementation", "sdpa")
"""The one that every host has."""
MEMORY_SHARE = "0.42"
"""Of the GPU's memory for a vLLM server, so that two fit."""


def lengths(options: Options) -> tuple[int, int]:
    """The longest prompt and answer."""
    served = options.plan.served
    return longest(served) if served else (MAX_PROMPT, MAX_OUTPUT)


def make_server(day: Day, name: str, *, metered: bool) -> Server:
    """A server that is not started yet; its log is in the scratch folder.

    Args:
        day: whose model and engine it has.
        name: of the log.
        metered: with the meter, which then has to work; else without.
    """
    environment: Mapping[str, str] = {
        "LLM_CARBON_METER_ENABLED": str(int(metered)),
        "LLM_CARBON_METER_POWER": "nvml",
        "LLM_CARBON_METER_STRICT": "1",
        # An answer waits for no tick: what it waits for is no cost of steps.
        "LLM_CARBON_METER_PROVISIONAL_WAIT_S": "0",
    }
    log = day.options.scratch / f"{name}.log"
    common: dict[str, Any] = {
        "log": log,
        "environment": environment,
        "start_timeout_s": max(day.left_s, day.plan.patience_s),
    }
    folder = model_folder(day.options)
    if day.options.engine == "transformers":
        arguments = (*day.plan.cache, *ATTENTION)
        return TransformersServer(folder, extra_args=arguments, **common)
    return VllmServer(folder, name=folder.name, extra_args=_vllm_options(day.options), **common)


def _vllm_options(options: Options) -> list[str]:
    arguments = ["--middleware", MIDDLEWARE]
    if options.plan.served:
        longest_request = sum(lengths(options)) + CHAT_TOKENS
        arguments += ["--max-model-len", str(longest_request)]
    if cuda_available():  # a GPU's steps need graphs
        arguments += ["--no-enforce-eager", "--gpu-memory-utilization", MEMORY_SHARE]
    return arguments
