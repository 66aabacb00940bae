"""Chapters as notebooks: a Sphinx builder that writes what a page shows as Markdown, code and stored outputs.

It starts from the page as Sphinx has resolved it, so that numbers, references and citations are those of the book, and
takes the outputs from the notebook that the book's execution left.
"""

import hashlib
import re
import shutil
from pathlib import Path

import nbformat
from docutils import nodes
from notebook_markdown import Markdown
from resbook.device import default_device
from resbook.fingerprint import arithmetic
from resbook.widgets import BatchNormExplorer, BlockWorkshop, DegradationReplay, GradientExplorer, ShapeExplorer
from sphinx.builders import Builder
from sphinx.util import logging
from sphinx_exercise.nodes import exercise_enumerable_node, exercise_node, solution_node
from sphinxcontrib.bibtex.nodes import bibliography

logger = logging.getLogger(__name__)

EXPLORERS = (BatchNormExplorer, BlockWorkshop, DegradationReplay, GradientExplorer, ShapeExplorer)
FOLDER = "notebooks"  # beside the chapters' folder; kept in the repository, and copied into the site
SET_UP = """\
# In Colab, install the book's package; all else is there, and stays as it is.
# Elsewhere, do nothing: there, pip install . in the book's folder installs it.
import sys
from importlib.util import find_spec

if "google.colab" in sys.modules and not find_spec("resbook"):
    {install}

from resbook import default_device

print("computing on", default_device())"""
INSTALL = "%pip install -q --no-deps git+{url}@{branch}"
NO_ADDRESS = """\
sys.exit("Zip the book's folder, upload it here as book.zip, run "
             "%pip install --no-deps book.zip, and then this cell again.")"""

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"  # names a model that is gone; the text/html beside it stays
NOTEBOOK_TAGS = ("measured", "nbval-ignore-output", "raises-exception")
HIDDEN = {  # how JupyterLab and Colab each hide the code or the output of a cell
    "input": {"jupyter": {"source_hidden": True}, "cellView": "form"},
    "output": {"jupyter": {"outputs_hidden": True}},
    "all": {"jupyter": {"source_hidden": True, "outputs_hidden": True}, "cellView": "form"},
}
HIDDEN["input+output"] = HIDDEN["all"]


def has_notebook(env, docname):
    """Say whether a page becomes a notebook: a chapter with code, unless its front matter says ``notebook: false``."""
    executed = "exec_data" in getattr(env, "nb_metadata", {}).get(docname, {})
    wanted = str(env.metadata[docname].get("notebook", True)) != "False"
    return executed and docname.startswith("chapters/") and wanted


def addresses(config):
    """Return the repository's address and branch and the published book's address; "" for what is not known."""
    url = (config.html_theme_options.get("repository_url") or "").rstrip("/").removesuffix(".git")
    branch = config.html_theme_options.get("repository_branch") or "main"
    on_github = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+)", url)
    if config.html_baseurl or not on_github:
        return url, branch, config.html_baseurl and config.html_baseurl.rstrip("/") + "/"
    site = f"{on_github[1]}.github.io".lower()
    return url, branch, f"https://{site}/" if on_github[2].lower() == site else f"https://{site}/{on_github[2]}/"


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
    supported_remote_images = True

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
        self.arithmetic = arithmetic()
        self.presets = {f"{e.name}-{name}": e.presets[name][0] for e in EXPLORERS for name in e.presets}
        self.authors = {c.citation_id: authors_and_year(c.entry) for c in self.env.domains["cite"].citations}
        self.headings, self.bibliography = {}, {}  # by page and anchor, and by anchor
        for docname in self.env.found_docs:
            tree = self.env.get_doctree(docname)
            for section in tree.findall(nodes.section):
                if section.parent is not tree:  # a link to a whole page needs no anchor, and VS Code likes none
                    self.headings |= {(docname, id): section[0].astext() for id in section["ids"]}
            if any(tree.findall(bibliography)):
                tree = self.env.get_and_resolve_doctree(docname, self)
                self.bibliography |= {id: entry for entry in tree.findall(nodes.citation) for id in entry["ids"]}

    def write_doc(self, docname, doctree):
        if not has_notebook(self.env, docname):
            return
        if docname.count("/") > 1:
            logger.warning("a chapter with code stands in chapters/ itself, not in a folder below", location=docname)
        notebook = Chapter(self, docname).convert(doctree)
        path = Path(self.outdir, f"{Path(docname).name}.ipynb")
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


