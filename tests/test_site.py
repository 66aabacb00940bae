"""Open every built page as a file, in a browser without a network, and report what a reader would stumble over."""

import gzip
import os
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import BOOK_PAGES, ROOT

SITE = ROOT / "_build" / "html"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
BUDGET = 700_000  # bytes of a page and all it loads, compressed as a web server would
COMPRESSED = {".woff", ".woff2", ".png", ".jpg", ".jpeg"}

HELPERS = r"""
const article = document.querySelector(".bd-article, .bd-content") ?? document.body;
const all = (selector, root = article) => [...root.querySelectorAll(selector)];
const brief = element => element.outerHTML.slice(0, 120);
const label = element => element.getAttribute("aria-label") || element.getAttribute("aria-labelledby");
function prose() {
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT), texts = [];
  while (walker.nextNode()) texts.push(walker.currentNode);
  return texts
    .filter(text => !text.parentElement.closest("pre, code, script, style, mjx-container"))
    .map(text => text.data);
}
"""
# Each gives a list of what is wrong, as text.
CHECKS = {
    "formula not typeset": 'all(".math").filter(e => !e.querySelector("mjx-container")).map(brief)',
    "formula with an error": 'all("mjx-merror, [data-mjx-error]").map(brief)',
    "raw TeX": r"prose().filter(text => /\\[(\[]|\\begin\{/.test(text))",
    "raw MyST": r"prose().filter(text => /\{[a-z-]+(:[a-z]+)?\}`|\{code-cell\}|:::|```|^\(\S+\)=$/m.test(text))",
    "image not loaded": """(await Promise.all(all("img", document).map(image => {
        image.loading = "eager";
        return image.decode().then(() => [], () => [brief(image)]);
      }))).flat()""",
    "image without alt text": 'all("img").filter(image => !image.alt.trim()).map(brief)',
    "drawing without a label": """[
        ...all("[role=img]").filter(e => !label(e) && !e.querySelector("title")),
        ...all(".cell_output svg, figure svg").filter(e => !e.closest("[role=img], [aria-hidden=true], button")),
        ...all("figure").filter(e => !label(e) && !e.querySelector("figcaption")),
      ].map(brief)""",
    "not exactly one h1": """(headings => headings.length === 1 ? [] : [`${headings.length} found`])(
        all("h1", document).filter(h => h.checkVisibility()))""",
    "heading level skipped": """all("h1, h2, h3, h4, h5, h6").filter(h => h.checkVisibility())
        .filter((h, i, headings) => i && h.tagName[1] - headings[i - 1].tagName[1] > 1).map(brief)""",
}
TOO_WIDE = """() => document.scrollingElement.scrollWidth > innerWidth
    ? [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
        .slice(0, 3).map(e => e.outerHTML.slice(0, 120)) : []"""


PAGES = [*BOOK_PAGES, "genindex", "search"]


def problems_of(browser, path, scheme="light"):
    """Open one page and return everything that is wrong with it, as lines of text."""
    context = browser.new_context(color_scheme=scheme, viewport=DESKTOP)
    problems, loaded = [], set()
    context.route(re.compile(r"^(?!file:|data:|blob:)"), lambda route: route.abort())
    page = context.new_page()
    page.on("request", lambda request: loaded.add(request.url))
    page.on("requestfailed", lambda request: problems.append(f"request failed: {request.url}"))
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    page.on("console", lambda message: message.type == "error" and problems.append(f"console error: {message.text}"))
    page.goto(path.as_uri())
    page.evaluate("() => window.MathJax?.startup?.promise?.then(() => true)")
    for name, check in CHECKS.items():
        found = page.evaluate(f"async () => {{ {HELPERS} return {check}; }}")
        problems += [f"{name}: {what}" for what in found]
    links = page.evaluate('() => [...document.querySelectorAll("a[href]")].map(a => a.href)')
    problems += [f"dead link: {link}" for link in links if is_dead(link)]
    page.set_viewport_size(PHONE)
    problems += [f"wider than a phone: {what}" for what in page.evaluate(TOO_WIDE)]
    context.close()
    external = sorted(url for url in loaded if urlsplit(url).scheme not in ("file", "data", "blob"))
    return problems + [f"external request: {url}" for url in external] + overweight(loaded)


def is_dead(link):
    parts = urlsplit(link)
    if parts.scheme != "file":
        return False
    path = Path(unquote(parts.path))
    return not path.is_file() or bool(parts.fragment) and unquote(parts.fragment) not in ids(path)


@cache
def ids(path):
    return set(re.findall(r'\sid="([^"]+)"', path.read_text(encoding="utf-8")))


def overweight(urls):
    files = {Path(unquote(urlsplit(url).path)) for url in urls if url.startswith("file:")}
    weight = sum(compressed_size(file) for file in files if file.is_file())
    return [f"too heavy: {weight:,} bytes, allowed are {BUDGET:,}"] if weight > BUDGET else []


@cache
def compressed_size(file):
    data = file.read_bytes()
    return len(data) if file.suffix in COMPRESSED else len(gzip.compress(data, 6))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_page(browser, page, scheme):
    path = SITE / f"{page}.html"
    assert path.is_file(), f"{path} is missing: run 'make book' first"
    problems = problems_of(browser, path, scheme)
    assert not problems, "\n".join(["", *problems])


GOOD = """<!doctype html><html lang="en"><body>
<h1>Title</h1><h2 id="a">Part</h2><p>Text</p><a href="#a">link</a>
</body></html>"""
FLAWS = {
    "external request": '<img alt="x" src="https://example.org/x.png">',
    "image not loaded": '<img alt="x" src="missing.png">',
    "request failed": '<script src="missing.js"></script>',
    "console error": '<script>console.error("no")</script>',
    "script error": '<script>throw new Error("no")</script>',
    "formula not typeset": '<span class="math">x</span>',
    "formula with an error": "<mjx-merror>x</mjx-merror>",
    "raw TeX": r"<p>\(x\)</p>",
    "raw MyST": "<p>see {ref}`x`</p>",
    "image without alt text": '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">',
    "drawing without a label": '<svg role="img"></svg>',
    "not exactly one h1": "<h1>Another</h1>",
    "heading level skipped": "<h2>Two</h2><h4>Four</h4>",
    "dead link": '<a href="#nowhere">x</a>',
    "wider than a phone": '<div style="width: 400px">x</div>',
    "too heavy": f"<!-- {os.urandom(BUDGET).hex()} -->",
}


def test_a_good_page_has_no_problem(browser, tmp_path):
    page = tmp_path / "good.html"
    page.write_text(GOOD, encoding="utf-8")
    assert problems_of(browser, page) == []


@pytest.mark.parametrize("flaw", FLAWS)
def test_each_flaw_is_reported(browser, tmp_path, flaw):
    page = tmp_path / "bad.html"
    page.write_text(GOOD.replace("</body>", FLAWS[flaw] + "</body>"), encoding="utf-8")
    assert any(problem.startswith(f"{flaw}: ") for problem in problems_of(browser, page))
