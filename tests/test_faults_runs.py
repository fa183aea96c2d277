"""Runs and what can happen to them: full memory, two at once, another text, edited states, folders
that vanish, numbers that end"""

import hashlib
import io
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, refuses, succeeds, tree
from safetensors.torch import load_file, save_file

import shakespeare_neox.engine.device as device_module
import shakespeare_neox.engine.run as run_module
from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.device import DeviceTrainer, compile_model
from shakespeare_neox.engine.recipe import TrainConfig, load_config
from shakespeare_neox.engine.run import evaluate, make_run, neox_train_main, train
from shakespeare_neox.engine.state import saved_steps
from shakespeare_neox.engine.tokens import neox_prepare_main as prepare
from shakespeare_neox.model import GPT

pytestmark = pytest.mark.usefixtures("here")
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and locks")
RUN = ["quickstart", *TINY, "keep_last_n_checkpoints=9", "--checkpoint_dir", "run"]
TEXT = "MARIAN:\nTo be a printer is to be in debt,\nAnd lead is heavier than any crown.\n\n" * 40
SMALL = dict(
    num_layers=1,
    hidden_size=32,
    num_attention_heads=2,
    seq_length=32,
    max_position_embeddings=32,
    train_iters=8,
    eval_interval=4,
    checkpoint_factor=4,
    compile="off",
    sample_tokens=4,
    precision="fp32",
    hidden_dropout=0.0,
)
COMMAND = [
    sys.executable,
    "-c",
    "from shakespeare_neox.engine.run import neox_train_main as m; m()",
]


def small(**settings):
    return load_config("quickstart", **{**SMALL, **settings})


def events(folder, kind):
    return [
        e
        for e in map(json.loads, (Path(folder) / "log.jsonl").read_text().splitlines())
        if e["event"] == kind
    ]


