"""Model folders that others wrote, damaged or replaced at this moment: what is right is read, the
rest is named in one line"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import refuses, tree
from safetensors.torch import load_file, save_file

from shakespeare_neox.engine import checkpoints
from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.checkpoints import (
    fetch_model,
    find_checkpoint,
    find_folder,
    open_checkpoint,
    pack,
    shipped,
)
from shakespeare_neox.engine.device import training_bytes
from shakespeare_neox.engine.run import neox_train_main
from shakespeare_neox.engine.serve import generate, neox_generate_main
from shakespeare_neox.engine.tokens import load_tokenizer
from shakespeare_neox.engine.vocab import train_tokenizer
from shakespeare_neox.model import GPT, Attention, ModelConfig, count_parameters

pytestmark = pytest.mark.usefixtures("here")
SIZES = dict(
    num_layers=2,
    hidden_size=16,
    num_attention_heads=2,
    seq_length=16,
    vocab_size=50,
    no_weight_tying=True,
    pos_emb="rotary",
)
LLAMA = dict(
    norm="rmsnorm", activation="swiglu", use_bias_in_attn_linear=False, use_bias_in_mlp=False
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
IDS = torch.tensor([[3, 1, 4, 1, 5]])


def make(seed=0, **settings):
    "A random model, every parameter of it"
    model, generator = (
        GPT(ModelConfig(**{**SIZES, **settings})).eval(),
        torch.Generator().manual_seed(seed),
    )
    for p in model.parameters():
        p.data.normal_(std=0.3, generator=generator)
    return model


def constant(token, **settings):
    "A model whose most likely token is always the same"
    model = make(**settings)
    model.final_norm.weight.data.zero_()
    model.final_norm.bias.data.fill_(1)
    model.head.weight.data.zero_()
    model.head.weight.data[token] = 1
    return model


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.fixture
def folder():
    "A model in the folder m"
    make().save_pretrained("m")
    return Path("m")


def weights(folder, change=None, file=WEIGHTS):
    "Reads the weights of a folder, changes them and writes them back"
    found = load_file(folder / file)
    if change:
        found = change(found) or found
    save_file(
        {k: v.clone().contiguous() for k, v in found.items()},
        folder / file,
        metadata={"format": "pt"},
    )
    return found


def edit(folder, **changes):
    "Changes keys of config.json; None removes one"
    path = folder / "config.json"
    hf = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in hf.items() if v is not None}))


def one_line(error):
    "The message of a NeoxError, which must be one line of reasonable length"
    text = str(error.value)
    assert "\n" not in text and len(text) < 400, text
    return text


def is_refused(folder, *parts, seconds=2.0):
    "Asserts that a folder is refused at once, in one line that holds the parts"
    start = time.process_time()
    with pytest.raises(NeoxError) as error:
        GPT.from_pretrained(folder)
    assert time.process_time() - start < seconds
    text = one_line(error)
    assert all(part in text for part in parts), (parts, text)


# A: what is not ours, or not asked for, is not replaced


def test_another_model_is_not_replaced(folder):
    before, other = tree(folder), make(seed=1)
    with pytest.raises(NeoxError, match="older one of this kind") as error:
        other.save_pretrained(folder)
    one_line(error)
    assert tree(folder) == before
    other.save_pretrained(folder, replace=True)
    assert same(GPT.from_pretrained(folder), other)


@pytest.mark.parametrize("made_by", ["transformers", "a person"])
def test_a_folder_of_others_is_never_replaced(made_by):
    Path("x").mkdir()
    if made_by == "a person":
        Path("x/notes.md").write_text("mine")
    else:
        Path("x/config.json").write_text("{}")
        Path("x/model.safetensors").write_bytes(b"w")
    before = tree("x")
    for replace in (False, True):
        with pytest.raises(NeoxError, match="not made by this library"):
            make().save_pretrained("x", replace=replace)
    assert tree("x") == before


def test_a_persons_file_beside_a_model_stays(folder):
    (folder / "notes.md").write_text("mine")
    make(seed=1).save_pretrained(folder, replace=True)
    assert (folder / "notes.md").read_text() == "mine" and same(
        GPT.from_pretrained(folder), make(seed=1)
    )


@pytest.mark.skipif(os.name == "nt", reason="needs file modes")
@pytest.mark.parametrize("umask,mode", [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_others_may_read_what_the_umask_allows(umask, mode):
    before = os.umask(umask)
    try:
        make().save_pretrained("m", train_tokenizer("abc\n"))
    finally:
        os.umask(before)
    files = [p for p in Path("m").iterdir()]
    assert len(files) >= 5 and {oct(p.stat().st_mode & 0o777) for p in files} == {oct(mode)}


# B: who reads changes nothing, and finds the old or the new model

WRITER = """
import sys
from pathlib import Path
import torch
from shakespeare_neox.model import GPT, ModelConfig
from shakespeare_neox.engine.vocab import train_tokenizer
shape = dict(num_layers=2, hidden_size=16, num_attention_heads=2, seq_length=16, vocab_size=6)
models, n = [], 0
for value in (1.0, 2.0):
    models.append(GPT(ModelConfig(**shape)))
    for p in models[-1].parameters():
        p.data.fill_(value)
tokenizer = train_tokenizer("abc\\n")
while not Path("stop").exists():
    models[n % 2].save_pretrained("run/best", tokenizer, replace=True)
    n += 1
    Path("saved").write_text(str(n))
