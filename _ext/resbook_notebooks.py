"""Chapters as notebooks: a Sphinx builder that writes what a page shows as Markdown, code and stored outputs.

It starts from the page as Sphinx has resolved it, so that numbers, references and citations are those of the book, and
takes the outputs from the notebook that the book's execution left. What it has no Markdown for is an error.
"""

import base64
import hashlib
import mimetypes
import re
from pathlib import Path
from textwrap import indent
from urllib.parse import quote

import nbformat
from docutils import nodes
from resbook.device import default_device
from resbook.training import arithmetic_fingerprint
from sphinx.builders import Builder
from sphinx.util import logging
from sphinx.util.fileutil import copy_asset
from sphinxcontrib.bibtex.nodes import bibliography

logger = logging.getLogger(__name__)

FOLDER = "notebooks"  # beside the chapters' folder; kept in the repository, and copied into the site
SET_UP = """\
# In Colab, install the book's package; all else is there, and stays as it is.
# Elsewhere, do nothing: there, pip install . in the book's folder installs it.
import sys

if "google.colab" in sys.modules:
    {install}

from resbook import default_device

print("computing on", default_device())"""
INSTALL = "%pip install -q --no-deps git+{url}@{branch}"
NO_ADDRESS = 'sys.exit("Upload the book as book.zip, then: %pip install --no-deps book.zip")'

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"  # names a model that is gone; the text/html beside it stays
NOTEBOOK_TAGS = ("measured", "nbval-ignore-output", "raises-exception")
HIDDEN = {  # how JupyterLab and Colab each hide the code or the output of a cell
    "input": {"jupyter": {"source_hidden": True}, "cellView": "form"},
    "output": {"jupyter": {"outputs_hidden": True}},
}


def has_notebook(env, docname):
    """Say whether a page becomes a notebook: a chapter with code whose front matter has no ``notebook: false``."""
    executed = "exec_data" in getattr(env, "nb_metadata", {}).get(docname, {})
    return executed and docname.startswith("chapters/") and "notebook" not in env.metadata[docname]


def addresses(config):
    """Return the repository's address and branch and the published book's address; "" for what is not known."""
    url = (config.html_theme_options.get("repository_url") or "").rstrip("/")
    branch = config.html_theme_options.get("repository_branch") or "main"
    on_github = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+)", url)
    pages = f"https://{on_github[1].lower()}.github.io/{on_github[2]}/" if on_github else ""
    return url, branch, config.html_baseurl or pages


def colab_link(config, name):
    """Return the address that opens a notebook in Colab, or "" if the book is not on GitHub."""
    url, branch, _ = addresses(config)
    if not url.startswith("https://github.com/"):
        return ""
    where = url.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{where}/blob/{branch}/{FOLDER}/{name}.ipynb"


class NotebookBuilder(Builder):
    """Writes a notebook for every chapter with code."""

    name = "notebooks"
    format = "ipynb"
    epilog = "The notebooks are in %(outdir)s."
    supported_image_types = ["image/svg+xml", "image/png", "image/jpeg", "image/gif"]

    def init(self):
        for old in Path(self.outdir).glob("*.ipynb"):
            old.unlink()

    def get_outdated_docs(self):
        return sorted(docname for docname in self.env.found_docs if has_notebook(self.env, docname))

    def get_target_uri(self, docname, typ=None):
        if has_notebook(self.env, docname):
            return f"{Path(docname).name}.ipynb"
        return f"{addresses(self.config)[2]}{docname}.html"

    def get_relative_uri(self, from_, to, typ=None):
        return self.get_target_uri(to, typ)

    def prepare_writing(self, docnames):
        self.arithmetic = arithmetic_fingerprint()
        self.headings, self.bibliography = {}, {}  # by page and anchor, and by anchor
        for docname in self.env.found_docs:
            tree = self.env.get_doctree(docname)
            sections = tree.findall(nodes.section)
            self.headings |= {(docname, id): section[0].astext() for section in sections for id in section["ids"]}
            if any(tree.findall(bibliography)):
                tree = self.env.get_and_resolve_doctree(docname, self)
                self.bibliography |= {id: entry for entry in tree.findall(nodes.citation) for id in entry["ids"]}

    def write_doc(self, docname, doctree):
        if has_notebook(self.env, docname):
            notebook = Chapter(self, docname).convert(doctree)
            path = Path(self.outdir, f"{Path(docname).name}.ipynb")
            path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