def launch(*words, **env):
    "neox_train in a process of its own"
    env = {k: v for k, v in {**os.environ, "OMP_NUM_THREADS": "1", **env}.items() if v is not None}
    return subprocess.Popen(
        [*COMMAND, *map(str, words)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    "Exit status, standard output, standard error"
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def waits(condition, limit=60):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit
        time.sleep(0.01)


def weights(folder):
    return load_file(Path(folder) / "last" / "model.safetensors")


def far(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


# full memory

FULL = dict(
    GPU=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    CPU=RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
    ),
)


def advance(run, n=1):
    "Some more steps of a run"
    run.trainer.n_steps = run.step + n
    run.trainer.fit()


def planted(run, at, error, where="forward"):
    "Lets a run's memory be full at the n-th pass, once"
    passes = []

    def full(*args):
        passes.append(None)
        if len(passes) == at:
            raise error

    if where == "forward":
        run.model.register_forward_pre_hook(full)
    else:
        run.model.embed.weight.register_hook(full)  # half of the gradients are there


def steps(n=3, at=None, error=FULL["GPU"], where="forward", halved_before=None, **settings):
    """The weights after some steps. The gradient of the key biases is zero but for rounding, which
    Adam's usual epsilon would turn into whole steps: it gets a larger one"""
    calm = dict(type="Adam", params=dict(lr=1e-3, eps=1e-4))
    sizes = dict(train_micro_batch_size_per_gpu=8, gradient_accumulation_steps=4)
    run = make_run(small(**{**sizes, "optimizer": calm, **settings}))
    if at:
        planted(run, at, error, where)
    for step in range(n):
        if step == halved_before:
            run.trainer.halve(run.trainer.batches(step))
        advance(run)
    return run, {k: v.clone() for k, v in run.model.state_dict().items()}


@pytest.mark.parametrize(
    "at, where, kind",
    [
        (1, "forward", "GPU"),
        (1, "backward", "GPU"),
        (2, "forward", "GPU"),
        (2, "backward", "CPU"),
        (4, "forward", "CPU"),
        (4, "backward", "GPU"),
        (6, "forward", "GPU"),
        (6, "backward", "GPU"),
    ],
)
def test_full_memory_in_any_pass(at, where, kind, capsys):
    """The step is done again from its first pass: the bits of a run that had made its passes
    smaller before that step"""
    run, found = steps(at=at, error=FULL[kind], where=where)
    assert run.trainer.pieces == 2 and run.c.train_micro_batch_size_per_gpu == 8
    assert "8 passes of 4 windows" in capsys.readouterr().err
    expected, whole = steps(halved_before=(at - 1) // 4)[1], steps()[1]
    assert far(found, expected) == 0
    assert far(found, whole) < 1e-6 < 1e-4 < far(steps(2)[1], whole)


def test_full_memory_in_the_evaluation(monkeypatch):
    "The text is scored in smaller batches, with the same result"
    run = make_run(small())
    expected = evaluate(run)
    sizes = []

    def refuse(model, inputs):
        sizes.append(len(inputs[0]))
        if sizes[-1] > 3:
            raise FULL["GPU"]

    hook = run.model.register_forward_pre_hook(refuse)
    found = evaluate(run)
    assert max(sizes) > 3 and math.isclose(found["loss"], expected["loss"], rel_tol=1e-6)
    hook.remove()

    def always(model, inputs):
        raise FULL["CPU"]

    run.model.register_forward_pre_hook(always)
    with pytest.raises(NeoxError, match="out of memory while scoring a single window"):
        evaluate(run)


def test_full_memory_in_the_optimizer(monkeypatch, capsys):
    """The weights may be half changed: the run ends with a line, and goes on from the state before
    to the same bits"""
    train("quickstart", save="whole", **SMALL)
    usual, calls = torch.optim.AdamW.step, []

    def step(self, *args):
        calls.append(None)
        if len(calls) == 6:
            for p in self.param_groups[0]["params"]:
                p.data += 1.0
            raise FULL["GPU"]
        return usual(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(NeoxError, match="out of memory in the optimizer's part of step 6"):
            train("quickstart", save="run", **SMALL)
    assert saved_steps("run") == [4]
    train("quickstart", save="run", **SMALL)
    assert far(weights("run"), weights("whole")) == 0


def test_other_errors_are_not_taken_for_full_memory(monkeypatch):
    run = make_run(small())

    def wrong(model, inputs):
        raise RuntimeError("shapes do not fit")

    run.model.register_forward_pre_hook(wrong)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        advance(run)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        evaluate(run)


class Silent(Exception):
    "An exception without a text"


@pytest.mark.parametrize("after", ["before", "after its gradients"])
def test_compiling_that_fails_leaves_no_gradient(monkeypatch, after, capsys):
    "Half a try leaves nothing in the first step; an exception without a text is no second one"
    train("quickstart", save="plain", **SMALL)

    def compile(self, **kwargs):
        def fails(*args, **kwargs):
            raise Silent

        if after == "before":
            self._compiled_call_impl = fails
        else:
            self.embed.weight.register_post_accumulate_grad_hook(fail_once)

    failed = []

    def fail_once(p):
        if not failed:
            failed.append(None)
            raise Silent

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    train("quickstart", save="tried", **{**SMALL, "compile": "on"})
    assert (
        "torch.compile does not work here (Silent); the run goes on without it"
        in capsys.readouterr().err
    )
    assert far(weights("tried"), weights("plain")) == 0


# what a training leaves behind


def settings_of_the_process():
    "What other code in this process would notice"
    states = random.getstate(), tuple(np.random.get_state()[1]), torch.get_rng_state().tolist()
    flags = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return states, flags, handlers, os.getcwd(), dict(os.environ), threading.active_count()


@contextmanager
def as_it_was():
    before = settings_of_the_process()
    yield
    after = settings_of_the_process()
    names = (
        "random states",
        "flags of torch",
        "signal handlers",
        "folder",
        "environment",
        "threads",
    )
    assert [name for name, a, b in zip(names, before, after) if a != b] == []


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize(
    "start", [dict(), dict(deterministic=False), dict(hidden_dropout=0.3, average_steps=2)], ids=str
)
def test_training_leaves_no_setting(start, capsys):
    train("quickstart", save="first", **SMALL)  # what imports set up is none of it
    with as_it_was():
        train("quickstart", save="run", **{**SMALL, **start})
    with as_it_was():
        train("quickstart", save="run", **{**SMALL, **start})  # complete
    with as_it_was(), pytest.raises(NeoxError):
        train("quickstart", save="run", **{**SMALL, **start, "seed": 3})
    with as_it_was():
        neox_train_main([*RUN[:-1], "dry", "--dry_run"])
    with as_it_was():
        advance(make_run(small()))


def test_training_respects_settings(capsys):
    "Those of the person come back, whatever they are"
    train("quickstart", save="first", **SMALL)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with as_it_was():
            train("quickstart", save="run", **{**SMALL, "deterministic": False})
    finally:
        torch.use_deterministic_algorithms(False)
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"  # torch's newer setting
    try:
        train("quickstart", save="newer", **SMALL)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert far(weights("newer"), weights("first")) == 0


def test_one_seed_draws_the_same_before_and_after(capsys):
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    draws()
    expected = draws()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    draws()
    train("quickstart", save="run", **SMALL)
    assert draws() == expected


# scores


@pytest.mark.parametrize("precision", ["fp32", "bfloat16"])
def test_mean_weights_are_scored_in_the_precision_of_the_run(precision):
    "Weights that never move are their own mean, so both scores are equal"
    still = dict(
        optimizer=dict(type="Adam", params=dict(lr=0.0)),
        min_lr=0.0,
        weight_decay=0.0,
        precision=precision,
    )
    plain, mean = make_run(small(**still)), make_run(small(average_steps=2, **still))
    for run in (plain, mean):
        advance(run, 2)
    assert mean.scored is not mean.model
    assert evaluate(mean)["loss"] == evaluate(plain)["loss"]


def not_a_number(run_step):
    """Weights of which one is NaN from some step on, as on a GPU, where the loss is looked at now
    and then"""
    usual = DeviceTrainer.train_step

    def step(self):
        usual(self)
        if self.step >= run_step:
            next(self.model.parameters()).data[-1] = math.nan
        self.loss = torch.tensor(2.0)

    return step


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(patience=1),
        dict(eval_interval=100),
        dict(average_steps=2),
        dict(checkpoint_epochs=True),
    ],
    ids=str,
)
def test_no_model_that_is_not_finite_is_kept(settings, monkeypatch, capsys):
    "Neither by an evaluation, nor by a state, nor at the end of patience"
    monkeypatch.setattr(DeviceTrainer, "train_step", not_a_number(4))
    with pytest.raises(NeoxError, match="is no longer finite|became nan"):
        train("quickstart", save="run", **{**SMALL, **settings})
    assert saved_steps("run") == [4]
    for file in Path("run").rglob("*.safetensors"):
        assert all(v.isfinite().all() for v in load_file(file).values() if v.is_floating_point()), (
            file
        )


def test_the_advice_after_nan_works(monkeypatch, capsys):
    "The command that the line names trains"
    usual = TrainConfig.learning_rate
    with monkeypatch.context() as patch:
        patch.setattr(
            TrainConfig,
            "learning_rate",
            lambda c, step, n: 1e20 if step >= 18 else usual(c, step, n),
        )
        line = refuses(
            neox_train_main,
            [*RUN, "min_lr=0.0009"],
            capsys,
            "learning rate",
            "the state of step 15 is kept, in run",
            steps=True,
        )
    name, *words = shlex.split(re.search(r"in a new folder: (neox_train .+?) \(", line)[1])
    assert words[-1] == "run-2" and any(w.startswith("optimizer.params.lr=") for w in words)
    succeeds(neox_train_main, words, capsys)
    assert saved_steps("run-2")[-1] == 30 and saved_steps("run") == [15]


def test_an_early_failure_blocks_nothing(monkeypatch, capsys):
    "NaN before anything was saved: the corrected command takes the folder"
    with monkeypatch.context() as patch:
        patch.setattr(TrainConfig, "learning_rate", lambda c, step, n: 1e20)
        refuses(neox_train_main, RUN, capsys, "no state was saved yet", steps=True)
    said = succeeds(neox_train_main, [*RUN, "seed=5"], capsys).err
    assert "saved nothing" in said and saved_steps("run")[-1] == 30
    assert "seed: 5" in Path("run/config.yml").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["data_path=nowhere"],
        ["sample_prompt=ü"],
        ["split=100,0,0"],
        ["train_batch_size=7"],
        ["num_layers=100000"],
    ],
    ids=str,
)
def test_a_wrong_setting_leaves_no_folder(words, capsys):
    refuses(neox_train_main, [*RUN, *words], capsys, steps=True)
    assert not Path("run").exists() and os.listdir() == []


def test_a_failure_before_the_first_step_leaves_no_folder(monkeypatch, capsys):
    def fails(run):
        raise NeoxError("the ink has dried; dip the pen")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "compile_if_it_pays", fails)
        refuses(neox_train_main, [*RUN[:-1], "deep/run"], capsys, "the ink has dried")
        assert os.listdir() == []
        Path("empty").mkdir()
        refuses(neox_train_main, [*RUN[:-1], "empty"], capsys, "the ink has dried")
        assert os.listdir() == ["empty"]


# two at once


@posix
def test_two_runs_in_one_folder(capsys):
    "One wins; the other gets one line that names it, and nothing of it gets in"
    long = [
        *RUN[:-2],
        "train_iters=3000",
        "checkpoint_factor=1000",
        "eval_interval=1000",
        "--checkpoint_dir",
        "run",
    ]
    first = launch(*long)
    waits(lambda: Path("run/log.jsonl").exists() or first.poll() is not None)
    try:
        before = Path("run/config.yml").read_bytes()
        line = refuses(neox_train_main, long, capsys, "run is in use by process", str(first.pid))
        assert "wait for it, or end it" in line
        refuses(
            neox_train_main, [*long, "seed=7"], capsys, "run is in use by process", str(first.pid)
        )
        assert Path("run/config.yml").read_bytes() == before and first.poll() is None
    finally:
        first.send_signal(signal.SIGTERM)
        status, _, err = ended(first)
    assert status == 143, err
    assert len(events("run", "start")) == 1
    step = saved_steps("run")[-1]
    said = succeeds(neox_train_main, [*long], capsys).err if step > 2900 else ""
    assert "in use" not in said


