"""The explorers in a kernel with exactly Colab's versions, and a stand-in for the module that Colab adds."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from queue import Empty
from types import SimpleNamespace

import pytest
from conftest import ROOT
from explorers import EXPLORERS
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec

PYTHON = ROOT / ".venv-colab" / "bin" / "python"
PINS = dict(line.split("==") for line in (ROOT / "tests" / "colab.txt").read_text().splitlines() if "==" in line)
STAND_IN = """
import sys, types
google, colab, output = (types.ModuleType(n) for n in ("google", "google.colab", "google.colab.output"))
calls = []
output.enable_custom_widget_manager = lambda: calls.append("enabled")
output._widgets = types.SimpleNamespace(_installed_url="https://colab.example/manager.js")
google.colab, colab.output = colab, output
sys.modules |= {"google": google, "google.colab": colab, "google.colab.output": output}
"""


@pytest.fixture(scope="module")
def colab():
    if not PYTHON.exists():
        reason = "Colab's versions are not installed: run 'make test', which installs them into .venv-colab"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    manager = KernelManager()
    manager._kernel_spec = KernelSpec(argv=[str(PYTHON), "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    manager.start_kernel(env={**os.environ, "PYTHONPATH": str(ROOT / "code")})
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    kernel = Colab(client)
    kernel.run(STAND_IN)
    yield kernel
    client.stop_channels()
    manager.shutdown_kernel(now=True)


class Colab:
    """The side of the page: runs cells, sends messages to widgets, and collects what comes back."""

    def __init__(self, client):
        self.client = client

    def run(self, code):
        """Return the bundle and metadata of the cell's result, and what it printed."""
        result, metadata, printed = None, None, ""
        for message in self.until_idle(self.client.execute(code)):
            content = message["content"]
            if message["msg_type"] == "error":
                pytest.fail("\n".join(content["traceback"]))
            if message["msg_type"] in ("execute_result", "display_data"):
                result, metadata = content["data"], content["metadata"]
            if message["msg_type"] == "stream":
                printed += content["text"]
        return result, metadata, printed

    def send(self, widget, content):
        """Send a widget a message as the page does; return its answers."""
        data = {"method": "custom", "content": content}
        message = self.client.session.msg("comm_msg", {"comm_id": widget, "data": data})
        self.client.shell_channel.send(message)
        answers = []
        while not answers or not ({"device", "done", "error"} & answers[-1].keys()):
            got = self.client.get_iopub_msg(timeout=60)
            if got["msg_type"] == "comm_msg" and got["content"]["data"].get("method") == "custom":
                answers.append(got["content"]["data"]["content"])
        return answers

    def until_idle(self, request):
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=120)
            except Empty:
                pytest.fail("the kernel fell silent")
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return
            yield message


def test_the_versions_are_colabs(colab):
    program = f"from importlib.metadata import version\nprint({{name: version(name) for name in {list(PINS)}}})"
    assert eval(colab.run(program)[2]) == PINS


@pytest.mark.parametrize("name", list(EXPLORERS))
def test_an_explorer_in_colab(colab, name):
    cls = EXPLORERS[name]
    data, metadata, _ = colab.run(f"from resbook.widgets import {cls.__name__}\nw = {cls.__name__}()\nw")
    view = data["application/vnd.jupyter.widget-view+json"]
    manager = metadata["application/vnd.jupyter.widget-view+json"]["colab"]["custom_widget_manager"]["url"]
    assert manager == "https://colab.example/manager.js"
    assert colab.run("print(calls)")[2].strip() == "['enabled']"
    ours = cls()
    assert data["text/html"] == ours.static_html() and data["text/plain"] == ours.summary()
    (hello,) = colab.send(view["model_id"], {"hello": True})
    assert re.match(r"PyTorch .* on ", hello["device"])
    settings = {**ours.settings, **ours.live_defaults}
    if name == "gradients":
        settings |= {"depth": 20, "seeds": 1}
    if name == "replay":
        settings |= {"depth": 32, "epochs": 1}
    answers = colab.send(view["model_id"], {"request": 1, "settings": settings})
    assert answers[-1] == {"request": 1, "done": True}
    if name == "gradients":
        here = json.loads(json.dumps([*ours.recompute(settings)][-1]))["curves"]["residual"]["gradient"]["median"]
        assert answers[-2]["answer"]["curves"]["residual"]["gradient"]["median"] == pytest.approx(here, rel=1e-4)
    control = cls.controls[0].name
    value = ours.settings[control]
    colab.run(f"w.settings = {{**w.settings, {control!r}: {value!r}}}")
    assert eval(colab.run(f"print([w.settings[{control!r}]])")[2]) == [value]


def test_the_set_up_cell_installs_the_package_and_nothing_else(tmp_path):
    """In an environment that has Colab's versions and no place of its own for them, what is installed shows."""
    sys.path.insert(0, str(ROOT / "_ext"))
    from resbook_notebooks import set_up_cell

    book, run = tmp_path / "book", subprocess.run
    shutil.copytree(ROOT / "code", book / "code", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, book)
    for step in ("init -q -b edition", "add .", "-c user.name=book -c user.email=book@book commit -q -m book"):
        run(["git", *step.split()], cwd=book, check=True)
    address = {"repository_url": f"file://{book}", "repository_branch": "edition"}
    cell = set_up_cell(SimpleNamespace(html_theme_options=address, html_baseurl="")).source

    run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (own,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (theirs,) = (ROOT / ".venv-colab").glob("lib/python*/site-packages")
    (own / "colab.pth").write_text(f"{theirs}\n{sysconfig.get_path('purelib')}\n")
    before = {path.name for path in own.iterdir()}
    shell = "from IPython.core.interactiveshell import InteractiveShell\n"
    program = shell + f"InteractiveShell.instance().run_cell({cell!r}).raise_error()"
    python = [tmp_path / "venv/bin/python", "-c"]
    captured = {"capture_output": True, "text": True}
    outside = run([*python, program], env={**os.environ, "PYTHONPATH": str(ROOT / "code")}, **captured)
    assert outside.stdout.startswith("computing on ") and {path.name for path in own.iterdir()} == before
    inside = run([*python, STAND_IN + program], env={**os.environ, "PYTHONPATH": ""}, **captured)
    if "No matching distribution found for setuptools" in inside.stdout and os.environ.get("CI") != "true":
        pytest.skip("pip found nothing to build with: there is no network")
    assert re.search(r"^computing on ", inside.stdout, flags=re.M), inside.stdout + inside.stderr
    assert {path.name for path in own.iterdir()} - before == {"resbook", "resbook-0.1.0.dist-info"}
