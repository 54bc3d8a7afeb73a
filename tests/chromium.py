"""A headless Chromium, driven through its debugging pipe: pages opened, keys pressed, what is shown, the console."""

import json
import os
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any


class Page:
    """A page in a browser that is spoken to in the Chrome DevTools protocol: messages of JSON that end with a zero."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer, self._count, self._session = b"", 0, None
        self.complaints: list[str] = []
        """What the console said of errors and warnings, and what scripts threw."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def open(self, path: Path, *, width: int = 1280, dark: bool = False) -> float:
        """Open a page of ours and wait until its charts are drawn; returns the seconds that took."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=2000, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        begin = time.monotonic()
        self._ask("Page.navigate", url=path.as_uri())
        while not self.run("document.readyState === 'complete' && !!document.documentElement.dataset.drawn"):
            assert time.monotonic() - begin < 60, self.complaints
            time.sleep(0.01)
        return time.monotonic() - begin

    def run(self, script: str) -> Any:
        """Run JavaScript in the page; returns its value."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key, where the focus is."""
        code = {"Tab": 9, " ": 32, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36}[key]
        text = {" ": " ", "Enter": "\r"}.get(key, "")
        facts = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        self._ask("Input.dispatchKeyEvent", type="keyDown", text=text, **facts)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **facts)

    def move_to(self, selector: str, *, share: float) -> None:
        """Move the mouse over an element, to this share of its width."""
        over = f"document.querySelector({selector!r})"
        self.run(f"{over}.scrollIntoView({{behavior: 'instant', block: 'center'}})")
        box = self.run(f"{over}.getBoundingClientRect().toJSON()")
        x, y = box["x"] + share * box["width"], box["y"] + box["height"] / 2
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.run("new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))")

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        shot = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(b64decode(shot["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._count:
            self._listen(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _listen(self, answer: dict[str, Any]) -> None:
        facts = answer.get("params", {})
        if answer.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(facts["exceptionDetails"]))
        if answer.get("method") == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(facts["args"]))
        if answer.get("method") == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.complaints.append(facts["entry"]["text"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._from, 2**20)
            assert part, "the browser has gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


def why_no_chromium() -> str | None:
    """Say why there is no browser, or None if there is one."""
    return None if which("chromium") else "these tests need Debian's chromium"


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """Run a browser without network for as long as the context lasts."""
    read_there, to_browser = os.pipe()
    from_browser, write_there = os.pipe()
    flags = "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --host-resolver-rules='MAP * ~NOTFOUND'"
    browser = subprocess.Popen(
        ["bash", "-c", f'exec chromium {flags} --user-data-dir="$0" 3<&{read_there} 4>&{write_there}', folder],
        pass_fds=(read_there, write_there),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_there)
    os.close(write_there)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(from_browser)
        os.close(to_browser)  # it ends by itself when nobody speaks to it
        try:
            browser.wait(10)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()
