"""Nodes of a resolved page as Markdown that Colab, JupyterLab, VS Code and GitHub show alike."""

import base64
import mimetypes
import re
from html import escape
from pathlib import Path
from textwrap import indent
from urllib.parse import quote

from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)

ENVIRONMENTS = "multline|alignat|flalign|eqnarray"  # of TeX, which have no place between dollars


class Markdown:
    """A rule for each kind of node, ``from_CLASS``, also for the classes derived from it; no rule is an error.

    Args:
        builder: the :class:`resbook_notebooks.NotebookBuilder` that writes the page.
        docname: the page.
    """

    def __init__(self, builder, docname):
        self.builder, self.docname, self.env = builder, docname, builder.env
        self.numbers = self.env.toc_fignumbers.get(docname, {})
        self.cited = set()

    def markdown(self, node):
        for cls in type(node).__mro__:
            if rule := getattr(self, f"from_{cls.__name__}", None):
                return rule(node)
        return self.refuse(node, f"a notebook has no Markdown for <{type(node).__name__}>")

    def refuse(self, node, why):
        """Tell what cannot be converted and where it stands: under -W, an error."""
        logger.warning(why, location=node)
        return ""

    def inline(self, node):
        return "".join(self.markdown(child) for child in node.children)

    def blocks(self, node, separator="\n\n"):
        return separator.join(filter(None, (self.markdown(child) for child in node.children)))

    def number(self, kind, node):
        """Return the number that Sphinx gave a figure, table, equation or exercise, or ""."""
        numbers = self.numbers.get(kind, {})
        return next((".".join(map(str, numbers[id])) for id in node["ids"] if id in numbers), "")

    def caption(self, node, caption, kind="figure"):
        number = self.number(kind, node)
        label = f"**{self.env.config.numfig_format[kind] % number}** " if number else ""
        return label + self.inline(caption)

    # Text

    def from_Text(self, node):
        """Escape what Markdown would take for markup; an exclamation mark, before a link; and entities."""
        text = re.sub(r"\s+", " ", node.astext())
        return re.sub(r"([\\`*_$\[\]<~]|!$|&(?=#?\w+;))", r"\\\1", text)

    def from_paragraph(self, node):
        """Escape what would begin a list, a heading or a quotation."""
        return re.sub(r"^(\d+(?=[.)]\s)|(?=[-+#>]))", r"\1\\", self.inline(node), count=1)

    from_inline = from_caption = from_term = from_PassthroughTextElement = inline

    def from_emphasis(self, node):
        return f"*{self.inline(node)}*"

    from_title_reference = from_emphasis

    def from_strong(self, node):
        return f"**{self.inline(node)}**"

    from_rubric = from_strong

    def from_subscript(self, node):
        return f"<sub>{self.inline(node)}</sub>"

    def from_superscript(self, node):
        return f"<sup>{self.inline(node)}</sup>"

    def from_literal(self, node):
        text = node.astext()
        return f"`` {text} ``" if "`" in text else f"`{text}`"

    def from_math(self, node):
        text = " ".join(node.astext().split()).replace("<", r"\lt ")  # no viewer takes it for HTML
        if within(node, nodes.entry):  # where a bar would end the cell
            text = text.replace(r"\|", r"\Vert ").replace("|", r"\vert ").strip()
        return f"${text}$"

    def from_math_block(self, node):
        """Number a formula by hand; environments that number by themselves do not stand between dollars."""
        text = re.sub(r"\\(begin|end)\{equation\*?\}", "", node.astext()).strip().replace("<", r"\lt ")
        text = re.sub(r"\n\s*\n", "\n", text)
        text = re.sub(r"\\(begin|end)\{(align|gather)\*?\}", r"\\\1{\2ed}", text)
        if re.search(rf"\\begin\{{({ENVIRONMENTS})", text):
            return self.refuse(node, "a notebook's formula is written with aligned or gathered")
        if r"\\" in text and not re.fullmatch(r"\\begin\{(\w+)\}.*\\end\{\1\}\S?", text, flags=re.S):
            text = f"\\begin{{aligned}}\n{text}\n\\end{{aligned}}"
        number = self.number("displaymath", node)
        tag = rf" \tag{{{number}}}" if number else ""
        return f"$$\n{text}{tag}\n$$"

    # References

    def from_reference(self, node):
        """A citation leads to the paper, a section to where JupyterLab has it: under its title. Others may be text."""
        text, uri = self.inline(node), node.get("refuri", "")
        page, _, anchor = uri.partition("#")
        if "reftitle" in node and anchor in self.builder.bibliography:
            self.cited.add(anchor)
            links = self.builder.bibliography[anchor].findall(nodes.reference)
            return next((link_to(text, link["refuri"]) for link in links if "refuri" in link), text)
        if "preset" in node["classes"]:
            button = self.builder.presets[anchor]
            return f"*{text}*" if text.lower() == button.lower() else f"*{text}* (button “{button}”)"
        if re.match(r"https?:|mailto:", uri):
            return link_to(text, uri)
        docname = self.docname if "refid" in node else f"chapters/{page.removesuffix('.ipynb')}"
        heading = self.builder.headings.get((docname, anchor or node.get("refid")))
        place = f"#{quote(heading.replace(' ', '-'))}" if heading else ""
        return link_to(text, (page if page.endswith(".ipynb") else "") + place)

    from_number_reference = from_download_reference = from_reference

    def from_footnote_reference(self, node):
        return rf"\[{node.astext()}\]"

    def from_footnote(self, node):
        label, *content = node.children
        return rf"\[{label.astext()}\] " + "\n\n".join(map(self.markdown, content))

    # Blocks

    def from_literal_block(self, node):
        fence = "````" if "```" in node.astext() else "```"
        return f"{fence}{node.get('language', '')}\n{node.astext().rstrip()}\n{fence}"

    def from_bullet_list(self, node):
        return "\n".join(self.item(item, "- ") for item in node.children)

    def from_enumerated_list(self, node):
        return "\n".join(self.item(item, f"{i}. ") for i, item in enumerate(node.children, node.get("start", 1)))

    def item(self, node, marker):
        return marker + indent(self.blocks(node), " " * len(marker)).lstrip()

    def from_definition_list_item(self, node):
        *terms, definition = node.children
        return f"**{', '.join(map(self.inline, terms))}**: {self.blocks(definition)}"

    from_document = from_compound = from_glossary = from_definition_list = from_legend = blocks

    def from_block_quote(self, node):
        return indent(self.blocks(node), "> ", lambda line: True)

    def from_Admonition(self, node):
        first, *rest = node.children
        titled = isinstance(first, nodes.title)
        body = "\n\n".join(self.markdown(child) for child in (rest if titled else node.children))
        if titled and "dropdown" in node["classes"]:
            return f"<details><summary>{escape(first.astext())}</summary>\n\n{body}\n\n</details>"
        title = self.inline(first) if titled else type(node).__name__.capitalize()
        return indent(f"**{title}.** {body}", "> ", lambda line: True)

    def from_container(self, node):
        """A card is quoted; the tabs of a set follow each other, each under its label."""
        return self.from_block_quote(node) if node.get("design_component") == "card" else self.blocks(node)

    def from_figure(self, node):
        parts = [self.caption(node, c) if isinstance(c, nodes.caption) else self.markdown(c) for c in node.children]
        return "\n\n".join(filter(None, parts))

    def from_image(self, node):
        """An image goes into the text itself: a notebook travels alone."""
        alt = re.sub(r"([\[\]])", r"\\\1", node.get("alt", ""))
        if "://" in node["uri"]:
            return f"![{alt}]({node['uri']})"
        path = Path(self.env.srcdir, node["uri"])
        kind = mimetypes.guess_type(path.name)[0]
        if not path.exists() or kind is None:
            return self.refuse(node, f"a notebook cannot hold the image {node['uri']}")
        return f"![{alt}](data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()})"

    def from_table(self, node):
        rows = [[self.cell(entry) for entry in row.children] for row in node.findall(nodes.row)]
        ends = [alignment(entry) for entry in next(iter(node.findall(nodes.row))).children]
        if not any(node.findall(nodes.thead)):
            rows.insert(0, [" "] * len(ends))
        lines = "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ends, *rows[1:]])
        captions = [self.caption(node, title, "table") for title in node.findall(nodes.title)]
        return "\n\n".join([*captions, lines])

    def cell(self, entry):
        text = self.blocks(entry, " ").replace("|", r"\|")
        return self.refuse(entry, "a cell of a notebook's table is one line") if "\n" in text else text

    def from_transition(self, node):
        return "---"

    def from_raw(self, node):
        """HTML stays as it is, but for what Thebe puts on every page."""
        return node.astext().strip() if "html" in node["format"] and "<script" not in node.astext() else ""

    def nothing(self, node):
        return ""

    from_target = from_comment = from_index = from_substitution_definition = nothing


def within(node, kind):
    return node is not None and (isinstance(node, kind) or within(node.parent, kind))


def link_to(text, uri):
    return f"[{text}]({uri.replace('(', '%28').replace(')', '%29')})" if uri else text


def alignment(entry):
    return {"text-right": "--:", "text-center": ":-:"}.get(" ".join(entry["classes"]), "---")
