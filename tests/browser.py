"""A headless Chromium that tests drive through a pipe: Chromium's own protocol, and no package for it."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60


class Browser:
    """One page of one browser.

    What the page writes as an error to its console, and what it throws, is kept in `errors`.
    """

    def __init__(self, profile):
        to_browser, from_browser = os.pipe(), os.pipe()

        def take_ends():  # the protocol's are the descriptors 3 and 4
            ends = os.dup(to_browser[0]), os.dup(from_browser[1])
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        command = [
            CHROMIUM, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
            "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update",
            f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            preexec_fn=take_ends,  # noqa: PLW1509 - nothing else gives a child descriptors of these numbers
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self._out, self._in = to_browser[1], from_browser[0]
        self._waiting, self._numbers, self._session, self._seen = b"", itertools.count(1), None, []
        self.errors = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session = None
        self.call("Browser.close")  # its children, too, let go of the profile
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            os.close(self._out)
            os.close(self._in)

    def call(self, method, **given):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": given}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            said = self._read()
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]

    def open(self, path, *, width=1280, height=900, scheme="light", media=""):
        """Open a file and wait until it is loaded."""
        self.errors.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=width < 600,
        )  # fmt: skip
        wish = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=wish)
        self.call("Page.navigate", url=Path(path).absolute().as_uri())
        end = time.monotonic() + PATIENCE
        address = json.dumps(Path(path).absolute().as_uri())
        while not self.run(f"document.readyState === 'complete' && location.href === {address}"):
            assert time.monotonic() < end, f"not loaded in {PATIENCE} s; {self.errors}"
            time.sleep(0.05)

    def run(self, expression):
        """The value of an expression, as JSON."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def picture(self, path):
        """Keep what the whole page looks like, for a person."""
        size = {"width": self.run("innerWidth"), "height": self.run("document.body.scrollHeight")}
        clip = {"x": 0, "y": 0, "scale": 1, **size}
        done = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png", clip=clip)
        Path(path).write_bytes(base64.b64decode(done["data"]))

    def _read(self):
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._in], [], [], PATIENCE)
            assert ready, "the browser says nothing"
            piece = os.read(self._in, 1 << 20)
            assert piece, "the browser has ended"
            self._waiting += piece
        line, _, self._waiting = self._waiting.partition(b"\0")
        said = json.loads(line)
        match said.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(said["params"]["exceptionDetails"]["text"])
            case "Runtime.consoleAPICalled" if said["params"]["type"] in ("error", "warning"):
                self.errors.append(str(said["params"]["args"]))
            case "Log.entryAdded" if said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"])
        return said
