"""Runs that are stopped at any instant, kill -9 included, go on to the same bits as a run that was
never stopped."""

import hashlib
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from shakespeare_neox.engine.base import new_folder, read_folder
from shakespeare_neox.engine.report import Log
from shakespeare_neox.engine.run import train
from shakespeare_neox.engine.state import saved_steps

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
TINY = dict(
    num_layers=1,
    hidden_size=32,
    num_attention_heads=2,
    seq_length=32,
    pos_emb="rotary",
    hidden_dropout=0.1,
    attention_dropout=0.1,
    data_path="sample",
    split="90,1,9",
    train_iters=400,
    train_micro_batch_size_per_gpu=4,
    gradient_accumulation_steps=2,
    precision="fp32",
    optimizer=dict(type="Muon", params=dict(lr=0.01, adam_lr=3e-3)),
    average_steps=4,
    warmup=0.05,
    lr_decay_style="cosine",
    eval_interval=14,
    log_interval=1,
    checkpoint_factor=4,
    keep_last_n_checkpoints=2,
    sample_tokens=4,
    compile="off",
    seed=7,
)
CHANCE = random.SystemRandom()
NEOX = [sys.executable, "-c", "from shakespeare_neox.engine.run import neox_train_main as m; m()"]


def outcome(folder):
    "All that must be the same, to the last bit"
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    scores = [
        (e["step"], e["loss"], e["bits_per_byte"], e["sample"])
        for e in events
        if e["event"] == "evaluation"
    ]
    state = (
        folder / "state" / f"step_{saved_steps(folder)[-1]}" / "state.safetensors"
    )  # weights, moments and averages
    return {
        **{n: (folder / n / "model.safetensors").read_bytes() for n in ("best", "last")},
        "state": state.read_bytes(),
        "evaluations": scores,
    }


# real processes, real signals


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with the recipes, and a cache of its own"
    folder = tmp_path_factory.mktemp("runs")
    for name, own in dict(
        tiny={}, compiled=dict(compile="on", num_layers=2, train_iters=60)
    ).items():
        (folder / f"{name}.yml").write_text(yaml.safe_dump({**TINY, **own}))
    return folder


class Running:
    "neox_train in a process of its own"

    def __init__(self, home, *words):
        self.err, env = (
            home / f"{time.monotonic_ns()}.err",
            {**os.environ, "OMP_NUM_THREADS": "1", "NEOX_CACHE": str(home / "cache")},
        )
        self.process = subprocess.Popen(
            [*NEOX, *map(str, words)],
            cwd=home,
            env=env,
            stdout=subprocess.PIPE,
            stderr=self.err.open("w"),
            text=True,
        )
        self.start = time.monotonic()

    def wait_for(self, condition, limit=240):
        "Waits until something holds, or the process has ended"
        while not condition() and self.process.poll() is None:
            assert time.monotonic() - self.start < limit, self.err.read_text()
            time.sleep(0.0005)
        return self

    def steps(self):
        return len(re.findall(r"^step +\d.*tokens/s", self.err.read_text(), re.M))

    def end(self, with_signal=None):
        "Exit status, after a signal if one is given"
        if with_signal:
            self.process.send_signal(with_signal)
        self.out = self.process.communicate(timeout=240)[0]
        return self.process.returncode

    def complete(self):
        assert self.end() == 0, self.err.read_text()
        return self


def whole_run(home, name):
    "The outcome of an uninterrupted run"
    run = Running(home, f"{name}.yml", "--checkpoint_dir", home / name).complete()
    assert run.out.strip().endswith("best") and run.out.count("\n") == 1
    return outcome(home / name)


@pytest.fixture(scope="module")
def reference(home):
    return whole_run(home, "tiny")


