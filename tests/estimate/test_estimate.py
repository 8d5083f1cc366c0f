"""``llm-carbon-meter estimate`` through the command line: one request, and tables of them."""

import csv
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter import estimate
from llm_carbon_meter.cli import main
from llm_carbon_meter.estimate.one_request import make_deployment
from llm_carbon_meter.estimate.table import estimate_file
from llm_carbon_meter.physics.kernels import weight_memory_bytes
from llm_carbon_meter.physics.model_list import built_in_config, built_in_model, built_in_names
from llm_carbon_meter.predictor.flop import FlopModel

ONE = ["estimate", "--method", "flop", "--model", "Llama-3.1-8B"]
TOKENS = ["--prompt-tokens", "1000", "--output-tokens", "500"]
ROW = {
    "model_config": "Llama-3.1-8B",
    "gpu": "H100",
    "num_gpus": "1",
    "dtype": "bfloat16",
    "engine": "vllm",
    "engine_version": "",
    "concurrency": "4",
    "prompt_tokens": "1000",
    "output_tokens": "500",
}


def test_one_request_to_the_digit(capsys: pytest.CaptureFixture[str]) -> None:
    """FLOP of the reference phase by phase; watt-hours and grams with three digits."""
    assert main([*ONE, *TOKENS]) == 0
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()[1:5]] == [
        ["phase", "FLOP", "Wh", "gCO2eq"],
        ["prefill", "16584810496000", "0.0138", "0.00656"],
        ["decode", "8357810176000", "0.0348", "0.0165"],
        ["total", "24942620672000", "0.0486", "0.0231"],
    ]
    assert "no PUE on top" in printed
    assert "10 % to 90 %" not in printed  # a formula has no interval


def test_the_readme_shows_what_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands in it, and their output to the digit."""
    for name in [name for name in os.environ if name.startswith("LLM_CARBON_METER_")]:
        monkeypatch.delenv(name)
    text = (Path(estimate.__file__).parent / "README.md").read_text()
    shown = re.findall(r"^    \$ llm-carbon-meter (.*?)\n\n", text, re.DOTALL | re.MULTILINE)
    assert len(shown) == 2
    for example in shown:
        command, _, output = example.replace("\\\n", "").partition("\n")
        assert main(command.split()) == 0
        printed, lines = capsys.readouterr().out.split("\n"), output.split("\n")
        assert [line.strip() for line in lines] == [line.strip() for line in printed if line]


def test_a_power_limit_is_printed_and_saves_energy(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the GPU's name and in the reason of the interval, here and in the comparison."""
    asked = ["estimate", "--model", "Llama-3.1-8B", "--gpu", "H100", *TOKENS, "--compare"]
    assert main(asked) == 0
    before = capsys.readouterr().out
    assert main([*asked, "--power-limit", "500"]) == 0
    after = capsys.readouterr().out
    assert "on 1 x H100 at 500 W, " in after
    assert "GPU H100 at 500 W not measured" in after
    assert "\nH100 at 500 W *" in after
    total = [float(re.findall(r"^total +(\S+)", text, re.M)[0]) for text in (before, after)]
    assert 0.8 * total[0] < total[1] < total[0]


def test_rows_may_have_a_power_limit(tmp_path: Path) -> None:
    """Empty is the data sheet's; one that cannot be is the row's error, and no other's."""
    limits = ("", "700", "500", "80000", "x")
    rows = [{**ROW, "concurrency": "32", "power_limit_w": limit} for limit in limits]
    source, target = write(tmp_path / "rows.csv", rows), tmp_path / "out.csv"
    assert main(["estimate", "--input", str(source), "--output", str(target)]) == 1
    answers = list(csv.DictReader(target.read_text("utf-8").splitlines()))
    full, same, less, beyond, none = (row["energy_wh"] for row in answers)
    assert full == same != ""
    assert 0.8 * float(full) < float(less) < float(full)
    assert (beyond, none) == ("", "")
    assert "cannot be that of H100" in answers[3]["error"]
    assert "power_limit_w is 'x'" in answers[4]["error"]


