"""Recipes and settings: nothing taken for something else, nothing dropped, every wrong value named
with its place"""

import copy
import dataclasses
import json
import os
import time
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, refuses, tree
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

from shakespeare_neox.engine.base import NeoxError, assets
from shakespeare_neox.engine.recipe import (
    OWN_KEYS,
    TrainConfig,
    fit_to_text,
    load_config,
    merge,
    parse_override,
    read_recipe,
    read_recipes,
    read_yaml,
    recipe_keys,
    sort_settings,
)
from shakespeare_neox.engine.run import make_run
from shakespeare_neox.engine.run import neox_train_main as train
from shakespeare_neox.model import ModelConfig

pytestmark = pytest.mark.usefixtures("here")
MODEL = dict(num_layers=1, hidden_size=32, num_attention_heads=2, seq_length=32, pos_emb="rotary")
WHOLE = dict(MODEL, data_path="sample", train_iters=4, train_micro_batch_size_per_gpu=2)
FEW = ["quickstart", *TINY, "train_iters=4", "eval_interval=2", "checkpoint_factor=2"]
TEXT_SETTINGS = (
    "sample_prompt",
    "wandb_run_name",
    "wandb_group",
    "wandb_project",
    "data_path",
    "vocab_file",
    "save",
    "split",
)


def put(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_yaml(settings):
    "As a run writes its config.yml"
    from shakespeare_neox.engine.recipe import write_yaml

    return write_yaml(settings)


def recipe(text="", **settings):
    "A whole recipe in my.yml, with lines of its own at the end"
    return put("my.yml", yaml.safe_dump({**WHOLE, **settings}, sort_keys=False) + text)


def refused(*recipes, **overrides):
    "The one line with which a recipe is refused, soon"
    start = time.process_time()
    with pytest.raises(NeoxError) as caught:
        load_config(*recipes, **overrides)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500, line
    assert time.process_time() - start < 5
    return line


def holds(line, *parts):
    assert all(part in line for part in parts), (parts, line)


# precision


@pytest.mark.parametrize(
    "blocks,meant",
    [
        (dict(fp16=dict(enabled=True, type="bfloat16")), "bf16"),
        (dict(fp16=dict(enabled=True)), "fp16"),
        (dict(fp16=dict(enabled=True, type="fp16")), "fp16"),
        (dict(bf16=dict(enabled=True)), "bf16"),
        (dict(fp16=dict(enabled=False, type="bfloat16")), None),
        (dict(fp16=dict(type="bfloat16")), None),
        ({}, None),
        (dict(fp16=dict(enabled=True, type="bfloat16"), bf16=dict(enabled=True)), "bf16"),
        (dict(fp16=dict(enabled=False), bf16=dict(enabled=True)), "bf16"),
    ],
    ids=str,
)
def test_half_precision_of_a_block(blocks, meant):
    from shakespeare_neox.engine.device import pick_precision

    train_settings = load_config(recipe(**blocks)).train
    assert [name for name in ("fp16", "bf16") if train_settings.wants(name)] == [meant] * bool(
        meant
    )
    if meant:
        assert pick_precision(train_settings, "cuda") == dict(fp16="fp16", bf16="bfloat16")[meant]


def test_both_half_precisions():
    holds(
        refused(recipe(fp16=dict(enabled=True), bf16=dict(enabled=True))),
        "my.yml, line 9",
        "fp16 and bf16",
        "choose one",
    )
    holds(
        refused(recipe(fp16=dict(enabled=True, type="bf16"))),
        "my.yml, line 11",
        "fp16.type",
        "'bf16'",
        "bfloat16",
    )


# keys inside blocks

CURRICULUM = dict(
    enabled=True,
    curriculum_type="seqlen",
    schedule_type="fixed_discrete",
    schedule_config=dict(difficulty=[16, 32], max_step=[2]),
)
WRONG_KEYS = [
    ("optimizer", dict(typ="Adam"), ["optimizer.typ", "nearest: optimizer.type"]),
    ("optimizer", dict(type="Adam", lr=0.1), ["optimizer.lr", "optimizer.params.lr"]),
    (
        "optimizer",
        dict(type="Muon", momentum=0.9),
        ["optimizer.momentum", "optimizer.params.momentum"],
    ),
    ("optimizer", dict(type="Adam", param=dict(lr=0.1)), ["optimizer.param", "optimizer.params"]),
    ("optimizer", dict(type="Adam", params=dict(lrr=0.1)), ["optimizer.params.lrr", "nearest: lr"]),
    (
        "optimizer",
        dict(type="Adam", params=dict(momentum=0.9)),
        ["optimizer.params.momentum", "adam has no key"],
    ),
    (
        "optimizer",
        dict(type="Adam", params=dict(weight_decay=0.9)),
        ["optimizer.params.weight_decay", "by itself"],
    ),
    ("fp16", dict(enable=True), ["fp16.enable", "nearest: fp16.enabled"]),
    ("fp16", dict(enabled=True, los_scale=0), ["fp16.los_scale", "fp16.loss_scale"]),
    (
        "fp16",
        dict(enabled=True, fp16_master_weights_and_grads=True),
        ["fp16.fp16_master_weights_and_grads", "cannot apply"],
    ),
    ("bf16", dict(enable=True), ["bf16.enable", "nearest: bf16.enabled"]),
    ("bf16", dict(enabled=True, type="bfloat16"), ["bf16.type", "unknown key"]),
    (
        "bf16",
        dict(enabled=True, bf16_optimizer_states=True),
        ["bf16.bf16_optimizer_states", "cannot apply"],
    ),
    (
        "curriculum_learning",
        {**CURRICULUM, "curriculum_typ": "seqlen"},
        ["curriculum_learning.curriculum_typ", "curriculum_type"],
    ),
    (
        "curriculum_learning",
        dict(enabled=False, shedule_type="x"),
        ["curriculum_learning.shedule_type", "schedule_type"],
    ),
    (
        "curriculum_learning",
        {**CURRICULUM, "schedule_config": dict(difficulty=[16, 32], max_steps=[2])},
        ["curriculum_learning.schedule_config.max_steps", "max_step"],
    ),
    (
        "curriculum_learning",
        {**CURRICULUM, "max_difficulty": 64},
        ["curriculum_learning.max_difficulty", "64", "32"],
    ),
    (
        "curriculum_learning",
        {**CURRICULUM, "min_difficulty": 8},
        ["curriculum_learning.min_difficulty", "8", "16"],
    ),
]


@pytest.mark.parametrize("block,value,parts", WRONG_KEYS, ids=lambda x: str(x)[:60])
def test_key_in_a_block(block, value, parts):
    "Refused wherever it stands, with the line in a file"
    line = refused(recipe(**{block: value}))
    holds(line, "my.yml, line ", *parts)
    holds(refused(recipe(), **{block: value}), *parts)
    with pytest.raises(NeoxError):
        TrainConfig(train_iters=4, train_micro_batch_size_per_gpu=2, **{block: value})


def test_line_of_a_key_in_a_block():
    path = recipe("optimizer:\n  type: Adam\n  params:\n    lr: 1.0e-3\n    etas: [0.9, 0.99]\n")
    holds(refused(path), "my.yml, line 13: optimizer.params.etas", "betas")


@pytest.mark.parametrize(
    "word,parts",
    [
        ("optimizer.typ=adam", ["optimizer.typ", "optimizer.type"]),
        ("optimizer.lr=1e-3", ["optimizer.params.lr"]),
        ("fp16.enable=true", ["fp16.enabled"]),
        ("bf16.enabeld=true", ["bf16.enabled"]),
        ("optimiser.params.lr=1e-3", ["optimizer"]),
        ("curriculum_learning.enable=true", ["curriculum_learning.enabled"]),
        ("fp16=true", ["fp16", "dict"]),
        ("optimizer.params.lr.x=1", ["optimizer.params.lr"]),
    ],
)
def test_key_in_a_block_on_the_command_line(word, parts, capsys):
    before = tree(".")
    holds(refuses(train, [*FEW, word, "--checkpoint_dir", "run"], capsys, *parts), "command line: ")
    assert tree(".") == before


def test_what_gpt_neox_knows_in_blocks_is_told(capsys):
    scale = dict(
        loss_scale=0, loss_scale_window=1000, hysteresis=2, min_loss_scale=1, initial_scale_power=12
    )
    load_config(
        recipe(
            fp16=dict(
                enabled=True, fp16=True, auto_cast=True, consecutive_hysteresis=False, **scale
            ),
            bf16=dict(enabled=False, bf16_optimizer_states=False, check_grad_overflow=True),
            curriculum_learning={**CURRICULUM, "min_difficulty": 16, "max_difficulty": 32},
        )
    )
    said = capsys.readouterr().err
    assert said.startswith("ignored, since they change nothing here: ") and said.count("\n") == 1
    for key in [f"fp16.{k}" for k in (*scale, "fp16", "auto_cast")] + [
        "bf16.check_grad_overflow",
        "bf16.bf16_optimizer_states",
    ]:
        assert f" {key}" in said, key
    assert "enabled" not in said and "difficulty" not in said


# keys given twice

TWICE = [
    ("seed: 1\nseed: 2\n", "seed", 9, 10),
    ("hidden-dropout: 0.1\nhidden_dropout: 0.2\n", "hidden-dropout and hidden_dropout", 9, 10),
    ('seed: 1\n"seed": 1\n', "seed", 9, 10),
    ("hidden-size: 64\n", "hidden_size and hidden-size", 2, 9),
    (
        "optimizer:\n  type: Adam\n  params: {lr: 1.0e-3, eps: 1.0e-8,\n    lr: 2.0e-3}\n",
        "lr",
        11,
        12,
    ),
    ("optimizer: {type: Adam}\noptimizer:\n  params: {lr: 1.0}\n", "optimizer", 9, 10),
    (
        "curriculum_learning:\n  schedule_config:\n    max_step: [1]\n    max-step: [2]\n",
        "max_step and max-step",
        11,
        12,
    ),
    ("zero_optimization: {stage: 1, stage: 2}\n", "stage", 9, 9),
]


@pytest.mark.parametrize("text,names,first,second", TWICE, ids=lambda x: repr(x)[:40])
def test_key_given_twice(text, names, first, second):
    holds(
        refused(recipe(text)),
        f"my.yml, line {second}: {names}: given twice, first in line {first}; keep one",
    )


def test_key_given_twice_in_python():
    holds(
        refused(recipe(), **{"hidden_dropout": 0.1, "hidden-dropout": 0.2}),
        "hidden_dropout",
        "hidden-dropout",
        "keep one",
    )


def test_hyphens_in_python():
    "As in a file, in blocks too: what a run keeps is what it was given"
    opened = load_config(recipe(), **{"hidden-dropout": 0.25, "comet_others": {"a-b": 1}})
    assert opened.model["hidden_dropout"] == 0.25 and opened.settings["comet_others"] == dict(a_b=1)
    holds(refused(recipe(), comet_others={"a-b": 1, "a_b": 2}), "comet_others", "keep one")


def test_settings_that_no_file_could_hold():
    "A run whose config.yml could not be read again does not begin"
    many = [f"texts/number_{i}.txt" for i in range(5000)]
    holds(
        refused(recipe(), data_path=None, train_data_paths=many, valid_data_paths=["b"]),
        "train_data_paths",
        "too long",
        "folder",
    )
    holds(refused(recipe(), comment="x" * 200_000), "comment", "too long")
    kept = load_config(
        recipe(), data_path=None, train_data_paths=many[:1500], valid_data_paths=["b"]
    ).settings
    assert read_recipe(put("config.yml", write_yaml(kept))) == kept


def test_word_given_as_a_recipe_in_python():
    holds(refused("quickstart", "train_iters=3"), "train_iters=3", "no recipe", "in Python")
    holds(refused("book", train_data_paths="mine.txt", valid_data_paths=["b"]), "mine.txt")


# words of the command line

AS_TYPED = [
    "ROMEO:",
    "run #3",
    "my file # 2.txt",
    "0123",
    "1e5",
    "yes",
    "no",
    "null",
    "~",
    "true",
    "0x10",
    "1_000",
    "2001-01-01",
    "- a",
    "a: b",
    "[1, 2",
    "{x",
    "'quoted'",
    '"',
    "# 1",
    " spaces ",
    "a=b=c",
    "&x",
    "*x",
    "!!int 3",
    "%",
    "@",
    "`",
    "é ☃ 😀",
    "C:\\new",
    "---",
    "1:30",
    ".inf",
    "a\tb",
    "first\nsecond",
]


@pytest.mark.parametrize("key", TEXT_SETTINGS)
@pytest.mark.parametrize("typed", AS_TYPED)
def test_text_is_taken_as_typed(key, typed):
    meant = typed.replace("\\n", "\n") if key == "sample_prompt" else typed
    assert parse_override(f"{key}={typed}") == {key: meant}
    assert parse_override(f"{key.replace('_', '-')}={typed}") == {key: meant}


def test_new_lines_in_a_prompt():
    assert parse_override(r"sample_prompt=ROMEO:\nBut\n") == dict(sample_prompt="ROMEO:\nBut\n")
    assert parse_override(r"data_path=C:\new") == dict(data_path=r"C:\new")


def test_nothing_behind_the_sign():
    assert parse_override("vocab_file=") == dict(vocab_file=None) and parse_override(
        "data_path="
    ) == dict(data_path=None)
    assert parse_override("train_iters=") == dict(train_iters=None)
    assert parse_override("sample_prompt=") == dict(sample_prompt="")


@pytest.mark.parametrize(
    "word,parts",
    [
        ("seed=0123", ["seed", "'0123'", "no zeros before it: write 123"]),
        ("seed=-007", ["seed", "write -7"]),
        ("warmup=00.5x", ["warmup", "'00.5x'"]),
        ("seed=0x10", ["seed", "'0x10'", "int"]),
        ("seed=1:30", ["seed", "'1:30'", "int"]),
        ("seed=3 # 4", ["seed=3 # 4: only '3'", "quotes"]),
        ("seed=# 4", ["seed=# 4: there is no value", "quotes"]),
        ("seed=1\ntrain_iters: 3", ["not YAML"]),
        ("seed=!!int 3x", ["seed=!!int 3x", "not an integer"]),
        ("seed=!!python/object:os.system x", ["tag", "no place"]),
        ("comment=run #3", ["comment=run #3: only 'run'"]),
        ("seed=--- 3", ["seed", "only '3'"]),
        ("=3", ["'=3'", "key is missing"]),
        ("optimizer..lr=3", ["key is missing"]),
        ("optimizer.=3", ["key is missing"]),
        ("seed=9223372036854775808", ["seed", "64 bits"]),
        ("seed=" + "9" * 5000, ["seed", "64 bits"]),
        ("seed=-1e999", ["seed", "finite"]),
        ("warmup=.nan", ["warmup", "finite"]),
        ("num_workers=.nan", ["num_workers", "finite"]),
        ("seed=true", ["seed", "True", "int"]),
        ("deterministic=1", ["deterministic", "bool"]),
        ("warmup=true", ["warmup", "float"]),
        ("train_data_paths=a.txt", ["train_data_paths", "list, such as [a.txt]"]),
        ("train_data_paths=[a.txt, [b]]", ["train_data_paths", "['b']"]),
        ("extra_save_iters=[1, true]", ["extra_save_iters", "True"]),
        ("extra_save_iters=[1.5]", ["extra_save_iters", "1.5"]),
        ("eval_iters=2001-01-01", ["eval_iters", "'2001-01-01'", "int"]),
        ("seed={a: 1}", ["seed", "dict", "int"]),
        ("precision=[fp16]", ["precision", "not available"]),
    ],
    ids=lambda x: str(x)[:40],
)
def test_word_that_is_no_value(word, parts, capsys):
    before = tree(".")
    line = refuses(train, [*FEW, word, "--checkpoint_dir", "run"], capsys, *parts)
    assert tree(".") == before and len(line) < 400


def test_text_on_the_command_line_reaches_the_run_and_can_be_resumed(capsys):
    "The file's name, the prompt and the names at W&B, and the same command again goes on"
    put("my file # 2.txt", "ROMEO: to be, or not to be: that is\n" * 60)
    command = [
        *FEW,
        "data_path=my file # 2.txt",
        r"sample_prompt=ROMEO:\nto",
        "wandb_run_name=1e5",
        "wandb_group=run #3",
        "comment='1e5'",
        "--checkpoint_dir",
        "run",
    ]
    train(command)
    kept = read_recipe(Path("run/config.yml"))
    assert (kept["data_path"], kept["sample_prompt"], kept["wandb_run_name"]) == (
        "my file # 2.txt",
        "ROMEO:\nto",
        "1e5",
    )
    assert (kept["wandb_group"], kept["comment"]) == ("run #3", "1e5")
    train(command)
    assert "run is complete" in capsys.readouterr().err
    train(["run/config.yml", "--checkpoint_dir", "run"])
    assert "run is complete" in capsys.readouterr().err


# text that is written and read again

TRAPS = [
    "1e5",
    "yes",
    "null",
    "~",
    "0x10",
    "1_000",
    "2001-01-01",
    " led",
    "trailed ",
    "a\nb",
    "\n",
    "\n\n",
    " \n ",
    "\t",
    "😀",
    "0123",
    "1:30",
    ".inf",
    ".nan",
    "true",
    "",
    "a: b",
    "a #b",
    "- a",
    "---",
    "...",
    "\x85",
    "\u2028",
    "\ufeff",
    "\x7f",
    "\udce9",
    "%x",
    "!x",
    "&x",
    "*x",
    "=",
    "<<",
    "0o17",
    "-",
    "?",
    "1.",
    "+1",
    "''",
    '"',
    "\\n",
    "e" * 2000,
    "word " * 400,
    "\r\n",
    "a\r",
    "| x",
    "> x",
    "\x1b[31m",
    "12345678901234567890123",
]
ANY_TEXT = st.text(
    st.characters(blacklist_characters="\0", blacklist_categories=()), max_size=30
) | st.sampled_from(TRAPS)


@pytest.mark.parametrize("text", TRAPS, ids=lambda t: repr(t)[:20])
def test_written_text_reads_back(text):
    for key in ("wandb_run_name", "comment", "any_key"):
        assert read_yaml(write_yaml({key: text, "last": 1}), "here") == {key: text, "last": 1}


@given(
    st.dictionaries(st.sampled_from([*TEXT_SETTINGS, "comment", "hostfile"]), ANY_TEXT),
    st.lists(ANY_TEXT, max_size=4),
)
def test_every_text_reads_back(texts, paths):
    "As a setting, in a list, in a block"
    given_settings = {**texts, "train_data_paths": paths, "wandb": dict(inner=list(texts.values()))}
    assert read_yaml(write_yaml(given_settings), "here") == given_settings


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)
def test_every_number_reads_back(whole, real, truth):
    back = read_yaml(write_yaml(dict(a=whole, b=real, c=truth, d=None, e=[whole, real])), "here")
    assert (
        back == dict(a=whole, b=real, c=truth, d=None, e=[whole, real])
        and type(back["b"]) is float
        and type(back["a"]) is int
    )


