"""Sweeps and learning-rate range tests: two points, failing points, interruptions, and folders that
hold something else"""

import math
import re
import shlex
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import refuses, succeeds, tree

from shakespeare_neox.engine import tune as module
from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.recipe import load_config
from shakespeare_neox.engine.tune import RateCurve, find_rate, neox_tune_main, tune

TINY = dict(
    num_layers=1,
    hidden_size=16,
    num_attention_heads=2,
    seq_length=16,
    max_position_embeddings=16,
    train_iters=3,
    eval_interval=3,
    log_interval=1,
    sample_tokens=1,
    train_micro_batch_size_per_gpu=2,
    precision="fp32",
    compile="off",
    warmup=0.0,
)
SHARED = [f"{key}={value}" for key, value in TINY.items()]
RESULT = SimpleNamespace(best_loss=2.5, bits_per_byte=3.6, seconds=1.0, events=[])


def sweep(*words, **more):
    return tune("quickstart", words=[*words, *SHARED], **more)


def rows(folder):
    "The table of tune.md: setting -> the other columns"
    lines = (Path(folder) / "tune.md").read_text(encoding="utf-8").splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")][2:]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}


def fails(monkeypatch, *outcomes):
    "Lets training give or raise these, one after another"
    left = list(outcomes)

    def train(recipe, shown, command):
        outcome = left.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(module, "train_recipe", train)


# the range test


@pytest.mark.parametrize("steps", [0, 1, 2, -3, 2.5, "9", None])
def test_too_few_steps(steps):
    with pytest.raises(NeoxError, match="steps: .* 3 or more"):
        find_rate(load_config("quickstart", **TINY), steps=steps)


@pytest.mark.parametrize(
    "lowest, highest",
    [
        (0, 1),
        (-1e-3, 1),
        (1e-3, 1e-3),
        (1e-2, 1e-3),
        (1e-3, math.inf),
        (math.nan, 1),
        (1e-3, math.nan),
    ],
)
def test_no_range(lowest, highest):
    with pytest.raises(NeoxError, match="the lower first"):
        find_rate(load_config("quickstart", **TINY), lowest, highest)


def planted(monkeypatch, losses):
    "Lets the steps of a range test have these losses"
    left = iter(losses)
    trainer = SimpleNamespace(model=SimpleNamespace(train=lambda: None), settings=nullcontext())

    def step():
        trainer.loss = torch.tensor(next(left))

    trainer.train_step = step
    monkeypatch.setattr(module, "make_run", lambda recipe: SimpleNamespace(trainer=trainer))


@pytest.mark.parametrize(
    "losses, says",
    [
        ([math.nan] * 9, "became nan"),
        ([math.inf] * 9, "became inf"),
        ([4.0, math.nan], "became nan"),
        ([4.0, 3.0, math.nan], "became nan"),
        ([4.0, 9.0], "did not fall"),
        ([4.0, 3.9, 9.0], "did not fall"),
        ([4.0, 4.1, 4.2, 4.3, 4.4, 4.5, 4.6, 4.7, 4.8], "did not fall"),
    ],
)
def test_losses_that_make_no_curve(monkeypatch, losses, says):
    planted(monkeypatch, losses)
    with pytest.raises(NeoxError, match=says) as raised:
        find_rate(None, 1e-3, 1.0, steps=9)
    assert "lower first rate" in str(raised.value) and "\n" not in str(raised.value)


def test_a_curve_that_breaks_late(monkeypatch):
    """What came before the break is the curve; its lowest point and steepest fall are where they
    are by hand"""
    planted(monkeypatch, [4.0, 4.0, 1.0, 2.0, 9.0])
    curve = find_rate(None, 1e-4, 1.0, steps=5)
    wanted, mean = [], 0.0
    for i, loss in enumerate([4.0, 4.0, 1.0, 2.0]):
        mean = 0.9 * mean + 0.1 * loss
        wanted.append(mean / (1 - 0.9 ** (i + 1)))
    assert curve.losses == pytest.approx(wanted) and curve.rates == pytest.approx(
        [1e-4, 1e-3, 1e-2, 1e-1]
    )
    lowest = wanted.index(min(wanted))
    assert curve.minimum() == pytest.approx(
        10 ** (lowest - 4.0)
    ) and curve.suggestion == pytest.approx(curve.minimum() / 10)


