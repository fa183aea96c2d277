"""Several processes train the same model as one: started by torchrun and by accelerate, on one
machine and on two, stopped, killed and gone on with."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from shakespeare_neox.engine import device as device_module
from shakespeare_neox.engine.base import NeoxError, assets
from shakespeare_neox.engine.recipe import find_recipe, load_config
from shakespeare_neox.engine.run import train
from shakespeare_neox.engine.state import saved_steps

pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun and signals as on POSIX")
FILES = assets("configs") / "accelerate"
TINY = dict(
    num_layers=1,
    hidden_size=32,
    num_attention_heads=2,
    seq_length=32,
    pos_emb="rotary",
    hidden_dropout=0.0,
    attention_dropout=0.0,
    data_path="sample",
    split="90,1,9",
    train_iters=20,
    precision="fp32",
    optimizer=dict(type="AdamW", params=dict(lr=3e-3)),
    warmup=0.05,
    lr_decay_style="cosine",
    eval_interval=10,
    log_interval=1,
    checkpoint_factor=10,
    sample_tokens=4,
    compile="off",
    seed=7,
)
HALF, WHOLE = (
    dict(train_micro_batch_size_per_gpu=4, gradient_accumulation_steps=2),
    dict(train_micro_batch_size_per_gpu=8, gradient_accumulation_steps=2),
)
WORKER = """
# neox_train in double precision. SAME_BATCH: a mistake on purpose, both processes read the same
# windows; SLOW: time to stop it
import os, time, torch
torch.set_default_dtype(torch.float64)
from shakespeare_neox.engine import run
from shakespeare_neox.engine.run import neox_train_main
if os.environ.get("SAME_BATCH"):
    real = run.get_batch
    run.get_batch = lambda tokens, seed, i, *sizes: real(tokens, seed, i//2, *sizes)
if os.environ.get("SLOW"):
    fast = run.get_batch
    run.get_batch = lambda *args: time.sleep(0.05) or fast(*args)
neox_train_main()
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def torchrun(*flags):
    return [sys.executable, "-m", "torch.distributed.run", *flags]


def accelerate(*flags):
    return [sys.executable, "-m", "accelerate.commands.launch", *flags]


def two():
    return torchrun("--nproc_per_node", "2", "--master_port", free_port())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with the recipe and the worker, and a cache of its own"
    folder = tmp_path_factory.mktemp("several")
    (folder / "tiny.yml").write_text(yaml.safe_dump({**TINY, **HALF}))
    (folder / "worker.py").write_text(WORKER)
    return folder


class Started:
    "A launcher with its processes"

    def __init__(self, home, launcher, *words, **env):
        self.err = home / f"{time.monotonic_ns()}.err"
        env = {
            k: v
            for k, v in {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "NEOX_CACHE": str(home / "cache"),
                **env,
            }.items()
            if v
        }
        self.process = subprocess.Popen(
            [*launcher, *map(str, words)],
            cwd=home,
            env=env,
            stdout=subprocess.PIPE,
            stderr=self.err.open("w"),
            text=True,
        )
        self.start = time.monotonic()

    def text(self):
        return self.err.read_text()

    def reach(self, step):
        "Waits until a step was logged"
        while not re.search(rf"^step +{step}/\d+  loss", self.text(), re.M):
            assert self.process.poll() is None and time.monotonic() - self.start < 120, self.text()
            time.sleep(0.01)
        return self

    def workers(self):
        return sorted(
            (
                p
                for p in psutil.Process(self.process.pid).children(recursive=True)
                if "worker.py" in " ".join(p.cmdline())
            ),
            key=lambda p: int(p.environ()["RANK"]),
        )

    def end(self):
        self.out = self.process.communicate(timeout=120)[0]
        return self.process.returncode

    def complete(self):
        assert self.end() == 0, self.text()
        return self


def weights(folder):
    return {
        k: v
        for k, v in load_file(
            folder / "state" / f"step_{saved_steps(folder)[-1]}" / "state.safetensors"
        ).items()
        if k.startswith("model|")
    }


def gap(a, b):
    return (
        max((a[k] - b[k]).abs().max().item() for k in a) if a.keys() == b.keys() else float("inf")
    )


def events(folder, kind):
    return [
        e
        for e in map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        if e["event"] == kind
    ]


def same_run(a, b, within):
    "Weights, and every loss that was logged"
    assert gap(weights(a), weights(b)) < within
    for kind, n in (("log", 20), ("evaluation", 2)):
        pairs = list(zip(events(a, kind), events(b, kind), strict=True))
        assert len(pairs) == n and all(
            x["step"] == y["step"] and abs(x["loss"] - y["loss"]) < within for x, y in pairs
        )
    assert all(
        abs(x["gradient_norm"] - y["gradient_norm"]) < within
        for x, y in zip(events(a, "log"), events(b, "log"))
    )


@pytest.fixture(scope="module")
def one(home):
    "The folder of a run of one process, in double precision; the batch is that of two"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOX_CACHE", str(home / "cache"))
        torch.set_default_dtype(torch.float64)
        try:
            train(str(home / "tiny.yml"), save=str(home / "one"), shown="lines", **WHOLE)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.use_deterministic_algorithms(False)
    return home / "one"


@pytest.fixture(scope="module")
def pair(home):
    "A run of two processes, complete"
    return Started(
        home, two(), "worker.py", "tiny.yml", "--checkpoint_dir", home / "pair"
    ).complete()


# as one process


def test_two_equal_one(home, one, pair):
    same_run(home / "pair", one, 1e-9)


def test_only_the_first_speaks_and_writes(home, pair):
    lines = [line for line in pair.text().splitlines() if line.startswith(("step ", "pair: "))]
    assert len(lines) == len(set(lines)) == 20 + 2 + 1 and pair.out == f"{home / 'pair' / 'best'}\n"
    assert {
        p.name
        for p in (home / "pair").iterdir()
        if p.name not in (".lock", ".shakespeare_neox.json")
    } == {"best", "last", "state", "config.yml", "log.jsonl", "loss.png", "report.md"}
    (start,) = events(home / "pair", "start")
    assert start["processes"] == 2


def test_the_same_batch_twice_is_another_run(home, one):
    Started(
        home, two(), "worker.py", "tiny.yml", "--checkpoint_dir", home / "twice", SAME_BATCH="1"
    ).complete()
    assert gap(weights(home / "twice"), weights(one)) > 1e-4


def test_accelerate_launch(home, one):
    "With the configuration that ships, and the command itself instead of a script"
    words = ["--config_file", FILES / "two_processes_cpu.yaml", "--main_process_port", free_port()]
    Started(
        home, accelerate(*words), "worker.py", "tiny.yml", "--checkpoint_dir", home / "accelerate"
    ).complete()
    same_run(home / "accelerate", one, 1e-9)


@pytest.mark.slow
def test_the_installed_command(home):
    "What the page says to type"
    command = Path(sys.executable).parent / "neox_train"
    if not command.exists():
        pytest.skip("not installed")
    for name, launcher in dict(
        a=[*two(), "--no_python"],
        b=accelerate(
            "--multi_gpu", "--num_processes", "2", "--main_process_port", free_port(), "--no_python"
        ),
    ).items():
        Started(home, launcher, command, "tiny.yml", "--checkpoint_dir", home / name).complete()
        assert events(home / name, "start")[0]["processes"] == 2
    assert gap(weights(home / "a"), weights(home / "b")) == 0


def machines(home, launchers, folder):
    "Starts the same run once for each machine, and waits"
    both = [
        Started(home, launcher, "worker.py", "tiny.yml", "--checkpoint_dir", folder)
        for launcher in launchers
    ]
    return [s.complete() for s in both]


def test_two_machines(home, one):
    "Two agents of torchrun that meet on the loopback device"
    meet = [
        "--nnodes",
        "2",
        "--nproc_per_node",
        "1",
        "--rdzv_backend",
        "c10d",
        "--rdzv_id",
        "7",
        "--rdzv_endpoint",
        f"127.0.0.1:{free_port()}",
        "--local_addr",
        "127.0.0.1",
    ]
    outs = [
        s.out
        for s in machines(
            home, [torchrun(*meet, "--node_rank", str(rank)) for rank in (0, 1)], home / "nodes"
        )
    ]
    assert sorted(outs) == ["", f"{home / 'nodes' / 'best'}\n"]
    same_run(home / "nodes", one, 1e-9)


@pytest.mark.slow
def test_two_machines_of_accelerate(home, one):
    words = [
        "--config_file",
        FILES / "two_machines.yaml",
        "--num_processes",
        "2",
        "--main_process_port",
        free_port(),
    ]
    machines(
        home,
        [accelerate(*words, "--machine_rank", str(rank)) for rank in (0, 1)],
        home / "machines",
    )
    same_run(home / "machines", one, 1e-9)


@pytest.mark.slow
def test_compiled(home, one):
    Started(
        home, two(), "worker.py", "tiny.yml", "compile='on'", "--checkpoint_dir", home / "compiled"
    ).complete()
    if not events(home / "compiled", "start")[0]["compiled"]:
        pytest.skip("torch.compile does not work on this machine")
    same_run(home / "compiled", one, 1e-9)


@pytest.mark.slow
def test_dropout_masks_differ(home, monkeypatch):
    """Two processes with the same windows and dropout: with one seed for both they would be one
    process"""
    Started(
        home,
        two(),
        "worker.py",
        "tiny.yml",
        "hidden_dropout=0.5",
        "--checkpoint_dir",
        home / "masks",
        SAME_BATCH="1",
    ).complete()
    monkeypatch.setenv("NEOX_CACHE", str(home / "cache"))
    torch.set_default_dtype(torch.float64)
    try:
        train(str(home / "tiny.yml"), save=str(home / "mask"), shown="lines", hidden_dropout=0.5)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    assert gap(weights(home / "masks"), weights(home / "mask")) > 1e-4


# stopped, killed, gone on with

DROPOUT = ["train_iters=40", "hidden_dropout=0.1", "checkpoint_factor=7"]


@pytest.fixture(scope="module")
def dropout(home):
    Started(
        home, two(), "worker.py", "tiny.yml", *DROPOUT, "--checkpoint_dir", home / "dropout"
    ).complete()
    return home / "dropout"


def goes_on(home, name, reference, *words):
    "Goes on to the same bits as a run that was never stopped"
    Started(
        home, two(), "worker.py", "tiny.yml", *words, "--checkpoint_dir", home / name
    ).complete()
    assert gap(weights(home / name), weights(reference)) == 0
    assert [e["loss"] for e in events(home / name, "evaluation")] == [
        e["loss"] for e in events(reference, "evaluation")
    ]


def dies(home, name, rank, *words):
    """One process is killed: the others end within a minute, torchrun names it, and nothing is
    half-written"""
    started = Started(
        home, two(), "worker.py", "tiny.yml", *words, "--checkpoint_dir", home / name, SLOW="1"
    ).reach(11)
    start = time.monotonic()
    started.workers()[rank].kill()
    assert started.end() != 0 and time.monotonic() - start < 60
    # torchrun lists every process that failed; which one it calls the root cause is a race between
    # the signal and the error that the other raises when the connection breaks
    killed = rf"rank +: {rank} .*\n +exitcode +: -{signal.SIGKILL:d} "
    assert re.search(killed, started.text())
    assert saved_steps(home / name) and not list((home / name).rglob(".*.neox-tmp"))


def test_a_process_dies(home, pair):
    dies(home, "dead", 1)
    goes_on(home, "dead", home / "pair")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_dies_with_dropout(home, dropout, rank):
    dies(home, f"dead-{rank}", rank, *DROPOUT)
    goes_on(home, f"dead-{rank}", dropout, *DROPOUT)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["worker", "launcher"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signal(home, dropout, who, number):
    "All stop after the same step, which is saved, though one alone got the signal"
    name = f"{who}-{number}"
    started = Started(
        home, two(), "worker.py", "tiny.yml", *DROPOUT, "--checkpoint_dir", home / name, SLOW="1"
    ).reach(11)
    (started.workers()[1] if who == "worker" else started.process).send_signal(number)
    assert started.end() != 0
    (step,) = re.findall(r"stopped at step (\d+); the same command", started.text())
    assert saved_steps(home / name)[-1] == int(step) < 40
    goes_on(home, name, dropout, *DROPOUT)


def test_an_error_in_one_process(home):
    "The reason is told by the one that has it, and by torchrun"
    (home / "bad.py").write_text(
        WORKER.replace(
            "neox_train_main()",
            "from shakespeare_neox.engine.base import NeoxError\nfrom "
            "shakespeare_neox.engine.device import DeviceTrainer\nreal = "
            "DeviceTrainer.train_step\n"
            "def step(self):\n    if self.step == 5 and self.accelerator.process_index == 1: "
            "raise NeoxError('the ink has dried; dip the pen')\n    return real(self)\n"
            "DeviceTrainer.train_step = step\nneox_train_main()",
        )
    )
    started = Started(home, two(), "bad.py", "tiny.yml", "--checkpoint_dir", home / "bad")
    assert started.end() != 0
    assert "neox_train (process 1): the ink has dried; dip the pen" in started.text()
    assert re.search(r"rank +: 1 (.*\n)+? +traceback : .*the ink has dried", started.text())


# another number of processes


def test_another_number_of_processes(home, one):
    """Two processes stop when one gets a signal; one goes on with the same batch; with another
    batch it says what to change"""
    folder = home / "fewer"
    started = Started(
        home, two(), "worker.py", "tiny.yml", "--checkpoint_dir", folder, SLOW="1"
    ).reach(5)
    started.workers()[1].send_signal(signal.SIGTERM)
    assert started.end() != 0 and saved_steps(folder)[-1] < 20
    refused = Started(home, [sys.executable], "worker.py", "tiny.yml", "--checkpoint_dir", folder)
    assert refused.end() == 2
    cure = re.search(
        r"its steps read 16 windows, here they would read 8 .* processes 1\); give (.+)",
        refused.text(),
    )[1]
    assert cure == "train_micro_batch_size_per_gpu=4 gradient_accumulation_steps=4"
    Started(
        home, [sys.executable], "worker.py", "tiny.yml", *cure.split(), "--checkpoint_dir", folder
    ).complete()
    same_run(folder, one, 1e-9)


# what was asked for


def test_fsdp_is_refused(home):
    "accelerate turns it into data parallelism on a CPU, without a word"
    started = Started(
        home,
        accelerate("--use_fsdp", "--num_processes", "2", "--main_process_port", free_port()),
        "worker.py",
        "tiny.yml",
        "--checkpoint_dir",
        home / "fsdp",
    )
    assert (
        started.end() != 0
        and "FSDP is asked for" in started.text()
        and not (home / "fsdp").exists()
    )


@pytest.mark.parametrize(
    "env, part",
    [
        (dict(ACCELERATE_USE_DEEPSPEED="true"), "DEEPSPEED is asked for"),
        (dict(ACCELERATE_USE_FSDP="True"), "FSDP is asked for"),
        (
            dict(ACCELERATE_MIXED_PRECISION="no", MASTER_ADDR="127.0.0.1"),
            "accelerate was asked for several processes and started one",
        ),
    ],
)
def test_what_a_launcher_asks_for(env, part, monkeypatch):
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(NeoxError, match=part):
        device_module.make_accelerator(load_config("quickstart").train)


@pytest.mark.slow
def test_cpu_flag_of_accelerate(home):
    started = Started(
        home,
        accelerate("--cpu", "--num_processes", "2"),
        "worker.py",
        "tiny.yml",
        "--checkpoint_dir",
        home / "alone",
    )
    assert started.end() != 0 and "started one" in started.text() and not (home / "alone").exists()


def test_configurations_are_no_recipes():
    names = sorted(p.stem for p in FILES.glob("*.yaml"))
    assert names == ["one_machine_gpus", "two_machines", "two_processes_cpu"]
    for name in names:
        settings = yaml.safe_load((FILES / f"{name}.yaml").read_text())
        assert settings["distributed_type"] == "MULTI_GPU" and settings["use_cpu"] is False
        with pytest.raises(NeoxError, match="no recipe of this name"):
            find_recipe(name)
