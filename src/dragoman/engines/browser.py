"""A headless Chromium, driven over a pipe by the DevTools protocol: no driver, port or package.

Source: https://chromedevtools.github.io/devtools-protocol/ ("--remote-debugging-pipe": messages are
JSON, ended by a zero byte, read by the browser from descriptor 3 and written to 4).
"""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--disable-extensions", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-pipe",
)  # fmt: skip
_TIMEOUT_S = 60.0


class BrowserError(Exception):
    """The browser does not answer, or the page has thrown an error."""


def find_browser() -> str | None:
    """Return the path of a browser that can be driven here; None: there is none."""
    if os.name != "posix" or shutil.which("bash") is None:  # Windows has no such pipes
        return None
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of a browser that is started here, with a fresh profile in `folder`."""

    def __init__(self, program: str, folder: Path) -> None:
        to_browser, self._output = os.pipe()
        self._input, from_browser = os.pipe()
        self._process = subprocess.Popen(
            # The shell puts the pipes where the browser looks for them.
            ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "browser", program,
             *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._session, self._unread = 0, "", b""
        self.events: list[dict[str, Any]] = []
        try:
            self._attach()
        except BrowserError:
            self._end()
            raise

    def _attach(self) -> None:
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime", "Audits"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        try:
            self._session = ""
            self.call("Browser.close")
            self._process.wait(timeout=_TIMEOUT_S)
        finally:
            self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._output)
        os.close(self._input)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return the answer to a command; events that come before it are kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        try:
            os.write(self._output, json.dumps(message).encode() + b"\0")
        except BrokenPipeError as error:
            raise BrowserError("it has ended") from error
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise BrowserError(str(answer["error"]))
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, address: str) -> list[dict[str, Any]]:
        """Show a page, wait until it is loaded and quiet, and return all that happened."""
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")
        return list(self.events)

    def run(self, script: str) -> Any:  # noqa: ANN401
        """Return the value of an expression of JavaScript on the page."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(str(answer["exceptionDetails"])[:1000])
        return answer["result"].get("value")

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + _TIMEOUT_S
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._input], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise BrowserError(f"no answer for {_TIMEOUT_S:g} s")
            found = os.read(self._input, 1 << 20)
            if not found:
                raise BrowserError(f"it ended with exit code {self._process.wait()}")
            self._unread += found
        message, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer
