"""The glossary's terms, and links to them from their first use on each page.

terms = read_terms(ROOT/"nbs/reference/glossary.ipynb")
linker = Linker("engine/run", terms)                # one for each page
text = linker.linked(text)                          # of each Markdown cell, in order
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

# Words that are also said in their common sense: they stand in the glossary, but are not linked.
COMMON = {
    "batch",
    "bias",
    "context",
    "corpus",
    "document",
    "family",
    "head",
    "key",
    "layer",
    "loss",
    "mask",
    "parameter",
    "prompt",
    "query",
    "recipe",
    "run",
    "split",
    "state",
    "step",
    "surprise",
    "target",
    "token",
    "value",
    "window",
}
# What holds no prose: code, headings, tables, quotes and alerts, HTML, formulas, links, addresses.
KEPT = re.compile(
    r"^(?:```|~~~).*?^(?:```|~~~)|^ *#.*?$|^ *\|.*?$|^>.*?$"
    r"|<(\w+)\b.*?</\1>|<[^>\n]+>|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|https?://\S+",
    re.M | re.S,
)


@dataclass
class Term:
    "A row of the glossary"

    name: str  # as it stands there
    meaning: str  # one sentence
    page: str  # the notebook that explains it, from nbs/, without .ipynb
    nanogpt: str  # its name there
    gpt_neox: str  # its name there

    @property
    def letter(self) -> str:
        "The heading under which it stands"
        return self.name[0].upper()

    @property
    def forms(self) -> list:
        "How it is written in a text: none for a common word"
        if re.search(r"\(of ", self.name) or self.name in COMMON:
            return []
        return [form for form in re.split(r", | \(|\)", self.name) if form]


def read_terms(path: Path) -> list:
    "The terms of the glossary, in its order"
    terms = []
    for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]:
        for line in "".join(cell["source"]).splitlines():
            if not line.startswith("| ") or line.startswith("| term |"):
                continue
            name, meaning, link, nanogpt, gpt_neox = (part.strip() for part in line.split("|")[1:6])
            page = re.fullmatch(r"\[.+\]\(\.\./(.+)\.ipynb\)", link)
            terms.append(Term(name, meaning, page[1] if page else "", nanogpt, gpt_neox))
    return terms


def pattern(form: str) -> str:
    "A term in a text: singular or plural, in lower case or with a capital where it has none"
    first = re.escape(form[0])
    if form.islower():
        first = f"[{first}{re.escape(form[0].upper())}]"
    return rf"(?<![\w-]){first}{re.escape(form[1:])}(?:s|es)?(?![\w-])"


class Linker:
    "Links the first use of each term on a page; the page that explains a term does not link it"

    def __init__(self, name: str, terms: list):
        self.folder = (
            "" if name.startswith("reference/") else "../" * name.count("/") + "reference/"
        )
        self.letters = {
            form: term
            for term in terms
            for form in term.forms
            if term.page != name and not name.endswith("glossary")
        }
        self.done = set()

    def link(self, match) -> str:
        "The term as a link, or as it stands if it was linked before"
        form = max((f for f in self.letters if re.fullmatch(pattern(f), match[0])), key=len)
        term = self.letters[form]
        if term.name in self.done:
            return match[0]
        self.done.add(term.name)
        return f"[{match[0]}]({self.folder}glossary.ipynb#{term.letter})"

    def linked(self, text: str) -> str:
        "A Markdown text with its first uses linked"
        if not self.letters:
            return text
        longest_first = sorted(self.letters, key=len, reverse=True)
        words = re.compile("|".join(map(pattern, longest_first)))
        parts, at = [], 0
        for kept in KEPT.finditer(text):
            parts += [words.sub(self.link, text[at : kept.start()]), kept[0]]
            at = kept.end()
        return "".join([*parts, words.sub(self.link, text[at:])])