def test_the_comparison_knows_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """Other GPUs that hold 70 billion weights on two, and the names of those that do not."""
    command = ["estimate", "--model", "Llama-3.1-70B", "--gpu", "H200", "--num-gpus", "2"]
    assert main([*command, "--method", "flop", "--compare", *TOKENS]) == 0
    table, _, small = capsys.readouterr().out.partition("such requests do not fit on ")
    assert "H200 *" in table
    assert "B200" in table
    assert "T4" in small
    assert "T4 " not in table.partition("GPU  ")[2]


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """Cells of the comparison by row; out_of_domain in one."""
    assert main(["estimate", *arguments, "--compare", *TOKENS]) == 0
    table, _, _ = capsys.readouterr().out.partition("\n\n")[2].partition("\nsuch requests")
    lines = [line for line in table.splitlines()[1:] if ":" not in line]
    return [re.split(r" {2,}", line.replace(" *", "")) for line in lines]


def test_the_comparison_is_sorted_and_has_three_digits(capsys: pytest.CaptureFixture[str]) -> None:
    """The cheapest first; no figure has a fourth significant digit."""
    rows = compared(capsys, "--model", "Llama-3.1-8B")
    figures = [row[1:5] for row in rows]
    assert len(rows) > 10
    assert figures == sorted(figures, key=lambda row: float(row[0]))
    digits = [text.replace(".", "").lstrip("0") for row in figures for text in row]
    assert max(map(len, digits)) == 3


def test_the_comparison_says_what_nobody_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """In every row, and beside the figure of the first."""
    command = ["estimate", "--model", "Llama-3.1-8B", "--engine", "vllm", "--compare", *TOKENS]
    assert main(command) == 0
    printed = capsys.readouterr().out
    _, first, *rows = printed.partition("\n\n")[2].splitlines()
    gpu, wh = first.split()[:2]
    assert first.endswith(f"no        GPU {gpu} not measured")
    assert f"never measured, only estimated: the first, {gpu}, with its {wh} Wh" in printed
    assert {row.split()[-1] for row in rows if row.startswith(("H100 *", "A100  "))} == {"yes"}


