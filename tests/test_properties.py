"""What holds for every input: tokenizers, windows, splits, token files, stop strings, schedules,
settings (hypothesis)."""

import copy
import gzip
import json
import math
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shakespeare_neox.data import eval_batches, get_batch, windows
from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.corpora import Counts, load_corpus
from shakespeare_neox.engine.documents import separated
from shakespeare_neox.engine.recipe import TrainConfig, merge, parse_override, read_yaml
from shakespeare_neox.engine.serve import by_length, held_back, stream
from shakespeare_neox.engine.text import text_pieces
from shakespeare_neox.engine.tokens import (
    TokenFile,
    TokenWriter,
    by_document,
    divide,
    id_type,
    load_tokenizer,
    read_split,
    write_header,
)
from shakespeare_neox.engine.vocab import train_tokenizer

settings.register_profile("neox", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("neox")
TEXT = (
    "MARIAN:\nWhat light is that upon the causeway, sir?\nThe tide comes in; the tide goes out "
    "again. Naïve? ☃\n"
)
CHAR, BPE, UNIGRAM = (
    train_tokenizer(TEXT),
    train_tokenizer(TEXT, "bpe", 300),
    train_tokenizer(load_corpus("sample").text, "unigram", 600),
)
LEARNED = pytest.mark.parametrize("tokenizer", [BPE, UNIGRAM], ids=["bpe", "unigram"])
ODD = st.sampled_from(
    [
        "<|endoftext|>",
        "<|padding|>",
        " ",
        "  lead",
        "\u2581",
        "Ġ",
        "\r\n",
        "\0",
        "\ufeff",
        "é",
        "e\u0301",
        "𝒳",
        "\u200b",
        "\u2581lead",
        " \u2581",
        "a\u0300\u0323\u0301",
        "👩\u200d👩\u200d👧",
        "🏳\ufe0f\u200d🌈",
        "<|endoftext|" * 2,
        "|>",
        " <|padding|> ",
        "\x85",
        "\u2028",
        "x" * 70,
    ]
)
ANY = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | ODD, max_size=8).map(
    "".join
)  # any text without lone surrogates


# tokenizers


@LEARNED
@settings(max_examples=200)
@given(ANY)
def test_learned_lossless(tokenizer, text):
    "Leading spaces, U+2581, spelled-out special tokens, emojis and combining marks included"
    ids = tokenizer.encode(text)
    assert (
        tokenizer.decode(ids) == text
        and not {tokenizer.eot_id, tokenizer.pad_id} & set(ids)
        and len(ids) <= len(text.encode())
    )


@LEARNED
def test_every_byte_is_a_token(tokenizer):
    "So no text can meet an unknown token; and no token but the two special ones decodes to nothing"
    from tokenizers import pre_tokenizers

    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.backend.get_vocab())
    assert (
        [i for i in range(tokenizer.vocab_size) if not tokenizer.decode([i])]
        == [0, 1]
        == [tokenizer.eot_id, tokenizer.pad_id]
    )


@settings(max_examples=30)
@given(
    ANY.filter(bool)
    | st.lists(ANY | st.sampled_from(["ink well ", "inks\n", "well"]), min_size=2, max_size=6).map(
        lambda parts: ("".join(parts) + "ink") * 3
    )
)
def test_unigram_of_any_text(text):
    """Learned from any text, lossless on that text and on another; the most that a text supports is
    what the error says"""
    with pytest.raises(NeoxError, match="larger than this text supports") as error:
        train_tokenizer(text, "unigram", 5000)
    if "too short to learn" in str(error.value):
        return
    most = int(str(error.value).split("give ")[1].split()[0])
    made = train_tokenizer(text, "unigram", most)
    for other in (text, TEXT):
        assert made.decode(made.encode(other)) == other


@settings(max_examples=20)
@given(ANY.filter(lambda text: text.strip()), st.integers(1, 5))
def test_training_on_pieces(text, n):
    "A text and its pieces make the same tokenizer, where pieces end at line ends"
    lines = (text + TEXT).splitlines(keepends=True)
    for kind, size in (("char", None), ("bpe", 270), ("unigram", 260)):
        pieces = ("".join(lines[i : i + n]) for i in range(0, len(lines), n))
        assert (
            train_tokenizer(pieces, kind, size).fingerprint
            == train_tokenizer(text + TEXT, kind, size).fingerprint
        )


