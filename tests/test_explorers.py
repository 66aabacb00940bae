"""All explorers: what they refuse, what they put out, and how they behave in the built pages."""

import ast
import asyncio
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT
from explorers import DESKTOP, EXPLORERS, FOLDER, PHONE, opened

NAMES = list(EXPLORERS)
FOCUSABLE = "button, input, select, summary, [tabindex='0']"
# axe's rules for whole pages concern the theme; the explorers are judged by all the others.
AXE = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
PAGE_RULES = ["page-has-heading-one", "landmark-one-main", "region", "bypass", "skip-link"]


def settings_outside(cls):
    """Return, for each control, a setting that it does not have, and what the error must name."""
    for control in cls.controls:
        spec = control.spec()
        if spec["kind"] == "range":
            yield {control.name: spec["least"] - 1}, ValueError, f"{control.name} must be from {spec['least']} to "
            yield {control.name: spec["most"] + 1}, ValueError, f"{control.name} must be from .* to {spec['most']}"
            yield {control.name: "a"}, TypeError, f"{control.name} must be"
            yield {control.name: float("nan")}, (TypeError, ValueError), f"{control.name} must be"
        elif spec["kind"] == "choice":
            yield {control.name: "no such"}, ValueError, f"{control.name} must be one of .*got 'no such'"
            yield {control.name: []}, ValueError, f"{control.name} must be one of"
        else:
            yield {control.name: 1}, TypeError, f"{control.name} must be True or False"


@pytest.mark.parametrize("name", NAMES)
def test_settings_outside_their_range_are_refused(name):
    cls = EXPLORERS[name]
    for settings, error, message in settings_outside(cls):
        with pytest.raises(error, match=message):
            cls(**settings)
    with pytest.raises(TypeError, match="no setting 'colour'; there are"):
        cls(colour="red")
    with pytest.raises(ValueError, match="preset must be one of"):
        cls("no such")
    explorer = cls()
    with pytest.raises((TypeError, ValueError)):
        explorer.settings = {**explorer.settings, cls.controls[0].name: None}
    with pytest.raises(ValueError, match="a value for each control"):
        explorer.settings = {}
    assert explorer.settings == {**cls.defaults, **next(iter(cls.presets.values()))[1]}


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_opens_and_says_numbers(name):
    cls = EXPLORERS[name]
    assert 4 <= len(cls.presets) <= 7
    summaries = [cls(preset).summary() for preset in cls.presets]
    assert all(re.search(r"\d", summary) for summary in summaries)
    assert len(set(summaries)) == len(summaries)


@pytest.mark.parametrize("name", NAMES)
def test_one_output_has_all_three_forms(name):
    explorer = EXPLORERS[name]()
    data, _ = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"}
    assert data["text/plain"] == explorer.summary()
    html = data["text/html"]
    module = html.split('<script type="module">')[1]
    assert not re.search(
        r"require\(|unpkg|jsdelivr|fetch\(|XMLHttpRequest|import\(|^\s*import\b.*from [\"']", module, re.M
    )
    assert set(re.findall(r"https?://[^\"'\s)]+", html)) <= {
        "http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML",
        "http://www.w3.org/1999/xlink",
    }  # fmt: skip
    assert html.count("</script>") == html.count("<script") == 2
    assert len(html) < 250_000


def test_outputs_are_the_same_bytes_in_every_execution():
    def digests():
        return [
            hashlib.sha256(cls(preset)._repr_mimebundle_()[0]["text/html"].encode()).hexdigest()
            for cls in EXPLORERS.values()
            for preset in list(cls.presets)[:2]
        ]

    source = "import hashlib\nfrom explorers import EXPLORERS\n" + textwrap.dedent(inspect.getsource(digests))
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", f"{source}print(digests())"]
    elsewhere = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert ast.literal_eval(elsewhere) == digests()


def test_ids_do_not_depend_on_the_state():
    for cls in EXPLORERS.values():
        anchors = [set(re.findall(r'<span id="([^"]+)"', cls(preset).static_html())) for preset in cls.presets]
        assert all(found == {f"{cls.name}-{preset}" for preset in cls.presets} for found in anchors)


