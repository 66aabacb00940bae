"""Find a Chromium or Chrome for the tests of the site; run as a script, get one where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

COMMANDS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
USUAL_PLACES = [
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Google/Chrome/Application/chrome.exe",
]
ADVICE = """\
NO BROWSER: the pages of the book are NOT tested. Install Chromium or Google Chrome, or name one:
    RESBOOK_CHROMIUM=/path/to/chrome make test"""


def find_browser():
    """Return the path of a browser, or None. What RESBOOK_CHROMIUM names is taken as it is."""
    if os.environ.get("RESBOOK_CHROMIUM"):
        return os.environ["RESBOOK_CHROMIUM"]
    candidates = [playwrights_browser(), *map(shutil.which, COMMANDS), *USUAL_PLACES]
    return next((path for path in candidates if path and Path(path).exists()), None)


def playwrights_browser():
    """Return where Playwright would install its own browser."""
    try:
        with sync_playwright() as playwright:
            return playwright.chromium.executable_path
    except Exception as error:  # Playwright's driver is a program that needs a library which a bare system lacks.
        print(f"Playwright does not start ({error}). On Debian or Ubuntu: apt-get install libatomic1", file=sys.stderr)
        return None


def get_browser():
    """Try to install a browser: Playwright's own, else, as root on Debian or Ubuntu, the system's."""
    attempts = [[[sys.executable, "-m", "playwright", "install", "chromium"]]]
    if shutil.which("apt-get") and os.geteuid() == 0:
        attempts.append([["apt-get", "update"], ["apt-get", "install", "-y", "chromium", "libatomic1"]])
    for commands in attempts:
        print("no browser yet, trying:", *(" ".join(command) for command in commands), sep="\n    ", flush=True)
        if all(subprocess.run(command, check=False).returncode == 0 for command in commands) and find_browser():
            return find_browser()
    return None


def main():
    path = find_browser() or get_browser()
    print(f"pages are tested in {path}" if path else ADVICE)
    return 1 if path is None and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
