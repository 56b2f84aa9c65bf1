"""An HTTP server for tests, which can fail in every way."""

import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["Server"]


class Server:
    """Serves a folder on this machine.

    Attributes:
        folder: The folder.
        url: Address of the folder.
        requests: Paths that were asked for.
        answer: Answers a request in place of the folder, and returns True; or returns False.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.answer: Callable[[SimpleHTTPRequestHandler], bool] = lambda _request: False
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                outer.requests.append(self.path)
                if not outer.answer(self):
                    super().do_GET()

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """End; open connections are closed at the next request."""
        self.answer = lambda request: setattr(request, "close_connection", True) or True
        self._http.shutdown()
        self._http.server_close()
