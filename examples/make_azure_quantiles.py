"""Make azure_conversation.json and azure_code.json of llm_carbon_meter/data from the traces.

    LLM_CARBON_METER_DATA=/path/to/data python examples/make_azure_quantiles.py

The folder holds azure_llm_trace_2023/AzureLLMInferenceTrace_conv.csv.gz and _code.csv.gz: files of
github.com/Azure/AzurePublicDataset, of 2023, compressed.
"""

import csv
import gzip
import json
import os
import sys
from datetime import datetime
from pathlib import Path

import numpy as np

TRACES = {"conv": "azure_conversation.json", "code": "azure_code.json"}
"""Names of the published files' ends, and of what is made."""
RESULTS = Path(__file__).parents[1] / "llm_carbon_meter" / "data"
SOURCE = (
    "github.com/Azure/AzurePublicDataset, commit b469a113cedca53ddc3bdea71a143dc4b7d8700c, "
    "data/AzureLLMInferenceTrace_{}.csv"
)
ABOUT = {
    "licence": "CC BY 4.0",
    "cite": 'Patel et al., "Splitwise: Efficient generative LLM inference using phase '
    'splitting", ISCA 2024',
    "changes": "reduced to quantiles at equal steps of probability; no row is contained",
    "made_by": "examples/make_azure_quantiles.py",
}


def trace_file(kind: str) -> Path:
    """Where a trace is."""
    trace = Path("azure_llm_trace_2023", f"AzureLLMInferenceTrace_{kind}.csv.gz")
    folder = os.environ.get("LLM_CARBON_METER_DATA")
    if folder is None:
        sys.exit(f"set LLM_CARBON_METER_DATA to the folder that holds {trace}")
    file = Path(folder) / trace
    if not file.is_file():
        sys.exit(f"{file} is missing: fetch {SOURCE.format(kind)} and compress it with gzip")
    return file


def read(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrival in seconds, prompt tokens, output tokens of every row."""
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    # The file has seven digits after the second, datetime takes six.
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    prompts = [int(row["ContextTokens"]) for row in rows]
    outputs = [int(row["GeneratedTokens"]) for row in rows]
    return np.array(times), np.array(prompts), np.array(outputs)


def quantiles(values: np.ndarray, steps: int, digits: int) -> list[float]:
    """The values at probability 0, 1/steps … 1."""
    return [round(float(q), digits) for q in np.quantile(values, np.linspace(0, 1, steps + 1))]


def tables(kind: str) -> dict[str, object]:
    """The content of a JSON file."""
    times, prompts, outputs = read(trace_file(kind))
    fifth = np.searchsorted(np.quantile(prompts, [0.2, 0.4, 0.6, 0.8]), prompts)
    return {
        "source": SOURCE.format(kind),
        **ABOUT,
        "rows": len(prompts),
        "prompt_tokens": quantiles(prompts, 100, 1),
        "output_tokens": quantiles(outputs, 100, 1),
        "interarrival_s": quantiles(np.diff(np.sort(times)), 100, 6),
        "output_by_prompt_fifth": [quantiles(outputs[fifth == i], 20, 1) for i in range(5)],
    }


def main() -> None:
    """Write the files; one table a line."""
    for kind, name in TRACES.items():
        rows = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in tables(kind).items()]
        (RESULTS / name).write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
        print(f"wrote {RESULTS / name}")


if __name__ == "__main__":
    main()