@given(ANY_TEXT)
@tries(max_examples=30)
def test_a_file_reads_back(text):
    "Through a file on the disk, line ends included"
    path = put("made.yml", write_yaml(dict(sample_prompt=text, seed=3)).encode("utf-8"))
    assert read_recipe(path) == dict(sample_prompt=text, seed=3)


@pytest.mark.parametrize(
    "written,text",
    [
        ("1e5", "1e5"),
        ("2026", "2026"),
        ("0123", "0123"),
        ("2001-01-01", "2001-01-01"),
        ("true", "true"),
        ("1.50", "1.50"),
        (".nan", ".nan"),
    ],
)
def test_text_without_quotes_in_a_file(written, text):
    "A setting that holds text takes the letters as they stand; null and nothing mean not given"
    assert read_yaml(f"wandb_run_name: {written}", "here") == dict(wandb_run_name=text)
    assert read_yaml(f"train_data_paths: [{written}, b]", "here") == dict(
        train_data_paths=[text, "b"]
    )
    for empty in ("null", "~", ""):
        assert read_yaml(f"wandb_run_name: {empty}", "here") == dict(wandb_run_name=None)


# another text, another tokenizer


def tokenizer_of(*recipes, **overrides):
    return load_config(*recipes, **overrides).train.vocab_file


