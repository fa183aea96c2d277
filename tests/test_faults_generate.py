"""Writing with a model: whatever is given as prompt, stop or setting, wherever the text goes, and
which model it is"""

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import before_speed, refuses, succeeds, tree

from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.checkpoints import find_checkpoint, open_checkpoint, tell_model
from shakespeare_neox.engine.decode import generate_ids
from shakespeare_neox.engine.serve import (
    Continuation,
    decode_stream,
    encode_prompts,
    generate,
    generate_many,
    neox_generate_main,
    read_prompts,
    stream,
)
from shakespeare_neox.engine.tokens import adopt
from shakespeare_neox.engine.vocab import CheckedTokenizer, train_tokenizer
from shakespeare_neox.model import GPT, Cache, ModelConfig

pytestmark = pytest.mark.usefixtures("here")
COMMAND = "from shakespeare_neox.engine.serve import neox_generate_main as main; main()"
TEXT = (
    "MARIAN:\nThe ink is dry, good master. Na\u00efve caf\u00e9, \u2603 and \U0001f3ad; the "
    "printer \u2014 \u4f60\u597d.\n" * 3
)


@pytest.fixture(scope="module")
def small():
    "A random model that writes any character of its table"
    tokenizer = train_tokenizer(TEXT)
    model = GPT(
        ModelConfig(
            num_layers=1,
            hidden_size=16,
            num_attention_heads=2,
            pos_emb="rotary",
            seq_length=32,
            vocab_size=tokenizer.vocab_size,
        )
    ).eval()
    generator = torch.Generator().manual_seed(4)
    for p in model.parameters():
        p.data.normal_(std=0.5, generator=generator)
    return model, tokenizer


@pytest.fixture
def folder(small):
    small[0].save_pretrained("m", small[1])
    return Path("m")


def launch(*words, env=None, **kwargs):
    "Runs neox_generate in a process of its own"
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, words)],
        capture_output=True,
        timeout=120,
        env={**os.environ, **(env or {})},
        **kwargs,
    )


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 400, text
    return text


# 23: a str is one text


@pytest.mark.parametrize(
    "write",
    [
        lambda m, t, stop: generate(m, t, "The", stop=stop, max_new_tokens=60, seed=6),
        lambda m, t, stop: generate(m, t, ["The"], stop=stop, max_new_tokens=60, seed=6)[0],
        lambda m, t, stop: "".join(stream(m, t, "The", stop=stop, max_new_tokens=60, seed=6)),
        lambda m, t, stop: next(generate_many(m, t, ["The"], stop=stop, max_new_tokens=60, seed=6)),
    ],
    ids=["one", "several", "stream", "many"],
)
def test_stop_as_a_str(write, small):
    whole = write(*small, ())
    assert len(whole) > 30
    word = whole[20:23]
    assert (
        write(*small, word)
        == write(*small, [word])
        == write(*small, (word,))
        == whole[: whole.index(word)]
        != whole[: min(whole.index(c) for c in word)]
    )


def test_prompts_as_a_str(small):
    settings = dict(max_new_tokens=8, seed=2)
    alone = generate(*small, "The", **settings)
    assert (
        list(generate_many(*small, "The", **settings))
        == list(generate_many(*small, ["The"], **settings))
        == [alone]
    )
    assert encode_prompts(*small, "The") == [small[1].encode("The")]
    assert (
        generate(*small, (p for p in ["The"]), **settings) == [alone]
        and generate(*small, [], **settings) == []
    )


@pytest.mark.parametrize("stop", ["", [""], ["a", ""]], ids=repr)
def test_empty_stops_are_refused(stop, small, folder, capsys):
    for prompts in ("a", ["a"]):
        with pytest.raises(NeoxError, match="stop") as error:
            generate(*small, prompts, stop=stop, max_new_tokens=2)
        one_line(error)
    refuses(neox_generate_main, ["m", "--prompt", "a", "--stop", ""], capsys, "stop")


@pytest.mark.parametrize("stop", [5, None, [5], [None], [b"a"], {"a": 1, 2: 3}], ids=repr)
def test_stops_that_are_no_text(stop, small):
    with pytest.raises(NeoxError, match="stop"):
        generate(*small, "a", stop=stop, max_new_tokens=2)


