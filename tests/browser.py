"""A headless Chromium, driven by its debugging protocol: pages are opened as a reader opens them."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_SECONDS = 60.0


def find_chromium() -> str | None:
    """Where it is, or None."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


class Browser:
    """One browser with one page; what the page asks of a network and what it complains of is kept."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        """URLs that the page asked for, but for its own."""
        self.complaints: list[str] = []
        """Errors, and what the console shows as one or as a warning."""
        self._number = 0
        self._all = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as started:
            self._socket = started.enter_context(connect(self._start(started), max_size=None, proxy=None))
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
            self._all = started.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._all.close()

    def _start(self, started: ExitStack) -> str:
        """Start it; returns where its page listens."""
        program = find_chromium()
        assert program is not None, "Chromium is not installed"
        # It may write to its folder until its last process is gone.
        folder = tempfile.TemporaryDirectory(prefix="anabranch-chromium-", ignore_cleanup_errors=True)
        profile = Path(started.enter_context(folder))
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--hide-scrollbars"]
        options += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
        command = [program, *options, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.enter_context(process)
        started.callback(process.terminate)
        told, end = profile / "DevToolsActivePort", time.monotonic() + WAIT_SECONDS
        while not (told.exists() and len(told.read_text().splitlines()) == 2):
            assert time.monotonic() < end and process.poll() is None, "Chromium did not start"
            time.sleep(0.05)
        port = told.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=WAIT_SECONDS) as answer:
            [page] = [each for each in json.load(answer) if each["type"] == "page"]
        return str(page["webSocketDebuggerUrl"])

    def look(self, width: int, height: int, scheme: str) -> None:
        """Be a screen of so many pixels, a phone's where it is narrow, of a reader who likes "light" or "dark"."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(WAIT_SECONDS))
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self._event(message["method"], message["params"])

    def _event(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent" and not told["request"]["url"].startswith(
            ("file:", "data:", "about:")
        ):
            self.requests.append(told["request"]["url"])
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"])[:500])
        if method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(told["args"])[:500])
        if method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(json.dumps(told["entry"])[:500])

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, which may be a promise."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, page: Path) -> None:
        """Open a file; what was asked for and complained of before is forgotten."""
        self.requests.clear()
        self.complaints.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())

    def wait_for(self, expression: str) -> None:
        """Until it is true."""
        end = time.monotonic() + WAIT_SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"not true after {WAIT_SECONDS} seconds: {expression}; {self.complaints}"
            time.sleep(0.1)

    def place_of(self, selector: str) -> tuple[float, float]:
        """(top, height) of an element in the whole page."""
        box = f"document.querySelector('{selector}').getBoundingClientRect()"
        top, height = self.evaluate(f"[{box}.top + scrollY, {box}.height]")
        return top, height

    def move_to(self, x: float, y: float) -> None:
        """Move the mouse within what is in view."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def picture(self, x: float, y: float, width: float, height: float) -> bytes:
        """A PNG of a part of the page, in view or not."""
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        found = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(found["data"])
