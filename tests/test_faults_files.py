"""Other people's files, two processes at once, and every kind of terminal: nothing is lost, mixed
or replaced"""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from conftest import TINY, tree

from shakespeare_neox.engine import base
from shakespeare_neox.engine.base import NeoxError

pytestmark = pytest.mark.usefixtures("here")
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")
root = pytest.mark.skipif(
    os.name == "nt" or os.getuid() != 0, reason="needs root, to become nobody"
)
START = "import sys; sys.argv[0] = '{}'; from shakespeare_neox.engine.base import start; start()"


def words(name, *rest):
    "The words that start a command as its console script does"
    return [sys.executable, "-c", START.format(name), *map(str, rest)]


def call(name, *rest, **settings):
    "Runs a command in a process of its own"
    settings = dict(capture_output=True, timeout=120) | settings
    return subprocess.run(words(name, *rest), **settings)


def fill(folder, name="weights.bin", content="first", **settings):
    "Makes a folder as the library does"
    with base.new_folder(folder, "model", **settings) as new:
        (new / name).write_text(content)


# folders


def a_file(path):
    path.write_text("a diary")


def a_full_folder(path):
    path.mkdir()
    (path / "thesis.doc").write_text("years of work")


def a_hidden_file(path):
    path.mkdir()
    (path / ".env").write_text("a secret")


def a_nested_file(path):
    (path / "chapters" / "one").mkdir(parents=True)
    (path / "chapters" / "one" / "draft.txt").write_text("once")


def somebodys_model(path):
    path.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "train.json"):
        (path / name).write_text("{}")


def a_link(path):
    path.with_name("elsewhere").mkdir()
    (path.with_name("elsewhere") / "photo.png").write_text("a photo")
    path.symlink_to(path.with_name("elsewhere"), target_is_directory=True)


def a_dangling_link(path):
    path.symlink_to(path.with_name("nowhere"))


def another_kind(path):
    with base.new_folder(path, "tokenizer") as new:
        (new / "weights.bin").write_text("a tokenizer's")


def a_changed_file(path):
    fill(path)
    (path / "weights.bin").write_text("edited by hand")


def a_file_edited_to_the_same_size(path):
    fill(path)
    (path / "weights.bin").write_text("FIRST")