@pytest.mark.parametrize("prompts", [5, None, [5], ["a", None], [b"a"]], ids=repr)
def test_prompts_that_are_no_text(prompts, small):
    with pytest.raises(NeoxError, match="prompt"):
        generate(*small, prompts, max_new_tokens=2)


# 24: text in pieces, each id decoded a bounded number of times


def sentencepiece_like(text):
    """Pieces that begin with \u2581, bytes for what is missing: a decoder that looks at its
    neighbours"""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    words = sorted(
        {"\u2581" + w for line in text.split("\n") for w in line.split(" ") if w.isascii()}
        | {"\u2581"}
        | set("abcdefghijklmnopqrstuvwxyz\n")
    )
    vocab = [
        ("<unk>", 0.0),
        *[(f"<0x{b:02X}>", -20.0) for b in range(256)],
        *[(w, -len(w) / 9 - 1) for w in words if w],
    ]
    backend = Backend(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return backend


class Plain:
    "What `decode_stream` needs of a tokenizer"

    eot_id = pad_id = None

    def __init__(self, backend):
        self.backend = backend

    def decode(self, ids):
        return self.backend.decode(list(ids), skip_special_tokens=False)


TOKENIZERS = {
    "characters": lambda: train_tokenizer(TEXT),
    "bytes": lambda: train_tokenizer(TEXT, "bpe", 258),
    "bpe": lambda: train_tokenizer(TEXT, "bpe", 300),
    "unigram": lambda: train_tokenizer(TEXT, "unigram", 262),
    "sentencepiece": lambda: Plain(sentencepiece_like(TEXT)),
}


def all_at_once(tokenizer, ids, stop):
    "The right answer: everything decoded, then cut at the stop string that is complete first"
    text = tokenizer.decode(ids)
    ends = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
    return text[: min(ends)[1]] if ends else text


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_are_the_text(kind):
    "Of real text and of random ids (half characters, stray bytes), with and without stop strings"
    tokenizer, rng = TOKENIZERS[kind](), random.Random(0)
    backend = tokenizer.backend
    real = backend.encode(TEXT, add_special_tokens=False).ids
    n = backend.get_vocab_size()
    rows = [
        real,
        *[[rng.randrange(2, n) for _ in range(rng.randrange(0, 60))] for _ in range(60)],
        *[real[k : k + 40] for k in range(0, 60, 7)],
    ]
    for ids in rows:
        for stop in ((), ("\n",), ("master", "ink"), (" dry,", "e"), ("\u2603",)):
            got = list(decode_stream(tokenizer, iter(ids), stop))
            assert "".join(got) == all_at_once(tokenizer, ids, stop) and "" not in got, (ids, stop)
    assert (
        len(list(decode_stream(tokenizer, iter(real)))) > len(real) / 5
    )  # it comes in pieces, not at the end


@pytest.mark.parametrize("ids", ["text", "a stray byte", "half characters"])
def test_decoding_grows_with_the_text(ids, monkeypatch):
    "Ids that are decoded in all: for four times the text about four times as many, not sixteen"
    tokenizer = train_tokenizer(TEXT, "bpe", 258)
    byte = tokenizer.encode("\u2603")[1]
    one = dict(
        text=tokenizer.encode(TEXT),
        **{"a stray byte": [byte], "half characters": tokenizer.encode("\u2603")[:2]},
    )[ids]

    def decoded(n):
        counted = []
        decode = CheckedTokenizer.decode
        with monkeypatch.context() as patch:
            patch.setattr(
                CheckedTokenizer,
                "decode",
                lambda self, ids: counted.append(len(ids)) or decode(self, ids),
            )
            text = "".join(decode_stream(tokenizer, (one * n)[:n]))
        assert text == tokenizer.decode((one * n)[:n])
        return sum(counted)

    assert decoded(4000) < 6 * decoded(1000) < 6 * 1000 * 12


def test_text_comes_while_it_is_drawn():
    "Each character as soon as it is whole"
    tokenizer = train_tokenizer(TEXT, "bpe", 258)
    given = decode_stream(tokenizer, iter(tokenizer.encode("a\u2603b")))
    assert list(given) == ["a", "\u2603", "b"]


# the first space of a continuation: some decoders give it only behind another word

WORDS = ["the", "king", "of", "men", "a", "ink"]


def words_backend(kind):
    "A tokenizer of a few words whose decoder looks at what stands before"
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    special = {"<|endoftext|>": 0, "[UNK]": 1}
    if kind in ("word pieces", "words"):
        vocab = special | {word: n for n, word in enumerate([*WORDS, "##s", "##ly", ".", ","], 2)}
        if kind == "words":
            backend = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
            backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        else:
            backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))
            backend.pre_tokenizer, backend.decoder = (
                pre_tokenizers.BertPreTokenizer(),
                decoders.WordPiece(),
            )
    else:
        signs = (
            ["\u2581" + word for word in WORDS]
            + sorted(set("".join(WORDS)) | {"\u2581", "s", "\n", "."})
            + [f"<0x{b:02X}>" for b in "\u2603".encode()]
        )
        scores = [
            ("<|endoftext|>", -30.0),
            ("[UNK]", -30.0),
            *[(sign, -len(sign) / 9 - 1) for sign in signs],
        ]
        backend = Backend(models.Unigram(scores, unk_id=1, byte_fallback=True))
        if kind == "llama":
            backend.normalizer = normalizers.Sequence(
                [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
            )
            backend.decoder = decoders.Sequence(
                [
                    decoders.Replace("\u2581", " "),
                    decoders.ByteFallback(),
                    decoders.Fuse(),
                    decoders.Strip(" ", 1, 0),
                ]
            )
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
            backend.decoder = decoders.Sequence(
                [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=kind)]
            )
    backend.add_special_tokens(["<|endoftext|>"])
    return adopt(backend, lossy=kind in ("word pieces", "words"))