def layers(*new, start="quickstart"):
    "Settings of a recipe and of further layers, each {settings} from its own file"
    for number, settings in enumerate(new):
        put(f"layer{number}.yml", yaml.safe_dump(settings))
    return load_config(start, *[f"layer{number}.yml" for number in range(len(new))]).train


OWN = "tokenizer/characters/tokenizer.json"


@pytest.mark.parametrize("start", ["quickstart", "shakespeare_cpu", "shakespeare_config"])
def test_another_text_makes_its_own_tokenizer(start, capsys):
    "In every recipe; one line says so; the recipe's own text keeps the recipe's tokenizer"
    assert (
        tokenizer_of(start) == OWN
        and tokenizer_of(start, data_path=load_config(start).train.data_path) == OWN
    )
    assert tokenizer_of(start, data_path="mine.txt", vocab_file="mine.json") == "mine.json"
    assert "vocab_file" not in capsys.readouterr().err
    assert tokenizer_of(start, data_path=Path("mine.txt")) is None
    said = [line for line in capsys.readouterr().err.splitlines() if "vocab_file" in line]
    assert len(said) == 1
    holds(said[0], OWN, "belongs to", "mine.txt gets a tokenizer of its own")
    assert (
        tokenizer_of(start, data_path=None, train_data_paths=["a.txt"], valid_data_paths=["b.txt"])
        is None
    )


def test_the_last_file_that_names_both_wins():
    text, both, alone = (
        dict(data_path="b.txt"),
        dict(data_path="c.txt", vocab_file="c.json"),
        dict(vocab_file="t.json"),
    )
    assert layers(text).vocab_file is None
    assert layers(both).vocab_file == "c.json"
    assert layers(text, both).vocab_file == "c.json"
    assert layers(both, text).vocab_file is None
    assert layers(both, dict(seed=3)).vocab_file == "c.json"
    assert layers(both, dict(data_path="c.txt")).vocab_file == "c.json"  # the same text
    assert layers(alone, text).vocab_file == "t.json"  # named by itself, for whatever text
    assert layers(text, alone).vocab_file == "t.json"
    assert layers(dict(train_data_paths=["a", "b"], valid_data_paths=["c"])).vocab_file is None
    assert layers(dict(vocab_file=None)).vocab_file is None


@pytest.mark.parametrize(
    "words",
    [
        ["data_path=mine.txt"],
        ["--data_path", "mine.txt"],
        ["train_data_paths=[mine.txt]", "valid_data_paths=[unseen.txt]"],
    ],
    ids=str,
)
def test_another_text_on_the_command_line(words, capsys):
    "A text with characters that the recipe's tokenizer lacks trains"
    put("mine.txt", "(Ça brûle) 1603 — niño\n" * 80)
    put("unseen.txt", "1603 — niño (Ça brûle)\n" * 80)
    train([*FEW, *words, "--checkpoint_dir", "run"])
    said = [line for line in capsys.readouterr().err.splitlines() if "vocab_file" in line]
    assert len(said) == 1
    holds(said[0], "mine.txt gets a tokenizer of its own", "(command line)")
    assert read_recipe(Path("run/config.yml"))["vocab_file"] is None
    from shakespeare_neox.engine.tokens import load_tokenizer

    tokenizer = load_tokenizer(Path("run/best"))
    assert tokenizer.decode(tokenizer.encode("(Ça brûle) — niño")) == "(Ça brûle) — niño"


