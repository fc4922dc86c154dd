"""The lock, and what is asked of its packages."""

import json
import socket
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import supply_chain
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def direct() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pending = [*project["dependencies"], *(f"diffopt[{name}]" for name in supply_chain.EXTRAS)]
    while pending:
        found = Requirement(pending.pop())
        if found.name == "diffopt":
            pending += [line for extra in found.extras for line in project["optional-dependencies"][extra]]
        elif found.marker is None or found.marker.evaluate():
            yield found


def test_the_lock_has_every_dependency_in_a_version_that_pyproject_takes() -> None:
    locked = supply_chain.locked()
    wrong = {str(r): locked.get(canonicalize_name(r.name)) for r in direct()}
    assert not {r: v for r, v in wrong.items() if v is None or not Requirement(r).specifier.contains(v)}


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip_audit")
    (tmp_path / "constraints.txt").write_text("# two\nsafe==1.0\nunsafe==1.0\n")
    monkeypatch.setattr(supply_chain, "LOCK", tmp_path / "constraints.txt")


@pytest.fixture
def service() -> Iterator[str]:
    """Advisories as OSV gives them."""
    package = {"name": "unsafe", "ecosystem": "PyPI"}
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}]
    known = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "details": "x", "published": "2026-01-01T00:00:00Z"}
    known |= {"affected": [{"package": package, "ranges": ranges, "versions": ["1.0"]}]}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"vulns": [known]} if asked["package"]["name"] == "unsafe" else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()


def test_an_advisory_fails_the_check_until_it_is_accepted(
    lock: None, service: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as caught:
        supply_chain.advisories(service)
    assert caught.value.code
    assert capsys.readouterr().out == "unsafe 1.0: PYSEC-2026-1, mended in 1.1\n"
    monkeypatch.setitem(supply_chain.ACCEPTED, "CVE-2026-1", "it concerns what is not called")
    with pytest.raises(SystemExit) as caught:
        supply_chain.advisories(service)
    assert not caught.value.code
    assert capsys.readouterr().out == "advisories: none for 2 of 2 packages\n"


def test_without_a_service_the_advisories_are_said_not_to_be_asked(lock: None, capsys: pytest.CaptureFixture) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        supply_chain.advisories(f"http://127.0.0.1:{free.getsockname()[1]}/v1/query")
    assert capsys.readouterr().out.startswith("advisories: not run, no service answers (")


@pytest.mark.parametrize(
    ("licence", "binds"),
    [("GPL-3.0-only", True), ("AGPLv3", True), ("GNU General Public License v2 (GPLv2)", True), ("MIT", False)],
)
def test_a_licence_that_binds_is_known(licence: str, binds: bool) -> None:
    assert bool(supply_chain.COPYLEFT.search(licence)) is binds
