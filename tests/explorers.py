"""What the tests of the explorers share: where each stands in the book, and how to open and read it in a browser."""

import json
import re
from contextlib import contextmanager

from conftest import ROOT
from resbook.widgets import BatchNormExplorer, BlockWorkshop, DegradationReplay, GradientExplorer, ShapeExplorer

FOLDER = ROOT / "code" / "resbook" / "widgets"
SITE = ROOT / "_build" / "html"
EXPLORERS = {
    cls.name: cls for cls in (ShapeExplorer, GradientExplorer, BatchNormExplorer, BlockWorkshop, DegradationReplay)
}
PAGES = {
    "shapes": "chapters/resnet18-forward",
    "gradients": "chapters/residual-structure",
    "batchnorm": "chapters/batch-normalization",
    "workshop": "chapters/residual-structure",
    "replay": "chapters/degradation",
}
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


@contextmanager
def opened(browser, name, *, viewport=DESKTOP, **options):
    """Open the built page of an explorer as a file, with every host blocked; yield an :class:`Opened`."""
    path = SITE / f"{PAGES[name]}.html"
    assert path.is_file(), f"{path} is missing: run 'make book' first"
    context = browser.new_context(viewport=viewport, **options)
    context.route(re.compile(r"^(?!file:|data:|blob:)"), lambda route: route.abort())
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    yield Opened(page, page.locator(f'[data-explorer="{name}"]'), name)
    context.close()
    assert errors == []


class Opened:
    """An explorer in a page: its controls by name, and what it shows."""

    def __init__(self, page, root, name):
        self.page, self.root, self.name = page, root, name
        self.specs = {spec.name: spec for spec in EXPLORERS[name].controls}

    def control(self, name, *, exact=False):
        kind = '[type="number"]' if exact else ':not([type="number"])'
        return self.root.locator(f'[data-setting="{name}"]{kind}')

    def set(self, **settings):
        """Set controls with the mouse, or where a number must be exact, by typing it."""
        for name, value in settings.items():
            spec = self.specs[name].spec()
            if spec["kind"] == "switch":
                self.control(name).set_checked(value)
            elif spec["kind"] == "choice":
                self.control(name).select_option(index=[option for option, _ in spec["options"]].index(value))
            else:
                self.control(name, exact=True).fill(str(value))

    def press(self, name, *keys):
        """Set a control with the keyboard alone."""
        self.control(name).focus()
        for key in keys:
            self.page.keyboard.press(key)

    def shown(self, name):
        """Return what a control shows, as a setting."""
        spec, control = self.specs[name].spec(), self.control(name)
        if spec["kind"] == "switch":
            return control.is_checked()
        if spec["kind"] == "choice":
            return spec["options"][control.evaluate("select => select.selectedIndex")][0]
        return control.evaluate("input => +input.value")

    def preset(self, name):
        self.root.locator(f'[data-preset="{name}"]').click()

    def do(self, name):
        self.root.locator(f'[data-do="{name}"]').click()

    @property
    def says(self):
        return self.root.locator(".rbw-say").inner_text()

    @property
    def code(self):
        return self.root.locator(".rbw-code").text_content()

    def numbers(self):
        """Return the numbers behind the rows of the table, as JavaScript has them; unfold it first."""
        if not self.root.locator(".rbw-scroll").is_visible():
            self.root.get_by_text("Numbers as a table").click()
        self.root.locator("tr[data-numbers]").first.wait_for()
        rows = self.root.locator("tr[data-numbers]").evaluate_all("rows => rows.map(row => row.dataset.numbers)")
        return [json.loads(row) for row in rows]


def ask_module(page, cls, questions):
    """Ask an explorer's own module, without its controls, what it shows for many settings.

    Args:
        page: any page of a browser.
        cls: the explorer.
        questions: a list of dictionaries of ``settings`` and, if wanted, ``local`` and ``answer``.

    Returns:
        For each question the sentence (``say``), the code, and the numbers behind the table's rows (``rows``: pairs of
        the line's name, where it has one, and its numbers).
    """
    module = "".join((FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in ("base", cls.name))
    return page.evaluate(
        """([module, data, questions]) => {
            const { show } = new Function(`${module}; return explore;`)()(data);
            return questions.map(({ settings, local = {}, answer = null }) => {
                const shown = show({ settings, local, width: 700, answer, keep() {}, set() {} });
                const rows = shown.table.rows.filter((row) => row.attributes?.["data-numbers"]);
                return { say: shown.say, code: shown.code,
                    rows: rows.map(({ attributes: a }) => [a["data-layer"] ?? null, JSON.parse(a["data-numbers"])]) };
            });
        }""",
        [module, cls().data(), questions],
    )


def short(value, digits=3):
    """Write a number as the explorers do: so many significant digits, powers of ten beyond 1e-3 and 1e5."""
    if value == 0:
        return "0"
    mantissa, power = f"{abs(value):.{digits - 1}e}".split("e")
    power, sign = int(power), "−" if value < 0 else ""
    if not -3 <= power <= 4:
        return f"{sign}{mantissa} × 10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    number = float(f"{mantissa}e{power}")
    return sign + (f"{number:,.0f}" if power >= digits else f"{number:.{digits - 1 - power}f}")