def test_explorers_have_the_books_colours():
    """Notebooks do not have the book's style sheet, so the explorers bring its colours along."""

    def colours(path):
        light, dark = re.findall(r"\{([^}]*--rb-plain:[^}]*)\}", path.read_text(encoding="utf-8"))
        return [dict(re.findall(r"(--rb-\w+): (#\w+)", block)) for block in (light, dark)]

    for book, ours in zip(colours(ROOT / "_static" / "resbook.css"), colours(FOLDER / "base.css"), strict=True):
        assert len(book) == 8 and book.items() <= ours.items()


def test_numbers_of_numpy_are_taken_as_pythons():
    explorer = EXPLORERS["shapes"](size=np.int64(64), classes=np.int32(10))
    assert type(explorer.settings["size"]) is int and '"size":64' in explorer.static_html()
    assert EXPLORERS["gradients"](depth=np.int64(20)).settings["depth"] == 20


def test_markup_in_a_name_stays_text():
    layers = [torch.nn.Conv2d(1, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2, 2)]
    model = type("<!--</script>", (torch.nn.Sequential,), {})(*layers)
    explorer = EXPLORERS["gradients"](model=model, images=torch.ones(2, 1, 8, 8), labels=torch.tensor([0, 1]))
    state = re.search(r'<script type="application/json">(.*?)</script>', explorer.static_html(), re.S)[1]
    assert json.loads(state)["page"]["data"]["own"]["label"] == "<!--</script>"


class Kernel:
    """Stands where the page is: takes what an explorer sends."""

    def __init__(self, explorer):
        self.explorer, self.heard = explorer, []
        explorer.send = self.heard.append

    def send(self, **message):
        self.explorer._receive(self.explorer, message, None)

    def ask(self, request=1, **settings):
        """Ask, and return all answers. In a thread of its own: the browser keeps a loop in this one."""
        settings = {**self.explorer.settings, **self.explorer.live_defaults, **settings}
        elsewhere(self.send, request=request, settings=settings)
        return self.heard


def elsewhere(function, **arguments):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, **arguments).result()


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_answers(name):
    kernel = Kernel(EXPLORERS[name]())
    kernel.send(hello=True)
    assert re.match(r"PyTorch \d+\.\d+\.\d+ on (cpu|cuda|mps)", kernel.heard.pop()["device"])
    torch.set_grad_enabled(False)  # as one of the chapters does
    heard = kernel.ask(**({"depth": 32, "epochs": 1} if name == "replay" else {}))
    torch.set_grad_enabled(True)
    assert heard[-1] == {"request": 1, "done": True}, heard
    answers = [message["answer"] for message in heard[:-1] if message["answer"] is not None]  # None: nothing new
    assert all("status" in answer for answer in answers) and answers


@pytest.mark.parametrize("name", NAMES)
def test_what_goes_wrong_in_a_kernel_is_told(name):
    kernel = Kernel(EXPLORERS[name]())

    def fail(settings):
        yield {"status": "half"}
        raise MemoryError("out of memory")

    kernel.explorer.recompute = fail
    assert kernel.ask()[-1] == {"request": 1, "error": "MemoryError: out of memory"}
    kernel.heard.clear()
    control = kernel.explorer.controls[0].name
    assert "must be one of" in kernel.ask(**{control: "nonsense"})[-1]["error"]


@pytest.mark.parametrize("name", NAMES)
def test_a_second_request_replaces_the_first_and_a_stop_ends_it(name):
    kernel = Kernel(EXPLORERS[name]())
    settings = {**kernel.explorer.settings, **kernel.explorer.live_defaults}
    steps = []

    def endless(settings):
        while True:
            steps.append(len(steps))
            yield {"status": str(len(steps))}

    async def all_of_it():
        kernel.explorer.recompute = endless
        kernel.send(request=1, settings=settings)
        await asyncio.sleep(0.05)
        kernel.explorer.recompute = lambda settings: iter([{"status": "only"}])
        kernel.send(request=2, settings=settings)
        await asyncio.wait_for(kernel.explorer.task, 5)
        count = len(steps)
        await asyncio.sleep(0.05)
        assert 0 < count == len(steps), "the first request still runs"
        kernel.explorer.recompute = endless
        kernel.send(request=3, settings=settings)
        await asyncio.sleep(0.03)
        kernel.send(stop=True)
        await asyncio.wait_for(kernel.explorer.task, 5)

    elsewhere(asyncio.run, main=all_of_it())
    assert {"request": 2, "done": True} in kernel.heard and {"request": 3, "done": True} not in kernel.heard
    assert {message["request"] for message in kernel.heard} == {1, 2, 3}