def test_a_real_curve_of_three_steps():
    import matplotlib.pyplot as plt

    curve = find_rate(
        load_config("quickstart", **{**TINY, "train_micro_batch_size_per_gpu": 64}),
        1e-3,
        2e-2,
        steps=3,
    )
    assert len(curve.rates) == 3 and curve.rates[0] <= curve.steepest() <= curve.rates[-1]
    assert all(math.isfinite(loss) for loss in curve.losses)
    assert curve.plot(plt.subplots()[1]).get_xlabel() == "learning rate"


def test_the_command_prints_one_line(here, capsys):
    refuses(
        neox_tune_main,
        ["quickstart", "--find_rate", *SHARED, "optimizer.params.lr=1e-3,2e-3"],
        capsys,
        "lr",
    )
    assert not (here / "runs").exists()


def test_a_picture_of_somebody_else(here, capsys):
    Path("mine").mkdir()
    Path("mine/rate.png").write_bytes(b"\x89PNG mine")
    before = tree(here)
    refuses(
        neox_tune_main,
        ["quickstart", "--find_rate", *SHARED, "--checkpoint_dir", "mine"],
        capsys,
        "mine/rate.png",
        "another folder",
    )
    assert tree(here) == before


def test_one_folder_for_rate_and_sweep(here, monkeypatch, capsys):
    "Both commands share runs/NAME-tune, in either order and again"
    monkeypatch.setattr(
        module, "find_rate", lambda recipe: RateCurve([1e-3, 1e-2, 1e-1], [4.0, 3.0, 3.5])
    )
    fails(monkeypatch, *[RESULT] * 4)
    for _ in range(2):
        assert (
            succeeds(neox_tune_main, ["quickstart", "--find_rate", *SHARED], capsys).out
            == "1.0e-03\n"
        )
        assert succeeds(
            neox_tune_main, ["quickstart", "weight_decay=0,0.1", *SHARED], capsys
        ).out.strip() == str(Path("runs/quickstart-tune/tune.md"))


# sweeps


def test_two_points(here, capsys):
    "The smallest sweep there is; its runs are ordinary folders of runs"
    result = sweep("optimizer.params.lr=1e-3,2e-2")
    assert [row["error"] for row in result.rows] == ["", ""] and result.rows[0][
        "loss"
    ] <= result.rows[1]["loss"]
    folder = Path("runs/quickstart-tune")
    assert {p.name for p in folder.iterdir()} - {".lock"} == {
        "tune.md",
        "tune.png",
        "optimizer.params.lr_1e-3",
        "optimizer.params.lr_2e-2",
    }
    assert (
        set(rows(folder)) == {"lr=1e-3", "lr=2e-2"}
        and repr(result) in (folder / "tune.md").read_text()
    )
    for row in result.rows:
        assert rows(folder)[row["setting"]][0] == f"{row['loss']:.4f}"
        assert (
            folder / f"optimizer.params.lr_{row['values'][0]}" / "best/model.safetensors"
        ).exists()
    capsys.readouterr()
    again = sweep("optimizer.params.lr=1e-3,2e-2")
    assert [row["loss"] for row in again.rows] == [row["loss"] for row in result.rows]
    assert capsys.readouterr().err.count("is complete") == 2
    places = [folder / "optimizer.params.lr_1e-3", folder / "optimizer.params.lr_2e-2"]
    for place in places:
        assert "wandb_group: quickstart-tune" in (place / "config.yml").read_text()
    before = {place: tree(place) for place in places}
    words = [*map(str, places), "--checkpoint_dir", "pair"]
    assert succeeds(neox_tune_main, words, capsys).out.strip() == str(Path("pair/tune.md"))
    table = rows("pair")
    assert {name.split(": ")[0] for name in table} == {place.name for place in places}
    assert [numbers[0] for numbers in table.values()] == [
        f"{row['loss']:.4f}" for row in result.rows
    ]
    assert before == {place: tree(place) for place in places}
    refuses(neox_tune_main, [str(places[0])], capsys, "two or more")
    refuses(neox_tune_main, [str(places[0]), str(here)], capsys, "no run here")