def writes_words(tokenizer):
    "A random model that writes the first ids of a tokenizer"
    model = GPT(
        ModelConfig(
            num_layers=1,
            hidden_size=16,
            num_attention_heads=2,
            pos_emb="rotary",
            seq_length=64,
            vocab_size=tokenizer.vocab_size,
            no_weight_tying=True,
        )
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data.normal_(std=0.5, generator=generator)
    return model


@pytest.mark.parametrize("kind", ["llama", "first", "always", "word pieces", "words"])
def test_prompt_and_text_are_what_all_ids_give(kind):
    "One prompt, several, piece by piece, with and without stop strings"
    tokenizer = words_backend(kind)
    model, prompts, spaces = writes_words(tokenizer), ["the king of", "a", "men of ink", "the"], 0
    for seed in range(12):
        settings = dict(max_new_tokens=6, seed=seed)
        for prompt in prompts:
            ids = tokenizer.encode(prompt)
            drawn = [new for (new,) in generate_ids(model, tokenizer, [ids], **settings)]
            drawn = drawn[: drawn.index(tokenizer.eot_id)] if tokenizer.eot_id in drawn else drawn
            right = tokenizer.decode(ids + drawn)
            assert tokenizer.decode(ids) == prompt and right.startswith(prompt)
            text = right[len(prompt) :]
            spaces += text.startswith(" ")
            assert (
                generate(model, tokenizer, prompt, **settings)
                == generate(model, tokenizer, [prompt], **settings)[0]
                == "".join(stream(model, tokenizer, prompt, **settings))
                == text
            )
            assert "".join(decode_stream(tokenizer, drawn, before=ids)) == text
            for stop in (" ", text[1:4]) if len(text) > 3 and "\ufffd" not in text else ():
                cut = text.split(stop)[0]
                assert (
                    generate(model, tokenizer, prompt, stop=stop, **settings)
                    == generate(model, tokenizer, [prompt], stop=stop, **settings)[0]
                    == cut
                )
    assert spaces


def test_the_command_keeps_the_first_space(capsys):
    tokenizer = words_backend("llama")
    model = writes_words(tokenizer)
    model.head.weight.data.zero_()
    model.head.weight.data[tokenizer.encode("men")[0]] = 1
    model.final_norm.weight.data.zero_()
    model.final_norm.bias.data.fill_(1)
    model.save_pretrained("m", tokenizer)
    words = ["m", "--max_new_tokens", "2", "--temperature", "0", "--prompt", "the king of"]
    assert succeeds(neox_generate_main, words, capsys).out == "the king of men men\n"
    assert (
        succeeds(neox_generate_main, [*words, "--prompt", "a"], capsys).out
        == "the king of men men\n\na men men\n"
    )
    assert json.loads(succeeds(neox_generate_main, [*words, "--jsonl"], capsys).out) == dict(
        prompt="the king of", text=" men men"
    )


# settings


@pytest.mark.parametrize(
    "name,value",
    [
        *[("temperature", v) for v in (-1, math.nan, math.inf, 1e-9, "hot", None, True, [1])],
        *[("top_p", v) for v in (-0.1, 1.1, math.nan, math.inf, "x", True)],
        *[("min_p", v) for v in (-0.1, 2, math.nan, None)],
        *[("repetition_penalty", v) for v in (0, -1, math.nan, math.inf, "x")],
        *[("top_k", v) for v in (-1, 1.5, 2**70, True, "3", math.nan)],
        *[
            ("max_new_tokens", v)
            for v in (-1, 2**31, 2**70, 10**30, 1.5, math.nan, math.inf, "9", True, None)
        ],
        *[("seed", v) for v in (-1, 2**63, 2**64, 10**30, 0.5, math.nan, "7", True)],
        *[("batch_size", v) for v in (0, -1, 2**70, 1.5, None)],
    ],
    ids=str,
)
def test_settings_out_of_range(name, value, small):
    for write in (
        lambda *a, **k: list(generate_many(*a, **k)),
        *[generate] * (name != "batch_size"),
    ):
        for prompts in ("a", ["a"]):
            with pytest.raises(NeoxError, match=name) as error:
                write(*small, prompts, **{"max_new_tokens": 2, name: value})
            one_line(error)


@pytest.mark.parametrize(
    "name,near",
    [
        ("n_new", "known: "),
        ("max_tokens", "max_new_tokens"),
        ("temprature", "temperature"),
        ("topk", "top_k"),
        ("do_sample", ""),
    ],
)
def test_settings_that_do_not_exist(name, near, small):
    for prompts in ("a", ["a"]):
        with pytest.raises(NeoxError, match=f"^{name}: no such setting") as error:
            generate(*small, prompts, **{name: 20})
        assert near in one_line(error)


@pytest.mark.parametrize(
    "flag,value",
    [
        ("max_new_tokens", 10**30),
        ("max_new_tokens", -(2**70)),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 10**40),
        ("temperature", "inf"),
        ("temperature", "nan"),
        ("temperature", "-inf"),
        ("top_p", "inf"),
        ("min_p", "-inf"),
        ("repetition_penalty", "inf"),
        ("top_k", 2**70),
        ("batch_size", 10**30),
        ("seed", "0x10"),
        ("top_k", "1e3"),
    ],
)
def test_flags_out_of_range(flag, value, folder, capsys):
    refuses(neox_generate_main, ["m", "--prompt", "a", f"--{flag}={value}"], capsys, flag)


