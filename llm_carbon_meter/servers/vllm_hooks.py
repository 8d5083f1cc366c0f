"""Every name of vLLM that is wrapped, in one table, and which of them an installed vLLM lacks.

``python -m llm_carbon_meter.servers.vllm_hooks`` says so in a process of its own: importing vLLM
takes seconds, writes to stdout and may end the process. No engine is started.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from llm_carbon_meter.servers.hooks import HookTable, load

HOOKED: Final[HookTable] = {
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
ANSWER: Final = "llm_carbon_meter: "
"""In front of the line that is meant for us."""
IMPORT_S: Final = 180.0
"""vLLM's import may take this long on a slow disk."""


class Fit(NamedTuple):
    """How an installed vLLM fits."""

    version: str
    missing: Sequence[str]
    """What is wrapped and is not there, or why that cannot be said."""


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
    _, missing = load(HOOKED)
    version = getattr(sys.modules.get("vllm"), "__version__", "")
    print("\n" + ANSWER + json.dumps(Fit(str(version), missing)._asdict()))


if __name__ == "__main__":
    main()
