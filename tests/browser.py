"""A real browser for the tests of pages: headless Chromium, driven by selenium.

It notes every request that a page makes and everything that it complains about, so that a test can say that nothing
came from elsewhere and nothing went wrong. It waits for conditions, never for a time.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

PHONE = (360, 740)
DESK = (1280, 900)
_PATIENCE = 60.0
"""Seconds until a condition that does not come true fails a test; on a quiet machine all take well below one."""


_OVERFLOW = """
const wide = document.documentElement.clientWidth, out = [];
if (document.documentElement.scrollWidth > wide) out.push("the page scrolls");
for (const node of document.body.querySelectorAll("*")) {
  let box = node.parentElement;
  while (box && getComputedStyle(box).overflowX === "visible") box = box.parentElement;
  const free = !box || box === document.body || box === document.documentElement;
  if (free && node.getBoundingClientRect().right > wide + 1) out.push(node.outerHTML.slice(0, 120));
}
return out;
"""

_CONTRAST = r"""
const rgba = (text) => {
  const n = text.match(/[\d.]+/g).map(Number);
  return [n[0], n[1], n[2], n[3] ?? 1];
};
const light = (colour) => {
  const [r, g, b] = colour.map((v) => (v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4));
  return .2126 * r + .7152 * g + .0722 * b;
};
const behind = (node) => {
  for (let at = node; at; at = at.parentElement) {
    const colour = rgba(getComputedStyle(at).backgroundColor);
    if (colour[3] === 1) return colour.slice(0, 3);
  }
  return [255, 255, 255];
};
const found = {};
for (const selector of arguments[0]) {
  for (const node of document.querySelectorAll(selector)) {
    if (!node.textContent.trim() || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), drawn = node.namespaceURI.endsWith("svg");
    const ink = light(rgba(drawn ? style.fill : style.color).slice(0, 3)), back = light(behind(node));
    const ratio = (Math.max(ink, back) + .05) / (Math.min(ink, back) + .05);
    found[selector] = Math.min(found[selector] ?? 21, ratio);
  }
}
return found;
"""


class Browser:
    """A window.

    Attributes:
        driver: Selenium's.
    """

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self._requests: list[str] = []

    def open(self, url: str, *, size: tuple[int, int] = DESK, dark: bool = False) -> None:
        """Loads a page, as a window of that many CSS pixels in that colour scheme shows it."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a piece of JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], object], what: str) -> Any:
        """Waits until a condition holds, and returns what it gave."""
        from selenium.webdriver.support.wait import WebDriverWait

        wait = WebDriverWait(self.driver, _PATIENCE, poll_frequency=0.05)
        return wait.until(lambda _driver: condition(), f"waited {_PATIENCE:g} s until {what}")

    def _log(self, name: str) -> list[dict[str, Any]]:
        """What is new in one of the browser's logs."""
        return list(self.driver.get_log(name))  # type: ignore[no-untyped-call]

    def requests(self) -> list[str]:
        """The address of everything that was asked for so far; data and the browser's own pages left out."""
        for entry in self._log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requests.append(message["params"]["request"]["url"])
        return [
            url for url in self._requests if urlsplit(url).scheme not in {"data", "about", "chrome"}
        ]

    def complaints(self) -> list[str]:
        """What the console has of warnings and errors since the last call."""
        return [f"{each['level']}: {each['message']}" for each in self._log("browser")]

    def overflow(self) -> list[str]:
        """Elements that stick out of the page to the right; those inside a box that scrolls by itself are left out."""
        return list(self.run(_OVERFLOW))

    def contrast(self, *selectors: str) -> dict[str, float]:
        """The least contrast (WCAG 2.2) of the text of each selector's visible elements with what is behind it."""
        return dict(self.run(_CONTRAST, list(selectors)))

    def picture(self, path: Path) -> None:
        """Writes what the window shows as a PNG."""
        path.write_bytes(self.driver.get_screenshot_as_png())


@contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, ended at the end.

    Args:
        profile: An empty directory.
    """
    pytest.importorskip("selenium", reason="the 'test' extra is not installed")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail(
            "the tests of pages need a browser: apt-get install chromium chromium-driver (Debian's packages)",
            pytrace=False,
        )
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",  # as root there is none
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--hide-scrollbars",
        "--no-first-run",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "WARNING"})
    chrome = Chrome(options=options, service=ChromeService(executable_path=driver))
    try:
        yield Browser(chrome)
    finally:
        chrome.quit()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The browser that all tests of a run share; ask for `browser`."""
    with started(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """A window with nothing noted yet; one browser serves all tests of a run."""
    chromium.driver.get("about:blank")
    chromium.requests()
    chromium.complaints()
    chromium._requests.clear()
    yield chromium
    chromium.driver.get("about:blank")
