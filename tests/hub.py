"""A small Hugging Face Hub on 127.0.0.1: just what huggingface_hub asks for to download a snapshot."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class FakeHub(ThreadingHTTPServer):
    """Repositories by name, each revision (also by its commit) with its files; remembers what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, Files]] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def downloaded(self) -> set[str]:
        """Names of the files whose contents or headers were asked for."""
        return {path.split("/resolve/")[1].split("/", 1)[1] for path in self.requests if "/resolve/" in path}

    def add(self, repo: str, revision: str, folder: Path) -> str:
        """Publish the files of `folder`; returns the commit."""
        files = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
        commit = hashlib.sha1(repr(files).encode()).hexdigest()
        self.repos.setdefault(repo, {}).update({revision: files, commit: files})
        return commit

    def commit(self, repo: str, revision: str) -> str:
        files = self.repos[repo][revision]
        return next(name for name, other in self.repos[repo].items() if other is files and len(name) == 40)


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append(path)
        words = path.removeprefix("api/models/").split("/")
        repo, rest = "/".join(words[:2]), words[2:]
        if repo in self.server.gated:
            return self._answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if repo not in self.server.repos:
            return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if len(rest) < 2 or rest[1] not in self.server.repos[repo]:
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files, commit = self.server.repos[repo][rest[1]], self.server.commit(repo, rest[1])
        if rest[0] == "resolve":
            return self._file(files, "/".join(rest[2:]), commit)
        if rest[0] == "tree":
            tree = [{"type": "file", "path": n, "size": len(d), "oid": _etag(d)} for n, d in files.items()]
            return self._json(tree)
        siblings = [{"rfilename": name} for name in files]
        return self._json({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": []})

    def _file(self, files: Files, name: str, commit: str) -> None:
        if name not in files:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{_etag(files[name])}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        self._answer(200, files[name], headers)

    def _json(self, data: object) -> None:
        self._answer(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
