"""The package as a whole: what importing it does, where it computes, and what its wheel holds."""

import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import resbook
import tomllib
import torch
import torchvision  # noqa: F401  sound or not, it is loaded by now: the tests below rely on it
from resbook import torchvision_operators

ROOT = Path(__file__).parent.parent
CODE = ROOT / "code"
# The public names, as the course promises them.
NAMES = (
    "BasicBlock Bottleneck BatchNorm2d resnet18 resnet34 resnet50 resnet101 resnet152 cifar_resnet "
    "conv_output_size conv_parameters conv_macs receptive_field "
    "trace_shapes ShapeTrace trace_gradients GradientTrace default_device"
).split()


def run(script, *paths, cwd=None):
    """Run Python code in a fresh process with some folders on its path, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_public_names(name):
    item = getattr(resbook, name)
    assert item.__name__ == name and item.__doc__


def test_importing_it_makes_torchvision_importable_and_loads_nothing_large(tmp_path):
    """With code/ on the path, and with the repository itself on it, where ``code`` would be a name of the folder."""
    script = """
import sys
import resbook
print(sorted({"matplotlib", "torchvision", "pandas", "IPython"} & set(sys.modules)))
import torchvision
print(torchvision.models.resnet18.__name__)
import code, pdb
print(code.__file__)
"""
    loaded, name, standard = run(script, CODE, ROOT, cwd=tmp_path).splitlines()
    assert loaded == "[]"
    assert name == "resnet18"
    assert Path(standard).name == "code.py" and CODE not in Path(standard).parents
    assert not (CODE / "__init__.py").exists()


def test_operators_are_declared_only_when_needed(tmp_path):
    """In a fresh process, with the module alone: the package would call it at once."""
    script = f"""
import importlib.util
import torch
spec = importlib.util.spec_from_file_location("operators", {torchvision_operators.__file__!r})
operators = importlib.util.module_from_spec(spec)
spec.loader.exec_module(operators)
declared = lambda: hasattr(torch.ops.torchvision, "nms")
print(declared())
operators._compiled_library_loads = lambda folder: True
print(operators.declare_missing_operators(), declared())
operators._compiled_library_loads = lambda folder: False
find, operators.importlib.util.find_spec = importlib.util.find_spec, lambda name: None
print(operators.declare_missing_operators(), declared())
operators.importlib.util.find_spec = find
print(operators.declare_missing_operators(), declared())
print(operators.declare_missing_operators(), declared())
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError as error:
    print("torchvision::nms" in str(error))
"""
    lines = run(script, tmp_path).splitlines()
    assert lines == [
        "False",  # nothing is declared at first,
        "False False",  # nor where the compiled library is sound,
        "False False",  # nor where torchvision is absent;
        "True True",  # but where the library does not load,
        "False True",  # and once is enough.
        "True",  # Calling what was declared fails, and says what is missing.
    ]


def test_nothing_is_declared_once_torchvision_is_loaded():
    assert hasattr(torch.ops.torchvision, "nms")
    assert torchvision_operators.declare_missing_operators() is False


def test_a_compiled_library_is_tried(tmp_path):
    loads = torchvision_operators._compiled_library_loads
    assert loads(tmp_path) is False  # there is none
    (tmp_path / "_C.so").write_bytes(b"not a library")
    assert loads(tmp_path) is False
    library = importlib.util.find_spec("_ctypes").origin
    if not library.endswith(tuple(EXTENSION_SUFFIXES)):
        pytest.skip("this Python has no extension module in a file of its own")
    shutil.copy(library, tmp_path / "_C_other.so")
    assert loads(tmp_path) is True


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_default_device(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resbook.default_device() == torch.device(expected)


def test_requirements_are_lower_bounds():
    """Colab and other machines keep the versions they have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *sum(project.get("optional-dependencies", {}).values(), [])]
    assert any(requirement.startswith("torch>=") for requirement in requirements)
    for requirement in requirements:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+(>=[0-9.]+)?", requirement), requirement
    assert re.fullmatch(r">=[0-9.]+", project["requires-python"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel from a copy of what it needs, without a network."""
    try:
        from setuptools import __version__ as version
    except ImportError:
        version = "0"
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"building the wheel without a network needs setuptools 77 or newer, here is {version}")
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(CODE, source / "code", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip("wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", target)
    (path,) = target.glob("*.whl")
    return path


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(metadata))
    files = [path for path in (CODE / "resbook").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {str(path.relative_to(CODE).as_posix()) for path in files} == {
        name for name in names if ".dist-info/" not in name
    }
    assert all(re.fullmatch(r"[a-z-]+>=[0-9.]+", requirement) for requirement in metadata.get_all("Requires-Dist"))


def test_the_wheel_installs_and_works(wheel, tmp_path):
    target = tmp_path / "target"
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    script = """
import resbook
print(resbook.__file__)
print(resbook.trace_shapes(resbook.resnet18(), (3, 64, 64)).parameters)
"""
    path, parameters = run(script, target, cwd=tmp_path).splitlines()
    assert Path(path).is_relative_to(target)
    assert parameters == "11689512"


def test_what_the_readme_imports_is_there():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    lines = [line for block in blocks for line in block.splitlines() if re.match("(from|import) ", line)]
    assert len(lines) > 5
    for line in lines:
        exec(line, {})
