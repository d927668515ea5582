"""Headless Chromium, driven by the W3C WebDriver protocol that chromedriver speaks; no package
needed."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
DRIVER = shutil.which("chromedriver")

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # how the protocol calls an element's id
# WebDriver's keys are characters of a private area of Unicode
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004", "Left": "\ue012", "Up": "\ue013",
        "Right": "\ue014", "Down": "\ue015", "Home": "\ue011", "End": "\ue010"}  # fmt: skip


class Browser:
    """One window.

    Args:
        profile: an empty folder.
        size: width and height in CSS pixels; narrow ones are a phone's, with touch.
        dark: prefers-color-scheme.
    """

    def __init__(
        self, profile: Path, size: tuple[int, int] = (1280, 800), *, dark: bool = False
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._driver = subprocess.Popen(
            [str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._url = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--hide-scrollbars", f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
        ]  # fmt: skip
        if dark:
            arguments.append("--blink-settings=preferredColorScheme=0")
        options: dict[str, Any] = {"binary": CHROMIUM, "args": arguments}
        if size[0] < 600:
            metrics = {"width": size[0], "height": size[1], "pixelRatio": 2, "touch": True}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        asked = {"browserName": "chrome", "goog:chromeOptions": options,
                 "goog:loggingPrefs": {"browser": "ALL"}}  # fmt: skip
        try:
            self.wait(lambda: self._call("GET", "/status")["ready"], 30)
            made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": asked}})
        except BaseException:
            self._driver.kill()
            self._driver.wait()
            raise
        self._url += f"/session/{made['sessionId']}"

    def close(self) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(30)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._url + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            told = json.loads(error.read())["value"]
            raise RuntimeError(f"{path}: {told['error']}: {told['message']}") from error

    def wait(self, true: Callable[[], Any], timeout_s: float = 30) -> Any:
        """What `true` returns once it is truthy; AssertionError where that takes too long."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                found = true()
            except (RuntimeError, OSError):  # an element that is not there yet; a driver neither
                found = None
            if found:
                return found
            assert time.monotonic() < deadline, f"not so after {timeout_s} s"
            time.sleep(0.05)

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def back(self) -> None:
        self._call("POST", "/back")

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a JavaScript function returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, css: str) -> dict[str, str]:
        return self._call("POST", "/element", {"using": "css selector", "value": css})

    def click(self, css: str) -> None:
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", css)
        self._call("POST", f"/element/{self.find(css)[_ELEMENT]}/click")

    def type(self, css: str, text: str) -> None:
        self._call("POST", f"/element/{self.find(css)[_ELEMENT]}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Names of KEYS or characters, to whatever has the focus."""
        actions = [
            {"type": kind, "value": KEYS.get(key, key)}
            for key in keys
            for kind in ("keyDown", "keyUp")
        ]
        body = {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        self._call("POST", "/actions", body)

    def text(self, css: str) -> str:
        """The visible text of the first element that fits."""
        return self.run("return document.querySelector(arguments[0]).innerText", css)

    def texts(self, css: str) -> list[str]:
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim())", css
        )

    def focus(self) -> str:
        """The visible text of what has the focus, or its id."""
        return self.run(
            "const e = document.activeElement; return (e.innerText || e.id || '').trim()"
        )

    def errors(self) -> list[str]:
        """What the page has complained about in the console since the last call."""
        return [one["message"] for one in self._call("POST", "/se/log", {"type": "browser"})
                if one["level"] == "SEVERE"]  # fmt: skip

    def screenshot(self, to: Path) -> None:
        to.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))
