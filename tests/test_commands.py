"Whole commands as a person runs them, each in a process of its own"

import importlib.util
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import TINY, succeeds, tree

from shakespeare_neox.engine.run import neox_train_main
from shakespeare_neox.engine.serve import neox_generate_main
from shakespeare_neox.engine.tokens import neox_prepare_main

pytestmark = pytest.mark.usefixtures("here")
COMMANDS = dict(
    neox_prepare="engine.tokens",
    neox_tokenizer="engine.tokens",
    neox_train="engine.run",
    neox_report="engine.report",
    neox_tune="engine.tune",
    neox_generate="engine.serve",
    neox_archive="engine.archive",
    neox_verify="engine.archive",
    neox_finetune="finetune",
    neox_chat="engine.chat",
    neox_evaluate="evaluate",
)
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
        err,
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
        == write("--prompt", "MARIAN:\\n", "--seed", "1337")
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
    assert once.err == "" and once.out.startswith("MARIAN:\nO") and "\n\nSpeak." in once.out
    assert write("--prompt_file", "p.txt").out == write("--prompt-file", "p.jsonl").out == once.out
    for size in (1, 2):
        several = write("--prompt_file", "p.txt", "--batch_size", size)
        assert several.out == once.out and re.fullmatch(
            rf"( +\d/3 prompts  \S+ tokens/s  0:\d\d left\n){{{-(-3 // size)}}}", several.err
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
