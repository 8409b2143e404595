"""A headless Chromium, and what a reader of the explorer's page does and sees in it."""

import json
import os
from pathlib import Path
from urllib.parse import parse_qs

import pytest

BINARIES = [Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")]
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium that logs its console and what it asks for; skipped if not there."""
    if missing := [str(x) for x in BINARIES if not x.exists()]:
        remedy = "install Debian's packages chromium and chromium-driver"
        pytest.skip(f"{' and '.join(missing)} not there; {remedy}")
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed; pip install '.[test]'"
    )
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(BINARIES[0])
    profile = f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"
    for flag in (*FLAGS, profile, "--window-size=1400,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(str(BINARIES[1]), env=os.environ | {"SE_OFFLINE": "true"})
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


class Reader:
    """A reader before one page: looks by CSS selectors, clicks, types, and runs JavaScript (js)."""

    def __init__(self, driver, address):
        self.driver, self.address, self.js = driver, address, driver.execute_script

    def open(self, link=""):
        """Load the page anew, at a link into it ("#q=…")."""
        self.driver.get("about:blank")
        self.load(self.address + link)

    def load(self, address):
        """Load a page and wait until it is whole: `get` can return before the last one is gone."""
        from selenium.webdriver.support.wait import WebDriverWait

        self.driver.get(address)
        whole = "return document.readyState === 'complete' && location.href.split('#')[0]"
        page = address.split("#")[0]
        WebDriverWait(self.driver, 60).until(lambda _: self.js(whole) == page)

    def size(self, width, height):
        """Make the window so large in pixels; below 500 it is a phone's."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500),
        )

    def scheme(self, name):
        """What the system prefers: "light" or "dark"."""
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": name}]},
        )

    def logged(self):
        """(messages of the console at level warning or above, addresses asked for),
        since the last call."""
        events = [json.loads(x["message"])["message"] for x in self.driver.get_log("performance")]
        asked = [
            e["params"]["request"]["url"]
            for e in events
            if e["method"] == "Network.requestWillBeSent"
        ]
        dialogs = [
            e["params"]["message"] for e in events if e["method"] == "Page.javascriptDialogOpening"
        ]
        return [x["message"] for x in self.driver.get_log("browser")] + dialogs, asked

    def all(self, css):
        """All elements of a selector."""
        return self.driver.find_elements("css selector", css)

    def one(self, css):
        """The only element of a selector."""
        (found,) = self.all(css)
        return found

    def texts(self, css):
        """What a selector's elements show."""
        return [x.text for x in self.all(css)]

    def shown(self, method):
        """Numbers of the documents in a method's column, from the top."""
        return [int(x.get_attribute("data-n")) for x in self.all(f'[data-method="{method}"] .doc')]

    def type(self, *keys):
        """Type into whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def key(self, name):
        """Press a key by Selenium's name, such as "ESCAPE"."""
        from selenium.webdriver import Keys

        self.type(getattr(Keys, name))

    @property
    def link(self):
        """What the address says after #: {parameter: values}."""
        return parse_qs(self.js("return location.hash.slice(1)"))

    @property
    def asked(self):
        """The prompt that is shown."""
        return self.one("#prompt").text
