"""Every name of vLLM that is wrapped, in one table, and which of them an installed vLLM lacks.

``python -m llm_carbon_meter.servers.vllm_hooks`` says so in a process of its own: importing vLLM
takes seconds, writes to stdout and may end the process. No engine is started.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

HOOKED: Final[Mapping[str, Sequence[str]]] = {
    "vllm.v1.core.sched.scheduler:Scheduler": (
        "__init__",
        "schedule",
        "update_from_output",
        "_free_request",
        "shutdown",
    ),
    "vllm.v1.engine.core:EngineCore": ("execute_dummy_batch", "sleep", "wake_up"),
    "vllm.v1.executor.abstract:Executor": ("__init__",),
    "vllm.v1.engine.async_llm:AsyncLLM": ("__init__", "shutdown"),
    "vllm.v1.engine.output_processor:OutputProcessor": ("add_request", "do_tracing"),
    "vllm.entrypoints.serve": ("register_vllm_serve_api_routers",),
}
"""Module, or module:class, and the names wrapped in it."""
ANSWER: Final = "llm_carbon_meter: "
"""In front of the line that is meant for us."""
IMPORT_S: Final = 180.0
"""vLLM's import may take this long on a slow disk."""


class Fit(NamedTuple):
    """How an installed vLLM fits."""

    version: str
    missing: Sequence[str]
    """What is wrapped and is not there, or why that cannot be said."""


def load() -> tuple[list[Any], list[str]]:
    """vLLM's classes and module in the table's order, and what they lack."""
    owners, missing = [], []
    for place, names in HOOKED.items():
        try:
            owner = _owner(place)
        except (ImportError, AttributeError) as error:
            missing.append(f"{place} ({error})")
            continue
        owners.append(owner)
        missing += [f"{place}.{name}" for name in names if not _has(owner, name)]
    return owners, missing


def _has(owner: Any, name: str) -> bool:
    """What is only promised by an abstract class is not there."""
    found = getattr(owner, name, None)
    return found is not None and not getattr(found, "__isabstractmethod__", False)


def _owner(place: str) -> Any:
    module, _, name = place.partition(":")
    found = import_module(module)
    return getattr(found, name) if name else found


def installed_fit() -> Fit:
    """Ask a new process, which imports vLLM."""
    command = [sys.executable, "-m", "llm_carbon_meter.servers.vllm_hooks"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=IMPORT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Fit("", [f"vllm was not imported within {IMPORT_S:g} s"])
    answers = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if answers:
        return Fit(**json.loads(answers[-1].removeprefix(ANSWER)))
    said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    return Fit("", [f"importing vllm ended with code {done.returncode}; it said: {said}"])


def main() -> None:
    """Print the fit, among whatever vLLM prints."""
    _, missing = load()
    version = getattr(sys.modules.get("vllm"), "__version__", "")
    print("\n" + ANSWER + json.dumps(Fit(str(version), missing)._asdict()))


if __name__ == "__main__":
    main()
