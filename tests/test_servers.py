"The servers behave as the real ones do: seen by pooch and by huggingface_hub"

import hashlib
import json
import logging
import os
import time
from pathlib import Path

import pooch
import pytest
import requests
from servers import files, hub  # noqa: F401 (fixtures)

BODY = bytes(range(256)) * 80
FAULTS = {
    404: requests.HTTPError,
    401: requests.HTTPError,
    429: requests.HTTPError,
    500: requests.HTTPError,
    "cut": requests.exceptions.ChunkedEncodingError,
    "wrong": ValueError,
    "stalled": requests.ConnectionError,
    "silent": requests.ReadTimeout,
    "/file": requests.TooManyRedirects,
}


def retrieve(files, folder, timeout=0.5):
    pooch.get_logger().setLevel(logging.WARNING)
    return pooch.retrieve(
        f"{files.url}/file",
        known_hash=hashlib.sha256(BODY).hexdigest(),
        fname="name",
        path=folder,
        downloader=pooch.HTTPDownloader(timeout=timeout),
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_leaves_nothing_and_mends(fault, files, tmp_path):
    files.files, files.faults = {"/file": BODY}, {"/file": fault}
    with pytest.raises(FAULTS[fault]) as failed:
        retrieve(files, tmp_path)
    assert type(failed.value) is FAULTS[fault] and os.listdir(tmp_path) == []
    if isinstance(fault, int):
        assert failed.value.response.status_code == fault
    files.faults.clear()
    assert Path(retrieve(files, tmp_path)).read_bytes() == BODY
    n = len(files.requests)
    retrieve(files, tmp_path)
    assert (
        len(files.requests) == n == (32 if fault == "/file" else 2)
    )  # what lies in the folder is not asked for again


def test_slow_and_moved_files_arrive(files, tmp_path):
    files.files, files.faults = {"/file": BODY}, {"/file": "slow"}
    start = time.monotonic()
    retrieve(files, tmp_path / "slow")  # the timeout is for each read, not for the whole
    assert time.monotonic() - start > 0.8
    files.files, files.faults = {"/moved": BODY}, {"/file": "/moved"}
    retrieve(files, tmp_path / "moved")
    assert files.requests == ["GET /file", "GET /file", "GET /moved"] and os.listdir(
        tmp_path / "moved"
    ) == ["name"]


def test_nobody_listens(files, tmp_path):
    files.closing.set()
    files.shutdown()
    files.server_close()
    with pytest.raises(requests.ConnectionError):
        retrieve(files, tmp_path)
    assert os.listdir(tmp_path) == []


DOWNLOAD = """
import json
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
folder = Path(snapshot_download("owner/tiny", allow_patterns=["*.json", "*.safetensors"]))
files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
texts = {str(p.relative_to(folder)): p.read_text() for p in files}
listed = HfApi().list_repo_files("owner/plays", repo_type="dataset")
one = Path(hf_hub_download("owner/plays", "acts/one.txt", repo_type="dataset")).read_text()
print(json.dumps([texts, listed, one]))
"""


def test_hub_download(hub):
    hub.repos = {
        "owner/tiny": {"config.json": b"{}", "model.safetensors": b"w", "notes.txt": b"n"},
        "datasets/owner/plays": {"acts/one.txt": b"O", "two.txt": b""},
    }
    done = hub.python(DOWNLOAD)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        {"config.json": "{}", "model.safetensors": "w"},
        ["acts/one.txt", "two.txt"],
        "O",
    ]
    asked = len([r for r in hub.requests if r.startswith("GET") and "/resolve/" in r])
    assert asked == 3 and hub.python(DOWNLOAD).stdout == done.stdout
    assert asked == len(
        [r for r in hub.requests if r.startswith("GET") and "/resolve/" in r]
    )  # the second time it is all in the cache
    hub.repos["owner/tiny"]["config.json"] = b"[]"
    assert (
        json.loads(hub.python(DOWNLOAD).stdout)[0]["config.json"] == "[]"
    )  # but a new commit is seen


UPLOAD = """
import os
from pathlib import Path
from huggingface_hub import HfApi, snapshot_download
api, folder, kind = HfApi(token="hf_any"), Path(os.environ["FOLDER"]), os.environ["KIND"]
for _ in range(2): api.create_repo("owner/new", repo_type=kind, exist_ok=True)
api.upload_folder(repo_id="owner/new", folder_path=folder, repo_type=kind)
got = Path(snapshot_download("owner/new", repo_type=kind))
for p in folder.rglob("*"):
    assert p.is_dir() or (got / p.relative_to(folder)).read_bytes() == p.read_bytes(), p
"""


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_hub_upload(kind, hub, tmp_path):
    sent = {
        "README.md": b"---\nlicense: cc0-1.0\n---\n# A card\n",
        "config.json": b"{}",
        "empty.txt": b"",
        "deep/model.safetensors": bytes(100_000),
        "b.bin": b"\0\1",
    }
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    for path, body in sent.items():
        (tmp_path / "folder" / path).write_bytes(body)
    done = hub.python(UPLOAD, FOLDER=str(tmp_path / "folder"), KIND=kind)
    assert done.returncode == 0, done.stderr
    assert hub.repos == {"owner/new" if kind == "model" else "datasets/owner/new": sent}
    assert sorted(hub.large.values()) == [
        sent["deep/model.safetensors"],
        sent["b.bin"],
    ]  # these went as large files, the others in the commit


def test_hub_refuses_an_upload(hub, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_bytes(b"{}")
    hub.faults = {"owner/new": 403}
    done = hub.python(UPLOAD, FOLDER=str(tmp_path / "folder"), KIND="model")
    assert done.returncode == 1 and "403 Forbidden" in done.stderr and hub.repos == {}


REFUSED = """
import json, os
from huggingface_hub import snapshot_download
def seen(repo):
    try: snapshot_download(repo, repo_type=os.environ["KIND"])
    except Exception as e:
        first = type(e).__name__
        while getattr(e, "response", None) is None: e = e.__cause__
        return first, e.response.status_code
repos = [f"owner/{name}" for name in ("a", "b", "c", "d", "e", "unknown")]
print(json.dumps({repo: seen(repo) for repo in repos}))
"""


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_hub_refuses(kind, hub):
    hub.faults = {
        ("datasets/" if kind == "dataset" else "") + f"owner/{letter}": status
        for letter, status in zip("abcde", (401, 403, 404, 429, 500))
    }
    done = hub.python(REFUSED, KIND=kind)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "owner/a": ["RepositoryNotFoundError", 401],
        "owner/b": ["GatedRepoError", 403],
        "owner/c": ["RepositoryNotFoundError", 404],
        "owner/d": ["LocalEntryNotFoundError", 429],
        "owner/e": ["LocalEntryNotFoundError", 500],
        "owner/unknown": ["RepositoryNotFoundError", 401],
    }
    assert (
        len([r for r in hub.requests if "/owner/" in r]) == 6
    )  # each was asked once: a refused listing is not tried again
    assert json.loads(hub.python(REFUSED, KIND=kind, HF_TOKEN="hf_any").stdout)[
        "owner/unknown"
    ] == ["RepositoryNotFoundError", 404]
