"Bad input: one line, exit 2, and nothing lost"

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import TINY, refuses, succeeds, tree

import shakespeare_neox.engine.run as run_module
import shakespeare_neox.engine.tokens as data_module
from shakespeare_neox.engine.base import NeoxError, set_aside
from shakespeare_neox.engine.recipe import TrainConfig, load_config
from shakespeare_neox.engine.run import neox_train_main as train
from shakespeare_neox.engine.serve import neox_generate_main as generate
from shakespeare_neox.engine.state import saved_steps
from shakespeare_neox.engine.tokens import neox_prepare_main as prepare
from shakespeare_neox.engine.tokens import neox_tokenizer_main as tokenizer

pytestmark = pytest.mark.usefixtures("here")
TEXT = "MARIAN:\nTo be a printer is to be in debt,\nAnd lead is heavier than any crown.\n\n" * 40
FEW = ["quickstart", *TINY, "train_iters=4", "eval_interval=2", "checkpoint_factor=2"]


def untouched(main, argv, capsys, *parts):
    "Asserts that a command refuses its input and leaves the working directory as it was"
    before = tree(".")
    line = refuses(main, argv, capsys, *parts)
    assert tree(".") == before
    return line


def put(name, content=TEXT):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# texts

BAD_TEXTS = dict(
    missing=(None, "neither a file nor a folder"),
    empty=(b"", "empty"),
    blank=(b" \n\t\r\n", "empty"),
    binary=(b"abc\0def", "binary", "zero byte at 3"),
    utf16=("To be".encode("utf-16"), "UTF-16, not UTF-8", "0xff at 0"),
    latin1=("caf\xe9 noir".encode("latin1"), "not UTF-8", "0xe9 at 3"),
    cut_off=(b"n\xc3", "not UTF-8", "0xc3 at 1"),
)


@pytest.mark.parametrize("kind", BAD_TEXTS)
@pytest.mark.parametrize("main", [prepare, tokenizer, train], ids=["prepare", "tokenizer", "train"])
def test_text(main, kind, capsys):
    content, *parts = BAD_TEXTS[kind]
    if content is not None:
        put("bad.txt", content)
    untouched(
        main,
        [*FEW, "--data_path", "bad.txt"] if main is train else ["bad.txt"],
        capsys,
        "bad.txt",
        *parts,
    )


@pytest.mark.parametrize("folder", ["", "texts/"])
def test_a_slip_in_the_name_of_a_file(folder, capsys):
    put(f"{folder}my_book.txt")
    slip = f"{folder}mybook.txt"
    untouched(train, [*FEW, "--data_path", slip], capsys, slip, f"(nearest: {folder}my_book.txt)")


@pytest.mark.parametrize("main", [prepare, tokenizer], ids=["prepare", "tokenizer"])
def test_folder_without_text(main, capsys):
    put("pictures/a.png", b"\x89PNG")
    untouched(main, ["pictures"], capsys, "pictures", "no file that can be read")
    put("pictures/deep/b.txt", b"ab\0")
    untouched(main, ["pictures"], capsys, "b.txt", "binary")


@pytest.mark.parametrize(
    "main,argv",
    [(prepare, ["sampel"]), (tokenizer, ["sampel"]), (train, [*FEW, "data_path=sampel"])],
    ids=["prepare", "tokenizer", "train"],
)
def test_corpus_name(main, argv, capsys):
    untouched(main, argv, capsys, "sampel", "nearest: sample")


def test_too_short_to_train(capsys):
    put("short.txt", "To be or not to be")
    untouched(
        train, [*FEW, "--data_path", "short.txt"], capsys, "16 tokens", "too short", "seq_length 32"
    )


def test_too_short_to_score(capsys):
    put("short.txt", "To be or n")
    untouched(train, [*FEW, "seq_length=8", "--data_path", "short.txt"], capsys, "too short")


def test_too_short_to_prepare(capsys):
    put("short.txt", "T")
    untouched(prepare, ["short.txt"], capsys, "too short")


@pytest.mark.parametrize(
    "content,parts",
    [
        ("To be ☃ or not ♥", ["'☃' (U+2603)", "character 6"]),
        ("naïve", ["'ï' (U+00EF)", "character 2"]),
    ],
)
def test_character_that_the_tokenizer_lacks(content, parts, capsys):
    put("strange.txt", content)
    untouched(prepare, ["strange.txt", "--split", "100,0"], capsys, *parts)


