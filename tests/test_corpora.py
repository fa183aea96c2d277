"""Corpora as a person names them: known names, files of every kind, damaged ones, streams larger
than memory, plain output"""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, refuses, succeeds, tree
from servers import files  # noqa: F401 (fixtures)

from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.corpora import CORPORA, load_corpus, own_files
from shakespeare_neox.engine.run import neox_train_main as train
from shakespeare_neox.engine.tokens import TokenFile, load_tokenizer
from shakespeare_neox.engine.tokens import neox_prepare_main as prepare
from shakespeare_neox.engine.vocab import train_tokenizer

pytestmark = pytest.mark.usefixtures("here")
STORIES = [f"Story {i}. The lamp spoke to the fox, and the fox said: {i * i}." for i in range(60)]


def have(*names):
    return pytest.mark.skipif(not all(own_files(n) for n in names), reason="needs NEOX_DATA")


def write(path, documents=STORIES):
    "The same documents as any kind of file"
    path = Path(path)
    opened = gzip.open if path.suffix == ".gz" else open
    if ".parquet" in path.name:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(dict(text=documents)), path)
        return path
    with opened(path, "wt", encoding="utf-8") as file:
        if ".jsonl" in path.name:
            file.writelines(json.dumps({"text": d}) + "\n" for d in documents)
        elif ".json" in path.name:
            json.dump([{"text": d} for d in documents], file)
        else:
            file.write("\n".join(documents))
    return path


# names


@have(
    "shakespeare",
    "wikitext2",
    "wikitext103",
    "tinystories",
    "dolly",
    "gutenberg:11",
    "gutenberg:1342",
    "gutenberg:35",
)
@pytest.mark.parametrize(
    "name,documents,parts,begins",
    [
        ("shakespeare", 42, [], None),
        ("wikitext2", 3, ["train", "valid", "test"], " \n = Robert Boulter = "),
        ("wikitext103", 2, ["train", "valid"], None),
        ("tinystories", None, ["train", "valid"], None),
        ("dolly", 15_015, [], None),
        ("gutenberg:11", 1, [], None),
        ("gutenberg:1342", 1, [], "PRIDE AND PREJUDICE"),
        ("gutenberg:35", 1, [], "The Time Machine"),
    ],
)
def test_known_names(name, documents, parts, begins):
    corpus = load_corpus(name)
    assert corpus.parts == parts and corpus.licence == CORPORA[name.split(":")[0]].licence
    assert documents in (None, corpus.counts.documents) and corpus.counts.bytes > 100_000
    text = corpus.text
    assert (
        "\r" not in text
        and not text.startswith("\ufeff")
        and "<|endoftext|>" not in text
        and len(text) >= corpus.counts.characters
    )
    if name.startswith("gutenberg"):
        assert "Project Gutenberg" not in text and "Produced by" not in text
    if begins and name != "wikitext2":
        assert text.startswith(begins)


def test_manifest():
    "Each source says what it is; what is downloaded from a fixed place has its hash"
    import re

    for name, source in CORPORA.items():
        assert (
            source.about
            and source.licence
            and source.good_for
            and source.where.startswith("https://")
        ), name
        for f in source.files:
            assert f["url"] is None or f["url"].startswith("https://"), f
            assert f["sha256"] is None or re.fullmatch("[0-9a-f]{64}", f["sha256"])
            if "raw.githubusercontent.com" in (f["url"] or ""):
                assert f["sha256"] and re.search("/[0-9a-f]{40}/", f["url"]), f


@have("tinyshakespeare", "shakespeare")
def test_hashes_of_what_is_here():
    import hashlib

    for name in ("tinyshakespeare", "shakespeare"):
        for path, facts in zip(own_files(name), CORPORA[name].files):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == facts["sha256"], path


