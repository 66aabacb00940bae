"""What runs elsewhere (GitHub, Codespaces, Binder) refers to what is here, and to the same pins."""

import json
import re
from pathlib import Path

import pytest
import tomllib
import yaml
from conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def commands(workflow):
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return [step["run"] for job in jobs for step in job.get("steps", []) if "run" in step]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_there_is(workflow):
    text = "\n".join(commands(workflow))
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)[1].split()
    used = re.findall(r"(?:^|&& )make (\w+)", text, flags=re.M)
    paths = re.findall(r"(?:tests|\.github|\.ci)/[\w./-]+", text)
    assert used or paths
    assert set(used) <= set(targets) and all((ROOT / path).exists() for path in paths)


def test_an_issue_is_opened_when_what_nobody_watches_fails():
    for name in ("colab", "nightly"):
        text = (ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8")
        assert "schedule:" in text and "issues: write" in text and ".github/report" in text and "GH_TOKEN" in text
    assert (ROOT / ".github/report").stat().st_mode & 0o111


def test_the_oldest_versions_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = (ROOT / "tests/oldest.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w-]+)==([\d.]+)$", oldest, flags=re.M)
    assert [f"{name}>={version}" for name, version in pins] == project["dependencies"]
    versions = (ROOT / ".github/workflows/versions.yml").read_text(encoding="utf-8")
    assert f'python: "{project["requires-python"].removeprefix(">=")}"' in versions


def test_codespaces_and_binder_use_the_same_pins():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] == "pip install -r requirements.txt"
    (line,) = (ROOT / ".binder/requirements.txt").read_text(encoding="utf-8").splitlines()
    assert (ROOT / ".binder" / Path(line.removeprefix("-r "))).resolve() == ROOT / "requirements.txt"