@pytest.mark.parametrize(
    "argv,parts",
    [
        (["--split", "x"], ["split='x'"]),
        (["--split", "0,1"], ["split='0,1'"]),
        (["--split", "1,-1"], ["split"]),
        (["--split", "1,1,1,1"], ["split"]),
        pytest.param(["--split", "nan,1"], ["split"]),
        (["--tokenizer_path", "text.txt"], ["text.txt", "not a tokenizer.json"]),
        (["--tokenizer_path", "none.json"], ["none.json", "no tokenizer here"]),
        (["--out", "mine"], ["mine", "holds other files"]),
        (["--out", "text.txt"], ["text.txt", "is a file"]),
        (["--out", "text.txt/sub"], ["text.txt/sub", "could not be written"]),
        (["--outt", "x"], ["unrecognized arguments: --outt"]),
        pytest.param(["--out", "."], ["the folder that you are in"]),
    ],
    ids=str,
)
def test_prepare_flags(argv, parts, capsys):
    put("text.txt")
    put("mine/notes.txt", "my notes")
    untouched(prepare, ["text.txt", *argv], capsys, *parts)


@pytest.mark.parametrize(
    "argv,parts",
    [
        (["--kind", "wordpiece"], ["kind", "wordpiece"]),
        (["--kind", "bpe", "--vocab_size", "10"], ["vocab_size=10", "258"]),
        (["--vocab_size", "many"], ["vocab_size", "many"]),
        (["--out", "mine"], ["mine", "holds other files"]),
    ],
    ids=str,
)
def test_tokenizer_flags(argv, parts, capsys):
    put("text.txt")
    put("mine/notes.txt", "my notes")
    untouched(tokenizer, ["text.txt", *argv], capsys, *parts)


def test_offline_download(tmp_path, monkeypatch, capsys):
    pooch = pytest.importorskip("pooch")

    def refused(*args, **kwargs):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(pooch, "retrieve", refused)
    monkeypatch.delenv("NEOX_DATA", raising=False)
    monkeypatch.setenv("NEOX_CACHE", str(tmp_path / "cache"))
    for main, argv in (
        (prepare, ["tinyshakespeare"]),
        (tokenizer, ["tinyshakespeare"]),
        (train, [*FEW, "data_path=tinyshakespeare"]),
    ):
        untouched(
            main,
            argv,
            capsys,
            "tinyshakespeare",
            "https://",
            tmp_path / "cache" / "tinyshakespeare" / "input.txt",
            "NEOX_DATA",
        )


def test_missing_extra(monkeypatch, capsys):
    put("text.parquet", "PAR1")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    untouched(
        prepare, ["text.parquet"], capsys, "pyarrow", "pip install 'shakespeare_neox[datasets]'"
    )


@pytest.mark.parametrize(
    "columns,parts",
    [
        (dict(words=["a"]), ["no column named text", "words"]),
        pytest.param(dict(text=[1, 2]), ["text"]),
        pytest.param(dict(text=[]), ["empty"]),
    ],
    ids=str,
)
def test_parquet(columns, parts, capsys):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(
        pa.table({k: pa.array(v, None if v else pa.string()) for k, v in columns.items()}),
        "table.parquet",
    )
    untouched(prepare, ["table.parquet"], capsys, "table.parquet", *parts)


def test_parquet_with_null_rows(capsys):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(dict(text=[TEXT, None])), "table.parquet")
    prepare(["table.parquet"])
    assert (Path("prepared/table/train.bin")).stat().st_size == 2 * int(0.9 * len(TEXT))


def test_damaged_parquet(capsys):
    pytest.importorskip("pyarrow.parquet")
    put("text.parquet", "PAR1")
    untouched(prepare, ["text.parquet"], capsys, "text.parquet")


# recipes and settings

MODEL = "num_layers: 1\nhidden_size: 32\nnum_attention_heads: 2\nseq_length: 32\n"


@pytest.mark.parametrize(
    "content,parts",
    [
        ("num_layers: [1\nhidden_size: 3\n", ["line 2", "not YAML"]),
        ("optimizer:\n\t- type\n", ["line 2", "not YAML"]),
        ("- 1\n- 2\n", ["list"]),
        ("hello", ["str"]),
        ("", ["my.yml: is empty", "num_layers: 4"]),
        (MODEL, ["train_iters is not given"]),
        (MODEL + "pos_emb: rotary\n", ["train_iters is not given"]),
        (
            "pos_emb: rotary\ntrain_iters: 3\ntrain_micro_batch_size_per_gpu: 2\n",
            ["num_layers is not given"],
        ),
        ("num_layers: 1\nname: \a\n", ["my.yml, line 2: not YAML", "U+0007"]),
        ("num_layers: 1\n# é\n".encode("latin1"), ["my.yml, line 2: not UTF-8", "0xe9"]),
        (
            "num_layers: 2020-99-99\n"
            + MODEL[14:]
            + "pos_emb: rotary\ntrain_iters: 3\ntrain_micro_batch_size_per_gpu: 2\n",
            ["my.yml, line 1: num_layers", "'2020-99-99'", "int"],
        ),
    ],
    ids=repr,
)
def test_recipe_file(content, parts, capsys):
    put("my.yml", content)
    untouched(train, ["my.yml"], capsys, *parts)


