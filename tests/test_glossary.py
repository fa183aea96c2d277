"The glossary holds what it promises, and its links stand where a term is first used."

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / ".ci/glossary.py").exists():
    pytest.skip("not in a checkout", allow_module_level=True)
spec = importlib.util.spec_from_file_location("glossary", ROOT / ".ci/glossary.py")
glossary = importlib.util.module_from_spec(spec)
spec.loader.exec_module(glossary)
TERMS = glossary.read_terms(ROOT / "nbs/reference/glossary.ipynb")


def link(text, name="tutorials/page"):
    return glossary.Linker(name, TERMS).linked(text)


def test_terms():
    names = [term.name for term in TERMS]
    assert len(names) >= 90 and len(set(names)) == len(names)
    assert names == sorted(names, key=str.lower)
    for term in TERMS:
        assert term.meaning.endswith(".") and term.meaning.count(". ") == 0, term.name
        assert len(term.meaning.split()) <= 32, term.name
        assert (ROOT / f"nbs/{term.page}.ipynb").exists(), term.name
        for name in (term.nanogpt, term.gpt_neox):
            assert name == "–" or re.fullmatch(r"`[^`]+`(, `[^`]+`)*", name), term.name


def test_headings_are_letters():
    cells = json.loads((ROOT / "nbs/reference/glossary.ipynb").read_text("utf-8"))["cells"]
    headings = re.findall(r"^## (.+)$", "\n\n".join("".join(c["source"]) for c in cells), re.M)
    assert headings == sorted({term.letter for term in TERMS})


def test_first_use_alone():
    assert link("Perplexity, and perplexity.") == (
        "[Perplexity](../reference/glossary.ipynb#P), and perplexity."
    )
    linker = glossary.Linker("tutorials/page", TERMS)
    assert "glossary" in linker.linked("A gradient.")
    assert linker.linked("The gradient.") == "The gradient."


@pytest.mark.parametrize(
    "name, target",
    [
        ("00_data", "reference/glossary.ipynb#P"),
        ("engine/run", "../reference/glossary.ipynb#P"),
        ("reference/recipe_keys", "glossary.ipynb#P"),
    ],
)
def test_the_way_to_the_glossary(name, target):
    assert link("perplexity", name) == f"[perplexity]({target})"


@pytest.mark.parametrize(
    "text",
    [
        "`perplexity`",
        "# Perplexity",
        "```\nperplexity\n```",
        "| perplexity | 2 |",
        "> Perplexity",
        "$perplexity$",
        "[perplexity](https://a.b)",
        "https://a.b/perplexity",
        "<a title=perplexity>",
        "<summary>perplexity</summary>",
    ],
)
def test_what_is_no_prose_stays(text):
    assert link(text) == text
    assert "glossary" in link(f"{text}\n\nperplexity")


@pytest.mark.parametrize(
    "text, linked",
    [
        ("gradient norms", "[gradient norms]"),
        ("AdamW", "[AdamW]"),
        ("BPE", "[BPE]"),
        ("Attention weights", "[Attention weights]"),
        ("GELU", "[GELU]"),
    ],
)
def test_forms(text, linked):
    assert link(text).startswith(linked)


@pytest.mark.parametrize(
    "text",
    [
        "attentive",
        "overattention",
        "attention-like",
        "gelu",
        "a run of steps",
        "the head of state",
        "bpe",
    ],
)
def test_other_words_stay(text):
    assert link(text) == text


def test_the_page_that_explains_a_term_does_not_link_it():
    page = next(term.page for term in TERMS if term.name == "perplexity")
    assert link("perplexity", page) == "perplexity"
    assert link("perplexity and Muon", "reference/glossary") == "perplexity and Muon"


PAGES = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_pages_read_as_before(path):
    "Without its new links each page is what it was, and no term is linked twice"
    cells = json.loads(path.read_text("utf-8"))["cells"]
    name = path.relative_to(ROOT / "nbs").with_suffix("").as_posix()
    linker = glossary.Linker(name, TERMS)
    new_link = r"\[([^\]]*)\]\((?:\.\./)*(?:reference/)?glossary\.ipynb#\w\)"
    for cell in cells:
        before = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            assert re.sub(new_link, r"\1", linker.linked(before)) == before