@given(st.text(st.sampled_from(sorted(set(TEXT)))))
def test_char_lossless(text):
    ids = CHAR.encode(text)
    assert CHAR.decode(ids) == text and len(ids) == len(text)


@given(ANY.filter(bool))
def test_char_table_of_any_text(text):
    "Whatever the alphabet is, special tokens spelled out in it too"
    made = train_tokenizer(text)
    ids = made.encode(text)
    assert (
        made.decode(ids) == text and len(ids) == len(text) and made.vocab_size == len(set(text)) + 2
    )


@given(ANY, st.integers(0, 10))
def test_char_names_what_it_lacks(text, n):
    foreign = [c for c in text if c not in set(TEXT)]
    assume(foreign)
    where = text.index(foreign[0])
    with pytest.raises(NeoxError) as error:
        CHAR.encode(text)
    assert f"U+{ord(foreign[0]):04X}" in str(error.value) and f"character {where:,}" in str(
        error.value
    )


@LEARNED
@given(st.text(max_size=5), st.characters(categories=["Cs"]), st.text(max_size=5))
def test_lone_surrogates_are_an_error(tokenizer, before, surrogate, after):
    with pytest.raises(NeoxError, match=f"U\\+{ord(surrogate):04X}"):
        tokenizer.encode(before.replace("\ud800", "") + surrogate + after)


@LEARNED
@settings(max_examples=15)
@given(ANY)
def test_tokenizer_survives_saving(tmp_path_factory, tokenizer, text):
    folder = tmp_path_factory.mktemp("t")
    tokenizer.save(folder)
    again = load_tokenizer(folder)
    assert (
        again.encode(text) == tokenizer.encode(text)
        and again.fingerprint == tokenizer.fingerprint
        and repr(again) == repr(tokenizer)
    )


# windows, batches, splits, token files

SIZES = dict(
    n=st.integers(2, 400), T=st.integers(1, 40), B=st.integers(1, 9), seed=st.integers(0, 2**63 - 1)
)


@given(**SIZES, epoch=st.integers(0, 5))
def test_windows(n, T, B, seed, epoch):
    "The windows of an epoch do not overlap, fit, and leave less than two windows of text unread"
    assume(n > T)
    starts = windows(n, T, seed, epoch)
    assert starts.min() >= 0 and starts.max() + T < n and len(set(starts)) == len(starts)
    assert (np.diff(np.sort(starts)) == T).all() and n - len(starts) * T < 2 * T + 1


