"""The tokenizers that ship: made by the command that README.md names, opened by transformers,
lossless; the same wherever they are trained."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shakespeare_neox.engine.base import NeoxError, assets
from shakespeare_neox.engine.corpora import load_corpus
from shakespeare_neox.engine.tokens import load_tokenizer, neox_tokenizer_main
from shakespeare_neox.engine.vocab import train_tokenizer

SHIPPED = assets("tokenizer")
KINDS = dict(characters="characters", bpe="byte-level BPE", unigram="unigram")
by_folder = pytest.mark.parametrize("folder", KINDS)
VERSE = (
    "ROMEO:\nBut, soft! what light through yonder window breaks?\n  It is the east\n\n\nAnd "
    "Juliet is the sun.\n"
)
ODD = " lead \u2581 <|endoftext|><|padding|> naïve e\u0301 👩\u200d👩\u200d👧 \t\r\n \0 𝒳   "


@by_folder
def test_shipped_files_are_what_the_command_makes(folder, tmp_path, monkeypatch):
    readme = SHIPPED / "README.md"
    if not readme.exists():
        pytest.skip("no clone around")
    if not (
        Path(os.environ.get("NEOX_DATA", "/nowhere")) / "tinyshakespeare" / "input.txt"
    ).exists():
        pytest.skip("needs tinyshakespeare in NEOX_DATA")
    commands = [
        shlex.split(c)
        for c in re.findall(r"`neox_tokenizer (.*?)`", readme.read_text(encoding="utf-8"))
    ]
    (words,) = [c for c in commands if c[-1] == f"tokenizer/{folder}"]
    monkeypatch.chdir(tmp_path)
    neox_tokenizer_main(words)
    made, shipped = (
        {
            p.name: json.loads(p.read_text(encoding="utf-8"))
            for p in sorted(where.iterdir())
            if p.name[0] != "."
        }
        for where in (tmp_path / "tokenizer" / folder, SHIPPED / folder)
    )
    assert made == shipped and list(shipped) == ["tokenizer.json", "tokenizer_config.json"]
    assert all(p.stat().st_size < 500_000 for p in (SHIPPED / folder).iterdir())


@by_folder
def test_shipped_tokenizers(folder):
    from transformers import AutoTokenizer

    t, auto = load_tokenizer(SHIPPED / folder), AutoTokenizer.from_pretrained(SHIPPED / folder)
    assert repr(t) == (
        f"Tokenizer({KINDS[folder]}, {67 if folder == 'characters' else 1024:,} tokens, end "
        "of text 0, padding 1)"
    )
    for text in (VERSE, load_corpus("sample").text, *([ODD] if t.kind != "characters" else [])):
        ids = t.encode(text)
        assert t.decode(ids) == text and not {0, 1} & set(ids)
        if "<|" in text:
            continue  # to transformers a spelled-out special token is the token itself
        assert auto(text)["input_ids"] == ids and auto.decode(ids) == text
    assert (auto.eos_token_id, auto.pad_token_id, len(auto), auto.unk_token) == (
        t.eot_id,
        t.pad_id,
        t.vocab_size,
        None,
    )


def test_unigram_is_the_same_in_every_process():
    "The library adds up in random order: what is left of it after `stable_pieces` must be nothing"
    code = (
        "import shakespeare_neox.engine.tokens; from shakespeare_neox.engine.vocab import "
        "train_tokenizer as t; from shakespeare_neox.engine.corpora import load_corpus as c; "
        "print(t(c('sample').text, 'unigram', 600).fingerprint, t(c('sample').text, 'unigram', "
        "2000).fingerprint)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": p},
        ).stdout
        for p in ("true", "true", "false")
    ]
    assert len(set(runs)) == 1


def test_unigram_never_takes_a_special_token():
    "Even where the text is nothing but special tokens spelled out, in one run of letters"
    made = train_tokenizer(
        "<|endoftext|><|padding|> is spelled <|endoftext|>\n" * 50 + load_corpus("sample").text,
        "unigram",
        600,
    )
    for text in (
        "<|endoftext|>",
        "<|padding|>",
        " <|endoftext|>",
        "x<|endoftext|>y<|padding|>",
        "<|endoftext|>" * 9,
    ):
        ids = made.encode(text)
        assert not {made.eot_id, made.pad_id} & set(ids) and made.decode(ids) == text


def test_two_kinds_of_one_text_differ():
    text = load_corpus("sample").text
    assert (
        len({train_tokenizer(text, kind, 300).fingerprint for kind in ("char", "bpe", "unigram")})
        == 3
    )
    with pytest.raises(NeoxError, match="nearest: unigram"):
        train_tokenizer(text, "unigramm")