@pytest.mark.parametrize(
    "settings",
    [
        dict(seed=2**62),
        dict(max_new_tokens=2),
        dict(temperature=1000),
        dict(top_k=2**31 - 1),
        dict(top_p=0),
        dict(min_p=1),
        dict(repetition_penalty=9.5),
    ],
    ids=str,
)
def test_settings_at_their_ends(settings, small):
    assert len(generate(*small, "a", **{"max_new_tokens": 3, **settings})) == settings.get(
        "max_new_tokens", 3
    )


def test_numpys_numbers_are_numbers(small):
    numpy = pytest.importorskip("numpy")
    assert generate(
        *small,
        "a",
        max_new_tokens=numpy.int64(3),
        seed=numpy.int64(5),
        temperature=numpy.float32(0.5),
    ) == generate(*small, "a", max_new_tokens=3, seed=5, temperature=0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_numbers(value, temperature, small):
    model = GPT(small[0].config).eval()
    model.load_state_dict(small[0].state_dict())
    model.final_norm.bias.data[0] = value
    for prompts in ("a", ["a", "M"]):
        with pytest.raises(NeoxError, match="NaN"):
            generate(model, small[1], prompts, max_new_tokens=2, temperature=temperature)


def test_cache_without_room():
    "A window and a batch that no memory holds: one line, not a crash of the allocator"
    tokenizer = train_tokenizer("abc\n")
    model = GPT(
        ModelConfig(
            num_layers=1,
            hidden_size=8,
            num_attention_heads=1,
            pos_emb="rotary",
            seq_length=2,
            vocab_size=6,
            rotary_pct=0.25,
            max_position_embeddings=2**20,
        )
    ).eval()
    model.config.num_layers = 2**40  # as if it were as deep
    with pytest.raises(NeoxError, match="no memory.*batch_size") as error:
        next(generate_many(model, tokenizer, ["a"], max_new_tokens=2**30))
    one_line(error)


# files of prompts


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_prompt_file_that_is_a_fifo(folder, capsys):
    os.mkfifo("p.txt")
    start = time.process_time()
    refuses(
        neox_generate_main, ["m", "--prompt_file", "p.txt"], capsys, "p.txt", "not a regular file"
    )
    assert time.process_time() - start < 2  # a wait for ever ends at the test's limit


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs devices")
@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/null", "/dev/tty", "/proc/self/environ", "link"]
)
def test_prompt_file_that_is_a_device(path, folder, capsys):
    if path == "link":
        os.symlink("/dev/zero", "link")
    refuses(neox_generate_main, ["m", "--prompt_file", path], capsys, path, "not a regular file")


