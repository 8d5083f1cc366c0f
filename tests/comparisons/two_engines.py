"""The same model and the same requests on vLLM and on ``transformers serve``, side by side.

``python -m tests.comparisons.two_engines`` prints its table. Energy is that of our stub library.
"""

import asyncio
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from llm_carbon_meter.demo.command import AT_ONCE, MAX_OUTPUT, MAX_PROMPT, REQUESTS
from llm_carbon_meter.demo.replay import Prompts, replay
from llm_carbon_meter.demo.trace import draw
from llm_carbon_meter.testing.scrape import PREFIX
from llm_carbon_meter.testing.servers import Server, TransformersServer, VllmServer
from llm_carbon_meter.testing.stub_power import StubPower
from llm_carbon_meter.testing.tiny_model import make_tiny_model

SEED = 0
SETTLING_S = 3.0
ROWS = {
    "requests": "requests_total",
    "prompt tokens computed": 'tokens_total{phase="prefill"}',
    "answer tokens computed": 'tokens_total{phase="decode"}',
    "steps with prefill alone": 'steps_total{phase="prefill"}',
    "steps with decode alone": 'steps_total{phase="decode"}',
    "mixed steps": 'steps_total{phase="mixed"}',
    "prefill J": 'energy_joules_total{account="prefill"}',
    "decode J": 'energy_joules_total{account="decode"}',
    "idle J": 'energy_joules_total{account="idle"}',
    "accounted / counted": "accounted_ratio",
}
ENGINES = ("vLLM", "transformers")


def start(engine: str, model: Path, folder: Path, stub: StubPower) -> Server:
    """A metered server of the tiny model, to be entered; its power is the stub's."""
    environment = {"LLM_CARBON_METER_POWER": "nvml", **stub.environment()}
    log = folder / f"{engine}.log"
    if engine == "vLLM":
        return VllmServer(model, log=log, environment=environment)
    return TransformersServer(model, log=log, environment=environment)


def main() -> None:
    """Ask both servers, one after the other, and print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, stub = make_tiny_model(folder / "tiny-qwen2"), StubPower.prepare(folder / "stub")
        found = {engine: _figures(start(engine, model, folder, stub), model) for engine in ENGINES}
    print("| | " + " | ".join(found) + " |\n" + "| --- " * (len(found) + 1) + "|")
    for row, metric in ROWS.items():
        print(f"| {row} | " + " | ".join(f"{each[metric]:.6g}" for each in found.values()) + " |")


def _figures(server: Server, model: Path) -> Mapping[str, float]:
    requests = draw(REQUESTS, SEED, MAX_PROMPT, MAX_OUTPUT)
    with server:
        asyncio.run(replay(server, requests, Prompts(model, SEED), pace=1.0, at_once=AT_ONCE))
        asyncio.run(asyncio.sleep(SETTLING_S))
        with urllib.request.urlopen(server.url + "/metrics", timeout=10) as answer:
            return _read(answer.read().decode())


def _read(text: str) -> Mapping[str, float]:
    """The metrics of `ROWS`, summed over their other labels."""
    found = dict.fromkeys(ROWS.values(), 0.0)
    ours = "".join(line + "\n" for line in text.splitlines() if PREFIX in line)
    for family in text_string_to_metric_families(ours):
        for sample in family.samples:
            labels = sample.labels
            name = sample.name.removeprefix(PREFIX)
            keys = (name, *(f'{name}{{{key}="{value}"}}' for key, value in labels.items()))
            for key in keys:
                if key in found:
                    found[key] += sample.value
    return found


if __name__ == "__main__":
    main()
