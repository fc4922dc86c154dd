"""A server on 127.0.0.1 that speaks the hub's protocol, as far as huggingface_hub uses it: naming a branch's commit, listing
and giving files, also from the middle of one, and taking an upload. Xet is not spoken: files come over plain HTTP."""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_a_test"
LARGE = 1 << 16
"""Bytes from which a file is stored as LFS stores it, and known by its sha256."""
RESOLVE = re.compile(r"/(?P<data>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+))?")


@dataclass
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    """Of the body, before the connection is closed; None sends all."""
    reset: bool = False
    """Close it by a reset."""


@dataclass
class Hub:
    """What it was asked, and what it has."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    address: str = ""
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by commit."""
    branches: dict[str, str] = field(default_factory=dict)
    """Commits by `ORG/NAME@BRANCH`, of data sets by `datasets/ORG/NAME@BRANCH`."""
    gated: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)
    """Files that are listed, and not given."""
    cuts: list[tuple[str, bool]] = field(default_factory=list)
    """Files that are given by half in the next answer, and whether the connection is reset then."""
    made: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Uploaded."""
    refuses: int = 0
    """With this status, where it is not 0."""
    unread: bool = False
    """The front matter of cards."""
    public: bool = False
    """The repository was there before."""

    def put(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit on a branch."""
        told = json.dumps({k: hashlib.sha1(v).hexdigest() for k, v in files.items()}, sort_keys=True)
        commit = hashlib.sha1(f"{repo} {told}".encode()).hexdigest()
        self.trees[commit] = files
        self.branches[f"{repo}@{branch}"] = commit
        return commit

    def gets(self, file: str) -> int:
        """How often a file was given, or a part of it."""
        return sum(method == "GET" and path.endswith(f"/{file}") for method, path in self.asked)

    def answer(self, method: str, path: str, body: bytes, headers: Any) -> Answer:
        path = unquote(path.partition("?")[0])
        self.asked.append((method, path))
        if self.refuses:
            return told({"error": "Not for you"}, self.refuses)
        if path.startswith(("/api/repos/", "/api/validate-yaml", "/api/models/me/tiny")):
            return told(*self._upload(path, body))
        token = headers.get("Authorization", "")
        if token not in ("", f"Bearer {TOKEN}"):
            return told({"error": "Invalid credentials in Authorization header"}, 401)
        if found := RESOLVE.fullmatch(path):
            return self._file(method, f"{found['data'] or ''}{found['repo']}", found["revision"], found["file"], headers)
        if found := API.match(path):
            repo = ("datasets/" if found["kind"] == "datasets" else "") + found["repo"]
            return self._about(repo, found["revision"] or "main", found["what"] == "tree")
        return told({"error": f"no such page {path}"}, 404)

    def _tree(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | Answer:
        if not any(name.startswith(f"{repo}@") for name in self.branches):
            return told({"error": "Repository not found"}, 404, "RepoNotFound")
        commit = self.branches.get(f"{repo}@{revision}", revision)
        if commit not in self.trees:
            return told({"error": f"Invalid rev id: {revision}"}, 404, "RevisionNotFound")
        return commit, self.trees[commit]

    def _about(self, repo: str, revision: str, tree: bool) -> Answer:
        found = self._tree(repo, revision)
        if isinstance(found, Answer):
            return found
        commit, files = found
        if not tree:
            names = [{"rfilename": name} for name in files]
            return told({"id": repo.removeprefix("datasets/"), "sha": commit, "siblings": names, "private": False})
        return told([_row(name, content) for name, content in files.items()])

    def _file(self, method: str, repo: str, revision: str, name: str, headers: Any) -> Answer:
        found = self._tree(repo, revision)
        if isinstance(found, Answer):
            return found
        commit, files = found
        if repo in self.gated:
            return told(
                {"error": f"Access to model {repo} is restricted"}, 403 if headers.get("Authorization") else 401, "GatedRepo"
            )
        if name not in files or name in self.hidden:
            return told({"error": "Entry not found"}, 404, "EntryNotFound")
        content = files[name]
        about = {"X-Repo-Commit": commit, "ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
        cut = next((c for c in self.cuts if c[0] == name), None) if method == "GET" else None
        if cut:
            self.cuts.remove(cut)
        start = 0
        if given := headers.get("Range"):
            self.ranges.append(given)
            start = int(given.removeprefix("bytes=").partition("-")[0])
            about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        sent = (len(content) - start) // 2 if cut else None
        return Answer(206 if given else 200, content[start:], about, sent, bool(cut and cut[1]))

    def _upload(self, path: str, body: bytes) -> tuple[Any, int]:
        if path == "/api/repos/create":
            self.made = json.loads(body)
            return {"url": f"{constants.ENDPOINT}/me/tiny"}, 200
        if path.startswith("/api/models/me/tiny/preupload/"):
            names = [row["path"] for row in json.loads(body)["files"]]
            return {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}, 200
        if path.startswith("/api/models/me/tiny/commit/"):
            rows = [json.loads(line) for line in body.splitlines() if line]
            self.files = {r["value"]["path"]: base64.b64decode(r["value"]["content"]) for r in rows if r["key"] == "file"}
            return {"success": True, "commitOid": COMMIT, "commitUrl": f"{constants.ENDPOINT}/me/tiny/commit/{COMMIT}"}, 200
        if path == "/api/validate-yaml":
            errors = [{"message": "no licence of that name"}] * self.unread
            return {"errors": errors, "warnings": []}, 400 if self.unread else 200
        private = self.made.get("visibility") == "private" and not self.public
        return {"id": "me/tiny", "sha": COMMIT, "siblings": [], "private": private}, 200


def told(content: Any, status: int = 200, code: str = "") -> Answer:
    headers = {"Content-Type": "application/json"} | ({"X-Error-Code": code} if code else {})
    if code and isinstance(content, dict):
        headers["X-Error-Message"] = content["error"]
    return Answer(status, json.dumps(content).encode(), headers)


def _etag(content: bytes) -> str:
    blob = f"blob {len(content)}\0".encode() + content
    return hashlib.sha256(content).hexdigest() if len(content) >= LARGE else hashlib.sha1(blob).hexdigest()


def _row(name: str, content: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if len(content) >= LARGE:
        row["lfs"] = {"oid": _etag(content), "size": len(content), "pointerSize": 130}
    else:
        row["oid"] = _etag(content)
    return row


@contextmanager
def serving() -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            answer = found.answer(self.command, self.path, self.rfile.read(length), self.headers)
            self.send_response(answer.status)
            for name, value in (answer.headers | {"Content-Length": str(len(answer.body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(answer.body[: answer.sent])
            if answer.sent is not None:
                if answer.reset:
                    self.wfile.flush()
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                self.close_connection = True

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    found.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Hub]:
    """The hub of this process, with a cache of its own and a token."""
    with serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found