def killed(home, name, folder, saves):
    "Starts or goes on with a run and kills it at a random instant; the step that it had said last"
    run, n = Running(home, f"{name}.yml", "--checkpoint_dir", folder), CHANCE.randint(1, 50)
    run.wait_for(lambda: run.steps() >= n)
    if saves:
        run.wait_for(
            lambda: any(
                p.name.endswith((".neox-tmp", ".neox-previous"))
                for p in [*folder.glob(".*"), *folder.glob("state/.*")]
            )
        )
    else:
        time.sleep(CHANCE.uniform(0, 0.03))
    assert run.end(signal.SIGKILL) == -signal.SIGKILL, "the kill came too late"
    return run.steps()


def kill_and_go_on(home, name, reference, kills, saves=False):
    "Kills a run again and again, lets it end, and compares"
    folder = home / f"killed-{time.monotonic_ns()}"
    steps = [killed(home, name, folder, saves) for _ in range(kills)]
    Running(home, f"{name}.yml", "--checkpoint_dir", folder).complete()
    assert outcome(folder) == reference, f"killed after {steps} lines"


@posix
def test_killed_five_times(home, reference):
    kill_and_go_on(home, "tiny", reference, 5)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("saves", [False, True], ids=["anywhere", "during saves"])
@pytest.mark.parametrize("round", range(5))
def test_killed_fifty_times(home, reference, round, saves):
    kill_and_go_on(home, "tiny", reference, 5, saves)


@posix
@pytest.mark.slow
def test_killed_while_it_starts(home, reference):
    "Imports, data, the folder's first files"
    folder = home / "killed-early"
    for _ in range(4):
        run = Running(home, "tiny.yml", "--checkpoint_dir", folder)
        time.sleep(CHANCE.uniform(0, 4))
        run.end(signal.SIGKILL)
    Running(home, "tiny.yml", "--checkpoint_dir", folder).complete()
    assert outcome(folder) == reference


@posix
@pytest.mark.slow
def test_killed_compiled(home):
    reference = whole_run(home, "compiled")
    assert '"compiled": true' in (home / "compiled/log.jsonl").read_text(), (
        "torch.compile does not work on this machine"
    )
    kill_and_go_on(home, "compiled", reference, 1)


@posix
def test_signals(home, reference):
    "SIGTERM, then SIGINT, then to the end by the very command that the last line names"
    folder = home / "stopped"
    command = ["tiny.yml", "--checkpoint_dir", folder]
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        run, n = Running(home, *command), CHANCE.randint(1, 50)
        run.wait_for(lambda run=run, n=n: run.steps() >= n)
        assert run.end(number) == status, run.err.read_text()
        text = run.err.read_text()
        step, told = re.search(
            r"stopped at step (\d+); the same command goes on from there: neox_train (.+)", text
        ).groups()
        assert (
            saved_steps(folder)[-1] == int(step) < TINY["train_iters"]
            and "Traceback" not in text
            and run.out == ""
        )
        command = shlex.split(told)
    run = Running(home, *command).complete()
    assert f"goes on from step {step}" in run.err.read_text()
    assert outcome(folder) == reference


# the same without processes, where each instant can be chosen


class Killed(BaseException):
    "What SIGKILL would have done"


