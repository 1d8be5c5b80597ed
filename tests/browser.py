"""A real Chromium, and a real JupyterLab for it to open. Run as a script, it sees to it that a Chromium is there."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
NOISE = ("Failed to load resource", "ERR_", "net::", "WebSocket")  # of a machine without a network, not of our page


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome; None for playwright's own."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def install() -> None:
    """A browser from the system's packages (Debian, Ubuntu) or, elsewhere, the one that playwright brings."""
    as_root = [] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["sudo", "-n"]
    if shutil.which("apt-get") and (not as_root or shutil.which("sudo")):
        quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}}
        packages = ["chromium", "fonts-dejavu-core"]
        subprocess.run([*as_root, "apt-get", "-qq", "update"], **quiet)
        subprocess.run([*as_root, "apt-get", "-qq", "install", "-y", "--no-install-recommends", *packages], **quiet)
    if find_chromium() is None:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"])


@contextlib.contextmanager
def chromium() -> Iterator:
    """A headless browser."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        except Error as error:
            pytest.fail(f"no Chromium could be started; `make browser` installs one:\n{error}")
        yield browser
        browser.close()


def open_page(browser, address: str, **options):
    """(page, errors): errors of its scripts are gathered in the list."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | options)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.goto(address)
    return page, errors


def own_errors(errors: list[str]) -> list[str]:
    """Without those of a server that cannot reach the network."""
    return [each for each in errors if not any(noise in each for noise in NOISE)]


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"]
    command += ["--IdentityProvider.token=", "--ServerApp.password=", "--LabApp.news_url="]
    command += [f"--ServerApp.root_dir={folder}", "--ServerApp.disable_check_xsrf=True"]
    settings = {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    settings |= {"JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "JUPYTER_PREFER_ENV_PATH": "1"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | settings)
        try:
            _wait(f"http://127.0.0.1:{port}/api", server, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def _wait(address: str, server: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=5).read()
            return
        time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def main() -> int:
    if find_chromium() is None:
        install()
    try:
        with chromium() as browser:
            print(f"Chromium {browser.version} runs")
    except pytest.fail.Exception as problem:
        print(f"{problem}\nInstall Chromium or Chrome, then try again.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