@pytest.mark.parametrize(
    "words",
    [
        ["data_path=sample,shakespeare"],
        ["lr_decay_style=linear,cosine", "compile=off,auto"],
        ["seed=1,2", "wandb_group=e,f"],
        ["wandb_group=e,1e5"],
        ["wandb_group=.,+"],
        ["wandb_group=nan,inf"],
        ["wandb_group=$x,$y_"],
        ["wandb_group=_a,_b"],
    ],
)
def test_values_that_only_look_like_numbers(here, monkeypatch, words):
    "Each is drawn, whatever its values are"
    fails(monkeypatch, *[RESULT] * 4)
    result = tune("quickstart", words=words)
    assert len(rows("runs/quickstart-tune")) == len(result.rows) == 2 ** len(words)
    assert Path("runs/quickstart-tune/tune.png").stat().st_size > 1000


OUTCOMES = {
    "no text": (RuntimeError(), "RuntimeError"),
    "a NeoxError without a text": (NeoxError(), "NeoxError"),
    "nothing before the advice": (NeoxError("; try again"), "NeoxError"),
    "assertion": (AssertionError(), "AssertionError"),
    "several lines": (ValueError("one | two\n\nthree"), "ValueError: one \\| two three"),
    "a full disk": (
        OSError(28, "No space left on device"),
        "OSError: [Errno 28] No space left on device",
    ),
    "NaN": (
        SimpleNamespace(best_loss=math.nan, bits_per_byte=math.nan, seconds=1.0, events=[]),
        "its validation loss is nan",
    ),
    "never better": (
        SimpleNamespace(best_loss=math.inf, bits_per_byte=math.inf, seconds=1.0, events=[]),
        "its validation loss is inf",
    ),
    "an error of one line": (
        NeoxError("the loss became nan at step 3; lower it"),
        "the loss became nan at step 3",
    ),
}


@pytest.mark.parametrize("kind", OUTCOMES)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_point_that_fails(here, monkeypatch, kind, first):
    "It is noted with its reason and stands last; the other one goes on"
    outcome, says = OUTCOMES[kind]
    fails(monkeypatch, *([outcome, RESULT] if first else [RESULT, outcome]))
    result = sweep("seed=1,2")
    failed, good = ("seed=1", "seed=2") if first else ("seed=2", "seed=1")
    assert [row["setting"] for row in result.rows] == [good, failed]
    assert rows("runs/quickstart-tune") == {good: ["2.5000", "3.6000", "1"], failed: [says, "", ""]}


def test_all_points_fail(here, monkeypatch):
    fails(
        monkeypatch,
        RuntimeError(),
        SimpleNamespace(best_loss=math.nan, bits_per_byte=math.nan, seconds=1.0, events=[]),
    )
    result = sweep("optimizer.params.lr=1e-3,2e-3")
    assert (
        all(row["error"] for row in result.rows) and Path("runs/quickstart-tune/tune.png").exists()
    )


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_sweep(here, monkeypatch, capsys, stop):
    "What is done stands in the table, one line says how to go on, and the same command does"
    fails(monkeypatch, RESULT, stop)
    with pytest.raises(type(stop)):
        sweep("seed=1,2,3")
    assert set(rows("runs/quickstart-tune")) == {"seed=1"}
    assert (
        "stopped in setting 2 of 3; the same command goes on"
        in capsys.readouterr().err.splitlines()[-1]
    )
    fails(monkeypatch, RESULT, RESULT, RESULT)
    assert len(sweep("seed=1,2,3").rows) == 3


