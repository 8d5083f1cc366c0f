"""``llm-carbon-meter plan``: figures that add up, promises that are kept, and what is refused."""

import csv
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from llm_carbon_meter.carbon.intensity import annual
from llm_carbon_meter.cli import main
from llm_carbon_meter.data.azure_trace import conversation_quantiles
from llm_carbon_meter.estimate.plan import Choice, Planner, Prices, Site
from llm_carbon_meter.estimate.replica import Replica, Slo
from llm_carbon_meter.estimate.traffic import (
    SECONDS_PER_MONTH,
    Lengths,
    Traffic,
    equal_lengths,
    trace_lengths,
)
from llm_carbon_meter.physics.gpu_specs import GpuSpec, at_limit, gpu_spec
from llm_carbon_meter.physics.memory import memory_of, server_limits
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.predictor.gnn import GnnModel

HOURS: Final = SECONDS_PER_MONTH / 3600
CHAT: Final = equal_lengths(1500, 300)
SLO: Final = Slo(1.0, 0.05)
PLACES: Final = (
    ("Llama-3.1-8B", "H100", 1),
    ("Llama-3.1-8B", "L4", 2),
    ("Llama-3.1-70B", "A100", 2),
    ("Qwen3-30B-A3B", "L40S", 4),
    ("gpt-oss-120b", "B200", 1),
)


def planner(
    requests: float = 10e6, lengths: Lengths = CHAT, slo: Slo = SLO, peak: float = 2.0
) -> Planner:
    """With a grid, a PUE and both prices."""
    site = Site(annual("DE"), 1.2, Prices("EUR", 0.2, 2.0))
    return Planner(GnnModel(), Traffic(requests, lengths, peak), slo, site)


def chosen(place: tuple[str, str, int], **changes: Any) -> Choice:
    """One deployment of the plan."""
    model, gpu, size = place
    return planner(**changes).choose(built_in_model(model), gpu_spec(gpu), size)


def replica(place: tuple[str, str, int], lengths: Lengths = CHAT) -> Replica:
    """What a replica of it does."""
    model, gpu, size = place
    spec, tokens = gpu_spec(gpu), server_limits(gpu_spec(gpu)).step_tokens
    deployment = Deployment(
        built_in_model(model), spec, size, "vllm", max_num_batched_tokens=tokens
    )
    return Replica(GnnModel().bind(deployment), lengths, tokens)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("requests", [1e4, 1e6, 1e8])
def test_the_figures_of_a_month_add_up(place: tuple[str, str, int], requests: float) -> None:
    """GPUs x hours x watts are kWh, of these come kg and money, and each holds its interval."""
    choice, intensity = chosen(place, requests=requests), annual("DE").grams_per_kwh
    assert choice.kwh.value == pytest.approx(choice.active_kwh.value + choice.idle_kwh)
    assert choice.kwh.value == pytest.approx(choice.gpus * HOURS * choice.mean_watts / 1000)
    assert choice.kilograms.value == pytest.approx(choice.kwh.value * 1.2 * intensity / 1000)
    assert choice.money is not None
    gpu_hours = choice.gpus * HOURS
    assert choice.money.value == pytest.approx(choice.kwh.value * 1.2 * 0.2 + 2.0 * gpu_hours)
    for amount in (choice.kwh, choice.kilograms, choice.money, choice.ttft_s, choice.replicas):
        assert 0 < amount.low <= amount.value <= amount.high


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("requests", [1.0, 1e5, 1e7, 1e9])
def test_power_lies_between_idle_and_the_board(
    place: tuple[str, str, int], requests: float
) -> None:
    """Averaged over a month, and over the hours with requests alone."""
    choice, gpu = chosen(place, requests=requests), gpu_spec(place[1])
    assert 0.999 * gpu.idle_watts <= choice.mean_watts <= gpu.board_watts
    busy_hours = choice.busy * choice.gpus * HOURS
    assert choice.active_kwh.value * 1000 / busy_hours <= gpu.board_watts


@pytest.mark.parametrize("place", PLACES)
def test_idle_energy_is_idle_watts_in_idle_time(place: tuple[str, str, int]) -> None:
    """Nearly all of it for one request a month, and hardly any for full replicas."""
    choice, gpu = chosen(place, requests=1.0), gpu_spec(place[1])
    assert choice.replicas.value == 1
    everything = choice.gpus * HOURS * gpu.idle_watts / 1000
    assert choice.idle_kwh == pytest.approx(everything * (1 - choice.busy))
    assert choice.idle_kwh / choice.kwh.value > 0.999
    assert choice.mean_batch == pytest.approx(1.0, abs=1e-3)
    full = chosen(place, requests=1e9, peak=1.0)
    assert full.idle_kwh / full.kwh.value < 0.05