@pytest.mark.parametrize("name", NAMES)
def test_every_control_moves_by_keyboard_and_by_mouse(browser, name):
    """That the numbers then are the right ones is for the tests of each explorer."""
    with opened(browser, name) as explorer:
        for control in EXPLORERS[name].controls:
            if len(getattr(control, "options", (0, 1))) == 1:
                continue  # nothing to choose, so it is hidden
            explorer.do("reset")
            opening = explorer.says
            reveal(explorer, control.name)
            before = explorer.shown(control.name)
            kind = control.spec()["kind"]
            key = {"switch": "Space", "choice": "ArrowDown", "range": "ArrowRight"}[kind]
            explorer.press(control.name, key)
            if explorer.shown(control.name) == before:  # it stood at its end
                explorer.press(control.name, {"choice": "ArrowUp", "range": "ArrowLeft"}[kind])
            by_key = explorer.shown(control.name)
            assert by_key != before, control.name
            if kind == "switch":
                explorer.control(control.name).click()
            elif kind == "choice":
                options = list(control.options)
                explorer.set(**{control.name: options[by_key == options[0]]})
            else:
                box = explorer.control(control.name).bounding_box()
                explorer.control(control.name).click(position={"x": box["width"] - 3, "y": box["height"] / 2})
                explorer.control(control.name).click(position={"x": 3, "y": box["height"] / 2})
            assert explorer.shown(control.name) != by_key, control.name
            explorer.do("reset")
            assert explorer.says == opening


def reveal(explorer, name):
    """Show a control that the opening settings hide: open a preset, and where that is not enough, choose something."""
    for preset in [None, *EXPLORERS[explorer.name].presets]:
        if preset:
            explorer.preset(preset)
        for control in explorer.specs.values():
            before = explorer.shown(control.name)
            for value in [*getattr(control, "options", ()), before]:
                if revealed(explorer, name):
                    return
                if revealed(explorer, control.name):
                    explorer.set(**{control.name: value})
    pytest.fail(f"nothing shows {name}")


def revealed(explorer, name):
    return explorer.control(name).is_visible()


@pytest.mark.parametrize("name", NAMES)
def test_presets_by_button_and_by_link(browser, name):
    cls = EXPLORERS[name]
    with opened(browser, name) as explorer:
        links = 0
        for preset, (_, settings) in reversed(cls.presets.items()):
            explorer.preset(preset)
            said = explorer.says
            visible = {c: v for c, v in {**cls.defaults, **settings}.items() if revealed(explorer, c)}
            assert {c: explorer.shown(c) for c in visible} == visible
            assert explorer.root.locator(f'[data-preset="{preset}"]').get_attribute("aria-pressed") == "true"
            link = explorer.page.locator(f'a[href="#{name}-{preset}"]')
            links += link.count()
            if link.count():
                explorer.preset(next(other for other in cls.presets if other != preset))
                link.first.click()
                assert explorer.says == said
        assert links >= 2, "the chapter's prose leads to at least two presets"
        address = explorer.page.url.split("#")[0]
        explorer.page.goto("about:blank")
        explorer.page.goto(f"{address}#{name}-{preset}")
        assert explorer.says == said


@pytest.mark.parametrize("name", NAMES)
def test_pin_keeps_one_state_beside_the_next(browser, name):
    first, second = list(EXPLORERS[name].presets)[:2]
    with opened(browser, name) as explorer:
        explorer.preset(first)
        alone = explorer.says
        explorer.do("pin")
        explorer.preset(second)
        assert "Pinned" in explorer.says and "Unpin" in explorer.root.locator('[data-do="pin"]').inner_text()
        marks = "element => element.querySelectorAll('*').length"
        both = explorer.root.locator(".rbw-picture").evaluate(marks)
        explorer.do("pin")
        assert explorer.root.locator(".rbw-picture").evaluate(marks) < both and "Pinned" not in explorer.says
        explorer.do("pin")
        explorer.do("reset")
        assert explorer.says == alone