def test_ctrl_c_in_the_first_run(here, monkeypatch, capsys):
    "A real signal in a real run: its state is saved, and the sweep goes on from there"
    real, sent = module.train_recipe, []

    def train(recipe, shown, command):
        def once(event):
            if not sent:
                sent.append(event)
                signal.raise_signal(signal.SIGINT)

        return real(recipe, callback=once, shown=shown, command=command)

    monkeypatch.setattr(module, "train_recipe", train)
    words = ["quickstart", "seed=1,2", *SHARED]
    with pytest.raises(SystemExit) as stopped:
        neox_tune_main(words)
    assert stopped.value.code == 130 and rows("runs/quickstart-tune") == {}
    said = capsys.readouterr().err
    command = shlex.join(["neox_tune", *words])
    assert f"the same command goes on from there: {command}\n" in said  # of the run that stopped
    assert said.splitlines()[-1] == "neox_tune: interrupted" and "neox_train" not in said
    assert f"stopped in setting 1 of 2; the same command goes on from there: {command}" in said
    assert succeeds(neox_tune_main, words, capsys).out.strip() == str(
        Path("runs/quickstart-tune/tune.md")
    )
    assert set(rows("runs/quickstart-tune")) == {"seed=1", "seed=2"}


def test_settings_that_differ_in_signs_alone(here, monkeypatch):
    "Each has a folder of its own, the same in each call, of a length that a disk takes"
    seen = []

    def train(recipe, shown, command):
        seen.append(recipe.train.save)
        return RESULT

    monkeypatch.setattr(module, "train_recipe", train)
    values = ["a b", "a_b", "a/b", "a#b", "../..", "A" * 300]
    for wanted in (values, values[1:]):
        tune("quickstart", words=["wandb_group=" + ",".join(wanted)])
    first, again = seen[: len(values)], seen[len(values) :]
    assert len(set(first)) == len(values) and again == first[1:]
    assert all(
        Path(place).parent == Path("runs/quickstart-tune") and len(Path(place).name) < 150
        for place in first
    )


@pytest.mark.parametrize(
    "words, says",
    [
        (["seed=1,1"], "given twice"),
        (["seed=1,2", "seed=3"], "given twice"),
        (["seed=1"], "nothing to compare"),
        ([], "nothing to compare"),
        (["seed=1,,2"], "a value is missing"),
        (["seed=,"], "a value is missing"),
        (["lr=1e-3"], "is called optimizer.params.lr"),
    ],
)
def test_words_that_make_no_sweep(here, capsys, words, says):
    refuses(neox_tune_main, ["quickstart", *words], capsys, says)
    assert not any(here.iterdir())


@pytest.mark.parametrize(
    "words, says",
    [
        (["lr=1e-3,2e-3"], "here it is called optimizer.params.lr"),
        (["seed=1,2", "use_wanb=true"], "nearest: use_wandb"),
        (["num_layers=0,-1"], "num_layers"),
    ],
)
def test_settings_that_cannot_be_trained(here, capsys, words, says):
    "An error of every setting comes with its advice, before a folder is made"
    refuses(neox_tune_main, ["quickstart", *words], capsys, says)
    assert not any(here.iterdir())


def test_a_command_of_which_no_setting_could_be_trained(here, monkeypatch, capsys):
    "The table is kept; a script that goes on after the command would be wrong to"
    fails(monkeypatch, RuntimeError("no memory"), RuntimeError("no memory"))
    refuses(neox_tune_main, ["quickstart", "seed=1,2"], capsys, "no setting", "tune.md", steps=True)
    assert "no memory" in Path("runs/quickstart-tune/tune.md").read_text()


@pytest.mark.parametrize("there", ["tune.md", "tune.png", "notes.txt", "rate.png"])
def test_a_folder_of_somebody_else(here, capsys, there):
    Path("mine").mkdir()
    (Path("mine") / there).write_text("| mine |")
    before = tree(here)
    refuses(
        neox_tune_main,
        ["quickstart", "seed=1,2", *SHARED, "--checkpoint_dir", "mine"],
        capsys,
        "mine",
        "holds other files",
        there,
    )
    assert tree(here) == before
    refuses(
        neox_tune_main,
        ["quickstart", "seed=1,2", *SHARED, "--checkpoint_dir", f"mine/{there}"],
        capsys,
        "is a file",
    )


def test_two_sweeps_in_one_folder(here, monkeypatch, capsys):
    "The second gets one line that names the first, and writes nothing into its table"
    words = ["quickstart", "seed=1,2", *SHARED]

    def train(recipe, shown, command):
        before = tree(here)
        refuses(neox_tune_main, words, capsys, "runs/quickstart-tune is in use by process")
        assert tree(here) == before
        return RESULT

    monkeypatch.setattr(module, "train_recipe", train)
    neox_tune_main(words)
    assert {key: cells[0] for key, cells in rows("runs/quickstart-tune").items()} == {
        "seed=1": "2.5000",
        "seed=2": "2.5000",
    }
    neox_tune_main(words)  # nobody holds it any more