@pytest.mark.parametrize("place", PLACES)
def test_the_batch_is_the_largest_that_keeps_the_promise(place: tuple[str, str, int]) -> None:
    """It meets the SLO and fits; one more request would not, or is more than a server takes."""
    choice, (model, gpu, size) = chosen(place), place
    most = min(
        memory_of(built_in_model(model), gpu_spec(gpu), size).most(1500, 300),
        server_limits(gpu_spec(gpu)).sequences,
    )
    assert choice.ttft_s.value <= SLO.ttft_s
    assert choice.tpot_s.value <= SLO.tpot_s
    assert choice.batch <= most
    if choice.batch < most:
        assert not replica(place).serve(np.array([choice.batch + 1.0])).meets(SLO)
    assert chosen(place, slo=Slo()).batch == most


@pytest.mark.parametrize("place", PLACES)
def test_replicas_are_as_many_as_the_peak_needs(place: tuple[str, str, int]) -> None:
    """At their full batch they serve it, and with one less they would not."""
    choice = chosen(place, requests=1e8, peak=3.0)
    full = replica(place).serve(np.array([float(choice.batch)]))
    rate = float(full.concurrency[0] / full.seconds[0])
    peak = 3 * 1e8 / SECONDS_PER_MONTH
    assert (choice.replicas.value - 1) * rate < peak <= choice.replicas.value * rate * (1 + 1e-9)
    assert chosen(place, requests=1e8, peak=1.0).replicas.value < choice.replicas.value


@pytest.mark.parametrize("place", PLACES)
def test_the_mean_load_is_in_balance(place: tuple[str, str, int]) -> None:
    """Requests leave as fast as they come, and idle time is that of Poisson arrivals."""
    choice = chosen(place, requests=3e6)
    at = replica(place).serve(np.array([choice.mean_batch]))
    rate = 3e6 / SECONDS_PER_MONTH / choice.replicas.value
    assert choice.busy * at.concurrency[0] / at.seconds[0] == pytest.approx(rate)
    if choice.mean_batch < choice.batch:
        there = choice.busy * choice.mean_batch
        assert 1 - choice.busy == pytest.approx(np.exp(-there), abs=0.01)


@pytest.mark.parametrize("place", PLACES)
def test_a_stay_is_its_first_token_and_the_others(place: tuple[str, str, int]) -> None:
    """TTFT + 299 TPOT are the mean stay; both grow with the batch, and energy falls."""
    served = replica(place).serve(np.array([1.0, 2.0, 8.0, 64.0, 256.0]))
    stay = served.ttft_s + 299 * served.tpot_s
    assert stay == pytest.approx(served.seconds, rel=0.02)
    assert (np.diff(served.ttft_s) > 0).all()
    assert (np.diff(served.tpot_s) > 0).all()
    assert (np.diff(served.joules) < 0).all()


def test_an_answer_of_one_token_has_no_next() -> None:
    """No TPOT, and its stay is its time to first token when all do nothing but prefill."""
    served = replica(PLACES[0], equal_lengths(1500, 1)).serve(np.array([1.0, 16.0]))
    assert served.tpot_s.tolist() == [0.0, 0.0]
    assert served.ttft_s == pytest.approx(served.seconds)


def test_the_smallest_traffic_needs_a_replica() -> None:
    """One request of one token a month: a share of a replica that rounds to none."""
    smallest = chosen(("Qwen3-0.6B", "B200", 1), requests=1.0, lengths=equal_lengths(1, 1))
    assert smallest.replicas.low == smallest.gpus == 1
    assert smallest.mean_watts == pytest.approx(gpu_spec("B200").idle_watts)


def test_a_lower_power_limit_is_the_sheet_s_own() -> None:
    """An H100 held at 500 W never draws more, and its limit stands in the plan."""
    limited = at_limit(gpu_spec("H100"), 500.0)
    choice = planner(1e9).choose(built_in_model("Llama-3.1-8B"), limited, 1)
    assert choice.power_limit_watts == 500
    assert choice.mean_watts <= 500 < chosen(PLACES[0], requests=1e9).mean_watts


def test_every_gpu_is_also_planned_at_other_limits(capsys: pytest.CaptureFixture[str]) -> None:
    """Each limit is a choice of its own; where it cannot be set the GPU is named."""
    command = ["plan", "--requests", "1e6", "--prompt-tokens", "500", "--output-tokens", "200"]
    places = ["--model", "Llama-3.1-8B", "--gpu", "H100", "L4", "--power-limit", "500", "350"]
    assert main([*command, *places]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.startswith("Llama-3.1-8B")]
    limits = [(row[1], row[6]) for row in rows]
    assert sorted(limits) == [("H100", "350"), ("H100", "500"), ("H100", "700"), ("L4", "72")]
    assert "a power limit of 500 W cannot be that of L4" in printed