def test_a_prepared_folder_brings_its_tokenizer():
    "Where the recipe's own would be another one, and refused"
    from shakespeare_neox.engine.tokens import load_tokenizer
    from shakespeare_neox.engine.tokens import neox_prepare_main as prepare
    from shakespeare_neox.engine.tokens import neox_tokenizer_main as tokenizer

    put("mine.txt", "(Ça brûle) 1603 — niño\n" * 80)
    tokenizer(["mine.txt", "--out", "table"])
    prepare(["mine.txt", "--tokenizer_path", "table", "--out", "tokens"])
    train([*FEW, "--data_path", "tokens", "--checkpoint_dir", "run"])
    assert load_tokenizer(Path("run/best")).fingerprint == load_tokenizer(Path("table")).fingerprint


# settings given in Python


class Colour(str, Enum):
    RED = "red"


@pytest.mark.parametrize(
    "given_value,kept",
    [
        (dict(save=Path("runs/x")), "runs/x"),
        (dict(data_path=Path("a.txt")), "a.txt"),
        (dict(seed=np.int64(7)), 7),
        (dict(seed=torch.tensor(7)), 7),
        (dict(warmup=np.float32(0.5)), 0.5),
        (dict(warmup=np.float64(0.5)), 0.5),
        (dict(deterministic=np.bool_(False)), False),
        (dict(wandb_run_name=np.str_("x")), "x"),
        (dict(wandb_run_name=Colour.RED), "red"),
        (dict(warmup=1), 1.0),
        (dict(extra_save_iters=(1, np.int32(2))), [1, 2]),
        (dict(train_data_paths=[Path("a"), Path("b")], valid_data_paths=[Path("c")]), ["a", "b"]),
    ],
    ids=str,
)
def test_paths_and_numbers_of_other_libraries(given_value, kept):
    "Accepted, and kept as text and numbers that a file can hold, in the settings too"
    key = next(iter(given_value))
    opened = load_config(recipe(), **given_value)
    for value in (
        getattr(opened.train, key),
        getattr(TrainConfig(train_iters=4, train_micro_batch_size_per_gpu=2, **given_value), key),
    ):
        assert value == kept and type(value) is type(kept)
    assert opened.settings[key] == kept and (
        type(opened.settings[key]) is type(kept) or kept == 1.0
    )
    assert read_yaml(write_yaml(opened.settings), "here") == opened.settings


def test_numbers_of_other_libraries_in_blocks():
    opened = load_config(
        recipe(),
        optimizer=dict(type="Adam", params=dict(lr=np.float64(1e-3), betas=np.array([0.9, 0.5]))),
        hidden_size=np.int64(64),
    )
    assert (
        opened.train.rates["betas"] == [0.9, 0.5]
        and type(opened.train.rates["lr"]) is float
        and opened.model["hidden_size"] == 64
    )
    assert (
        type(
            ModelConfig(
                **{**MODEL, "hidden_size": np.int32(64)}, vocab_size=np.int64(5)
            ).hidden_size
        )
        is int
    )
    assert read_yaml(write_yaml(opened.settings), "here") == opened.settings