def test_prompt_file_that_is_huge(folder, capsys):
    with open("p.txt", "wb") as f:
        f.truncate(2**40)
    start = time.process_time()
    refuses(neox_generate_main, ["m", "--prompt_file", "p.txt"], capsys, "p.txt", "MB")
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "content,parts",
    [
        ("\ufeffa\n".encode("utf-16"), ["utf-16"]),
        ("caf\u00e9 \u2014 \u201cso\u201d\n".encode("cp1252"), ["cp1252"]),
        (b"a\x00\xff\n", ["line 1"]),
        (b"a\n\xff\n", ["line 2"]),
    ],
    ids=str,
)
def test_prompt_file_in_another_encoding(content, parts, capsys):
    Path("p.txt").write_bytes(content)
    with pytest.raises(NeoxError, match="not UTF-8") as error:
        read_prompts("p.txt")
    assert all(part in one_line(error) for part in parts)


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"prompt": ' + "[" * 50_000 + "]" * 50_000 + "}",
        "7",
        "null",
        '{"prompt": ["a"]}',
        '{"prompt": {"a": 1}}',
        '{"prompt": NaN}',
    ],
    ids=lambda v: v[:20],
)
def test_jsonl_that_is_none(line):
    Path("p.jsonl").write_text(line + "\n")
    with pytest.raises(NeoxError, match="p.jsonl, line 1") as error:
        read_prompts("p.jsonl")
    one_line(error)


def test_a_name_with_a_null_byte():
    with pytest.raises(NeoxError):
        read_prompts("a\0b")


# 22: what the console cannot write

NARROW = dict(PYTHONUTF8="0", LC_ALL="C.UTF-8")


@pytest.mark.parametrize("encoding,shown", [("cp1252", "? \u00e9"), ("ascii:strict", "? ?")])
def test_narrow_consoles(encoding, shown, folder):
    done = launch(
        "m",
        "--prompt",
        "\u2603 \u00e9",
        "--max_new_tokens",
        "0",
        env=NARROW | dict(PYTHONIOENCODING=encoding),
    )
    assert (
        done.returncode,
        done.stdout.decode(encoding.split(":")[0]).rstrip("\r\n"),
        done.stderr.splitlines(),
    ) == (0, shown, [b"m writes"])


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_jsonl_loses_nothing_on_narrow_consoles(encoding, folder, capsys):
    words = ["m", "--prompt", "\u2603 \u00e9 \U0001f3ad", "--max_new_tokens", "5", "--jsonl"]
    right = json.loads(succeeds(neox_generate_main, words, capsys).out)
    done = launch(*words, env=NARROW | dict(PYTHONIOENCODING=encoding))
    assert (
        done.returncode == 0
        and json.loads(done.stdout.decode(encoding)) == right
        and right["prompt"] == "\u2603 \u00e9 \U0001f3ad"
    )


