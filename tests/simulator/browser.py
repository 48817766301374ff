"""A real browser for tests: headless Chromium, driven through a pipe by the DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.browser import executable

OPTIONS = (
    "--headless",
    "--no-sandbox",  # containers run the tests as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
TIMEOUT_S = 120.0  # for one answer of the browser, on a machine with much else to do
READ, WRITE = 3, 4  # the file descriptors that --remote-debugging-pipe uses


class Chromium:
    """One browser with an empty profile, from `with` on."""

    def __enter__(self) -> Self:
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        source = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (commands, answers)]  # clear of 3 and 4

        def connect() -> None:
            os.dup2(source[0], READ)
            os.dup2(source[1], WRITE)

        self._process = subprocess.Popen(
            [executable(), *OPTIONS, f"--user-data-dir={self._profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=connect,
        )
        for fd in (commands, answers, *source):
            os.close(fd)
        self._number = 0
        self._unread = b""
        self.events: list[dict[str, Any]] = []
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result.

        Raises:
            RuntimeError: the browser refused.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                result: dict[str, Any] = found["result"]
                return result
            self.events.append(found)

    def wait(self, method: str, session: str) -> None:
        """Return after an event of this session."""
        while not any(event["method"] == method and event.get("sessionId") == session for event in self.events):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(self._answers, 1 << 20) if ready else b""
            if not more:
                raise TimeoutError("the browser does not answer")
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, url: str, *, width: int, height: int = 844) -> Page:
        """Load a page in a new tab; below 600 px of width as a phone does."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        metrics = {"width": width, "height": height, "screenWidth": width, "screenHeight": height}
        metrics |= {"deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", session, **metrics)
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable", session)
        self.call("Page.navigate", session, url=url)
        self.wait("Page.loadEventFired", session)
        return Page(self, session)


class Page:
    """One loaded page."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser, self._session = browser, session

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited.

        Raises:
            RuntimeError: it threw.
        """
        found = self._browser.call(
            "Runtime.evaluate", self._session, expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    @property
    def requests(self) -> list[str]:
        """The addresses that the page has asked for, itself included."""
        return self._of("Network.requestWillBeSent", lambda params: params["request"]["url"])

    @property
    def errors(self) -> list[str]:
        """The exceptions that no script caught."""
        return self._of("Runtime.exceptionThrown", lambda params: params["exceptionDetails"]["text"])

    def _of(self, method: str, value: Any) -> list[str]:
        events = (event for event in self._browser.events if event.get("sessionId") == self._session)
        return [value(event["params"]) for event in events if event["method"] == method]

    def screenshot(self, file: Path) -> None:
        """Write the whole page as a PNG, to be looked at."""
        data = self._browser.call("Page.captureScreenshot", self._session, captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))
