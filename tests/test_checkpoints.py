"""The model that comes with the package: opened by transformers, as good as its card says, and
heard without a network"""

import os
import re
import subprocess
import sys
from itertools import islice

import pytest
import torch

from shakespeare_neox.engine.checkpoints import SHIPPED, STORIES, shipped
from shakespeare_neox.engine.tokens import load_tokenizer
from shakespeare_neox.model import GPT

BUNDLED = pytest.mark.parametrize("name", [SHIPPED, STORIES])


@BUNDLED
def test_opens_in_transformers(name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "ROMEO:\nWhat light"
    theirs = AutoModelForCausalLM.from_pretrained(shipped(name), torch_dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(shipped(name))(text, return_tensors="pt").input_ids
    ours = GPT.from_pretrained(shipped(name))
    assert ids[0].tolist() == load_tokenizer(shipped(name)).encode(text)
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-4


@BUNDLED
def test_small_enough_for_the_package(name):
    assert sum(p.stat().st_size for p in shipped(name).iterdir()) < 4_000_000


def held_out(name):
    "The batches on which a bundled model was scored when it was made"
    from shakespeare_neox.engine.recipe import load_config
    from shakespeare_neox.engine.run import open_data

    if name == STORIES:
        pieces = str(shipped(STORIES) / "tokenizer.json")
        recipe = load_config("tinystories_2m", vocab_file=pieces, unigram_vocab_size=None)
    else:
        recipe = load_config("shakespeare_cpu")
    batches = open_data(recipe.train).files["valid"].scored_batches(8, 256)
    return list(islice(batches, recipe.train.eval_iters))


@pytest.mark.skipif(not os.environ.get("NEOX_DATA"), reason="needs NEOX_DATA")
@BUNDLED
def test_as_good_as_its_card_says(name):
    "fp16 costs nothing that shows; a model with one layer left out is far off"
    from shakespeare_neox.train import score

    card = (shipped(name) / "README.md").read_text(encoding="utf-8")
    said = float(re.search(r"lowest validation loss \| ([\d.]+)", card)[1])
    model, batches = GPT.from_pretrained(shipped(name)), held_out(name)
    assert abs(score(model, batches).loss - said) < 0.005
    del model.blocks[0]
    assert score(model, batches[:4]).loss > said + 0.3


def test_speaks_without_a_network(tmp_path):
    "In a process that may not open a connection, in an empty folder"
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\ndef no(*args): raise OSError('no network')\nsocket.socket.connect = "
        "socket.create_connection = no\n"
    )
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "NEOX_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hf"),
    }
    words = [
        sys.executable,
        "-c",
        "from shakespeare_neox.engine.serve import neox_generate_main as m; m()",
        "--prompt",
        "ROMEO:",
        "--max_new_tokens",
        "120",
    ]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.startswith("ROMEO:")
        and len(done.stdout) > 100
        and "the bundled model" in done.stderr
    )
    assert not list(tmp_path.glob("cache/*"))