def test_errors_on_narrow_consoles(folder):
    done = launch("m", "--prompt", "\u4e16\u754c", env=NARROW | dict(PYTHONIOENCODING="ascii"))
    assert (
        done.returncode == 2
        and done.stderr.count(b"\n") == 2
        and done.stderr.startswith(b"m writes")
        and b"U+" in done.stderr
        and b"Traceback" not in done.stderr
    )


# 27: which model writes, and a reader that goes away


def log(run, *evaluations):
    "A run's log with these evaluations: (step, loss) each"
    lines = [
        dict(event="start", step=0),
        *[dict(event="evaluation", step=step, loss=loss) for step, loss in evaluations],
        dict(event="log", step=9, loss=0.1),
    ]
    Path(run).mkdir(parents=True, exist_ok=True)
    Path(run, "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def run_of(name, small, when, *evaluations):
    "A run's folder, saved at a time"
    log(f"runs/{name}", *evaluations)
    small[0].save_pretrained(f"runs/{name}/best", small[1])
    os.utime(f"runs/{name}/best/config.json", (when, when))


def test_the_model_that_writes_is_named(small, capsys):
    run_of("good", small, 100, (500, 2.0), (1000, 1.5), (1500, 1.6))
    out, err = succeeds(neox_generate_main, ["--prompt", "a", "--max_new_tokens", "3"], capsys)
    assert (
        before_speed(err)
        == f"{Path('runs/good/best')} writes (step 1,000, validation loss 1.5000), the newest run\n"
        and out.startswith("a")
    )
    run_of("trial", small, 200, (150, 3.0))
    err = succeeds(neox_generate_main, ["--prompt", "a", "--max_new_tokens", "3"], capsys).err
    assert before_speed(err).count("\n") == 1 and all(
        part in err
        for part in (
            str(Path("runs/trial/best")),
            "step 150",
            "3.0000",
            "1 more",
            str(Path("runs/good")),
        )
    )
    words = ["runs/good", "--prompt", "a", "--max_new_tokens", "3"]
    assert before_speed(succeeds(neox_generate_main, words, capsys).err) == (
        f"{Path('runs/good/best')} writes (step 1,000, validation loss 1.5000)\n"
    )
    assert succeeds(neox_generate_main, [*words, "--quiet"], capsys).err == ""
    words[0] = "runs/good/best"
    assert "step 1,000" in succeeds(neox_generate_main, words, capsys).err


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]\n7\nnull\n",
        '{"event": "evaluation"}\n',
        '{"event": "evaluation", "step": 1, "loss": NaN}\n',
        '{"event": "evaluation", "step": "x", "loss": 1}\n',
        "\udcff",
    ],
    ids=repr,
)
def test_a_damaged_log_does_not_keep_it_from_writing(content, small, capsys):
    run_of("one", small, 100)
    if content is None:
        Path("runs/one/log.jsonl").unlink()
    else:
        Path("runs/one/log.jsonl").write_text(content, errors="surrogateescape")
    err = succeeds(neox_generate_main, ["--prompt", "a", "--max_new_tokens", "3"], capsys).err
    assert before_speed(err) == f"{Path('runs/one/best')} writes, the newest run\n"


def test_runs_of_a_sweep_are_seen(small, capsys):
    "The point with the lowest loss stands for the sweep, whichever was trained last"
    run_of("older", small, 100, (10, 1.0))
    run_of("play-tune/lr_1", small, 200, (10, 1.8))
    run_of("play-tune/lr_2", small, 300, (10, 1.4))
    run_of("play-tune/lr_3", small, 400, (10, 2.5))
    assert find_checkpoint() == Path("runs/play-tune/lr_2/best")
    err = capsys.readouterr().err
    assert "1.4000" in err and str(Path("runs/older")) in err
    assert (
        find_checkpoint("runs/play-tune") == Path("runs/play-tune/lr_2/best")
        and "lr_2" in capsys.readouterr().err
    )
    for name in ("runs/play-tune", "runs/play-tune/lr_3"):  # said once, whichever is named
        tell_model(name, find_checkpoint(name))
        assert capsys.readouterr().err.count("writes") == 1
    run_of("newer", small, 500, (10, 3.0))
    assert find_checkpoint() == Path("runs/newer/best")
    assert str(Path("runs/play-tune/lr_2")) in capsys.readouterr().err