def a_large_file_of_another_model(path):
    with base.new_folder(path, "model") as new:
        (new / "weights.bin").write_bytes(bytes(base.WHOLE_SUM + 1))
    with open(path / "weights.bin", "r+b") as file:
        file.seek(base.WHOLE_SUM // 2)
        file.write(b"other" * 500_000)  # the same size, another content


def an_own_file_of_the_same_name(path):
    with base.new_folder(path, "model") as new:
        (new / "older.bin").write_text("first")
    (path / "weights.bin").write_text("a person's")


OBSTACLES = [
    a_file,
    a_full_folder,
    a_hidden_file,
    a_nested_file,
    somebodys_model,
    a_link,
    a_dangling_link,
    another_kind,
    a_changed_file,
    a_file_edited_to_the_same_size,
    a_large_file_of_another_model,
    an_own_file_of_the_same_name,
]


@posix
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_is_not_ours_is_not_replaced(here, obstacle, replace):
    obstacle(here / "out")
    before = tree(here)
    with pytest.raises(NeoxError, match="out: .*not replaced"):
        fill(here / "out", content="second", replace=replace)
    assert tree(here) == before


@posix
def test_a_folder_is_replaced_where_it_is_ours_and_asked_for(here):
    fill(here / "out")
    with pytest.raises(NeoxError, match="--replace"):
        fill(here / "out", content="second")
    assert (here / "out" / "weights.bin").read_text() == "first"
    (here / "out" / "notes").mkdir()
    (here / "out" / "notes" / "mine.md").write_text("keep me")
    fill(here / "out", name="other.bin", content="second", replace=True)
    names = {
        p.relative_to(here / "out").as_posix() for p in (here / "out").rglob("*") if p.is_file()
    }
    assert names == {
        base.MARK,
        "other.bin",
        "notes/mine.md",
    }  # the older weights went, the notes stayed
    assert (here / "out" / "notes" / "mine.md").read_text() == "keep me"
    assert os.listdir(here) == ["out"]


@pytest.mark.parametrize("copy", [shutil.copy, shutil.copy2], ids=["cp -r", "rsync -a"])
def test_a_copy_of_a_folder_is_as_it_was_written(here, copy):
    fill(here / "first")
    shutil.copytree(here / "first", here / "out", copy_function=copy)
    fill(here / "out", content="second", replace=True)
    assert (here / "out" / "weights.bin").read_text() == "second"


def test_a_folder_of_an_earlier_version_has_no_sums(here):
    fill(here / "out")
    mark = json.loads((here / "out" / base.MARK).read_text())
    del mark["sums"]
    (here / "out" / base.MARK).write_text(json.dumps(mark))
    fill(here / "out", content="second", replace=True)
    assert (here / "out" / "weights.bin").read_text() == "second"


def test_what_appears_while_the_folder_is_made_is_kept(here):
    with pytest.raises(NeoxError, match="not replaced"):
        with base.new_folder(here / "out", "model") as new:
            (new / "weights.bin").write_text("ours")
            a_full_folder(here / "out")
    assert os.listdir(here) == ["out"] and os.listdir(here / "out") == ["thesis.doc"]


@pytest.mark.parametrize("name", [".", "..", "sub/.."])
def test_the_folder_that_one_is_in_is_not_replaced(here, name):
    (here / "work" / "sub").mkdir(parents=True)
    os.chdir(here / "work")
    with pytest.raises(NeoxError, match="the folder that you are in|not replaced"):
        fill(Path(name), replace=True)
    assert sorted(p.name for p in here.rglob("*")) == ["sub", "work"]


@posix
@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_gives(here, mask, mode):
    former = os.umask(mask)
    try:
        with base.new_folder(here / "out", "model") as new:
            (new / "weights.bin").touch(mode=0o600)  # as the library that writes weights does it
        base.write_whole(here / "log", "a line")
        with base.new_file(here / "book.txt") as file:
            file.write(b"text")
    finally:
        os.umask(former)
    for path in (here / "out" / "weights.bin", here / "log", here / "book.txt"):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_stale_temporaries_go_and_others_stay(here):
    stale = [here / ".out.1-0123abcd.neox-tmp", here / ".log.1-0123abcd.neox-tmp"]
    kept = [
        here / ".out.tmp",
        here / ".out.old",
        here / ".out.1-0123abcd.neox-tmp.bak",
        here / ".other.1-0123abcd.neox-tmp",
    ]
    stale[0].mkdir()
    for path in (stale[1], *kept):
        path.write_text("x")
    for path in (*stale, *kept):
        os.utime(path, (0, 0))
    fresh = here / ".out.2-0123abcd.neox-tmp"  # another process is writing there
    fresh.mkdir()
    fill(here / "out")
    base.write_whole(here / "log", "a line")
    assert sorted(os.listdir(here)) == sorted(["out", "log", fresh.name, *(p.name for p in kept)])


def test_a_temporary_that_is_written_to_stays(here):
    "However old it is: the folder's own time stands still while a file in it grows"
    hours_ago = time.time() - 2 * base.STALE
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    writer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    alive, growing, left = (
        here / f".out.{pid}-0123abcd.neox-tmp" for pid in (writer.pid, dead.pid, f"0{dead.pid}")
    )
    try:
        for folder in (alive, growing, left):
            (folder / "inner").mkdir(parents=True)
            (folder / "inner" / "train.bin").write_text("x")
            for path in (folder / "inner" / "train.bin", folder / "inner", folder):
                os.utime(path, (hours_ago, hours_ago))
        (growing / "inner" / "train.bin").write_text("xx")  # as a process on another machine does
        os.utime(growing / "inner", (hours_ago, hours_ago))
        fill(here / "out")
    finally:
        writer.kill()
        writer.wait()
    assert sorted(os.listdir(here)) == sorted([alive.name, growing.name, "out"])


# files that a person names


def test_a_named_file_never_replaces_another(here):
    (here / "precious.txt").write_text("a life's work")
    with pytest.raises(
        NeoxError, match="precious.txt: is already there, and is not replaced; name a new file$"
    ):
        with base.new_file(
            here / "precious.txt"
        ):  # perhaps it is the input: nobody is told to remove it
            pytest.fail("nothing is to be written")
    with pytest.raises(NeoxError, match="is already there"):
        with base.new_file(here / "late.txt") as file:
            file.write(b"ours")
            (here / "late.txt").write_text("theirs")  # somebody else was faster
    assert (here / "late.txt").read_text() == "theirs"
    with pytest.raises(ValueError):
        with base.new_file(here / "deep" / "er" / "half.txt") as file:
            file.write(b"half")
            raise ValueError
    assert sorted(os.listdir(here)) == ["late.txt", "precious.txt"]


def test_many_write_one_file_at_once(here):
    contents = [str(n) * 50_000 for n in range(8)]
    writers = [
        threading.Thread(target=lambda c=c: [base.write_whole(here / "log", c) for _ in range(20)])
        for c in contents
    ]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if (here / "log").exists():
            seen.add((here / "log").read_text())
    assert seen <= set(contents) and os.listdir(here) == ["log"]


# a reader beside a writer


def test_a_reader_finds_the_old_or_the_new_folder(here):
    def write(n):
        with base.new_folder(here / "best", "model", replace=True) as new:
            for name in ("config", "weights"):
                (new / name).write_text(str(n))

    write(0)
    seen, stop, reader_errors = [], threading.Event(), []

    def read(folder):
        config = (folder / "config").read_text()
        time.sleep(0.001)
        return config, (folder / "weights").read_text()

    def read_on():
        while not stop.is_set():
            try:
                seen.append(base.read_folder(here / "best", read))
            except Exception as error:
                reader_errors.append(error)

    reader = threading.Thread(target=read_on)
    reader.start()
    for n in range(1, 60):
        write(n)
        time.sleep(0.004)
    stop.set()
    reader.join()
    assert not reader_errors and len(seen) > 5
    assert all(config == weights for config, weights in seen)  # never a mixture
    assert os.listdir(here) == ["best"]


def test_readers_change_nothing_after_a_kill(here):
    fill(here / "best")
    (here / "best").rename(base.set_aside(here / "best"))  # a kill between the two renames
    before = tree(here)
    assert (
        base.read_folder(here / "best", lambda folder: (folder / "weights.bin").read_text())
        == "first"
    )
    assert tree(here) == before
    fill(here / "best", content="second", replace=True)
    assert (here / "best" / "weights.bin").read_text() == "second" and os.listdir(here) == ["best"]


# locks

HOLD = (
    "import sys, time; from shakespeare_neox.engine.base import locked\nwith locked('lock', 'the "
    "run', True): print('held', flush=True); time.sleep(60)"
)


def holder():
    "A process that holds the lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_names_its_owner_and_dies_with_it(here):
    process = holder()
    try:
        with pytest.raises(
            NeoxError, match=f"the run is in use by process {process.pid} on {socket.gethostname()}"
        ):
            with base.locked(here / "lock", "the run", wait=False):
                pytest.fail("two owners")
    finally:
        process.kill()
        process.wait()
    with base.locked(here / "lock", "the run", wait=False):
        assert str(os.getpid()) in base.owner_of(here / "lock")
    assert base.owner_of(here / "lock") == "another process"


def test_who_waits_gets_the_lock(here, capsys):
    process = holder()
    threading.Timer(0.5, process.kill).start()
    with base.locked(here / "lock", "the run", wait=True):
        assert process.wait(10) is not None
    assert f"the run: waiting for process {process.pid}" in capsys.readouterr().err


# JSON that was damaged, edited, or somebody's joke


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[1]", "valid dictionary|should be an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"b": {"a": 1, "a": 1}}', "'a' is given twice"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_damaged_json_file_gives_one_line(here, content, problem):
    (here / "facts.json").write_bytes(content)
    with pytest.raises(NeoxError, match=problem) as raised:
        base.read_json(here / "facts.json", advice="train it again")
    assert (
        "facts.json" in str(raised.value)
        and "train it again" in str(raised.value)
        and "\n" not in str(raised.value)
    )