@pytest.mark.parametrize(
    "words,parts",
    [
        (["quickstrat"], ["quickstrat", "nearest: quickstart"]),
        (["quickstrat.yml"], ["quickstrat.yml", "nearest: quickstart"]),
        (["quickstart", "nowhere/other.yml"], ["nowhere/other.yml", "no such recipe"]),
        ([], ["no recipe given", "quickstart"]),
        (["num_layers=3"], ["no recipe given"]),
        (["quickstart", "--seed", "3"], ["--seed 3"]),
    ],
    ids=str,
)
def test_recipe_name(words, parts, capsys):
    untouched(train, words, capsys, *parts)


SETTINGS = """
    hidden_sise=5               hidden_sise unknown hidden_size
    num_layer=5                 unknown num_layers
    n_layer=3                   n_layer num_layers
    n_head=3                    n_head num_attention_heads
    n_embd=64                   n_embd hidden_size
    block_size=64               block_size seq_length
    max_iters=10                max_iters train_iters
    batch_size=4                train_micro_batch_size_per_gpu
    learning_rate=1             optimizer.params.lr
    lr=1                        optimizer.params.lr
    dropout=0.1                 dropout hidden_dropout
    grad_clip=1                 gradient_clipping
    pipe_parallel_size=2        pipe_parallel_size cannot
    use_qk_layernorm=true       use_qk_layernorm cannot
    num_layers=x                num_layers 'x' int
    num_layers=0                num_layers 0
    num_layers=2.5              num_layers 2.5 int
    num_layers.x=3              num_layers
    num_layers=[1               num_layers YAML
    num_layers=                 num_layers None
    hidden_size=33              33 divisible num_attention_heads
    hidden_size=true            hidden_size True
    hidden_size=-32             hidden_size -32
    num_attention_heads=0       num_attention_heads 0
    rotary_pct=0.2              rotary_pct 3 even
    rotary_pct=0                rotary_pct even
    rotary_pct=2                rotary_pct 2.0
    rotary_pct=.nan             rotary_pct nan
    pos_emb=alibi               pos_emb alibi
    norm=layernrm               norm nearest layernorm
    activation=gelou            activation nearest gelu
    init_method=smal_init       nearest small_init
    hidden_dropout=1.5          hidden_dropout 1.5
    attention_dropout=-1        attention_dropout
    intermediate_size=-2        intermediate_size -2
    padded_vocab_size=5         padded_vocab_size 5
    max_position_embeddings=8   max_position_embeddings seq_length
    use_bias_in_mlp=1           use_bias_in_mlp bool
    train_iters=0               train_iters 0
    train_iters=many            train_iters 'many'
    train_micro_batch_size_per_gpu=0 train_micro_batch_size_per_gpu
    gradient_accumulation_steps=0 gradient_accumulation_steps
    eval_interval=0             eval_interval 0
    log_interval=-1             log_interval -1
    warmup=3                    warmup 3.0
    warmup=.nan                 warmup nan
    weight_decay=x              weight_decay 'x'
    seed=abc                    seed 'abc'
    precision=bf16              precision nearest bfloat16
    fp16=true                   fp16 dict
    lr_decay_style=cosin        nearest cosine
    deterministic=3             deterministic bool
    optimizer=5                 optimizer dict
    optimizer.type=adan         optimizer.type nearest adam
    optimizer.params.lr=-1      optimizer.params.lr -1
    optimizer.params.lr=fast    optimizer.params.lr 'fast'
    optimizer.params.beta=1     optimizer.params nearest betas
    split=a,b                   split 'a,b'
    split=100,0                 split validation
    split=5                     split='5' shares
    vocab_file=5                5 tokenizer
    vocab_file=nowhere.json     nowhere.json tokenizer
    data_path=                  data_path
    train_data_paths=[sample]   valid_data_paths
    tokenizer_type=HFTokeniser  nearest HFTokenizer
    load=elsewhere              load elsewhere
    compile=maybe               compile maybe
    save.x=3                    save dict str
"""


@pytest.mark.parametrize(
    "case", [c.strip() for line in SETTINGS.strip().splitlines() for c in line.split("|")]
)
def test_setting(case, capsys):
    word, *parts = case.split()
    untouched(
        train,
        [*FEW, word, *([] if word.startswith("save") else ["--checkpoint_dir", "run"])],
        capsys,
        *parts,
    )


