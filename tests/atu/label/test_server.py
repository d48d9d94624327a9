"""The page's server: what it answers, and attacks on it."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from atu.label.session import RANDOM

for package in ("starlette", "uvicorn", "httpx"):
    pytest.importorskip(package, reason="the page's packages are not installed (atu-ext[label,test])")

from starlette.testclient import TestClient  # noqa: E402

from atu.label.guard import MOST_BYTES  # noqa: E402
from atu.label.server import MOST_AT_ONCE, make_app  # noqa: E402

PORT = 41234
HERE = f"http://127.0.0.1:{PORT}"


@pytest.fixture
def guard(studio):
    studio._thread.start()
    return make_app(studio, PORT)


def client(guard, address: str = HERE) -> TestClient:
    return TestClient(guard, base_url=address, raise_server_exceptions=False)


@pytest.fixture
def page(guard) -> TestClient:
    """Let in by the link."""
    found = client(guard)
    assert found.get(f"/?token={guard.token}").status_code == 200
    return found


def post(page, path: str, body: dict, **headers: str):
    return page.post(path, json=body, headers={"origin": HERE, **headers})


def mark(page, at, label="unwanted", **more):
    return post(page, "/api/mark", dict(at=at, label=label, round=1, since=0, **more))


# --- the page's own requests


def test_the_page_and_its_files(page):
    answer = page.get("/")
    assert answer.status_code == 200 and "<title>atu label</title>" in answer.text
    names = [part.split('"')[0] for part in answer.text.split("/static/")[1:]]
    assert {"page.css", "page.js", "icon.svg"} <= set(names)
    for name in [*names, "grid.js", "panel.js", "server.js"]:
        assert page.get(f"/static/{name}").status_code == 200
    assert "http" not in answer.text.replace("http-equiv", "")  # nothing foreign
    # Nothing that the policy would have to let in.
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|style=|javascript:", answer.text)


def test_marks_and_undo(page, studio):
    answer = mark(page, [RANDOM, RANDOM + 1], "good").json()
    assert answer["changes"] == [[RANDOM, ord("g")], [RANDOM + 1, ord("g")]]
    assert answer["counts"] == {"unwanted": 0, "good": 2, "unsure": 0}
    assert post(page, "/api/undo", dict(since=2, round=1)).json()["counts"]["good"] == 0
    assert post(page, "/api/redo", dict(since=4, round=1)).json()["counts"]["good"] == 2
    assert page.get("/api/state").json()["codes"][RANDOM] == "g"


def test_a_thumbnail_is_made_when_asked_for(page):
    answer = page.get(f"/thumb/1/{RANDOM + 290}")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert page.get(f"/thumb/1/{RANDOM + 300}").status_code == 404
    assert page.get("/thumb/2/0").status_code == 404


def test_what_is_judged_is_there_after_a_run_only(page):
    assert page.get("/api/state").json()["judging"] is None
    assert page.get("/blind/1/0").status_code == 404
    answer = mark(page, [-1], "good")
    assert (answer.status_code, answer.json()["error"]) == (400, "there is no result to judge yet")
    assert post(page, "/api/reveal", {}).json() == {"error": "judge some samples first"}


def test_two_pages_at_once(guard, page, studio):
    other = client(guard)
    other.cookies = page.cookies
    errors = []

    def work(one, label, start):
        for index in range(start, start + 40, 2):
            if mark(one, [index], label).status_code != 200:
                errors.append(index)

    threads = [
        threading.Thread(target=work, args=args) for args in ((page, "good", RANDOM), (other, "unwanted", RANDOM + 1))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert page.get("/api/state").json()["codes"][RANDOM : RANDOM + 40] == "gn" * 20
    assert studio.session.stamp == 40


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (dict(at=[-1], label="good", round=1), 400),
        (dict(at=["../x"], label="good", round=1), 400),
        (dict(at=[1], label="../good", round=1), 400),
        (dict(at=[], label="good", round=1), 400),
        (dict(at=[1] * (MOST_AT_ONCE + 1), label="good", round=1), 400),
        (dict(at=[1], label=["good"], round=1), 400),
        (dict(at=[1], label="good", round=2), 409),
        (dict(at=[1], label="good", round=1, since="x"), 400),
        (dict(label="good", round=1), 400),
        ([1, 2], 400),
        ("text", 400),
    ],
)
def test_bad_bodies(page, body, status):
    assert post(page, "/api/mark", body).status_code == status
    assert page.get("/").status_code == 200


def test_a_body_that_is_no_json(page):
    answer = page.post("/api/mark", content=b"{", headers={"origin": HERE})
    assert (answer.status_code, answer.json()) == (400, {"error": "expected a JSON object"})


def test_a_full_disk_is_told(page, studio, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(studio.session.journal, "append", full)
        answer = mark(page, [3])
    assert answer.status_code == 507 and "not saved: [Errno 28] No space" in answer.json()["error"]
    assert studio.session.counts()["unwanted"] == 0


def test_no_run_without_marks_and_no_report_without_a_run(page):
    for path in ("run", "anew"):
        assert "nothing is marked unwanted" in post(page, f"/api/{path}", {}).json()["error"]
    assert "not finished" in post(page, "/api/round", {}).json()["error"]
    assert page.get("/report/1").status_code == 404


def test_a_report_runs_no_script(page, studio):
    folder = studio.runs.folder(1)
    folder.mkdir()
    (folder / "report.html").write_text("<script>alert(1)</script>")
    (folder / "result.safetensors").write_bytes(b"")
    answer = page.get("/report/1")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "sandbox" in policy and "script-src" not in policy


# --- attacks


@pytest.mark.parametrize(
    "path", ["/", "/static/page.js", "/thumb/1/0", "/api/state", "/report/1", "/?token=", "/?token=x"]
)
def test_without_the_link(guard, path):
    answer = client(guard).get(path)
    assert answer.status_code == 403 and "link" in answer.text


def test_the_link_works_once(guard):
    token = guard.token
    first = client(guard).get(f"/?token={token}")
    cookie = first.headers["set-cookie"]
    name, _, attributes = cookie.partition("; ")
    assert {part.lower() for part in attributes.split("; ")} == {"httponly", "samesite=strict", "path=/"}
    assert name.startswith(f"atu_label_{PORT}=") and token not in cookie and len(name.split("=")[1]) >= 43
    assert client(guard).get(f"/?token={token}").status_code == 403
    assert client(guard).get("/?token=None").status_code == 403


def test_the_token_gets_into_no_referer_and_opens_nothing_from_one(guard):
    token = guard.token
    other = client(guard)
    for path in ("/", "/static/page.js", "/api/state"):
        assert other.get(path, headers={"referer": f"{HERE}/?token={token}"}).status_code == 403
    answer = other.get(f"/?token={token}")  # it tells the page no address, and the next page has none in its own
    assert answer.headers["referrer-policy"] == "no-referrer" and token not in answer.text
    assert 'content="0;url=/"' in answer.text
    for path in ("/", "/static/page.js", "/api/state", "/nothing"):
        found = other.get(path)
        assert found.headers["referrer-policy"] == "no-referrer" and token not in found.text


def test_a_wrong_cookie(guard, page):
    other = client(guard)
    other.cookies.set(f"atu_label_{PORT}", "x" * 43)
    assert other.get("/").status_code == 403


FOREIGN = [b'prefs={"a":1}', b"[x]=1", b"user=Jane Doe", b"name=caf\xe9", b"=", b"bare", b'a="; b=']


@pytest.mark.parametrize("foreign", FOREIGN)
def test_cookies_of_other_apps_on_this_machine_keep_nobody_out(guard, foreign):
    own = f"{guard.name}={guard.key}".encode()
    for text in (b"; ".join((foreign, own)), b"; ".join((own, foreign)), own):
        assert client(guard).get("/", headers={"cookie": text}).status_code == 200
    assert client(guard).get("/", headers=[("cookie", foreign), ("cookie", own)]).status_code == 200
    for text in (foreign, own[:-1], b"x" + own, own + b"x"):
        assert client(guard).get("/", headers={"cookie": text}).status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.2:{PORT}"]
)
def test_another_host(guard, page, host):
    assert page.get("/", headers={"host": host}).status_code == 403
    assert client(guard, f"http://{host}").get(f"/?token={guard.token}").status_code == 403


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", f"https://127.0.0.1:{PORT}"]
)
def test_another_origin(page, studio, origin):
    headers = {} if origin is None else {"origin": origin}
    for path in ("mark", "undo", "redo", "run", "anew", "stop", "round", "reveal"):
        body = dict(at=[1], label="good", round=1)
        assert page.post(f"/api/{path}", json=body, headers=headers).status_code == 403
    if origin is not None:
        assert page.get("/api/state", headers=headers).status_code == 403
    assert studio.session.stamp == 0


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/static/..%5cserver.py",
        "/static//etc/passwd",
        "/static/index.html%00",
        "/thumb/1/../../etc/passwd",
        "/thumb/1/-1",
        "/thumb/1/1.0",
        "/thumb/1/99999999999999999999",
        "/thumb/../1",
        "/report/../../marks/journal.jsonl",
        "/report/%2e%2e",
        "/journal.jsonl",
    ],
)
def test_path_traversal(page, path):
    assert page.get(path).status_code in (403, 404)


@pytest.mark.parametrize("path", ["mark", "undo", "redo", "run", "anew", "stop", "round", "reveal"])
def test_a_large_body_is_refused(page, path):
    assert page.post(f"/api/{path}", content=b"0" * (MOST_BYTES + 1), headers={"origin": HERE}).status_code == 413


@pytest.mark.parametrize("length", [str(100 * 2**20), "-1", "1e3", "\xb2", "1, 1"])
def test_lengths_that_are_told(page, length):
    headers = {"origin": HERE, "content-length": length.encode("latin-1")}
    assert page.post("/api/mark", content=b"{}", headers=headers).status_code == 413


def test_a_large_body_of_untold_length_is_refused(page):
    def parts():
        for _ in range(100):
            yield b"0" * 2**20

    answer = page.post("/api/mark", content=parts(), headers={"origin": HERE})
    assert answer.status_code == 413


def test_every_answer_forbids_foreign_sources(guard, page):
    answers = [page.get(path) for path in ("/", "/static/page.js", "/api/state", "/nothing", f"/thumb/1/{RANDOM}")]
    answers += [client(guard).get("/"), page.get("/", headers={"host": "evil.example"})]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        closed = ("default-src", "base-uri", "form-action", "frame-ancestors")
        own = ("script-src", "style-src", "img-src", "connect-src")
        assert rules == {**dict.fromkeys(closed, "'none'"), **dict.fromkeys(own, "'self'")}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_no_other_methods(page):
    assert page.get("/api/mark").status_code == 405
    assert page.put("/api/mark", headers={"origin": HERE}).status_code == 405


# --- a process and a socket of its own


@pytest.fixture
def process(tmp_path):
    """(the process of `atu label`, port, token)."""
    marks = tmp_path / "marks"
    words = ["label", "mnist", "--out", str(marks), "--samples", "64", "--quiet"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.Popen(
        [sys.executable, "-m", "atu.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    link = found.stdout.readline().strip()
    port = int(link.split(":")[2].split("/")[0])
    yield found, port, link.split("=")[1]
    found.kill()
    found.wait()


def ask(port: int, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
        s.sendall(text)
        found = b""
        while part := s.recv(65536):
            found += part
        return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_command_serves_this_machine_only_and_stops_with_the_terminal(process, number, tmp_path):
    found, port, token = process
    host = f"Host: 127.0.0.1:{port}\r\n".encode()
    answer = ask(port, f"GET /?token={token} HTTP/1.1\r\n".encode() + host + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200") and b"httponly" in answer.lower() and b"uvicorn" not in answer
    assert ask(port, b"GET / HTTP/1.1\r\n" + host + host + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 4")
    assert ask(port, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403")  # no Host at all
    large = f"Origin: http://127.0.0.1:{port}\r\nContent-Length: {100 * 2**20}\r\n\r\n".encode()
    answer = ask(port, b"POST /api/mark HTTP/1.1\r\nConnection: close\r\n" + host + large)
    assert answer.startswith(b"HTTP/1.1 413")  # at once: none of the 100 MiB is waited for
    assert b" 4" in ask(port, b"GET ../../etc/passwd HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n")[:14]
    listening = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
    rows = [row.split() for row in listening.splitlines() if f":{port:04X} 00000000:0000 0A" in row]
    assert [row[1] for row in rows] == [f"0100007F:{port:04X}"]
    found.send_signal(number)
    assert found.wait(60) == 0
    assert found.stderr.read() == ""
    assert (tmp_path / "marks" / "labels.json").exists()
