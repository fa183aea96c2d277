"""TinyStories by name: stories stay whole, marks that are missing are restored and said, unigram
pieces by a recipe's key, three recipes"""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, refuses, succeeds
from hypothesis import given
from hypothesis import strategies as st

from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.checkpoints import family_for
from shakespeare_neox.engine.corpora import load_corpus, own_files
from shakespeare_neox.engine.documents import (
    UNMARKED,
    begins_story,
    restored_ends,
    separated,
    unmarked,
    with_marks,
)
from shakespeare_neox.engine.recipe import load_config
from shakespeare_neox.engine.run import neox_train_main as train
from shakespeare_neox.engine.tokens import load_tokenizer
from shakespeare_neox.engine.tokens import neox_prepare_main as prepare
from shakespeare_neox.engine.tokens import neox_tokenizer_main as tokenizer
from shakespeare_neox.model import count_parameters

MARK = "<|endoftext|>"
FOX = "Once upon a time, a fox lived by the mill.\n\nOne day, the fox found a key.\n\nIt was wet."
HEN = "One day, a hen laid a blue egg.\n\nHer friends came to look.\n\nThey ate cake."
BEN = "Ben and Ada were twins.\n\nThey had one hat.\n\nOne day, they found another."
SUN = "The sun was warm.\n\nA snail called Otto slept.\n\nHe woke at noon."
TALES = [FOX, HEN, BEN, SUN]
LINES = st.sampled_from(["", " ", *"\n\n".join(TALES).split("\n\n"), "Once there was.", "One day"])


