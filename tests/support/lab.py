"""JupyterLab as a person uses it: a server of its own, and a notebook open in a browser."""

import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

QUIET = {"fetchNews": "false", "checkForUpdates": False}  # no question about news, no network
VISIBLE = """
const seen = [...document.querySelectorAll(arguments[0])].filter((x) => x.checkVisibility());
return seen.filter((x) => x.innerText.trim().startsWith(arguments[1]));
"""


@contextmanager
def server(checkout, tmp_path):
    """`make lab` in a checkout: its command from the Makefile there. Yields the address to open."""
    recipe = re.search(r"^lab:.*\n\t(jupyter lab.*)$", (checkout / "Makefile").read_text(), re.M)[1]
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(QUIET))
    own = {f"JUPYTER_{x}_DIR": str(tmp_path / x.lower()) for x in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"), "PYTHONPATH": str(checkout)}
    own |= {"JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"), "IPYTHONDIR": str(tmp_path)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    program, *arguments = shlex.split(recipe)
    command = [Path(sys.executable).with_name(program), *arguments, "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--port={port}", "--port-retries=0"]
    log = tmp_path / "server.log"
    with log.open("w") as file:
        child = subprocess.Popen(
            [*command, f"--IdentityProvider.token={token}"],
            cwd=checkout,
            env=os.environ | own,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        answers(f"http://127.0.0.1:{port}/api", child, log)
        yield f"http://127.0.0.1:{port}/?token={token}"
    finally:
        child.terminate()
        child.wait(30)


def answers(address, child, log):
    """Wait until the server answers; AssertionError, with what it logged, if it does not."""
    for _ in range(300):
        assert child.poll() is None, log.read_text()
        try:
            return urllib.request.urlopen(address, timeout=5).read()
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def until(true, what, seconds=60):
    """The first true value of a function; AssertionError that names what did not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := true():
            return value
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds} s")


class Person:
    """Someone before JupyterLab in a headless browser, with one notebook open."""

    def __init__(self, driver, pictures):
        self.driver, self.pictures = driver, pictures
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            dict(width=1500, height=1400, deviceScaleFactor=1, mobile=False),
        )

    def all(self, css, start=""):
        """The visible elements of a selector whose text starts like this."""
        return self.driver.execute_script(VISIBLE, css, start)

    def one(self, css, start=""):
        """The first of these, as soon as it is there."""
        return until(lambda: self.all(css, start), f"{css}: {start}")[0]

    def opens(self, address, notebook):
        """Go to an address, open a notebook by a double click in the list of files."""
        self.driver.get(address)
        name = self.one(".jp-DirListing-item", f"{notebook}.ipynb")
        self.actions().double_click(name).perform()
        self.one(".jp-NotebookPanel .jp-CodeCell")
        self.idle()

    def idle(self, seconds=300):
        """Wait until the kernel has nothing to do."""
        idle = '.jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status="idle"]'
        until(lambda: self.all(idle), "an idle kernel", seconds)

    def writes(self, line, old, new):
        """In the line of a cell that starts with `line`, select a word and type over it."""
        row = self.one(".jp-CodeCell .cm-line", line)
        word = next(x for x in row.find_elements("css selector", "span") if x.text == old)
        self.actions().double_click(word).send_keys(new).perform()

    def runs_all(self):
        """Run -> Run All Cells."""
        self.one(".lm-MenuBar-itemLabel", "Run").click()
        self.one('.lm-Menu-item[data-command="runmenu:run-all"]').click()

    def saves(self, file):
        """Ctrl+S, again until JupyterLab is ready to write the file."""
        from selenium.webdriver import Keys

        before = file.stat().st_mtime_ns

        def written():
            self.actions().key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()
            time.sleep(1)
            return file.stat().st_mtime_ns != before and not self.all(".lm-TabBar-tab.jp-mod-dirty")

        until(written, f"{file} saved")

    def outputs(self):
        """The texts of the outputs that are in sight, from the top."""
        return [x.text for x in self.all(".jp-NotebookPanel .jp-Cell-outputArea") if x.text]

    def dialogs(self):
        """What questions JupyterLab asks."""
        return [x.text for x in self.all(".jp-Dialog-content")]

    def picture(self, name):
        """Keep what is seen."""
        self.driver.save_screenshot(str(self.pictures / f"{name}.png"))

    def actions(self):
        """Mouse and keyboard."""
        from selenium.webdriver import ActionChains

        return ActionChains(self.driver)
