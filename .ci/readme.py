"Writes README.md and nbs/index_files/ from nbs/index.ipynb: python .ci/readme.py"

import json
import re
import shutil
import sys
import textwrap
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.process import NBProcessor, read_nb
from nbdev.processors import FilterDefaults

sys.path.insert(0, str(Path(__file__).resolve().parent))
from figures import figure_alt

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from nbs/index.ipynb by .ci/readme.py: edit the notebook. -->\n\n"
BESIDE = re.compile(r"^ *\n(!\[[^\n]*\)) *\n\s*\n((?: {4}[^\n]*\n|\s*\n)+)", re.M)


def beside(match) -> str:
    "A figure and the text that was printed after it, in one row of a table"
    printed = textwrap.dedent(match[2]).strip("\n ")
    text = f"```text\n{printed}\n```"
    return f"<table><tr><td>\n\n{match[1]}\n\n</td><td>\n\n{text}\n\n</td></tr></table>\n\n"


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
        place = int(re.search(r"_(\d+)_\d+\.\w+$", name)[1])  # of its cell
        alt = figure_alt("".join(kept.cells[place].source))
        text = text.replace(f"![png]({name})", f"![{alt}](nbs/index_files/{name})")
    text = BESIDE.sub(beside, text, count=1)
    text = re.sub(r"\]\((?!\w+:)([\w/]+\.ipynb)\)", r"](nbs/\1)", text)
    text = re.sub(r"\]\((#[\w-]+)\)", lambda m: f"]({m[1].lower()})", text)  # GitHub's anchors
    return NOTE + title + "\n\n" + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", figures


if __name__ == "__main__":
    text, figures = render(ROOT / get_config().nbs_path.name / "index.ipynb")
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    pictures = ROOT / get_config().nbs_path.name / "index_files"
    shutil.rmtree(pictures, ignore_errors=True)
    for name, data in figures.items():
        pictures.mkdir(exist_ok=True)
        (pictures / name).write_bytes(data)
