"""The paper's tables against themselves."""

from itertools import chain

import pytest

from llm_carbon_meter.training.fit.metrics import consistency_bound
from llm_carbon_meter.training.study.paper_tables import ABLATION_EBA10, EBA, FAMILIES, MAPE


def test_every_line_has_every_family() -> None:
    """Six values each, of the same four schemes."""
    lines = chain(MAPE.values(), *(table.values() for table in EBA.values()))
    assert {len(line.values) for line in chain(lines, ABLATION_EBA10.values())} == {len(FAMILIES)}
    assert all(table.keys() == MAPE.keys() for table in EBA.values())


def test_two_cells_contradict_the_bound() -> None:
    """If Tables 3 and 4 share their rows, two MAPEs are too small for the shares beside them."""
    violations = {
        (scheme, family): (mape, round(consistency_bound(eba5, eba10, eba30), 2))
        for scheme, line in MAPE.items()
        for family, mape, eba5, eba10, eba30 in zip(
            FAMILIES,
            line.values,
            *(EBA[bound][scheme].values for bound in (5, 10, 30)),
            strict=True,
        )
        if mape < consistency_bound(eba5, eba10, eba30)
    }
    assert violations == {
        ("LLMCO2", "Qwen2"): (6.3, 9.64),
        ("DeepEn", "Llama3.1"): (19.7, 21.76),
    }


def test_one_printed_mean_is_not_the_mean_of_its_line() -> None:
    """All others agree to a tenth, two of them truncated."""
    tables = {"MAPE": MAPE, "EBA(10) by parts": ABLATION_EBA10}
    tables |= {f"EBA({bound})": table for bound, table in EBA.items()}
    wrong = {
        (name, scheme): pytest.approx(sum(line.values) / len(line.values))
        for name, table in tables.items()
        for scheme, line in table.items()
        if abs(sum(line.values) / len(line.values) - line.mean) > 0.1
    }
    assert wrong == {("EBA(5)", "LLMCarbon"): 0.5 / 6}


def test_the_whole_of_the_ablation_is_the_scheme() -> None:
    """The last line of Table 5 is LLMCO2's line of Table 4."""
    assert ABLATION_EBA10["+ focused sampling"] == EBA[10]["LLMCO2"]