@given(**SIZES)
def test_batches(n, T, B, seed):
    "Two epochs of batches: each visits every window once; targets are inputs shifted by one"
    assume(n > T)
    k = len(windows(n, T, seed, 0))
    steps = -(-2 * k // B)

    def batch(i):
        made = get_batch(np.arange(n), seed, i, B, T)
        return made.x.numpy(), made.y.numpy()

    batches = [batch(i) for i in range(steps)]
    assert all(x.shape == y.shape == (B, T) and x.dtype == np.int64 for x, y in batches)
    assert all((y == x + 1).all() and x.min() >= 0 and y.max() < n for x, y in batches)
    seen = np.concatenate([x[:, 0] for x, _ in batches])
    for epoch in (0, 1):
        assert sorted(seen[epoch * k : (epoch + 1) * k]) == sorted(windows(n, T, seed, epoch))
    windows.cache_clear()  # pure: no memory of what was asked before
    for i in reversed(range(steps)):
        assert all((a == b).all() for a, b in zip(batch(i), batches[i]))


@given(n=st.integers(1, 40), extra=st.integers(0, 5))
def test_too_short_text(n, extra):
    with pytest.raises(NeoxError, match="too short"):
        get_batch(np.arange(n), 0, 0, 1, n + extra)


@given(**SIZES)
def test_eval_batches_cover_once(n, T, B, seed):
    pairs = [(batch.x.numpy(), batch.y.numpy()) for batch in eval_batches(np.arange(n), B, T)]
    targets = np.concatenate([y[y >= 0] for _, y in pairs])
    assert (targets == np.arange(1, n)).all() and all(x.shape == (B, T) for x, _ in pairs)
    assert all((x[y >= 0] + 1 == y[y >= 0]).all() for x, y in pairs)


@given(**SIZES, stride=st.integers(1, 40))
def test_overlapping_windows_score_each_target_once(n, T, B, seed, stride):
    "With a stride, each target counts once, and sees all of its window's tokens before it"
    assume(stride <= T)
    batches = list(eval_batches(np.arange(n), B, T, stride))
    counted = [batch.y != -100 for batch in batches]
    targets = np.concatenate([batch.y[counts].numpy() for batch, counts in zip(batches, counted)])
    assert (targets == np.arange(1, n)).all()
    context = np.concatenate([1 + np.nonzero(counts.numpy())[1] for counts in counted])
    assert (context >= np.minimum(np.arange(1, n), T - stride + 1)).all()


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_that_leaves_gaps(stride):
    with pytest.raises(NeoxError, match="stride of at most"):
        next(eval_batches(np.arange(50), 2, 8, stride))


class Stories:
    "A corpus of given documents, each in pieces of one size"

    name, parts = "stories", []

    def __init__(self, documents, size):
        self.all, self.size = documents, size

    def documents(self, part=None):
        return (
            (None, [d[i : i + self.size] for i in range(0, len(d), self.size)]) for d in self.all
        )

    @property
    def counts(self):
        return Counts(
            characters=sum(map(len, self.all)),
            bytes=len("".join(self.all).encode()),
            documents=len(self.all),
        )


@given(
    st.lists(ANY, min_size=1, max_size=4),
    st.integers(1, 9),
    st.lists(st.floats(0, 1e3), min_size=1, max_size=2),
    st.floats(1e-3, 1e3),
)
def test_split_partitions(documents, size, rest, first):
    """By position: nothing lost, nothing twice, in order, cut where the shares say, whatever the
    pieces"""
    corpus, split = Stories(documents, size), ",".join(map(str, [first, *rest]))
    stream = list(divide(corpus, split))
    text, shares = "".join(documents), read_split(split)
    assert "".join(piece for _, piece, _ in stream) == text and sum(
        ends for _, _, ends in stream
    ) == len(documents)
    order = [("train", "valid", "test").index(part) for part, _, _ in stream]
    assert order == sorted(order)
    assert len("".join(p for part, p, _ in stream if part == "train")) == int(
        len(text) * round(shares[0], 12)
    )


@given(st.lists(ANY.filter(bool), min_size=1, max_size=12), st.randoms())
def test_documents_stay_whole(documents, random):
    "By document: where one goes depends on its text alone, so copies stay together"
    where = {}
    for part, text, _ in by_document(Stories(documents, 3), [0.5, 0.3, 0.2]):
        assert where.setdefault(text, part) == part
    random.shuffle(documents)
    assert all(
        where[text] == part for part, text, _ in by_document(Stories(documents, 1), [0.5, 0.3, 0.2])
    )


@given(
    st.lists(ANY, min_size=1, max_size=5), st.integers(1, 40), st.integers(16, 200), st.booleans()
)
def test_stream_equals_the_whole(tmp_path_factory, documents, size, batch, mark):
    "Ids written piece by piece are those of each document encoded at once, its end marked"
    path = tmp_path_factory.mktemp("w") / "train.bin"
    for tokenizer in (BPE, UNIGRAM, train_tokenizer("".join(documents) + "a")):
        writer = TokenWriter(path, tokenizer, mark, batch)
        for _, pieces in Stories(documents, size).documents():
            for piece in pieces:
                writer.add(piece, False)
            writer.add("", True)
        writer.close()
        whole = [
            i
            for d in documents
            for i in [*tokenizer.encode(d), *([tokenizer.eot_id] if mark else [])]
        ]
        assert np.fromfile(path, id_type(tokenizer.vocab_size)).tolist() == whole
        assert json.loads(path.with_suffix(".json").read_text())["n_bytes"] == len(
            "".join(documents).encode()
        )


@given(
    ANY.filter(lambda t: t.lstrip("\ufeff").strip()),
    st.integers(1, 7),
    st.booleans(),
    st.booleans(),
)
def test_text_is_read_alike_in_any_pieces(tmp_path_factory, text, size, packed, mark):
    assume("\0" not in text)
    path = tmp_path_factory.mktemp("r") / ("a.txt.gz" if packed else "a.txt")
    raw = (b"\xef\xbb\xbf" if mark else b"") + text.encode()
    path.write_bytes(gzip.compress(raw) if packed else raw)
    expected = raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    assert "".join(text_pieces(path, size)) == expected


@given(
    st.lists(st.text("ab\n<|>", min_size=1).map(lambda s: s.strip("\n") or "a"), max_size=5),
    st.integers(1, 9),
)
def test_separated(documents, size):
    assume(
        not any(
            "<|>" in d or d.startswith((">", "|>")) or d.endswith(("<", "<|")) for d in documents
        )
    )
    text = "<|>".join(documents)
    assert (
        list(separated((text[i : i + size] for i in range(0, len(text), size)), "<|>")) == documents
    )


@given(st.lists(st.integers(0, 99_999), min_size=1), st.integers(1, 10**6))
def test_token_file_round_trip(tmp_path_factory, ids, n_bytes):
    path = tmp_path_factory.mktemp("f") / "train.bin"
    np.array(ids, id_type(max(ids) + 1)).tofile(path)
    write_header(path, n_bytes, max(ids) + 1, "abc")
    file = TokenFile(path, "abc")
    assert (
        file.ids.tolist() == ids
        and len(file) == len(ids)
        and (file.n_bytes, file.vocab_size) == (n_bytes, max(ids) + 1)
    )
    assert file.dtype == ("uint16" if max(ids) < 2**16 else "uint32")
    with pytest.raises(NeoxError, match="another tokenizer"):
        TokenFile(path, "xyz")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(NeoxError, match="cut off"):
        TokenFile(path)


# stop strings and streaming

MODEL = SimpleNamespace(
    config=SimpleNamespace(max_position_embeddings=999, padded_vocab_size=999), special_ids={}
)


def both(tokenizer, ids, stop):
    """The pieces of `stream` where these ids are drawn, and the right text: all decoded at once,
    then cut"""
    with patch("shakespeare_neox.engine.serve.speculate", lambda *a, **k: ([i] for i in ids)):
        pieces = list(stream(MODEL, tokenizer, "M", stop))
    text = tokenizer.decode(ids[: ids.index(tokenizer.eot_id)] if tokenizer.eot_id in ids else ids)
    ends = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
    return pieces, text[: min(ends)[1]] if ends else text


def inside(stop):
    return any(s != t and s in t for s in stop for t in stop)


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@settings(max_examples=300)
@given(st.lists(st.sampled_from("aaabbb."), min_size=1, max_size=30), STOPS)
def test_stream_of_characters(text, stop):
    assume(not inside(stop))
    tokenizer = train_tokenizer("ab.M")
    ids = [tokenizer.eot_id if c == "." else tokenizer.encode(c)[0] for c in text]
    pieces, whole = both(tokenizer, ids, stop)
    drawn = "".join(text).split(".")[0]
    assert (
        "".join(pieces)
        == whole
        == drawn[: min([len(drawn), *(drawn.index(s) for s in stop if s in drawn)])]
    )


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, BPE.vocab_size - 1), min_size=1, max_size=25)
    | ANY.filter(bool).map(BPE.encode),
    st.lists(st.sampled_from(["e", "é", "he", "\n", "☃", "  "]), max_size=2),
)
def test_stream_of_bytes(ids, stop):
    "Any ids, characters cut in the middle among them: no half character is given out early"
    assume(not inside(stop))
    pieces, whole = both(BPE, ids, stop)
    assert "".join(pieces) == whole and not any(s in whole for s in stop)


