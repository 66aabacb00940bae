"""The explorers in a real JupyterLab with a kernel: the same controls, the recomputation, and what goes wrong."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from explorers import EXPLORERS
from playwright.sync_api import TimeoutError

TOKEN = "explorers"
SETTINGS = {  # all cells in the page at once, and no question about news
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
CELLS = [
    "from resbook.widgets import *\nimport torch",
    "shapes = ShapeExplorer()\nshapes",
    "gradients = GradientExplorer()\ngradients",
    "batchnorm = BatchNormExplorer()\nbatchnorm",
    "workshop = BlockWorkshop()\nworkshop",
    "replay = DegradationReplay()\nreplay",
    "class Fragile(torch.nn.Sequential):\n    broken = False\n\n    def forward(self, x):\n        if self.broken:\n"
    "            raise RuntimeError('the model does not run')\n        return super().forward(x)\n\n"
    "layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.AdaptiveAvgPool2d(1)]\n"
    "model = Fragile(*layers, torch.nn.Flatten(), torch.nn.Linear(8, 10))\n"
    "own = GradientExplorer(model=model, images=torch.randn(8, 3, 32, 32), labels=torch.randint(10, (8,)))\nown",
    "model.broken = True",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start JupyterLab on a notebook with all explorers; give its address."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "explorers.ipynb")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for part, wanted in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{part}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "code"), "JUPYTER_CONFIG_DIR": str(folder / "config")}
    environment |= {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
    }
    options = {"ServerApp.port": port, "ServerApp.root_dir": folder, "IdentityProvider.token": TOKEN}
    options |= {"ServerApp.open_browser": False, "ServerApp.allow_root": True, "LabApp.expose_app_in_browser": True}
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process, folder / "log")
        yield f"{address}/lab/tree/explorers.ipynb?token={TOKEN}"
    finally:
        process.terminate()
        process.wait(20)


def wait_for(address, process, log):
    for _ in range(240):
        if process.poll() is not None:
            break
        try:
            return urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5).close()
        except OSError:
            time.sleep(0.25)
    pytest.fail(f"JupyterLab did not start:\n{Path(log).read_text()[-2000:]}")


@pytest.fixture(scope="module")
def lab(browser, server):
    """The notebook in JupyterLab, all cells run, every host but this one blocked."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    context.route(re.compile(r"^(?!http://127\.0\.0\.1|ws://127\.0\.0\.1|data:|blob:)"), lambda route: route.abort())
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(server)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    page.wait_for_function(
        """() => { const kernel = window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel;
        return kernel?.connectionStatus === "connected" && kernel.status === "idle"; }"""
    )
    page.wait_for_timeout(1000)
    lab = Lab(page)
    for _ in range(4):  # a run is dropped if the kernel is not quite there, whatever its status says
        lab.command("notebook:run-all-cells")
        with contextlib.suppress(TimeoutError):
            page.wait_for_function(
                "count => document.querySelectorAll('.rbw-kernel:not([hidden])').length === count",
                arg=len(EXPLORERS) + 1,
                timeout=10_000,
            )
            break
    yield lab
    context.close()


class Lab:
    def __init__(self, page):
        self.page, self.names = page, [*EXPLORERS, "own"]
        self.summaries = [cls().summary() for cls in [*EXPLORERS.values(), EXPLORERS["gradients"]]]

    def command(self, name):
        """Start a command; not waiting for it: what is run in a kernel that is not ready may never end."""
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name); }", name)

    def explorer(self, name):
        return self.page.locator(".rbw-root").nth(self.names.index(name))

    def status(self, name, pattern):
        """Wait until an explorer's status line matches, and return it."""
        status = self.explorer(name).locator(".rbw-status")
        self.page.wait_for_function(
            "([element, pattern]) => new RegExp(pattern).test(element.textContent)",
            arg=[status.element_handle(), pattern],
        )
        return status.inner_text()

    def recompute(self, name):
        self.explorer(name).locator('[data-do="recompute"]').click()

    def evaluate(self, expression):
        """Run a line in the kernel, in a cell of its own, and return what it prints."""
        cell = self.page.locator(".jp-CodeCell").last
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(f"print('→', {expression}, '←')")
        self.command("notebook:run-cell")
        output = cell.locator(".jp-OutputArea-output", has_text="→")
        output.get_by_text("→").wait_for()
        text = output.inner_text().split("→")[1].split("←")[0].strip()
        self.command("notebook:clear-cell-output")
        return text


