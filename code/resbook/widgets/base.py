"""What all explorers share: controls that are declared once, and one output that is shown three ways.

* With a kernel (JupyterLab, Notebook 7, VS Code, Colab) an explorer is an ordinary anywidget.
* Without one (the built book, a notebook turned into a page) the ``text/html`` of the same output mounts the same ES
  module on a stand-in for the kernel's side. It needs nothing else: no library, no request, no stored state.
* Without JavaScript the picture, the sentence and the table that Python put into that ``text/html`` remain; an
  untrusted notebook in JupyterLab strips the drawing, too. Where there is only text, the sentence is left.
"""

import asyncio
import json
from html import escape
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import anywidget
import traitlets

from resbook.device import default_device, device_text

FOLDER = Path(__file__).parent
MOST_BYTES, MOST_MACS = 8e9, 2e12  # of one step of a recomputation: a kernel that runs out of memory says no word
PAUSE = 0.01  # seconds between two steps of a recomputation, in which the kernel hears of a newer request


class Choice(NamedTuple):
    """A control with a few values: ``options`` maps each value to how it is shown."""

    name: str
    label: str
    options: dict

    def check(self, value):
        for option in self.options:
            if value is option or (_plain_type(value) is type(option) and value == option):  # True is not 1 here
                return option
        raise ValueError(f"{self.name} must be one of {', '.join(map(repr, self.options))}, got {value!r}")

    def spec(self):
        options = [[value, text] for value, text in self.options.items()]
        return {"kind": "choice", "name": self.name, "label": self.label, "options": options}


class Range(NamedTuple):
    """A control for a number from ``least`` to ``most`` in steps of ``step``: whole numbers if the step is one."""

    name: str
    label: str
    least: float
    most: float
    step: float = 1

    def check(self, value):
        kind, what = (int, "a whole number") if isinstance(self.step, int) else (float, "a number")
        if _plain_type(value) not in (int, kind):
            raise TypeError(f"{self.name} must be {what} from {self.least} to {self.most}, got {value!r}")
        if not self.least <= value <= self.most:
            raise ValueError(f"{self.name} must be from {self.least} to {self.most}, got {value!r}")
        return int(value) if _plain_type(value) is int else float(value)

    def spec(self):
        return {"kind": "range", **self._asdict()}


class Switch(NamedTuple):
    """A control that is on or off."""

    name: str
    label: str

    def check(self, value):
        if not isinstance(value, bool):
            raise TypeError(f"{self.name} must be True or False, got {value!r}")
        return value

    def spec(self):
        return {"kind": "switch", **self._asdict()}


