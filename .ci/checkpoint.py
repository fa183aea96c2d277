"""Makes the trained models that are published.
python .ci/checkpoint.py           those inside the package: data/models/shakespeare and stories
python .ci/checkpoint.py v0.1.0    the larger one beside a release:
                                   dist-model/shakespeare-large.zip, and its entry in
                                   data/models/manifest.json"""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from shakespeare_neox.engine.base import MARK
from shakespeare_neox.engine.checkpoints import SHIPPED, STORIES, pack
from shakespeare_neox.engine.report import model_card
from shakespeare_neox.engine.run import train
from shakespeare_neox.engine.tokens import load_tokenizer
from shakespeare_neox.model import GPT

ROOT = Path(__file__).resolve().parent.parent
OWNER = "shakespeare-neox"
RELEASES = "https://github.com/shakespeare-neox/shakespeare_neox/releases/download"
LONG = ("shakespeare_cpu", "fast", "long")
RECIPES = {
    SHIPPED: (LONG, {}),
    STORIES: (("tinystories_2m",), {}),
    f"{SHIPPED}-large": (
        LONG,
        dict(num_layers=6, hidden_size=320, num_attention_heads=10, hidden_dropout=0.2),
    ),
}  # name -> recipes, settings
TEXTS = {
    STORIES: " It read 3.5 MB of TinyStories: the first 2,316 stories of the first version and the "
    "first 1,727 of the second. The loss is that of the first 82,000 "
    "tokens of the first version's validation text, whose stories are easier than those behind "
    "them: over its first 0.8 MB it is 2.52 nats per token.",
}  # name -> what its card says of the text


def store(run: Path, name: str, folder: Path):
    """Stores the best model of a run in fp16, with a card that says how it was made and how well it
    scores"""
    recipes, settings = RECIPES[name]
    model, tokenizer = GPT.from_pretrained(run / "best"), load_tokenizer(run / "best")
    card = model_card(run, f"{OWNER}/{name}")
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, tokenizer, torch.float16)
    (folder / MARK).unlink()  # the folder is the repository's now
    command = (
        "It was made by `neox_train "
        f"{' '.join([*recipes, *(f'{k}={v}' for k, v in settings.items())])}`, and stored in "
        f"fp16 by `python .ci/checkpoint.py`.{TEXTS.get(name, '')}"
    )
    card = re.sub(r"## Loss\n\n.*\n\n", "", card)  # no plot beside it
    card = card.replace(f'model="{OWNER}/{name}"', 'model="path/of/this/folder"')
    card = card.replace(f"neox_generate {OWNER}/{name}", f"neox_generate {name}")
    (folder / "README.md").write_text(
        re.sub(r"(A .* language model\.)", rf"\1 {command}", card, count=1), encoding="utf-8"
    )


def make(name: str, folder: Path):
    "Trains a model and stores it"
    recipes, settings = RECIPES[name]
    with tempfile.TemporaryDirectory() as work:
        store(train(*recipes, **settings, save=f"{work}/{name}").folder, name, folder)


def release(tag: str, root: Path):
    "Makes the larger model, packs it, and lists it for the package of the same tag"
    (name,) = [n for n in RECIPES if n not in (SHIPPED, STORIES)]
    out = root / "dist-model"
    make(name, out / name)
    (out / f"{name}.zip").unlink(missing_ok=True)
    entry = pack(out / name, out / f"{name}.zip", f"{RELEASES}/{tag}/{name}.zip")
    (root / "data/models/manifest.json").write_text(
        json.dumps({name: entry}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    if len(sys.argv) == 1:
        for name in (SHIPPED, STORIES):
            make(name, ROOT / "data/models" / name)
    else:
        release(sys.argv[1], ROOT)
