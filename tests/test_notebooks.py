"""The notebooks: up to date, whole, the same as the pages, fit to be compared, and compared with all rigour."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import quote

import compare
import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import BOOK_PAGES, PLACES, ROOT
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

STORED, DERIVED, SITE = ROOT / "notebooks", ROOT / "_build" / "notebooks", ROOT / "_build" / "html"
PROBE = ROOT / "tests" / "probe"
CHAPTERS = [
    Path(page).name
    for page in BOOK_PAGES
    if page.startswith("chapters/")
    and "{code-cell}" in (text := (ROOT / f"{page}.md").read_text(encoding="utf-8"))
    and "\nnotebook: false\n" not in text
]
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table").use(dollarmath_plugin, double_inline=True)
COMPUTED = ".cell_input, .cell_output .output, .cell_output > .highlight, summary, script"
MOST_BYTES, MOST_EXCEPTIONS, MOST_MEASURED = 1_000_000, 0.03, 0.08
RANDOM = PLACES + r"|Warning|\b\d\d:\d\d:\d\d\b|\bcuda|\bmps\b"


def read(path):
    return nbformat.read(path, as_version=4)


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def without_outputs(notebook):
    """Return what a notebook consists of but what was computed."""
    notebook.metadata.resbook.pop("arithmetic")
    for cell in notebook.cells:
        cell.pop("outputs", None)
    return notebook


def test_there_is_a_notebook_for_every_chapter_with_code():
    assert sorted(path.stem for path in STORED.glob("*.ipynb")) == sorted(CHAPTERS), "run: make notebooks"
    assert sorted(path.stem for path in DERIVED.glob("*.ipynb")) == sorted(CHAPTERS), "run the tests with: make test"


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_notebook_is_what_its_chapter_gives(name):
    """To the byte, where the arithmetic is the same; elsewhere outputs are left to nbval, which allows for that."""
    derived, stored = DERIVED / f"{name}.ipynb", STORED / f"{name}.ipynb"
    assert derived.exists(), "run the tests with: make test"
    assert stored.exists(), "run: make notebooks"
    if read(derived).metadata.resbook == read(stored).metadata.resbook:
        same = derived.read_bytes() == stored.read_bytes()
    else:
        same = without_outputs(read(derived)) == without_outputs(read(stored))
    assert same, f"notebooks/{name}.ipynb is not what chapters/{name}.md gives; run: make notebooks"


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_notebook_is_well_formed_and_small(name):
    path = STORED / f"{name}.ipynb"
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size <= MOST_BYTES
    assert "widgets" not in notebook.metadata and notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # nbval compares no other
    outputs = [output for cell in code for output in cell.outputs]
    assert len(outputs) > len(code) / 3 and not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    for output in outputs:
        assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
        text = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
        assert not re.search(RANDOM, output.get("text", "") + text.pop("text/plain", "")), output
        assert not re.search(PLACES, json.dumps(text))  # the explorers' scripts may say the rest


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_notebook_shows_no_raw_myst(name):
    for source in sources(read(STORED / f"{name}.ipynb"), "markdown"):
        prose = re.sub(r"^```.*?^```|`[^`]*`|^\$\$.*?^\$\$|\$[^$]*\$", "", source, flags=re.M | re.S)
        assert not re.search(r"\{[a-z:-]+\}|:::|^\(\S+\)=|^%|\bmystnb\b", prose, flags=re.M) and "```{" not in source
        left = [text for text in words_of(source, texts_only=True) if re.search(r"\*\*|`|\]\(|(?<!\\)\$|^#+ ", text)]
        assert not left


def words_of(source, texts_only=False):
    """Return the texts of Markdown as they are shown, formulas as TeX."""
    texts = []
    for token in MARKDOWN.parse(source):
        for part in token.children or [token]:
            if part.type == "text" or not texts_only and part.type in ("code_inline", "math_inline", "softbreak"):
                texts.append(part.content or " ")
            elif not texts_only and token is part:
                texts.append(f" {part.content} ")
    return texts


def squeeze(text):
    text = re.sub(r"\\(begin|end)\{\w+\*?\}|\\tag\{\d+\}|\\v?Vert|\\vert|\||\(button “[^”]*”\)|\s", "", text)
    text = text.replace(r"\lt", "<")
    return re.sub(r"\\[()\[\]]", "", text)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_notebook_says_all_that_the_page_says(name):
    """Every paragraph, point, heading, caption and table cell of the page, in its words, numbers and formulas."""
    notebook = read(STORED / f"{name}.ipynb")
    said = squeeze(" ".join("".join(words_of(source)) for source in sources(notebook, "markdown")))
    page = BeautifulSoup((SITE / "chapters" / f"{name}.html").read_text(encoding="utf-8"), "html.parser").article
    for unwanted in page.select(f"{COMPUTED}, .headerlink, .rb-notebook, .prev-next-footer, .eqno"):
        unwanted.decompose()
    shown = [squeeze(part.get_text()) for part in page.select("p, h1, h2, h3, figcaption, caption, td, div.math")]
    assert len(shown) > 30
    assert [text for text in shown if text and text not in said] == []


@cache
def places(name):
    """Return the anchors of a notebook's headings, as JupyterLab makes them."""
    markdown = "\n".join(sources(read(STORED / f"{name}.ipynb"), "markdown"))
    return {
        quote(re.sub(r"[*`\\]", "", title).replace(" ", "-"))
        for title in re.findall(r"^#+ (.+)$", markdown, flags=re.M)
    }