@pytest.fixture
def own(tmp_path, monkeypatch):
    "Stories with marks to train on and without marks to score, and an empty folder to work in"
    folder = tmp_path / "own" / "tinystories"
    folder.mkdir(parents=True)
    many = [f"{story}\n\nThat was on day {day}." for day in range(40) for story in TALES]
    (folder / f"{tmp_path.name}-train.txt").write_text(f"\n{MARK}\n".join(many))
    (folder / f"{tmp_path.name}-valid.txt").write_text("\n\n".join(TALES))
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("NEOX_DATA", str(tmp_path / "own"))
    monkeypatch.setenv("NEOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "work")
    return folder


# ends of stories


def test_stories_are_told_apart():
    assert list(unmarked(["\n\n".join(TALES)])) == TALES
    assert list(unmarked(["\n".join(TALES).replace("\n\n", "\n")])) == [
        story.replace("\n\n", "\n") for story in TALES
    ]
    assert restored_ends(TALES * 5) == (1, 1)


@pytest.mark.parametrize(
    "line,begins",
    [
        ("Once upon a time, the fox came back.", True),
        ("Once, there was a fox.", True),
        ("Once the fox slept.", False),
        ("One day, the fox found a key.", False),
        ("One day, a hen came to the mill.", False),
        ("One day, she laid an egg.", False),
        ("One day, a hen laid an egg.", True),
        ("One fine sunny morning, Ada woke up.", True),
        ("One of them was red.", False),
        ("Rosa was a cow.", True),
        ("She was a cow.", False),
        ("There was a cow called Rosa.", True),
        ("There was no more hay.", False),
        ("Suddenly, Rosa fell.", False),
        ("", False),
    ],
)
def test_first_lines(line, begins):
    assert begins_story(line, FOX.split("\n")) is begins


def test_a_second_paragraph_is_no_story():
    assert not begins_story("One day, a hen laid an egg.", ["Rosa was a cow."])
    assert begins_story("Once upon a time, a hen sang.", ["Rosa was a cow."])


@given(st.lists(LINES, max_size=30), st.integers(1, 20))
def test_no_letter_is_lost(lines, size):
    text = "\n".join(lines)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    told = list(unmarked(pieces))
    assert "".join("".join(told).split()) == "".join(text.split())
    assert told == list(unmarked([text])) and all(story.strip() for story in told)


def test_marks_come_first(capsys):
    marked = [f"{HEN}\n\n{FOX}{MARK}", BEN]
    assert list(with_marks(marked, MARK, "a.txt")) == [f"{HEN}\n\n{FOX}", BEN]
    late = ["x" * UNMARKED, f"\n\n{FOX}", f"{MARK}{BEN}"]
    assert len(list(with_marks(late, MARK, "b.txt"))) == 2
    assert list(with_marks([FOX], MARK, "c.txt")) == [FOX]
    assert list(with_marks([], MARK, "d.txt")) == []
    said = capsys.readouterr().err
    assert said.count(f"no {MARK} in it") == 1 and "b.txt" in said


def test_one_story_is_held_at_a_time():
    "The first story comes before the second has been read to its end"
    read = []

    def pieces():
        for number in range(10**6):
            read.append(number)
            yield f"{FOX}\n\n"

    assert next(unmarked(pieces())) == FOX and len(read) < 4


# the corpus by name


def test_stories_stay_whole(own, capsys):
    corpus = load_corpus("tinystories")
    assert corpus.parts == ["train", "valid"]
    assert (corpus.count("train").documents, corpus.count("valid").documents) == (160, 4)
    said = capsys.readouterr().err
    assert said.count("-valid.txt: no <|endoftext|> in it") == 1 and "-train.txt" not in said
    assert ["".join(pieces) for _, pieces in corpus.documents("valid")] == TALES


def test_each_end_is_marked(own, capsys):
    succeeds(tokenizer, ["tinystories", "--kind", "unigram", "--vocab_size", "300"], capsys)
    made = load_tokenizer("tokenizers/tinystories-unigram")
    words = ["tinystories", "--tokenizer_path", "tokenizers/tinystories-unigram"]
    assert "restored" in succeeds(prepare, words, capsys).err
    ids = np.fromfile("prepared/tinystories/valid.bin", np.uint16)
    assert (ids == made.eot_id).sum() == 4 and ids[-1] == made.eot_id
    told = "".join(made.decode(part) for part in np.split(ids, np.nonzero(ids == made.eot_id)[0]))
    assert told == "".join(TALES)


def test_records_need_no_marks(own, capsys):
    for path in own.iterdir():
        path.unlink()
    for part in ("train", "valid"):
        lines = [json.dumps({"text": f"{story} {part}"}) + "\n" for story in TALES]
        (own / f"my-{part}.jsonl").write_text("".join(lines))
    assert load_corpus("tinystories").counts.documents == 8
    assert "restored" not in capsys.readouterr().err


@pytest.mark.skipif(not own_files("tinystories"), reason="needs NEOX_DATA")
def test_real_stories():
    corpus = load_corpus("tinystories")
    assert corpus.count("train").documents > 4000 and corpus.count("valid").documents > 900
    for path in own_files("tinystories"):
        told = list(separated([path.read_text(encoding="utf-8")], MARK))
        if told[1:]:
            precision, recall = restored_ends(told)
            assert precision > 0.98 and recall > 0.8, path


# unigram pieces


def test_a_run_learns_unigram_pieces(own, capsys):
    words = [*TINY, "unigram_vocab_size=300", "sample_prompt=Once", "--checkpoint_dir"]
    said = succeeds(train, ["tinystories_1m", *words, "one"], capsys)
    assert "unigram_vocab_size: 300 tokens are learned" in said.err
    first = load_tokenizer("one/best")
    assert first.vocab_size == 300 and first.kind == "unigram"
    pairs = [*words[:-2], "unigram_vocab_size=", "bpe_vocab_size=300", "--checkpoint_dir", "two"]
    assert "bpe_vocab_size: 300" in succeeds(train, ["tinystories_1m", *pairs], capsys).err
    assert load_tokenizer("two/best").kind == "byte-level BPE"
    said = succeeds(train, ["tinystories_1m", *words, "three"], capsys)
    assert "are learned" not in said.err
    assert load_tokenizer("three/best").fingerprint == first.fingerprint


def test_bad_sizes(own, capsys):
    refuses(train, ["tinystories_1m", "unigram_vocab_size=0"], capsys, "unigram_vocab_size")
    both = ["tinystories_1m", "bpe_vocab_size=300"]
    refuses(train, both, capsys, "both given; keep one")
    for size, fix in ((9000, "or less"), (5, "at least")):
        word = f"unigram_vocab_size={size}"
        refuses(train, ["tinystories_1m", word], capsys, word, fix, steps=True)


# recipes


@pytest.mark.parametrize("name,millions", [("1m", 1.04), ("3m", 3.14), ("15m", 14.96)])
def test_recipes(name, millions):
    recipe = load_config(f"tinystories_{name}")
    config = recipe.model_config(recipe.train.unigram_vocab_size)
    assert sum(count_parameters(config).values()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert (config.norm, config.activation, config.pos_emb) == ("rmsnorm", "swiglu", "rotary")
    assert recipe.train.texts == "tinystories" and family_for(config).model_type == "llama"


@pytest.mark.parametrize("name", ["1m", "3m", "15m"])
def test_dry_runs(own, capsys, name):
    words = ["unigram_vocab_size=300", "seq_length=32", "train_micro_batch_size_per_gpu=1"]
    words += ["gradient_accumulation_steps=1", "max_position_embeddings=32"]
    said = succeeds(train, [f"tinystories_{name}", "--dry_run", *words], capsys)
    assert "tokens to train on" in said.out + said.err and not Path("runs").exists()


def test_a_tokenizer_that_is_given_comes_first(own):
    recipe = load_config("tinystories_1m", vocab_file="tokenizer/characters/tokenizer.json")
    assert recipe.train.vocab_file and recipe.train.unigram_vocab_size
    with pytest.raises(NeoxError, match="unigram_vocab_size"):
        load_config("tinystories_1m", unigram_vocab_size=-1)