def _plain_type(value):
    """Return the Python type that stands for a value's, also for NumPy's numbers."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return int if isinstance(value, Integral) else float
    return type(value)


def check_work(kept, macs, what):
    """Raise ValueError, which the page shows, if a step would keep too many bytes or, without a GPU, take too long."""
    if kept > MOST_BYTES:
        raise ValueError(f"{what} would keep {kept / 1e9:,.0f} GB of outputs; allowed are {MOST_BYTES / 1e9:.0f} GB")
    if macs > MOST_MACS and default_device().type == "cpu":
        raise ValueError(f"{what} would take {macs:.1e} MACs; without a GPU, allowed are {MOST_MACS:.0e}")


class Explorer(anywidget.AnyWidget):
    """The base of all explorers; a subclass says what is its own.

    Class attributes: ``name`` (of its JavaScript file, and of the anchors that prose links to), ``title``,
    ``controls``, ``defaults`` (a value for every control), ``presets`` (name -> (label, the settings that differ from
    the defaults)), ``readouts`` (names of controls that only read off what is shown), and ``live_controls`` with
    ``live_defaults``, for what only a kernel can change. Methods: :meth:`data`, :meth:`summary`, :meth:`picture`,
    :meth:`table` and :meth:`recompute`.

    Args:
        preset: name of one of ``presets`` to open with. Default: the first.
        **settings: values of single controls, by name, in place of the preset's.

    Raises:
        TypeError: a setting is unknown or of the wrong type.
        ValueError: a setting is out of its range, or the preset is unknown.
    """

    name, title, controls, live_controls = "", "", (), ()
    defaults, live_defaults, presets, readouts = {}, {}, {}, ()

    # ipywidgets 7 (Colab) would show this instead of the bundle below.
    _ipython_display_ = None
    settings = traitlets.Dict().tag(sync=True)
    page = traitlets.Dict().tag(sync=True)

    def __init_subclass__(cls, **kwargs):
        if "name" in vars(cls):  # not a class that traitlets derives on the way
            parts = [(FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in ("base", cls.name)]
            cls._esm = "\n".join([*parts, "export default { render };\n"])
            cls._css = (FOLDER / "base.css").read_text(encoding="utf-8")
        super().__init_subclass__(**kwargs)

    def __init__(self, preset=None, **settings):
        preset = next(iter(self.presets)) if preset is None else preset
        if preset not in self.presets:
            raise ValueError(f"preset must be one of {', '.join(map(repr, self.presets))}, got {preset!r}")
        settings = self.checked({**self.defaults, **self.presets[preset][1], **settings})
        super().__init__(settings=settings, page=self._page())
        self.newest = 0  # number of the newest request; older ones stop
        self.on_msg(self._receive)

    def data(self):
        """Return what Python computed for the page, as JSON: the same in every execution."""
        return {}

    def summary(self):
        """Return the settings and the main numbers as one sentence."""
        raise NotImplementedError

    def picture(self):
        """Return a :class:`resbook.pictures.Picture` of the settings."""
        raise NotImplementedError

    def table(self):
        """Return a :class:`resbook.tables.Table` of the settings."""
        raise NotImplementedError

    def recompute(self, settings):
        """Compute ``settings`` with PyTorch; after each step yield a dictionary for the page, or None."""
        raise NotImplementedError

    def checked(self, settings):
        """Return ``settings`` if there is a valid one for every control."""
        known = {control.name: control for control in self.controls}
        for name in settings:
            if name not in known:
                raise TypeError(f"{type(self).__name__} has no setting {name!r}; there are {', '.join(known)}")
        missing = [name for name in known if name not in settings]
        if missing:
            raise ValueError(f"settings must hold a value for each control; there is none for {', '.join(missing)}")
        return {name: control.check(settings[name]) for name, control in known.items()}

    @traitlets.validate("settings")
    def _validate(self, proposal):
        return self.checked(proposal["value"])

    def _page(self):
        page = {
            "name": self.name,
            "title": self.title,
            "controls": [control.spec() for control in self.controls],
            "live_controls": [control.spec() for control in self.live_controls],
            "defaults": self.defaults,
            "live_defaults": self.live_defaults,
            "readouts": list(self.readouts),
            "presets": [[name, label, settings] for name, (label, settings) in self.presets.items()],
            "data": self.data(),
        }
        return json.loads(json.dumps(page))  # a copy, which nobody shares

    def _receive(self, widget, content, buffers):
        if content.get("hello"):
            self.send({"device": device_text()})
            return
        self.newest = content.get("request")  # None: what is being computed is no longer wanted
        if self.newest is None:
            return
        work = self._answer(self.newest, content["settings"])
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(work)
        else:  # a kernel: other messages, and cells, are heard between two steps
            self.task = asyncio.ensure_future(work)

    async def _answer(self, request, settings):
        try:
            controls = {control.name: control for control in (*self.controls, *self.live_controls)}
            for answer in self.recompute({name: control.check(settings[name]) for name, control in controls.items()}):
                self.send({"request": request, "answer": answer})
                await asyncio.sleep(PAUSE)
                if request != self.newest:
                    return
        except Exception as error:  # whatever the reader's model does: the page shows it, and keeps its picture
            self.send({"request": request, "error": f"{type(error).__name__}: {error}"})
        else:
            self.send({"request": request, "done": True})

    def static_html(self):
        """Return the output that needs no kernel: picture and table, and the module that replaces them."""
        # In a script element, "</" would end it and "<!--" hide it; inside strings the escapes mean the same.
        state = json.dumps({"settings": self.settings, "page": self.page}, sort_keys=True, separators=(",", ":"))
        state = state.replace("<", "\\u003c")
        module = self._esm.replace("</", "<\\/").replace("<!--", "<\\!--")
        anchors = "".join(f'<span id="{self.name}-{preset}"></span>' for preset in self.presets)
        return (
            f'<div class="rb rbw">{anchors}<style>{self._css}</style>'
            f'<div data-explorer="{self.name}">'
            f'<figure role="group" aria-label="{escape(self.title)}">{self.picture().html()}'
            f"<figcaption>{escape(self.summary())}</figcaption></figure>{self.table()._repr_html_()}"
            "<noscript><p>Without JavaScript, this is the opening example alone.</p></noscript>"
            f'<script type="application/json">{state}</script></div>'
            f'<script type="module">\n{module}mountAll("{self.name}");\n</script></div>'
        )

    def _repr_mimebundle_(self, **kwargs):
        data, metadata = super()._repr_mimebundle_(**kwargs)  # metadata: where Colab finds its widget manager
        return {**data, "text/html": self.static_html(), "text/plain": self.summary()}, metadata
