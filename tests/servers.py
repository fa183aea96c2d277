"""Two servers on loopback: one that hands out files, badly if told to, and a Hugging Face hub.

A test takes them as fixtures: `from servers import files, hub`.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest


class Server(ThreadingHTTPServer):
    def handle_error(self, request, address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, address)  # a client may hang up, a handler must not fail


@contextmanager
def running(handler, **state):
    """A server on a free port; `state` becomes its attributes, and `requests` lists what it was
    asked"""
    with Server(("127.0.0.1", 0), handler) as server:
        vars(server).update(
            state,
            url=f"http://127.0.0.1:{server.server_port}",
            faults={},
            requests=[],
            closing=threading.Event(),
        )
        threading.Thread(
            target=server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True
        ).start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()


class Handler(BaseHTTPRequestHandler):
    "Answers in HTTP/1.0: the end of the connection is the end of the body"

    def log_message(self, *args):
        pass

    def answer(self, status=200, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.send(body)

    def send(self, body):
        self.wfile.write(body)

    def do_GET(self):
        self.path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {self.path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET


class FileHandler(Handler):
    """server.files: {path: bytes}; server.faults: {path: a status, a path to redirect to, or a
    word: silent, stalled, cut, wrong, slow}"""

    def route(self):
        fault = self.server.faults.get(self.path) or (
            200 if self.path in self.server.files else 404
        )
        if fault == "silent":
            self.server.closing.wait()
        elif str(fault).startswith("/"):
            self.answer(302, Location=fault)
        elif isinstance(fault, int) and fault != 200:
            self.answer(fault, b"no")
        else:
            self.answer(body=self.server.files[self.path])

    def send(self, body):
        fault = self.server.faults.get(self.path)
        if fault == "wrong":
            body = body[::-1]
        pieces = [body[len(body) * i // 10 : len(body) * (i + 1) // 10] for i in range(10)]
        for piece in pieces[:5] if fault in ("cut", "stalled") else pieces:
            self.wfile.write(piece)
            if fault == "slow":
                self.server.closing.wait(0.1)
        if fault == "stalled":
            self.server.closing.wait()


@pytest.fixture
def files(monkeypatch):
    "A server of files: set .files and .faults, read .url and .requests"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running(FileHandler, files={}) as server:
        yield server


ERRORS = {
    401: "RepoNotFound",
    403: "GatedRepo",
    404: "RepoNotFound",
}  # what the hub says in X-Error-Code


class HubHandler(Handler):
    """server.repos: {"owner/name" or "datasets/owner/name": {path: bytes}}
    server.faults: {repository, or repository/path: a status}

    Without a token, the hub answers 401 for a name that it does not know.
    403 is a gated repository whose terms were not accepted.
    """

    def route(self):
        kind, *words = (
            self.path.removeprefix("/api")
            .strip("/")
            .replace(".git/info/lfs/objects/", "/lfs/")
            .split("/")
        )
        if kind == "lfs":
            return self.large(*words)
        if (kind, words) == ("validate-yaml", []):
            return self.answer(body=dict(errors=[], warnings=[]))
        if (kind, words) == ("repos", ["create"]):
            return self.create(**json.loads(self.body))
        if kind not in ("models", "datasets"):
            kind, words = "models", [kind, *words]
        what, path, name = (
            words[2] if words[2:] else "info",
            "/".join(words[4:]),
            "/".join(words[:2]),
        )  # words[3] is the revision
        self.repo = name if kind == "models" else f"{kind}/{name}"
        if status := self.server.faults.get(f"{self.repo}/{path}") or self.server.faults.get(
            self.repo
        ):
            return self.refuse(status)
        if self.repo not in self.server.repos:
            return self.refuse(404 if self.headers.get("Authorization") else 401)
        self.files = self.server.repos[self.repo]
        self.sha = hashlib.sha1(
            repr(sorted((p, digest(b)) for p, b in self.files.items())).encode()
        ).hexdigest()
        getattr(self, what)(path)

    def refuse(self, status, code=None):
        code = code or ERRORS.get(status)
        self.answer(
            status,
            dict(error="refused"),
            **({"X_Error_Code": code} if code else {}),
            **({"Retry_After": 0} if status == 429 else {}),
        )

    def create(self, organization, name, type="model", **kwargs):
        repo = f"{organization}/{name}" if type == "model" else f"{type}s/{organization}/{name}"
        status = self.server.faults.get(repo) or (409 if repo in self.server.repos else 200)
        if status == 200:
            self.server.repos[repo] = {}
        self.answer(status, dict(url=f"{self.server.url}/{repo}"))

    def info(self, path):
        self.revision(path)

    def revision(self, path):
        self.answer(
            body=dict(
                id=self.repo.removeprefix("datasets/"),
                sha=self.sha,
                siblings=[dict(rfilename=p) for p in sorted(self.files)],
            )
        )

    def tree(self, path):  # always the whole of it
        self.answer(
            body=[
                dict(type="file", path=p, size=len(b), oid=digest(b))
                for p, b in sorted(self.files.items())
            ]
        )

    def resolve(self, path):
        if path not in self.files:
            return self.refuse(404, "EntryNotFound")
        self.answer(
            body=self.files[path], ETag=f'"{digest(self.files[path])}"', X_Repo_Commit=self.sha
        )

    def preupload(self, path):
        def mode(file):
            return (
                "lfs" if b"\0" in base64.b64decode(file["sample"]) else "regular"
            )  # what is not text goes the way of large files

        self.answer(
            body=dict(
                files=[
                    dict(path=f["path"], uploadMode=mode(f), shouldIgnore=False)
                    for f in json.loads(self.body)["files"]
                ]
            )
        )

    def lfs(self, path):
        def links(oid):
            return {
                action: dict(href=f"{self.server.url}/lfs/{oid}") for action in ("upload", "verify")
            }

        self.answer(
            body=dict(
                transfer="basic",
                objects=[
                    dict(o, actions=links(o["oid"])) for o in json.loads(self.body)["objects"]
                ],
            )
        )

    def large(self, oid):
        if self.command == "PUT":
            self.server.large[oid] = self.body
        right = digest(self.server.large.get(oid, b"")) == oid
        self.answer(200 if right else 422, ETag=oid)

    def commit(self, path):
        for line in map(json.loads, self.body.splitlines()):
            file = line["value"]
            if line["key"] == "file":
                self.files[file["path"]] = base64.b64decode(file["content"])
            if line["key"] == "lfsFile":
                self.files[file["path"]] = self.server.large[file["oid"]]
        self.answer(
            body=dict(
                commitUrl=f"{self.server.url}/{self.repo}/commit/{self.sha}", commitOid=self.sha
            )
        )


def digest(body):
    return hashlib.sha256(body).hexdigest()


def hub_environment(url, home):
    """The environment of a process that takes `url` for the hub: huggingface_hub reads it when it
    is imported"""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
    }
    return dict(
        kept,
        HF_ENDPOINT=url,
        HF_HOME=str(home),
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        NO_PROXY="127.0.0.1",
    )


@pytest.fixture
def hub(tmp_path):
    """A hub: set .repos and .faults, read .url and .requests; .env is for a child process, .python
    runs one"""
    with running(HubHandler, repos={}, large={}) as server:
        server.env = hub_environment(server.url, tmp_path / "hub_home")
        server.python = lambda code, **env: subprocess.run(
            [sys.executable, "-c", code],
            env={**server.env, **env},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
        )
        yield server
