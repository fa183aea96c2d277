"""The article of nbs/article.ipynb as one Markdown file with its pictures, ready for a blog:
python .ci/article.py [OUT]"""

import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.process import NBProcessor, read_nb
from nbdev.processors import FilterDefaults

ROOT = Path(__file__).resolve().parent.parent
ARTICLE = ROOT / "nbs/article.ipynb"
BADGE = re.compile(r"<a href=\S+><img src=\S+badge.svg\S*[^>]*></a>\n*")
PICTURE = re.compile(r"!\[png\]\((\S+?)\)")


def site_link(target: str) -> str:
    "Where a link to a notebook leads on the site"
    page = re.sub(r"(^|/)\d+_", r"\1", target.removesuffix(".ipynb"))
    return f"{get_config().doc_host}{get_config().doc_baseurl}/{page}.html"


def titles(nb) -> list:
    "What each picture shows: the title in the code of its cell, or the comment at its end"
    found = []
    for cell in nb.cells:
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            title = re.search(r'title="([^"]+)"', cell.source)
            found.append(title[1] if title else cell.source.strip().rpartition("  # ")[2])
    return found


def render() -> tuple:
    "Markdown of the article without hidden code, and its pictures by name"
    nb = read_nb(ARTICLE)
    title = nb.cells[0].source
    steps = [
        step
        for step in FilterDefaults().procs()
        if step.__name__ not in ("add_links", "insert_warning")
    ]
    NBProcessor(nb=nb, procs=steps).process()
    cells = [cell for cell in nb.cells if cell.cell_type != "raw"]
    plain = dict(cells=cells, metadata=nb.metadata, nbformat=4, nbformat_minor=5)
    kept = nbformat.reads(json.dumps(plain, default=dict), as_version=4)
    text, extra = MarkdownExporter(exclude_input=True).from_notebook_node(kept)
    names = iter(titles(kept))
    pictures = {}
    for number, old in enumerate(PICTURE.findall(text), 1):
        new = f"figure-{number}.png"
        pictures[new] = extra["outputs"][old]
        text = text.replace(f"![png]({old})", f"![{next(names)}]({new})")
    text = f"{BADGE.sub('', title).strip()}\n\n{text.strip()}\n"
    text = re.sub(r"\]\(([\w/]+\.ipynb)\)", lambda link: f"]({site_link(link[1])})", text)
    return re.sub(r"\n{3,}", "\n\n", text), pictures


def main(out: Path):
    "Writes the Markdown file and its pictures into a folder, and a zip file beside it"
    text, pictures = render()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "article.md").write_text(text, encoding="utf-8")
    for name, data in pictures.items():
        (out / name).write_bytes(data)
    shutil.make_archive(str(out), "zip", out.parent, out.name)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_docs/article"
    main(target)
    print(f"{target}.zip")
