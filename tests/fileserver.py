"""Local HTTP file server for tests of downloads, with programmable failures and broken connections."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Server of `files` (name to content) at `url`/NAME; it records name and Range header of each GET request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.redirects: dict[str, tuple[str, dict[str, str]]] = {}  # name to the name it leads to, and headers
        self.supports_ranges = True
        self.failures: list[int] = []  # status codes of the next responses
        self.cuts: list[int] = []  # bytes of the file after which the next connections break
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def handle_error(self, *_) -> None:
        """Ignore clients that close the connection early."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, name, requested = self.server, self.path.rpartition("/")[2], self.headers.get("Range")
        if name in server.redirects:
            target, headers = server.redirects[name]
            self.send_response(302)
            for header in ({"Location": f"{server.url}/{target}", "Content-Length": "0"} | headers).items():
                self.send_header(*header)
            return self.end_headers()
        if self.command == "GET":
            server.requests.append((name, requested))
        if server.failures:
            return self.send_error(server.failures.pop(0))
        content = server.files[name]
        start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1]) if requested and server.supports_ranges else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start : server.cuts.pop(0) if server.cuts else len(content)])

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        pass