def test_nothing_drawn():
    assert both(BPE, [], []) == ([], "")


def test_stop_inside_another():
    pieces, whole = both(
        train_tokenizer("abcM"), train_tokenizer("abcM").encode("abc"), ["abc", "b"]
    )
    assert "".join(pieces) == whole


@given(st.text("ab\ufffd", max_size=12), STOPS)
def test_held_back(text, stop):
    "What is not held back can be no part of a stop string that is still to come"
    n = held_back(text, stop)
    assert len(text) - len(text.rstrip("\ufffd")) <= n <= len(text)
    for s in stop:
        for k in range(1, len(s)):
            assert not text.endswith(s[:k]) or n >= k


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 36))
def test_prompts_by_length(lengths, stretch):
    """Every prompt once, sorted within each stretch, and no prompt before those of an earlier
    stretch"""
    found = list(by_length([[0] * n for n in lengths], stretch))
    flat = [number for number, _ in found]
    assert sorted(flat) == list(range(len(lengths))) and all(
        len(ids) == lengths[number] for number, ids in found
    )
    for first in range(0, len(flat), stretch):
        part = flat[first : first + stretch]
        assert sorted(part) == list(range(first, first + len(part))) and [
            lengths[i] for i in part
        ] == sorted((lengths[i] for i in part), reverse=True)