@pytest.mark.parametrize(
    "overrides,parts",
    [
        (dict(seed=10**30), ["seed", "64"]),
        (dict(seed=10**6000), ["seed", "bits"]),
        (dict(num_workers=2**70), ["num_workers", "64"]),
        (dict(warmup=float("nan")), ["warmup", "finite"]),
        (dict(num_workers=float("inf")), ["num_workers", "finite"]),
        (dict(zero_optimization=dict(stage=float("nan"))), ["zero_optimization.stage", "finite"]),
        (dict(tensorboard={1, 2}), ["tensorboard", "set"]),
        (dict(comment=b"x"), ["comment", "bytes"]),
        (dict(save=["a"]), ["save", "list", "str"]),
        (dict(save="a\0b"), ["save", "zero byte"]),
        (dict(save=""), ["save", "empty"]),
        (dict(wandb={1: 2}), ["wandb", "key 1"]),
        (dict(seed=None), ["seed", "None"]),
        (dict(seed=object()), ["seed", "object"]),
        (dict(seed="x" * 10**6), ["seed", "characters"]),
        (dict(hidden_size=True), ["hidden_size", "bool"]),
        (dict(optimizer=[1]), ["optimizer", "list", "dict"]),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_values_that_no_recipe_holds(overrides, parts):
    holds(refused(recipe(), **overrides), *parts)


def test_settings_stay_as_they_were_given():
    "Nothing that is given is changed, and two calls give equal, separate results"
    overrides = dict(
        optimizer=dict(type="Adam", params=dict(lr=1e-3)),
        extra_save_iters=[1],
        curriculum_learning=copy.deepcopy(CURRICULUM),
    )
    before = copy.deepcopy(overrides)
    first, second = (load_config(recipe(), **overrides) for _ in range(2))
    assert first == second and overrides == before
    first.train.optimizer["params"]["lr"] = 5.0
    first.train.rates["betas"].append(0.1)
    first.train.curriculum_learning["schedule_config"]["max_step"].append(3)
    first.train.extra_save_iters.append(7)
    assert overrides == before and first.settings == second.settings
    assert load_config(recipe(), **overrides) == second
    assert TrainConfig(train_iters=1, train_micro_batch_size_per_gpu=1).rates["betas"] == [
        0.9,
        0.999,
    ]


def test_sorting_does_not_change_merged_settings():
    name, merged = read_recipes("quickstart")
    merge(merged, dict(data_path="mine.txt"), where="command line")
    before = copy.deepcopy(merged)
    for _ in range(2):
        sort_settings(name, merged)
        assert merged == before and vars(merged) == vars(before)
    merged = dict(data_path="mine.txt", fit_to_text=True, pos_emb="rotary")
    before = copy.deepcopy(merged)
    open_recipe = sort_settings("x", merged)
    assert fit_to_text(open_recipe, 12_000).model["num_layers"] == 2
    assert merged == before and open_recipe.settings == before
    assert open_recipe.model == dict(pos_emb="rotary")


def test_training_does_not_change_a_recipe():
    opened = load_config(recipe(save="run", train_batch_size=4))
    opened.train.train_iters, opened.train.train_epochs = None, 1
    before = copy.deepcopy(opened)
    run = make_run(opened)
    assert run.plan.n_steps > 1 and run.plan.passes == 2
    assert opened == before


# files that are no recipes

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi")
)
NOT_RECIPES = dict(
    laughs=(LAUGHS, "more than 10,000 values"),
    cycle=("wandb: &x [*x]\n", "line 1", "nested more than 20 deep"),
    cycle_of_blocks=("wandb: &x {y: *x}\n", "nested more than 20 deep"),
    deep=("wandb: " + "[" * 5000 + "]" * 5000, "nested too deep"),
    deep_blocks=("".join(" " * i + "a:\n" for i in range(400)), "nested"),
    deep_40=("wandb: " + "[" * 40 + "]" * 40, "nested more than 20"),
    two=("seed: 1\n---\nseed: 2\n", "line 2", "second document"),
    alias=("seed: *x\n", "line 1", "x"),
    tag_int=("seed: !!int maybe\n", "line 1", "'maybe' is not an integer"),
    tag_float=("warmup: !!float x\n", "line 1", "not a number"),
    tag_bool=("use_wandb: !!bool perhaps\n", "not true or false"),
    tag_null=("save: !!null x\n", "not null"),
    tag_python=("seed: !!python/object/apply:os.getcwd []\n", "line 1", "tag", "python"),
    tag_name=("seed: !!python/name:os.system\n", "tag"),
    tag_binary=("save: !!binary aGVsbG8=\n", "tag", "binary"),
    tag_set=("seed: !!set {a, b}\n", "tag", "set"),
    tag_omap=("seed: !!omap [a: 1]\n", "tag", "omap"),
    tag_date=("seed: !!timestamp 2001-01-01\n", "tag", "timestamp"),
    tag_own=("seed: !mine 3\n", "tag", "!mine"),
    large=("seed: 9223372036854775808\n", "line 1", "64 bits"),
    small=("num_layers: -9223372036854775809\n", "64 bits"),
    huge=("seed: " + "9" * 5000 + "\n", "64 bits"),
    in_block=("optimizer:\n  params:\n    lr: 99999999999999999999\n", "line 3", "64 bits"),
    ignored=("num_workers: 99999999999999999999\n", "64 bits"),
    nan=("num_workers: .nan\n", "line 1", "finite"),
    inf=("zero_optimization:\n  stage: -.inf\n", "line 2", "finite"),
    overflow=("warmup: 1e999\n", "finite"),
    number_key=("1: 2\n", "line 1", "key '1' is not text"),
    null_key=("seed: 1\n~: 2\n", "line 2", "not text"),
    list_key=("? [a]\n: 2\n", "not text"),
    truth_key=("true: 2\n", "not text"),
    merged=("a: &a {b: 1}\nwandb:\n  <<: *a\n", "line 3", "<<"),
    dotted=("optimizer.params.lr: 1\n", "line 1: optimizer.params.lr", "indent"),
    escape=('save: "\\UFFFFFFFF"\n', "not YAML"),
    list=("- a\n", "holds a list"),
    word=("hello\n", "holds a str"),
    empty=("", "is empty"),
    comment=("# nothing\n", "is empty"),
    control=("seed: 1\nsave: \x07\n", "line 2", "U+0007"),
    utf16=("seed: 1\n".encode("utf-16"), "UTF-16"),
    utf16_bare=("seed: 1\n".encode("utf-16-le"), "UTF-16"),
    utf32=("seed: 1\n".encode("utf-32"), "UTF-32"),
    latin1=("seed: 1\n# Café\n".encode("latin1"), "line 2", "not UTF-8", "0xe9"),
    binary=(b"seed: 1\n\0\0", "binary"),
    big=("# " + "x" * 200_000, "larger than 100,000 bytes"),
)


@pytest.mark.parametrize("kind", NOT_RECIPES)
def test_file_that_is_no_recipe(kind):
    content, *parts = NOT_RECIPES[kind]
    holds(refused(put("my.yml", content)), "my.yml", *parts)


@pytest.mark.parametrize("kind", ["laughs", "deep", "tag_python", "utf16", "control"])
def test_file_that_is_no_recipe_for_the_command(kind, capsys):
    path = put("my.yml", NOT_RECIPES[kind][0])
    refuses(train, [path], capsys, "my.yml", NOT_RECIPES[kind][-1])


def test_dense_recipes_are_read_or_refused_in_time():
    "As much as may stand in a file, of the slowest kinds"
    for content in (
        "wandb: [" + "1," * 49_000 + "1]",
        "wandb: {" + ",".join(f"k{i}: 1" for i in range(10_000)) + "}",
        "".join(f"a{i}: {{b: 1}}\n" for i in range(5000)),
        "x" * 99_000,
    ):
        start = time.process_time()
        with pytest.raises(NeoxError):
            load_config(put("my.yml", content))
        assert time.process_time() - start < 20


@given(st.text(st.sampled_from("ab1: \n-[]{}&*!|>'\"%#,?~=<.\\xU0é\t"), max_size=60))
def test_any_text_is_settings_or_one_line(text):
    try:
        read = read_yaml(text, "here")
    except NeoxError as e:
        assert "\n" not in str(e) and str(e).startswith("here")
    else:
        assert isinstance(read, dict) and read_yaml(write_yaml(read), "here") == read


def test_utf8_with_a_mark_and_windows_line_ends():
    path = put("my.yml", b"\xef\xbb\xbf" + yaml.safe_dump(WHOLE).replace("\n", "\r\n").encode())
    assert load_config(path).settings == WHOLE


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_folder_and_device():
    os.mkfifo("pipe.yml")
    Path("folder.yml").mkdir()
    os.symlink("/dev/zero", "zero.yml")
    os.symlink("nowhere", "lost.yml")
    for name in ("pipe.yml", "folder.yml", "zero.yml"):
        holds(refused(name), name, "not a file")
    holds(refused("lost.yml"), "lost.yml", "no such recipe")
    holds(refused("x" * 5000 + ".yml"), "no such recipe")
    put("my_recipe", "seed: 1\n")
    holds(refused("my_recipe"), "my_recipe", "ends in .yml")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_file_that_may_not_be_read():
    os.chmod(recipe(), 0)
    holds(refused("my.yml"), "my.yml", "could not be read", "ermission")


# sizes that nobody has


@pytest.mark.parametrize(
    "sizes",
    [
        dict(num_layers=10**5),
        dict(num_layers=10**18),
        dict(seq_length=10**9),
        dict(max_position_embeddings=10**9),
        dict(max_position_embeddings=10**18),
        dict(hidden_size=10**12),
        dict(hidden_size=2**60, num_attention_heads=2**30),
        dict(intermediate_size=10**13),
        dict(make_vocab_size_divisible_by=10**12),
        dict(model_parallel_size=10**12),
        dict(padded_vocab_size=10**12),
        dict(num_attention_heads=10**9, hidden_size=10**9),
        dict(rotary_emb_base=10**18, hidden_size=10**11),
    ],
    ids=str,
)
def test_sizes_that_nobody_has(sizes, capsys):
    "Refused within a second, before anything is allocated, with the setting's name"
    path = (
        recipe(
            max_position_embeddings=sizes.get("seq_length", 32),
            **{k: v for k, v in sizes.items() if k != "max_position_embeddings"},
        )
        if "max_position_embeddings" not in sizes
        else recipe(**sizes)
    )
    start, before = time.process_time(), tree(".")
    line = refuses(train, [path, "--checkpoint_dir", "run"], capsys)
    assert any(key in line for key in (*sizes, "intermediate_size")), line
    assert time.process_time() - start < 2 and tree(".") == before


@pytest.mark.parametrize(
    "word",
    [
        "train_micro_batch_size_per_gpu=1000000000000",
        "train_iters=9000000000",
        "sample_tokens=1000000000",
        "eval_iters=5000000000",
        "extra_save_iters=[5000000000]",
        "average_steps=9000000000",
    ],
)
def test_counts_that_nobody_has(word, capsys):
    refuses(train, [*FEW, word, "--checkpoint_dir", "run"], capsys, word.split("=")[0])
    assert not Path("run").exists()


# where a wrong setting stands


def test_where_a_wrong_setting_stands(capsys):
    path = recipe()
    put("second.yml", "seed: 3\n\n# a comment\nhidden_size: 33\n")
    holds(refused(path, "second.yml"), "second.yml, line 4: hidden_size 33")
    holds(refused(path, "second.yml", seed=-1, hidden_size=32), "seed: -1")
    assert not refused(path, "second.yml", hidden_size=35).startswith("second.yml")
    refuses(
        train,
        [path, "second.yml", "hidden-size=35"],
        capsys,
        "command line: hidden_size 35",
        steps=True,
    )
    os.makedirs("other")
    put("other/my.yml", "warmup: 7\n")
    holds(refused(path, "other/my.yml"), "other/my.yml, line 1: warmup: 7.0")
    holds(refused(path, put("typo.yml", "sed: 4\n")), "typo.yml, line 1: sed: unknown key", "seed")
    holds(refused(path, put("old.yml", "n_layer: 4\n")), "old.yml, line 1: n_layer", "num_layers")
    holds(
        refused(path, put("more.yml", "\npipe-parallel-size: 2\n")),
        "more.yml, line 2: pipe_parallel_size",
        "cannot apply",
    )
    holds(
        refused(path, put("none.yml", "data_path:\ntrain_iters:\n")),
        "none.yml, line 2: train_iters is not given",
    )


def test_names_are_shown_safely():
    "What a terminal would obey is shown as text, and long values are cut off"
    holds(refused(recipe('"\\e[31mred": 1\n')), r"\x1b[31mred", "unknown key")
    holds(refused(recipe("x" * 900 + ": 1\n")), "unknown key", "characters")
    holds(refused(recipe(f"precision: {'x' * 3000}\n")), "characters", "not available")
    holds(refused(recipe(f"optimizer: {{type: {'x' * 3000}}}\n")), "characters", "not available")


def test_override_is_told_in_one_line(capsys):
    settings = dict(sample_prompt="\n")
    merge(settings, dict(sample_prompt="a\nb"), where="here")
    assert settings == dict(sample_prompt="a\nb")
    assert capsys.readouterr().err == "here overrides sample_prompt '\\n' -> 'a\\nb'\n"


# numbers and names that would not mean what they say


@pytest.mark.parametrize(
    "key,word",
    [
        ("optimizer.params.lr", "1e-400"),
        ("weight_decay", "0.0001e-400"),
        ("init_method_std", "1.5e-4000"),
        ("min_lr", ".1e-999"),
    ],
)
def test_a_number_that_would_become_zero(key, word, capsys):
    block = "\n".join(f"{'  ' * depth}{name}:" for depth, name in enumerate(key.split(".")))
    holds(refused(recipe(f"{block} {word}\n")), "my.yml, line ", word, "too small and would be 0")
    refuses(
        train,
        [*FEW, f"{key}={word}", "--checkpoint_dir", "run"],
        capsys,
        word,
        "too small and would be 0",
    )
    for zero in ("0.0", "0e5", "0.000e-400"):
        assert read_yaml(f"a: {zero}", "here") == dict(a=0.0)


@pytest.mark.parametrize("key", ["hidden_dropout", "attention_dropout"])
@pytest.mark.parametrize("value", [1, 1.0])
def test_dropout_of_everything(key, value):
    holds(
        refused(recipe(**{key: value})), "my.yml, line 9: ", f"{key}: {value} would drop everything"
    )
    holds(refused(recipe(), **{key: value}), f"{key}: {value} would drop everything")
    load_config(recipe(**{key: 0.99}))


@pytest.mark.parametrize(
    "key",
    [
        "hidden_dropout ",
        " hidden_dropout",
        "num_layers\t",
        "save to",
        "hidden_dropout :",
        "train-iters ",
    ],
)
def test_a_key_with_blanks_is_blamed_on_its_own_place(key):
    "Not on the line of the key that it resembles"
    put("second.yml", f"seed: 1\n{json.dumps(key)}: 0.1\n")
    line = refused("quickstart", "second.yml")
    holds(line, "second.yml, line 2: ", repr(key))
    assert "quickstart.yml" not in line
    line = refused("quickstart", **{key: 0.1})
    assert "quickstart.yml" not in line and "unknown key" in line, line


def test_more_layers_than_can_be_trained(capsys):
    start = time.process_time()
    refuses(train, [*FEW, "num_layers=20000", "--dry_run"], capsys, "num_layers", "1,000")
    assert time.process_time() - start < 30  # minutes, once
    holds(refused(recipe(num_layers=1001)), "my.yml, line 1: num_layers: 1001")
    assert load_config(recipe(num_layers=1000)).model["num_layers"] == 1000


def test_home_in_a_path(monkeypatch, here, capsys):
    "Behind a = a shell leaves ~ alone"
    monkeypatch.setenv("HOME", str(here / "home"))
    put("home/x.txt", "It was a dark and stormy night.\n" * 200)
    opened = load_config(recipe(), data_path="~/x.txt", vocab_file="~/t.json", save="~/run")
    assert (
        opened.train.data_path == f"{here}/home/x.txt" and opened.settings["data_path"] == "~/x.txt"
    )  # published without a user's name
    assert (opened.train.vocab_file, opened.train.save) == (
        f"{here}/home/t.json",
        f"{here}/home/run",
    )
    opened = load_config(
        recipe(data_path=None), train_data_paths=["~/x.txt", "y~/z"], valid_data_paths=["~/v.txt"]
    )
    assert opened.train.train_data_paths == [
        f"{here}/home/x.txt",
        "y~/z",
    ] and opened.train.valid_data_paths == [f"{here}/home/v.txt"]
    for words in (
        [*FEW, "data_path=~/x.txt", "--checkpoint_dir=~/run"],
        ["~/run/config.yml", "--checkpoint_dir=~/run"],
    ):
        train(words)
    assert (
        sorted(p.name for p in here.iterdir()) == ["home", "my.yml"]
        and (here / "home" / "run" / "best").is_dir()
    )
    fitted = load_config("book", data_path="~/x.txt")
    assert make_run(fitted).plan.n_steps == 300


def test_home_in_a_flag(monkeypatch, here):
    from shakespeare_neox.engine.tokens import neox_tokenizer_main

    monkeypatch.setenv("HOME", str(here / "home"))
    put("home/x.txt", "It was a dark and stormy night.\n" * 200)
    neox_tokenizer_main(["~/x.txt", "--out=~/tok"])
    assert (here / "home" / "tok" / "tokenizer.json").is_file() and not (here / "~").exists()


@pytest.mark.parametrize("prompt", ["[x]", "ü"])
def test_advice_for_a_sample_prompt(prompt, capsys):
    "neox_train has no --lossy"
    put("x.txt", "It was a dark and stormy night.\n" * 200)
    line = refuses(
        train,
        [*FEW, "data_path=x.txt", f"sample_prompt={prompt}", "--checkpoint_dir", "run"],
        capsys,
        "sample_prompt: ",
    )
    assert line.endswith("; give another one: sample_prompt=...") and "lossy" not in line


# the recipes that ship, and the page of keys


@pytest.mark.parametrize("path", sorted(assets("configs").rglob("[!.]*.yml")), ids=lambda p: p.stem)
def test_shipped_recipe(path, capsys):
    "It opens, alone or on shakespeare_cpu and fast, and no setting of it is ignored"
    own = read_recipe(path)
    base = (
        []
        if "num_layers" in own or own.get("fit_to_text")
        else ["shakespeare_cpu", *["fast"] * (path.stem != "fast")]
    )
    opened = load_config(*base, path.stem)
    if own.get("fit_to_text"):
        opened = fit_to_text(opened, 1_000_000)
    assert "ignored" not in capsys.readouterr().err
    for key, value in own.items():
        assert opened.settings[key] == value or isinstance(value, dict), key
    assert opened.model_config(65).padded_vocab_size >= 65
    again = load_config(*base, str(path))
    assert fit_to_text(again, 1_000_000).settings == opened.settings
    assert read_yaml(write_yaml(opened.settings), "here") == opened.settings


def test_every_setting_stands_in_the_page_of_keys():
    rows = recipe_keys()
    names = {f.name for shape in (ModelConfig, TrainConfig) for f in dataclasses.fields(shape)} - {
        "vocab_size",
        "padded_vocab_size",
    }
    within = {
        "fp16.enabled",
        "fp16.type",
        "bf16.enabled",
        "optimizer.type",
        "optimizer.params",
        "curriculum_learning.enabled",
        "curriculum_learning.curriculum_type",
        "curriculum_learning.schedule_type",
        "curriculum_learning.min_difficulty",
        "curriculum_learning.max_difficulty",
        "curriculum_learning.schedule_config",
        "curriculum_learning.schedule_config.difficulty",
        "curriculum_learning.schedule_config.max_step",
    }
    assert {key for key, row in rows.items() if row["status"] in ("kept", "ours")} == names | within
    assert {key for key, row in rows.items() if row["status"] == "ours"} == set(OWN_KEYS)
    assert all(row["meaning"] for row in rows.values())
    assert (
        rows["fp16.type"]["choices"] == ["fp16", "bfloat16"]
        and rows["fp16.loss_scale"]["status"] == "ignored"
    )
