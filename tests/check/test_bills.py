"""Prices and tenants: what a server would do without is said before it starts."""

from pathlib import Path

import pytest

from llm_carbon_meter.check.bills import check_bills
from llm_carbon_meter.check.findings import Finding, Verdict
from llm_carbon_meter.config import Config


def found(**settings: object) -> Finding:
    """The only finding of some settings."""
    (finding,) = check_bills(Config(**settings))  # type: ignore[arg-type]
    return finding


def test_without_prices_and_tenants_there_is_nothing_to_say() -> None:
    """They are off by default."""
    assert not list(check_bills(Config()))


def test_prices_are_named() -> None:
    """With their currency."""
    assert found(energy_price=0.3, gpu_hour_price=2.0).text == "of a kWh and a GPU's hour in USD"
    assert found(gpu_hour_price=2.0, currency="EUR").text == "of a GPU's hour in EUR"


def test_a_tariff_that_cannot_be_used_is_a_note(tmp_path: Path) -> None:
    """It says what that means."""
    finding = found(tariff_file=str(tmp_path / "none.toml"))
    assert finding.verdict is Verdict.NOTE
    assert "No such file" in finding.text
    assert "nothing would have a price" in finding.text


def test_tenants_are_named() -> None:
    """How they are told, and which of them metrics name."""
    text = "told by adapter; metrics name the first 100 that come"
    assert found(tenant_from="adapter").text == text
    assert found(tenant_from="header:X", tenants=("a", "b")).text.endswith("metrics name a, b")


@pytest.mark.parametrize(
    ("text", "mode", "verdict", "said"),
    [
        ('"k" = "acme"\n"l" = "acme"', 0o600, Verdict.OK, "keys of acme"),
        ('"k" = "acme"', 0o644, Verdict.NOTE, "others can read it"),
        ("what", 0o600, Verdict.NOTE, "digits of their keys' SHA-256"),
        (None, 0o600, Verdict.NOTE, "No such file"),
    ],
)
def test_a_file_of_keys(
    tmp_path: Path, text: str | None, mode: int, verdict: Verdict, said: str
) -> None:
    """It is read, and nobody else should be able to."""
    file = tmp_path / "keys.toml"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    finding = found(tenant_from="api_key", tenant_keys_file=str(file))
    assert finding.verdict is verdict
    assert said in finding.text
