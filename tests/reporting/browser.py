"""The browser of exports, with what tests look at: sizes of windows, colour schemes, pictures."""

import base64
from pathlib import Path
from typing import Any

from dragoman.engines import browser
from dragoman.engines.browser import NAMES as NAMES
from dragoman.engines.browser import find_browser as find_browser


class Browser(browser.Browser):
    """One page of a browser that is started here, with a fresh profile in `folder`."""

    def open(self, path: Path | str) -> list[dict[str, Any]]:
        """Show a file or an address, and return all that happened until it was loaded and quiet."""
        return super().open(path.as_uri() if isinstance(path, Path) else path)

    def resize(self, width: int, height: int = 900, *, is_phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=2 if is_phone else 1, mobile=is_phone,
        )  # fmt: skip

    def emulate(self, *, scheme: str = "light", media: str = "") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def take_picture(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def print_page(self, path: Path) -> None:
        """Write the printed page as PDF."""
        answer = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        path.write_bytes(base64.b64decode(answer["data"]))
