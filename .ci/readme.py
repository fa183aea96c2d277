"Writes README.md and nbs/index_files/ from nbs/index.ipynb: python .ci/readme.py"

import json
import re
import shutil
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.process import NBProcessor, read_nb
from nbdev.processors import FilterDefaults

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from nbs/index.ipynb by .ci/readme.py: edit the notebook. -->\n\n"


def render(path: Path) -> tuple:
    "Markdown of a notebook after nbdev's processors, without its code, and its figures"
    nb = read_nb(path)
    title = "".join(nb.cells[0].source)
    procs = [
        p for p in FilterDefaults().procs() if p.__name__ not in ("add_links", "insert_warning")
    ]
    NBProcessor(nb=nb, procs=procs).process()
    kept = nbformat.reads(
        json.dumps({**nb, "cells": [c for c in nb.cells if c.cell_type != "raw"]}, default=dict),
        as_version=4,
    )
    text, extra = MarkdownExporter(exclude_input=True).from_notebook_node(kept)
    figures = {name: data for name, data in extra["outputs"].items() if name in text}
    for name in figures:
        text = text.replace(f"]({name})", f"](nbs/index_files/{name})").replace(
            "![png]", "![loss curve and sample text]"
        )
    text = re.sub(r"\]\((?!\w+:)([\w/]+\.ipynb)\)", r"](nbs/\1)", text)
    return NOTE + title + "\n\n" + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", figures


if __name__ == "__main__":
    text, figures = render(ROOT / get_config().nbs_path.name / "index.ipynb")
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    pictures = ROOT / get_config().nbs_path.name / "index_files"
    shutil.rmtree(pictures, ignore_errors=True)
    for name, data in figures.items():
        pictures.mkdir(exist_ok=True)
        (pictures / name).write_bytes(data)