@posix
def test_a_pipe_is_no_json_file(here):
    os.mkfifo(here / "facts.json")
    with pytest.raises(NeoxError, match="is not a file"):
        base.read_json(here / "facts.json")


@pytest.mark.parametrize("value", [True, "1", 1.5, None, float("nan"), float("inf"), [1], 10**30])
def test_a_value_of_another_type_is_refused(value):
    with pytest.raises(NeoxError, match="facts.json: 0"):
        base.validate(
            list[int], [value] if value != 10**30 else [str(value)], "facts.json", "copy it again"
        )


def test_no_date_and_no_set_is_taken_for_json():
    import datetime

    for value in ({1}, datetime.date(2026, 1, 1), b"x"):
        with pytest.raises(NeoxError, match="facts.json"):
            base.validate(dict, {"a": value}, "facts.json", "copy it again")


# terminals


@posix
@pytest.mark.parametrize("closed", [0, 1, 2, (0, 1, 2)])
def test_a_closed_stream_is_borne(here, closed):
    numbers = closed if isinstance(closed, tuple) else (closed,)
    (here / "book.txt").write_text("It was a dark and stormy night. " * 200)
    done = call("neox_tokenizer", "book.txt", preexec_fn=lambda: [os.close(n) for n in numbers])
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stdout + done.stderr
    if 1 not in numbers:
        assert done.stdout == b"tokenizers/book-char\n"  # messages did not move to standard output
    assert (
        json.loads((here / "tokenizers" / "book-char" / "tokenizer.json").read_text())["model"][
            "type"
        ]
        == "BPE"
    )