def test_a_gpu_that_is_too_small_is_compared_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its reason, the GPUs that 70 billion weights do fit on, and exit code 1."""
    command = ["estimate", "--model", "Llama-3.1-70B", "--gpu", "H100", "--compare", *TOKENS]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "Llama-3.1-70B does not fit on 1 x H100" in printed.err
    table, _, small = printed.out.partition("such requests do not fit on ")
    assert [line.split()[0] for line in table.splitlines()[1:3]] == ["B200", "B300"]
    assert "H100," in small


@pytest.mark.parametrize("name", built_in_names())
def test_weights_in_memory_are_all_parameters(name: str) -> None:
    """Times the bytes of each; gpt-oss, whose experts alone are small, apart."""
    model = built_in_model(name)
    if model.expert_weight_bytes != model.plain_weight_bytes:
        pytest.skip("formats are mixed")
    expected = model.parameters * model.plain_weight_bytes
    assert weight_memory_bytes(model, 1) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "Llama-3.1-9B", *TOKENS], "nearest is Llama-3.1-8B"),
        (["--model", "missing/config.json", *TOKENS], "there is no file missing/config.json"),
        (["--model", "Llama-3.1-8B", "--gpu", "H1000", *TOKENS], "nearest is H100"),
        (["--model", "Llama-3.1-8B", "--num-gpus", "3", *TOKENS], "must divide 32 heads"),
        (["--model", "Llama-3.1-8B", "--num-gpus", "0", *TOKENS], "num_gpus is 0"),
        (["--model", "Llama-3.1-8B", "--dtype", "fp7", *TOKENS], "known: bfloat16, float16"),
        (["--model", "Llama-3.1-8B", "--concurrency", "0.5", *TOKENS], "concurrency is 0.5"),
        (["--model", "Llama-3.1-8B", "--concurrency", "nan", *TOKENS], "concurrency is nan"),
        (["--model", "Llama-3.1-8B", "--gpu", "MI300X", *TOKENS], "is no NVIDIA GPU"),
        (["--model", "Llama-3.1-8B", "--power-limit", "800", *TOKENS], "idle and 700 W at most"),
        (["--model", "Llama-3.1-8B", "--power-limit", "nan", *TOKENS], "a power limit of nan W"),
        (["--model", "Llama-2-7B", *TOKENS[:3], "4000"], "holds 4096"),
        (["--model", "Llama-2-7B", *TOKENS[:3], "0"], "output_tokens is 0"),
    ],
)
def test_wrong_words_get_one_line(
    arguments: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and what was wrong."""
    assert main(["estimate", *arguments]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --model, --prompt-tokens, --output-tokens, or --input"),
        (["--model", "Llama-3.1-8B"], "give --prompt-tokens"),
        (["--input", "a.csv"], "belong together"),
        (["--output", "a.csv"], "belong together"),
        (["--input", "a", "--output", "b", "--power-limit", "9"], "to no --power-limit"),
        (["--input", "a.csv", "--output", "b.csv", "--model", "x"], "no --model"),
    ],
)
def test_wrong_usage_is_usage(
    arguments: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, as for any wrong option."""
    with pytest.raises(SystemExit, match="2"):
        main(["estimate", *arguments])
    assert words in capsys.readouterr().err


# Tables


def write(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """A CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path: Path) -> list[dict[str, str]]:
    """Its rows by column."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def answered(tmp_path: Path, *changes: Mapping[str, str]) -> tuple[int, list[dict[str, str]]]:
    """Exit code and rows of a table of `ROW` with some changes."""
    source = write(tmp_path / "rows.csv", [{**ROW, **change} for change in changes])
    target = tmp_path / "out.csv"
    code = main(["estimate", "--method", "flop", "--input", str(source), "--output", str(target)])
    return code, read(target)


def test_a_table_is_answered_row_by_row(tmp_path: Path) -> None:
    """The same rows in the same order, extra columns kept, five energies and no error."""
    code, rows = answered(
        tmp_path, {"note": "first, with a comma"}, {"note": "b", "output_tokens": "129.5"}
    )
    assert code == 0
    ours = ["prefill_wh", "decode_wh", "energy_wh", "low_wh", "high_wh"]
    assert list(rows[0]) == [*ROW, "note", *ours, "measured", "out_of_domain", "error"]
    assert rows[0]["note"] == "first, with a comma"
    assert {name: rows[0][name] for name in ROW} == ROW
    assert float(rows[0]["energy_wh"]) == pytest.approx(0.0486448845, abs=5e-11)
    assert float(rows[0]["prefill_wh"]) == pytest.approx(0.0138206754, abs=5e-11)
    for row in rows:
        energy = float(row["energy_wh"])
        assert float(row["prefill_wh"]) + float(row["decode_wh"]) == pytest.approx(energy)
        assert float(row["low_wh"]) <= energy <= float(row["high_wh"])
        assert row["error"] == ""


BAD_CELLS = [
    ({"prompt_tokens": "0"}, "prompt_tokens is 0"),
    ({"output_tokens": "-5"}, "output_tokens is -5"),
    ({"concurrency": "0.9"}, "concurrency is 0.9"),
    ({"prompt_tokens": ""}, "prompt_tokens is ''; expected a number"),
    ({"prompt_tokens": "many"}, "prompt_tokens is 'many'"),
    ({"concurrency": "nan"}, "concurrency is 'nan'; expected a finite"),
    ({"output_tokens": "inf"}, "output_tokens is 'inf'; expected a finite"),
    ({"num_gpus": "1.5"}, "num_gpus is '1.5'; expected a whole"),
    ({"num_gpus": "x"}, "num_gpus is 'x'"),
    ({"num_gpus": "5"}, "must divide 32 heads"),
    ({"num_gpus": "-2"}, "num_gpus is -2"),
    ({"gpu": "A1000"}, "nearest is A100"),
    ({"gpu": ""}, "GPU '' is not in"),
    ({"dtype": "int3"}, "'int3' is not known; known: bfloat16"),
    ({"model_config": "Lama-3.1-8B"}, "nearest is Llama-3.1-8B"),
    ({"model_config": ""}, "model '' is not in"),
    ({"cached_tokens": "1000"}, "cached_tokens is 1000 of 1000 prompt tokens"),
    ({"cached_tokens": "-1"}, "cached_tokens is -1"),
    ({"cached_tokens": "some"}, "cached_tokens is 'some'"),
    ({"prompt_tokens": "131000"}, "context of Llama-3.1-8B holds 131072"),
]


def test_bad_rows_get_their_reasons_and_the_others_their_answers(tmp_path: Path) -> None:
    """Each its own; the exit code says that there are some."""
    code, rows = answered(tmp_path, {"cached_tokens": ""}, *(change for change, _ in BAD_CELLS), {})
    assert code == 1
    for row in (rows[0], rows[-1]):
        assert float(row["energy_wh"]) > 0
        assert row["error"] == ""
    for row, (change, words) in zip(rows[1:-1], BAD_CELLS, strict=True):
        assert words in row["error"], change
        assert row["energy_wh"] == row["low_wh"] == ""


def test_a_cached_prompt_is_cheaper(tmp_path: Path) -> None:
    """An empty cell is none; decode is as it was."""
    cells = ("", "0", "900")
    _, rows = answered(tmp_path, *({"cached_tokens": cell} for cell in cells))
    prefills = [float(row["prefill_wh"]) for row in rows]
    assert prefills[0] == prefills[1] > 5 * prefills[2]
    assert len({row["decode_wh"] for row in rows}) == 1


def test_ragged_rows_are_bad_rows(tmp_path: Path) -> None:
    """Too few and too many cells; blank lines are none, and a spreadsheet's mark is skipped."""
    header, row = ",".join(ROW), ",".join(ROW.values())
    source = tmp_path / "rows.csv"
    source.write_text(f"\ufeff{header}\n{row}\n\n{row},7\nLlama\n", "utf-8")
    target = tmp_path / "out.csv"
    assert main(["estimate", "--input", str(source), "--output", str(target)]) == 1
    rows = read(target)
    assert [row["error"] for row in rows] == [
        "",
        "the row has 10 cells, the header 9",
        "the row has 1 cells, the header 9",
    ]


