"""The article and the talk: every number has its page, the seconds add up, the deck opens offline
and prints one slide a page."""

import base64
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browsers import browser  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / ".ci" / "article.py").exists():
    pytest.skip("no clone here", allow_module_level=True)
NUMBER = re.compile(r"(?<![\w.,/-])\d[\d,]*(?:\.\d+)?(?![\w/])")
PLAIN = {"2", "3", "4", "2017", "2020", "2021", "2024", "128", "500", "9"}  # names, years, and
# what the sentence itself counts


def cells(page):
    return json.loads((ROOT / "nbs" / page).read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def article():
    "The article's prose, and its table: (numbers, page) of each row"
    prose = "\n".join(source(c) for c in cells("article.ipynb") if c["cell_type"] == "markdown")
    prose, table = prose.split("## Where the numbers come from")
    rows = []
    for line in table.strip().splitlines()[2:]:
        numbers, _, page = (part.strip() for part in line.strip("|").split("|"))
        link = re.search(r"\(([^)]+)\)", page)
        rows.append((re.findall(r"\d[\d,]*\d(?:\.\d+)?|\d\.\d+|\d", numbers), link and link[1]))
    return prose, rows


def evidence(page):
    "The text of a page's outputs, and of its cells that assert"
    texts = []
    for cell in cells(page):
        if cell["cell_type"] != "code":
            texts.append(source(cell))
            continue
        if re.search(r"\bassert |test_", source(cell)):
            texts.append(source(cell))
        for output in cell["outputs"]:
            texts.append("".join(output.get("text", [])))
            data = output.get("data", {})
            texts.extend("".join(data.get(kind, [])) for kind in ("text/markdown", "text/plain"))
    return "\n".join(texts).replace("_", "")


def is_held(number, text):
    "Whether some number of a text is this one, to this one's digits"
    wanted = number.replace(",", "")
    digits = len(wanted.partition(".")[2])
    found = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", text)
    values = [float(n.replace(",", "")) for n in found]
    return any(abs(value - float(wanted)) <= 0.5 * 10**-digits for value in values)


def in_prose(prose):
    "The numbers of the prose, without links, formulas and code"
    text = re.sub(r"\]\([^)]*\)|\$\$.*?\$\$|`[^`]*`|GPT-\d", " ", prose, flags=re.S)
    return [number.rstrip(",") for number in NUMBER.findall(text)]


def test_every_number_has_its_page():
    prose, rows = article()
    known = {number for numbers, _ in rows for number in numbers}
    assert sorted(set(in_prose(prose)) - known - PLAIN) == []


@pytest.mark.parametrize("numbers, page", article()[1])
def test_the_page_holds_the_number(numbers, page):
    text = evidence(page or "article.ipynb")
    assert [number for number in numbers if not is_held(number, text)] == []


def test_a_changed_number_is_seen():
    text = evidence("tutorials/architectures.ipynb")
    assert is_held("2.394", text) and not is_held("2.444", text) and not is_held("2.194", text)


def test_length():
    prose = article()[0]
    assert 2500 <= len(prose.split()) <= 4000


def slides():
    return [source(c) for c in cells("talk.ipynb") if source(c).startswith("## ")]


def test_ten_minutes():
    "The seconds add up, and nobody has to speak faster than 170 words a minute"
    said = [re.findall(r"^> \*\*Say \((\d+) s\):\*\* (.+)$", slide, re.M) for slide in slides()]
    assert all(len(notes) == 1 for notes in said) and 11 <= len(said) <= 14
    assert sum(int(seconds) for ((seconds, _),) in said) == 600
    for ((seconds, text),) in said:
        assert len(text.split()) <= int(seconds) * 170 / 60, text[:40]


@pytest.fixture(scope="module")
def deck(tmp_path_factory):
    "The deck as the site holds it"
    folder = tmp_path_factory.mktemp("talk") / "deck"
    subprocess.run([sys.executable, ROOT / ".ci/slides.py", folder], check=True)
    return folder


def test_deck(deck):
    "As many slides as headings, notes beside each, and nothing from the network"
    html = (deck / "slides.html").read_text(encoding="utf-8")
    assert html.count("<aside") == len(slides())
    links = re.findall(r'(?:src|href)="([^"#]+)', html)
    assert links and not [link for link in links if "//" in link]
    for link in links:
        assert (deck / link.partition("?")[0]).exists(), link


def printed_shapes(browser, address, ready):
    "Width by height of each page that Chromium prints, once a selector finds something there"
    browser.get("about:blank")
    browser.get(address)
    found = f"return document.querySelectorAll('{ready}').length"
    for _ in range(240):
        if browser.execute_script(found):
            break
        time.sleep(0.5)
    settings = dict(preferCSSPageSize=True, printBackground=True)
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", settings)["data"])
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == pdf.count(b"/MediaBox")
    return [float(w) / float(h) for w, h in re.findall(rb"/MediaBox \[0 0 (\S+) (\S+?)\]", pdf)]


def test_pdf(browser, deck):
    "Printed as the talk's page says: the title and each slide on a page of its own"
    address = (deck / "slides.html").as_uri()
    pages = printed_shapes(browser, f"{address}?print-pdf", ".pdf-page")
    assert len(pages) == len(slides()) + 1
    assert pages == pytest.approx([16 / 9] * len(pages), rel=0.01)
    others = printed_shapes(browser, address, ".reveal.ready")  # without the words at the end
    assert others != pytest.approx([16 / 9] * len(pages), rel=0.01)


def test_markdown(tmp_path):
    "One file, its pictures beside it, links that lead to the site"
    subprocess.run([sys.executable, ROOT / ".ci/article.py", tmp_path / "article"], check=True)
    text = (tmp_path / "article/article.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) >= 4 and all((tmp_path / "article" / p).exists() for p in pictures)
    assert ".ipynb" not in text and "#|" not in text and "<style" not in text
    assert (tmp_path / "article.zip").exists()
