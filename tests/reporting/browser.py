"""The browser of exports, with what tests look at: sizes of windows, colour schemes, pictures."""

import base64
from pathlib import Path
from typing import Any

from dragoman.engines import html_export
from dragoman.engines.html_export import NAMES as NAMES
from dragoman.engines.html_export import find_browser as find_browser

# Texts whose contrast with what is behind them is under 4.5 (WCAG 2.2, 1.4.3), as colours.
FAINT_TEXTS = """
(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const back = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const found = new Set();
  for (const e of document.querySelectorAll('body *:not(style)')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e);
    const ink = parse(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(back(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.add(e.tagName + ' ' + e.className + ' ' + ink);
  }
  return [...found];
})()
"""


class Browser(html_export.Browser):
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