def test_a_trace_is_its_fifths() -> None:
    """Their mean prompt is the trace's; unequal prompts wait longer for one another."""
    lengths, trace = trace_lengths("conversation"), conversation_quantiles()
    ends = np.array(trace.prompt_tokens)
    mean = float(((ends[1:] + ends[:-1]) / 2).mean())
    assert lengths.prompt_tokens.mean() == pytest.approx(mean, rel=5e-3)
    assert (np.diff(lengths.prompt_tokens) > 0).all()
    assert lengths.longest == (max(trace.prompt_tokens), max(trace.output_tokens))
    means = equal_lengths(lengths.prompt_tokens.mean(), lengths.output_tokens.mean())
    traced, equal = chosen(PLACES[0], lengths=lengths), chosen(PLACES[0], lengths=means)
    assert traced.kwh.value == pytest.approx(equal.kwh.value, rel=0.01)
    assert traced.ttft_s.value > equal.ttft_s.value


# The command line

PLAN: Final = (
    *("plan", "--requests", "10e6", "--prompt-tokens", "1500", "--output-tokens", "300"),
    *("--ttft-ms", "1000", "--tpot-ms", "50"),
)
SOME: Final = ("--model", "Llama-3.1-8B", "Llama-3.1-70B", "--gpu", "H100", "A100", "H200")