def test_an_answer_can_be_asked_again(tmp_path: Path) -> None:
    """Our columns of an earlier answer are replaced, in the same file even."""
    file = write(tmp_path / "rows.csv", [ROW])
    command = ["estimate", "--method", "flop", "--input", str(file), "--output", str(file)]
    assert main(command) == 0
    first = read(file)
    assert main(command) == 0
    assert read(file) == first


def test_configurations_lie_beside_the_table_or_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory first; a folder means its config.json."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, name in ((here, "Qwen3-4B"), (there, "Qwen3-8B"), (there / "sub", "Qwen3-14B")):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(built_in_config(name)), "utf-8")
    (there / "rows.csv").parent.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    _, rows = answered(
        there,
        {"model_config": "config.json"},
        {"model_config": "Qwen3-4B"},
        {"model_config": "sub"},
        {"model_config": "sub/config.json"},
        {"model_config": "Qwen3-14B"},
        {"model_config": str(there / "config.json")},
        {"model_config": "Qwen3-8B"},
    )
    energy = [row["energy_wh"] for row in rows]
    assert energy[0] == energy[1]
    assert energy[2] == energy[3] == energy[4]
    assert energy[5] == energy[6]
    assert len(set(energy)) == 3


@pytest.mark.parametrize("text", ["{", "[]", "\x00", '{"model_type": "llama"}'])
def test_a_damaged_configuration_is_the_row_s_error(tmp_path: Path, text: str) -> None:
    """No traceback, and the others are answered."""
    (tmp_path / "bad.json").write_text(text, "utf-8")
    code, rows = answered(tmp_path, {"model_config": "bad.json"}, {})
    assert code == 1
    assert "json" in rows[0]["error"]
    assert rows[1]["error"] == ""