# the schedule


def annealing_lr(step, peak, low, warmup, end, style):
    """gpt-neox's AnnealingLR.get_lr (megatron/learning_rates.py at ea7aefd), written again from its
    formula"""
    if warmup > 0 and step <= warmup:
        return peak * max(1, step) / warmup
    progress = (step - warmup) / (end - warmup)
    if style == "linear":
        rate = peak - peak * progress
    elif style == "cosine":
        rate = low + (peak - low) * math.cos(math.pi * progress / 2) ** 2
    else:
        rate = peak
    return rate if rate > low else low


def schedule(style, total, warmup, peak, low, decay=None):
    return TrainConfig(
        train_iters=total,
        train_micro_batch_size_per_gpu=1,
        lr_decay_style=style,
        warmup=warmup,
        min_lr=low,
        lr_decay_iters=decay,
        optimizer=dict(type="adam", params=dict(lr=peak)),
    )


STYLES = st.sampled_from(["constant", "linear", "cosine"])
RATES = dict(
    style=STYLES,
    total=st.integers(1, 5000),
    warmup=st.floats(0, 1),
    peak=st.floats(1e-6, 1),
    share=st.floats(0, 1),
    at=st.floats(0, 1),
)


@settings(max_examples=300)
@given(**RATES)
def test_schedule_equals_gpt_neox(style, total, warmup, peak, share, at):
    step, end = int(at * total), total
    assume((warmup == 0 or warmup * end >= 1) and warmup * end < end - 1e-3)
    ours = schedule(style, total, warmup, peak, peak * share).learning_rate(step)
    theirs = annealing_lr(step, peak, peak * share, warmup * end, end, style)
    assert math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-12 * peak)


@settings(max_examples=200)
@given(**RATES, beyond=st.integers(0, 9))
def test_schedule_bounds(style, total, warmup, peak, share, at, beyond):
    "Never above the peak; after the warmup never below min_lr, and there at the end, and after it"
    assume(warmup * total == 0 or warmup * total >= 1)
    c = schedule(style, total + beyond, warmup, peak, peak * share, decay=total)
    rates = [c.learning_rate(i) for i in sorted({0, 1, int(at * total), total, total + beyond})]
    assert 0 <= min(rates) and max(rates) <= peak * (1 + 1e-9)
    after = (
        [
            r
            for i, r in enumerate(map(lambda i: c.learning_rate(i), range(total + 1)))
            if i > warmup * total
        ]
        if total <= 500
        else []
    )
    assert all(r >= peak * share * (1 - 1e-9) for r in after) and all(
        a >= b - 1e-12 for a, b in zip(after, after[1:])
    )
    if warmup < 1 and style != "constant":
        assert math.isclose(
            c.learning_rate(total + beyond), peak * share, rel_tol=1e-6, abs_tol=1e-12
        )


def test_short_warmup_stays_below_the_peak():
    assert schedule("linear", 10, 0.01, 1e-3, 0.0).learning_rate(0) <= 1e-3


# settings