@pytest.mark.parametrize("name", CHAPTERS)
def test_links_lead_somewhere(name):
    for source in sources(read(STORED / f"{name}.ipynb"), "markdown"):
        links = [child.attrGet("href") for token in MARKDOWN.parse(source) for child in token.children or []]
        for link in filter(None, links):
            target = link.split("#")[0]
            if not link.startswith("https://"):
                other = target.removesuffix(".ipynb") or name
                assert other in CHAPTERS and ("#" not in link or link.split("#")[1] in places(other)), link


def test_exceptions_from_the_comparison_are_few_and_give_their_reason():
    cells = [cell for name in CHAPTERS for cell in read(STORED / f"{name}.ipynb").cells if cell.cell_type == "code"]
    excepted = {"nbval-ignore-output", "nbval-skip", "raises-exception"}
    exceptions = [cell for cell in cells if excepted & set(cell.metadata.get("tags", []))]
    assert not any(re.search(r"^\s*#\s*(NBVAL_|PYTEST_)", cell.source, flags=re.M) for cell in cells)
    assert all(cell.source.startswith("# ") and not cell.outputs for cell in exceptions)
    assert 0 < len(exceptions) <= MOST_EXCEPTIONS * len(cells)
    measured = sum("measured" in cell.metadata.get("tags", []) for cell in cells)
    assert measured <= MOST_MEASURED * len(cells)  # compared exactly where arithmetic is the same, roughly elsewhere


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_page_has_the_notebook_at_its_top(name):
    page = BeautifulSoup((SITE / "chapters" / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
    (link,) = page.select("h1 + .rb-notebook a[download]")
    assert (SITE / "chapters" / link["href"]).read_bytes() == (STORED / f"{name}.ipynb").read_bytes()


def test_pages_without_a_notebook_have_no_link_to_one():
    for page in {*BOOK_PAGES} - {f"chapters/{name}" for name in CHAPTERS}:
        assert "rb-notebook" not in (SITE / f"{page}.html").read_text(encoding="utf-8")


# A book with everything in it


WRONG = """
```{no-such-thing}
```

````{solution} ex-two
Without a section, a text follows.
````

A text.

$$\\begin{multline} a \\\\ b \\end{multline}$$

```{list-table}
* - - a list
    - in a cell
```

```{code-cell} ipython3
:tags: [remove-cell]
1
```

{no-such-role}`x` ![gone](gone.png) {ref}`nowhere`

```{hlist}
- a
```

```{code-cell} ipython3
print('before')
1 / 0
```
"""


@pytest.fixture
def probe(tmp_path):
    return shutil.copytree(PROBE, tmp_path / "probe")


def build(folder, builder="notebooks"):
    """Build a book with the extension of this one; return the exit status and what was printed."""
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "-b", builder]
    path = os.pathsep.join(map(str, [ROOT / "_ext", ROOT / "code"]))
    command += ["-d", folder / "_build/doctrees", folder, folder / "_build" / builder]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def test_everything_a_chapter_can_hold(probe):
    status, printed = build(probe)
    assert status == 0, printed
    path = probe / "_build/notebooks/probe.ipynb"
    notebook, first = read(path), path.read_bytes()
    text = "\n\n".join(sources(notebook, "markdown"))
    for expected in [
        "# A probe of *everything*\n\nA chapter of [A probe](https://owner.github.io/NAME/chapters/probe.html).",
        "[Open in Colab](https://colab.research.google.com/github/OWNER/NAME/blob/edition/notebooks/probe.ipynb)",
        r"A word, `code`, **bold**, 2 \$, a \* star, a\_b\_c, [a link](https://example.org), 1 \< 2, “quotes” and",
        r"and $x \cdot y$. [A far section](other.ipynb#A-far-section), [Another chapter](other.ipynb),",
        "[(3)](other.ipynb)",
        "(1), Fig. 1, Table 1, [A near section](#A-near-section)",
        "[References](https://owner.github.io/NAME/chapters/references.html)",
        r"\[[One, 2020](https://arxiv.org/abs/2001.00001), Two, 2021\], One \[[2020](https://arxiv.org/abs/2001.00001)\]",
        r"a footnote\[1\], and the first.",
        "$$\n\\begin{aligned}\nx &= |y| \\\\\nz &= 1\n\\end{aligned} \\tag{1}\n$$",
        "$$\n\\begin{aligned}\np &= q \\\\\nr &= s\n\\end{aligned} \\tag{2}\n$$",
        "> **Note.** See [A near section](#A-near-section).\n> \n> - a point",
        "<details><summary>A title</summary>\n\nHidden text.\n\n</details>",
        "![A dot.](data:image/png;base64,iVBOR",
        "**Fig. 1** A *caption*.",
        r"**Table 1** After One \[[2020](https://arxiv.org/abs/2001.00001)\]",
        "| a | b |\n| --- | --: |\n| `x` | 1 |",
        "**First**\n\nThe first tab.\n\n**Second**\n\nThe second tab.",
        "> A card\n> \n> Its body.",
        '1. one\n2. two\n\n   more of two\n\n   ```python\n   print("fenced")\n   ```',
        "**Term**: Its definition.",
        "> A quotation.",
        "**Fig. 2** An output with $x$.",
        "### Exercise 1 (An **exercise**)\n\nDo it.",
        "### Exercise 2\n\nAgain.",
        r"2015\. It was so.",
        r"\- Not a list, \~5 to \~6, \&lt; and Look\![here](https://example.org/a%28b%29), H<sub>2</sub>O.",
        "- one\n- two\n\n  - nested\n\n    ```python\n    x = 1\n    ```",
        "|   |   |\n| --- | --- |\n| $\\lvert x\\rvert \\vert y\\vert$ | a \\| b |",
        "$$\n\\begin{aligned}\na &= \\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix} \\\\\nb &\\lt  c\n\\end{aligned}\n$$",
        r"\[1\] The text of the note.",
        "## References\n\n- Ann One. A title. 2020. [arXiv:2001.00001](https://arxiv.org/abs/2001.00001).\n- Bob Two.",
    ]:
        assert expected in text, text
    one, two = (cell for cell in notebook.cells if cell.source == "#### Solution")
    assert one.metadata == {"jp-MarkdownHeadingCollapsed": True, "id": one.id} and one.id != two.id
    assert notebook.metadata.colab.collapsed_sections == [one.id, two.id]
    set_up, figure, time, hidden, done = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert "%pip install -q --no-deps git+https://github.com/OWNER/NAME@edition" in set_up.source
    assert figure.metadata == {"jupyter": {"source_hidden": True}, "cellView": "form"}
    assert figure.outputs[0].data == {"text/plain": "3"}
    assert hidden.metadata == {**figure.metadata, "jupyter": {"source_hidden": True, "outputs_hidden": True}}
    assert time.metadata.tags == ["nbval-ignore-output"] and time.outputs == []
    assert done.outputs == [{"output_type": "stream", "name": "stdout", "text": "done\n"}]
    shutil.rmtree(probe / "_build")
    assert build(probe)[0] == 0 and path.read_bytes() == first  # executed anew, byte for byte the same


def test_links_on_the_page_of_a_published_book(probe):
    build(probe)
    (probe / "notebooks").mkdir()
    shutil.copy(probe / "_build/notebooks/probe.ipynb", probe / "notebooks")
    status, printed = build(probe, "html")
    assert status == 0, printed
    page = BeautifulSoup((probe / "_build/html/chapters/probe.html").read_text(), "html.parser")
    links = [link["href"] for link in page.select("h1 + .rb-notebook a")]
    colab = "https://colab.research.google.com/github/OWNER/NAME/blob/edition/notebooks/probe.ipynb"
    assert links == [colab, "../notebooks/probe.ipynb"]
    assert (probe / "_build/html/notebooks/probe.ipynb").exists()


def test_without_an_address_nothing_leads_there(probe):
    conf = probe / "conf.py"
    conf.write_text(conf.read_text().replace("https://github.com/OWNER/NAME", ""))
    status, printed = build(probe)
    assert status == 0, printed
    text = (probe / "_build/notebooks/probe.ipynb").read_text()
    assert "github" not in text and "colab.research" not in text and "](references" not in text
    assert "sys.exit(" in sources(read(probe / "_build/notebooks/probe.ipynb"), "code")[0]


def test_what_cannot_be_converted_is_told_with_its_place(probe):
    page = probe / "chapters/probe.md"
    page.write_text(page.read_text() + WRONG)
    status, printed = build(probe)
    assert status == 1
    for said in [
        r"probe\.md:\d+: WARNING: Unknown directive type: 'no-such-thing'",
        r'probe\.md:\d+: WARNING: Unknown interpreted text role "no-such-role"',
        r"probe\.md:\d+: WARNING: a notebook has no Markdown for <hlist>",
        r"probe\.md:\d+: WARNING: image file not readable: chapters/gone\.png",
        r"probe\.md:\d+: WARNING: undefined label: 'nowhere'",
        r"probe\.md:\d+: WARNING: what follows a solution would be folded away with it: begin a section",
        r"probe\.md: WARNING: a notebook needs the cells that the page leaves out: \[\d+\]",
        r"probe\.md:\d+: WARNING: a cell of a notebook's table is one line",
        r"probe\.md:\d+: WARNING: a notebook's formula is written with aligned or gathered",
        r"(?s)chapters/probe\.md: WARNING: Executing notebook failed.*print\('before'\)\n *1 / 0\n.*division by zero",
    ]:
        assert re.search(said, printed), printed


# The comparison


def changed(name, folder, change):
    """Write a copy of a notebook in which ``change`` has been applied to the stored outputs."""
    notebook = read(STORED / f"{name}.ipynb")
    change(notebook)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def test_a_changed_digit_in_a_stored_output_is_noticed(tmp_path):
    def change(notebook):
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output]
        output = next(output for output in reversed(outputs) if re.search(r"\d", output.text))
        output.text = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), output.text, count=1)

    status, printed = compare.compare(changed("convolution-arithmetic", tmp_path, change))
    assert status == 1 and "1 failed" in printed and "Cell outputs differ" in printed, printed


