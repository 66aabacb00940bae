"""What the book shows: pictures with a text alternative, drawn as vectors in the colours of the page."""

import base64
import hashlib
import io
import re
from html import escape

PLAIN, RESIDUAL = "#D55E00", "#0072B2"  # vermilion and dashed, blue and solid: everywhere in the book
OKABE_ITO = {  # Okabe and Ito's palette, told apart by colour-blind readers; each with a line style of its own
    "plain": (PLAIN, "--"),
    "residual": (RESIDUAL, "-"),
    "green": ("#009E73", "-."),
    "orange": ("#E69F00", ":"),
    "purple": ("#CC79A7", (0, (5, 1, 1, 1, 1, 1))),
    "sky": ("#56B4E9", (0, (1, 1))),
}
INK, PAPER = "#000000", "#fefefe"  # the colours of text and of what is behind it: in a page, the page's
PAGE_COLOURS = {
    **{colour.lower(): f"var(--rb-{name}, {colour})" for name, (colour, _) in OKABE_ITO.items()},
    INK: "currentColor",
    PAPER: "var(--pst-color-background, white)",
}
ALONE = f' style="background: {PAPER}; font-family: sans-serif"'  # of a picture that no page surrounds
STYLE = {
    "figure.figsize": (6.4, 3.4),
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "font.family": "sans-serif",
    "lines.linewidth": 1.8,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "resbook",
}


class Picture:
    """An SVG image with a text alternative: on white paper in a notebook, in the colours of its surroundings on a page.

    A notebook gets ``image/svg+xml``, which every viewer shows, or the bitmap, which needs no trust. A page gets
    :func:`inline_html`. Where nothing is drawn (a terminal, a screen reader) ``alt`` is shown or read instead.

    Args:
        svg: the ``<svg>`` element; black is the colour of text.
        alt: what the picture shows, in one or two sentences.
        png: the same picture as a bitmap, for JupyterLab, which shows no SVG of a notebook that was not run yet.

    Raises:
        ValueError: ``alt`` is empty.
    """

    def __init__(self, svg, alt, png=None):
        if not alt or not alt.strip():
            raise ValueError("alt must say what the picture shows; it is all that some readers get")
        self.svg, self.alt, self.png = svg, " ".join(alt.split()), png

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = {"image/svg+xml": self.labelled().replace("<svg", f"<svg{ALONE}", 1), "text/plain": self.alt}
        if self.png:
            bundle["image/png"] = base64.b64encode(self.png).decode()
        return bundle

    def labelled(self):
        """Return the ``<svg>`` element with its text alternative, and with ids that no other picture has."""
        key = "p" + hashlib.sha1((self.svg + self.alt).encode()).hexdigest()[:8]
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", self.svg)
        return svg.replace("<svg", f'<svg role="img" aria-label="{escape(self.alt)}"', 1)

    def html(self):
        """Return the ``<svg>`` element, labelled, in the colours of the page around it."""
        return _in_page_colours(self.labelled())


def inline_html(svg):
    """Turn the ``image/svg+xml`` of a :class:`Picture` into HTML for a page: no paper, the page's own colours."""
    return f'<div class="rb rb-picture">{_in_page_colours(svg.replace(ALONE, "", 1))}</div>'


def _in_page_colours(svg):
    return re.sub(r"#[0-9a-fA-F]{6}\b", lambda m: PAGE_COLOURS.get(m[0].lower(), m[0]), svg)


def picture_of(figure, alt):
    """Turn a matplotlib figure into a :class:`Picture` and close it.

    Args:
        figure: a ``matplotlib.figure.Figure``.
        alt: what it shows, for those who cannot see it; required.
    """
    import matplotlib.pyplot as plt

    for axes in figure.axes:
        if axes.get_legend():
            axes.get_legend().set_frame_on(False)  # a light box in the dark theme
    vectors, bitmap = io.StringIO(), io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(vectors, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(bitmap, format="png", transparent=False, dpi=100, metadata={"Software": None})
    plt.close(figure)
    svg = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", vectors.getvalue(), flags=re.S)
    # Inside a page, matplotlib's style sheet would apply to the whole page, and a fixed height would squeeze.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', rf'width="\1pt" fill="{INK}"', svg, count=1)
    # A hundredth of a point is finer than any screen, and the same on every processor. Text is left as it is.
    svg = re.sub(r"<[^>]*>", lambda tag: _rounded(tag[0]), svg)
    return Picture(re.sub(r"\s*\n\s*", "\n", svg), alt, bitmap.getvalue())


def _rounded(tag):
    return re.sub(r"(?<!scale\()\b\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag)


def new_figure(*args, **kwargs):
    """Return ``plt.subplots(*args, **kwargs)`` in the book's style: a figure and its axes."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        return plt.subplots(*args, **kwargs)


def line_style(name):
    """Return matplotlib's colour and line style for "plain", "residual" or another name of the palette."""
    colour, style = OKABE_ITO[name]
    return {"color": colour, "linestyle": style}
