"""Tables 3, 4 and 5 of the LLMCO2 paper (arXiv 2410.02950) as printed [%]."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

FAMILIES: Final = ("Gemma", "Bloom", "Gemma2", "Qwen2", "Mixtral", "Llama3.1")


@dataclass(frozen=True, slots=True)
class PrintedRow:
    """A line of a table."""

    values: tuple[float, ...]
    """In the order of `FAMILIES`."""
    mean: float
    """As printed: some are truncated, and one is not the mean of its line."""


MAPE: Final[Mapping[str, PrintedRow]] = {
    "LLMCarbon": PrintedRow((89.2, 98.5, 101.2, 71.3, 156, 233), 124.9),
    "DeepEn": PrintedRow((34.3, 39.1, 41.7, 33.8, 23.2, 19.7), 31.9),
    "NNLQP": PrintedRow((26.8, 30.6, 31.6, 21.5, 34.1, 26.2), 28.5),
    "LLMCO2": PrintedRow((15.8, 11.9, 21.1, 6.3, 19.4, 18.3), 15.5),
}
"""Table 3."""

EBA: Final[Mapping[int, Mapping[str, PrintedRow]]] = {
    30: {
        "LLMCarbon": PrintedRow((7.8, 6.1, 3.8, 11.9, 4.2, 3.5), 6.2),
        "DeepEn": PrintedRow((58.5, 48.9, 44.8, 60.5, 41, 36.6), 48.4),
        "NNLQP": PrintedRow((60, 50.1, 45.6, 65.2, 37.5, 33.4), 48.6),
        "LLMCO2": PrintedRow((77.9, 85.3, 71.3, 80.1, 64.8, 62.6), 73.6),
    },
    10: {
        "LLMCarbon": PrintedRow((2.1, 1.9, 0.8, 7.7, 1.3, 0.8), 2.4),
        "DeepEn": PrintedRow((25, 13, 12.5, 30.2, 13.2, 11.6), 17.6),
        "NNLQP": PrintedRow((32.6, 15.7, 19.3, 36.5, 9.8, 9.2), 20.5),
        "LLMCO2": PrintedRow((53.3, 60, 40.3, 53.1, 35.3, 32.1), 45.7),
    },
    5: {
        "LLMCarbon": PrintedRow((0.1, 0, 0.1, 0.3, 0, 0), 1.1),
        "DeepEn": PrintedRow((11.6, 8.2, 4.7, 16.1, 7.2, 6.8), 9.1),
        "NNLQP": PrintedRow((11.9, 13.2, 7.4, 19.2, 6.3, 6.1), 10.7),
        "LLMCO2": PrintedRow((27.1, 46.7, 12.1, 33.7, 9.3, 7.3), 22.7),
    },
}
"""Table 4, by threshold [%]."""

ABLATION_EBA10: Final[Mapping[str, PrintedRow]] = {
    "prefill/decode": PrintedRow((41.5, 38.5, 29.5, 44.6, 26.9, 24.6), 34.3),
    "+ roofline": PrintedRow((45.6, 46.3, 33.5, 47.9, 30.8, 28.6), 38.8),
    "+ focused sampling": PrintedRow((53.3, 60, 40.3, 53.1, 35.3, 32.1), 45.7),
}
"""Table 5: parts of LLMCO2 added one after the other."""
