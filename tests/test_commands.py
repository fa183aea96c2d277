"Whole commands as a person runs them, each in a process of its own"

import importlib.metadata
import importlib.util
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import TINY, before_speed, refuses, succeeds, tree

import shakespeare_neox
from shakespeare_neox.engine import base
from shakespeare_neox.engine.checkpoints import open_checkpoint
from shakespeare_neox.engine.recipe import (
    load_config,
    merge,
    parse_override,
    read_recipes,
    shipped_recipes,
    sort_settings,
)
from shakespeare_neox.engine.report import bar_comment, terminal_bar
from shakespeare_neox.engine.run import neox_train_main
from shakespeare_neox.engine.serve import generate, neox_generate_main
from shakespeare_neox.engine.tokens import neox_prepare_main

pytestmark = pytest.mark.usefixtures("here")
COMMANDS = base.COMMANDS
PACKAGE = Path(importlib.util.find_spec("shakespeare_neox").origin).parent
PROMPT = "MARIAN:\n"


def launch(name, *words, **kwargs):
    "Runs a command as the console script does"
    code = (
        f"import sys; sys.argv[0] = {name!r}; from shakespeare_neox.{COMMANDS[name]} import "
        f"{name}_main; {name}_main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        **kwargs,
    )


def run(name, *words):
    "Runs a command that must succeed; gives standard output and standard error"
    done = launch(name, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def python(code):
    "Runs code in a fresh interpreter"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def module(*words, **kwargs):
    "Runs python -m shakespeare_neox"
    return subprocess.run(
        [sys.executable, "-m", "shakespeare_neox", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        **kwargs,
    )


def event_of(folder, kind):
    "The first event of a kind in a run's log"
    events = map(json.loads, (Path(folder) / "log.jsonl").read_text().splitlines())
    return next(event for event in events if event["event"] == kind)


def best_loss(folder):
    events = map(json.loads, (Path(folder) / "log.jsonl").read_text().splitlines())
    return min(e["loss"] for e in events if e["event"] == "evaluation")


def test_from_text_to_verse():
    assert (
        run("neox_tokenizer", "sample", "--kind", "bpe", "--vocab_size", "300")[0]
        == f"{Path('tokenizers/sample-bpe')}\n"
    )
    out, err = run(
        "neox_prepare", "sample", "--tokenizer-path", "tokenizers/sample-bpe", "--out", "tokens"
    )
    assert out == "tokens\n" and "licence: CC0" in err and "valid.bin" in err
    out, err = run(
        "neox_train",
        "quickstart",
        *TINY,
        "--data_path",
        "tokens",
        "--tokenizer_path",
        "tokenizers/sample-bpe",
    )
    assert out == f"{Path('runs/quickstart/best')}\n" and "validation loss" in err
    out, err = run("neox_generate", "--prompt", "Fool ☃:\\n", "--max_new_tokens", "20")
    assert out.startswith("Fool ☃:\n") and len(out) > 12
    assert re.fullmatch(
        rf"{re.escape(str(Path('runs/quickstart/best')))} writes "
        r"\(step \d+, validation loss \d\.\d+\), the newest run\n",
        before_speed(err),
    )


def test_train_again_and_repeat():
    command = ["quickstart", *TINY]
    out, err = run("neox_train", *command)
    said = re.search(r"^command line overrides (.+(?:\n    .+)*)", err, re.M)[1]
    overridden = re.findall(r"(\w+) [^,]+ -> ", said)
    assert len(overridden) == len(set(overridden)) and {
        "num_layers",
        "hidden_size",
        "train_iters",
    } <= set(overridden)
    assert sorted(name for name in os.listdir("runs/quickstart") if not name.startswith(".")) == [
        "best",
        "config.yml",
        "last",
        "log.jsonl",
        "loss.png",
        "report.md",
        "state",
    ]
    before = {name: content and content[0] for name, content in tree("runs").items()}
    assert "runs/quickstart is complete" in run("neox_train", *command)[1]
    assert before == {name: content and content[0] for name, content in tree("runs").items()}
    out, err = run("neox_train", "runs/quickstart/config.yml")
    assert out == f"{Path('runs/quickstart-again/best')}\n" and "command line" not in err
    assert best_loss("runs/quickstart-again") == best_loss("runs/quickstart")
    assert (
        Path("runs/quickstart-again/best/model.safetensors").read_bytes()
        == Path("runs/quickstart/best/model.safetensors").read_bytes()
    )


def test_what_a_run_says(trained, capsys):
    "Before the first step what it will do and with what; at the end where all lies, and what next"
    words = ["quickstart", *TINY, "train_iters=4", "eval_interval=4", "--checkpoint_dir", "run 1"]
    out, err = succeeds(neox_train_main, words, capsys)
    lines = [line for line in err.splitlines() if not re.match("command line|    \\w.* -> ", line)]
    threads = torch.get_num_threads()
    precision = event_of("run 1", "start")["precision"]
    device = "cpu" if not torch.cuda.is_available() else ".*"
    with_threads = f"(, {threads} thread{'s' * (threads > 1)})?"
    n = sum(p.numel() for p in open_checkpoint("run 1")[0].parameters())
    assert re.match(
        rf"run 1: {n:,} parameters, [\d,]+ tokens to train on, 4 steps of \d+ x 32 "
        r"\(\d\.\d epochs\)",
        lines[0],
    )
    assert re.fullmatch(rf"    on {device} in {precision}{with_threads}, not compiled", lines[1])
    best, report, curve = (Path("run 1") / name for name in ("best", "report.md", "loss.png"))
    assert lines[-4:] == [
        f"    model   {best}",
        f"    report  {report}",
        f"    curve   {curve}",
        "    next    neox_generate 'run 1'",
    ]
    assert best.is_dir() and report.is_file() and curve.is_file() and out == f"{best}\n"
    again = succeeds(neox_train_main, words, capsys).err
    assert "parameters" not in again and "next    neox_generate" in again  # nothing was trained


def test_help_tells_the_way(capsys):
    "Recipes, own text, the learning rate's key, where a GPU is chosen"
    with pytest.raises(SystemExit):
        neox_train_main(["--help"])
    out = capsys.readouterr().out
    for name in shipped_recipes():
        assert re.search(rf"\b{name}\b", out.split("recipes:")[1]), name
    for word in ("optimizer.params.lr=", "data_path=mine.txt", "CUDA_VISIBLE_DEVICES", "--list"):
        assert word in out.split("recipes:")[1]
    assert max(map(len, out.splitlines())) <= 100


LENGTH = [w for w in TINY if not w.startswith("train_iters")]


@pytest.mark.parametrize(
    "words, found",
    [
        (["train_epochs=3"], (None, 3)),
        (["train_iters=None", "train_epochs=3"], (None, 3)),
        (["train_iters=", "train_epochs=3"], (None, 3)),
        (["train_iters=7"], (7, None)),
        ([], (1600, None)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_length_that_is_given_wins(words, found, capsys):
    name, settings = read_recipes("quickstart")
    assert (settings["train_iters"], settings.get("train_epochs")) == (1600, None)
    merge(settings, *map(parse_override, words), where="command line")
    training = sort_settings(name, settings).train
    assert (training.train_iters, training.train_epochs) == found
    given = {key: value for word in words for key, value in parse_override(word).items()}
    training = load_config("quickstart", **given).train
    assert (training.train_iters, training.train_epochs) == found


def test_a_length_in_a_later_file_wins(capsys):
    Path("more.yml").write_text("train_epochs: 2\n")
    training = load_config("quickstart", "more.yml").train
    assert (training.train_iters, training.train_epochs) == (None, 2)
    training = load_config("quickstart", "more.yml", train_iters=5).train
    assert (training.train_iters, training.train_epochs) == (5, None)


def test_two_lengths_in_one_place(capsys):
    words = ["quickstart", *LENGTH, "train_iters=5", "train_epochs=2", "--dry_run"]
    refuses(neox_train_main, words, capsys, "both given; keep one", "train_iters=None")


def test_none_clears_a_setting(capsys):
    for word in ("vocab_file=None", "vocab_file="):
        name, settings = read_recipes("quickstart")
        merge(settings, parse_override(word))
        assert sort_settings(name, settings).train.vocab_file is None
    assert parse_override("vocab_file=null") == dict(vocab_file="null")  # a file may be called so
    assert parse_override("sample_prompt=None") == dict(sample_prompt="None")  # has to be a text


@pytest.mark.parametrize(
    "words, parts",
    [
        (["mine.txt"], ("mine.txt: no recipe", "neox_train book data_path=mine.txt")),
        (["tinyshakespeare"], ("neox_train book data_path=tinyshakespeare",)),
        (["my texts"], ("neox_train book data_path='my texts'",)),
        (["quickstart", "device=cuda"], ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU")),
        (["quickstart", "epochs=3"], ("here it is called train_epochs",)),
        (["quickstart", "learning_rate=1e-3"], ("here it is called optimizer.params.lr",)),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_an_answer_that_helps(words, parts, capsys):
    Path("my texts").mkdir()
    refuses(neox_train_main, words, capsys, *parts)


@pytest.mark.parametrize("columns", [80, 100])
def test_the_bar_fits(columns, monkeypatch):
    "Of a long run too: one count of steps, one time left, no line that wraps"
    monkeypatch.setenv("COLUMNS", str(columns))
    event = dict(event="log", step=50_000, loss=12.3456, lr=1e-3, tokens_per_second=1_234_567.0)
    with redirect_stderr(io.StringIO()) as drawn:
        bar = terminal_bar(range(120_000))
        bar.start_t, bar.last_t, bar.pred_t = 0, 5025, 40_000
        bar.comment = bar_comment(event)
        for step in (0, 50_000, 120_000):
            bar.update_bar(step)
    lines = drawn.getvalue().split("\r")
    assert len(lines) > 3 and max(map(len, lines)) <= columns
    assert all(line.count("/120000") == line.count("<") == 1 for line in lines[-3:])


def test_complete_run_is_not_touched(trained, capsys):
    shutil.copytree(trained, "run")
    before = tree("run")
    succeeds(neox_train_main, ["quickstart", *TINY, "--checkpoint_dir", "run"], capsys)
    assert tree("run") == before


@pytest.mark.parametrize(
    "spelling", [str, lambda word: word.replace("_", "-")], ids=["underscores", "hyphens"]
)
def test_either_spelling(spelling, trained, capsys):
    shutil.copytree(trained, "run")
    assert (
        "run is complete"
        in succeeds(
            neox_train_main,
            ["quickstart", *map(spelling, TINY), spelling("--checkpoint_dir"), "run"],
            capsys,
        ).err
    )
    words = [
        "--checkpoint_path",
        "run",
        "--max_new_tokens",
        "9",
        "--top_k",
        "3",
        "--min_p",
        "0.1",
        "--repetition_penalty",
        "1.1",
        "--prompt",
        "O",
    ]
    assert (
        2
        < len(
            succeeds(
                neox_generate_main,
                [spelling(w) if w.startswith("--") else w for w in words],
                capsys,
            ).out
        )
        <= 11
    )


def test_dry_run_writes_nothing(capsys):
    out = succeeds(neox_train_main, ["quickstart", *TINY, "--dry_run"], capsys).out
    assert tree(".") == {}
    for part in ("embedding", "attention", "MFLOP", "MiB", "epochs", "minutes"):
        assert part in out


def test_flags_between_words(capsys):
    assert "epochs" in succeeds(neox_train_main, ["quickstart", "--dry_run", *TINY], capsys).out


def test_prepared_folder_with_the_table_that_ships(capsys):
    succeeds(neox_prepare_main, ["sample"], capsys)
    succeeds(
        neox_train_main,
        ["quickstart", *TINY, "--data_path", "prepared/sample", "--dry_run"],
        capsys,
    )


def test_generate(trained, capsys):
    def write(*words):
        return succeeds(
            neox_generate_main,
            ["--checkpoint_path", trained, "--max_new_tokens", "40", *words],
            capsys,
        ).out

    once = write("--prompt", PROMPT)
    assert (
        once.startswith(PROMPT)
        and once.endswith("\n")
        and len(PROMPT) + 20 < len(once) <= len(PROMPT) + 41
    )
    assert (
        write("--prompt", PROMPT)
        == once
        == write("--prompt", "MARIAN:\\n", "--seed", "0")
        != write("--prompt", PROMPT, "--seed", "1")
    )
    several = write("--prompt", PROMPT, "--prompt", "O")
    assert several.startswith(once[:-1]) and "\n\nO" in several
    letter = once[len(PROMPT) + 9]
    assert (
        write("--prompt", PROMPT, "--stop", letter)
        == PROMPT + once[len(PROMPT) :].split(letter)[0] + "\n"
    )
    assert write("--prompt", PROMPT, "--temperature", "0", "--seed", "1") == write(
        "--prompt", PROMPT, "--temperature", "0", "--seed", "2"
    )


def test_several_samples(trained, capsys):
    "--n texts of each prompt, side by side; the first is the one that stands alone otherwise"

    def write(*words):
        words = [trained, "--max_new_tokens", "30", "--jsonl", *words]
        lines = succeeds(neox_generate_main, words, capsys).out.splitlines()
        return [(record["prompt"], record["text"]) for record in map(json.loads, lines)]

    one, other = (write("--prompt", prompt)[0] for prompt in ("O", "MARIAN:"))
    several = write("--prompt", "O", "--n", "3")
    assert several[0] == one and len(set(several)) == 3 and {p for p, _ in several} == {"O"}
    assert several[2] == write("--prompt", "O", "--seed", "2")[0]
    both = write("--prompt", "O", "--prompt", "MARIAN:", "--n", "2")
    assert both[:2] == several[:2] and [p for p, _ in both] == ["O"] * 2 + ["MARIAN:"] * 2
    assert both[2] == write("--prompt", "MARIAN:", "--seed", "2")[0] != other
    words = [trained, "--prompt", "O", "--n", "0"]
    assert "give 1 or more" in refuses(neox_generate_main, words, capsys, "n: 0 is out of range")


def test_speed_and_loops_are_told(capsys):
    "On standard error, unless it is to be quiet; a text that runs in no loop is not blamed"
    words = ["shakespeare", "--prompt", "MARIAN:\\nThe ink", "--max_new_tokens", "400"]
    greedy = succeeds(neox_generate_main, [*words, "--temperature", "0"], capsys)
    *told, note = greedy.err.splitlines(keepends=True)
    assert before_speed("".join(told)) == "shakespeare writes\n"
    assert note.startswith("the text ends in a loop (") and "--temperature" in note
    assert greedy.out.count("And then the seat of the state of the state") > 3
    drawn = succeeds(neox_generate_main, [*words, "--seed", "1"], capsys)
    assert "400 tokens, " in drawn.err and "loop" not in drawn.err
    several = succeeds(neox_generate_main, [*words, "--temperature", "0", "--n", "2"], capsys).err
    assert "2/2 prompts" in several and "2 of 2 texts end in a loop (" in several
    assert succeeds(neox_generate_main, [*words, "--quiet"], capsys).err == ""


def test_python_writes_what_the_command_writes(trained, capsys):
    "The same text from the same seed; data hold the continuation, a page begins with the prompt"
    sampling = dict(max_new_tokens=30, temperature=0.8, top_p=0.95)
    flags = [word for name, value in sampling.items() for word in (f"--{name}", value)]
    model, tokenizer = open_checkpoint(trained)
    for seed in ({}, {"seed": 5}):
        given = [word for name, value in seed.items() for word in (f"--{name}", value)]
        words = [trained, "--prompt", "O", *flags, *given]
        text = generate(model, tokenizer, "O", **sampling, **seed)
        assert succeeds(neox_generate_main, words, capsys).out == f"O{text}\n"
        record = json.loads(succeeds(neox_generate_main, [*words, "--jsonl"], capsys).out)
        assert record == dict(prompt="O", text=text)


def test_generate_nothing_still_prints_the_prompt(trained, capsys):
    assert (
        succeeds(
            neox_generate_main,
            ["--checkpoint_path", trained, "--max_new_tokens", "0", "--prompt", "O"],
            capsys,
        ).out
        == "O\n"
    )


def test_one_word_is_the_checkpoint(trained, capsys):
    words = ["--prompt", "O", "--max_new_tokens", "9"]
    once = succeeds(neox_generate_main, [trained, *words], capsys).out
    assert once == succeeds(neox_generate_main, ["--checkpoint_path", trained, *words], capsys).out
    assert (
        once
        == succeeds(
            neox_generate_main,
            [*words, trained / "best", "--checkpoint-path", trained / "best"],
            capsys,
        ).out
    )


def test_prompt_file(trained, monkeypatch, capsys):
    def write(*words):
        return succeeds(neox_generate_main, [trained, "--max_new_tokens", "12", *words], capsys)

    flags = [word for text in ("MARIAN:\\nO", "Speak.", " No") for word in ("--prompt", text)]
    lines = "\ufeffMARIAN:\\nO\r\n\nSpeak.\n No\n"
    Path("p.txt").write_bytes(lines.encode())
    Path("p.jsonl").write_text(
        "\n".join(json.dumps(dict(prompt=p, n=1)) for p in ("MARIAN:\nO", "Speak.", " No"))
    )
    once = write(*flags)
    assert once.err.startswith(f"{trained / 'best'} writes (step ")
    assert once.err.count("\n") == 2 and "3/3 prompts" in once.err
    assert once.out.startswith("MARIAN:\nO") and "\n\nSpeak." in once.out
    assert write("--prompt_file", "p.txt").out == write("--prompt-file", "p.jsonl").out == once.out
    for size in (1, 2):
        several = write("--prompt_file", "p.txt", "--batch_size", size)
        assert several.out == once.out and re.fullmatch(
            rf".* writes .*\n( +\d/3 prompts  \S+ tokens/s  0:\d\d left\n){{{-(-3 // size)}}}",
            several.err,
        )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert write("--prompt_file", "-").out == once.out
    records = [
        json.loads(line) for line in write("--prompt_file", "p.txt", "--jsonl").out.splitlines()
    ]
    assert [r["prompt"] for r in records] == ["MARIAN:\nO", "Speak.", " No"]
    assert "\n\n".join(r["prompt"] + r["text"] for r in records) + "\n" == once.out
    assert json.loads(write("--prompt", "MARIAN:\nO", "--jsonl").out) == records[0]


def test_newest_run_is_taken(trained, capsys):
    for name in ("older", "newer"):
        shutil.copytree(trained, f"runs/{name}")
    os.utime("runs/older/best/config.json", (1, 1))
    os.truncate("runs/older/best/model.safetensors", 9)
    assert succeeds(
        neox_generate_main, ["--max_new_tokens", "3", "--prompt", "O"], capsys
    ).out.startswith("O")


def test_errors_are_one_line():
    done = launch("neox_train", "quickstrat")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (
        2,
        "",
        1,
    ) and "nearest: quickstart" in done.stderr
    done = launch("neox_train", "quickstrat", "--debug")
    assert (
        done.returncode not in (0, 2) and "Traceback" in done.stderr and "NeoxError" in done.stderr
    )


def test_all_commands_are_tested():
    "What an installation starts is what is tested here"
    installed = importlib.metadata.entry_points(group="console_scripts")
    names = {entry.name for entry in installed if entry.value.startswith("shakespeare_neox.")}
    if not names:
        pytest.skip("not installed in this environment")
    assert set(COMMANDS) == names


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name):
    out, err = run(name, "--help")
    parameters = inspect.signature(
        getattr(import_module(f"shakespeare_neox.{COMMANDS[name]}"), name)
    ).parameters.values()
    for p in parameters:
        if p.default is p.empty:
            assert p.name in out
        else:
            assert f"--{p.name}" in out and f"--{p.name.replace('_', '-')}" in out
    assert err == "" and "--debug" in out and not re.search(r"\bNone\b", out)


@pytest.mark.parametrize("name", COMMANDS)
def test_console_script(name):
    script = shutil.which(name, path=str(Path(sys.executable).parent))
    if not script:
        pytest.skip("not installed beside this interpreter")
    assert subprocess.run([script, "--help"], capture_output=True, text=True).stdout.startswith(
        f"usage: {name}"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_version(name, capsys):
    main = getattr(import_module(f"shakespeare_neox.{COMMANDS[name]}"), f"{name}_main")
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr() == (f"{name} {shakespeare_neox.__version__}\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_without_the_module(name):
    "Made from the text of the module, the help is the same to the letter"
    function = getattr(import_module(f"shakespeare_neox.{COMMANDS[name]}"), name)
    alone = base.signature_alone(name)
    assert alone.__code__ is not function.__code__ and alone.__doc__ == function.__doc__
    assert base.make_parser(alone).format_help() == base.make_parser(function).format_help()


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_answers_without_torch(flag):
    "Nor does it lean on what an editable installation, or torch, happens to have imported"
    code = (
        f"import importlib, sys; sys.argv = ['neox_generate', {flag!r}]; "
        "vars(importlib).pop('util', None); sys.modules.pop('importlib.util', None); "
        "from shakespeare_neox.engine.base import start; start(); "
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout and done.stderr == "", done.stderr


def test_module_lists_and_runs_commands():
    for words in ((), ("--help",)):
        done = module(*words)
        assert done.returncode == 0 and done.stderr == ""
        for name in COMMANDS:
            short = name.removeprefix("neox_")
            assert re.search(rf"^  {short} +\w.{{10}}", done.stdout, re.M), name
    assert module("--version").stdout == f"shakespeare_neox {shakespeare_neox.__version__}\n"
    for word in ("generate", "neox_generate"):
        done = module(word, "--help")
        assert done.stdout.startswith("usage: neox_generate") and done.returncode == 0
    done = module("trian", "quickstart")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "shakespeare_neox: trian: no such command (nearest: train)\n"
    done = module("train", "quickstrat")
    assert done.returncode == 2 and "nearest: quickstart" in done.stderr


def test_list_of_recipes(capsys):
    out, err = succeeds(neox_train_main, ["--list"], capsys)
    lines = out.splitlines()
    assert err == "" and [line.split()[0] for line in lines] == sorted(shipped_recipes())
    assert all(20 < len(line) <= 100 for line in lines), out
    assert not os.listdir()


def test_quiet(trained, capsys):
    shutil.copytree(trained, "run")
    words = ["quickstart", *TINY, "--checkpoint_dir", "run"]
    assert "is complete" in succeeds(neox_train_main, words, capsys).err
    done = succeeds(neox_train_main, [*words, "--quiet"], capsys)
    assert done == (f"{Path('run/best')}\n", "")
    assert "is complete" in succeeds(neox_train_main, words, capsys).err  # not for ever
    refuses(neox_train_main, ["quickstrat", "--quiet"], capsys, "nearest: quickstart")


@pytest.mark.parametrize("shell", base.SHELLS)
def test_completion(shell):
    pytest.importorskip("argcomplete")
    done = module("completion", shell)
    assert done.returncode == 0 and "neox_train" in done.stdout and done.stderr == ""


def test_completion_in_an_unknown_shell():
    done = module("completion", "basch")
    assert (done.returncode, done.stdout) == (2, "")
    assert "basch: no completion for this shell; give one of bash" in done.stderr
    assert done.stderr.count("\n") == 1
    done = module("completion", env={**os.environ, "SHELL": "/bin/ksh93"})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "bash" in done.stderr


def test_tab_completes_flags(tmp_path):
    "As argcomplete asks: the words of the line and the place in it"
    pytest.importorskip("argcomplete")
    line, answer = "neox_generate --max", tmp_path / "answer"
    asked = dict(
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
    )
    code = (
        "import sys; sys.argv = ['neox_generate']; "
        "from shakespeare_neox.engine.base import start; start(); print('went on')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert done.stdout == "" and "--max_new_tokens" in answer.read_text()


SLOW_TO_IMPORT = {
    "transformers",
    "wandb",
    "datasets",
    "accelerate",
    "matplotlib",
    "pandas",
    "pooch",
    "pydantic",
    "tokenizers",
    "nbdev",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_little(name):
    "Whoever asks for --help waits for torch at most, and not for that where only text is prepared"
    code = (
        "import atexit, sys; sys.argv = ['', '--help']; atexit.register(lambda: "
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)); "
        f"from shakespeare_neox.{COMMANDS[name]} import {name}_main; {name}_main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stderr.splitlines()[-1].split())
    assert "shakespeare_neox" in imported and not SLOW_TO_IMPORT & imported
    assert COMMANDS[name] != "engine.tokens" or "torch" not in imported


def test_imports():
    python(
        "import sys, shakespeare_neox; assert not {'torch', 'transformers', 'numpy'} & "
        "set(sys.modules)"
    )
    python(
        "import sys, shakespeare_neox.engine.serve, shakespeare_neox.engine.state; late = "
        f"{SLOW_TO_IMPORT} & set(sys.modules); assert not late, late"
    )
    sources = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")}
    assert (
        len(sources) > 5
        and [
            name
            for name, text in sources.items()
            if re.search(r"^\s*(from|import) nbdev", text, re.M)
        ]
        == []
    )