@posix
def test_a_full_standard_error_is_borne(here):
    (here / "book.txt").write_text("It was a dark and stormy night. " * 200)
    with open("/dev/full", "w") as full:
        done = call(
            "neox_tokenizer", "book.txt", capture_output=False, stdout=subprocess.PIPE, stderr=full
        )
    assert done.returncode == 0 and done.stdout == b"tokenizers/book-char\n"


@posix
def test_a_full_standard_output_is_one_line(here):
    (here / "book.txt").write_text("It was a dark and stormy night. " * 200)
    with open("/dev/full", "w") as full:
        done = call(
            "neox_tokenizer", "book.txt", capture_output=False, stdout=full, stderr=subprocess.PIPE
        )
    assert (
        done.returncode == 2 and b"No space left" in done.stderr and b"Traceback" not in done.stderr
    )


@posix
def test_a_reader_that_goes_away_is_no_error(here):
    process = subprocess.Popen(
        words("neox_train", "--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(60)
    assert b"Traceback" not in err and b"Exception ignored" not in err, err


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_console_that_lacks_letters(here, encoding):
    (here / "Märchen ☃.txt").write_text("Es war einmal ein Mädchen. " * 200, encoding="utf-8")
    env = os.environ | dict(PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    done = call("neox_tokenizer", "Märchen ☃.txt", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).startswith("tokenizers")
    missing = call("neox_tokenizer", "kein Märchen ☃.txt", env=env)
    assert (
        missing.returncode == 2
        and b"Traceback" not in missing.stderr
        and missing.stderr.count(b"\n") == 1
    )
    assert b"kein M" in missing.stderr


HOMELESS = """import os, sys
from shakespeare_neox.engine.base import cache_folder, settle_folders
os.setuid(54321)
settle_folders()
settle_folders()
cache_folder().mkdir(parents=True, exist_ok=True)
print(cache_folder())
os.removedirs(cache_folder())"""


def homeless(**variables):
    "What a user without a place of their own is told, on standard error and standard output"
    hidden = ("HOME", "NEOX_CACHE", "NEOX_DATA", "TMPDIR", "XDG_CACHE_HOME")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS], env=env | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr, done.stdout.strip()


@root
def test_a_container_without_a_home(here):
    told, cache = homeless()
    assert cache.endswith("/shakespeare_neox-54321/.cache/shakespeare_neox")
    assert "no home folder" in told and told.count("\n") == 1 and not (here / "~").exists()


@root
@pytest.mark.parametrize(
    "home", ["", "/", "rel", ".", "/root", "/nowhere/at/all", "/dev/null", "/dev/null/x"]
)
def test_a_home_that_cannot_be_written(here, home):
    here.chmod(0o777)
    told, cache = homeless(HOME=home)
    assert cache.endswith("/shakespeare_neox-54321/.cache/shakespeare_neox")
    assert (
        told.startswith(f"HOME={home} is no folder to write in: ")
        and told.count("\n") == 1
        and "NEOX_CACHE" in told
    )
    assert os.listdir(here) == []


@posix
@pytest.mark.parametrize("home", ["", "/", "rel", "/dev/null/x"])
def test_a_command_without_a_home_to_write_in(here, home):
    "No library below writes into the root or the current folder"
    (here / "book.txt").write_text("It was a dark and stormy night.\n" * 200)
    (here / "tmp").mkdir()
    before = set(os.listdir("/"))
    hidden = ("NEOX_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR", "HF_HOME")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= dict(HOME=home, TMPDIR=str(here / "tmp"))
    done = call(
        "neox_train",
        "quickstart",
        *TINY,
        "data_path=book.txt",
        "--checkpoint_dir",
        "run",
        env=env,
        text=True,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count(f"HOME={home} is no folder to write in") == 1
    assert sorted(os.listdir(here)) == ["book.txt", "run", "tmp"] and set(os.listdir("/")) == before


@posix
def test_logins_stay_where_the_home_is_closed(here, monkeypatch):
    closed = here / "home"
    (closed / ".cache" / "huggingface").mkdir(parents=True)
    (closed / ".netrc").write_text("machine api.wandb.ai login user password x")
    (closed / ".cache" / "huggingface" / "token").write_text("hf_x")
    for name in ("NETRC", "HF_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(closed))
    monkeypatch.setattr(base, "is_home", lambda folder: folder != closed)
    base.settle_folders()
    assert os.environ["NETRC"] == str(closed / ".netrc") and os.environ["HOME"] != str(closed)
    assert os.environ["HF_TOKEN_PATH"] == str(closed / ".cache" / "huggingface" / "token")


@posix
@pytest.mark.parametrize("cache", ["/dev/null", "/dev/null/x", "file", "file/below", "dangling"])
def test_a_cache_that_cannot_be_made(here, cache):
    (here / "file").write_text("mine")
    (here / "dangling").symlink_to(here / "nowhere")
    (here / "book.txt").write_text("It was a dark and stormy night.\n" * 200)
    done = call(
        "neox_train",
        "quickstart",
        *TINY,
        "data_path=book.txt",
        "--checkpoint_dir",
        "run",
        text=True,
        env=os.environ | dict(NEOX_CACHE=cache),
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("neox_train")]
    assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert (
        f"NEOX_CACHE={cache}: " in lines[0]
        and (here / "file").read_text() == "mine"
        and not (here / "run").exists()
    )


@root
@pytest.mark.parametrize("made", [False, True], ids=["empty", "with its folders"])
def test_a_cache_that_may_only_be_read(made):
    with tempfile.TemporaryDirectory() as place:  # one that another user reaches
        os.chmod(place, 0o755)
        cache, jobs = Path(place) / "cache", Path(place) / "jobs.py"
        cache.mkdir()
        if made:
            (cache / "tokens").mkdir()
        jobs.write_text("""import os, filelock
from shakespeare_neox.engine.base import cache_folder, command, locked, new_folder
os.setuid(54321)
def lock(): locked(cache_folder()/"lock", "x", wait=True).__enter__()
def folder(): new_folder(cache_folder()/"tokens"/"x", "token files").__enter__()
def make(): (cache_folder()/"joined").mkdir()
for job in (lock, folder, make):
    try: command(job)([])
    except SystemExit as stopped: print(stopped.code)""")
        env = os.environ | dict(NEOX_CACHE=str(cache), HOME=place)
        done = subprocess.run([sys.executable, str(jobs)], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["2"] * 3 and "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("HOME=")]
    assert len(lines) == 3 and all(
        "NEOX_CACHE" in line and "Permission denied" in line for line in lines
    ), lines


@pytest.mark.parametrize(
    "variable, value",
    [
        ("ACCELERATE_USE_CPU", "maybe"),
        ("ACCELERATE_USE_CPU", "2"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "few"),
        ("ACCELERATE_USE_FSDP", "perhaps"),
        ("ACCELERATE_TORCH_DEVICE", "toaster"),
        ("TORCH_LOGS", "garbage"),
    ],
)
def test_a_variable_of_another_library(here, variable, value):
    (here / "book.txt").write_text("It was a dark and stormy night.\n" * 200)
    done = call(
        "neox_train",
        "quickstart",
        *TINY,
        "data_path=book.txt",
        "--checkpoint_dir",
        "run",
        text=True,
        env=os.environ | {variable: value},
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("neox_train")]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert (
        len(lines) == 1
        and f"{variable}={value}: is not understood" in lines[0]
        and len(lines[0]) < 250
    )


@pytest.mark.parametrize(
    "name, rest",
    [
        ("tokenizer", ["book.txt", "--out", "a\0b"]),
        ("tokenizer", ["a\0b"]),
        ("prepare", ["book.txt", "--out", "a\0b"]),
        ("prepare", ["book.txt", "--plain", "a\0b.txt"]),
        ("train", ["quickstart", "--checkpoint_dir", "a\0b"]),
        ("report", ["a\0b"]),
        ("generate", ["a\0b"]),
        ("tune", ["quickstart", "seed=1,2", "--checkpoint_dir", "a\0b"]),
    ],
)
def test_a_zero_byte_in_a_name(here, name, rest, capsys):
    import importlib

    (here / "book.txt").write_text("It was a dark and stormy night.\n" * 200)
    module = importlib.import_module(f"shakespeare_neox.{base.COMMANDS[f'neox_{name}']}")
    main = getattr(module, f"neox_{name}_main")
    with pytest.raises(SystemExit) as stopped:
        main(rest)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("neox_")]
    assert stopped.value.code == 2 and len(lines) == 1, lines
    assert os.listdir(here) == ["book.txt"]


def test_an_error_that_nobody_foresaw_keeps_its_traceback(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match="true"):
        base.command(lambda: float("that is true"))([])


@posix
def test_the_current_folder_is_gone(here):
    gone = here / "gone"
    gone.mkdir()
    script = f"import os, sys; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); " + START.format(
        "neox_train"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "quickstart"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        2,
        "neox_train: the current folder was removed; cd to one that exists\n",
    )


def heeding_ctrl_c():
    "A shell lets its background jobs, of which this test may be one, ignore Ctrl-C"
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@posix
@pytest.mark.parametrize("after", [0.05, 0.3, 0.8, 1.4])
def test_ctrl_c_in_the_first_seconds(here, after):
    code = START.format("neox_train").replace("; start()", "; print('up', flush=True); start()")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "quickstart"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_ctrl_c,
    )
    assert process.stdout.readline() == "up\n"  # until then, Python itself is starting
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "neox_train: interrupted" in err or "stopped at step" in err


@pytest.mark.parametrize("rank", ["", "banana", "-1", "0", " 0 ", "0.0"])
def test_a_rank_that_is_no_number_does_not_silence(monkeypatch, capsys, rank):
    monkeypatch.setenv("RANK", rank)
    base.say("heard")
    assert capsys.readouterr().err == "heard\n"


# whole commands

TEXT = "It was a dark and stormy night; the rain fell in torrents. " * 200


def a_trained_model(path, trained):
    "A model folder that somebody trained, as it is copied about: without this library's mark"
    import shutil

    shutil.copytree(trained / "best", path)
    (path / base.MARK).unlink(missing_ok=True)


def own_notes(path, trained):
    "A person's own folder, in which files happen to have the names of this library's"
    path.mkdir()
    for name in ("train.json", "tokenizer.json", "config.json", "notes.md"):
        (path / name).write_text("mine")


@posix
@pytest.mark.parametrize("replace", [[], ["--replace"]])
@pytest.mark.parametrize(
    "obstacle",
    [a_trained_model, own_notes, lambda path, _: a_link(path), lambda path, _: a_file(path)],
)
@pytest.mark.parametrize("command", ["neox_tokenizer", "neox_prepare"])
def test_a_command_keeps_what_is_there(here, capsys, trained, command, obstacle, replace):
    from importlib import import_module

    main = getattr(import_module(f"shakespeare_neox.{base.COMMANDS[command]}"), f"{command}_main")
    (here / "book.txt").write_text(TEXT)
    obstacle(here / "out", trained)
    before = tree(here)
    with pytest.raises(SystemExit) as stopped:
        main(["book.txt", "--out", "out", *replace])
    assert stopped.value.code == 2 and "not replaced" in capsys.readouterr().err
    assert tree(here) == before


@pytest.mark.parametrize("command", ["neox_tokenizer", "neox_prepare"])
def test_a_command_replaces_its_own_only_when_told(here, capsys, command):
    from importlib import import_module

    main = getattr(import_module(f"shakespeare_neox.{base.COMMANDS[command]}"), f"{command}_main")
    (here / "book.txt").write_text("abcdefgh" * 500)
    (here / "other.txt").write_text("stuvwxyz" * 500)

    def words_for(text):
        return [text, "--out", "out"] + (
            ["--tokenizer_path", "letters"] if command == "neox_prepare" else []
        )

    from shakespeare_neox.engine.vocab import train_tokenizer

    (here / "letters").mkdir()
    train_tokenizer("abcdefghstuvwxyz").save(here / "letters")
    main(words_for("book.txt"))
    before = tree(here / "out")
    with pytest.raises(SystemExit):
        main(words_for("other.txt"))
    assert "--replace" in capsys.readouterr().err and tree(here / "out") == before
    main([*words_for("other.txt"), "--replace"])
    assert tree(here / "out") != before


def test_a_model_is_not_saved_over_another(here, trained):
    from shakespeare_neox.engine.checkpoints import open_checkpoint

    model, tokenizer = open_checkpoint(str(trained))
    a_trained_model(here / "theirs", trained)
    before = tree(here)
    for settings in (dict(), dict(replace=True)):
        with pytest.raises(NeoxError, match="not replaced"):
            model.save_pretrained(here / "theirs", tokenizer, **settings)
    assert tree(here) == before
    model.save_pretrained(here / "ours", tokenizer)
    model.save_pretrained(here / "ours", tokenizer, replace=True)
    assert stat.S_IMODE((here / "ours" / "model.safetensors").stat().st_mode) == stat.S_IMODE(
        (here / "ours" / "config.json").stat().st_mode
    )


@posix
@pytest.mark.parametrize("output", ["precious.txt", "book.txt", "link.txt", "folder.txt"])
def test_plain_text_replaces_nothing(here, capsys, output):
    from shakespeare_neox.engine.tokens import neox_prepare_main

    (here / "book.txt").write_text(TEXT)
    (here / "precious.txt").write_text("a life's work")
    (here / "link.txt").symlink_to("precious.txt")
    (here / "folder.txt").mkdir()
    before = tree(here)
    with pytest.raises(SystemExit) as stopped:
        neox_prepare_main(["book.txt", "--plain", output])
    assert stopped.value.code == 2 and output in capsys.readouterr().err
    assert tree(here) == before


def test_plain_text_makes_its_folder(here, capsys):
    from shakespeare_neox.engine.tokens import neox_prepare_main

    (here / "book.txt").write_text(TEXT)
    neox_prepare_main(["book.txt", "--plain", "data/pretraining_data/corpus.txt"])
    assert (here / "data" / "pretraining_data" / "corpus.txt").read_text() == TEXT
