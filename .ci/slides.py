"""The talk of nbs/talk.ipynb as a deck that opens offline:  python .ci/slides.py [OUT]
Each heading is a slide; a quotation that begins with **Say (N s):** becomes its speaker notes."""

import base64
import re
import shutil
import sys
from importlib.metadata import files
from pathlib import Path

import nbformat
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
TALK = ROOT / "nbs/talk.ipynb"
SAID = re.compile(r"^> \*\*Say \((\d+) s\):\*\* (.+)$", re.M)
STYLE = """
.reveal { font-size: 30px; }
.reveal h1 { font-size: 2em; }
.reveal h2 { font-size: 1.5em; }
.reveal h1, .reveal h2 { text-transform: none; }
.reveal section img { height: 500px; max-width: 1200px; object-fit: contain; margin: 0; }
.reveal pre { width: 96%; font-size: 0.75em; box-shadow: none; }
.reveal pre code, .reveal pre { white-space: pre-wrap; }
.reveal ul { display: block; text-align: left; margin-left: 2em; }
.reveal table { font-size: 0.9em; }
"""


def shown(output, folder: Path, name: str) -> str:
    "An output of a cell as Markdown; pictures are written into a folder"
    data = output.get("data", {})
    if "image/png" in data:
        (folder / f"{name}.png").write_bytes(base64.b64decode(data["image/png"]))
        return f"![{name}]({name}.png)"
    if "text/html" in data:
        return data["text/html"]
    text = output.get("text") or data.get("text/plain", "")
    return f"```text\n{text.rstrip()}\n```"


def read_slides(folder: Path) -> list:
    "The Markdown of each slide, in order; pictures are written into a folder"
    slides = []
    for number, cell in enumerate(nbformat.read(TALK, as_version=4).cells):
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            slides.append(cell.source)
        elif cell.cell_type == "code" and slides:
            slides[-1] += "".join(
                f"\n\n{shown(output, folder, f'figure-{number}')}" for output in cell.outputs
            )
    return slides


def noted(slide: str) -> str:
    "A slide whose spoken words stand in the directive for speaker notes, at its end"
    if not (said := SAID.search(slide)):
        raise SystemExit(f"slides: {slide.splitlines()[0]!r} has no line > **Say (N s):** ...")
    notes = f"```{{revealjs-notes}}\n{said[1]} seconds. {said[2]}\n```"
    return f"{SAID.sub('', slide).strip()}\n\n{notes}"


def write(source: Path):
    "What Sphinx reads"
    source.mkdir(parents=True)
    static = source / "_static"
    static.mkdir()
    (static / "slides.css").write_text(STYLE)
    mathjax = next(f for f in files("sphinx-mathjax-offline") if f.name == "tex-svg.js")
    shutil.copy(mathjax.locate(), static)
    title = nbformat.read(TALK, as_version=4).cells[0].source.splitlines()[0]
    slides = [noted(slide) for slide in read_slides(source)]
    (source / "slides.md").write_text("\n\n".join([title, *slides]) + "\n", encoding="utf-8")


def build(source: Path, out: Path):
    "The deck, as slides.html; any warning is an error"
    conf = dict(
        project="shakespeare_neox",
        root_doc="slides",
        extensions=["myst_parser", "sphinx_revealjs", "sphinx.ext.mathjax"],
        myst_enable_extensions=["dollarmath"],
        mathjax_path="tex-svg.js",
        html_copy_source=False,
        smartquotes=False,
        html_static_path=[str(source / "_static")],
        revealjs_static_path=[str(source / "_static")],
        revealjs_css_files=["slides.css"],
        revealjs_style_theme="white",
        revealjs_script_plugins=[{"name": "RevealNotes", "src": "revealjs/plugin/notes/notes.js"}],
        revealjs_script_conf=dict(
            width=1280, height=720, hash=True, slideNumber="c/t", transition="none", totalTime=600
        ),
        suppress_warnings=["myst.header"],
    )
    app = Sphinx(
        source,
        None,
        out,
        source.parent / "slides-doctrees",
        "revealjs",
        confoverrides=conf,
        warningiserror=True,
        status=None,
        freshenv=True,
    )
    app.build()
    if app.statuscode:
        raise SystemExit(f"slides: {app._warncount} warnings, see above")
    for leftover in (".doctrees", ".buildinfo", "objects.inv"):
        path = out / leftover
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def main(out: Path):
    "Builds the deck anew"
    work = ROOT / "_proc/slides"
    shutil.rmtree(work, ignore_errors=True)
    write(work)
    shutil.rmtree(out, ignore_errors=True)
    build(work, out)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_docs/talk"
    main(target)
    print(f"{target}/slides.html")