OUT_OF_RANGE = """
    weight_decay=-1             weight_decay -1.0 0 or more
    weight_decay=.nan           weight_decay .nan finite
    gradient_clipping=-1        gradient_clipping -1.0 0 or more
    eval_iters=-1               eval_iters -1 below 1
    checkpoint_factor=-3        checkpoint_factor -3 below 1
    lr_decay_iters=-5           lr_decay_iters -5 below 1
    min_lr=-1                   min_lr -1.0 0 or more
    sample_tokens=-5            sample_tokens -5 100,000
    seed=99999999999999999999999 seed 64 bits
    seed=4294967296             seed 4294967296 2**31
    rotary_emb_base=0           rotary_emb_base 0 above
    layernorm_epsilon=-1        layernorm_epsilon -1.0 above
    init_method_std=-1          init_method_std -1.0 above
    make_vocab_size_divisible_by=-5 make_vocab_size_divisible_by -5
    sample_prompt=              sample_prompt empty
    sample_prompt=ü             sample_prompt 'ü'
    optimizer.params=3          optimizer.params 3 dict
    optimizer.params.lr=.nan    optimizer.params.lr .nan finite
    optimizer.params.lr=.inf    optimizer.params.lr .inf finite
    optimizer.params.lr=true    optimizer.params.lr True positive
    optimizer.params.betas=2    optimizer.params.betas 2 two
    optimizer.params.betas=[0.9] optimizer.params.betas [0.9] two
    optimizer.params.betas=[2,3] optimizer.params.betas below 1
    optimizer.params.betas=[a,b] optimizer.params.betas 'a' below 1
    optimizer.params.eps=-1     optimizer.params.eps -1 positive
    optimizer.params.eps=x      optimizer.params.eps 'x' positive
    split=nan,1                 split nan,1
    attention_config=5          attention_config 5 cannot
    fp16.enabled=maybe          fp16.enabled 'maybe' bool
    optimizer.type=3            optimizer.type 3 str
    keep_last_n_checkpoints=-1  keep_last_n_checkpoints -1 below 1
    train_iters=3000000000      train_iters 3000000000 2**31
"""


@pytest.mark.parametrize(
    "case", [c.strip() for line in OUT_OF_RANGE.strip().splitlines() for c in line.split("|")]
)
def test_setting_out_of_range(case, capsys):
    word, *parts = case.split()
    untouched(train, [*FEW, word, "--checkpoint_dir", "run"], capsys, *parts)


@pytest.mark.parametrize(
    "word, compiles",
    [
        ("compile=off", False),
        ("compile='off'", False),
        ("compile=auto", True),
        ("compile=on", True),
    ],
)
def test_compile_off(word, compiles, monkeypatch, capsys):
    "The word is text, not a truth value; where compiling would pay, off alone keeps a run from it"
    tried = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kwargs: tried.append(self))
    monkeypatch.setitem(run_module.LONG_RUN, "cpu", 0)
    train([*FEW, word, "--checkpoint_dir", "run"])
    start = json.loads(Path("run/log.jsonl").read_text().splitlines()[0])
    assert (len(tried), start["compiled"]) == ((1, True) if compiles else (0, False))
    assert load_config("run/config.yml").train.compile == word.split("=")[1].strip("'")


def test_known_values_are_named(capsys):
    untouched(train, [*FEW, "activation=xyz"], capsys, "gelu", "relu", "silu")


def test_debug_shows_the_traceback(capsys):
    for main, argv in (
        (prepare, ["nowhere.txt"]),
        (train, ["quickstrat"]),
        (generate, ["--prompt", ""]),
        (tokenizer, ["nowhere.txt"]),
    ):
        with pytest.raises(NeoxError):
            main([*argv, "--debug"])


# token files


@pytest.fixture
def tokens(here, capsys):
    "A text, its tokenizer, and token files made with it and with the table that ships"
    put("text.txt")
    put("other.txt", TEXT + "xyzXYZ")
    tokenizer(["text.txt", "--out", "own"])
    tokenizer(["other.txt", "--out", "other"])
    prepare(["text.txt", "--tokenizer_path", "own", "--out", "prepared"])
    return Path("prepared")


def test_tokens_of_another_tokenizer(tokens, capsys):
    untouched(
        train,
        [*FEW, "--data_path", "prepared", "--tokenizer_path", "other"],
        capsys,
        "train.bin",
        "another tokenizer",
    )


@pytest.mark.parametrize(
    "file,content,parts",
    [
        ("train.bin", b"12", ["train.bin", "cut off"]),
        ("valid.bin", b"", ["valid.bin", "cut off"]),
        ("train.bin", None, ["train.bin", "cut off"]),
        ("valid.json", None, ["valid.bin", "no token file"]),
        ("train.json", b"{", ["not JSON"]),
        ("tokenizer.json", None, ["tokenizer.json", "no tokenizer"]),
        pytest.param("train.json", b"{}", ["train"]),
        pytest.param("train.json", b"[]", ["train"]),
    ],
    ids=str,
)
def test_damaged_tokens(tokens, file, content, parts, capsys):
    put(tokens / file, content) if content is not None else (tokens / file).unlink()
    untouched(
        train, [*FEW, "--data_path", "prepared", "--tokenizer_path", "prepared"], capsys, *parts
    )