class Chapter:
    """The conversion of one page: Markdown is gathered until a heading or a code cell ends the cell."""

    def __init__(self, builder, docname):
        self.builder, self.docname, self.env = builder, docname, builder.env
        self.name = Path(docname).name
        self.numbers = self.env.toc_fignumbers.get(docname, {})
        self.cells, self.pending, self.collapsed, self.cited = [], [], [], []
        executed = Path(builder.outdir).parent / "jupyter_execute" / f"{docname}.ipynb"
        self.executed = nbformat.read(executed, as_version=4).cells

    def convert(self, tree):
        """Return the notebook of a page's resolved tree."""
        for node in tree.children:
            self.block(node, level=1)
        self.end_cell()
        self.add_references()
        for count, cell in enumerate((cell for cell in self.cells if cell.cell_type == "code"), start=1):
            cell.execution_count = count
        metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "colab": {"collapsed_sections": self.collapsed},
            "resbook": {"arithmetic": self.builder.arithmetic},
        }
        return nbformat.v4.new_notebook(cells=self.cells, metadata=metadata)

    # Cells

    def block(self, node, level):
        """Add what stands between sections and code cells: those two, exercises and solutions, and plain Markdown."""
        if isinstance(node, nodes.section):
            for child in node.children:
                self.block(child, level + isinstance(child, nodes.section))
        elif isinstance(node, nodes.title):
            self.end_cell()
            self.pending.append(f"{'#' * level} {self.inline(node)}")
            if level == 1:
                self.pending.append(self.origin())
        elif isinstance(node, nodes.container) and node.get("nb_element") == "cell_code":
            self.end_cell()
            self.add_code(node)
        elif type(node).__name__ in ("exercise_node", "exercise_enumerable_node", "solution_node"):
            self.add_exercise(node, level + 1)
        else:
            self.pending.append(self.markdown(node))

    def end_cell(self, **metadata):
        source = "\n\n".join(filter(None, self.pending))
        self.pending = []
        if source:
            self.add(nbformat.v4.new_markdown_cell(source, metadata=metadata))

    def add(self, cell):
        """Add a cell with an id that depends on its source, and changes with nothing else."""
        digest = hashlib.sha1(cell.source.encode()).hexdigest()[:8]
        twins = sum(other.id.startswith(digest) for other in self.cells)
        cell.id = f"{digest}-{twins}" if twins else digest
        self.cells.append(cell)

    def add_code(self, node):
        if not any(cell.cell_type == "code" for cell in self.cells):
            self.add(set_up_cell(self.builder.config))
        source = self.executed[node["cell_index"]]
        tags = [tag for tag in NOTEBOOK_TAGS if tag in node["cell_metadata"].get("tags", [])]
        metadata = {"tags": tags} if tags else {}
        for part, hiding in HIDDEN.items():
            if part in node.get("hide_mode", ""):
                metadata |= hiding
        outputs = [] if "nbval-ignore-output" in tags else [stored(output) for output in source.outputs]
        self.add(nbformat.v4.new_code_cell(source.source, metadata=metadata, outputs=outputs))
        for figure in node.findall(nodes.figure):
            self.pending += [self.caption(figure, caption) for caption in figure.findall(nodes.caption)]

    def add_exercise(self, node, level):
        """An exercise is a heading and its text; its solution a heading that is folded until it is clicked."""
        self.end_cell()
        is_solution = type(node).__name__ == "solution_node"
        title, *content = node.children
        number = self.number("exercise", node)
        heading = f"Exercise {number}{self.inline(title)}" if number else self.inline(title)
        self.pending.append(f"{'#' * (level + is_solution)} {heading}")
        if is_solution:
            self.end_cell(**{"jp-MarkdownHeadingCollapsed": True})
            self.collapsed.append(self.cells[-1].id)
            self.cells[-1].metadata["id"] = self.cells[-1].id  # where Colab looks for it
        for part in content:
            for child in part.children if isinstance(part, nodes.section) else [part]:
                self.block(child, level)

    def add_references(self):
        entries = [self.builder.bibliography[id] for id in self.builder.bibliography if id in self.cited]
        if entries:
            lines = [f"- {self.markdown(entry.children[-1])}" for entry in entries]
            self.pending = ["## References", "\n".join(lines)]
            self.end_cell()

    def origin(self):
        """Return the line under a notebook's title that says what it belongs to, and where to open it."""
        book = self.env.config.html_title
        _, _, published = addresses(self.builder.config)
        page = f"[{book}]({published}{self.docname}.html)" if published else f"*{book}*"
        colab = colab_link(self.builder.config, self.name)
        return f"A chapter of {page}." + (f" [Open in Colab]({colab})" if colab else "")

    # Markdown

    def inline(self, node):
        return "".join(self.markdown(child) for child in node.children)

    def blocks(self, node, separator="\n\n"):
        return separator.join(filter(None, (self.markdown(child) for child in node.children)))

    def markdown(self, node):
        """Return a node as Markdown; what there is no rule for is reported with its name, file and line."""
        for cls in type(node).__mro__:
            if rule := getattr(self, f"from_{cls.__name__}", None):
                return rule(node)
        logger.warning("a notebook has no Markdown for <%s>", type(node).__name__, location=node)
        return ""

    def number(self, kind, node):
        numbers = self.numbers.get(kind, {})
        return next((".".join(map(str, numbers[id])) for id in node["ids"] if id in numbers), "")

    def caption(self, node, caption, kind="figure"):
        number = self.number(kind, node)
        label = self.env.config.numfig_format[kind] % number if number else ""
        return f"**{label}** {self.inline(caption)}" if label else self.inline(caption)

    def nothing(self, node):
        return ""

    from_target = from_comment = from_index = from_substitution_definition = nothing
    from_document = from_compound = from_legend = from_glossary = blocks
    from_paragraph = from_inline = from_caption = from_term = from_PassthroughTextElement = inline

    def from_Text(self, node):
        text = re.sub(r"\s+", " ", node.astext())
        return re.sub(r"([\\`*_$\[\]<])", r"\\\1", text)

    def from_emphasis(self, node):
        return f"*{self.inline(node)}*"

    from_title_reference = from_emphasis

    def from_strong(self, node):
        return f"**{self.inline(node)}**"

    def from_literal(self, node):
        ticks = "``" if "`" in node.astext() else "`"
        space = " " if "`" in node.astext() else ""
        return f"{ticks}{space}{node.astext()}{space}{ticks}"

    def from_math(self, node):
        text = " ".join(node.astext().split())
        if isinstance(node.parent.parent, nodes.entry):  # a bar would end the table's cell
            text = text.replace(r"\|", r"\Vert ").replace("|", r"\vert ")
        return f"${text}$"

    def from_math_block(self, node):
        """Number a formula by hand; environments that number by themselves do not stand inside of dollars."""
        text = re.sub(r"\\(begin|end)\{equation\*?\}", "", node.astext()).strip()
        text = re.sub(r"\\(begin|end)\{(align|gather)\*?\}", r"\\\1{\2ed}", text)
        if r"\\" in text and r"\begin" not in text:
            text = f"\\begin{{aligned}}\n{text}\n\\end{{aligned}}"
        number = self.number("displaymath", node)
        tag = rf" \tag{{{number}}}" if number else ""
        return f"$$\n{text}{tag}\n$$"

    def from_reference(self, node):
        text = self.inline(node)
        page, _, anchor = node.get("refuri", "").partition("#")
        if anchor in self.builder.bibliography and "reftitle" in node:
            self.cited.append(anchor)
            paper = next((link["refuri"] for link in self.builder.bibliography[anchor].findall(external_link)), "")
            return f"[{text}]({paper})" if paper else text
        if "preset" in node["classes"]:
            return f"*{text}*"
        if re.match(r"https?:|mailto:", page):
            return f"[{text}]({node['refuri']})"
        docname = self.docname if "refid" in node else f"chapters/{page.removesuffix('.ipynb')}"
        heading = self.builder.headings.get((docname, anchor or node.get("refid")))
        link = (page if page.endswith(".ipynb") else "") + (f"#{quote(heading.replace(' ', '-'))}" if heading else "")
        return f"[{text}]({link})" if link else text

    from_number_reference = from_download_reference = from_reference

    def from_image(self, node):
        path = Path(self.env.srcdir, node["uri"])
        if not path.exists():  # Sphinx has said so
            return ""
        kind = mimetypes.guess_type(path.name)[0]
        data = base64.b64encode(path.read_bytes()).decode()
        return f"![{node.get('alt', '')}](data:{kind};base64,{data})"

    def from_figure(self, node):
        captions = [self.caption(node, caption) for caption in node.findall(nodes.caption)]
        images = [self.markdown(image) for image in node.findall(nodes.image)]
        return "\n\n".join(images + captions)

    def from_literal_block(self, node):
        fence = "````" if "```" in node.astext() else "```"
        return f"{fence}{node.get('language', '')}\n{node.astext().rstrip()}\n{fence}"

    def from_bullet_list(self, node, marker="- "):
        return "\n".join(self.item(item, marker) for item in node.children)

    def from_enumerated_list(self, node):
        start = node.get("start", 1)
        return "\n".join(self.item(item, f"{i}. ") for i, item in enumerate(node.children, start))

    def item(self, node, marker):
        return marker + indent(self.blocks(node), " " * len(marker))[len(marker) :]

    def from_definition_list(self, node):
        return "\n\n".join(self.markdown(item) for item in node.children)

    def from_definition_list_item(self, node):
        *terms, definition = node.children
        return f"**{', '.join(map(self.inline, terms))}**: {self.blocks(definition)}"

    def from_block_quote(self, node):
        return indent(self.blocks(node), "> ", lambda line: True)

    def from_container(self, node):
        """A card is quoted; the tabs of a set follow each other, each under its label."""
        return self.from_block_quote(node) if node.get("design_component") == "card" else self.blocks(node)

    def from_rubric(self, node):
        return f"**{self.inline(node)}**"

    def from_footnote_reference(self, node):
        return rf"\[{node.astext()}\]"

    def from_footnote(self, node):
        label, *content = node.children
        return rf"\[{label.astext()}\] " + "\n\n".join(map(self.markdown, content))

    def from_Admonition(self, node):
        first, *rest = node.children
        titled = isinstance(first, nodes.title)
        title = self.inline(first) if titled else type(node).__name__.capitalize()
        body = "\n\n".join(self.markdown(child) for child in (rest if titled else node.children))
        if "dropdown" in node["classes"]:
            return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"
        return indent(f"**{title}.** {body}", "> ", lambda line: True)

    def from_transition(self, node):
        return "---"

    def from_raw(self, node):
        """Leave out what Thebe puts on every page for a kernel of its own; other HTML stays as it is."""
        return "" if "<script" in node.astext() else node.astext().strip()

    def from_table(self, node):
        rows = [[self.cell(entry) for entry in row.children] for row in node.findall(nodes.row)]
        ends = [self.alignment(entry) for entry in next(iter(node.findall(nodes.row))).children]
        lines = [f"| {' | '.join(row)} |" for row in [rows[0], ends, *rows[1:]]]
        captions = [self.caption(node, title, "table") for title in node.findall(nodes.title)]
        return "\n\n".join([*captions, "\n".join(lines)])

    def cell(self, entry):
        return re.sub(r"\|", r"\\|", self.blocks(entry, " "))

    def alignment(self, entry):
        return {"text-right": "--:", "text-center": ":-:"}.get(" ".join(entry["classes"]), "---")