"""


def test_reading_while_a_run_saves():
    """Read again and again while another process replaces the model without a pause: always one of
    the two, whole"""
    writer = subprocess.Popen([sys.executable, "-c", WRITER], stderr=subprocess.PIPE, text=True)
    try:
        while not Path("saved").exists() and writer.poll() is None:
            time.sleep(0.05)
        seen, end, saved = [], time.monotonic() + 4, int(Path("saved").read_text() or 0)
        while time.monotonic() < end:
            model, tokenizer = open_checkpoint("run")
            values = {float(v) for p in model.state_dict().values() for v in p.unique()}
            assert len(values) == 1 and tokenizer.vocab_size == 6, values
            seen += values
    finally:
        Path("stop").touch()
        error = writer.communicate(timeout=60)[1]
    assert writer.returncode == 0, error  # the run was not disturbed
    assert (
        int(Path("saved").read_text()) > saved + 20 and len(seen) > 20 and set(seen) == {1.0, 2.0}
    ), (saved, len(seen))


def test_between_the_two_renames(folder, capsys):
    "Where only the copy set aside is there, it is read where it lies"
    make(vocab_size=6, seed=3).save_pretrained("run/best", train_tokenizer("abc\n"))
    os.rename("run/best", "run/.best.neox-previous")
    before = tree("run")
    assert same(open_checkpoint("run")[0], make(vocab_size=6, seed=3)) and same(
        GPT.from_pretrained("run/best"), make(vocab_size=6, seed=3)
    )
    assert tree("run") == before


# 9: which files are read


@pytest.mark.parametrize(
    "stray",
    [
        "model-copy.safetensors",
        "model-00001-of-00002.safetensors",
        "model.old.safetensors",
        "z.safetensors",
    ],
)
def test_stray_files_are_not_read(stray, folder):
    right = GPT.from_pretrained(folder)
    shutil.copy(folder / WEIGHTS, folder / stray)
    weights(folder, lambda w: {k: v + 1 for k, v in w.items()}, stray)
    assert same(GPT.from_pretrained(folder), right)


@pytest.fixture
def shards(folder):
    "The same model in two files with an index"
    found, names = load_file(folder / WEIGHTS), {}
    for number, part in enumerate([list(found)[::2], list(found)[1::2]], 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({k: found[k] for k in part}, folder / name, metadata={"format": "pt"})
        names.update(dict.fromkeys(part, name))
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps(dict(metadata=dict(total_size=1), weight_map=names)))
    return folder


def reindex(folder, change):
    "Changes the map of an index"
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_shards_of_an_index(shards):
    assert same(GPT.from_pretrained(shards), make())
    stale = {k: v + 1 for k, v in load_file(shards / "model-00001-of-00002.safetensors").items()}
    save_file(stale, shards / "model-00001-of-00003.safetensors")
    assert same(GPT.from_pretrained(shards), make())


@pytest.mark.parametrize(
    "damage,parts",
    [
        (
            lambda p: (p / "model-00002-of-00002.safetensors").unlink(),
            ["model-00002-of-00002.safetensors", "missing"],
        ),
        (
            lambda p: os.truncate(p / "model-00002-of-00002.safetensors", 400),
            ["model-00002-of-00002.safetensors", "cut off"],
        ),
        (
            lambda p: reindex(
                p, lambda m: {**m, "gpt_neox.embed_in.weight": "../other.safetensors"}
            ),
            [INDEX, "../other.safetensors"],
        ),
        (
            lambda p: reindex(
                p, lambda m: {**m, "gpt_neox.embed_in.weight": "/etc/other.safetensors"}
            ),
            [INDEX, "/etc/other.safetensors"],
        ),
        (
            lambda p: reindex(p, lambda m: {**m, "gpt_neox.embed_in.weight": "a\\b.safetensors"}),
            [INDEX, "b.safetensors"],
        ),
        (
            lambda p: reindex(p, lambda m: {**m, "gpt_neox.embed_in.weight": "pytorch_model.bin"}),
            [INDEX, "pytorch_model.bin"],
        ),
        (
            lambda p: reindex(p, lambda m: {k: v for k, v in m.items() if "embed_in" not in k}),
            ["gpt_neox.embed_in.weight", "index"],
        ),
        (
            lambda p: reindex(p, lambda m: {**m, "more": "model-00001-of-00002.safetensors"}),
            ["more"],
        ),
        (lambda p: reindex(p, lambda m: [1]), [INDEX, "weight_map"]),
        (lambda p: (p / INDEX).write_text("{"), [INDEX, "JSON"]),
        (
            lambda p: shutil.copy(p / "model-00001-of-00002.safetensors", p / WEIGHTS),
            [WEIGHTS, "index of other files"],
        ),
    ],
    ids=[
        "missing",
        "cut",
        "parent",
        "absolute",
        "backslash",
        "pickle",
        "unlisted",
        "listed only",
        "map a list",
        "no JSON",
        "both",
    ],
)
def test_index_that_does_not_fit(damage, parts, shards):
    shutil.copy(shards / "model-00001-of-00002.safetensors", "other.safetensors")
    damage(shards)
    is_refused(shards, *parts)


@pytest.mark.parametrize(
    "prefix,parts",
    [("_orig_mod.", ["_orig_mod.", "compiled"]), ("module.", ["module.", "several devices"])],
)
def test_names_of_wrapped_models(prefix, parts, folder):
    weights(folder, lambda w: {prefix + k: v for k, v in w.items()})
    is_refused(folder, *parts)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.pth", "ckpt.pt"]
)
def test_pickles_are_named(name, folder):
    (folder / WEIGHTS).rename(folder / name)
    is_refused(folder, name, "pickle", "safetensors")


HEAD, NORM = "embed_out.weight", "gpt_neox.final_layer_norm.weight"


@pytest.mark.parametrize(
    "change,parts",
    [
        (lambda w: {k: v for k, v in w.items() if k != NORM}, [NORM, "missing"]),
        (
            lambda w: {k: v for k, v in w.items() if k != HEAD},
            [HEAD, "missing", "tie_word_embeddings"],
        ),
        (
            lambda w: {**w, "gpt_neox.more.weight": w[NORM]},
            ["gpt_neox.more.weight", "no weight of such a model"],
        ),
        (
            lambda w: {**w, "gpt_neox.layers.2.input_layernorm.weight": w[NORM]},
            ["2 layers", "hold 3"],
        ),
        (lambda w: {**w, NORM: w[NORM][:-1]}, [NORM, "(15,)", "(16,)"]),
        (lambda w: {**w, NORM: torch.zeros(0)}, [NORM, "(0,)"]),
        (lambda w: {**w, NORM: w[NORM][None]}, [NORM, "(1, 16)"]),
        *[
            (lambda w, kind=kind: {**w, NORM: w[NORM].abs().to(kind)}, [NORM, name])
            for kind, name in {
                torch.int64: "I64",
                torch.int8: "I8",
                torch.uint8: "U8",
                torch.bool: "BOOL",
                torch.complex64: "C64",
                torch.float8_e4m3fn: "F8_E4M3",
            }.items()
        ],
        (lambda w: {**w, NORM: torch.full((16,), math.nan)}, [NORM, "NaN"]),
        (lambda w: {**w, NORM: torch.tensor([math.inf, -math.inf] * 8)}, [NORM, "infinite"]),
        (
            lambda w: {**w, HEAD: w[HEAD].index_fill(0, torch.tensor([7]), math.inf)},
            [HEAD, "infinite"],
        ),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_weights_that_do_not_fit_are_named(change, parts, folder):
    weights(folder, change)
    is_refused(folder, *parts)


def test_large_weights_are_numbers(folder):
    "A sum beyond single precision is no fault of the weights"
    weights(folder, lambda w: {**w, HEAD: torch.full_like(w[HEAD], 3e38)})
    assert GPT.from_pretrained(folder).head.weight.max() == torch.tensor(3e38)


@pytest.mark.parametrize("size", [0, 7, 8, 200, -1])
def test_truncated_weights(size, folder):
    os.truncate(folder / WEIGHTS, size if size >= 0 else (folder / WEIGHTS).stat().st_size - 1)
    is_refused(folder, WEIGHTS, "cut off")


def test_header_that_lies(folder):
    "A header that claims 2**40 bytes"
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((2**40).to_bytes(8, "little") + content[8:])
    is_refused(folder, WEIGHTS)


# 12: tied or not


def test_tied_with_an_equal_head_is_opened():
    make(no_weight_tying=False).save_pretrained("m")
    folder = Path("m")
    weights(folder, lambda w: {**w, HEAD: w["gpt_neox.embed_in.weight"].clone()})
    model = GPT.from_pretrained(folder)
    assert same(model, make(no_weight_tying=False)) and not hasattr(model, "head")


@pytest.mark.parametrize("name", [HEAD, "lm_head.weight"])
def test_tied_with_another_head_is_refused(name):
    make(no_weight_tying=False).save_pretrained("m")
    weights(Path("m"), lambda w: {**w, name: w["gpt_neox.embed_in.weight"] + 1})
    is_refused("m", "tie_word_embeddings", HEAD)


def test_untied_by_transformers_5s_name(folder):
    weights(folder, lambda w: {"lm_head.weight" if k == HEAD else k: v for k, v in w.items()})
    assert same(GPT.from_pretrained(folder), make())


# 28 and 29: config.json

TERA = 12 * 10**12
CONFIGS = [
    (dict(num_hidden_layers=10**5), ["num_hidden_layers"]),
    (dict(num_hidden_layers=1001), ["num_hidden_layers", "1000"]),
    (dict(num_hidden_layers=1000), ["1,000 layers", "hold 2"]),
    (dict(max_position_embeddings=10**9), ["1,000,000,000 positions", "GB"]),
    (dict(hidden_size=1_500_000), ["do not fit"]),
    (dict(vocab_size=10**9, unpadded_vocab_size=10**9), ["do not fit"]),
    (dict(intermediate_size=10**9), ["do not fit"]),
    (dict(hidden_size=TERA), ["hidden_size"]),
    (dict(vocab_size=2**70), ["vocab_size"]),
    (dict(num_attention_heads=10**30), ["num_attention_heads"]),
    (dict(hidden_size="16"), ["hidden_size", "'16'"]),
    (dict(hidden_size=16.5), ["hidden_size"]),
    (dict(hidden_size=True), ["hidden_size"]),
    (dict(hidden_size=[16]), ["hidden_size"]),
    (dict(hidden_size=0), ["hidden_size"]),
    (dict(num_hidden_layers=-1), ["num_hidden_layers"]),
    (dict(vocab_size=None), ["vocab_size", "required"]),
    (dict(hidden_size=None), ["hidden_size", "required"]),
    (dict(intermediate_size=None), ["intermediate_size", "required"]),
    (dict(rotary_pct="all"), ["rotary_pct"]),
    (dict(rotary_pct=2.0, rope_parameters=None), ["rotary_pct"]),
    (dict(rope_parameters=[1]), ["rope_parameters"]),
    (dict(rope_parameters=dict(rope_theta="x")), ["rope_theta"]),
    (dict(rope_parameters=dict(rope_theta=10000.5)), ["10000.5"]),
    (dict(rope_parameters=dict(rope_theta=-1)), ["rope_theta"]),
    (dict(layer_norm_eps=0), ["layer_norm_eps"]),
    (dict(use_parallel_residual="false"), ["use_parallel_residual"]),
    (dict(tie_word_embeddings=1), ["tie_word_embeddings"]),
    (dict(hidden_dropout=1.5), ["hidden_dropout"]),
    (dict(hidden_act=7), ["hidden_act"]),
    (dict(num_attention_heads=3), ["num_attention_heads"]),
    (dict(unpadded_vocab_size=0), ["unpadded_vocab_size"]),
    (dict(seq_length=17), ["seq_length"]),
    (dict(model_type=["gpt_neox"]), ["model_type"]),
]


@pytest.mark.parametrize(
    "changes,parts", CONFIGS, ids=lambda v: str(v)[:50] if isinstance(v, dict) else ""
)
def test_config_is_held_to_its_shape(changes, parts, folder):
    edit(folder, **changes)
    is_refused(folder, "config.json", *parts)


@pytest.mark.parametrize(
    "text,parts",
    [
        ("{", "JSON"),
        ("[]", ""),
        ("7", ""),
        ("null", ""),
        ('{"hidden_size": 16, "hidden_size": 32}', "twice"),
        ("[" * 100_000 + "]" * 100_000, "nested"),
        ('{"model_type": "gpt_neox", "hidden_size": NaN}', "config.json"),
        ("\xff", "JSON"),
    ],
)
def test_config_that_is_none(text, parts, folder):
    (folder / "config.json").write_text(text, encoding="latin1")
    is_refused(folder, "config.json", parts)


@pytest.mark.parametrize(
    "text", ['{"eos_token_id": "x"}', '{"eos_token_id": [0, 1.5]}', '{"pad_token_id": true}', "{"]
)
def test_generation_config_is_held_to_its_shape(text, folder):
    (folder / "generation_config.json").write_text(text)
    is_refused(folder, "generation_config.json")


OLD_TRANSFORMERS = version("transformers").startswith("4.")
PLAIN = dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=1.0)


@pytest.mark.parametrize(
    "scaling,parameters",
    [
        (dict(rope_type="default", rope_theta=77.0), PLAIN),
        (dict(rope_type="default", partial_rotary_factor=0.5), PLAIN),
        ({}, PLAIN | dict(rope_theta=77.0)),
        (None, PLAIN | dict(rope_theta=77.0)),
        (dict(type="default"), PLAIN | dict(rope_theta=77.0)),
        (dict(rope_theta=77.0), None),
    ],
    ids=str,
)
@pytest.mark.skipif(OLD_TRANSFORMERS, reason="transformers 4 reads rope_scaling alone")
@torch.no_grad()
def test_rotary_settings_given_twice(scaling, parameters, folder):
    "rope_scaling counts before rope_parameters, as in transformers"
    from transformers import AutoModelForCausalLM

    path = folder / "config.json"
    path.write_text(
        json.dumps(
            {**json.loads(path.read_text()), "rope_scaling": scaling, "rope_parameters": parameters}
        )
    )
    theirs, ours = (
        AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits,
        GPT.from_pretrained(folder)(IDS),
    )
    assert (theirs - ours).abs().max() < 1e-5
    named = (scaling or {}) if scaling else parameters
    if named.get("rope_theta") == 77:
        assert (make()(IDS) - ours).abs().max() > 1e-3


@pytest.mark.parametrize(
    "scaling",
    [
        dict(type="linear", factor=2.0),
        dict(rope_type="linear", factor=4.0),
        dict(type="dynamic", factor=2.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("parameters", [PLAIN, None], ids=["both", "alone"])
def test_rotary_scaling_is_refused(scaling, parameters, folder):
    path = folder / "config.json"
    path.write_text(
        json.dumps(
            {**json.loads(path.read_text()), "rope_scaling": scaling, "rope_parameters": parameters}
        )
    )
    is_refused(folder, "config.json", "scaling", scaling.get("type") or scaling["rope_type"])


@pytest.mark.parametrize(
    "stored,factor,dtype,advice",
    [
        (torch.float64, 1e300, torch.float32, "torch.float64"),
        (torch.float32, 1e7, torch.float16, "torch.float32"),
        (torch.bfloat16, 1e7, torch.float16, "torch.bfloat16"),
    ],
    ids=str,
)
def test_weights_too_large_for_the_type_that_is_asked_for(stored, factor, dtype, advice, folder):
    weights(
        folder,
        lambda w: {
            k: (v.double() * (factor if k == "embed_out.weight" else 1)).to(stored)
            for k, v in w.items()
        },
    )
    with pytest.raises(
        NeoxError, match="embed_out.weight holds .*too large for " + str(dtype)
    ) as error:
        GPT.from_pretrained(folder, dtype=dtype)
    assert advice in one_line(error)
    assert all(
        p.isfinite().all() for p in GPT.from_pretrained(folder, dtype=torch.float64).parameters()
    )


@torch.no_grad()
def test_a_tied_matrix_under_its_other_name():
    "embed_out alone, as transformers opens it too; one that is missing under both names is refused"
    from transformers import AutoModelForCausalLM

    make(no_weight_tying=False).save_pretrained("m")
    weights(
        Path("m"), lambda w: {k.replace("gpt_neox.embed_in", "embed_out"): v for k, v in w.items()}
    )
    ours = GPT.from_pretrained("m")
    assert same(ours, make(no_weight_tying=False))
    if not OLD_TRANSFORMERS:  # which leaves the matrix without numbers
        theirs = AutoModelForCausalLM.from_pretrained("m").eval()
        assert (theirs(IDS).logits - ours(IDS)).abs().max() < 1e-5
    weights(Path("m"), lambda w: {k: v for k, v in w.items() if k != "embed_out.weight"})
    is_refused(Path("m"), "embed_in.weight is missing")
    make().save_pretrained("two")
    weights(Path("two"), lambda w: {k: v for k, v in w.items() if "embed_in" not in k})
    is_refused(Path("two"), "embed_in.weight is missing")


@pytest.mark.parametrize(
    "change,parts",
    [
        (dict(hidden_act="mish"), ["mish"]),
        (dict(hidden_act="quick_gelu"), ["quick_gelu"]),
        (dict(rope_parameters=PLAIN | dict(partial_rotary_factor=0.0)), ["rotary_pct"]),
        (dict(rope_parameters=None, rotary_pct=0.0), ["rotary_pct"]),
    ],
    ids=str,
)
def test_what_is_not_available_is_named(change, parts, folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    is_refused(folder, "config.json", *parts)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
@pytest.mark.parametrize("file", [WEIGHTS, INDEX, "config.json", "generation_config.json"])
def test_files_that_are_none(file, kind, folder):
    "Nothing waits for a writer, or reads without end"
    (folder / file).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(folder / file)
    elif kind == "device":
        os.symlink("/dev/zero", folder / file)
    else:
        (folder / file).mkdir()
    is_refused(folder, file, "not a")


def drop_privileges(dropped=True):
    "Takes root's right to read every file from this thread, or gives it back"
    import ctypes

    libc, header, data = (
        ctypes.CDLL(None, use_errno=True),
        (ctypes.c_uint32 * 2)(0x20080522, 0),
        (ctypes.c_uint32 * 6)(),
    )
    if libc.capget(header, data):
        pytest.skip("needs Linux")
    data[0] = data[0] & ~0b110 if dropped else data[0] | data[1] & 0b110
    if libc.capset(header, data):
        pytest.skip("needs capabilities")


@pytest.fixture
def as_everybody():
    "A user who may not read every file"
    if os.name == "nt" or sys.platform == "darwin" and os.geteuid() == 0:
        pytest.skip("needs file modes")
    if os.geteuid():
        yield
        return
    drop_privileges()
    yield
    drop_privileges(False)


@pytest.mark.parametrize(
    "closed",
    [
        "run",
        "run/best",
        "run/best/config.json",
        "run/best/model.safetensors",
        "run/best/tokenizer.json",
    ],
)
def test_what_may_not_be_read(closed, as_everybody, capsys):
    "The permission is named, and no advice to copy or train anything"
    make(vocab_size=6).save_pretrained("run/best", train_tokenizer("abc\n"))
    mode = os.stat(closed).st_mode
    os.chmod(closed, 0)
    try:
        line = refuses(
            neox_generate_main, ["run", "--prompt", "a"], capsys, closed, "Permission denied"
        )
        if closed != "run/best/tokenizer.json":
            with pytest.raises(NeoxError, match="Permission denied") as error:
                GPT.from_pretrained("run/best")
            line += one_line(error)
    finally:
        os.chmod(closed, mode)
    assert (
        "Errno" not in line
        and "copy" not in line
        and "train" not in line.replace("from_pretrained", "")
    )


def test_nothing_is_drawn_on_opening(folder):
    """The random state is as it was, and a large model is not filled with numbers that are thrown
    away"""
    before = torch.get_rng_state()
    GPT.from_pretrained(folder)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_precisions(dtype, folder):
    weights(folder, lambda w: {k: v.double() / 3 for k, v in w.items()})
    model = GPT.from_pretrained(folder, dtype=dtype)
    stored = load_file(folder / WEIGHTS)
    assert all(
        torch.equal(v, stored[k].to(dtype)) for k, v in checkpoints.packed(model, dtype).items()
    )


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, None, "float32"],
    ids=str,
)
def test_types_that_weights_cannot_be(dtype, folder):
    before = tree(folder)
    for act in (
        lambda: make(seed=1).save_pretrained(folder, dtype=dtype, replace=True),
        lambda: GPT.from_pretrained(folder, dtype=dtype),
    ):
        with pytest.raises(NeoxError, match="dtype"):
            act()
    assert tree(folder) == before


def test_weights_too_large_for_their_file():
    model = make()
    model.head.weight.data[3, 3] = 7e4
    with pytest.raises(NeoxError, match="embed_out.weight.*7e.04.*float16") as error:
        model.save_pretrained("m", dtype=torch.float16)
    assert one_line(error) and not Path("m").exists()
    model.save_pretrained("m", dtype=torch.bfloat16)


def test_count_parameters_is_arithmetic():
    start = time.process_time()
    deep = ModelConfig(**{**SIZES, "num_layers": 1000})
    assert (
        sum(count_parameters(deep).values())
        == 1000 * (12 * 16 * 16 + 13 * 16) + 2 * 16 + 2 * 128 * 16
    )
    assert training_bytes(deep, 1) > 16 * sum(count_parameters(deep).values())
    assert time.process_time() - start < 0.2
    for settings in (
        dict(),
        dict(no_weight_tying=False),
        dict(use_bias_in_attn_linear=False),
        dict(use_bias_in_mlp=False),
        dict(intermediate_size=7),
        dict(pos_emb="learned"),
        dict(use_bias_in_norms=False),
        LLAMA,
        LLAMA | dict(num_kv_heads=1, mlp_multiple_of=8),
    ):
        model = make(**settings)
        names = dict(
            position_embed="positions",
            embed="embedding",
            head="head",
            norm="norms",
            attention="attention",
            mlp="mlp",
        )
        by_hand = dict.fromkeys(["embedding", "positions", "attention", "mlp", "norms", "head"], 0)
        for name, p in model.named_parameters():
            by_hand[next(part for key, part in names.items() if key in name)] += p.numel()
        assert count_parameters(model.config) == by_hand


@pytest.mark.parametrize(
    "word,part",
    [
        ("num_layers=100000", "num_layers"),
        ("num_layers=20000", "num_layers"),
        ("num_layers=1001", "num_layers"),
        ("max_position_embeddings=1000000000", "GB"),
        ("hidden_size=100000000", "GB"),
        (f"hidden_size={10**20}", "hidden_size"),
        (f"vocab_size={2**64}", "vocab_size"),
        (f"num_layers={10**400}", "num_layers"),
        ("max_position_embeddings=0", "max_position_embeddings"),
        ("intermediate_size=-4", "intermediate_size"),
        (f"rotary_emb_base={10**40}", "rotary_emb_base"),
        (f"init_method_std={10**400}", "init_method_std"),
        ("make_vocab_size_divisible_by=5000000000", "vocab_size"),
        (f"padded_vocab_size={10**12}", "padded_vocab_size"),
    ],
    ids=lambda w: w[:40],
)
def test_training_refuses_absurd_sizes_at_once(word, part, capsys):
    start = time.process_time()
    with pytest.raises(SystemExit) as stopped:
        neox_train_main(
            [
                "quickstart",
                "hidden_size=1024",
                "num_attention_heads=2",
                word,
                "--checkpoint_dir",
                "run",
            ]
        )
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("neox_train")]
    assert (
        stopped.value.code == 2
        and len(lines) == 1
        and part in lines[0]
        and time.process_time() - start < 5
    ), lines
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "word", ["pos_emb=none", "activation=swiglu", "num_kv_heads=2", "norm=rmsnorm"]
)
def test_training_refuses_what_could_not_be_saved(word, capsys):
    refuses(
        neox_train_main,
        ["quickstart", word, "--checkpoint_dir", "run"],
        capsys,
        word.split("=")[0],
        "cannot be saved",
        "takes",
    )
    assert not Path("run").exists()


# 10: special ids are the tokenizer's


def gpt2_like():
    """A byte-level tokenizer as GPT-2's: ! is id 0, the end of text the last one, and there is no
    padding"""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    from shakespeare_neox.engine.tokens import adopt

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    assert backend.token_to_id("!") == 0 and backend.token_to_id("<|endoftext|>") == 256
    return adopt(backend)


@pytest.mark.parametrize("token,n_new", [(0, 6), (256, 1)], ids=["!", "end of text"])
def test_transformers_stops_where_we_stop(token, n_new):
    from transformers import AutoModelForCausalLM

    tokenizer, model = gpt2_like(), constant(token, vocab_size=257)
    model.save_pretrained("m", tokenizer)
    hf = AutoModelForCausalLM.from_pretrained("m").eval()
    assert hf.generation_config.eos_token_id == hf.config.eos_token_id == 256
    out = hf.generate(
        IDS,
        do_sample=False,
        max_new_tokens=6,
        attention_mask=torch.ones_like(IDS),
        pad_token_id=256,
    )
    assert out[0, 5:].tolist() == [token] * n_new
    ours, again = open_checkpoint("m")
    assert generate(ours, again, "Hm", max_new_tokens=6, temperature=0) == (
        "!" * 6 if token == 0 else ""
    )
    assert (
        generate(ours, again, ["Hm", "O"], max_new_tokens=6, temperature=0)
        == ["!" * 6 if token == 0 else ""] * 2
    )


def test_special_ids_in_each_file():
    make(vocab_size=257).save_pretrained("m", gpt2_like())
    make(vocab_size=6).save_pretrained("chars", train_tokenizer("abc\n"))
    for name in ("config.json", "generation_config.json"):
        theirs, ours = (json.loads(Path(folder, name).read_text()) for folder in ("m", "chars"))
        assert (theirs["eos_token_id"], theirs["pad_token_id"]) == (256, None), name
        assert (ours["eos_token_id"], ours["pad_token_id"]) == (0, 1), name


def test_without_a_tokenizer_nothing_is_invented(folder):
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(folder).eval()
    for config in (hf.config, hf.generation_config):
        assert [config.bos_token_id, config.eos_token_id, config.pad_token_id] == [None] * 3
    with torch.no_grad():
        assert (hf(IDS).logits - make()(IDS)).abs().max() < 1e-4


def test_special_ids_are_kept_through_us(folder):
    "Opened and saved without a tokenizer: what the folder says stays"
    (folder / "generation_config.json").write_text(
        json.dumps(dict(eos_token_id=[7, 9], bos_token_id=7))
    )
    GPT.from_pretrained(folder).save_pretrained("again")
    assert {
        k: v
        for k, v in json.loads(Path("again/generation_config.json").read_text()).items()
        if k != "suppress_tokens"
    } == dict(eos_token_id=[7, 9], bos_token_id=7, pad_token_id=1) | dict(pad_token_id=None)


@pytest.mark.parametrize(
    "eos,stops", [([0, 1], True), (1, True), ([0, 5], False), (0, False), (None, False)], ids=str
)
def test_several_ends_of_text(eos, stops):
    """An end that generation_config.json names ends a text: a special token leaves nothing, a
    letter itself, as in transformers"""
    tokenizer = train_tokenizer("abc\n")
    for token, ends in ((1, stops), (5, eos == [0, 5])):
        shutil.rmtree("m", ignore_errors=True)
        constant(token, vocab_size=6).save_pretrained("m", tokenizer)
        path = Path("m/generation_config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": eos}))
        model, again = open_checkpoint("m")
        drawn = generate(model, again, ["a", "b"], max_new_tokens=4, temperature=0)
        assert drawn == [generate(model, again, "a", max_new_tokens=4, temperature=0)] * 2
        if token == 5:
            assert drawn == ["c" if ends else "c" * 4] * 2
        from shakespeare_neox.engine.serve import complete

        assert [
            text.n_ids for _, text in complete(model, again, [[3]], max_new_tokens=4, temperature=0)
        ] == [1 if ends else 4]


@pytest.mark.parametrize("eos", [5, [0, 5], [5, 4]], ids=str)
def test_a_letter_that_ends_a_text(eos):
    """The same text as from transformers, piece by piece and together; it ends so too once it is
    saved again"""
    from transformers import AutoModelForCausalLM

    tokenizer, path = train_tokenizer("abc\n"), Path("m/generation_config.json")
    make(vocab_size=6, seed=3).save_pretrained("m", tokenizer)
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": eos}))
    model, again = open_checkpoint("m")
    model.save_pretrained("again", again)
    hf, saved = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in ("m", "again"))
    stopped = 0
    for prompt in ("a", "b", "c", "ab", "ba", "\n"):
        ids = torch.tensor([again.encode(prompt)])
        theirs = [
            m.generate(
                ids,
                do_sample=False,
                max_new_tokens=8,
                attention_mask=torch.ones_like(ids),
                pad_token_id=1,
            )[0].tolist()
            for m in (hf, saved)
        ]
        right = again.decode(theirs[0])[len(prompt) :]
        assert (
            generate(model, again, prompt, max_new_tokens=8, temperature=0)
            == generate(model, again, [prompt], max_new_tokens=8, temperature=0)[0]
            == right
        )
        assert (
            generate(*open_checkpoint("again"), prompt, max_new_tokens=8, temperature=0)
            == again.decode(theirs[1])[len(prompt) :]
            == right
        )
        stopped += len(theirs[0]) < ids.shape[1] + 8
    assert stopped


def test_generation_settings_are_kept(folder):
    "A list of ends, and how to write: with a tokenizer and without, once and again"
    from transformers import GenerationConfig

    said = dict(
        eos_token_id=[0, 1],
        repetition_penalty=1.3,
        temperature=0.5,
        do_sample=True,
        suppress_tokens=[4],
        top_k=7,
    )
    make(vocab_size=6).save_pretrained("m2", train_tokenizer("abc\n"))
    Path("m2/generation_config.json").write_text(
        json.dumps(said | dict(transformers_version="4.0.0"))
    )
    model, tokenizer = open_checkpoint("m2")
    model.save_pretrained("with", tokenizer)
    model.save_pretrained("without")
    open_checkpoint("with")[0].save_pretrained("twice", tokenizer)
    for name in ("with", "without", "twice"):
        kept = json.loads(Path(name, "generation_config.json").read_text())
        assert {key: kept.get(key) for key in said} == said | dict(
            suppress_tokens=[4, *range(6, 128)]
        ), name
        assert json.loads(Path(name, "config.json").read_text())["eos_token_id"] == [0, 1]
        read = GenerationConfig.from_pretrained(name)
        assert (read.eos_token_id, read.repetition_penalty, read.do_sample, read.top_k) == (
            [0, 1],
            1.3,
            True,
            7,
        )


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("eos", [-1, 128, 10**9, 10**30, [0, -1], [3, 10**9]], ids=str)
def test_an_end_that_is_no_id(file, eos, folder):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": eos}))
    is_refused(folder, file, "eos_token_id", "128 rows")


# 11: a vocabulary that grew elsewhere


@pytest.mark.parametrize("resized", [True, False], ids=["resized", "within the padding"])
def test_a_token_added_in_transformers_can_be_written(resized):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make(vocab_size=6).save_pretrained("m", train_tokenizer("abc\n"))
    hf, auto = AutoModelForCausalLM.from_pretrained("m"), AutoTokenizer.from_pretrained("m")
    assert auto.add_tokens(["<new>"]) == 1
    new = auto.convert_tokens_to_ids("<new>")
    if resized:
        hf.resize_token_embeddings(len(auto))
    head = hf.get_output_embeddings().weight.data
    hf.gpt_neox.final_layer_norm.weight.data.zero_()
    hf.gpt_neox.final_layer_norm.bias.data.fill_(1)
    head.zero_()
    head[new] = 1
    hf.save_pretrained("grown")
    auto.save_pretrained("grown")
    model, tokenizer = open_checkpoint("grown")
    assert (new, tokenizer.vocab_size) == (6, 7) and generate(
        model, tokenizer, "a", max_new_tokens=3, temperature=0
    ) == "<new>" * 3
    assert (
        generate(model, tokenizer, ["a", "b"], max_new_tokens=3, temperature=0) == ["<new>" * 3] * 2
    )
    hf.generation_config.suppress_tokens = (
        None  # transformers writes it once the list of padded ids is gone,
    )
    assert (
        hf.eval()
        .generate(
            torch.tensor([[3]]), do_sample=False, max_new_tokens=3, attention_mask=torch.ones(1, 1)
        )[0, 1:]
        .tolist()
        == [6] * 3
    )
    model.save_pretrained("again", tokenizer)  # which saving it here does
    theirs = AutoModelForCausalLM.from_pretrained("again").eval()
    assert (
        theirs.generate(
            torch.tensor([[3]]), do_sample=False, max_new_tokens=3, attention_mask=torch.ones(1, 1)
        )[0, 1:].tolist()
        == [6] * 3
    )
    assert 6 not in (theirs.generation_config.suppress_tokens or [])


def test_tokenizer_larger_than_the_embedding(capsys):
    larger = train_tokenizer("".join(map(chr, range(97, 97 + 60))))
    make(vocab_size=6, make_vocab_size_divisible_by=1).save_pretrained(
        "m", train_tokenizer("abc\n")
    )
    model = GPT.from_pretrained("m")
    with pytest.raises(NeoxError, match="62 tokens.*6 rows") as error:
        generate(model, larger, "a")
    one_line(error)
    with pytest.raises(NeoxError, match="62 tokens.*6 rows"):
        model.save_pretrained("other", larger)
    assert not Path("other").exists()
    larger.backend.save("m/tokenizer.json")
    refuses(neox_generate_main, ["m", "--prompt", "a"], capsys, "m: ", "62 tokens", "6 rows")


# 16: no global is read, masks may be numbers


def test_newer_precision_setting_of_torch():
    code = (
        "import torch; torch.backends.cuda.matmul.fp32_precision = 'tf32'; "
        "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'\n"
        "from shakespeare_neox.engine.checkpoints import shipped; from shakespeare_neox.model "
        "import GPT\n"
        "print(GPT.from_pretrained(shipped())(torch.tensor([[5]])).shape[-1])"
    )
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("an older torch")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "80\n", done.stderr


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_attention_does_not_depend_on_a_global(precision):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert Attention(ModelConfig(**SIZES)).kernel.onednn is False
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    "kind", [torch.int64, torch.int32, torch.uint8, torch.float32, torch.float16], ids=str
)
@torch.no_grad()
def test_masks_of_numbers(kind):
    model, ids = make(), torch.tensor([[0, 0, 3, 1, 4], [5, 6, 7, 8, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    assert torch.equal(model(ids, mask=mask.to(kind)), model(ids, mask=mask.bool()))
    assert not torch.allclose(model(ids, mask=mask.to(kind))[0, 2:], model(ids)[0, 2:], atol=1e-3)
    torch.testing.assert_close(model(ids, mask=mask.to(kind))[:1, 2:], model(ids[:1, 2:]))


@pytest.mark.parametrize(
    "mask,part",
    [
        (torch.ones(2, 4), "(2, 4)"),
        (torch.ones(5), "(5,)"),
        (torch.ones(2, 1, 1, 5), "(2, 1, 1, 5)"),
        (torch.ones(1, 5), "(1, 5)"),
        (torch.full((2, 5), 2), "other numbers"),
        (torch.full((2, 5), -1e9), "other numbers"),
        (torch.full((2, 5), math.nan), "other numbers"),
    ],
    ids=str,
)
def test_masks_that_do_not_fit(mask, part):
    with pytest.raises(NeoxError, match="mask") as error:
        make()(torch.ones(2, 5, dtype=torch.long), mask=mask)
    assert part in one_line(error)


# 25: what is asked of the hub


@pytest.fixture
def hub(monkeypatch):
    "What would be fetched from the hub"
    import huggingface_hub

    asked = []

    def fetch(name, **kwargs):
        asked.append(name)
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return asked


@pytest.mark.parametrize(
    "name",
    [
        "runs/x",
        "runs/x/best",
        "./owner/name",
        "../name",
        "~/name",
        "/owner/name",
        "name",
        "a/b/c",
        "models/x",
        "a/..",
        "../..",
        "owner/na me",
        "owner\\name",
        "",
        "owner/",
        "/",
    ],
    ids=repr,
)
def test_folders_are_not_asked_of_the_hub(name, hub):
    Path("models").mkdir()
    with pytest.raises(NeoxError, match="no such folder|no config.json|root of all") as error:
        GPT.from_pretrained(find_checkpoint(name) if name else name)
    one_line(error)
    assert hub == []


@pytest.mark.parametrize(
    "name,fetched",
    [
        ("hf:owner/name", "owner/name"),
        ("owner/name", "owner/name"),
        ("hf:runs/x", "runs/x"),
        ("hf:models/x", "models/x"),
    ],
)
def test_what_is_asked_of_the_hub(name, fetched, hub):
    Path("models").mkdir()
    with pytest.raises(NeoxError, match="hub") as error:
        find_folder(name)
    assert hub == [fetched] and one_line(error).startswith(name)


@pytest.mark.parametrize(
    "name",
    ["hf:../x", "hf:x", "hf:a/b/c", "hf:/a/b", "hf:", "hf:a/../b", "hf:~/x", "hf:a/..", "hf:a b/c"],
)
def test_names_that_no_hub_has(name, hub):
    with pytest.raises(NeoxError, match="hf:OWNER/NAME") as error:
        find_folder(name)
    assert hub == [] and one_line(error)


def test_a_folder_comes_before_the_hub(hub):
    make().save_pretrained("owner/name")
    assert same(GPT.from_pretrained("owner/name"), make()) and hub == []


# models by name: packed, fetched, verified


@pytest.fixture
def lent(monkeypatch, tmp_path):
    "A model packed, and a manifest that names it; each download is counted"
    make(vocab_size=6).save_pretrained("m", train_tokenizer("abc\n"))
    entry, counted = pack("m", "packed.zip", "http://localhost/x.zip"), []

    def download(url, path, sha256):
        counted.append(url)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(lent["file"], path)
        return path

    lent = dict(entry=entry, file="packed.zip", counted=counted)
    monkeypatch.setenv("NEOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoints, "download", download)
    monkeypatch.setattr(
        checkpoints, "manifest", lambda: {"lent": checkpoints.ManifestEntry(**lent["entry"])}
    )
    return lent


def test_fetched_once(lent):
    folder = fetch_model("lent")
    assert (
        same(GPT.from_pretrained(folder), make(vocab_size=6))
        and fetch_model("lent") == folder
        and len(lent["counted"]) == 1
    )
    assert load_tokenizer(folder).encode("cab") == [5, 3, 4]


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / WEIGHTS).write_bytes(b"<html>"),
        lambda f: os.truncate(f / WEIGHTS, 100),
        lambda f: (f / WEIGHTS).unlink(),
        lambda f: (f / "config.json").unlink(),
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1] + b"\x01"),
        lambda f: (f / "sums.json").write_text("{"),
        lambda f: (f / "sums.json").unlink(),
    ],
    ids=["html", "cut", "no weights", "no config", "one byte", "sums damaged", "no sums"],
)
def test_damaged_copy_is_fetched_again(damage, lent, capsys):
    damage(fetch_model("lent"))
    assert same(GPT.from_pretrained(fetch_model("lent")), make(vocab_size=6))
    assert len(lent["counted"]) == 2 and "damaged" in capsys.readouterr().err


def zipped(names, content=b"x", kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile("evil.zip", "w", kind) as z:
        for name in names:
            z.writestr(zipfile.ZipInfo(name), content, compress_type=kind)


@pytest.mark.parametrize(
    "names",
    [
        ["../evil"],
        ["/tmp/evil"],
        ["a/../../evil"],
        ["..\\evil"],
        ["C:evil"],
        ["a/b"],
        [".hidden"],
        ["config.json", "config.json"],
    ],
    ids=str,
)
def test_archive_with_names_that_lead_elsewhere(names, lent, tmp_path):
    zipped(names)
    lent["file"] = "evil.zip"
    before = sorted(p for p in tmp_path.rglob("*") if "cache" not in p.parts)
    with pytest.raises(NeoxError, match="not unpacked") as error:
        fetch_model("lent")
    one_line(error)
    assert sorted(p for p in tmp_path.rglob("*") if "cache" not in p.parts) == before
    assert [p for p in (tmp_path / "cache/models").iterdir() if p.is_dir()] == []


def test_archive_that_grows(lent, tmp_path):
    zipped(["model.safetensors"], bytes(10**8), zipfile.ZIP_DEFLATED)
    lent["file"] = "evil.zip"
    start = time.process_time()
    with pytest.raises(NeoxError, match="100,000,000 bytes"):
        fetch_model("lent")
    assert (
        time.process_time() - start < 1
        and [p for p in (tmp_path / "cache/models").iterdir() if p.is_dir()] == []
    )


def test_not_an_archive(lent):
    Path("evil.zip").write_text("<html>")
    lent["file"] = "evil.zip"
    with pytest.raises(NeoxError, match="not a .zip"):
        fetch_model("lent")


def test_pack_replaces_nothing(lent):
    Path("precious.zip").write_text("mine")
    with pytest.raises(NeoxError, match="precious.zip"):
        pack("m", "precious.zip", "")
    assert Path("precious.zip").read_text() == "mine"
    assert pack("m", "deep/other.zip", "")["sha256"] == lent["entry"]["sha256"]
    assert ".shakespeare_neox.json" not in zipfile.ZipFile("deep/other.zip").namelist()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"x": {"url": "u"}}',
        '{"x": {"url": "u", "bytes": 0, "sha256": "%s"}}' % ("0" * 64),
        '{"x": {"url": "u", "bytes": 5, "sha256": "short"}}',
    ],
)
def test_damaged_manifest(content, monkeypatch):
    Path("models").mkdir()
    Path("models/manifest.json").write_text(content)
    monkeypatch.setattr(checkpoints, "assets", lambda kind: Path("."))
    with pytest.raises(NeoxError, match="manifest.json") as error:
        checkpoints.manifest()
    one_line(error)


def test_the_bundled_model_to_the_last_bit():
    packed, stored = (
        checkpoints.packed(GPT.from_pretrained(shipped()), torch.float32),
        load_file(shipped() / WEIGHTS),
    )
    assert packed.keys() == stored.keys() and all(
        torch.equal(packed[name], weight.float()) for name, weight in stored.items()
    )