def test_own_folder_comes_first(monkeypatch):
    monkeypatch.setenv("NEOX_DATA", str(Path("mine").resolve()))
    Path("mine/tinyshakespeare").mkdir(parents=True)
    Path("mine/gutenberg").mkdir()
    Path("mine/hf/me/tales").mkdir(parents=True)
    Path("mine/tinyshakespeare/other.txt").write_text("not the usual file")
    Path("mine/gutenberg/7.txt").write_text("a book of mine")
    write("mine/hf/me/tales/train-0.jsonl")
    write("mine/hf/me/tales/test-0.jsonl", STORIES[:3])
    assert (
        load_corpus("tinyshakespeare").text == "not the usual file"
        and load_corpus("gutenberg:7").text == "a book of mine"
    )
    tales = load_corpus("hf:me/tales")
    assert (
        tales.parts == ["train", "valid"] and tales.count("valid").documents == 3
    )  # test files validate where no others do


# downloads, from a server on loopback


@pytest.mark.parametrize(
    "fault,words",
    [
        ("cut", "cut off"),
        ("wrong", "SHA-256 differs"),
        (404, "answers 404"),
        (429, "answers 429"),
        ("slow", None),
        ("/other", None),
    ],
    ids=str,
)
def test_download(fault, words, files, monkeypatch, tmp_path, capsys):
    import dataclasses
    import hashlib

    import shakespeare_neox.engine.corpora as corpora

    body = ("The ink is dry. " * 500).encode()
    source = CORPORA["tinyshakespeare"]
    served = dict(
        source.files[0], url=f"{files.url}/input.txt", sha256=hashlib.sha256(body).hexdigest()
    )
    monkeypatch.setitem(
        corpora.CORPORA, "tinyshakespeare", dataclasses.replace(source, files=[served])
    )
    monkeypatch.delenv("NEOX_DATA", raising=False)
    monkeypatch.setenv("NEOX_CACHE", str(tmp_path / "cache"))
    files.files, files.faults = {"/input.txt": body, "/other": body}, {"/input.txt": fault}

    def kept():
        return [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()]

    if words:
        refuses(
            prepare,
            ["tinyshakespeare"],
            capsys,
            "could not be downloaded",
            words,
            files.url,
            str(tmp_path / "cache" / "tinyshakespeare" / "input.txt"),
            "NEOX_DATA",
        )
        assert kept() == []
        return
    assert load_corpus("tinyshakespeare").text == body.decode() and kept() == ["input.txt"]
    asked = len(files.requests)
    load_corpus("tinyshakespeare")
    assert len(files.requests) == asked  # fetched once


# files


