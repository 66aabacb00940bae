"""The chapters' form: the skeleton, short cells, exercises with solutions, and outputs that are fit to be compared."""

import json
import re
import statistics
from html import unescape

import jupytext
import pytest
from conftest import BOOK_PAGES as PAGES
from conftest import PLACES, ROOT

SOURCES = {page: (ROOT / f"{page}.md").read_text() for page in PAGES}
CHAPTERS = [page for page in PAGES if "## Exercises" in SOURCES[page]]
SKELETON = ["In this chapter", "What we measured", "Summary", "Exercises", "Further reading"]

# What the chapters show to be different. Everything else that they compare is equal, or the book is wrong.
DIFFERENT = {
    "training, same output in both batches: False",
    "(True, False)",  # Caffe's pooling: the same shape, other values
    "(8, 5, [True, True, False, True, False, True, False, True])",  # which of the 8 shortcuts are identities
    "unchanged: projection True, first convolution of the branch False",
    "[False, True, True, True, True, True, True]",  # only the first column does not see the image's last six
    "[True, False]",  # mirrored maps give the same logits, a mirrored image others
}


def code_cells(page):
    cells = jupytext.reads(SOURCES[page], fmt="md:myst").cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def line_count(source):
    return sum(1 for line in source.splitlines() if line.strip())


def test_all_chapters_of_the_course_are_there():
    names = [
        *("degradation", "vanishing-and-exploding-gradients", "residual-structure", "batch-normalization"),
        *("convolution-arithmetic", "resnet18-forward", "resnet18-backward"),
        *("resnet-family", "identity-mappings", "why-it-works"),
        *("training-on-cifar10", "crack-classification", "choosing-a-network", "claims-laboratory"),
    ]
    assert [f"chapters/{name}" for name in names] == CHAPTERS


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_is_named_captioned_and_mentioned(page):
    for options in re.findall(r"^  figure:\n((?:    .+\n)+)", SOURCES[page], flags=re.M):
        name = re.search(r"^    name: (fig-\S+)$", options, flags=re.M)
        assert name and "    caption:" in options, options
        assert page == "index" or f"{{numref}}`{name[1]}`" in SOURCES[page], f"no sentence leads to {name[1]}"


@pytest.mark.parametrize("page", PAGES)
def test_headings_go_down_one_level_at_a_time(page):
    text = re.sub(r"^```.*?^```", "", SOURCES[page], flags=re.M | re.S)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, flags=re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


@pytest.mark.parametrize("page", CHAPTERS)
def test_skeleton(page):
    headings = re.findall(r"^## (.+)$", SOURCES[page], flags=re.M)
    assert [heading for heading in headings if heading in SKELETON] == SKELETON
    objectives = SOURCES[page].split("## In this chapter")[1].split("```{code-cell}")[0]
    assert 3 <= len(re.findall(r"^- ", objectives, flags=re.M)) <= 6
    summary = SOURCES[page].split("## Summary")[1].split("## Exercises")[0]
    assert len(re.findall(r"^\d\. ", summary, flags=re.M)) == 5


@pytest.mark.parametrize("page", CHAPTERS)
def test_every_exercise_has_an_executed_solution(page):
    text = SOURCES[page]
    exercises = re.findall(r"```\{exercise\}.*\n:label: (\S+)", text)
    solutions = re.findall(r"```\{solution-start\} (\S+)\n(.*?)\{solution-end\}", text, flags=re.S)
    assert exercises == [label for label, _ in solutions] and 4 <= len(exercises) <= 8
    assert all("{code-cell}" in body and ":class: dropdown" in body for _, body in solutions)
    assert re.search(r"predict", text.split("## Exercises")[1], flags=re.I)


def test_cells_are_short():
    lengths = sorted(line_count(cell) for page in CHAPTERS for cell in code_cells(page))
    assert statistics.median(lengths) <= 5
    assert lengths[int(0.9 * len(lengths))] <= 18
    assert lengths[-1] <= 40


@pytest.mark.parametrize("page", PAGES)
def test_cells_are_narrow_enough_to_read_without_scrolling(page):
    assert [line for cell in code_cells(page) for line in cell.splitlines() if len(line) > 84] == []


@pytest.mark.parametrize("page", PAGES)
def test_cells_leave_nothing_accidental(page):
    for cell in code_cells(page):
        assert not cell.rstrip().endswith(";"), "nbval shows what a semicolon hides"
        assert not re.search(r"^\s*class (BasicBlock|Bottleneck|Block|BatchNorm2d|ResNet)\b", cell, flags=re.M)


def outputs(page):
    notebook = json.loads((ROOT / "_build/jupyter_execute" / f"{page}.ipynb").read_text())
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


@pytest.mark.parametrize("page", [page for page in PAGES if code_cells(page)])
def test_the_executed_notebook_prints_what_the_page_shows(page):
    printed = ["".join(output["text"]).strip() for output in outputs(page) if output["output_type"] == "stream"]
    html = (ROOT / "_build/html" / f"{page}.html").read_text()
    shown = re.findall(r'class="output stream.*?<pre>(.*?)</pre>', html, flags=re.S)
    assert printed == [unescape(re.sub("<[^>]+>", "", text)).strip() for text in shown] != []


def test_what_the_chapters_compare_is_equal():
    shown = [
        output.get("text") or output.get("data", {}).get("text/plain", "") for p in CHAPTERS for output in outputs(p)
    ]
    lines = [line for text in shown for line in "".join(text).splitlines()]
    assert sum("True" in line for line in lines) > 150
    assert {line for line in lines if "False" in line and "=False" not in line} == DIFFERENT  # no default


@pytest.mark.parametrize("page", [page for page in PAGES if code_cells(page)])
def test_outputs_hold_no_error_address_path_or_warning(page):
    for output in outputs(page):
        assert output["output_type"] != "error" and output.get("name") != "stderr", output
        shown = json.dumps(output)
        assert not re.search(PLACES, shown)