# prompts and checkpoints


@pytest.mark.parametrize(
    "argv,parts",
    [
        (["--prompt", ""], ["empty"]),
        (["--prompt", "MARIAN:", "--prompt", ""], ["empty"]),
        (["--prompt", "a" * 40], ["40 tokens", "32", "by 8"]),
        (["--prompt", "snow ☃"], ["'☃' (U+2603)", "character 5"]),
        (["--prompt", "MARIAN:", "--prompt", "é"], ["U+00E9"]),
        (["--prompt", "\udcff"], ["U+DCFF"]),
        (["--temperature", "-1"], ["temperature"]),
        (["--temperature", "hot"], ["temperature", "hot"]),
        (["--top_k", "-1"], ["top_k"]),
        (["--top_p", "2"], ["top_p"]),
        (["--min_p", "-0.1"], ["min_p"]),
        (["--max_new_tokens", "-1"], ["max_new_tokens"]),
        (["--repetition_penalty", "0"], ["repetition_penalty"]),
        (["word"], ["one checkpoint", "'word'"]),
        (["two", "words"], ["one checkpoint", "'two' and 'words'", "--prompt"]),
        (["--batch_size", "0"], ["batch_size"]),
        (["--prompt", "M", "--prompt_file", "x.txt"], ["--prompt", "--prompt_file", "one of them"]),
        *[
            pytest.param([flag, value], [flag[2:]])
            for flag, value in dict(
                temperature="nan", top_p="nan", min_p="nan", repetition_penalty="nan", seed="9" * 30
            ).items()
            for flag in [f"--{flag}"]
        ],
        pytest.param(["--temperature", "1e-42"], ["temperature"]),
    ],
    ids=str,
)
def test_prompt_and_sampling(trained, argv, parts, capsys):
    untouched(
        generate, ["--checkpoint_path", trained, "--max_new_tokens", "8", *argv], capsys, *parts
    )


BAD_PROMPTS = {
    "missing": ("p.txt", None, ["p.txt", "no such file"]),
    "empty": ("p.txt", b"", ["p.txt", "no prompt in it"]),
    "blank": ("p.txt", b"\xef\xbb\xbf\n \r\n\n", ["p.txt", "no prompt in it"]),
    "blank jsonl": ("p.jsonl", b"\n\n", ["p.jsonl", "no prompt in it"]),
    "latin1": ("p.txt", b"MARIAN:\n\ncaf\xe9\n", ["p.txt, line 3", "not UTF-8", "0xe9", "cp1252"]),
    "too long": ("p.txt", b"MARIAN:\n" + b"a" * 40, ["prompt 2 of 2", "40 tokens", "32", "by 8"]),
    "unknown character": ("p.txt", "M\n\nO\n☃".encode(), ["prompt 3 of 3 ('☃')", "U+2603"]),
    "no JSON": ("p.jsonl", b'{"prompt": "M"}\n\n{"prompt": "M"\n', ["p.jsonl, line 3", "not JSON"]),
    "no field": ("p.jsonl", b'{"text": "M"}\n', ["p.jsonl, line 1", "no text named prompt"]),
    "not an object": (
        "p.jsonl",
        b'{"prompt": "M"}\n"M"\n',
        ["p.jsonl, line 2", "no text named prompt"],
    ),
    "empty prompt": ("p.jsonl", b'{"prompt": ""}\n', ["p.jsonl, line 1", "no text named prompt"]),
    "a number": ("p.jsonl", b'{"prompt": 7}\n', ["p.jsonl, line 1", "no text named prompt"]),
    "a folder": ("p/q.txt", b"M", ["irectory"]),
}


@pytest.mark.parametrize("kind", BAD_PROMPTS)
@pytest.mark.parametrize("more", [[], ["--jsonl", "--batch_size", "1"]], ids=["text", "jsonl"])
def test_prompt_file(trained, kind, more, capsys):
    name, content, parts = BAD_PROMPTS[kind]
    if content is not None:
        put(name, content)
    untouched(
        generate,
        [
            trained,
            "--max_new_tokens",
            "8",
            "--prompt_file",
            "p" if kind == "a folder" else name,
            *more,
        ],
        capsys,
        *parts,
    )