class Chapter(Markdown):
    """The conversion of one page: Markdown is gathered until a heading or a code cell ends the cell."""

    def __init__(self, builder, docname):
        super().__init__(builder, docname)
        self.name = Path(docname).name
        self.cells, self.pending, self.folded, self.shown = [], [], [], set()
        self.after_solution = False
        executed = Path(builder.outdir).parent / "jupyter_execute" / f"{docname}.ipynb"
        self.executed = nbformat.read(executed, as_version=4).cells

    def convert(self, tree):
        """Return the notebook of a page's resolved tree."""
        for node in tree.children:
            self.block(node, level=1)
        self.end_cell()
        self.add_references()
        hidden = [i for i, cell in enumerate(self.executed) if cell.cell_type == "code" and i not in self.shown]
        if hidden:
            logger.warning("a notebook needs the cells that the page leaves out: %s", hidden, location=self.docname)
        for count, cell in enumerate((cell for cell in self.cells if cell.cell_type == "code"), start=1):
            cell.execution_count = count
        metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "colab": {"collapsed_sections": self.folded},
            "resbook": self.builder.arithmetic,
        }
        return nbformat.v4.new_notebook(cells=self.cells, metadata=metadata)

    def block(self, node, level):
        """Add what makes cells (sections, titles, code, exercises, solutions), and gather what is plain Markdown."""
        if isinstance(node, nodes.section):
            for child in node.children:
                self.block(child, level + isinstance(child, nodes.section))
        elif isinstance(node, nodes.title):
            self.add_heading(level, self.inline(node))
            if level == 1:
                self.pending.append(self.origin())
        elif isinstance(node, (exercise_node, exercise_enumerable_node, solution_node)):
            self.add_exercise(node, level + 1)
        elif isinstance(node, nodes.container) and node.get("nb_element") == "cell_code":
            self.check_place(node)
            self.add_code(node)
        elif text := self.markdown(node):
            self.check_place(node)
            self.pending.append(text)

    def check_place(self, node):
        if self.after_solution:
            self.refuse(node, "what follows a solution would be folded away with it: begin a section")
        self.after_solution = False

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

    def add_heading(self, level, text):
        self.end_cell()
        self.after_solution = False
        self.pending.append(f"{'#' * level} {text}")

    def add_code(self, node):
        self.end_cell()
        if not self.shown:
            self.add(set_up_cell(self.builder.config))
        self.shown.add(node["cell_index"])
        source = self.executed[node["cell_index"]]
        tags = [tag for tag in NOTEBOOK_TAGS if tag in node["cell_metadata"].get("tags", [])]
        metadata = ({"tags": tags} if tags else {}) | HIDDEN.get(node.get("hide_mode"), {})
        outputs = [] if "nbval-ignore-output" in tags else [stored(output) for output in source.outputs]
        self.add(nbformat.v4.new_code_cell(source.source, metadata=metadata, outputs=outputs))
        for figure in node.findall(nodes.figure):
            self.pending += [self.caption(figure, caption) for caption in figure.findall(nodes.caption)]

    def add_exercise(self, node, level):
        """An exercise is a heading and its text; its solution a heading that is folded until it is clicked."""
        is_solution = isinstance(node, solution_node)
        title, *content = node.children
        number = self.number("exercise", node)
        heading = self.inline(title)
        self.add_heading(level + is_solution, f"Exercise {number}{heading}" if number else heading)
        if is_solution:
            self.end_cell(**{"jp-MarkdownHeadingCollapsed": True})
            self.folded.append(self.cells[-1].id)
            self.cells[-1].metadata["id"] = self.cells[-1].id  # where Colab looks for it
        for part in content:
            for child in part.children if isinstance(part, nodes.section) else [part]:
                self.block(child, level)
        self.end_cell()
        self.after_solution = is_solution

    def add_references(self):
        cited = sorted(self.cited, key=self.builder.authors.get)
        entries = [self.builder.bibliography[id] for id in cited]
        if entries:
            self.add_heading(2, "References")
            self.pending.append("\n".join(f"- {self.markdown(entry.children[-1])}" for entry in entries))
            self.end_cell()

    def origin(self):
        """Return the line under a notebook's title that says what it belongs to, and where to open it."""
        book, (_, _, site) = self.env.config.html_title, addresses(self.builder.config)
        page = f"[{book}]({site}{self.docname}.html)" if site else f"*{book}*"
        colab = colab_link(self.builder.config, self.name)
        return f"A chapter of {page}." + (f" [Open in Colab]({colab})" if colab else "")


def authors_and_year(entry):
    """Return what a list of references is ordered by."""
    return [person.last_names for person in entry.persons["author"]], entry.fields["year"]


def set_up_cell(config):
    """Return the cell that a notebook begins with, and what it prints here."""
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
    if doctree is None or not has_notebook(app.env, pagename):
        return
    name = Path(pagename).name
    links = [f'<a href="../{FOLDER}/{name}.ipynb" download>Download this chapter as a notebook</a>']
    if colab := colab_link(app.config, name):
        links.insert(0, f'<a href="{colab}">Open in Colab</a>')
    context["body"] = context["body"].replace("</h1>", f'</h1>\n<p class="rb-notebook">{" ".join(links)}</p>', 1)


def copy_notebooks(app, failure):
    if failure or app.builder.format != "html":
        return
    target = Path(app.outdir, FOLDER)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for notebook in Path(app.srcdir, FOLDER).glob("*.ipynb"):
        shutil.copy(notebook, target)


def configure(app, config):
    # MyST-NB picks one form of each output for a builder; this builder takes all of them, from the executed notebook.
    config.nb_mime_priority_overrides = [*config.nb_mime_priority_overrides, ("notebooks", "text/plain", 1)]


def setup(app):
    app.add_builder(NotebookBuilder)
    app.connect("config-inited", configure)
    app.connect("html-page-context", add_links)
    app.connect("build-finished", copy_notebooks)
    return {"version": "1", "parallel_read_safe": True}
