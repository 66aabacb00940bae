"""What test files share: the book's pages, a browser, a fixed seed, the comparison of two networks."""

import os
from pathlib import Path

import pytest
import resbook  # noqa: F401  before any test file imports torchvision
import torch
import yaml
from browser import ADVICE, find_browser
from hypothesis import settings
from playwright.sync_api import sync_playwright
from resbook.data import Data

ROOT = Path(__file__).parent.parent
PLACES = r"0x[0-9a-f]{8,}|/(home|root|Users|work|tmp|content)/|site-packages"  # what no output may hold

# The same examples in every run: a test that failed fails again. (pytest --hypothesis-profile=random draws new ones.)
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile("fixed")

# Most tensors here are small: a second thread gains little, and on a busy machine the two wait for each other.
torch.set_num_threads(1)


def toc_pages(entry):
    """Return the pages of a table of contents, in its order."""
    if isinstance(entry, list):
        return [page for item in entry for page in toc_pages(item)]
    own = [entry[key] for key in ("root", "file") if key in entry]
    return own + [page for key in ("parts", "chapters", "sections") for page in toc_pages(entry.get(key, []))]


BOOK_PAGES = toc_pages(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))


FLAGS = "--disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"


@pytest.fixture(scope="session")
def browser():
    path = find_browser()
    if path is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(ADVICE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small_data():
    """Return 20 images of noise in three classes, and 9 of them to test on, some with other labels."""
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(20, 3, 6, 6, generator=generator), torch.arange(20) % 3
    return Data(images, labels, images[:9].clone(), (labels[:9] + (torch.arange(9) > 3)) % 3, ("a", "b", "c"))


def assert_states_equal(ours, theirs):
    """Assert that two state dictionaries have the same names in the same order, and exactly the same values."""
    assert list(ours) == list(theirs)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def gradients_of(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def randomize_(module):
    """Give every normalisation of a network a scale, a shift and running statistics of its own."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_mean") or ("bn" in name or "downsample.1" in name) and name.endswith("bias"):
                value.normal_(0, 0.1)
            elif name.endswith("running_var") or ("bn" in name or "downsample.1" in name) and name.endswith("weight"):
                value.uniform_(0.5, 1.5)
    return module