def test_an_unknown_architecture_is_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Llama, on stderr once, and with an empty error."""
    config = {**built_in_config("Llama-3.1-8B"), "model_type": "brand_new"}
    (tmp_path / "new.json").write_text(json.dumps(config), "utf-8")
    code, rows = answered(tmp_path, *[{"model_config": "new.json"}] * 3, {})
    assert code == 0
    assert rows[0]["energy_wh"] == rows[3]["energy_wh"]
    assert rows[0]["error"] == ""
    assert capsys.readouterr().err.count("'brand_new' is not known, counted as llama") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read as CSV"),
        (b"", "is empty; expected the columns model_config, gpu"),
        (b"gpu,dtype\n", "lacks the columns model_config, num_gpus, engine"),
        (b"\xff\xfe\x00", "cannot be read as CSV"),
        ((",".join(ROW) + ",gpu\n").encode(), "same name: gpu"),
        ((",".join(ROW) + '\n"a,b').encode(), "cannot be read as CSV"),
    ],
)
def test_what_is_no_table_is_named(
    tmp_path: Path, content: bytes | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, one line, and no output."""
    source, target = tmp_path / "rows.csv", tmp_path / "out.csv"
    if content is not None:
        source.write_bytes(content)
    assert main(["estimate", "--input", str(source), "--output", str(target)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "rows.csv" in error
    assert not target.exists()


@pytest.mark.parametrize(("name", "words"), [("", "is a folder"), ("no/out.csv", "in no folder")])
def test_an_output_that_cannot_be_is_named(
    tmp_path: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is computed."""
    source = write(tmp_path / "rows.csv", [ROW])
    assert main(["estimate", "--input", str(source), "--output", str(tmp_path / name)]) == 1
    assert words in capsys.readouterr().err


def test_a_table_without_rows_is_answered(tmp_path: Path) -> None:
    """With its header and our columns."""
    source, target = tmp_path / "rows.csv", tmp_path / "out.csv"
    source.write_text(",".join(ROW) + "\n", "utf-8")
    assert main(["estimate", "--input", str(source), "--output", str(target)]) == 0
    assert target.read_text("utf-8").startswith("model_config,")


def test_thousands_of_rows_a_second(tmp_path: Path) -> None:
    """Every deployment is prepared once: at least 5000 rows a second of processor time."""
    rows = [
        {**ROW, "gpu": gpu, "dtype": dtype, "prompt_tokens": str(prompt)}
        for gpu in ("H100", "A100", "L4")
        for dtype in ("bfloat16", "fp8")
        for prompt in range(1, 3001)
    ]
    source = write(tmp_path / "rows.csv", rows)
    began_s = time.process_time()
    assert estimate_file(FlopModel(), source, tmp_path / "out.csv") == 0
    assert len(rows) / (time.process_time() - began_s) > 5000


@pytest.mark.parametrize(
    ("dtype", "element", "compute"),
    [
        ("", 2.0, "bfloat16"),
        ("float16", 2.0, "bfloat16"),
        ("float32", 4.0, "float32"),
        ("fp8", 1.0, "fp8"),
        ("int8", 1.0, "int8"),
        ("int4", 0.51953125, "bfloat16"),
        ("nf4", 0.5625, "bfloat16"),
        ("mxfp4", 0.53125, "bfloat16"),
    ],
)
def test_the_number_format_reaches_the_weights(dtype: str, element: float, compute: str) -> None:
    """Bytes of the linear kernels and the type that they compute in."""
    model: Any = make_deployment("Llama-3.1-8B", "H100", 1, dtype).model
    assert (model.weight_bytes, model.compute) == (element, compute)
