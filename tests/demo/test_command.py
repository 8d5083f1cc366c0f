"""The demo's options, before anything is made or started."""

import argparse

import pytest

from llm_carbon_meter.demo.command import _traffic, add_arguments


@pytest.mark.parametrize("option", ["--at-once", "--requests"])
@pytest.mark.parametrize("value", ["0", "-1", "2.5", "many"])
def test_a_number_of_requests_is_whole_and_above_0(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With none in flight the demo would wait for ever."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert vars(parser.parse_args([option, "3"]))[option.strip("-").replace("-", "_")] == 3
    with pytest.raises(SystemExit):
        parser.parse_args([option, value])
    assert f"argument {option}: expected a whole number above 0" in capsys.readouterr().err


def test_as_many_requests_as_asked_for_are_replayed() -> None:
    """Few too."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for number in (1, 5, 61):
        assert len(_traffic(parser.parse_args(["--requests", str(number)]))) == number


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e400", "quick"])
def test_a_pace_is_a_number_above_0(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Said in its own words, not in those of a conversion."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args(["--pace", "0.5"]).pace == 0.5
    with pytest.raises(SystemExit):
        parser.parse_args([f"--pace={value}"])
    assert "argument --pace: expected a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["-1", "2.5", "any"])
def test_a_seed_is_whole_and_not_negative(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before the server is started."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args(["--seed", "0"]).seed == 0
    with pytest.raises(SystemExit):
        parser.parse_args([f"--seed={value}"])
    assert "argument --seed: expected a whole number, 0 or above" in capsys.readouterr().err