def recompute_gradients(lab, seeds):
    explorer = lab.explorer("gradients")
    explorer.locator('[data-setting="seeds"][type="number"]').fill(str(seeds))
    lab.recompute("gradients")


@pytest.mark.parametrize("name", list(EXPLORERS))
def test_controls_work_by_keyboard_and_reach_python(lab, name):
    explorer, cls = lab.explorer(name), EXPLORERS[name]
    before = explorer.locator(".rbw-say").inner_text()
    for control in cls.controls:
        element = explorer.locator(f'[data-setting="{control.name}"]').first
        if not element.is_visible():
            continue
        spec = control.spec()
        element.focus()
        at_the_end = element.evaluate("e => e.type === 'range' && e.value === e.max")  # where only one way is left
        onward = "ArrowLeft" if at_the_end else "ArrowRight"
        lab.page.keyboard.press({"switch": "Space", "choice": "ArrowDown", "range": onward}[spec["kind"]])
        assert element.evaluate("e => e === document.activeElement"), f"JupyterLab took the key of {control.name}"
        shown = element.evaluate(
            "e => e.type === 'checkbox' ? e.checked : e.type === 'range' ? +e.value : e.selectedIndex"
        )
        python = lab.evaluate(f"{name}.settings[{control.name!r}]")
        if spec["kind"] == "choice":
            assert python == str(spec["options"][shown][0])
        else:
            assert float(eval(python)) == float(shown)
    explorer.locator('[data-do="reset"]').click()
    assert explorer.locator(".rbw-say").inner_text() == before


def test_python_moves_the_page(lab):
    lab.evaluate("shapes.__setattr__('settings', {**shapes.settings, 'size': 97})")
    lab.explorer("shapes").get_by_text("ResNet-18 at 97, one image").wait_for()


@pytest.mark.parametrize("name", list(EXPLORERS))
def test_recompute_names_the_device(lab, name):
    lab.explorer(name).locator('[data-do="reset"]').click()
    lab.recompute(name)
    assert re.search(r"\b(cpu|cuda|mps)\b", lab.status(name, r"\d.*\b(cpu|cuda|mps)\b|\b(cpu|cuda|mps)\b.*\d"))


def test_recomputed_gradients_are_drawn_named_and_dropped_when_settings_change(lab):
    explorer = lab.explorer("gradients")
    explorer.locator('[data-setting="depth"]').select_option(label="20")
    explorer.locator('[data-setting="seeds"][type="range"]').press("ArrowLeft")
    assert explorer.locator('[data-setting="seeds"][type="number"]').input_value() == "2"
    lab.recompute("gradients")
    lab.status("gradients", "2 of 2 seeds")
    assert "Recomputed: PyTorch" in explorer.locator(".rbw-picture").inner_text()
    explorer.get_by_text("Numbers as a table").click()
    first = explorer.locator("tr[data-numbers]").first.get_attribute("data-numbers")
    settings = "{**gradients.settings, **gradients.live_defaults, 'seeds': 2}"
    answer = f"list(gradients.recompute({settings}))[-1]"
    expected = lab.evaluate(f"{answer}['curves']['plain']['gradient']['median'][0]")
    assert json.loads(first)[0][0] == pytest.approx(float(expected), rel=1e-4)
    explorer.locator('[data-setting="block"][type="range"]').press("ArrowRight")
    assert "Recomputed" in explorer.locator(".rbw-picture").inner_text(), "reading off a block keeps what was computed"
    explorer.locator('[data-setting="init"]').select_option(label="He")
    assert "Recorded" in explorer.locator(".rbw-picture").inner_text()


def test_a_second_request_replaces_the_first(lab):
    explorer = lab.explorer("gradients")
    explorer.locator('[data-do="reset"]').click()
    recompute_gradients(lab, seeds=5)
    lab.status("gradients", "[1-4] of 5 seeds")
    explorer.locator('[data-setting="depth"]').select_option(label="20")
    recompute_gradients(lab, seeds=1)
    lab.status("gradients", "1 of 1 seeds")
    lab.page.wait_for_timeout(1500)
    assert "1 of 1 seeds" in explorer.locator(".rbw-status").inner_text()
    assert explorer.locator("tr[data-numbers]").count() == 9


def test_a_change_while_computing_stops_the_kernel(lab):
    explorer = lab.explorer("gradients")
    explorer.locator('[data-do="reset"]').click()
    recompute_gradients(lab, seeds=5)
    lab.status("gradients", "1 of 5 seeds")
    explorer.locator('[data-setting="depth"]').select_option(label="32")
    assert explorer.locator(".rbw-status").inner_text() == ""
    assert "Recorded" in explorer.locator(".rbw-picture").inner_text()
    for _ in range(20):  # it ends after the step that it is in
        if lab.evaluate("gradients.newest, gradients.task.done()") == "None True":
            return
        lab.page.wait_for_timeout(200)
    pytest.fail("the kernel goes on computing")


