"""A Hugging Face hub on loopback that serves one data set at one commit: as much of the hub's API
as `datasets` asks for.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class HubHandler(BaseHTTPRequestHandler):
    """Answers for `folder` as the repository `hub_id`, whose `main` is `commit`."""

    def __init__(self, *arguments: Any, hub_id: str, commit: str, folder: Path):
        self.hub_id, self.commit, self.folder = hub_id, commit, folder
        super().__init__(*arguments)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        about, tree, files = (
            f"/api/datasets/{self.hub_id}/revision/",
            f"/api/datasets/{self.hub_id}/tree/{self.commit}",
            f"/datasets/{self.hub_id}/resolve/{self.commit}/",
        )
        if path in (about + "main", about + self.commit):
            self.respond_json({"id": self.hub_id, "sha": self.commit, "siblings": []})
        elif path.startswith(tree) and (self.folder / path.removeprefix(tree).strip("/")).is_dir():
            self.respond_json(
                [
                    self.entry(child)
                    for child in sorted(
                        (self.folder / path.removeprefix(tree).strip("/")).iterdir()
                    )
                ]
            )
        elif path.startswith(files) and (self.folder / path.removeprefix(files)).is_file():
            body = (self.folder / path.removeprefix(files)).read_bytes()
            self.respond(
                body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=self.commit
            )
        elif path.startswith(about):
            self.respond(b"", 404, X_Error_Code="RevisionNotFound")
        else:
            self.respond(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=self.commit)

    do_HEAD = do_GET  # noqa: N815

    def entry(self, path: Path) -> dict[str, Any]:
        shared = {"path": str(path.relative_to(self.folder)), "oid": "0" * 40}
        return shared | (
            {"type": "directory"}
            if path.is_dir()
            else {"type": "file", "size": path.stat().st_size}
        )

    def respond_json(self, value: Any) -> None:
        self.respond(json.dumps(value).encode(), Content_Type="application/json")

    def respond(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the default writes every request to stderr."""


@contextmanager
def local_hub(hub_id: str, commit: str, folder: Path) -> Iterator[str]:
    """Serve `folder` as the data set `hub_id` while in use; yields the endpoint for HF_ENDPOINT."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(HubHandler, hub_id=hub_id, commit=commit, folder=folder)
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