@posix
def test_a_killed_run_holds_nothing(capsys):
    process = launch(
        *RUN[:-2], "train_iters=3000", "checkpoint_factor=10", "--checkpoint_dir", "run"
    )
    waits(
        lambda: (
            len(saved_steps("run")) > 0
            if Path("run/state").exists()
            else process.poll() is not None
        )
    )
    process.kill()
    process.wait()
    refuses(
        neox_train_main, [*RUN, "seed=7"], capsys, "holds another run", steps=True
    )  # not: in use


@posix
def test_four_runs_on_one_text_with_a_cold_cache(monkeypatch):
    "All of them end well, and what they leave in the cache serves the next"
    cache = Path("cache").absolute()
    Path("mine.txt").write_text(TEXT * 60)
    words = [
        *RUN[:-2],
        "eval_iters=1",
        "data_path=mine.txt",
        "vocab_file=",
        "train_iters=2",
        "eval_interval=2",
        "checkpoint_factor=2",
    ]
    runs = [launch(*words, "--checkpoint_dir", f"run{n}", NEOX_CACHE=str(cache)) for n in range(4)]
    results = [ended(run) for run in runs]
    assert [status for status, _, _ in results] == [0] * 4, results
    assert all("Traceback" not in err for _, _, err in results)
    assert (
        len({(Path(f"run{n}") / "best" / "model.safetensors").read_bytes() for n in range(4)}) == 1
    )
    entries = [p for p in (cache / "tokens").iterdir() if p.is_dir()]
    assert len(entries) == 1 and not list(cache.rglob("*.neox-tmp"))