@pytest.mark.parametrize("name", NAMES)
def test_a_change_is_drawn_within_50_milliseconds(browser, name):
    with opened(browser, name) as explorer:
        times = []
        for preset in EXPLORERS[name].presets:
            for _ in range(3):
                explorer.preset(preset)
                times.append(float(explorer.root.locator(".rbw-root").get_attribute("data-milliseconds")))
        assert sorted(times)[len(times) // 2] < 50, times


@pytest.mark.parametrize("name", NAMES)
def test_jupyterlab_leaves_the_keys_to_every_control(browser, name):
    with opened(browser, name) as explorer:
        controls = explorer.root.locator(".rbw-root").locator(FOCUSABLE)
        missing = controls.evaluate_all(
            "all => all.filter(e => e.dataset.lmSuppressShortcuts !== 'true').map(e => e.outerHTML.slice(0, 80))"
        )
        assert controls.count() > 8 and missing == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_no_violation(browser, name, scheme):
    with opened(browser, name, color_scheme=scheme) as explorer:
        explorer.root.locator("details").evaluate_all("all => all.forEach(d => d.open = true)")
        rules = {rule: {"enabled": False} for rule in PAGE_RULES}
        for step in ("pin", "reset"):  # one state pinned beside another; and the opening
            explorer.do(step)
            if step == "pin":
                explorer.preset(list(EXPLORERS[name].presets)[-1])
            result = Axe().run(explorer.page, context=f'[data-explorer="{name}"]', options={**AXE, "rules": rules})
            assert result.violations_count == 0, result.generate_report()
            assert len(result.response["passes"]) > 8


@pytest.mark.parametrize("name", NAMES)
def test_a_phone_needs_no_sideways_scroll(browser, name):
    with opened(browser, name, viewport=PHONE, has_touch=True) as explorer:
        for preset in EXPLORERS[name].presets:
            explorer.preset(preset)
            assert explorer.page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"], preset
            cut = explorer.root.locator(".rbw-picture svg").evaluate(
                """picture => { const frame = picture.getBoundingClientRect();
                return [...picture.querySelectorAll("text")].map(text => [text, text.getBoundingClientRect()])
                    .filter(([, box]) => box.width && (box.left < frame.left - 1 || box.right > frame.right + 1))
                    .map(([text]) => text.textContent); }"""
            )
            assert cut == [], preset


@pytest.mark.parametrize("name", NAMES)
def test_without_javascript_picture_table_and_sentence_stay(browser, name):
    with opened(browser, name, java_script_enabled=False) as explorer:
        assert explorer.root.locator("svg[role=img]").is_visible() and explorer.root.locator("table").is_visible()
        assert explorer.root.locator("figcaption").inner_text() == EXPLORERS[name]().summary()
        assert explorer.root.locator("svg").bounding_box()["width"] > 200


@pytest.mark.parametrize("name", NAMES)
def test_print_shows_the_picture_and_not_the_controls(browser, name):
    with opened(browser, name) as explorer:
        explorer.page.emulate_media(media="print")
        assert explorer.root.locator(".rbw-picture svg").is_visible() and explorer.root.locator(".rbw-say").is_visible()
        shown = explorer.root.locator(
            "button:visible, input:visible, select:visible, summary:visible"
        ).all_inner_texts()
        assert not {"▸", "Start over", "In Python"} & set(shown)
        names = {"conv1", "layer2.1", "fc"} if name == "shapes" else set()
        assert names <= set(shown) and (names or not shown)  # there, a layer's name is a button


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_follows_the_width(browser, name):
    with opened(browser, name) as explorer:
        wide = explorer.root.locator(".rbw-picture svg").bounding_box()["width"]
        explorer.page.set_viewport_size(PHONE)
        explorer.page.wait_for_function(
            "([name, wide]) => document.querySelector(`[data-explorer='${name}'] .rbw-picture svg`).clientWidth < wide",
            arg=[name, wide - 100],
        )
        explorer.page.set_viewport_size(DESKTOP)