@pytest.mark.parametrize(
    "content,parts",
    [(b"", ["standard input", "no prompt"]), (b"M\n\xff", ["standard input, line 2", "not UTF-8"])],
    ids=["empty", "bytes"],
)
def test_standard_input(trained, content, parts, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    untouched(generate, [trained, "--prompt_file", "-"], capsys, *parts)


def test_weights_that_are_not_numbers(trained, capsys):
    from safetensors.torch import load_file, save_file

    shutil.copytree(trained / "best", "checkpoint")
    weights = load_file("checkpoint/model.safetensors")
    weights["gpt_neox.final_layer_norm.bias"][0] = float("nan")
    save_file(weights, "checkpoint/model.safetensors", metadata={"format": "pt"})
    for more in ([], ["--temperature", "0"], ["--jsonl"]):
        untouched(generate, ["checkpoint", "--prompt", "M", *more], capsys, "NaN", "damaged")


def edit(name, **changes):
    "Changes keys of a JSON file"

    def change(folder):
        (folder / name).write_text(
            json.dumps({**json.loads((folder / name).read_text()), **changes})
        )

    return change


def cut(name, size):
    "Cuts a file off"
    return lambda folder: os.truncate(folder / name, size)


@pytest.mark.parametrize(
    "damage,parts",
    [
        (lambda p: (p / "config.json").unlink(), ["no config.json", "half-written"]),
        (lambda p: (p / "model.safetensors").unlink(), ["no model.safetensors", "half-written"]),
        (lambda p: (p / "tokenizer.json").unlink(), ["no tokenizer.json"]),
        (cut("model.safetensors", 5000), ["model.safetensors", "cut off"]),
        (cut("model.safetensors", 0), ["model.safetensors", "cut off"]),
        (cut("model.safetensors", 80_000), ["model.safetensors", "cut off"]),
        (cut("config.json", 20), ["config.json", "not JSON"]),
        (cut("tokenizer.json", 300), ["tokenizer.json"]),
        (edit("config.json", model_type="bert"), ["model_type", "'bert'", "gpt_neox, gpt2, llama"]),
        (edit("config.json", hidden_size=64), ["do not fit"]),
        (edit("config.json", num_hidden_layers=2), ["do not fit"]),
        (edit("config.json", hidden_size="x"), ["hidden_size"]),
        (edit("config.json", num_attention_heads=0), ["num_attention_heads"]),
        (edit("config.json", rope_parameters={"rope_type": "yarn"}), ["yarn"]),
        (edit("config.json", hidden_act="tanh9"), ["tanh9"]),
        pytest.param(lambda p: (p / "config.json").write_text("[]"), ["config.json"]),
    ],
    ids=[
        "no config",
        "no weights",
        "no tokenizer",
        "cut weights",
        "empty weights",
        "weights cut at the end",
        "cut config",
        "cut tokenizer",
        "bert",
        "wider",
        "deeper",
        "hidden size a word",
        "no heads",
        "yarn",
        "activation",
        "config a list",
    ],
)
def test_checkpoint(trained, damage, parts, capsys):
    shutil.copytree(trained / "best", "checkpoint")
    damage(Path("checkpoint"))
    untouched(generate, ["--checkpoint_path", "checkpoint"], capsys, *parts)


@pytest.mark.parametrize(
    "name,parts",
    [
        ("nowhere", ["nowhere", "no such folder"]),
        ("runs/nowhere", ["runs/nowhere", "no such folder"]),
        ("a/b/c", ["a/b/c", "no such folder"]),
        ("text.txt", ["text.txt", "no such folder"]),
        ("void", ["void", "no config.json"]),
        pytest.param(".", ["no config.json"]),
    ],
    ids=repr,
)
def test_missing_checkpoint(name, parts, capsys):
    put("text.txt")
    Path("void").mkdir()
    untouched(generate, ["--checkpoint_path", name], capsys, *parts)


def test_checkpoint_killed_between_its_renames(trained, capsys):
    "The former model lies aside: it speaks as before, and who reads changes nothing"
    shutil.copytree(trained, "run")
    shutil.rmtree("run/last")
    words = ["--checkpoint_path", "run", "--max_new_tokens", "12", "--seed", "3"]
    expected = succeeds(generate, words, capsys).out
    os.rename("run/best", set_aside(Path("run/best")))
    before = tree("run")
    assert succeeds(generate, words, capsys).out == expected != ""
    assert tree("run") == before


# the folder of a run

RUN = ["quickstart", *TINY, "--checkpoint_dir", "run"]


def test_folder_of_another_run(trained, capsys):
    shutil.copytree(trained, "run")
    untouched(
        train,
        ["quickstart", *TINY, "seed=3", "train_iters=40", "--checkpoint_dir", "run"],
        capsys,
        "run",
        "another run",
        "seed: ",
        " there, 3 here",
        "train_iters: 30 there, 40 here",
    )


@pytest.mark.parametrize(
    "name,parts",
    [
        ("mine", ["mine", "holds other files"]),
        ("text.txt", ["text.txt", "ot a directory"]),
        ("text.txt/sub", ["text.txt/sub", "could not be written"]),
    ],
)
def test_folder_that_is_not_a_run(name, parts, capsys):
    put("mine/notes.txt")
    put("text.txt")
    untouched(train, [*FEW, "--checkpoint_dir", name], capsys, *parts)


@pytest.mark.parametrize(
    "file,content",
    [
        ("state/step_30/state.json", "{"),
        ("state/step_30/state.safetensors", "xx"),
        ("log.jsonl", "{x}\n"),
        ("log.jsonl", ""),
    ],
    ids=str,
)
def test_damaged_run(trained, file, content, capsys):
    shutil.copytree(trained, "run")
    put(f"run/{file}", content)
    refuses(train, RUN, capsys, "run", Path(file).name, steps=True)


def test_loss_that_turns_nan(monkeypatch, capsys):
    usual = TrainConfig.learning_rate
    with monkeypatch.context() as patch:
        patch.setattr(
            TrainConfig,
            "learning_rate",
            lambda c, step, n: 1e20 if step >= 18 else usual(c, step, n),
        )
        line = refuses(
            train,
            RUN,
            capsys,
            "the loss became",
            "learning rate",
            "lower optimizer.params.lr",
            "state of step 15 is kept",
            steps=True,
        )
    assert int(line.split("at step ")[1].split(";")[0]) in range(19, 25)
    assert saved_steps("run") == [15] and not list(Path("run").rglob(".*.tmp"))
    train(RUN)
    assert saved_steps("run") == [30] and "goes on from step 15" in capsys.readouterr().err


# a disk that is full


@pytest.fixture
def disk(here):
    "A folder on a disk of its own, and a function that sets the disk's size"

    def mount(*args):
        return subprocess.run(["mount", *args], capture_output=True).returncode == 0

    Path("disk").mkdir()
    if (
        sys.platform != "linux"
        or os.geteuid()
        or not mount("-t", "tmpfs", "-o", "size=200k", "neox", "disk")
    ):
        pytest.skip("needs root and mount")
    try:
        yield Path("disk"), lambda size: mount("-o", f"remount,size={size}", str(here / "disk"))
    finally:
        subprocess.run(["umount", str(here / "disk")], check=True)


def test_full_disk_while_preparing(disk, monkeypatch, capsys):
    put("text.txt")
    prepare(["text.txt", "--out", "disk/tokens"])
    untouched(
        prepare,
        ["sample", "--out", "disk/tokens", "--replace"],
        capsys,
        "disk/tokens",
        "need about",
        "MB free",
        "--out",
    )
    monkeypatch.setattr(
        data_module, "check_space", lambda *args: None
    )  # as if another program filled the disk meanwhile
    untouched(
        prepare,
        ["sample", "--out", "disk/tokens", "--replace"],
        capsys,
        "disk/tokens",
        "could not be written",
    )
    assert os.listdir("disk") == ["tokens"]


def test_full_disk_while_saving_a_tokenizer(disk, capsys):
    _, resize = disk
    resize("60k")
    put("text.txt")
    tokenizer(["text.txt", "--out", "disk/made"])
    untouched(
        tokenizer,
        ["sample", "--kind", "bpe", "--vocab_size", "5000", "--out", "disk/made", "--replace"],
        capsys,
        "disk/made",
        "could not be written",
    )


def test_full_disk_while_training(disk, capsys):
    folder, resize = disk
    resize("700k")
    run = ["keep_last_n_checkpoints=2", "quickstart", *TINY, "--checkpoint_dir", "disk/run"]
    refuses(train, run, capsys, "disk/run", "could not be written", "o space left", steps=True)
    assert saved_steps("disk/run") == [15] and not list(folder.rglob(".*.tmp"))
    generate(["--checkpoint_path", "disk/run", "--max_new_tokens", "2"])
    resize("4m")
    train(run)
    assert saved_steps("disk/run") == [15, 30] and "goes on from step 15" in capsys.readouterr().err


@contextmanager
def full(monkeypatch, name):
    """Every file whose name holds `name` is cut off by a full disk; in the end at least one must
    have been"""
    opened, cut, open_file, force = {}, [], os.open, os.fsync

    def noted_open(path, *args, **kwargs):
        descriptor = open_file(path, *args, **kwargs)
        opened[descriptor] = Path(os.fsdecode(path))
        return descriptor

    def fsync(descriptor):
        path = opened.get(descriptor, Path())
        if name not in path.name or not path.is_file():
            return force(descriptor)
        cut.append(path)
        os.truncate(path, 9)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", noted_open)
        patch.setattr(os, "fsync", fsync)
        yield
    assert cut, f"nothing was written to a file named {name}"


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "state.json"]
)
def test_full_disk_keeps_what_was_saved(name, monkeypatch, capsys):
    run = ["keep_last_n_checkpoints=2", *RUN]
    train(run)
    shutil.rmtree("run/state/step_30")
    before = {part: tree(f"run/{part}") for part in ("best", "last", "state")}
    with full(monkeypatch, name):
        refuses(train, run, capsys, "run/", "could not be written", "No space left", steps=True)
    assert not [p for p in Path("run").rglob("*") if p.name.endswith((".tmp", ".old"))]
    kept = [part for part in before if tree(f"run/{part}") == before[part]]
    assert kept == (["state"] if name == "state.json" else ["best", "last", "state"])
    train(run)
    assert saved_steps("run") == [15, 30]