def test_a_table_that_cannot_be_written(here, monkeypatch, capsys):
    "The sweep goes on with one line each time, and its runs are kept"

    def block(recipe, shown, command):
        Path("runs/quickstart-tune/tune.png").unlink(missing_ok=True)
        Path("runs/quickstart-tune/tune.png/x").mkdir(parents=True, exist_ok=True)
        return RESULT

    monkeypatch.setattr(module, "train_recipe", block)
    assert len(sweep("seed=1,2").rows) == 2
    lines = [
        line for line in capsys.readouterr().err.splitlines() if "could not be written" in line
    ]
    assert len(lines) == 2 and len(rows("runs/quickstart-tune")) == 2


# the benchmark: one device for all


class Sent:
    "Notes what is sent to a device that this machine does not have, and lets it stay"

    def __init__(self, monkeypatch):
        self.modules, self.tensors = [], []
        for kind, notes in ((torch.nn.Module, self.modules), (torch.Tensor, self.tensors)):
            monkeypatch.setattr(kind, "to", self.note(kind.to, notes))

    def note(self, real, notes):
        def to(thing, *where, **how):
            if "cuda" not in map(str, where):
                return real(thing, *where, **how)
            notes.append(type(thing).__name__)
            return thing

        return to


@pytest.mark.filterwarnings("ignore")
def test_generation_and_the_plain_loop_are_sent_to_the_device(here, monkeypatch):
    from shakespeare_neox import benchmark
    from shakespeare_neox.model import ModelConfig

    sent = Sent(monkeypatch)
    contests = benchmark.writing(rounds=1, n_new=3, device="cuda")
    assert (
        set(sent.modules) == {"GPT", "GPTNeoXForCausalLM"} and len(sent.tensors) >= 2
    )  # the prompts of one row and of 32
    both = {"transformers", "shakespeare_neox"}
    guessing = {
        "transformers, prompt lookup",
        "shakespeare_neox, guesses",
        "shakespeare_neox, guesses from earlier texts",
    }
    assert [set(contest.figures) for contest in contests] == [both | guessing, both]
    sent.modules.clear()
    sent.tensors.clear()
    small = ModelConfig(
        num_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        seq_length=16,
        vocab_size=65,
        pos_emb="rotary",
    )
    assert benchmark.transformers_speed(small, batch_size=2, steps=1, device="cuda") > 0
    assert (
        sent.modules == ["GPTNeoXForCausalLM"] and len(sent.tensors) == 6
    )  # a batch for each step


CLONE = """import sys, torch
from dataclasses import dataclass
from pathlib import Path
%s
"""
MODEL = (
    CLONE
    % """
@dataclass
class GPTConfig:
    block_size: int = 8
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.weight = config, torch.nn.Parameter(torch.zeros(65))
    def forward(self, x, y): return self.weight.expand(*x.shape, 65), None
"""
)
TRAIN = (
    CLONE
    % """
Path("flags.txt").write_text("\\n".join(sys.argv[1:]))
Path("out-shakespeare-char").mkdir(exist_ok=True)
torch.save(dict(model_args={}, model=dict(weight=torch.zeros(65))), "out-shakespeare-char/ckpt.pt")
for step in range(30): print(f"iter {step}: loss 4.0, time 10.00ms")
print("step 30: train loss 4.0, val loss 4.0")
"""
)


@pytest.fixture
def clone(here):
    "What the benchmark needs of nanoGPT"
    import numpy as np

    (here / "clone/data/shakespeare_char").mkdir(parents=True)
    (here / "clone/model.py").write_text(MODEL)
    (here / "clone/train.py").write_text(TRAIN)
    (np.arange(100) % 65).astype("uint16").tofile(here / "clone/data/shakespeare_char/val.bin")
    return here / "clone"