@pytest.mark.parametrize(
    ("name", "module", "old", "new"),
    [
        ("resnet18-forward", "networks.py", "*, widths=(64, 128, 256, 512)", "*, widths=(64, 128, 256, 510)"),
        ("batch-normalization", "batchnorm.py", "eps=1e-5, momentum=0.1", "eps=1e-5, momentum=0.2"),
        ("batch-normalization", "batchnorm.py", "eps=1e-5, momentum=0.1", "eps=1e-3, momentum=0.1"),
    ],
    ids=["a shape", "momentum", "eps"],
)
def test_a_change_of_the_package_is_noticed(tmp_path, name, module, old, new):
    shutil.copytree(ROOT / "code" / "resbook", tmp_path / "resbook")
    path = tmp_path / "resbook" / module
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    status, printed = compare.compare(STORED / f"{name}.ipynb", PYTHONPATH=str(tmp_path))
    assert status == 1 and "Cell outputs differ" in printed, printed


@pytest.mark.parametrize(
    ("code", "stored", "arithmetic", "status"),
    [
        ("print('accuracy 0.91')", "accuracy 0.92\n", "here", 1),  # the same arithmetic: to the digit
        ("print('accuracy 0.91')", "accuracy 0.92\n", "elsewhere", 0),
        ("print('accuracy 0.31')", "accuracy 0.92\n", "elsewhere", 1),
        ("print('error 0.91')", "accuracy 0.92\n", "elsewhere", 1),
        ("1 / 0", "accuracy 0.92\n", "elsewhere", 1),
    ],
)
def test_what_was_measured_may_differ_on_another_processor(tmp_path, code, stored, arithmetic, status):
    output = nbformat.v4.new_output("stream", name="stdout", text=stored)
    cell = nbformat.v4.new_code_cell(code, execution_count=1, outputs=[output], metadata={"tags": ["measured"]})
    here = compare.arithmetic_here() if arithmetic == "here" else {"arithmetic": "00000000", "torch": "2"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"resbook": here})
    nbformat.write(notebook, tmp_path / "one.ipynb")
    assert compare.compare(tmp_path / "one.ipynb")[0] == status


