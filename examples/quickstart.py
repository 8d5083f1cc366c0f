"""Starts a metered vLLM server without a GPU, asks it one question, and prints what that used.

    python examples/quickstart.py

The model is tiny and runs on the CPU. The power comes from the NVML stub library, which plays a
script: every joule is simulated, none is of a real GPU. The estimate is for the H100 that the stub
names. An H100 would answer much sooner than this CPU, so the two figures do not compare here.
"""

import time
from pathlib import Path

import httpx

from llm_carbon_meter.testing.scrape import fetch_record
from llm_carbon_meter.testing.servers import VllmServer
from llm_carbon_meter.testing.stub_power import StubPower
from llm_carbon_meter.testing.tiny_model import make_tiny_model

FOLDER = Path("quickstart-out")
MIDDLEWARE = ("--middleware", "llm_carbon_meter.CarbonHeadersMiddleware")


def main() -> None:
    """Serve, ask, print headers, record and metrics."""
    stub = StubPower.prepare(FOLDER / "nvml-stub")
    environment = {"LLM_CARBON_METER_POWER": "nvml", **stub.environment()}
    model = make_tiny_model(FOLDER / "tiny-qwen2")
    log = FOLDER / "server.log"
    print(f"starting vLLM; its log: {log}", flush=True)
    with VllmServer(model, log=log, environment=environment, extra_args=MIDDLEWARE) as server:
        question = {
            "model": server.model_name,
            "messages": [{"role": "user", "content": "What does one answer cost?"}],
            "max_tokens": 200,
            **server.exact,
        }
        client = httpx.Client(base_url=server.url, timeout=60, trust_env=False)
        answer = client.post("/v1/chat/completions", json=question)
        for name, value in answer.headers.items():
            if name.startswith("llm-carbon-"):
                print(f"{name}: {value}")
        for _ in range(60):  # the counter's next tick makes the record final
            record = fetch_record(server.url, answer.json()["id"])
            if record is not None and record["status"] == "final":
                break
            time.sleep(0.5)
        assert record is not None
        print(f"record: {record['status']}, quality {record['quality']}")
        for name in ("prefill_wh", "decode_wh", "energy_wh", "operational_grams"):
            print(f"  {name}: {record[name]:.3g}")
        for line in client.get("/metrics").text.splitlines():
            if line.startswith(("llm_carbon_meter_energy_joules_total", "llm_carbon_meter_acc")):
                print(line)


if __name__ == "__main__":
    main()