def external_link(node):
    return isinstance(node, nodes.reference) and node.get("refuri", "").startswith("http")


def set_up_cell(config):
    url, branch, _ = addresses(config)
    install = INSTALL.format(url=url, branch=branch) if url else NO_ADDRESS
    printed = nbformat.v4.new_output("stream", text=f"computing on {default_device()}\n")
    return nbformat.v4.new_code_cell(SET_UP.format(install=install), outputs=[printed])


def stored(output):
    """Return an output without what differs from one execution to the next."""
    output = nbformat.from_dict(output)
    output.get("data", {}).pop(WIDGET_VIEW, None)
    output.get("metadata", {}).clear()
    if "execution_count" in output:
        output.execution_count = None
    return output


def add_links(app, pagename, templatename, context, doctree):
    """Put links to the notebook under the title of a page that has one."""
    name = Path(pagename).name
    if doctree is None or not has_notebook(app.env, pagename) or not Path(app.srcdir, FOLDER, f"{name}.ipynb").exists():
        return
    links = [f'<a href="../{FOLDER}/{name}.ipynb" download>Download this chapter as a notebook</a>']
    if colab := colab_link(app.config, name):
        links.insert(0, f'<a href="{colab}">Open in Colab</a>')
    context["body"] = context["body"].replace("</h1>", f'</h1>\n<p class="rb-notebook">{" ".join(links)}</p>', 1)


def copy_notebooks(app, failure):
    if not failure and app.builder.format == "html":
        copy_asset(Path(app.srcdir, FOLDER), Path(app.outdir, FOLDER))


def configure(app, config):
    # MyST-NB picks one form of each output for a builder; this builder takes all of them, from the executed notebook.
    config.nb_mime_priority_overrides = [*config.nb_mime_priority_overrides, ("notebooks", "text/plain", 1)]


def setup(app):
    app.add_builder(NotebookBuilder)
    app.connect("config-inited", configure)
    app.connect("html-page-context", add_links)
    app.connect("build-finished", copy_notebooks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
