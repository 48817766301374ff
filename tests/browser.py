"""Opens a page in a real browser: Chromium without a window, with an empty profile and without the internet."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # the browser's own calls home fail, too
]


def executable() -> str:
    """Return the path of Chromium.

    Raises:
        FileNotFoundError: says what to install.
    """
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        raise FileNotFoundError("these tests need a browser: apt-get update && apt-get install -y chromium")
    return found


class Visit(NamedTuple):
    """What came of a visit."""

    dom: str  # of the page when its time was over
    requested: list[str]  # URLs that the page asked for, the page's own first
    console: list[str]  # lines of the console, refusals by the content security policy among them


def visit(url: str, *, within_ms: int = 8000, screenshot: Path | None = None, size: str = "1200,1600") -> Visit:
    """Open a page and let its scripts run for `within_ms` of the page's time.

    Args:
        screenshot: where a picture of the page is to be written (PNG); then `dom` is empty.
        size: width and height of the window in pixels.
    """
    with tempfile.TemporaryDirectory() as profile:
        net_log = Path(profile) / "net.json"
        output = "--dump-dom" if screenshot is None else f"--screenshot={screenshot}"
        command = [executable(), *FLAGS, f"--user-data-dir={profile}", f"--log-net-log={net_log}"]
        command += [f"--virtual-time-budget={within_ms}", f"--window-size={size}", output, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        log = json.loads(net_log.read_text())
    return Visit(
        dom=done.stdout if screenshot is None else "",
        requested=[url, *_asked_by_pages(log)],
        console=[line for line in done.stderr.splitlines() if ":CONSOLE" in line],
    )


def _asked_by_pages(log: Any) -> Iterator[str]:
    """Yield the URLs that pages asked for. What the browser asks for by itself comes from no page."""
    started = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    for event in log["events"]:
        found = event.get("params", {})
        if event["type"] == started and found.get("initiator", "not an origin") != "not an origin":
            yield str(found["url"])