def printed(capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> str:
    """What the command prints."""
    assert main([*PLAN, *options]) == code
    return capsys.readouterr().out


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by column."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("sort", ["kg", "money"])
def test_choices_are_sorted_and_the_best_sizes_shown(
    sort: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CSV has all, the text the first of each model and GPU."""
    prices = ("--price-per-kwh", "0.2", "--price-per-gpu-hour", "2", "--currency", "EUR")
    file = tmp_path / "plan.csv"
    text = printed(capsys, *SOME, *prices, "--sort", sort, "--csv", str(file))
    rows = read(file)
    figures = [float(row[sort]) for row in rows]
    assert figures == sorted(figures)
    places = list(dict.fromkeys((row["model"], row["gpu"]) for row in rows))
    shown = [tuple(line.split()[:2]) for line in text.splitlines()[1 : 1 + len(places)]]
    assert shown == places
    assert len(rows) > len(places) == 6
    assert f"the best size of each model, GPU and limit of {len(rows)} choices" in text
    assert {row["currency"] for row in rows} == {"EUR"}


def test_without_a_price_there_is_no_money(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a column of the text nor a figure of the file, and nothing to sort by."""
    text = printed(capsys, *SOME, "--csv", str(tmp_path / "plan.csv"))
    assert "USD" not in text
    assert {(row["money"], row["currency"]) for row in read(tmp_path / "plan.csv")} == {("", "")}
    with pytest.raises(SystemExit, match="2"):
        main([*PLAN, *SOME, "--sort", "money"])


def test_a_first_row_that_nobody_measured_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside its figure; where the first was measured, nothing is said."""
    text = printed(capsys, *SOME)
    first = text.splitlines()[1].split()
    assert first[-5:] == ["no", "GPU", "H200", "not", "measured"]
    assert "never measured, only estimated: the first, Llama-3.1-8B on H200, with its " in text
    assert "never measured" not in printed(capsys, "--model", "Llama-3.1-8B", "--gpu", "H100")


def test_sizes_that_are_given_are_all_answered(capsys: pytest.CaptureFixture[str]) -> None:
    """A row or a reason for each; by default only those of one server that fit."""
    given = ("--model", "Llama-3.1-70B", "--gpu", "H100", "--num-gpus", "1", "3", "4", "16")
    text = printed(capsys, *given)
    assert "Llama-3.1-70B does not fit on 1 x H100" in text
    assert "num_gpus is 3; it must divide 64 heads" in text
    chosen, refused = text.split("\n\n")
    assert [line.split("x")[1].split()[0] for line in chosen.splitlines()[1:3]] == ["4", "16"]
    assert len(refused.strip().splitlines()) == 3
    default = printed(capsys, *given[:4])
    assert "1 x 8" in default
    assert "refused" not in default


def test_what_fits_nowhere_has_one_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the largest server; exit code 1 where nothing is left."""
    text = printed(capsys, "--model", "DeepSeek-V3", "--gpu", "T4", "A10", code=1)
    assert text.count("does not fit on 8 x ") == text.count("DeepSeek-V3 does not fit") == 2


def test_a_promise_that_nothing_keeps_shows_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    """Of every deployment that fits, and what was promised; exit code 1."""
    text = printed(capsys, *SOME, "--ttft-ms", "1", code=1)
    assert "measured" not in text
    (heading, *rows) = text.splitlines()
    assert heading.split() == ["refused", "GPU", "GPUs", "reason"]
    assert all(" at best, alone on the GPUs; the SLO is TTFT 1 ms" in row for row in rows)
    both = printed(capsys, *SOME, "--ttft-ms", "1", "--tpot-ms", "1", code=1)
    assert "the SLO is TTFT 1 ms and TPOT 1 ms" in both


def test_names_that_nobody_knows_leave_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    """Each has its reason and the nearest, and the exit code is 1."""
    names = ("--model", "Llama-3.1-9B", "Llama-3.1-8B", "--gpu", "H1000", "H100")
    text = printed(capsys, *names, code=1)
    assert "nearest is Llama-3.1-8B" in text
    assert "nearest is H100" in text
    assert text.splitlines()[1].split()[:2] == ["Llama-3.1-8B", "H100"]


def test_a_context_that_is_too_short_is_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """The longest request of a trace counts, too."""
    options = ("--model", "Llama-2-7B", "Llama-3.1-8B", "--gpu", "H100")
    text = printed(capsys, *options, "--prompt-tokens", "4000")
    assert "the context of Llama-2-7B holds 4096" in text
    assert main(["plan", "--requests", "1e6", "--trace", "conversation", *options]) == 0
    assert "the context of Llama-2-7B holds 4096" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--requests", "0"], "requests is 0; expected 1 to 1e+15 a month"),
        (["--requests", "1e-300"], "requests is 1e-300"),
        (["--requests", "1e308"], "requests is 1e+308"),
        (["--prompt-tokens", "inf"], "prompt_tokens is inf; it must be at least 1, and finite"),
        (["--requests", "nan"], "requests is nan"),
        (["--requests", "inf"], "requests is inf"),
        (["--peak", "0.5"], "peak is 0.5; a peak is at least the mean"),
        (["--ttft-ms", "0"], "ttft-ms is 0; expected a number above 0: leave it out"),
        (["--tpot-ms", "-5"], "tpot-ms is -5"),
        (["--prompt-tokens", "0"], "prompt_tokens is 0; it must be at least 1"),
        (["--output-tokens", "nan"], "output_tokens is nan"),
        (["--price-per-kwh", "0"], "price-per-kwh is 0; expected a number above 0: leave --price"),
        (["--price-per-kwh", "nan"], "price-per-kwh is nan"),
        (["--price-per-gpu-hour", "-1"], "price-per-gpu-hour is -1"),
        (["--zone", "XX"], "zone 'XX' is not in the table of countries"),
        (["--csv", "no/such/folder.csv"], "the file no/such/folder.csv cannot be written"),
    ],
)
def test_a_number_that_is_none_gets_one_line(
    options: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and what would work."""
    assert main([*PLAN, "--model", "Llama-3.1-8B", "--gpu", "H100", *options]) == 1
    output = capsys.readouterr()
    assert words in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--requests", "1", "--model", "x"], "give --prompt-tokens and --output-tokens, or"),
        (["--requests", "1", "--model", "x", "--prompt-tokens", "5"], "or --trace"),
        ([*PLAN[1:], "--model", "x", "--trace", "code"], "--trace has lengths of its own"),
        ([*PLAN[1:]], "--model"),
    ],
)
def test_wrong_usage_of_the_plan_is_usage(
    arguments: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, as for any wrong option."""
    with pytest.raises(SystemExit, match="2"):
        main(["plan", *arguments])
    assert words in capsys.readouterr().err


def test_the_grid_of_a_zone_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Kilograms go with it, and the text names it."""
    options = ("--model", "Llama-3.1-8B", "--gpu", "H100", "--zone")
    assert f"{annual('FR').grams_per_kwh:.3g} gCO2eq/kWh (FR)" in printed(capsys, *options, "FR")


def test_no_promise_is_any_latency() -> None:
    """Without an SLO the memory alone bounds the batch."""
    assert Slo() == Slo(inf, inf)


def test_every_gpu_of_the_table_is_planned_for() -> None:
    """None is left out: each has a choice or a reason."""
    from llm_carbon_meter.physics.gpu_specs import all_gpus

    gpus: Sequence[GpuSpec] = all_gpus()
    plan = planner().plan([built_in_model("Llama-3.1-8B")], gpus)
    answered = {one.gpu for one in (*plan.choices, *plan.refused)}
    assert answered == {gpu.name for gpu in gpus}
