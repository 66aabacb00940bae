"""The glossary, the map of the source texts' subjects, and the claims: everything they promise is in the book."""

import csv
import re
from functools import cache

import pytest
from conftest import BOOK_PAGES, ROOT
from resbook.claims import VERDICTS

SITE = ROOT / "_build" / "html"
GLOSSARY = (ROOT / "chapters/glossary.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^(\S.*)\n((?:  .+\n)+)", GLOSSARY.split("```{glossary}\n")[1], flags=re.M)
SUBJECTS = list(csv.DictReader((ROOT / "tests/subjects.csv").read_text(encoding="utf-8").splitlines()))
LABORATORY = (ROOT / "chapters/claims-laboratory.md").read_text(encoding="utf-8")
CLAIMS = re.findall(r"^\((claim-[\w-]+)\)=\n### ([^\n]+)\n(.*?)(?=^\(claim-|^## )", LABORATORY, flags=re.M | re.S)


@cache
def html(page):
    return (SITE / f"{page}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("term", "meaning"), ENTRIES)
def test_a_term_has_a_chinese_name_a_meaning_and_a_place(term, meaning):
    assert re.match(r"  [\u4e00-\u9fff]", meaning), "the Chinese name comes first"
    assert len(meaning.split()) > 6
    assert re.search(r"\[\]\([a-z0-9-]+\.md#[a-z0-9-]+\)|\{ref\}`claim-[a-z-]+`", meaning), "the build resolves it"


def test_the_glossary_is_in_order():
    terms = [term for term, _ in ENTRIES]
    assert len(terms) > 50 and terms == sorted(set(terms), key=str.lower)


@pytest.mark.parametrize("row", SUBJECTS, ids=lambda row: f"{row['source']} {row['subject']}")
def test_every_subject_and_figure_of_the_source_texts_has_a_place(row):
    page, _, anchor = row["place"].partition("#")
    page = f"chapters/{page}"
    assert page in BOOK_PAGES
    assert not anchor or f'id="{anchor}"' in html(page)


def test_all_source_texts_are_mapped_with_their_figures():
    for source, figures in {"000": 4, "001": 8, "002": 3, "003": 8}.items():
        rows = [row for row in SUBJECTS if row["source"] == source]
        assert sum(row["kind"] == "figure" for row in rows) == figures
    assert {row["source"] for row in SUBJECTS} == {"000", "001", "002", "003", "004"}


def test_there_are_at_least_forty_claims_and_each_is_judged_once():
    assert len(CLAIMS) >= 40 and len({label for label, *_ in CLAIMS}) == len(CLAIMS)
    for label, _, body in CLAIMS:
        judged = re.findall(r'^claims\.judge\(\s*"([^"]+)",\s*\S', body, flags=re.M)
        assert len(judged) == 1 and judged[0] in VERDICTS, label
        assert re.search(r"\{ref\}`", body), f"{label} names no chapter"


def test_other_chapters_link_to_claims():
    others = "".join((ROOT / f"{page}.md").read_text(encoding="utf-8") for page in BOOK_PAGES if "claims" not in page)
    linked = {label for label, *_ in CLAIMS if f"<{label}>`" in others or f"`{label}`" in others}
    assert len(linked) >= len(CLAIMS) / 2


@pytest.fixture
def laboratory(browser):
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.goto((SITE / "chapters/claims-laboratory.html").as_uri())
    yield page
    page.close()


def shown(page):
    headings = page.locator("article section h3").filter(has=page.locator(".rb-verdict-badge"))
    return [heading for heading in headings.all() if heading.is_visible()]


def test_claims_are_found_by_word_and_by_verdict(laboratory):
    assert len(shown(laboratory)) == len(CLAIMS)
    field, status = laboratory.locator(".rb-claims input"), laboratory.locator(".rb-claims [role=status]")
    field.fill("softmax probabilities")
    found = [heading.inner_text() for heading in shown(laboratory)]
    assert 1 <= len(found) < 10 and any("softmax" in text for text in found)
    assert status.inner_text() == f"{len(found)} of {len(CLAIMS)} claims"
    field.fill("")
    for verdict in VERDICTS:
        count = LABORATORY.count(f'claims.judge("{verdict}"')
        button = laboratory.locator(f'.rb-claims button[value="{verdict}"]')
        assert button.inner_text() == f"{verdict} ({count})"
        button.click()
        assert len(shown(laboratory)) == count
        button.click()
    assert len(shown(laboratory)) == len(CLAIMS)


def test_a_link_to_a_hidden_claim_shows_it(laboratory):
    laboratory.locator(".rb-claims input").fill("xyzzy")
    assert shown(laboratory) == []
    laboratory.evaluate("label => { location.hash = label }", CLAIMS[-1][0])
    laboratory.wait_for_function("() => document.querySelector('.rb-claims input').value === ''")
    assert len(shown(laboratory)) == len(CLAIMS)


def test_the_status_page_names_every_executed_page():
    executed = [page for page in BOOK_PAGES if "{code-cell}" in (ROOT / f"{page}.md").read_text(encoding="utf-8")]
    table = html("chapters/status").split("<table")[1].split("</table>")[0]
    for page in executed:
        assert page == "chapters/status" or f"{page.rpartition('/')[2]}" in table
    assert "PyTorch" in html("chapters/status")
