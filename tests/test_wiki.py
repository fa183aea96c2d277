"""WikiText by name: its words joined again, its files as other tools call them, byte pairs by
default, its recipes"""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, refuses, succeeds, tree

from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.corpora import (
    CORPORA,
    detokenized,
    join_words,
    load_corpus,
    own_files,
    usual_file,
)
from shakespeare_neox.engine.recipe import load_config
from shakespeare_neox.engine.run import neox_train_main as train
from shakespeare_neox.engine.tokens import load_tokenizer, usual_tokenizer
from shakespeare_neox.engine.tokens import neox_prepare_main as prepare
from shakespeare_neox.engine.tokens import neox_tokenizer_main as tokenizer
from shakespeare_neox.model import count_parameters

ARTICLE = " \n = Lamps = \n \n The lamp @-@ maker 's price was $ 2 @.@ 50 . \n"
SAME = ("", " ", "a\n\nb", "no marks at all", '"open only', "a = b = c")


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A folder of own copies, and an empty one to work in"
    lines = [dict(instruction=f"Say {n}.", context="", response=n, category="echo") for n in "ab"]
    files = {
        "wikitext2/train.txt": ARTICLE * 40,
        "wikitext2/valid.txt": " A well . \n",
        "dolly/dolly.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
    }
    for name, content in files.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(content)
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("NEOX_DATA", str(tmp_path / "own"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "own"


# words and signs


@pytest.mark.parametrize(
    "apart,joined",
    [
        (" = = Early lamps = = ", "== Early lamps =="),
        (" = Lamps = =", "= Lamps = ="),
        ("role @-@ playing , 10 @,@ 000 , 2 @.@ 5", "role-playing, 10,000, 2.5"),
        ("in 1932 @,@", "in 1932,"),
        ('the " Nameless " , he', 'the "Nameless", he'),
        ("( lit . moon ) [ sic ]", "(lit. moon) [sic]"),
        ("the game 's end didn 't , we 'll", "the game's end didn't, we'll"),
        ("at 7 : 30 : the end", "at 7:30: the end"),
        ("1914 – 18 , north – south", "1914–18, north – south"),
        ("the players ' choice", "the players' choice"),
        ("£ 5 , US $ 6 %", "£5, US $6%"),
        *((text, text.strip()) for text in SAME),
    ],
)
def test_joined_words(apart, joined):
    assert join_words(apart) == joined


def test_any_pieces_give_the_same():
    whole = "".join(detokenized([ARTICLE]))
    random = np.random.default_rng(0)
    for _ in range(50):
        cuts = sorted(random.integers(0, len(ARTICLE), 4).tolist())
        ends = zip([0, *cuts], [*cuts, len(ARTICLE)])
        assert "".join(detokenized(ARTICLE[a:b] for a, b in ends)) == whole
    assert "\n= Lamps =\n\nThe lamp-maker's price was $2.50.\n" == whole
    assert "".join(detokenized([])) == ""


@pytest.mark.skipif(not own_files("wikitext2"), reason="needs NEOX_DATA")
def test_no_letter_is_lost():
    "Over a whole split: blanks and marks apart, the text is the same; and it is shorter"
    import re

    raw, joined = (
        "".join(piece for _, pieces in load_corpus(name).documents("valid") for piece in pieces)
        for name in ("wikitext2", "wikitext2:detokenized")
    )

    def letters(text):
        return re.sub(r"@([-,.])@|\s", r"\1", text)

    assert letters(raw) == letters(joined) and len(joined) < 0.97 * len(raw)
    assert " ," not in joined and " @-@ " not in joined and raw.count("<unk>") > 1000


def test_names(own, capsys):
    assert load_corpus("wikitext2").text.startswith(" \n = Lamps")
    corpus = load_corpus("wikitext2:detokenized")
    assert corpus.parts == ["train", "valid"] and corpus.licence == CORPORA["wikitext2"].licence
    assert corpus.text.startswith("\n= Lamps =") and corpus.counts.sha256 == corpus.count().sha256
    refuses(prepare, ["sample:detokenized"], capsys, "not apart", "give sample")
    refuses(prepare, ["wikitext2:detokenised"], capsys, "wikitext2:detokenised", "neither a file")
    refuses(prepare, ["wikitext2:"], capsys, "wikitext2:", "neither a file")


def test_own_text_beside_it(own, capsys):
    "A joined corpus and one that is not are not mixed without a word"
    words = [
        "train_data_paths=[wikitext2:detokenized, wikitext2]",
        "valid_data_paths=[wikitext2]",
        "data_path=",
    ]
    words = ["wiki_cpu", *TINY, "train_epochs=", *words]
    refuses(train, words, capsys, "different ways", steps=True)


# files for other tools


def test_one_command(own, capsys):
    out = succeeds(prepare, ["wikitext2:detokenized", "dolly", "--plain", "data/"], capsys).out
    assert out.split() == [
        "data/pretraining_data/wikitext-2_train_corpus.txt",
        "data/finetuning_data/dolly_15k_instructions.jsonl",
    ]
    text, lines = (Path(path).read_text() for path in out.split())
    assert text == "".join(detokenized([ARTICLE * 40])) and "well" not in text
    assert lines == (own / "dolly" / "dolly.jsonl").read_text()
    before = tree("data")
    refuses(prepare, ["dolly", "--plain", "data"], capsys, "dolly_15k", "already there")
    refuses(prepare, ["wikitext103", "dolly", "--plain", "data"], capsys, "already there")
    assert tree("data") == before


def test_names_of_wikitext103():
    path = usual_file("wikitext103", Path("data"))
    assert path.as_posix() == "data/pretraining_data/wikitext-103_train_corpus.txt"
    assert usual_file("wikitext103:detokenized", Path("data")) == path


def test_bad_plain_folders(own, capsys, monkeypatch):
    refuses(prepare, ["sample", "--plain", "data/"], capsys, "sample", "no usual name", "dolly")
    refuses(prepare, ["sample", "dolly"], capsys, "dolly", "--plain FOLDER/")
    refuses(prepare, ["sample", "dolly", "--plain", "a.txt"], capsys, "dolly", "--plain FOLDER/")
    Path("file").write_text("mine")
    refuses(prepare, ["dolly", "--plain", "file/"], capsys, "could not be written")
    monkeypatch.setenv("NEOX_DATA", "")
    for name in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    refuses(prepare, ["wikitext2", "dolly", "--plain", "data/"], capsys, "put the file at")
    assert [path.name for path in Path().iterdir()] == ["file"]


# byte pairs by default


def test_usual_tokenizers(own, capsys):
    assert usual_tokenizer("wikitext103") == ("bpe", 30_000)
    assert usual_tokenizer("wikitext2:detokenized", "bpe") == ("bpe", 30_000)
    assert usual_tokenizer("wikitext2", "unigram") == ("unigram", None)
    assert usual_tokenizer("my.txt") == ("char", None)
    assert usual_tokenizer("my.txt", "bpe") == ("bpe", None)
    out = succeeds(tokenizer, ["wikitext2", "--vocab_size", "262"], capsys).out
    assert load_tokenizer(out.strip()).vocab_size == 262
    refuses(tokenizer, ["wikitext2", "--out", "t"], capsys, "vocab_size=30000", "or less")


def test_a_run_learns_its_tokenizer(own, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NEOX_CACHE", str(tmp_path / "cache"))
    words = [*TINY, "train_iters=", "bpe_vocab_size=262", "train_epochs=2", "sample_prompt=The "]
    words += ["data_path=wikitext2:detokenized", "--checkpoint_dir"]
    said = succeeds(train, ["wiki_cpu", *words, "one"], capsys)
    assert "262 tokens are learned" in said.err
    assert sorted(path.name for path in Path("one/epochs").iterdir()) == ["epoch_1", "epoch_2"]
    first = load_tokenizer("one/best")
    assert first.vocab_size == 262 and load_tokenizer("one/epochs/epoch_1").vocab_size == 262
    said = succeeds(train, ["wiki_cpu", *words, "two"], capsys)
    assert "are learned" not in said.err
    kept = next((tmp_path / "cache" / "tokenizers").glob("*/tokenizer.json"))
    kept.write_text("{")
    said = succeeds(train, ["wiki_cpu", *words, "three"], capsys)
    assert "are learned" in said.err
    assert load_tokenizer("three/best").fingerprint == first.fingerprint


def test_bad_sizes(own, capsys):
    few = ["wiki_cpu", "data_path=wikitext2:detokenized"]
    refuses(train, [*few, "bpe_vocab_size=0"], capsys, "bpe_vocab_size", "below 1")
    refuses(train, [*few, "bpe_vocab_size=many"], capsys, "bpe_vocab_size")
    for size, fix in ((9000, "or less"), (5, "at least")):
        word = f"bpe_vocab_size={size}"
        refuses(train, [*few, word], capsys, word, fix, steps=True)


# recipes


def test_recipes():
    small, cpu = load_config("wiki_small"), load_config("wiki_cpu")
    sizes = {key: small.model[key] for key in ("num_layers", "num_attention_heads", "hidden_size")}
    assert list(sizes.values()) == [6, 6, 384] and small.model["seq_length"] == 256
    assert small.train.bpe_vocab_size == 30_000 and small.train.checkpoint_epochs
    for recipe, millions in ((small, 22.2), (cpu, 3.4)):
        config = recipe.model_config(recipe.train.bpe_vocab_size)
        assert sum(count_parameters(config).values()) / 1e6 == pytest.approx(millions, abs=0.1)
        assert recipe.train.texts.endswith(":detokenized")


def test_a_tokenizer_that_is_given_comes_first(own):
    recipe = load_config("wiki_cpu", vocab_file="tokenizer/characters/tokenizer.json")
    assert recipe.train.vocab_file and recipe.train.bpe_vocab_size
    with pytest.raises(NeoxError, match="bpe_vocab_size"):
        load_config("wiki_cpu", bpe_vocab_size=-1)
