"""The verbs ``models`` and ``gpus``: what is known, in lines that a terminal holds."""

import pytest

from llm_carbon_meter.cli import main
from llm_carbon_meter.physics.gpu_specs import all_gpus
from llm_carbon_meter.physics.model_list import built_in_model, built_in_names


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """Cells of what a verb prints, the heading first; no line is longer than 100 columns."""
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 100
    return [line.split() for line in printed]


def test_every_model_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """With its parameters, its context and its bits."""
    _, *rows = lines(capsys, "models")
    assert [row[0] for row in rows] == list(built_in_names())
    mixture = next(row for row in rows if row[0] == "gpt-oss-120b")
    assert mixture == ["gpt-oss-120b", "117", "5.71", "131072", "16", "4.25", "bfloat16"]
    assert built_in_model("gpt-oss-120b").parameters == pytest.approx(117e9, rel=5e-3)


def test_every_gpu_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """With its memory, its watts, and what was measured on it."""
    _, *rows = lines(capsys, "gpus")
    assert [row[0] for row in rows] == [gpu.name for gpu in all_gpus()]
    measured = {row[0]: row[-1] for row in rows}
    assert (measured["H100"], measured["L40S"], measured["T4"]) == ("requests", "kernels", "no")
    assert next(row for row in rows if row[0] == "H100")[1:4] == ["80", "700", "70"]


@pytest.mark.parametrize(("verb", "word", "count"), [("models", "QWEN3-", 10), ("gpus", "h200", 4)])
def test_a_word_narrows_the_list(
    verb: str, word: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """In any case; one that is in no name is an error."""
    _, *rows = lines(capsys, verb, word)
    assert len(rows) == count
    assert all(word.casefold() in row[0].casefold() for row in rows)
    assert main([verb, "zebra"]) == 1
    assert "'zebra'; leave the word out for all" in capsys.readouterr().err
