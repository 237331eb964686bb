"""What the tests of the roofline page share: a server of its own and headless Chromium on its page."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

REPOSITORY = Path(__file__).resolve().parents[2]
SCREENSHOTS = Path(os.environ.get("KVFUSE_SCREENSHOTS", REPOSITORY / "build/screenshots"))
_PATIENCE_S = 20  # the machine may have other work
# Chromium reports every answer that is an error, which is no fault of the page.
_REFUSED = re.compile(r"/api/\S+ - Failed to load resource: the server responded with a status of 422")


@contextmanager
def running_server(*options: str) -> Iterator[str]:
    """The address of a server with the given options of ``kvfuse roofline serve``."""
    command = [sys.executable, "-m", "kvfuse.roofline.server", "--port", "0", *options]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY / "python"), "OMP_WAIT_POLICY": "passive"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found, f"the server did not start, its first line was {line!r}"
            yield found[0]
        finally:
            server.terminate()


def chromium() -> webdriver.Chrome:
    """Debian's Chromium by Debian's driver; nothing is downloaded."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


class Page:
    """The page in a browser."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        self.address = address
        self.refusals_expected = False

    def open(self, query: str = "") -> None:
        """A view with its first answers shown."""
        self.browser.get(self.address + query)
        self.wait(lambda: self.js("return document.documentElement.dataset.ready === 'true'"))
        view = re.search(r"view=(\w+)", query)
        first = {"product": "#s-table table", "measured": "#m-file", "live": "#l-state"}
        self.wait(lambda: self.all(first.get(view[1] if view else "", "#tiles dd")))

    def open_unless_there(self, query: str) -> None:
        if self.browser.current_url != self.address + query:
            self.open(query)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any], what: str = "") -> Any:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.02)
        raise AssertionError(f"this did not come about in {_PATIENCE_S} s: {what or condition}")

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def control(self, name: str) -> WebElement:
        return self.one(f'main [name="{name}"]')

    def text(self, selector: str) -> str:
        return self.js(
            "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent).join('\\n')",
            selector,
        )

    def set(self, name: str, value: str) -> None:
        """As a user does: choosing, ticking, or typing and leaving the field."""
        control = self.control(name)
        if control.tag_name == "select":
            control.find_element(By.CSS_SELECTOR, f'option[value="{value}"]').click()
        elif control.get_attribute("type") == "checkbox":
            if control.is_selected() != (value == "1"):
                control.click()
        else:
            control.send_keys(Keys.CONTROL, "a")
            control.send_keys(value, Keys.TAB)

    def values(self) -> dict[str, str]:
        """What every control holds, by name."""
        return self.js(
            "return Object.fromEntries([...document.querySelectorAll('main [name]')]"
            ".map((one) => [one.name, one.type === 'checkbox' ? String(one.checked) : one.value]))"
        )

    def drawn(self, selector: str) -> int:
        """How often a chart was drawn."""
        return int(self.one(selector).get_attribute("data-drawn") or 0)

    def traces(self, selector: str, meta: str) -> list[dict[str, Any]]:
        """What plotly was given for a chart: those traces of it that are marked so."""
        self.wait(lambda: self.drawn(selector), f"{selector} drawn")
        return self.js(
            "return document.querySelector(arguments[0]).data.filter(({meta}) => meta === arguments[1])"
            ".map(({x, y, customdata}) => ({x, y, customdata}))",
            selector,
            meta,
        )

    def size(self, width: int, height: int = 1000, mobile: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """What the system is set to: light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    @contextmanager
    def script_before_page(self, script: str) -> Iterator[None]:
        command = "Page.addScriptToEvaluateOnNewDocument"
        made = self.browser.execute_cdp_cmd(command, {"source": script})
        try:
            yield
        finally:
            self.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", made)

    def screenshot(self, name: str) -> None:
        """The whole page, as high as it is, kept in SCREENSHOTS."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        width, height = self.js("return [innerWidth, document.documentElement.scrollHeight]")
        self.size(width, height, mobile=width < 500)
        time.sleep(0.3)  # plotly follows a new size
        assert self.browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))
        self.size(width, mobile=width < 500)

    def press(self, *keys: str) -> None:
        """Keys by name, wherever the focus is."""
        ActionChains(self.browser).send_keys(*(getattr(Keys, key) for key in keys)).perform()

    def hover(self, element: WebElement) -> None:
        ActionChains(self.browser).move_to_element(element).perform()

    def complaints(self) -> list[str]:
        """What the console says."""
        messages = [entry["message"] for entry in self.browser.get_log("browser")]
        return [one for one in messages if not (self.refusals_expected and _REFUSED.search(one))]
