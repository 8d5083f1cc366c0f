"""What a customer gets: a page and an SCI report of its own requests, and nothing of others."""

import json
import re
from pathlib import Path

import pytest

from llm_carbon_meter.cli import main
from llm_carbon_meter.report.page import file_name
from llm_carbon_meter.report.sci import sci_report
from tests.report.test_gpu_accounts import accounts
from tests.support.reports import COVERS, line, new_line, report_of, write

TENANTS = ("acme", "Zürich & <b>", "=1+1", "../../etc", "", "x" * 300)


def pages(folder: Path, *options: str) -> dict[str, str]:
    """The pages by their names, without pictures."""
    records = [
        new_line(tenant=name, output_tokens=100 + number, uncertainty=0.05)
        for number, name in enumerate(TENANTS)
    ]
    log = write(folder / "secret-folder" / "log", *records, accounts(), "{")
    target = folder / "pages"
    assert main(["report", str(log), "--html-per", "tenant", str(target), *options]) == 0
    found = {file.name: file.read_text("utf-8") for file in target.glob("*.html")}
    return {name: re.sub('base64,[^"]*', "", text) for name, text in found.items()}


def test_each_tenant_has_a_page_of_its_own(tmp_path: Path) -> None:
    """With its own figures, method, boundary, interval and sources."""
    texts = pages(tmp_path)
    assert len(texts) == len(TENANTS)
    own = texts["acme.html"]
    assert "of 1 LLM requests of tenant acme" in own
    for part in ("<dt>boundary</dt>", COVERS, "<dt>sources</dt>", "<h2>Method</h2>", "Shapley"):
        assert part in own
    assert "90 % half-intervals" in own
    assert "<td>100</td>" in own
    assert all(f"<td>{100 + number}</td>" not in own for number in range(1, len(TENANTS)))


def test_a_page_tells_nothing_of_the_operator_or_of_others(tmp_path: Path) -> None:
    """Neither files, nor broken lines, nor all energy of the GPUs, nor another's name."""
    texts = pages(tmp_path)
    for name, text in texts.items():
        for word in (
            "secret-folder",
            "broken",
            "left out",
            "unattributed Wh",
            "gpus Wh",
            "scrapes",
        ):
            assert word not in text, word
        assert "energy of the GPUs that belongs to no request is not in here" in text
        assert ("acme" in text) == (name == "acme.html")


def test_names_are_harmless_in_pages_and_in_files(tmp_path: Path) -> None:
    """Escaped, no formulas, inside the folder, and none overwrites another."""
    texts = pages(tmp_path, "--by", "tenant")
    assert {path.parent for path in tmp_path.rglob("*.html")} == {tmp_path / "pages"}
    together = "".join(texts.values())
    assert "<b>" not in together
    assert '<td class="word">&#x27;=1+1</td>' in together
    assert "not said" in together
    assert len({file_name(value) for value in ("a/b", "a_b", "a?b", "A", "..", "")}) == 6


def test_there_is_json_beside_each_page(tmp_path: Path) -> None:
    """In the terms of the SCI specification, of its own requests."""
    pages(tmp_path)
    scores = json.loads((tmp_path / "pages" / "acme.json").read_text("utf-8"))["scores"]
    assert [(one["functional_unit"], one["R"]) for one in scores] == [
        ("request", 1),
        ("1000 tokens", 0.2),
    ]


def test_scores_are_those_by_hand(tmp_path: Path) -> None:
    """Two requests of 1 Wh at PUE 1.25 and 400 g/kWh: E x I + M over R."""
    figures = {"pue": 1.25, "operational_grams": 0.5, "embodied_grams": 0.1}
    told = sci_report(report_of(tmp_path, *[new_line(**figures)] * 2))
    request, tokens = told["scores"]
    assert request["group"] == {"model": "Llama"}
    assert request["E_kwh"] == pytest.approx(0.0025)
    assert request["I_gco2eq_per_kwh"] == pytest.approx(400.0)
    assert request["M_gco2eq"] == pytest.approx(0.2)
    assert (request["R"], tokens["R"]) == (2, 1.0)
    assert request["SCI_gco2eq_per_unit"] == pytest.approx(0.6)
    assert tokens["SCI_gco2eq_per_unit"] == pytest.approx(1.2)
    product = request["E_kwh"] * request["I_gco2eq_per_kwh"]
    assert product == pytest.approx(request["O_gco2eq"])
    assert told["software_boundary"] == [f"{COVERS} (2 requests)"]


def test_without_embodied_grams_there_is_no_score(tmp_path: Path) -> None:
    """Null, never the operational part alone; also of no energy at all."""
    zero = {"energy_joules": 0.0, "operational_grams": 0.0, "embodied_grams": None}
    request, _ = sci_report(report_of(tmp_path, new_line(**zero)))["scores"]
    assert (request["M_gco2eq"], request["SCI_gco2eq_per_unit"]) == (None, None)
    assert request["I_gco2eq_per_kwh"] is None
    json.dumps(request, allow_nan=False)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--html-per", "colour", "pages"), "--html-per colour: give one of model, tenant"),
        (("--html-per", "day", "pages"), "--html-per day: give one of model"),
        (("--html-per", "tenant", "/dev/null/pages"), "cannot be made: .*another --html-per"),
        (("--json", "/no/such/folder/x.json"), "cannot be written: .*give another --json"),
    ],
)
def test_what_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], error: str
) -> None:
    """One line."""
    log = write(tmp_path / "log", line())
    assert main(["report", str(log), *options]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert re.search(error, told)


@pytest.mark.parametrize("name", ["a\x00b", "x'; DROP TABLE lines; --", "\ud7ff", "a\nb", "é" * 90])
def test_any_name_of_a_tenant_has_its_page(tmp_path: Path, name: str) -> None:
    """Whatever a client sent; the next tenant's, too."""
    log = write(tmp_path / "log", *(new_line(tenant=tenant) for tenant in (name, "zzz")))
    target = tmp_path / "pages"
    assert main(["report", str(log), "--html-per", "tenant", str(target)]) == 0
    pages = list(target.glob("*.html"))
    assert len(pages) == 2
    assert all("of 1 LLM requests of tenant" in page.read_text("utf-8") for page in pages)


def test_no_name_leads_to_the_page_of_another() -> None:
    """Nor one that somebody chose to be like it, nor on a disk that takes capitals for small."""
    hashed = file_name("acme corp")
    names = ["acme corp", "acme_corp", hashed, hashed.upper(), "acme", "Acme", "", ".", "..", "a/b"]
    files = [file_name(name).lower() for name in names]
    assert len(set(files)) == len(names)
    assert not any("/" in file or file.startswith(".") for file in files)
    assert file_name("acme") == "acme"