def half_text(path, text, *args, **kwargs):
    with open(path, "w") as f:
        f.write(text[: len(text) // 2])


def half_file(tensors, path, *args, **kwargs):
    Path(path).write_bytes(b"half")


def half_event(log, **event):
    with log.path.open("a") as f:
        f.write(json.dumps(event)[:-9])


def half_removed(path, *args, **kwargs):
    for file in sorted(p for p in Path(path).rglob("*") if p.is_file())[:1]:
        file.unlink()


CHANGES = [
    (Path, "mkdir", None),
    (Path, "rename", None),
    (Path, "write_text", half_text),
    (shutil, "rmtree", half_removed),
    (safetensors.torch, "save_file", half_file),
    (Log, "add", half_event),
]


class Power:
    """Counts the changes to the disk; fails at the n-th, before it or half way through it, and
    nothing is written after that"""

    def __init__(self, at=0, half=False, fail=None):
        self.at, self.half, self.fail, self.done = at, half, fail, []

    def guard(self, real, name, halfway):
        def changed(*args, **kwargs):
            if self.at and len(self.done) >= self.at:
                self.die()
            self.done.append(f"{name} {next((str(a) for a in args if isinstance(a, Path)), '')}")
            if len(self.done) == self.at:
                if self.half and halfway:
                    halfway(*args, **kwargs)
                self.die()
            return real(*args, **kwargs)

        return changed

    def die(self):
        if self.fail:
            self.fail()
        raise Killed

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for owner, name, halfway in CHANGES:
            self.patch.setattr(owner, name, self.guard(getattr(owner, name), name, halfway))
        return self

    def __exit__(self, *error):
        self.patch.undo()


SHORT = dict(
    train_iters=5, eval_interval=3, log_interval=5, checkpoint_factor=2, keep_last_n_checkpoints=1
)


@pytest.fixture(scope="module", autouse=True)
def quiet(tmp_path_factory):
    "A cache and thread settings of these tests' own"
    patch, threads = pytest.MonkeyPatch(), torch.get_num_threads()
    patch.setenv("NEOX_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)
    yield
    patch.undo()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def short(home):
    "Trains a very short run in this process"

    def go(folder, callback=None, **own):
        return train(
            str(home / "tiny.yml"), callback=callback, save=str(folder), **{**SHORT, **own}
        )

    return go


def dies(go, folder, at, half):
    "The change at which the power failed, nothing if the run was complete before it"
    with Power(at, half) as power:
        try:
            go(folder)
        except Killed:
            pass
    return power.done[-1].replace(str(folder), "RUN") if len(power.done) == at else ""


def goes_on(go, folder, expected):
    "What is wrong with the run that goes on, nothing if it ends as one that was never stopped"
    try:
        go(folder)
        ended = outcome(folder)
    except Exception as e:
        return f"{type(e).__name__}: {e}".replace(str(folder), "RUN")
    return ", ".join(f"{k} differs" for k in expected if ended[k] != expected[k])


EVERY = [
    4,
    pytest.param(1, marks=pytest.mark.slow),
]  # the fast tier takes a quarter of the instants, the second and every fourth after it


HALVES = {name for _, name, half in CHANGES if half}


def all_instants(go, prepare, expected, tmp_path, every, halves=HALVES):
    """Lets the power fail at every change that a run makes to the disk, goes on, and lists what is
    wrong after it"""
    broken = []
    for at in itertools.count(min(2, every), every):
        for half in (False, True):
            folder = tmp_path / f"{at}-{half}"
            prepare(folder)
            if not (change := dies(go, folder, at, half)):
                return broken
            if wrong := goes_on(go, folder, expected):
                broken.append(f"{at}. {'in' if half else 'before'} {change}: {wrong}")
            shutil.rmtree(folder)
            if change.split()[0] not in halves:
                break


@pytest.fixture(scope="module")
def short_outcome(short, tmp_path_factory):
    folder = tmp_path_factory.mktemp("short") / "run"
    short(folder)
    return outcome(folder)


@pytest.mark.parametrize("every", EVERY)
def test_power_fails_at_any_change(short, short_outcome, tmp_path, capsys, every):
    broken = all_instants(short, lambda folder: None, short_outcome, tmp_path, every)
    capsys.readouterr()
    assert broken == []


@pytest.mark.parametrize("every", EVERY)
def test_power_fails_while_going_on(short, short_outcome, tmp_path, capsys, every):
    "The second failure, in a run that goes on from a saved state"

    class Enough(Exception):
        pass

    def to_step_5(event):
        if event["step"] == 5:
            raise Enough

    def prepare(folder):
        with pytest.raises(Enough):
            short(folder, to_step_5)

    prepare(tmp_path / "stopped")
    assert saved_steps(tmp_path / "stopped") == [4]
    broken = all_instants(
        short,
        lambda folder: shutil.copytree(tmp_path / "stopped", folder),
        short_outcome,
        tmp_path,
        every,
    )
    capsys.readouterr()
    assert broken == []


def with_sum(state, change):
    "Changes the tensors of a saved state, and its sum with them"
    tensors = safetensors.torch.load_file(state / "state.safetensors")
    safetensors.torch.save_file(change(tensors), state / "state.safetensors")
    facts = json.loads((state / "state.json").read_text())
    facts["sha256"] = hashlib.sha256((state / "state.safetensors").read_bytes()).hexdigest()
    (state / "state.json").write_text(json.dumps(facts))


def test_changed_moments_differ(short, tmp_path, capsys):
    """Going on from an earlier state gives the same bits; with other moments it does not, and
    without them it is refused"""
    short(tmp_path / "a", keep_last_n_checkpoints=9)
    expected = outcome(tmp_path / "a")

    def zeroed(tensors):
        return {
            k: torch.zeros_like(v) if k.startswith("optimizer|") and not k.endswith("step") else v
            for k, v in tensors.items()
        }

    def dropped(tensors):
        return {k: v for k, v in tensors.items() if not k.startswith("optimizer|")}

    for name, change in (("same", dict), ("zeroed", zeroed), ("dropped", dropped)):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        shutil.rmtree(tmp_path / name / "state/step_5")
        shutil.rmtree(tmp_path / name / "last")
        with_sum(tmp_path / name / "state/step_4", change)
        capsys.readouterr()
        short(tmp_path / name, keep_last_n_checkpoints=9)
        said = capsys.readouterr().err
        assert ("lacks optimizer|" in said) == (name == "dropped")
        assert f"goes on from step {2 if name == 'dropped' else 4}" in said
    assert outcome(tmp_path / "same") == outcome(tmp_path / "dropped") == expected
    assert outcome(tmp_path / "zeroed")["last"] != expected["last"]


@posix
@pytest.mark.parametrize(
    "number, error",
    [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
    ids=["SIGTERM", "SIGINT"],
)
@pytest.mark.parametrize("event, at", [("log", 1), ("evaluation", 3)])
def test_signal_saves(short, short_outcome, tmp_path, number, error, event, at):
    """Whenever the signal comes, the state that is kept is the one of the step that the last line
    names"""

    def kill(e):
        if (e["event"], e["step"]) == (event, at):
            os.kill(os.getpid(), number)

    with pytest.raises(error):
        short(tmp_path / "run", kill)
    step = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])["step"]
    assert saved_steps(tmp_path / "run")[-1] == step >= at
    short(tmp_path / "run")
    assert outcome(tmp_path / "run") == short_outcome


# new_folder


def fill(path, text):
    with new_folder(path, "letters", replace=True) as tmp:
        (tmp / "a.txt").write_text(text)
        (tmp / "b.txt").write_text(text)


def content(path):
    "What a reader finds"
    try:
        return read_folder(
            path, lambda folder: {p.name: p.read_text() for p in folder.glob("*.txt")}
        )
    except FileNotFoundError:
        return {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize("before", [False, True], ids=["new", "replaced"])
def test_new_folder_is_whole_or_not_there(before, tmp_path):
    """A child that dies at the n-th change, for every n: the old folder or the new one, and never a
    mixture"""
    n, seen = 0, set()
    while n := n + 1:
        path = tmp_path / f"{n}/model"
        path.parent.mkdir()
        if before:
            fill(path, "old")
        if not (pid := os.fork()):
            try:
                with Power(n, half=True, fail=lambda: os._exit(9)):
                    fill(path, "new")
            finally:
                os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = content(path)
        assert (
            found in [{"a.txt": t, "b.txt": t} for t in (["old", "new"] if before else ["new"])]
            or not found
            and not before
        )
        seen.add(found.get("a.txt"))
        fill(path, "last")
        assert content(path) == {"a.txt": "last", "b.txt": "last"}
        assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".neox-tmp")] == [
            "model"
        ]
        if died == 0:
            break
    assert n > 5 and seen == ({"old", "new"} if before else {None, "new"})