def test_drawings_are_compared_without_their_geometry_and_all_else_with_it():
    view = {"model_id": "0" * 32}  # live outputs of explorers have one
    html = '<p class="a"><path d="M 1 2" fill="#123456"/>a label</p>'
    outputs = [{"output_type": "stream", "text": "<g x>"}, {"data": {"text/html": html, "widget": view}}]
    bare = {"text/html": '<p class="a"><path>a label</p>', "widget": view}
    assert compare.without_geometry(outputs) == [outputs[0], {"data": bare}]
    assert outputs[1]["data"]["text/html"] == html


def test_roughly_equal():
    assert compare.roughly_equal("at 1,000 and 2e-05", "at 3,900 and 3e-05")
    assert compare.roughly_equal("(-0.10,0.92) 1.2.3", "(+0.10,0.80) 1.2.3")
    assert not compare.roughly_equal("0.70", "0.95") and not compare.roughly_equal("1e-05", "2e-01")
    assert not compare.roughly_equal("at 1,000", "at 4,100")
    assert not compare.roughly_equal("1 and 2", "1")
    assert not compare.roughly_equal("1 of them", "1 of those")


def test_no_notebooks_to_compare_is_an_error():
    run = subprocess.run([sys.executable, ROOT / "tests/compare.py"], capture_output=True, text=True)
    assert run.returncode == 1 and "name the notebooks" in run.stderr
