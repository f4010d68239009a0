"""A host of Weights & Biases that lets a run begin, and one that never answers at all; on this machine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROJECT = {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}}
BUCKET = {"id": "b", "name": "run", "displayName": "run", "project": PROJECT, "config": "{}", "sweepName": None}
ANSWERS = {  # what the client asks for before a run begins
    "viewer": {"id": "v", "entity": "entity", "username": "user", "flags": "{}", "teams": {"edges": []}},
    "upsertBucket": {"bucket": BUCKET, "inserted": True},
    "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None},
}


@contextmanager
def deaf_host(begins: bool) -> Iterator[str]:
    """Its address.

    Args:
        begins: True: it answers until a run has begun, and nothing that comes after.
    """
    begun = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode(errors="replace")
            if not begins or begun.is_set():
                time.sleep(600)
            answer = {name: value for name, value in ANSWERS.items() if name in body}
            if "upsertBucket" in answer:
                begun.set()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": answer}).encode())

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
