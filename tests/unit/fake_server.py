"""A server of completions with a thread for each request, and no model."""

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeServer(ThreadingHTTPServer):
    """Answers as ``parts`` say.

    Each part is the ids of an event, bytes to send as they are, or a function to call
    before going on.
    """

    daemon_threads = True

    def __init__(self, parts, status=200):
        super().__init__(("127.0.0.1", 0), Handler)
        self.parts = parts
        self.status = status
        self.bodies = []
        self.sent = []
        """When each part was about to be sent, by the system's clock."""

    @property
    def root(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def completions(self):
        return f"{self.root}/v1/completions"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.bodies.append(json.loads(self.rfile.read(length)))
        self.send_response(self.server.status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in self.server.parts:
            if callable(part):
                part()
                continue
            if not isinstance(part, bytes):
                part = event(part)
            self.server.sent.append(time.monotonic())
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"version": "1.2.3"}')
        self.close_connection = True

    def log_message(self, *args):
        """Prints nothing."""


def event(ids):
    """Returns an event that brings these tokens."""
    values = {"choices": [{"text": "", "token_ids": ids}]}
    return b"data: " + json.dumps(values).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@contextlib.contextmanager
def serving(*parts, status=200):
    """Runs a :class:`FakeServer`."""
    with FakeServer(parts, status) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@contextlib.contextmanager
def taken_port():
    """Yields a port where nobody listens, and that nobody else can take."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