@pytest.mark.parametrize(
    "name",
    ["a.txt", "a.md", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet"],
)
def test_kinds_of_file(name):
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    corpus = load_corpus(write(name))
    assert (
        corpus.text == "\n".join(STORIES)
        and corpus.counts.documents == (1 if ".txt" in name or ".md" in name else 60)
        and corpus.name == "a"
    )


def test_patterns_and_folders():
    Path("tales/more").mkdir(parents=True)
    for i, name in enumerate(["tales/a.txt", "tales/more/b.jsonl.gz", "tales/c.doc"]):
        write(name, [f"number {i}"])
    assert (
        load_corpus("tales").text
        == load_corpus("tales/**/*.*z").text.join(["number 0\n", ""])
        == "number 0\nnumber 1"
    )
    with pytest.raises(NeoxError, match="no file matches this pattern"):
        load_corpus("tales/*.parquet")
    write("tales/train.txt")
    assert load_corpus("tales").parts == []  # a.txt says nothing of parts, so there is no division
    write("tales/valid.txt", STORIES[:9])
    with pytest.raises(NeoxError, match="kept from training"):
        load_corpus("tales")  # but valid.txt may not be trained on
    assert load_corpus("tales/[tv]*.txt").parts == ["train", "valid"]


def test_chats_and_instructions():
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    turns = [
        [
            dict(role="user", content="Who prints it?", hashed_ip="x"),
            dict(role="assistant", content="Marian.", hashed_ip="x"),
        ]
    ] * 3
    pyarrow.parquet.write_table(
        pyarrow.table(dict(conversation=turns, model=["m"] * 3)), "chats.parquet"
    )
    assert load_corpus("chats.parquet").text.startswith(
        "USER:\nWho prints it?\n\nASSISTANT:\nMarian.\nUSER:"
    )
    Path("d.jsonl").write_text(
        json.dumps(dict(instruction="Why?", context="", response="So.")) + "\n"
    )
    assert load_corpus("d.jsonl").text == "Why?\n\nSo."


BAD = {
    "lines.jsonl": ('{"text": "a"}\n{"text": \nnot json\n', ["lines 2, 3"]),
    "many.jsonl": ("x\n" * 9, ["lines 1, 2, 3, 4, 5 and 4 more"]),
    "list.jsonl": ("[1]\n", ["line 1"]),
    "title.jsonl": ('{"title": "a"}\n', ["title.jsonl, line 1", "no column named text", "title"]),
    "number.jsonl": ('{"text": 3}\n', ["line 1", "int"]),
    "empty.jsonl": ("\n", ["empty"]),
    "none.json": ('{"a": 1}', ["no list of records", ".jsonl"]),
    "not.json": ("{", ["not JSON", ".jsonl"]),
    "plain.gz": ("not packed", ["not whole gzip data"]),
    "book.txt": ("*** START OF THE PROJECT GUTENBERG EBOOK X ***\nabc", ["START or END"]),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files(name, capsys):
    content, parts = BAD[name]
    Path(name).write_text(content)
    before = tree(".")
    refuses(prepare, [name], capsys, name, *parts)
    assert tree(".") == before


def test_cut_off_gzip(capsys):
    write("a.txt.gz", [os.urandom(3000).hex()])
    Path("a.txt.gz").write_bytes(Path("a.txt.gz").read_bytes()[:-700])
    refuses(prepare, ["a.txt.gz"], capsys, "a.txt.gz", "cut off", "copy it again")
    assert os.listdir() == ["a.txt.gz"]


# preparing


def test_documents_are_whole_and_their_ends_marked(capsys):
    tokenizer = train_tokenizer("".join(STORIES), "bpe", 300)
    Path("t").mkdir()
    tokenizer.save("t")
    write("a.jsonl")
    succeeds(
        prepare,
        [
            "a.jsonl",
            "--tokenizer_path",
            "t",
            "--split_by",
            "document",
            "--split",
            "80,20",
            "--out",
            "out",
        ],
        capsys,
    )
    parts = {p: TokenFile(f"out/{p}.bin").ids.tolist() for p in ("train", "valid")}
    texts = {
        p: [tokenizer.decode(d) for d in split_at(ids, tokenizer.eot_id)]
        for p, ids in parts.items()
    }
    assert (
        sorted(texts["train"] + texts["valid"]) == sorted(STORIES)
        and texts["valid"]
        and parts["train"][-1] == tokenizer.eot_id
    )
    refuses(prepare, ["sample", "--split_by", "document"], capsys, "one document", "by position")
    refuses(
        prepare, ["sample", "--split_by", "line"], capsys, "split_by='line'", "position or document"
    )


def split_at(ids, mark):
    "Lists between marks"
    out = [[]]
    for i in ids:
        if i == mark:
            out.append([])
        else:
            out[-1].append(i)
    return out[:-1]


def test_own_division_is_kept(capsys):
    Path("tales").mkdir()
    write("tales/train.jsonl")
    write("tales/test.jsonl", STORIES[:5])
    write("tales/valid.jsonl", STORIES[:7])
    Path("t").mkdir()
    train_tokenizer("".join(STORIES)).save("t")
    succeeds(prepare, ["tales", "--tokenizer_path", "t", "--out", "out"], capsys)
    assert [
        json.loads(Path(f"out/{p}.json").read_text())["n_documents"]
        for p in ("train", "valid", "test")
    ] == [60, 7, 5]


def test_tokenizer_without_an_end(capsys):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(
        models.BPE(
            vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save("t.json")
    write("a.jsonl")
    refuses(
        prepare,
        ["a.jsonl", "--tokenizer_path", "t.json"],
        capsys,
        "60 documents",
        "no end-of-text token",
    )


LAUNCH = "from shakespeare_neox.engine.tokens import neox_prepare_main as m; m()"


def launch(*words, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def test_workers_give_the_same_file():
    text = load_corpus("sample").text
    Path("t").mkdir()
    train_tokenizer(text, "bpe", 600).save("t")
    Path("a.txt").write_text(text * 12)
    for n in (1, 3):
        done = launch("a.txt", "--tokenizer_path", "t", "--out", f"out{n}", "--workers", n)
        assert done.wait() == 0, done.stderr.read()
    assert (
        Path("out1/train.bin").read_bytes() == Path("out3/train.bin").read_bytes()
        and Path("out1/valid.bin").read_bytes() == Path("out3/valid.bin").read_bytes()
    )
    whole = np.array(load_tokenizer("t").encode((text * 12)[: len(text * 12) * 9 // 10]), np.uint16)
    assert np.array_equal(TokenFile("out1/train.bin").ids, whole)


def test_killed_while_preparing():
    """SIGKILL at any instant of the writing leaves the former folder, never a half one, and nothing
    in the way of the next"""
    Path("a.txt").write_text(load_corpus("sample").text * 60)
    assert launch("sample", "--out", "out").wait() == 0
    former = tree("out")
    for share in (0.0, 0.2, 0.5, 0.8):  # of the ids that are written
        process = launch("a.txt", "--out", "out", "--replace")

        def written(pid=process.pid):
            return max(
                (p.stat().st_size for p in Path(".").glob(f".out.{pid}-*/train.bin")), default=-1
            )

        start = time.monotonic()
        while written() <= share * 2 * 7_500_000 and process.poll() is None:
            assert time.monotonic() - start < 120
        process.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
        assert process.wait() not in (0, 2), "the kill came too late: " + process.stderr.read()
        assert tree("out") == former
    assert launch("a.txt", "--out", "out", "--replace").wait() == 0
    assert TokenFile("out/train.bin").n_tokens > 5_000_000


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text():
    """From 10 to 200 MB of text, as one line, anonymous memory grows by at most 50 MB; ids equal
    those of the whole, where that fits"""
    script = (
        "import sys, threading, time\nfrom shakespeare_neox.engine.tokens import "
        "neox_prepare_main\npeak, going = 0, True\n"
        "def watch():\n    global peak\n    while going:\n        peak = max(peak, "
        "next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))); "
        "time.sleep(.01)\n"
        "t = threading.Thread(target=watch, daemon=True); t.start()\n"
        "neox_prepare_main(sys.argv[1:]); going = False; t.join(); print(peak, file=sys.stderr)"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux")
    text = load_corpus("sample").text.replace("\n", " ")
    Path("t").mkdir()
    train_tokenizer(text, "bpe", 2000).save("t")
    peaks = {}
    for megabytes in (10, 200):
        with open("long.txt", "w") as file:
            for _ in range(megabytes * 10**6 // len(text)):
                file.write(text)
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                script,
                "long.txt",
                "--tokenizer_path",
                "t",
                "--out",
                f"long{megabytes}",
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        peaks[megabytes] = int(done.stderr.split()[-1]) / 1024
    print(peaks)
    assert peaks[200] - peaks[10] < 50, peaks


def test_plain_files(capsys):
    write("a.jsonl")
    out = succeeds(prepare, ["a.jsonl", "--plain", "b.txt"], capsys)
    assert (
        out.out == "b.txt\n"
        and "60 documents" in out.err
        and Path("b.txt").read_text() == "\n\n".join(STORIES)
    )
    Path("d.jsonl").write_text(
        json.dumps(dict(instruction="Why?", context="", response="So.", category="qa")) + "\n"
    )
    succeeds(prepare, ["d.jsonl", "--plain", "e.jsonl"], capsys)
    assert json.loads(Path("e.jsonl").read_text()) == dict(
        instruction="Why?", context="", response="So.", category="qa", text="Why?\n\nSo."
    )
    refuses(prepare, ["a.jsonl", "--plain", "b.doc"], capsys, "b.doc", ".txt or .jsonl")
    succeeds(prepare, ["a.jsonl", "--plain", "nowhere/b.txt"], capsys)
    assert Path("nowhere/b.txt").read_bytes() == Path("b.txt").read_bytes()
    before = tree(".")
    refuses(
        prepare,
        ["a.jsonl", "--plain", "b.txt/c.txt"],
        capsys,
        "b.txt/c.txt",
        "could not be written",
    )
    assert tree(".") == before


@have("wikitext2", "dolly")
def test_plain_wikitext_and_dolly(capsys):
    succeeds(prepare, ["wikitext2", "--plain", "w.txt"], capsys)
    sizes = [p.stat().st_size for p in own_files("wikitext2")]
    assert Path("w.txt").stat().st_size == sum(sizes) + 2 * 2
    succeeds(prepare, ["dolly", "--plain", "d.jsonl"], capsys)
    records = [json.loads(line) for line in open("d.jsonl")]
    assert len(records) == 15_015 and {
        "instruction",
        "context",
        "response",
        "category",
        "text",
    } <= set(records[0])


# training on them


def test_two_tokenizers(capsys):
    text = load_corpus("sample").text
    Path("more.txt").write_text(text[::-1])
    for name, kind in dict(letters="char", pairs="bpe").items():
        Path(name).mkdir()
        train_tokenizer(text, kind, 300).save(name)
        succeeds(prepare, ["sample", "--tokenizer_path", name, "--out", f"{name}-tokens"], capsys)
    succeeds(prepare, ["more.txt", "--tokenizer_path", "letters", "--out", "more-tokens"], capsys)
    lists = [
        "train_data_paths=[letters-tokens/train.bin, pairs-tokens/train.bin]",
        "valid_data_paths=[letters-tokens/valid.bin]",
        "data_path=",
        "vocab_file=",
    ]
    refuses(
        train,
        ["quickstart", *TINY, *lists],
        capsys,
        "pairs-tokens/train.bin",
        "made by another tokenizer",
    )
    mixed = ["train_data_paths=[letters-tokens/train.bin, sample]", *lists[1:]]
    refuses(train, ["quickstart", *TINY, *mixed], capsys, "sample", "a corpus among token files")
    joined = ["train_data_paths=[letters-tokens/train.bin, more-tokens/train.bin]", *lists[1:]]
    assert "best" in succeeds(train, ["quickstart", *TINY, *joined, "train_iters=2"], capsys).out


def test_train_epochs(capsys):
    "Epochs become steps, and each leaves its model"
    succeeds(
        train,
        [
            "quickstart",
            *[w for w in TINY if "train_iters" not in w],
            "train_iters=null",
            "train_epochs=2",
            "checkpoint_epochs=true",
            "train_micro_batch_size_per_gpu=512",
            "checkpoint_dir=x",
        ][:-1]
        + ["--checkpoint_dir", "run"],
        capsys,
    )
    from shakespeare_neox.data import windows

    n = len(windows(126_379, 32, 1337, 0))
    steps = -(-2 * n // 512)
    assert (
        sorted(os.listdir("run/epochs")) == ["epoch_1", "epoch_2"]
        and [json.loads(line)["step"] for line in open("run/log.jsonl")][-1] == steps
    )


def test_extra_save_iters(capsys):
    from shakespeare_neox.engine.state import saved_steps

    succeeds(
        train,
        [
            "quickstart",
            *TINY,
            "checkpoint_factor=20",
            "extra_save_iters=[0, 3, 7]",
            "keep_last_n_checkpoints=null",
            "--checkpoint_dir",
            "run",
        ],
        capsys,
    )
    assert saved_steps("run") == [0, 3, 7, 20, 30]


def test_activation_checkpointing_changes_nothing(trained, capsys):
    import torch

    succeeds(
        train,
        ["quickstart", *TINY, "checkpoint_activations=true", "--checkpoint_dir", "run"],
        capsys,
    )
    from safetensors.torch import load_file

    a, b = (load_file(Path(f) / "last" / "model.safetensors") for f in (trained, "run"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_twelve_billion_parameters_on_a_laptop(monkeypatch, capsys):
    "Refused before anything is allocated, with an estimate; --force tries"
    import shakespeare_neox.engine.device as device_module

    large = [
        "quickstart",
        "num_layers=36",
        "hidden_size=5120",
        "num_attention_heads=40",
        "seq_length=2048",
        "max_position_embeddings=2048",
    ]
    monkeypatch.setattr(device_module, "device_bytes", lambda device: 16 * 2**30)
    start = time.process_time()
    line = refuses(train, large, capsys, "training this model needs about", "17 GB", "--force")
    assert (
        int(line.split("needs about ")[1].split(" GB")[0]) > 180
        and time.process_time() - start < 20
        and not Path("runs").exists()
    )
    monkeypatch.setattr(device_module, "device_bytes", lambda device: 1000)
    refuses(train, ["quickstart", *TINY], capsys, "--force")
    assert "best" in succeeds(train, ["quickstart", *TINY, "--force"], capsys).out


def test_report(trained, capsys):
    import shutil

    from shakespeare_neox.engine.report import neox_report_main as report

    shutil.copytree(trained, "run")
    Path("run/report.md").unlink()
    Path("run/loss.png").unlink()
    assert succeeds(report, ["run"], capsys).out == f"{Path('run/report.md')}\n"
    page, events = (
        Path("run/report.md").read_text(),
        [json.loads(line) for line in open("run/log.jsonl")],
    )
    best = min(e["loss"] for e in events if e["event"] == "evaluation")
    assert (
        f"{best:.4f} nats" in page
        and "CC0-1.0" in page
        and "train_iters: 30" in page
        and Path("run/loss.png").read_bytes()[:4] == b"\x89PNG"
    )
    assert (
        succeeds(report, ["run", "--push_to_hub", "me/tiny", "--dry_run", "card"], capsys).out
        == "card\n"
    )
    card = Path("card/README.md").read_text()
    assert (
        card.startswith("---\nlibrary_name: transformers\n")
        and "license: cc0-1.0" in card
        and f"{best:.4f} nats" in card
        and {"config.json", "model.safetensors", "tokenizer.json", "recipe.yml", "loss.png"}
        <= set(os.listdir("card"))
    )
    refuses(report, ["nowhere"], capsys, "nowhere", "no run here")
    refuses(report, ["run", "--dry_run", "x"], capsys, "give both")
    refuses(report, ["run", "--push_to_hub", "tiny"], capsys, "OWNER/NAME")


def test_tune(capsys):
    from shakespeare_neox.engine.tune import neox_tune_main as tune

    out = succeeds(
        tune,
        [
            "quickstart",
            *[w for w in TINY if "train_iters" not in w],
            "optimizer.params.lr=1e-3,1e18",
            "gradient_clipping=0",
            "train_iters=15",
            "--checkpoint_dir",
            "sweep",
        ],
        capsys,
    )
    page = Path("sweep/tune.md").read_text()
    assert (
        out.out == f"{Path('sweep/tune.md')}\n"
        and page.index("lr=1e-3") < page.index("lr=1e18")
        and "the loss became" in page
        and Path("sweep/tune.png").exists()
    )
    refuses(tune, ["quickstart", "train_iters=15"], capsys, "nothing to compare")
    refuses(tune, ["quickstart", "weight_decay=0,,1"], capsys, "value is missing")
