"""The few lines of Sphinx that the book needs: formulas without a network, and pages without dead weight."""

import re
from importlib.resources import files
from pathlib import Path

from docutils import nodes
from jupyter_cache import get_cache
from markupsafe import Markup
from myst_nb.core import execute, render
from resbook.pictures import inline_html
from sphinx.util.docutils import ReferenceRole
from sphinx.util.fileutil import copy_asset

TEMPLATES = str(Path(__file__).parent / "templates")
MATHJAX = Path(str(files("sphinx-mathjax-offline"))) / "static" / "mathjax"

# MathJax in parts and not as its combined file: without the menu there are 100 kB less to load. The menu would
# also make every formula a stop of the Tab key, and offer speech that is not here; screen readers get MathML
# from assistive-mml.
MATHJAX_PARTS = ["input/tex", "output/chtml", "a11y/assistive-mml"]
MATHJAX_FILES = [
    *("startup.js", "core.js", *(f"{part}.js" for part in MATHJAX_PARTS), "output/chtml/fonts/tex.js"),
    *("input/tex/extensions", "output/chtml/fonts/woff-v2"),  # folders; a page loads what its formulas use
]

# Font Awesome comes twice: web fonts draw every icon, and a script of 1.5 MB draws them all again. And its fonts
# are loaded ahead on every page, used or not, which also fails on a page opened as a file.
DEAD_WEIGHT = re.compile(r"<script[^>]*/fontawesome/[^>]*></script>|<link[^>]*preload[^>]*/webfonts/[^>]*>")


# The explorers carry their own module and state: what ipywidgets needs besides would be asked of a server.
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


class Preset(ReferenceRole):
    """A link that opens an explorer of the same page in one of its presets: {preset}`text <gradients-vanishing>`."""

    def run(self):
        return [nodes.reference(self.rawtext, self.title, refuri=f"#{self.target}", classes=["preset"])], []


class NotebookClient(execute.NotebookClientCache):
    """Joins the pieces in which a kernel happens to send what a cell prints, and keeps what comes from the cache.

    MyST-NB's own merging puts a line break between two pieces, and the notebook that it leaves in
    _build/jupyter_execute has no outputs when they come from the cache.
    """

    def start_client(self):
        written = self._notebook
        super().start_client()
        for cell in self._notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = join_streams(cell.outputs)
        written.update(self._notebook)


def join_streams(outputs):
    joined = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def render_image(renderer, data, as_file=render.NbElementRenderer.render_image):
    """Put a vector image into the page itself, where it takes the page's colours; MyST-NB would link to a file."""
    if data.mime_type != "image/svg+xml":
        return as_file(renderer, data)
    return [nodes.raw(text=inline_html(data.string), format="html", classes=["output", "text_html"])]


def configure(app, config):
    # Chapters are executed while they are read, and most of them keep one core busy and not two. Two extensions of
    # Jupyter Book do not allow it: one numbers sections after all are read, the other is for LaTeX.
    app.parallel = 2
    for name in ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex"):
        app.extensions[name].parallel_read_safe = True
    config.nb_ipywidgets_js = {}
    config.templates_path.append(TEMPLATES)
    config.mathjax_path = "mathjax/startup.js"
    config.mathjax3_config = {"loader": {"load": MATHJAX_PARTS}}
    # Buttons that lead to the repository, where _config.yml names one.
    options = config.html_theme_options
    options["use_repository_button"] = options["use_issues_button"] = bool(options.get("repository_url"))


def create_cache(app):
    """Create the cache's database before two processes do it at once, and one of them fails."""
    _ = get_cache(app.env.mystnb_config.execution_cache_path).db


def lighten_page(app, pagename, templatename, context, doctree):
    """Leave out Thebe (declared twice: an error on every page), widgets' states, and what is there a second time."""
    scripts = {}
    for script in context["script_files"]:
        body = script.attributes.get("body") or ""
        wanted = "THEBE_JS_URL" not in body and script.attributes.get("type") != WIDGET_STATE
        if wanted and "sphinx-thebe" not in str(script.filename):
            scripts.setdefault((script.filename, body), script)
    context["script_files"] = list(scripts.values())
    styles = context["css_files"]
    context["css_files"] = [style for style in styles if "sphinx-thebe" not in str(style.filename)]
    context["lighten_head"] = lambda head: Markup(DEAD_WEIGHT.sub("", head))


def copy_mathjax(app, failure):
    if failure or app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static" / "mathjax"
    for name in MATHJAX_FILES:
        source = MATHJAX / name
        copy_asset(source, target / name if source.is_dir() else (target / name).parent)


def setup(app):
    execute.NotebookClientCache = NotebookClient
    render.NbElementRenderer.render_image = render_image
    app.add_role("preset", Preset())
    app.connect("config-inited", configure)
    app.connect("builder-inited", create_cache, priority=900)  # after MyST-NB, which knows its place
    app.connect("html-page-context", lighten_page, priority=900)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
