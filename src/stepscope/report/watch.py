"""Serves a page to the browsers of this machine alone, and shows it again when its records have changed.

The page is what a file would hold, in a frame. The script around it asks whether there is a new one, and keeps the
place on the page and the step that was chosen. A site of somebody's that has its name lead to this machine (DNS
rebinding) is told by the name in its requests, and refused.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from stepscope.errors import UsageError
from stepscope.runs import MEASUREMENTS_FILE, RUN_FILE, STEPS_FILE, parts_of

ADDRESS = "127.0.0.1"
_NAMES = (ADDRESS, "localhost")

_STYLE = """
html, body { height: 100%; margin: 0; color-scheme: light dark; }
iframe { border: 0; width: 100%; height: 100%; display: block; }
p { position: fixed; inset: auto 0 0; margin: 0; padding: .5em 1em; font: 14px sans-serif; }
p { background: #8a2b06; color: #fff; }
"""
_SCRIPT = """
const frame = document.querySelector("iframe"), ended = document.querySelector("p");
let shown = null;
function sliders() { return [...frame.contentDocument.querySelectorAll("input[type=range]")]; }
function show() {
  const top = frame.contentWindow.scrollY;
  const chosen = sliders().map(({ value, max }) => value === max ? null : value);  // the newest stays the newest
  frame.onload = () => {
    document.title = frame.contentDocument.title;
    sliders().forEach((slider, place) => {
      if (chosen[place] == null) return;
      slider.value = chosen[place];
      slider.dispatchEvent(new Event("input"));
    });
    frame.contentWindow.scrollTo(0, top);
  };
  frame.src = "page";
}
async function look() {
  if (document.hidden) return;
  const answer = await fetch("version").catch(() => null);
  ended.hidden = Boolean(answer?.ok);
  const version = answer?.ok ? await answer.text() : shown;
  if (version !== shown) show();
  shown = version;
}
document.addEventListener("visibilitychange", look);
setInterval(look, 5000);
look();
"""
_FRAME = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>stepscope</title><style>{_STYLE}</style>
<iframe title="The page of the run"></iframe>
<p role="status" hidden>No longer served: this is the page as it was last.</p>
<script>{_SCRIPT}</script></html>
"""


def _admitted(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


_POLICY = (
    f"default-src 'none'; frame-src 'self'; connect-src 'self'; frame-ancestors 'none'; "
    f"script-src {_admitted(_SCRIPT)}; style-src {_admitted(_STYLE)}"
)


def version_of(run_path: str | os.PathLike[str]) -> str:
    """A text that is another one when the records of a run directory have changed.

    Args:
        run_path: the directory.
    """
    directories = (Path(run_path), *parts_of(run_path))
    files = [directory / name for directory in directories for name in (RUN_FILE, MEASUREMENTS_FILE, STEPS_FILE)]
    found = [file.stat() for file in files if file.exists()]
    return " ".join(f"{stat.st_size}-{stat.st_mtime_ns}" for stat in found)


class PageServer(ThreadingHTTPServer):
    """Serves a page on a free port of the loopback; `serve_forever` does it.

    Args:
        page: makes it; called when the first browser asks, and when the version is another.
        version: of what it is made of.

    Attributes:
        address: where it can be seen.
    """

    daemon_threads = True

    def __init__(self, page: Callable[[], str], version: Callable[[], str]) -> None:
        super().__init__((ADDRESS, 0), _Handler)
        self.version = version
        self.address = f"http://{ADDRESS}:{self.server_port}/"
        self._page = page
        self._made: tuple[str, bytes] | None = None
        self._making = threading.Lock()

    def page(self) -> bytes:
        """The page of the records as they are now."""
        with self._making:
            version = self.version()
            if self._made is None or self._made[0] != version:
                self._made = version, self._page().encode(errors="replace")
            return self._made[1]


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        """Called by `http.server`."""
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            name = None
        if name not in _NAMES:
            self._send(403, b"This is served to the browsers of this machine alone.")
        elif self.path == "/":
            self._send(200, _FRAME.encode(), "html", _POLICY)
        elif self.path == "/version":
            self._send(200, self.server.version().encode())
        elif self.path == "/page":
            try:
                self._send(200, self.server.page(), "html", "frame-ancestors 'self'")
            except UsageError as error:
                self._send(503, str(error).encode(errors="replace"))
        else:
            self._send(404, b"There is nothing here.")

    def _send(self, status: int, content: bytes, kind: str = "plain", policy: str = "default-src 'none'") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": f"text/{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Content-Security-Policy": policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is said of requests."""