@pytest.mark.parametrize("device", ["cuda", "cpu", None])
def test_nanogpt_runs_where_the_others_run(clone, monkeypatch, device):
    from shakespeare_neox import benchmark

    monkeypatch.setattr(benchmark, "best_device", lambda: "mps")
    assert benchmark.nanogpt_speed(clone, steps=9, device=device) == pytest.approx(
        12 * 64 * 1000 / 10
    )
    flags = (clone / "flags.txt").read_text().splitlines()
    assert [flag for flag in flags if "device" in flag] == [f"--device={device or 'mps'}"]
    assert ("--dtype=float32" in flags) == (device != "cpu") and "--max_iters=9" in flags


@pytest.mark.filterwarnings("ignore")
def test_nanogpt_is_scored_where_the_others_run(clone, monkeypatch):
    from shakespeare_neox import benchmark

    monkeypatch.setattr(benchmark, "best_device", lambda: "cpu")
    benchmark.nanogpt_speed(clone, steps=9)
    sent, real = Sent(monkeypatch), torch.load
    monkeypatch.setattr(
        torch, "load", lambda path, map_location, **how: real(path, map_location="cpu", **how)
    )
    assert benchmark.score_nanogpt(clone, "cuda") == pytest.approx(math.log(65), abs=1e-4)
    assert sent.modules == ["GPT"] and len(sent.tensors) >= 2


@pytest.mark.parametrize("device, hidden", [("cpu", True), ("cuda", False), (None, False)])
def test_ours_runs_where_the_others_run(here, monkeypatch, device, hidden):
    from shakespeare_neox import benchmark

    seen = []
    monkeypatch.setattr(benchmark, "best_device", lambda: "cuda")
    monkeypatch.setattr(
        benchmark,
        "watch",
        lambda words, folder, pattern, **env: (seen.append(env), ([(1.0, 9.0)] * 5, 2.0))[1],
    )
    assert benchmark.our_speed(here, steps=9, device=device) == 9.0
    assert ("CUDA_VISIBLE_DEVICES" in seen[0]) == hidden


def test_one_device_reaches_every_system(here, monkeypatch):
    "From the first call of the benchmark to the last race"
    from shakespeare_neox import benchmark

    devices = []

    def note(name, result):
        def run(*given, **named):
            devices.append((name, named.get("device", "cuda" if "cuda" in given else None)))
            return result(*given, **named) if callable(result) else result

        return run

    race = benchmark.Race([], [], {name: [] for name in benchmark.SYSTEMS})
    monkeypatch.setattr(benchmark, "best_device", lambda: "cuda")
    for name, result in dict(
        nanogpt_speed=9.0,
        transformers_speed=9.0,
        our_speed=9.0,
        writing=[],
        nanogpt=([(1.0, 2.0)], 2.0),
        score_nanogpt=2.0,
        ours=([(1.0, 2.0)], 2.0),
        machine=dict(device="cuda"),
    ).items():
        monkeypatch.setattr(benchmark, name, note(name, result))
    monkeypatch.setattr(benchmark, "has_bf16", lambda device: device == "cuda")
    monkeypatch.setattr(benchmark, "copy_nanogpt", lambda source, target: target)
    result = benchmark.benchmark("clone", pairs=1, folder=here / "out")
    assert {name for name, _ in devices} == {
        "nanogpt_speed",
        "transformers_speed",
        "our_speed",
        "writing",
        "nanogpt",
        "score_nanogpt",
        "ours",
        "machine",
    }
    assert (
        {device for _, device in devices} == {"cuda"}
        and result.race
        and type(result.race) is type(race)
    )
    assert {p.name for p in (here / "out").iterdir()} == {
        "benchmark.json",
        "benchmark.md",
        "race.png",
    }


@pytest.mark.parametrize("there", ["benchmark.json", "benchmark.md", "race.png"])
def test_results_of_somebody_else(here, capsys, there):
    from shakespeare_neox.benchmark import neox_benchmark_main

    Path("mine").mkdir()
    (Path("mine") / there).write_text('{"mine": 1}')
    before = tree(here)
    refuses(
        neox_benchmark_main,
        ["--quick", "--checkpoint_dir", "mine"],
        capsys,
        there,
        "is not replaced",
    )
    assert tree(here) == before