KEYS = st.text("abc_", min_size=1, max_size=3)
NESTED = st.recursive(
    st.integers() | st.none() | st.text(max_size=3),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(KEYS, NESTED, max_size=4)


def leaves(d, prefix=()):
    for k, v in d.items():
        if isinstance(v, dict) and v:
            yield from leaves(v, (*prefix, k))
        else:
            yield (*prefix, k), v


def at(d, path):
    return at(d[path[0]], path[1:]) if path else d


@given(MAPPINGS, MAPPINGS)
def test_merge(a, b):
    "The later one wins in every leaf, and what it does not name stays"
    once = copy.deepcopy(a)
    merge(once, copy.deepcopy(b))
    for path, value in leaves(b):
        if value != {}:
            assert at(once, path) == value
    named = {path[:i] for path, _ in leaves(b) for i in range(1, len(path) + 1)}
    for path, value in leaves(a):
        if (
            not any(path[:i] in dict(leaves(b)) for i in range(1, len(path) + 1))
            and path not in named
        ):
            assert at(once, path) == value
    twice = copy.deepcopy(once)
    merge(twice, copy.deepcopy(b))
    assert once == twice


@given(MAPPINGS)
def test_merge_neutral(a):
    for first, second in (({}, a), (a, {}), (a, a)):
        merged = copy.deepcopy(first)
        merge(merged, copy.deepcopy(second))
        assert merged == a


def test_merge_leaves_its_arguments():
    given, settings = dict(optimizer=dict(lr=1)), {}
    merge(settings, given)
    merge(settings, dict(optimizer=dict(lr=2)))
    assert given == dict(optimizer=dict(lr=1))


def test_merge_says_each_override_once(capsys):
    settings = dict(a=1, o=dict(lr=1, eps=3))
    merge(settings, dict(a=2, o=dict(lr=4, eps=3), new=1), dict(new=2), where="here")
    assert capsys.readouterr().err == "here overrides a 1 -> 2, o.lr 1 -> 4, new 1 -> 2\n"


@given(
    st.lists(st.text("abc-_", min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans(),
)
def test_parse_override(parts, value):
    got = parse_override(f"{'.'.join(parts)}={str(value).lower()}")
    for part in parts:
        assert list(got) == [part.replace("-", "_")]
        got = got[part.replace("-", "_")]
    assert got == value and type(got) is type(value)


WORDS = [
    ("a=", dict(a=None)),
    ("a=null", dict(a=None)),
    ("a=b=c", dict(a="b=c")),
    ("split=90,10,0", dict(split="90,10,0")),
    ("a=[1, 2e-1]", dict(a=[1, 0.2])),
    ("o.betas=[0.9,0.95]", dict(o=dict(betas=[0.9, 0.95]))),
    ("a='1'", dict(a="1")),
    ("a={b: 6e-4}", dict(a=dict(b=6e-4))),
    ("p=runs/x-y", dict(p="runs/x-y")),
    ('compile="on"', dict(compile="on")),
    ("a=-5", dict(a=-5)),
]


@pytest.mark.parametrize("word, expected", WORDS, ids=[w for w, _ in WORDS])
def test_override_words(word, expected):
    assert parse_override(word) == expected


@pytest.mark.parametrize("word", ["on", "off"])
def test_compile_on_the_command_line(word):
    assert parse_override(f"compile={word}") == dict(compile=word)


NUMBERS = {
    "6e-4": 6e-4,
    "1e3": 1e3,
    ".5": 0.5,
    "10": 10,
    "-1": -1,
    "3.0e-3": 3e-3,
    "1.e5": 1e5,
    "-.5e-2": -0.5e-2,
    "+2E+3": 2e3,
    "1_000": 1000,
    "0.25": 0.25,
    "1e0": 1.0,
    "0": 0,
}
TEXTS = ["e5", "1e", "6e-4x", "1-e4", "runs/1e3", "1.2.3", "v1", "90,10,0"]


@pytest.mark.parametrize("text", NUMBERS)
def test_yaml_numbers(text):
    got = read_yaml(f"my-key: {text}", "here")["my_key"]
    assert got == NUMBERS[text] and type(got) is type(NUMBERS[text])


@pytest.mark.parametrize("text", TEXTS)
def test_yaml_text_stays_text(text):
    assert read_yaml(f"k: {text}", "here") == dict(k=text)


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["{!r}", "{:.17e}", "{:.17E}"]),
)
def test_yaml_floats(x, form):
    assert read_yaml("v: " + form.format(x), "here")["v"] == x
