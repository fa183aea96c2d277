"""Logs, reports, cards and W&B: damaged files, names that lead elsewhere, failing loggers, paths of
a person's machine"""

import io
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import refuses, succeeds, tree
from test_wandb import records

from shakespeare_neox.engine.base import NeoxError, say_once
from shakespeare_neox.engine.report import (
    Log,
    Progress,
    neox_report_main,
    push_to_hub,
    read_log,
    start_wandb,
    write_report,
)

SETTINGS = dict(
    num_layers=1,
    hidden_size=32,
    num_attention_heads=2,
    seq_length=32,
    pos_emb="rotary",
    data_path="sample",
)
STEP = dict(event="log", step=2, loss=3.5, lr=1e-3, gradient_norm=0.5, tokens_per_second=9000.0)
SCORE = dict(event="evaluation", step=2, loss=3.25, bits_per_byte=4.69, sample="\nOSWIN:\nThe ink")
START = dict(
    event="start",
    step=0,
    data="sample",
    licence="CC0-1.0",
    precision="fp32",
    torch="2.13",
    python="3.11",
    device="cpu",
    machine="x86_64",
)
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")


def write_log(folder, *events, end="\n"):
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, events)) + end)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A run's folder, put together by hand"
    from shakespeare_neox.engine.vocab import train_tokenizer
    from shakespeare_neox.model import GPT, ModelConfig

    folder = tmp_path_factory.mktemp("finished") / "lesson"
    folder.mkdir()
    tokenizer = train_tokenizer("OSWIN:\nThe ink is dry.")
    sizes = {
        key: SETTINGS[key]
        for key in ("num_layers", "hidden_size", "num_attention_heads", "seq_length")
    }
    GPT(ModelConfig(**sizes, vocab_size=tokenizer.vocab_size)).save_pretrained(
        folder / "best", tokenizer
    )
    (folder / "config.yml").write_text(yaml.safe_dump(SETTINGS))
    write_log(folder, START, STEP, SCORE)
    return folder


@pytest.fixture
def run(finished, here):
    "A copy of it, in the folder where one is"
    shutil.copytree(finished, here / "lesson")
    return Path("lesson")


# the log