def test_what_is_no_run(small, capsys):
    "Temporary and hidden folders, files, empty runs"
    run_of("one", small, 100)
    shutil.copytree("runs/one", "runs/.two")
    shutil.copytree("runs/one/best", "runs/one/epochs/epoch_1")
    Path("runs/notes.txt").write_text("mine")
    Path("runs/empty").mkdir()
    assert find_checkpoint() == Path("runs/one/best") and "more" not in capsys.readouterr().err


def test_a_run_that_is_saving_is_found(small, capsys):
    run_of("one", small, 100)
    run_of("two", small, 200)
    os.rename("runs/two/best", "runs/two/.best.neox-previous")
    before = tree("runs")
    assert (
        find_checkpoint() == Path("runs/two/best")
        and open_checkpoint()[1].fingerprint == small[1].fingerprint
    )
    assert tree("runs") == before


def test_without_any_run(capsys):
    out, err = succeeds(neox_generate_main, ["--prompt", "ROMEO:", "--max_new_tokens", "3"], capsys)
    assert out.startswith("ROMEO:") and before_speed(err).count("\n") == 1
    assert "the bundled model" in err


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize(
    "more",
    [
        ["--max_new_tokens", "400"],
        ["--max_new_tokens", "40", "--jsonl", *["--prompt", "a"] * 40],
        ["--max_new_tokens", "20", *["--prompt", "a\\nM"] * 40],
    ],
    ids=["one", "jsonl", "many"],
)
def test_a_reader_that_goes_away(more, folder):
    prompts = [] if "--prompt" in more else ["--prompt", "MARIAN:\\n"]
    writer = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "m", *prompts, *more, "--batch_size", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert writer.stdout.readline()
    writer.stdout.close()
    err = writer.stderr.read().decode()
    assert (
        writer.wait(60) in (0, 141)
        and [line for line in err.splitlines()[1:] if "prompts  " not in line] == []
        and err.startswith("m writes")
    ), err


def test_memory_stays_flat_while_it_writes(small):
    "Keys and values of all ids would take 16 MB here; one window of them takes 0.2"
    tokenizer = small[1]
    config = ModelConfig(2, 128, 2, 32, tokenizer.vocab_size, pos_emb="rotary")
    steps = generate_ids(GPT(config).eval(), tokenizer, [[5, 6], [7]], max_new_tokens=5000)
    process, sizes = psutil.Process(), {}
    for n, _ in enumerate(steps, 1):
        if n in (1000, 5000):
            sizes[n] = process.memory_info().rss
    assert 4000 * 2 * 2 * 2 * config.hidden_size * 4 > 16e6 and sizes[5000] - sizes[1000] < 4e6


def test_collected_texts_are_the_streamed_ones():
    "Decoded once at the end, id by id, or with a stop string that never comes"
    for kind in TOKENIZERS:
        tokenizer, rng = TOKENIZERS[kind](), random.Random(1)
        n = tokenizer.backend.get_vocab_size()
        for length in range(1, 30):
            ids = [rng.randrange(2, n) for _ in range(length)]
            before = tokenizer.backend.encode(TEXT[: 3 * length % 7]).ids
            texts = [
                Continuation(tokenizer, before, stop, most=length)
                for stop in ((), ["that never comes"], ())
            ]
            for new in ids:
                for text in texts[:2]:
                    text.collect(new)
                texts[2].add(new)
            assert len({text.text for text in texts}) == 1, (kind, before, ids)
            assert all(text.ended and text.n_ids == length for text in texts)


@pytest.mark.parametrize("static", [False, True])
def test_a_position_beyond_the_cache(static, small):
    "It is an error, and no other row's keys are overwritten"
    cache = Cache(small[0].config, 2, 8)
    cache.static = static
    with torch.no_grad(), pytest.raises(NeoxError, match="the cache's length 8"):
        small[0](torch.tensor([[5], [6]]), torch.tensor([[8], [2]]), cache=cache)
    assert not cache.keys.any()