def test_a_failing_recomputation_shows_its_message_and_keeps_the_picture(lab):
    explorer = lab.explorer("own")
    assert "Fragile" in explorer.locator(".rbw-picture").inner_text()
    before = explorer.locator(".rbw-picture").inner_html()
    lab.recompute("own")
    assert "the model does not run" in lab.status("own", "Error")
    assert explorer.locator(".rbw-picture").inner_html() == before


def test_pytorchs_own_refusal_is_shown(lab):
    lab.explorer("shapes").locator('[data-preset="fixed-window"]').click()
    lab.recompute("shapes")
    assert "Output size is too small" in lab.status("shapes", "Error")


def test_a_saved_notebook_shows_sentence_and_table_without_its_kernel(lab, browser, server):
    """Reopened untrusted, in a new window: JupyterLab strips scripts and drawings; what Python wrote in words stays."""
    lab.command("docmanager:save")
    lab.page.wait_for_timeout(1000)
    folder = server.split("/lab/")[0]
    lab.page.evaluate(
        """async ([folder, token]) => {
            const headers = {Authorization: `token ${token}`};
            const read = await fetch(`${folder}/api/contents/explorers.ipynb`, {headers});
            const model = await read.json();
            model.content.metadata = {};
            const strip = cell => { cell.metadata = {}; return cell; };
            model.content.cells = model.content.cells.map(strip).concat(
                {cell_type: "markdown", metadata: {}, source: "not signed", id: "unsigned"});
            const body = JSON.stringify({type: "notebook", format: "json", content: model.content});
            await fetch(`${folder}/api/contents/reopened.ipynb`, {method: "PUT", headers, body});
        }""",
        [folder, TOKEN],
    )
    page = browser.new_context().new_page()
    page.goto(server.replace("explorers.ipynb", "reopened.ipynb"))
    page.wait_for_selector(".jp-OutputArea-output figcaption")
    assert page.locator(".jp-OutputArea-output figcaption").all_inner_texts() == lab.summaries
    assert page.locator(".jp-OutputArea-output table tr").count() > 150
    page.context.close()


def test_a_chapters_notebook_reads_well_before_it_is_run(browser, server):
    """Opened as downloaded, untrusted: formulas, bitmaps, explorers in words, links, and solutions that fold out."""
    page = browser.new_context(viewport={"width": 1300, "height": 1000}).new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    # In a workspace of its own: Lab would open again, behind it, what the other tests have open.
    page.goto(server.replace("tree/explorers.ipynb", "workspaces/own/tree/notebooks/residual-structure.ipynb"))
    page.get_by_role("heading", name="References").wait_for()
    page.wait_for_function("document.querySelectorAll('.jp-RenderedMarkdown mjx-container').length > 80")
    text = page.locator(".jp-RenderedMarkdown")
    assert page.locator("mjx-merror").count() == 0
    assert not [t for t in text.all_inner_texts() if re.search(r"\$|\*\*|\]\(|\{\w+\}`|:::", t)]
    pictures = page.locator(".jp-OutputArea-output img")
    assert pictures.count() == 2 and all(i.evaluate("i => i.naturalWidth > 600") for i in pictures.all())
    assert page.locator(".jp-OutputArea-output figcaption").count() == 2
    assert page.get_by_text("Two units side by side.").is_visible()  # for a drawing there is no bitmap
    assert page.get_by_text("cells hidden").count() == 6
    solution = page.locator("p", has_text="Each subset of")
    assert not solution.is_visible()
    page.get_by_text("2 cells hidden").nth(2).click()
    solution.wait_for()
    assert problems == []
    page.context.close()


def test_a_dead_kernel_leaves_the_page_usable(lab):
    """The last test: it shuts the kernel down."""
    lab.command("kernelmenu:shutdown")
    lab.page.wait_for_timeout(1500)
    explorer = lab.explorer("gradients")
    explorer.locator('[data-preset="growing"]').click()
    assert "batch norm, He" in explorer.locator(".rbw-say").inner_text()
    lab.recompute("gradients")
    assert "What you see stays usable" in lab.status("gradients", "usable")
    explorer.locator('[data-preset="tame"]').click()
    assert "Depth 110" in explorer.locator(".rbw-say").inner_text()