DAMAGES = dict(
    cut=lambda entry: os.truncate(entry / "train.bin", 100),
    flipped=lambda entry: (entry / "valid.bin").write_bytes(
        bytes([(entry / "valid.bin").read_bytes()[0] ^ 1]) + (entry / "valid.bin").read_bytes()[1:]
    ),
    header=lambda entry: (entry / "train.json").write_text("{"),
    gone=lambda entry: (entry / "valid.bin").unlink(),
    emptied=lambda entry: [p.unlink() for p in entry.iterdir()],
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_entry_is_made_again(damage, monkeypatch, capsys):
    monkeypatch.setenv("NEOX_CACHE", str(Path("cache").absolute()))
    train("quickstart", save="first", **SMALL)
    (entry,) = [p for p in Path("cache/tokens").iterdir() if p.is_dir()]
    DAMAGES[damage](entry)
    capsys.readouterr()
    train("quickstart", save="second", **SMALL)
    assert capsys.readouterr().err.count("this entry of the cache is made again") == 1
    train("quickstart", save="third", **SMALL)
    assert "made again" not in capsys.readouterr().err
    assert far(weights("first"), weights("second")) == far(weights("first"), weights("third")) == 0


def test_a_read_only_cache_serves(monkeypatch, capsys):
    "Nothing is locked, and nothing is written, where the entry is there and whole"
    monkeypatch.setenv("NEOX_CACHE", str(Path("cache").absolute()))
    train("quickstart", save="first", **SMALL)

    def no(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(run_module, "locked", no)
    make_run(small())


# another text

CHANGES = {
    "the text to train on": lambda: Path("mine.txt").write_text("B" + TEXT[1:]),
    "a longer text": lambda: Path("mine.txt").write_text(TEXT * 2),
    "a larger alphabet": lambda: Path("mine.txt").write_text(TEXT + "@#%"),
    "the end of the text": lambda: Path("mine.txt").write_text(TEXT[:-3] + "..\n"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("complete", [False, True], ids=["stopped", "complete"])
def test_resuming_after_the_text_changed(change, complete, capsys):
    Path("mine.txt").write_text(TEXT)
    words = [*RUN, "data_path=mine.txt", "vocab_file=", "split=80,20,0"]
    succeeds(neox_train_main, words, capsys)
    if not complete:
        shutil.rmtree("run/state/step_30")
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    CHANGES[change]()
    line = refuses(
        neox_train_main,
        words,
        capsys,
        "run: the t",
        "changed since its state of step",
        "mine.txt",
        "neox_train run/config.yml --checkpoint_dir run-2",
        steps=True,
    )
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before
    if change == "the end of the text":
        assert "the text to score changed" in line and "train on" not in line
    Path("mine.txt").write_text(TEXT)
    succeeds(neox_train_main, words, capsys)
    assert saved_steps("run")[-1] == 30


def test_resuming_after_prepared_data_or_the_tokenizer_changed(capsys):
    from shakespeare_neox.engine.vocab import train_tokenizer

    for name, text in (("a.txt", TEXT), ("b.txt", TEXT.replace("lead", "gold"))):
        Path(name).write_text(text)
    for name, alphabet in (("t", TEXT), ("other", TEXT + "@")):
        Path(name).mkdir()
        train_tokenizer(alphabet + "gold", "char").save(name)
    succeeds(prepare, ["a.txt", "--tokenizer_path", "t", "--out", "tokens"], capsys)
    words = [*RUN, "data_path=tokens", "vocab_file="]
    succeeds(neox_train_main, words, capsys)
    shutil.rmtree("run/state/step_30")
    shutil.rmtree("tokens")
    succeeds(prepare, ["b.txt", "--tokenizer_path", "t", "--out", "tokens"], capsys)
    refuses(
        neox_train_main,
        words,
        capsys,
        "the text to train on and the text to score changed",
        steps=True,
    )
    shutil.rmtree("tokens")
    succeeds(prepare, ["a.txt", "--tokenizer_path", "other", "--out", "tokens"], capsys)
    refuses(neox_train_main, words, capsys, "the tokenizer", "changed", steps=True)


def test_a_text_beyond_the_tokenizer(capsys):
    "The line names the characters and a setting that works"
    Path("mine.txt").write_text(TEXT + "Ωβ@")
    words = [*RUN, "data_path=mine.txt"]
    line = refuses(
        neox_train_main,
        [*words, "vocab_file=tokenizer/characters"],
        capsys,
        "mine",
        "'@' (U+0040)",
        "'Ω' (U+03A9)",
        "vocab_file=",
        steps=True,
    )
    assert "--out" not in line and not Path("run").exists()
    succeeds(neox_train_main, [*words, "vocab_file="], capsys)


# nothing is trained on what it scores


def same(kind):
    "Two names of one text"
    Path("deep").mkdir(exist_ok=True)
    Path("a.txt").write_text(TEXT)
    Path("deep/b.txt").write_text(TEXT.replace("To be", "To sit"))
    if kind == "itself":
        return "a.txt", "a.txt"
    if kind == "another spelling":
        return "a.txt", "deep/../a.txt"
    if kind == "absolute":
        return "a.txt", str(Path("a.txt").absolute())
    if kind == "a link":
        os.symlink("a.txt", "l.txt")
        return "a.txt", "l.txt"
    if kind == "a hard link":
        os.link("a.txt", "h.txt")
        return "h.txt", "a.txt"
    if kind == "a linked folder":
        os.symlink("deep", "same")
        return "deep", "same"
    if kind == "a folder that holds it":
        return "deep", "deep/b.txt"
    if kind == "a file of the folder":
        return "deep/b.txt", "deep"
    if kind == "a copy":
        shutil.copy("a.txt", "c.txt")
        return "a.txt", "c.txt"
    if kind == "packed":
        import gzip

        Path("a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
        return "a.txt", "a.txt.gz"


@pytest.mark.parametrize(
    "kind",
    [
        "itself",
        "another spelling",
        "absolute",
        pytest.param("a link", marks=posix),
        "a hard link",
        pytest.param("a linked folder", marks=posix),
        "a folder that holds it",
        "a file of the folder",
        "a copy",
        "packed",
    ],
)
def test_what_is_scored_is_not_trained_on(kind, capsys):
    a, b = same(kind)
    words = ["data_path=", "vocab_file=", f"train_data_paths=[{a}]", f"valid_data_paths=[{b}]"]
    line = refuses(
        neox_train_main,
        [*RUN, *words],
        capsys,
        "valid",
        "the same text, whose score would say nothing",
        steps=True,
    )
    assert kind == "packed" or Path(b).name in line or "b.txt" in line
    assert not Path("run").exists()


def test_prepared_text_that_is_scored_is_not_trained_on(capsys):
    Path("a.txt").write_text(TEXT)
    succeeds(prepare, ["a.txt", "--out", "tokens"], capsys)
    shutil.copy("tokens/train.bin", "tokens/copy.bin")
    shutil.copy("tokens/train.json", "tokens/copy.json")
    for name in ("train.bin", "copy.bin"):
        words = [
            "data_path=",
            "vocab_file=",
            "train_data_paths=[tokens/train.bin]",
            f"valid_data_paths=[tokens/{name}]",
        ]
        refuses(neox_train_main, [*RUN, *words], capsys, "both trained on and scored", steps=True)
    succeeds(
        neox_train_main,
        [
            *RUN,
            "data_path=",
            "vocab_file=",
            "train_data_paths=[tokens/train.bin]",
            "valid_data_paths=[tokens/valid.bin]",
        ],
        capsys,
    )


def test_records_named_train_are_no_token_files(capsys):
    "A person's own train.json and valid.json are texts"
    Path("mine").mkdir()
    for name, text in (("train", TEXT), ("valid", TEXT.replace("To be", "To sit"))):
        Path(f"mine/{name}.json").write_text(json.dumps([dict(text=text)]))
    succeeds(neox_train_main, [*RUN, "data_path=mine", "vocab_file="], capsys)


# states that were damaged or edited


@pytest.fixture
def saved(trained_twice):
    "A run with the states of steps 15 and 30"
    shutil.copytree(trained_twice, "run")
    return Path("run/state/step_30")


@pytest.fixture(scope="module")
def trained_twice(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states") / "run"
    neox_train_main([*RUN[:-1], str(folder)])
    return folder


def edit(state, **facts):
    path = state / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def retensor(state, change):
    "Other tensors, with a sum that fits them"
    tensors = load_file(state / "state.safetensors")
    change(tensors)
    save_file(tensors, state / "state.safetensors")
    edit(state, sha256=hashlib.sha256((state / "state.safetensors").read_bytes()).hexdigest())


def flip(state):
    data = bytearray((state / "state.safetensors").read_bytes())
    data[-1000] ^= 4
    (state / "state.safetensors").write_bytes(data)


def moment(tensors, name="exp_avg"):
    return next(k for k in sorted(tensors) if k.startswith("optimizer|") and k.endswith(f"|{name}"))


def shorter(tensors):
    tensors[moment(tensors)] = torch.zeros(3)


def renamed(tensors):
    for key in [k for k in tensors if k.endswith("|exp_avg")]:
        tensors[key.replace("exp_avg", "momentum_buffer")] = tensors.pop(key)


def counted(value):
    def change(tensors):
        tensors[moment(tensors, "step")] = torch.tensor(value)

    return change


DAMAGED = {
    "a flipped bit": (flip, "its sum is not the one in state.json"),
    "cut off": (lambda s: os.truncate(s / "state.safetensors", 5000), "its sum"),
    "no tensors": (lambda s: (s / "state.safetensors").unlink(), "state.safetensors: is missing"),
    "no JSON": (lambda s: (s / "state.json").write_text("{"), "is not JSON"),
    "no sum": (lambda s: edit(s, sha256=None), "sha256: "),
    "no origin": (lambda s: edit(s, data=None), "data: "),
    "a list": (lambda s: (s / "state.json").write_text("[1]"), "state.json"),
    "no step": (lambda s: (s / "state.json").write_text("{}"), "step: field required"),
    "negative step": (
        lambda s: edit(s, step=-3),
        "step: input should be greater than or equal to 0",
    ),
    "step as text": (lambda s: edit(s, step="30"), "step: "),
    "step of truth": (lambda s: edit(s, step=True), "step: "),
    "another step": (lambda s: edit(s, step=20), "says step 20, its folder says 30"),
    "seconds": (lambda s: edit(s, seconds="long"), "seconds: "),
    "waited": (lambda s: edit(s, waited=-1), "waited: "),
    "best as NaN": (
        lambda s: (s / "state.json").write_text(
            (s / "state.json").read_text().replace('"waited"', '"best": NaN, "waited"', 1)
        ),
        "state.json",
    ),
    "reads": (lambda s: edit(s, reads=dict(step=0, evaluation=None)), "reads.step"),
    "scaler": (lambda s: edit(s, scaler=[1]), "scaler"),
    "moments of a wrong shape": (lambda s: retensor(s, shorter), "is (3,) float32, here it is"),
    "moments of a wrong type": (
        lambda s: retensor(s, lambda t: t.update({moment(t): t[moment(t)].half()})),
        "float16",
    ),
    "moments of another optimizer": (lambda s: retensor(s, renamed), "holds optimizer|"),
    "no moments": (
        lambda s: retensor(s, lambda t: [t.pop(k) for k in list(t) if k.startswith("optimizer|")]),
        "lacks optimizer|",
    ),
    "one moment less": (lambda s: retensor(s, lambda t: t.pop(moment(t))), "lacks optimizer|"),
    "a stranger": (
        lambda s: retensor(s, lambda t: t.update({"model|stranger": torch.zeros(2)})),
        "holds model|stranger",
    ),
    "weights of a wrong shape": (
        lambda s: retensor(s, lambda t: t.update({"model|embed.weight": torch.zeros(2, 2)})),
        "model|embed.weight is (2, 2)",
    ),
    "weights of whole numbers": (
        lambda s: retensor(
            s, lambda t: t.update({"model|embed.weight": t["model|embed.weight"].long()})
        ),
        "int64",
    ),
    "a negative count": (lambda s: retensor(s, counted(-1.0)), "step is -1"),
    "a huge count": (lambda s: retensor(s, counted(1e9)), "step is 1e+09"),
    "a count that is no number": (lambda s: retensor(s, counted(math.nan)), "step is nan"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_state_that_cannot_serve(kind, saved, capsys):
    """The older state serves, with one line; the other is put aside; the end is the same. Alone, it
    is refused by name"""
    damage, part = DAMAGED[kind]
    expected = weights("run")
    damage(saved)
    said = succeeds(neox_train_main, RUN, capsys).err
    lines = [line for line in said.splitlines() if "going on from an older state" in line]
    assert len(lines) == 1 and part in lines[0], said
    assert "run goes on from step 15" in said and "Traceback" not in said
    assert Path("run/state/step_30.damaged").is_dir() and saved_steps("run") == [15, 30]
    assert far(weights("run"), expected) == 0
    shutil.rmtree("run/state/step_15")
    damage(saved)
    refuses(neox_train_main, RUN, capsys, "run/state/step_30", part, steps=True)


def test_a_step_beyond_the_end_completes_nothing(saved, capsys):
    saved.rename("run/state/step_99999")
    edit(Path("run/state/step_99999"), step=99999)
    said = succeeds(neox_train_main, RUN, capsys).err
    assert "lies behind the last step of this run, 30" in said and "goes on from step 15" in said


def test_other_files_among_the_states(saved, capsys):
    "A person's copies and notes are neither read nor removed"
    shutil.copytree(saved, "run/state/step_6.bak")
    shutil.copytree(saved, "run/state/step_x")
    shutil.copytree(saved, "run/state/step_007")
    Path("run/state/notes.txt").write_text("mine")
    Path("run/state/step_9").write_text("mine")
    Path("run/state/step_").mkdir()
    Path("run/state/step_15/mine.txt").write_text("mine")
    shutil.rmtree(saved)
    words = ["keep_last_n_checkpoints=1" if w.startswith("keep_last") else w for w in RUN]
    config = Path("run/config.yml")
    config.write_text(
        config.read_text().replace("keep_last_n_checkpoints: 9", "keep_last_n_checkpoints: 1")
    )
    said = succeeds(neox_train_main, words, capsys).err
    assert "goes on from step 15" in said and saved_steps("run")[-1] == 30
    kept = {p.name for p in Path("run/state").iterdir()}
    assert {"step_6.bak", "step_x", "step_007", "notes.txt", "step_9", "step_"} <= kept
    assert Path("run/state/step_15/mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "file",
    ["state/step_30/state.json", "state/step_30/state.safetensors", "config.yml", "log.jsonl"],
)
def test_what_may_not_be_read_is_not_damaged(file, saved, monkeypatch, capsys):
    "It is called by its name; nobody is told to remove it, and no older state is taken instead"
    forbidden, usual = Path("run", file).absolute(), io.open

    def refuse(path, *args, **kwargs):
        if isinstance(path, (str, os.PathLike)) and Path(path).absolute() == forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", refuse)
        patch.setattr("builtins.open", refuse)
        line = refuses(
            neox_train_main, RUN, capsys, file, "could not be read (Permission denied)", steps=True
        )
    assert not re.search("damaged|remove|older", line)
    succeeds(neox_train_main, RUN, capsys)


# folders that vanish


def during(step, act):
    "Does something once, while a run trains"

    def callback(event):
        if (event["event"], event["step"]) == ("evaluation", step):
            act()

    return callback


VANISH = dict(
    removed=lambda: shutil.rmtree("run"),
    renamed=lambda: os.rename("run", "moved"),
    exchanged=lambda: (
        os.rename("run", "moved"),
        os.mkdir("run"),
        Path("run/config.yml").write_text("mine: 1\n"),
    ),
    emptied=lambda: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in Path("run").iterdir()],
)


@pytest.mark.parametrize("kind", VANISH)
def test_the_folder_of_a_run_vanishes(kind, capsys):
    with pytest.raises(
        NeoxError,
        match="run: was removed, renamed or exchanged while it was trained; the run ends at step 4",
    ):
        train("quickstart", callback=during(4, VANISH[kind]), save="run", **SMALL)
    left = {str(p) for p in Path("run").rglob("*")} if Path("run").exists() else set()
    assert left - {"run/.lock", "run/.lock.owner"} == (
        {"run/config.yml"} if kind == "exchanged" else set()
    )
    if kind == "renamed":
        os.rename("moved", "run")
        train("quickstart", save="run", **SMALL)
        train("quickstart", save="whole", **SMALL)
        assert far(weights("run"), weights("whole")) == 0


def test_best_is_removed_while_training(monkeypatch, capsys):
    """The next model is kept, though its score is worse, and log, result and report say what lies
    there"""
    scores = iter([3.0, 3.5])
    monkeypatch.setattr(
        run_module, "evaluate", lambda run: dict(loss=next(scores), bits_per_byte=1.0)
    )
    result = train(
        "quickstart", callback=during(4, lambda: shutil.rmtree("run/best")), save="run", **SMALL
    )
    assert "run/best: was removed; the model of step 8 is kept there" in capsys.readouterr().err
    assert [e["kept"] for e in events("run", "evaluation")] == [True, True]
    assert (
        result.best_loss == 3.5
        and "3.5000 nats per token, at step 8" in Path("run/report.md").read_text()
    )
    assert far(load_file("run/best/model.safetensors"), weights("run")) == 0


def test_what_a_person_put_in_the_place_of_best_is_kept(capsys):
    def exchange():
        shutil.rmtree("run/best")
        Path("run/best").mkdir()
        Path("run/best/thesis.txt").write_text("mine")

    train("quickstart", callback=during(4, exchange), save="run", **SMALL)
    assert (
        Path("run/best.2/thesis.txt").read_text() == "mine"
        and Path("run/best/model.safetensors").exists()
    )
    assert "it is kept as run/best.2" in capsys.readouterr().err


def test_a_missing_best_of_a_complete_run(monkeypatch, capsys):
    "It is written again where its weights are in the state; else a line names what is left"
    train("quickstart", save="run", **SMALL)
    assert [e["kept"] for e in events("run", "evaluation")] == [True, True]
    before = Path("run/best/model.safetensors").read_bytes()
    shutil.rmtree("run/best")
    train("quickstart", save="run", **SMALL)
    assert (
        Path("run/best/model.safetensors").read_bytes() == before
        and "it is written again from the state" in capsys.readouterr().err
    )
    scores = iter([3.0, 3.5])
    with monkeypatch.context() as patch:
        patch.setattr(
            run_module, "evaluate", lambda run: dict(loss=next(scores), bits_per_byte=1.0)
        )
        train("quickstart", save="older", **SMALL)
    shutil.rmtree("older/best")
    with pytest.raises(
        NeoxError,
        match=r"older/best: is missing, the model of the best score so far \(step 4\), "
        "and the run is complete; use older/last",
    ):
        train("quickstart", save="older", **SMALL)


def test_best_is_younger_than_the_state(monkeypatch, capsys):
    """After a kill: until the next evaluation best/ is not what the log says, then both agree,
    though the second try went worse"""

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    scores = iter([3.0, 2.0, 3.5])
    monkeypatch.setattr(
        run_module, "evaluate", lambda run: dict(loss=next(scores), bits_per_byte=1.0)
    )
    settings = {**SMALL, "train_iters": 12, "checkpoint_factor": 5, "eval_interval": 4}
    with pytest.raises(Killed):
        train("quickstart", callback=during(8, kill), save="run", **settings)
    assert saved_steps("run") == [5]
    scores = iter([3.5, 3.6])
    result = train("quickstart", save="run", **settings)
    said = capsys.readouterr().err
    assert (
        "run/best: is not the model of the best score so far (step 4); the next evaluation puts "
        "its model there" in said
    )
    assert [(e["step"], e["kept"]) for e in events("run", "evaluation")] == [
        (4, True),
        (8, True),
        (12, False),
    ]
    assert result.best_loss == 3.5


# what is a person's, and what the run had saved


def other_model(folder, **settings):
    "The model of another run"
    train("quickstart", save="other", **{**SMALL, "seed": 99, **settings})
    shutil.rmtree(folder, ignore_errors=True)
    shutil.move("other/best", folder)
    return (Path(folder) / "model.safetensors").read_bytes()


FOREIGN = {
    "a program": {"config.yml": "database: postgres\n", "main.py": "x\n"},
    "a report too": {"config.yml": "a: 1\n", "report.md": "mine\n"},
    "a log of something": {"config.yml": "a: 1\n", "log.jsonl": "started\n"},
    "a recipe with a comment": None,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_config_of_somebody_else(kind, trained, capsys):
    "A folder that no run made is left as it is, whatever its config.yml holds"
    Path("run").mkdir()
    files = FOREIGN[kind] or {"config.yml": "# my own\n" + (trained / "config.yml").read_text()}
    for name, text in files.items():
        (Path("run") / name).write_text(text)
    before = tree("run")
    line = refuses(
        neox_train_main,
        RUN,
        capsys,
        "run: holds a config.yml, and is no run's folder",
        "--checkpoint_dir",
    )
    assert tree("run") == before and "Traceback" not in line


def test_an_edited_config_of_a_run_that_saved_nothing(monkeypatch, capsys):
    "What a person wrote there is not replaced; it can be trained, though"
    with monkeypatch.context() as patch:
        patch.setattr(TrainConfig, "learning_rate", lambda c, step, n: 1e20)
        refuses(neox_train_main, RUN, capsys, "no state was saved yet", steps=True)
    config = Path("run/config.yml")
    config.write_text("# mine\n" + config.read_text().replace("seed: 1337", "seed: 4"))
    before = config.read_text()
    refuses(
        neox_train_main, RUN, capsys, "holds another run (seed: 4 there, 1337 here)", steps=True
    )
    assert config.read_text() == before
    succeeds(neox_train_main, ["run/config.yml", "--checkpoint_dir", "run"], capsys)
    assert config.read_text() == before and saved_steps("run")[-1] == 30


def unmarked(folder="run"):
    "The folder of a run as former versions left it"
    (Path(folder) / ".shakespeare_neox.json").unlink()


def test_a_run_of_a_former_version(saved, capsys):
    "It goes on, with nothing moved aside, and is not taken over"
    expected = weights("run")
    shutil.rmtree(saved)
    shutil.rmtree("run/best")
    unmarked()
    refuses(neox_train_main, [*RUN, "seed=3"], capsys, "holds another run", steps=True)
    said = succeeds(neox_train_main, RUN, capsys).err
    assert (
        "goes on from step 15" in said
        and "is kept as" not in said
        and far(weights("run"), expected) == 0
    )
    unmarked()
    shutil.rmtree("run/state")
    shutil.rmtree("run/best")
    shutil.rmtree("run/last")
    before = tree("run")
    refuses(neox_train_main, [*RUN, "seed=3"], capsys, "holds another run", steps=True)
    refuses(neox_train_main, RUN, capsys, "run/state: holds no state", steps=True)
    assert tree("run") == before


@pytest.mark.parametrize("name", ["best", "last"])
@pytest.mark.parametrize("when", ["stopped", "training"])
def test_a_model_of_another_run_in_its_folders_is_kept(name, when, capsys):
    "Also where it bears this library's mark, and has the same files and sizes"
    if when == "training":
        contents = []
        train(
            "quickstart",
            callback=during(4, lambda: contents.append(other_model(f"run/{name}"))),
            save="run",
            **{**SMALL, "checkpoint_factor": 2},
        )
    else:
        with pytest.raises(KeyboardInterrupt):
            train(
                "quickstart",
                callback=during(4, lambda: signal.raise_signal(signal.SIGINT)),
                save="run",
                **SMALL,
            )
        contents = [other_model(f"run/{name}")]
        train("quickstart", save="run", **SMALL)
    aside = {p.name: p for p in Path("run").glob(f"{name}.*")}
    assert (
        list(aside) == [f"{name}.2"]
        and (aside[f"{name}.2"] / "model.safetensors").read_bytes() == contents[0]
    )
    assert f"it is kept as run/{name}.2" in capsys.readouterr().err
    train("quickstart", save="whole", **SMALL)
    assert far(weights("run"), weights("whole")) == 0


def to_nowhere(state):
    shutil.rmtree(state)
    state.symlink_to("/nowhere/at/all")


def to_file(state):
    shutil.rmtree(state)
    state.write_text("mine")


GONE = {
    "removed": (shutil.rmtree, "holds no state"),
    "emptied": (lambda s: [shutil.rmtree(p) for p in s.iterdir()], "holds no state"),
    "a file": (to_file, "is not a folder"),
    "a link to nowhere": (to_nowhere, "is a link to /nowhere/at/all, which is not there"),
}


@pytest.mark.parametrize("last", ["there", "removed"])
@pytest.mark.parametrize("kind", [pytest.param(k, marks=posix) if "link" in k else k for k in GONE])
def test_nothing_is_begun_anew_over_a_run(kind, last, saved, capsys):
    "Without its states a run is refused, and the advised command trains elsewhere"
    damage, part = GONE[kind]
    damage(Path("run/state"))
    if last == "removed":
        shutil.rmtree("run/last")
    before = tree("run")
    line = refuses(neox_train_main, RUN, capsys, "run/state: ", part, steps=True)
    assert tree("run") == before
    words = shlex.split(re.search(r"train anew: neox_train (.+)", line)[1])
    assert words == ["run/config.yml", "--checkpoint_dir", "run-2"]


def test_a_state_that_may_not_be_listed(saved, monkeypatch, capsys):
    "It is not taken for a missing one"
    usual = os.listdir

    def refuse(path="."):
        if Path(path) == Path("run/state"):
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path)

    usual_scan = os.scandir

    def refuse_scan(path="."):
        if Path(path) == Path("run/state"):
            raise PermissionError(13, "Permission denied", str(path))
        return usual_scan(path)

    before = tree("run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        patch.setattr(os, "scandir", refuse_scan)
        refuses(
            neox_train_main,
            RUN,
            capsys,
            "run/state: could not be read (Permission denied); let this user read it",
            steps=True,
        )
    assert tree("run") == before


def test_a_run_that_ended_before_its_first_state(capsys):
    "It begins anew, with a line"

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    with pytest.raises(Killed):
        train(
            "quickstart",
            callback=during(4, kill),
            save="run",
            **{**SMALL, "checkpoint_factor": 100},
        )
    assert saved_steps("run") == [] and Path("run/best").exists()
    train("quickstart", save="run", **{**SMALL, "checkpoint_factor": 100})
    assert (
        "run: the run there ended before its first state; it begins anew" in capsys.readouterr().err
    )
    assert saved_steps("run") == [8] and not list(Path("run").glob("best.*"))


def test_the_folder_is_renamed_during_an_evaluation(monkeypatch, capsys):
    "Nothing is made in its former place"
    usual = run_module.evaluate

    def evaluate(run):
        if run.step == 4:
            os.rename("run", "moved")
        return usual(run)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "evaluate", evaluate)
        with pytest.raises(
            NeoxError,
            match=(
                "run: was removed, renamed or exchanged while it was trained; the run ends at "
                "step 4"
            ),
        ):
            train("quickstart", save="run", **SMALL)
    assert not Path("run").exists()
    os.rename("moved", "run")
    train("quickstart", save="run", **SMALL)
    assert saved_steps("run") == [8]


def test_a_failing_run_cleans_up_before_it_lets_go(monkeypatch, capsys):
    "What the next run writes once the lock is free stays"
    import filelock

    usual, after = filelock.FileLock.release, []

    def release(self, *args, **kwargs):
        usual(self, *args, **kwargs)
        if str(self.lock_file).endswith("run/.lock") and not after:
            after.append(None)
            Path("run").mkdir(exist_ok=True)
            for name in ("config.yml", "log.jsonl", ".lock"):
                (Path("run") / name).write_text("of the next run")

    def fails(run):
        raise NeoxError("the ink has dried; dip the pen")

    monkeypatch.setattr(filelock.FileLock, "release", release)
    monkeypatch.setattr(run_module, "compile_if_it_pays", fails)
    refuses(neox_train_main, RUN, capsys, "the ink has dried")
    assert after and {p.name: p.read_text() for p in Path("run").iterdir()} == dict.fromkeys(
        ["config.yml", "log.jsonl", ".lock"], "of the next run"
    )


EDITS = [
    ("seed: 1337", "seed: 5"),
    ("hidden_dropout: 0.1", "hidden_dropout: 0.5"),
    ("lr: 0.002", "lr: 0.02"),
    ("train_iters: 30", "train_iters: 45"),
]


@pytest.mark.parametrize("there, other", EDITS, ids=[other for _, other in EDITS])
def test_an_edited_config_of_a_stopped_run(there, other, saved, capsys):
    "A run goes on with the settings it was begun with, or with none"
    shutil.rmtree(saved)
    config, key = Path("run/config.yml"), other.split(":")[0]
    text = config.read_text()
    assert there in text
    config.write_text(text.replace(there, other))
    before = tree("run")
    line = refuses(
        neox_train_main,
        ["run/config.yml", "--checkpoint_dir", "run"],
        capsys,
        "run/config.yml: was changed since the state of step 15",
        other.split(": ")[1],
        steps=True,
    )
    assert (key if key != "lr" else "optimizer") in line and "--checkpoint_dir run-2" in line
    assert {k: v for k, v in tree("run").items() if k != ".shakespeare_neox.json"} == {
        k: v for k, v in before.items() if k != ".shakespeare_neox.json"
    }
    config.write_text(text)
    assert (
        "goes on from step 15"
        in succeeds(neox_train_main, ["run/config.yml", "--checkpoint_dir", "run"], capsys).err
    )


def test_an_edited_config_that_changes_no_weights(saved, capsys):
    shutil.rmtree(saved)
    config = Path("run/config.yml")
    config.write_text(config.read_text().replace("sample_tokens: 20", "sample_tokens: 3"))
    said = succeeds(neox_train_main, ["run/config.yml", "--checkpoint_dir", "run"], capsys).err
    assert "sample_tokens: 20 there, 3 here" in said and "goes on from step 15" in said


@posix
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_pipe_in_a_state(name, saved, capsys):
    "It is not waited for; the older state serves"
    (saved / name).unlink()
    os.mkfifo(saved / name)
    said = succeeds(neox_train_main, RUN, capsys).err
    assert (
        f"{name}: is not a file; going on from an older state" in said
        and "goes on from step 15" in said
    )


@pytest.mark.parametrize("name", ["state", "model"])
def test_what_the_tensor_library_refuses_to_write(name, monkeypatch, capsys):
    import safetensors.torch

    usual = safetensors.torch.save_file

    def save_file(tensors, path, **kwargs):
        if Path(path).name == f"{name}.safetensors":
            raise safetensors.SafetensorError("Error while serializing: header too large")
        return usual(tensors, path, **kwargs)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    refuses(
        neox_train_main,
        RUN,
        capsys,
        "could not be written (Error while serializing: header too large)",
        steps=True,
    )


@pytest.mark.parametrize("kind", FULL)
def test_full_memory_while_a_sample_is_written(kind, monkeypatch, capsys):
    "A sample is worth no run"
    usual = run_module.sample

    def sample(*args, **kwargs):
        if not seen:
            seen.append(None)
            raise FULL[kind]
        return usual(*args, **kwargs)

    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "sample", sample)
        train("quickstart", save="run", **SMALL)
    assert (
        capsys.readouterr().err.count(
            "out of memory while a sample was generated at step 4; the run goes on without it"
        )
        == 1
    )
    assert [bool(e["sample"]) for e in events("run", "evaluation")] == [False, True]
    train("quickstart", save="whole", **SMALL)
    assert far(weights("run"), weights("whole")) == 0


def test_best_that_may_not_be_read(saved, monkeypatch, capsys):
    shutil.rmtree(saved)
    usual = os.stat

    def refuse(path, *args, **kwargs):
        if isinstance(path, (str, os.PathLike)) and Path(path) == Path(
            "run/best/model.safetensors"
        ):
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        refuses(
            neox_train_main,
            RUN,
            capsys,
            "run/best/model.safetensors: could not be read (Permission denied)",
            steps=True,
        )
    succeeds(neox_train_main, RUN, capsys)


@posix
@pytest.mark.parametrize("kind", ["a file", "below a file", "a disk that may not be written"])
def test_a_cache_that_cannot_be_used(kind, monkeypatch, capsys):
    "The line names the variable that leads elsewhere"
    Path("mine").write_text("mine")
    place = Path(
        "mine/deeper" if kind == "below a file" else "mine" if kind == "a file" else "cache"
    ).absolute()
    monkeypatch.setenv("NEOX_CACHE", str(place))
    if kind.startswith("a disk"):

        def no(*args, **kwargs):
            raise OSError(30, "Read-only file system", str(place))

        monkeypatch.setattr(run_module, "locked", no)
    refuses(neox_train_main, RUN, capsys, str(place), "NEOX_CACHE", "may write")
    assert Path("mine").read_text() == "mine"


# the environment

NONSENSE = [
    ("LOCAL_RANK", "abc"),
    ("LOCAL_RANK", "0"),
    ("LOCAL_RANK", "3"),
    ("RANK", "abc"),
    ("RANK", "2"),
    ("RANK", "-1"),
    ("WORLD_SIZE", "abc"),
    ("WORLD_SIZE", "0"),
    ("WORLD_SIZE", "-1"),
    ("WORLD_SIZE", "2"),
    ("WORLD_SIZE", "1e3"),
    ("LOCAL_WORLD_SIZE", "x"),
    ("OMP_NUM_THREADS", "abc"),
    ("OMP_NUM_THREADS", "0"),
    ("OMP_NUM_THREADS", "-3"),
    ("OMP_NUM_THREADS", "1.5"),
    ("OMP_NUM_THREADS", "99999999"),
]


@pytest.mark.parametrize("name, value", NONSENSE)
def test_nonsense_in_the_environment(name, value, monkeypatch, capsys):
    "One line names the variable and how to be rid of it"
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        neox_train_main(RUN)
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert stopped.value.code == 2 and out == "" and "Traceback" not in err
    assert name in line and "unset" in line and not Path("run").exists()


@pytest.mark.parametrize(
    "name, value",
    [
        ("OMP_NUM_THREADS", "2,1"),
        ("OMP_NUM_THREADS", " 1 "),
        ("OMP_NUM_THREADS", ""),
        ("RANK", ""),
        ("WORLD_SIZE", "1"),
    ],
)
def test_sense_in_the_environment(name, value, monkeypatch):
    if (name, value) == ("WORLD_SIZE", "1"):
        pytest.skip("a launcher's, with others beside it")
    monkeypatch.setenv(name, value)
    make_run(small())


def test_interrupted_while_words_are_read(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("shakespeare_neox.engine.base.make_parser", interrupt)
    with pytest.raises(SystemExit) as stopped:
        neox_train_main(["quickstart"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "neox_train: interrupted\n"


@posix
@pytest.mark.parametrize("seconds", [0.1, 0.6, 1.2, 1.8, 2.4, 3.2])
def test_interrupted_in_the_first_seconds(seconds, capsys):
    "130, no traceback, and nothing that is in the way of the next command"
    start = (
        "import sys; sys.argv[0] = 'neox_train'; from shakespeare_neox.engine.base import start; "
        "print('up', flush=True); start()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start, *RUN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "up\n"  # until then, Python itself is starting
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    status, out, err = ended(process)
    if status == 0:
        pytest.skip("it was faster")
    assert status in (130, -signal.SIGINT) and "Traceback" not in err, err
    words = [*RUN, "seed=3"] if not Path("run").exists() or not saved_steps("run") else RUN
    succeeds(neox_train_main, words, capsys)


# sizes


@pytest.mark.parametrize(
    "settings", [dict(seq_length=1, max_position_embeddings=1), dict(seq_length=1)], ids=str
)
@pytest.mark.parametrize(
    "more",
    [
        dict(),
        dict(average_steps=2, optimizer=dict(type="Muon", params=dict(lr=0.01))),
        dict(gradient_accumulation_steps=2),
    ],
    ids=str,
)
def test_a_window_of_one_token(settings, more, capsys):
    result = train("quickstart", save="run", **{**SMALL, **settings, **more})
    assert result.step == 8 and math.isfinite(result.best_loss)


@pytest.mark.parametrize(
    "words, part",
    [(["split=100,0,0"], "leaves no validation text"), (["split=99.97,0.03,0"], "too short")],
    ids=str,
)
def test_an_empty_validation(words, part, capsys):
    Path("mine.txt").write_text(TEXT[:1500])
    refuses(
        neox_train_main,
        [*RUN, "data_path=mine.txt", "vocab_file=", *words],
        capsys,
        part,
        steps=True,
    )
    assert not Path("run").exists()


def test_a_large_vocabulary_is_weighed_before_it_is_made(monkeypatch, capsys):
    "The size of the vocabulary is known only once the data are open, and counts"
    seen = []
    monkeypatch.setattr(device_module, "device_bytes", lambda device: 4_000_000)
    monkeypatch.setattr(run_module, "GPT", lambda config: seen.append(config))
    text = "".join(chr(n) for n in range(0x4E00, 0x4E00 + 20000)) + "\n"
    Path("mine.txt").write_text(text * 3)
    refuses(
        neox_train_main,
        [*RUN, "data_path=mine.txt", "vocab_file=", "sample_prompt=一"],
        capsys,
        "GB of memory",
        steps=True,
    )
    assert seen == []


# the first line of a sample


def test_a_text_without_a_new_line(capsys):
    """The default of sample_prompt is a new line, which such a text lacks; one that was asked for
    is refused"""
    Path("line.txt").write_text("All in one line, from the beginning to the end. " * 200)
    words = ["data_path=line.txt", *(word for word in RUN if not word.startswith("data_path"))]
    said = succeeds(neox_train_main, words, capsys).err
    assert "samples begin with 'A'" in said
    events = [
        json.loads(line)
        for line in Path("runs/quickstart/log.jsonl" if Path("runs").exists() else "run/log.jsonl")
        .read_text()
        .splitlines()
    ]
    samples = [event["sample"] for event in events if event["event"] == "evaluation"]
    assert samples and all(sample.startswith("A") for sample in samples)
    refuses(
        neox_train_main,
        [*words, "sample_prompt=Z\\n", "--checkpoint_dir", "other"],
        capsys,
        "sample_prompt",
        "give another one",
    )


def test_every_model_of_a_process_is_compiled(monkeypatch):
    "Torch keeps few compiled forms of a function, and runs the models after them uncompiled"
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(  # tracing alone, which the limit is about; it needs no compiler
        torch.nn.Module, "compile", lambda self, **how: compiled(self, backend="eager", **how)
    )
    counted = torch._dynamo.utils.counters["frames"]
    with torch._dynamo.config.patch(recompile_limit=2):
        for heads in (1, 2, 3, 4):
            config = load_config("quickstart", hidden_size=8 * heads, num_attention_heads=heads)
            model, before = GPT(config.model_config(65)), counted["ok"]
            ids = torch.zeros(1, 8, dtype=torch.long)
            assert compile_model(model, lambda model=model, ids=ids: model(ids))
            assert counted["ok"] > before, f"the model with {heads} heads ran uncompiled"