def test_full_disk_at_the_start_of_a_run(monkeypatch, capsys):
    with full(monkeypatch, "config.yml"):
        refuses(train, RUN, capsys, "run", "could not be written", "No space left")
    assert not list(Path(".").rglob("*.tmp*")) and not list(Path(".").rglob("config.yml"))
    train(RUN)
    assert saved_steps("run") == [30]


def test_full_disk_keeps_the_log(monkeypatch, capsys):
    run = ["keep_last_n_checkpoints=2", *RUN]
    train(run)
    shutil.rmtree("run/state/step_30")
    events = Path("run/log.jsonl").read_text().splitlines()
    first_half = [e for e in events if json.loads(e)["step"] <= 15]
    with full(monkeypatch, "log.jsonl"):
        refuses(train, run, capsys, "No space left", steps=True)
    assert Path("run/log.jsonl").read_text().splitlines()[: len(first_half)] == first_half


def test_no_corpus(capsys):
    refuses(prepare, [""], capsys, "no corpus given")


def test_full_disk_in_the_log(monkeypatch, capsys):
    usual = Path.open

    def full(self, *args, **kwargs):
        if self.name == "log.jsonl" and args[:1] == ("ab",):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return usual(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        train(RUN)
    assert (
        capsys.readouterr().err.count(
            "run/log.jsonl: could not be written (No space left on device); the run goes on"
        )
        == 1
    )
    assert saved_steps("run") == [30] and Path("run/best/config.json").exists()


def test_config_repeats_a_run_wherever_it_lay(trained):
    from shakespeare_neox.engine.recipe import load_config

    assert load_config(str(trained / "config.yml")).train.save is None


# tokenizers that cannot be trained


@pytest.mark.parametrize(
    "argv,parts",
    [
        (["--kind", "unigrma"], ["kind='unigrma'", "nearest: unigram"]),
        (["--kind", "BPE"], ["kind='BPE'"]),
        (["--kind", ""], ["kind=''", "known: bpe, char, unigram"]),
        (["--kind", "bpe", "--vocab_size", "257"], ["vocab_size=257", "at least 258"]),
        (["--kind", "unigram", "--vocab_size", "258"], ["vocab_size=258", "at least 259"]),
        (["--kind", "unigram", "--vocab_size", "0"], ["vocab_size=0"]),
        (["--kind", "bpe", "--vocab_size", "-5"], ["vocab_size=-5"]),
        (
            ["--kind", "bpe", "--vocab_size", "30000"],
            ["vocab_size=30000", "larger than this text supports"],
        ),
        (
            ["--kind", "unigram", "--vocab_size", "30000"],
            ["vocab_size=30000", "larger than this text supports"],
        ),
        (["--kind", "bpe"], ["vocab_size=4096", "larger"]),
        (["--kind", "unigram"], ["vocab_size=8000", "larger"]),
    ],
    ids=str,
)
def test_tokenizer_size_and_kind(argv, parts, capsys):
    put("text.txt")
    untouched(tokenizer, ["text.txt", *argv, "--out", "deep/made"], capsys, *parts)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("data", ["text.txt", "sample"])
def test_the_size_that_a_text_supports(kind, data, capsys):
    "What the error says works: that many, and one fewer; one more does not"
    put("text.txt")
    line = refuses(tokenizer, [data, "--kind", kind, "--vocab_size", "50000"], capsys)
    most = int(line.split("give ")[1].split()[0])
    for n in (most, most - 1):
        tokenizer([data, "--kind", kind, "--vocab_size", str(n), "--out", "made", "--replace"])
        assert f"{n:,} tokens" in capsys.readouterr().err
    before = tree("made")
    refuses(
        tokenizer,
        [data, "--kind", kind, "--vocab_size", str(most + 1), "--out", "made", "--replace"],
        capsys,
        f"give {most} or less",
    )
    assert tree("made") == before


@pytest.mark.parametrize("kind", ["char", "bpe", "unigram"])
@pytest.mark.parametrize(
    "text",
    ["", [], ["", ""], (piece for piece in ())],
    ids=["str", "list", "empty pieces", "generator"],
)
def test_learning_from_nothing(text, kind):
    from shakespeare_neox.engine.vocab import train_tokenizer

    with pytest.raises(NeoxError, match="empty"):
        train_tokenizer(text, kind)