DAMAGED = {
    "step as a word": ({**STEP, "step": "2"}, "step: "),
    "step as a truth value": ({**STEP, "step": True}, "step: "),
    "step with a fraction": ({**STEP, "step": 2.5}, "step: "),
    "negative step": ({**STEP, "step": -2}, "step: "),
    "huge step": ({**STEP, "step": 10**30}, "step: "),
    "no step": ({key: value for key, value in STEP.items() if key != "step"}, "step: "),
    "no loss": ({key: value for key, value in SCORE.items() if key != "loss"}, "loss: "),
    "no rate": ({key: value for key, value in STEP.items() if key != "lr"}, "lr: "),
    "loss as a word": ({**SCORE, "loss": "3.2"}, "loss: "),
    "loss as a list": ({**STEP, "loss": [3.2]}, "loss: "),
    "negative speed": ({**STEP, "tokens_per_second": -1.0}, "tokens_per_second: "),
    "sample as a list": ({**SCORE, "sample": ["a"]}, "sample: "),
    "licence as a number": ({**START, "licence": 4}, "licence: "),
    "not a number": ({**SCORE, "loss": float("nan")}, "loss: "),
    "infinite": ({**STEP, "tokens_per_second": float("inf")}, "tokens_per_second: "),
    "unknown event": ({**SCORE, "event": "evaluatoin"}, "nearest: evaluation"),
    "no event": (dict(step=1), "event is"),
    "an event of another type": ({**STEP, "event": ["log"]}, "event is"),
    "a list": ([1], "no event"),
    "a number": (7, "no event"),
    "a key twice": (b'{"event": "log", "event": "log"}', "given twice"),
    "beyond a float": (json.dumps(STEP).replace("3.5", "1e999").encode(), "loss: "),
    "cut off in the middle": (json.dumps(STEP).encode()[:30], "not JSON"),
    "binary": (b"\x00\x80\xff\xfe", "not JSON"),
    "another encoding": (
        json.dumps(SCORE).replace("OSWIN", "G\u00f6tz").encode("latin-1"),
        "not JSON",
    ),
    "nested": (b"[" * 100_000 + b"]" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_log(run, fault, capsys):
    "Log, resuming and report name the file and the line, and change nothing"
    line, says = DAMAGED[fault]
    line = line if isinstance(line, bytes) else json.dumps(line).encode()
    whole = [json.dumps(event).encode() for event in (START, STEP, SCORE)]
    (run / "log.jsonl").write_bytes(b"\n".join([*whole, line, whole[2]]) + b"\n")
    before = tree(run)
    for read in (read_log, lambda folder: Log(folder / "log.jsonl", step=5), write_report):
        with pytest.raises(
            NeoxError, match=re.escape(f"{Path('lesson') / 'log.jsonl'}, line 4: ")
        ) as raised:
            read(run)
        assert (
            says in str(raised.value)
            and "\n" not in str(raised.value)
            and len(str(raised.value)) < 300
        )
    refuses(neox_report_main, ["lesson"], capsys, "line 4", says, "fix or remove that line")
    assert tree(run) == before


def test_a_last_line_that_a_kill_cut_off(run):
    "Wherever it was cut: the whole events count, and going on writes a whole file"
    last = json.dumps(SCORE)
    for cut in range(len(last) + 1):
        write_log(run, START, STEP, end="\n" + last[:cut])
        wanted = [START, STEP, SCORE] if cut == len(last) else [START, STEP]
        assert read_log(run) == wanted, cut
        Log(run / "log.jsonl", step=2)
        assert (run / "log.jsonl").read_text() == "".join(
            json.dumps(event) + "\n" for event in wanted
        )
    (run / "log.jsonl").write_bytes(
        json.dumps(STEP).encode() + b"\n" + bytes(4096)
    )  # what a crash of the system leaves
    assert read_log(run) == [STEP]


def test_a_log_that_is_no_file(run, capsys):
    (run / "log.jsonl").unlink()
    os.mkfifo(run / "log.jsonl") if os.name == "posix" else (run / "log.jsonl").mkdir()
    refuses(neox_report_main, ["lesson"], capsys, "log.jsonl", "is not a file")


def test_what_is_not_finite_is_null(run):
    "JSON has no NaN: it is written as null, read again, and left out of curves and scores"
    log = Log(run / "log.jsonl")
    log.add(**{**STEP, "gradient_norm": float("inf")})
    log.add(**{**STEP, "step": 3, "loss": float("nan")})
    log.add(**{**SCORE, "step": 3, "loss": float("nan"), "bits_per_byte": float("nan")})
    log.add(**SCORE)
    lines = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (run / "log.jsonl").read_text().splitlines()
    ]
    assert (
        lines == read_log(run)
        and lines[0]["gradient_norm"] is lines[1]["loss"] is lines[2]["loss"] is None
    )
    assert log.curve("log") == Log(run / "log.jsonl", step=3).curve("log") == ([2], [3.5])
    page = write_report(run).read_text()
    assert "| lowest validation loss | 3.2500 nats per token, at step 2 of 3 |" in page
    assert "| last training loss | not a number |" in page


def test_a_log_of_a_former_version(run):
    "fp16 with a loss scaler wrote such a norm for each step that it skipped"
    (run / "log.jsonl").write_text(
        json.dumps({**STEP, "gradient_norm": float("inf")}) + "\n" + json.dumps(SCORE) + "\n"
    )
    assert read_log(run) == [{**STEP, "gradient_norm": None}, SCORE]
    assert "3.2500 nats" in write_report(run).read_text()


def test_a_log_that_was_removed(run):
    log = Log(run / "log.jsonl", step=2)
    (run / "log.jsonl").unlink()
    log.add(**{**STEP, "step": 4})
    assert read_log(run) == [START, STEP, SCORE, {**STEP, "step": 4}]


@POSIX
def test_a_disk_that_fills_up(run, capsys):
    "A line that does not fit is not there at all; what is added when there is room again is whole"
    say_once.cache_clear()
    log = Log(run / "log.jsonl", step=2)
    size, (soft, hard) = (
        (run / "log.jsonl").stat().st_size,
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        log.add(**{**STEP, "step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.add(**{**STEP, "step": 4})
    assert read_log(run) == [START, STEP, SCORE, {**STEP, "step": 4}] and not log.whole
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "log.jsonl" in lines[0] and "its log has gaps" in lines[0]


# the report

NO_RUN = {
    "empty": [],
    "some folder": ["notes.txt", "loss.png"],
    "no log": ["config.yml"],
    "no recipe": ["log.jsonl"],
    "no model": ["log.jsonl", "config.yml"],
}


@pytest.mark.parametrize("kind", NO_RUN)
def test_a_folder_that_is_no_run(kind, run, here, capsys):
    "Nothing is written there"
    (here / "other").mkdir()
    for name in NO_RUN[kind]:
        if (run / name).exists():
            shutil.copy(run / name, here / "other" / name)
        else:
            (here / "other" / name).write_text("mine")
    before = tree(here)
    refuses(neox_report_main, ["other"], capsys, "other", "missing")
    assert tree(here) == before


def test_a_damaged_recipe(run, capsys):
    (run / "config.yml").write_text("num_layers: [1\n")
    before = tree(run)
    refuses(neox_report_main, ["lesson"], capsys, "config.yml", "not YAML")
    assert tree(run) == before


@pytest.mark.parametrize("blocked, written", [("loss.png", "report.md"), ("report.md", "loss.png")])
def test_of_two_files_one_cannot_be_written(run, blocked, written, capsys):
    (run / blocked).mkdir()
    (run / blocked / "mine").write_text("mine")
    refuses(
        neox_report_main, ["lesson"], capsys, blocked, "could not be written", "neox_report lesson"
    )
    assert (run / written).stat().st_size > 500 and (run / blocked / "mine").read_text() == "mine"
    assert not [p for p in run.iterdir() if "tmp" in p.name]


CHANGED = {
    "report.md": lambda path: path.write_text(path.read_text() + "\nNOTES\n"),
    "loss.png": lambda path: path.write_bytes(b"mine"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_report_with_notes_is_not_replaced(run, name, capsys):
    "Neither by the same report nor by a newer one; a publication does not replace it either"
    write_report(run)
    CHANGED[name](run / name)
    before = (run / name).read_bytes()
    write_log(run, START, STEP, {**SCORE, "loss": 3.125})
    for words in ([], ["--push_to_hub", "me/tiny", "--dry_run", "card"]):
        refuses(
            neox_report_main,
            ["lesson", *words],
            capsys,
            f"lesson/{name}: is not what this library wrote there",
            "neox_report lesson",
        )
        assert (run / name).read_bytes() == before
    (run / name).rename(run / "mine")
    write_report(run)
    assert (run / "mine").read_bytes() == before and "3.1250 nats" in (
        run / "report.md"
    ).read_text()
    write_log(run, START, STEP, SCORE)
    assert "3.2500 nats" in write_report(run).read_text()  # what it wrote itself is replaced


@POSIX
@pytest.mark.parametrize("name", CHANGED)
def test_a_report_that_is_a_link_is_not_replaced(run, here, name, capsys):
    (here / "elsewhere").write_text("mine")
    (run / name).symlink_to(here / "elsewhere")
    refuses(neox_report_main, ["lesson"], capsys, f"lesson/{name}: is a link, and is not replaced")
    assert (run / name).is_symlink() and (here / "elsewhere").read_text() == "mine"


@pytest.mark.parametrize(
    "number, advice",
    [
        (28, "make room there"),
        (13, "let this user write there"),
        (30, "a disk that can be written"),
    ],
)
def test_why_a_report_cannot_be_written(run, number, advice, monkeypatch, capsys):
    "Room is asked for where room is missing only"
    import shakespeare_neox.engine.report as report_module

    def fails(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(report_module, "write_whole", fails)
    line = refuses(neox_report_main, ["lesson"], capsys, os.strerror(number), advice)
    assert ("room" in line) == (number == 28)


def test_a_page_that_nothing_breaks(run, monkeypatch):
    """Samples and settings with backticks and odd ends of line stay where they belong; a run may be
    the folder one is in"""
    sample = "```\nA\u2028B\x0bC\n# D"
    write_log(run, START, STEP, {**SCORE, "sample": sample})
    (run / "config.yml").write_text(yaml.safe_dump({**SETTINGS, "sample_prompt": "```\nÄh"}))
    monkeypatch.chdir(run)
    page = write_report(Path(".")).read_text(encoding="utf-8")
    assert page.startswith("# lesson\n") and "\n    ```\n    A\u2028B\x0bC\n    # D\n" in page
    recipe = page.split("## Recipe\n\n")[1]
    assert recipe.startswith("````yaml\n") and recipe.endswith("\n````\n") and "Äh" in recipe


@POSIX
def test_a_matplotlib_backend_that_does_not_exist(run):
    "The report is drawn and a plot can be, whatever MPLBACKEND holds"
    code = (
        "import sys; from pathlib import Path; from shakespeare_neox.engine.report import *; "
        "neox_report_main(['lesson']);"
        "print(TrainResult(Path('lesson'), 2, 3.2, 4.6, 1.0, 9.0, read_log('lesson'), "
        "'').plot().get_title())"
    )
    for backend, says in dict(nonsense="MPLBACKEND", **{"module://nonsense": "nonsense"}).items():
        (run / "loss.png").unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "MPLBACKEND": backend},
        )
        assert done.returncode == 0 and done.stdout.splitlines() == [
            os.path.join("lesson", "report.md"),
            "lesson",
        ], done.stderr
        assert (
            (run / "loss.png").stat().st_size > 1000
            and len(done.stderr.splitlines()) == 1
            and says in done.stderr
        )


# what is published


def export(run, name="me/tiny", folder="card", **more):
    push_to_hub(run, name, dry_run=folder, **more)
    return {
        p.name: p.read_text(encoding="utf-8")
        for p in Path(folder).iterdir()
        if p.suffix in (".md", ".yml", ".json")
    }


@pytest.mark.parametrize(
    "place",
    [
        "/home/kim/secret/corpus.txt",
        "~/secret/corpus.txt",
        "~kim/secret/corpus.txt",
        "../../secret/kim/corpus.txt",
        "C:\\Users\\kim\\secret\\corpus.txt",
        "\\\\kim\\secret\\corpus.txt",
        "file:///home/kim/secret/corpus.txt",
        "runs/../secret/kim/corpus.txt",
    ],
)
@pytest.mark.parametrize("key", ["data_path", "train_data_paths", "vocab_file", "save", "log_dir"])
def test_no_path_of_a_person_is_published(run, key, place):
    "In reports, cards and recipes a path of this machine is its last name"
    value = [place, "sample"] if key == "train_data_paths" else place
    settings = {**SETTINGS, key: value}
    (run / "config.yml").write_text(yaml.safe_dump(settings))
    write_log(run, {**START, "data": place}, STEP, SCORE)
    texts = export(run)
    texts["report.md"] = (run / "report.md").read_text(encoding="utf-8")
    assert {"README.md", "report.md", "recipe.yml"} <= set(texts)
    for name, text in texts.items():
        assert "kim" not in text and "secret" not in text, name
    published = yaml.safe_load(texts["recipe.yml"])
    if key != "save":
        assert published[key] == (
            ["corpus.txt", "sample"] if key == "train_data_paths" else "corpus.txt"
        )
    assert published == {
        k: published[k] if k == key else v for k, v in settings.items() if k != "save"
    }


@pytest.mark.parametrize(
    "name",
    [
        "sample",
        "gutenberg:100",
        "hf:owner/name",
        "data/corpus.txt",
        "texts/*.txt",
        "my file # 2.txt",
    ],
)
def test_names_that_are_no_places_stay(run, name):
    (run / "config.yml").write_text(
        yaml.safe_dump({**SETTINGS, "data_path": name, "sample_prompt": "/home/../~"})
    )
    texts = export(run)
    assert yaml.safe_load(texts["recipe.yml"]) == {
        **SETTINGS,
        "data_path": name,
        "sample_prompt": "/home/../~",
    }
    assert f"| text | {name} |" in texts["README.md"]


def around(folder):
    "The files of a folder, and the names beside it"
    return tree(folder), sorted(os.listdir(folder.parent))


def unreported(folder):
    "The same without the report, which may be written anew"
    files, names = around(folder)
    contents = {name: facts and facts[0] for name, facts in files.items()}
    return {
        name: facts
        for name, facts in contents.items()
        if not name.endswith(("report.md", "loss.png"))
    }, names


NAMES = [
    "../..",
    "me/..",
    "../x",
    "./x",
    "me/../x",
    "me//x",
    "/x",
    "me/",
    "me/x y",
    "me/-x",
    "me/x.",
    "me/a--b",
    "me/x.git",
    "ü/x",
    "me/x\ny",
    "me/" + "x" * 97,
    "C:/x",
    "me/x'y",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere(run, here, name, capsys):
    before = around(here)
    refuses(
        neox_report_main,
        ["lesson", "--push_to_hub", name, "--dry_run", "card"],
        capsys,
        "OWNER/NAME",
    )
    assert around(here) == before


def test_a_dry_run_replaces_nothing_of_a_person(run, here, capsys):
    for place in ("mine", "lesson", "lesson/best", "."):
        Path(place).mkdir(exist_ok=True)
    Path("mine/recipe.yml").write_text("mine")
    Path("mine/notes.md").write_text("mine")
    Path("link").symlink_to("mine")
    write_report(run)
    for place in ("mine", "lesson", "lesson/best", ".", "..", "link", "mine/notes.md"):
        before = unreported(here)
        refuses(
            neox_report_main,
            ["lesson", "--push_to_hub", "me/tiny", "--dry_run", place, "--replace"],
            capsys,
            "name a new folder",
        )
        assert unreported(here) == before, place


def test_a_dry_run_replaces_its_own_when_asked(run, capsys):
    words = ["lesson", "--push_to_hub", "me/tiny", "--dry_run", "new/card"]
    assert succeeds(neox_report_main, words, capsys).out == "new/card\n"
    before = tree(Path("new/card"))
    refuses(neox_report_main, words, capsys, "new/card", "is not replaced")
    assert tree(Path("new/card")) == before
    write_log(run, START, STEP, {**SCORE, "loss": 3.125})
    succeeds(neox_report_main, [*words, "--replace"], capsys)
    assert "3.1250 nats" in Path("new/card/README.md").read_text()


def test_a_persons_own_files_beside_the_model_are_not_published(run, capsys):
    (run / "best/diary.txt").write_text("private")
    (run / "best/.secret").write_text("private")
    (run / "best/drafts").mkdir()
    names = set(export(run))
    assert (
        names
        == {
            "README.md",
            "recipe.yml",
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            ".shakespeare_neox.json",
        }
        and Path("card/model.safetensors").exists()
    )
    assert {p.name for p in Path("card").iterdir()} == names | {"model.safetensors", "loss.png"}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "not published" in lines[0] and "diary.txt, drafts" in lines[0]


# progress


def watched(folder="lesson"):
    plan = SimpleNamespace(n_steps=30, tokens_in_step=512, sample_prompt="\n")
    return SimpleNamespace(plan=plan, folder=Path(folder), step=0)


class Broken(io.StringIO):
    "A stream on a full disk"

    encoding = "utf-8"

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("kind", ["terminal", "lines"])
@pytest.mark.parametrize("stream", ["full", "closed", "none", "ascii", "cp1252"])
def test_progress_on_a_broken_stream(run, monkeypatch, kind, stream):
    "Whatever became of standard error, all steps are done"
    narrow = io.TextIOWrapper(
        io.BytesIO(), "ascii" if stream == "ascii" else "cp1252", write_through=True
    )
    made = dict(full=Broken(), closed=io.StringIO(), none=None).get(stream, narrow)
    if stream == "closed":
        made.close()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("COLUMNS", "120")  # a bar has room
    progress, steps = Progress(watched(), Log(run / "log.jsonl"), kind), []
    for step in progress:
        steps.append(step)
        progress.show({**STEP, "step": step})
        progress.show({**SCORE, "step": step, "sample": "Ελληνικά → 中文"})
    progress.close()
    assert steps == list(range(30)) and not sys.stdout.closed
    if stream in ("ascii", "cp1252"):
        shown = narrow.buffer.getvalue().decode(narrow.encoding)
        assert (
            "step     9/30  validation loss 3.2500" in shown
            and "\\u4e2d" in shown
            and ("|##" in shown) == (kind == "terminal")
        )


@pytest.mark.parametrize("stream", ["full", "closed", "none"])
def test_progress_finds_its_kind_on_a_broken_stream(run, monkeypatch, stream):
    made = dict(full=Broken(), closed=io.StringIO(), none=None)[stream]
    if stream == "closed":
        made.close()
    monkeypatch.setattr(sys, "stderr", made)
    assert Progress(watched(), Log(run / "log.jsonl")).kind == "lines"


def test_a_live_plot_that_fails(run, monkeypatch, capsys):
    "One line, then lines of text"
    progress = Progress(watched(), Log(run / "log.jsonl"), "notebook")
    progress.bar = SimpleNamespace(main_bar=SimpleNamespace(comment=""))
    for step in (1, 2):
        progress.show({**STEP, "step": step})
    lines = capsys.readouterr().err.splitlines()
    assert (
        len(lines) == 3
        and "the live plot failed" in lines[0]
        and lines[2].startswith("step     2/30  loss 3.5000")
    )


# a whole run

TINY = dict(
    num_layers=1,
    hidden_size=16,
    num_attention_heads=2,
    seq_length=16,
    max_position_embeddings=16,
    train_iters=4,
    eval_interval=2,
    checkpoint_factor=2,
    log_interval=1,
    sample_tokens=2,
    train_micro_batch_size_per_gpu=2,
    precision="fp32",
    compile="off",
)


def trains(save, callback=None, **more):
    from shakespeare_neox.engine.run import train

    return train("quickstart", save=str(save), shown="lines", callback=callback, **TINY, **more)


def test_a_report_that_fails_costs_no_run(here, capsys):
    "The result is there, and one line says what is missing"

    def block(event):
        Path("run/report.md").mkdir(exist_ok=True)

    result = trains("run", block)
    assert (
        result.step == 4
        and (here / "run/best/model.safetensors").exists()
        and (here / "run/loss.png").exists()
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if "report" in line]
    assert (
        len(lines) == 1
        and "report.md: could not be written" in lines[0]
        and "neox_report run" in lines[0]
    )


def test_nothing_of_a_persons_machine_is_exported(here):
    """A real run on an absolute path: no folder of this machine and no name of it in anything that
    is published"""
    text = here / "a secret place" / "corpus.txt"
    text.parent.mkdir()
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 200)
    trains(here / "run", data_path=str(text), vocab_file=None)
    push_to_hub(here / "run", "me/tiny", dry_run=here / "card")
    published = [*(here / "card").iterdir(), here / "run/report.md"]
    assert len(published) >= 9
    for path in published:
        content = path.read_bytes()
        for word in (str(here), "secret place", str(Path.home()), socket.gethostname(), "/tmp"):
            assert len(word) < 4 or word.encode() not in content, (path.name, word)
    assert "| text | corpus.txt |" in (here / "card/README.md").read_text()


# Weights & Biases


@pytest.fixture
def nobody(here, monkeypatch):
    "A home without a login"
    for name in [name for name in os.environ if name.startswith("WANDB_")] + [
        "NETRC",
        "XDG_CONFIG_HOME",
    ]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(here / "home"))
    monkeypatch.setenv("USERPROFILE", str(here / "home"))
    (here / "home").mkdir()
    import wandb

    wandb.teardown()  # which forgets what it read from another home
    monkeypatch.setattr(wandb, "run", None)
    yield monkeypatch
    wandb.teardown()


def offline_runs(folder):
    "What W&B keeps of a run: for each start its id, its exit code and the names of its models"
    import wandb

    wandb.teardown()  # all is written
    found = []
    for file in sorted(
        Path(folder).glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime_ns
    ):
        kept = list(records(file))
        models = [
            r.artifact if r.HasField("artifact") else r.request.log_artifact.artifact
            for r in kept
            if r.HasField("artifact") or r.request.HasField("log_artifact")
        ]
        (ids,) = {r.run.run_id for r in kept if r.HasField("run")}
        found.append(
            (
                ids,
                [r.exit.exit_code for r in kept if r.HasField("exit")],
                [a.name for a in models if a.type == "model"],
            )
        )
    return found


def told(capsys):
    return [
        line for line in capsys.readouterr().err.splitlines() if "W&B" in line or "wandb" in line
    ]


def test_a_crash_and_the_run_that_goes_on(nobody, here, capsys):
    """One run at W&B: first failed and without a model, then complete; a folder's name may hold
    anything"""
    folder = here / "run ü #1"

    def crash(event):
        if event["step"] == 3:
            raise RuntimeError("a planted fault")

    with pytest.raises(RuntimeError, match="planted"):
        trains(folder, crash, use_wandb=True)
    lines = told(capsys)
    assert len(lines) == 1 and f"wandb sync '{folder}'/wandb/offline-run-*" in lines[0]
    trains(folder, use_wandb=True)
    first, second = offline_runs(folder)
    assert first == (second[0], [1], []) and second[1:] == ([0], ["run____1-best"])
    assert (
        json.loads((folder / "wandb.json").read_text()) == dict(id=first[0])
        and (folder / "report.md").exists()
    )
    tables = sorted(
        folder.glob("wandb/offline-run-*/files/media/table/samples*.json"),
        key=lambda p: p.stat().st_mtime_ns,
    )
    assert [row[0] for row in json.loads(tables[-1].read_text())["data"]] == [2, 4]


def test_an_interrupted_run_sends_no_model(nobody, here, capsys):
    import signal

    with pytest.raises(KeyboardInterrupt):
        trains(
            "run",
            lambda event: event["step"] == 3 and signal.raise_signal(signal.SIGINT),
            use_wandb=True,
        )
    assert [found[1:] for found in offline_runs("run")] == [([255], [])]


@pytest.mark.parametrize(
    "part", ["setup", "init", "Settings", "Table", "add_file", "log", "log_artifact", "finish"]
)
@pytest.mark.parametrize(
    "error",
    [RuntimeError("a planted fault\nwith two lines"), AssertionError()],
    ids=["text", "no text"],
)
def test_a_failing_logger_costs_no_run(nobody, here, capsys, part, error):
    import wandb
    from wandb.sdk.wandb_run import Run

    def fail(*args, **kwargs):
        raise error

    owner = (
        Run
        if part in ("log", "log_artifact", "finish")
        else wandb.Artifact
        if part == "add_file"
        else wandb
    )
    nobody.setattr(owner, part, fail)
    result = trains("run", use_wandb=True)
    nobody.undo()
    assert result.step == 4 and "validation loss" in (here / "run/report.md").read_text()
    lines = [line for line in told(capsys) if "logs offline into" not in line]
    assert lines == [
        f"W&B: {' '.join(str(error).split()) or 'AssertionError'}; the run goes on without it"
    ]


def test_a_logger_that_dies_in_the_middle(nobody, here, capsys):
    "Its process is killed while the run trains"
    psutil = pytest.importorskip("psutil")

    def kill(event):
        for child in psutil.Process().children(recursive=True):
            if child.name().startswith("wandb"):
                child.kill()
                child.wait(10)

    assert trains("run", kill, use_wandb=True).step == 4 and (here / "run/report.md").exists()
    lines = told(capsys)
    assert (
        len(lines) == 2 and "logs offline" in lines[0] and "the run goes on without it" in lines[1]
    )


def logged(project="neox"):
    "What start_wandb needs of a run"
    Path("run").mkdir(exist_ok=True)
    settings = SimpleNamespace(
        use_wandb=True, wandb_project=project, wandb_group=None, wandb_run_name=None
    )
    return SimpleNamespace(
        c=settings,
        accelerator=SimpleNamespace(is_main_process=True),
        folder=Path("run"),
        recipe=SimpleNamespace(settings=dict(data_path="/home/kim/corpus.txt", seed=3)),
    )


KEY = "a" * 40
ENVIRONMENTS = {
    "no login": ({}, "neox", "offline", "W&B logs offline into run"),
    "online, no login": (dict(WANDB_MODE="online"), "neox", "offline", "no login"),
    "a bad key": (
        dict(WANDB_MODE="online", WANDB_API_KEY="short"),
        "neox",
        "offline",
        "WANDB_API_KEY",
    ),
    "a bad key, no mode": (dict(WANDB_API_KEY="short"), "neox", "offline", "WANDB_API_KEY"),
    "an unknown mode": (dict(WANDB_MODE="nonsense"), "neox", "offline", "'nonsense'"),
    "an old name of a mode": (
        dict(WANDB_MODE="dryrun"),
        "neox",
        "offline",
        "W&B logs offline into run",
    ),
    "a bad project": ({}, "a/b", None, "a/b"),
    "a bad project, online": (dict(WANDB_API_KEY=KEY), "a/b", None, "a/b"),
    "a bad address": (dict(WANDB_BASE_URL="nonsense"), "neox", None, "nonsense"),
    "a bad netrc": (dict(NETRC="broken"), "neox", "offline", "W&B logs offline into run"),
    "a netrc that is a folder": (dict(NETRC="."), "neox", "offline", "W&B logs offline into run"),
    "off": (dict(WANDB_MODE="disabled"), "neox", "disabled", None),
}


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_environments_of_wandb(nobody, here, capsys, kind):
    "Offline or off with one line, and the environment as it was"
    given, project, mode, says = ENVIRONMENTS[kind]
    (here / "broken").write_bytes(b"machine \xff\x00 login 'x")
    for name, value in given.items():
        nobody.setenv(name, value)
    before = dict(os.environ)
    started = start_wandb(logged(project))
    if started:
        started.finish()
    assert (started and started.settings.mode) == mode
    assert {k: os.environ.get(k) for k in ("WANDB_MODE", "WANDB_API_KEY")} == {
        k: before.get(k) for k in ("WANDB_MODE", "WANDB_API_KEY")
    }
    lines = told(capsys)
    assert len(lines) == (says is not None) and all(says in line for line in lines), lines
    if mode == "offline":
        (kept,) = Path("run").glob("wandb/offline-run-*/*.wandb")
        assert "kim" not in str(list(records(kept))).replace(str(here), "")


def test_no_network(nobody, here, capsys):
    "A login, and a server that does not answer"
    import wandb

    nobody.setenv("WANDB_API_KEY", KEY)
    nobody.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    real = wandb.Settings

    def impatient(**given):
        return real(**{key: 2 if key == "init_timeout" else value for key, value in given.items()})

    nobody.setattr(wandb, "Settings", impatient)
    started = start_wandb(logged())
    started.finish()
    lines = told(capsys)
    assert (
        started.settings.mode == "offline"
        and len(lines) == 1
        and "logs offline into run" in lines[0]
    )
    assert started.id == json.loads(Path("run/wandb.json").read_text())["id"]


@pytest.mark.parametrize("content", ["", "{}", '{"id": 3}', '{"id": ""}', "[1]", "\x00"])
def test_a_damaged_id(nobody, here, capsys, content):
    "One line, no second run at W&B without a word"
    Path("run").mkdir()
    Path("run/wandb.json").write_text(content)
    assert start_wandb(logged()) is None
    lines = told(capsys)
    assert len(lines) == 1 and "wandb.json" in lines[0] and "remove it" in lines[0]
    assert Path("run/wandb.json").read_text() == content


@POSIX
def test_never_a_prompt(nobody, here):
    "On a terminal with a person in front of it"
    import pty

    code = (
        "from shakespeare_neox.engine.report import start_wandb; import sys; sys.path.insert(0, "
        "sys.argv[1]);"
        "from test_faults_report import logged; start_wandb(logged()).finish(); print('went on')"
    )
    parent, child = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code, Path(__file__).parent],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "WANDB_MODE": "online"},
    ) as process:
        os.close(child)
        shown = b""
        while True:
            try:
                new = os.read(parent, 4096)
            except OSError:
                break
            shown += new
            if not new:
                break
    os.close(parent)
    lines = shown.decode().splitlines()
    assert (
        process.returncode == 0
        and len(lines) == 2
        and "no login" in lines[0]
        and lines[1] == "went on"
    ), lines
