"The documentation site: its glue cell by cell, then every page in a real browser"

import functools
import gzip
import http.server
import importlib.util
import json
import os
import re
import threading
from pathlib import Path

import pytest
from browsers import NARROW, WIDE, axe, browser, serious_faults, set_screen, until  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
for needed in ("sphinx", "myst_nb", "nbdev"):
    pytest.importorskip(needed, reason="the site wants: pip install -e '.[docs]'")
if not (ROOT / ".ci" / "docs.py").exists():
    pytest.skip("no clone here", allow_module_level=True)
nbformat = pytest.importorskip("nbformat")


@pytest.fixture(scope="module")
def docs():
    "The glue as a module"
    spec = importlib.util.spec_from_file_location("docs_glue", ROOT / ".ci" / "docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def notebook(docs, tmp_path, monkeypatch):
    "Converts a notebook of the given cells, as `nbs/03_page.ipynb` of a repository of its own"
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    (tmp_path / "nbs" / "tutorials").mkdir(parents=True)
    (tmp_path / "LICENSE").write_text("free")

    def convert(*cells, name="03_page"):
        new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
        nb = nbformat.v4.new_notebook(
            cells=[
                new["markdown"]("# A page\n> Its lead"),
                *(new[kind](text) for kind, text in cells),
            ]
        )
        nbformat.write(nb, tmp_path / "nbs" / f"{name}.ipynb")
        anchors = {
            name: docs.headings(nb),
            "02_model": {"How-big-is-it?": "how-big-is-it"},
            "tutorials/debugging": {},
        }
        return docs.convert(name, anchors, {"base.html#nearest": "nearest"})[1].cells

    return convert


def test_links(notebook):
    text = notebook(
        (
            "markdown",
            "## The `big` step\n[a](02_model.ipynb#How-big-is-it?) "
            "[b](tutorials/debugging.ipynb) [c](LICENSE) [d](#The-big-step) "
            "[e](https://arxiv.org/x)\n```\n[f](no.ipynb)\n```",
        )
    )[1].source
    for made in (
        "[a](model.ipynb#how-big-is-it)",
        "[b](tutorials/debugging.ipynb)",
        "blob/main/LICENSE)",
        "[d](page.ipynb#the-big-step)",
        "[e](https://arxiv.org/x)",
        "[f](no.ipynb)",
    ):
        assert made in text, made
    assert (
        "[up](../model.ipynb)"
        in notebook(("markdown", "[up](../02_model.ipynb)"), name="tutorials/debugging")[1].source
    )


@pytest.mark.parametrize(
    "kind, text, word",
    [
        ("markdown", "::: {.callout-note}\nlost\n:::", "Quarto"),
        ("markdown", "## A part {.unnumbered}", "Quarto"),
        ("markdown", "{{< video x >}}", "Quarto"),
        ("markdown", "see @fig-loss", "Quarto"),
        ("code", "#| layout-ncol: 2\n1 + 1", "layout-ncol"),
        ("markdown", "[x](02_model.ipynb#No-such-part)", "no heading"),
        ("markdown", "[x](05_none.ipynb)", "no notebook"),
        ("markdown", "[x](gone.md)", "dead link"),
    ],
)
def test_what_cannot_be_shown_is_named_with_its_cell(notebook, docs, kind, text, word):
    with pytest.raises(docs.SiteError, match=r"nbs/03_page\.ipynb, cell \d") as raised:
        notebook(("markdown", "Before."), (kind, text))
    assert word in str(raised.value) and text.splitlines()[0][:40] in str(raised.value)


def test_quarto_in_code_is_text(notebook):
    assert (
        "{.unnumbered}"
        in notebook(("markdown", "Write no `{.unnumbered}`.\n```\n:::\n```"))[1].source
    )


def test_options_become_tags(notebook):
    cells = notebook(
        ("code", "#| slow\n#| echo: false\nfig.set(xlabel='step', title='The loss')"),
        ("code", "#| hide\nsecret = 1"),
    )
    assert [c.source for c in cells[1:]] == ["fig.set(xlabel='step', title='The loss')"]
    assert (
        cells[1].metadata.tags == ["remove-input"]
        and cells[1].metadata.mystnb.image.alt == "Figure: step; The loss"
    )


def test_colab_opens_every_notebook():
    "The badge on each page, once, and a hidden cell that installs there"
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        nb, here = nbformat.read(path, as_version=4), path.relative_to(ROOT).as_posix()
        prose = "".join(c.source for c in nb.cells if c.cell_type == "markdown")
        assert prose.count("colab-badge.svg") == 1 and f'/blob/main/{here}"><img' in prose, here
        installs = [
            c.source
            for c in nb.cells
            if c.cell_type == "code" and '"google.colab" in sys.modules' in c.source
        ]
        assert len(installs) == 1 and installs[0].startswith("#| hide\nimport "), here


def test_figures_that_are_wide(docs):
    def png(width):
        return [
            nbformat.v4.new_output(
                "display_data",
                {"image/png": docs.base64.b64encode(bytes(16) + width.to_bytes(4)).decode()},
            )
        ]

    assert (docs.wide(png(701)), docs.wide(png(700)), docs.wide([])) == ("wide", "", "")


def test_definition(docs):
    block = docs.api("shakespeare_neox.engine.base", "nearest")
    for part in (
        "{py:function} nearest(name: str, known: list) -> str",
        "| `name` | `str` | what was typed |",
        "base.py#L",
        "def nearest(",
    ):
        assert part in block, part


def test_notes_of_all_parameters(docs):
    "Those behind stars and under a decorator, too; a method without a word is left to the code"
    assert re.search(
        r"\| `overrides` \|[ |]+settings that override the recipes \|",
        docs.api("shakespeare_neox.engine.run", "train"),
    )
    assert "| `n_tokens` | `int` | length of the text |" in docs.api(
        "shakespeare_neox.data", "windows"
    )
    assert "{py:method} Run.done" not in docs.api("shakespeare_neox.engine.state", "Run")


def test_code_on_a_narrow_screen(docs):
    assert (
        docs.near("x = 1     # one\ny = 22    # two\n    # three\ns = '   #'")
        == "x = 1  # one\ny = 22  # two\n    # three\ns = '   #'"
    )

    def code(text):
        return f'<span class="pre">{text}</span>'

    cells = f"<td>{code('a_b.c')}</td><td>{code('--a_b')}</td>{code('a_b')}"
    assert docs.breakable(cells) == cells.replace("a_b.c", "a_<wbr/>b.<wbr/>c")


def test_settings_behind_stars(docs):
    "What `**settings` takes is listed, from the function that the note on it names"
    block = docs.api("shakespeare_neox.engine.serve", "generate")
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens"):
        assert re.search(rf"^\| `{name}` in `settings` \| .+ \|$", block, re.M), name
    assert "`batch_size` in" not in block  # it has that one itself
    block = docs.api("shakespeare_neox.engine.chat", "answers")
    for name in ("stop", "batch_size", "top_p"):  # those of `generate`, and what that one takes
        assert f"`{name}` in `settings`" in block, name
    assert " in `" not in docs.api("shakespeare_neox.engine.base", "nearest")


def test_long_sources_are_closed(docs):
    short, long = (docs.api("shakespeare_neox.engine.base", n) for n in ("is_home", "command"))
    assert "<details open>" in short and "<details>" in long
    assert short.count("\n") < long.count("\n")


def test_signatures_have_a_parameter_a_line(site):
    "Those that are longer than a line"
    text = (site[0] / "engine/serve.html").read_text(encoding="utf-8")
    signature = re.search(r'<dt [^>]*id="generate_many">.*?</dt>', text, re.S)[0]
    assert signature.count('<span class="parameter">') >= 6
    text = (site[0] / "engine/base.html").read_text(encoding="utf-8")
    assert 'class="parameter"' not in re.search(r'<dt [^>]*id="nearest">.*?</dt>', text, re.S)[0]


PICTURE = [nbformat.v4.new_output("display_data", {"image/png": ""})]


@pytest.mark.parametrize(
    "code, outputs, prompt",
    [
        ("import re\nimport sys\nfrom math import pi", [], "Imports"),
        ("import re\nimport sys", [], None),
        ("import re\nimport sys\nx = 1", [], None),
        ("def show_losses(a):\n    b = a\n    return b", [], "A helper that draws"),
        ("def losses(a):\n    b = a\n    return b", [], None),
        (
            "a = 1\nfig, ax = f()\nax.plot(a)\nax.set(x=1)\nplt.show()",
            PICTURE,
            "The code of the figure",
        ),
        ("a = 1\nfig, ax = f()\nax.plot(a)\nax.set(x=1)\nplt.show()", [], None),
        ("a = 1\nb = 2\nc = 3\nd = 4\nplt.show()", PICTURE, None),
        ("%time f(\n1\n2", [], None),
    ],
)
def test_what_is_folded(docs, code, outputs, prompt):
    assert docs.folded(code, outputs) == prompt


def test_folds_say_what_they_hide(notebook):
    cells = notebook(
        ("code", "import re\nimport sys\nfrom math import pi"),
        ("code", "#| code-fold: true\nx = 1"),
    )
    assert cells[1].metadata.tags == cells[2].metadata.tags == ["hide-input"]
    assert cells[1].metadata.mystnb.code_prompt_show == "Imports"


def test_words_for_the_search(notebook, docs):
    text = notebook(("markdown", "## A part\n\n<!-- index: step size, lr -->\n\nText."))[1].source
    assert "```{index} ! step size, ! lr\n```" in text and "<!--" not in text
    term = importlib.import_module("glossary").Term
    row = term("weight decay", "Weights shrink.", "03_page", "–", "–")
    assert docs.explained("The weight decays.", [row]) == [row]
    assert docs.explained("`weight decay` in\n# weight decay", [row]) == []
    made = docs.entries("## A part\n\nText.", ["weight decay"])
    assert made == "## A part\n\n```{index} ! weight decay\n```\n\nText."


def test_lines_of_code(docs):
    start = '<div class="highlight-python notranslate"><div class="highlight"><pre>'
    code = f"{start}<span></span>a\n\n    <b>b</b>\n</pre>"
    made = docs.LINES.sub(docs.lined, code)
    assert re.sub(r"<[^>]+>", "", made) == "a\n\n    b\n"  # what is copied is as it was
    assert made.count('<span class="line"') == 3 and made.count('style="--i:4"') == 1


def test_what_is_printed_fits(docs):
    def page(width):
        start = '<div class="output stream highlight-myst-ansi notranslate"><div class="highlight">'
        return f"{start}<pre>{'x' * width}\n</pre>"

    assert docs.PRINTED.sub(docs.fitted, page(85)) == page(85)
    assert '<pre style="--fit:0.850">' in docs.PRINTED.sub(docs.fitted, page(100))
    assert '<pre class="whole">' in docs.PRINTED.sub(docs.fitted, page(111))
    assert docs.PRINTED.sub(docs.fitted, page(80).replace("xx", "&lt;", 1)).count("--fit") == 0


def test_icons(docs):
    script = 'a={sun:[576,512,[],"f185","M0"],b:0},c={sun:[512,512,["x"],"f185","M1z"]}'
    made = docs.ICONS.sub(
        docs.drawn(script),
        '<i class="me fa-solid fa-sun fa-lg" data-x="1"></i><i class="other"></i>',
    )
    assert made.startswith(
        '<svg class="me fa-solid fa-sun fa-lg icon" data-x="1" viewBox="0 0 512 512"'
    )
    assert 'd="M1z"' in made and made.endswith('<i class="other"></i>')
    with pytest.raises(docs.SiteError, match="no icon moon"):
        docs.ICONS.sub(docs.drawn(script), '<i class="fas fa-moon"></i>')


def test_flags_stay_whole(docs):
    usage = re.search(r"```text\n(neox_train .+?)\n```", docs.commands(), re.S)[1]
    assert (
        all(line.count("[") == line.count("]") and len(line) < 85 for line in usage.splitlines())
        and "[--dry_run" in usage
    )


def test_what_is_shown_of_a_method(docs):
    shown = docs.SHOWN.search("#| echo: false\nshow_doc((Old, New).write, title_level=3)")[1]
    assert docs.shown_names(shown) == ["Old.write", "New.write"]
    assert docs.shown_names(docs.SHOWN.search("show_doc(Old.write)")[1]) == ["Old.write"]


def test_every_page_has_its_place(docs):
    assert docs.sections(["index", "02_model", "map"]) == {
        "Getting started": ["index"],
        "Lessons": ["02_model"],
        "Reference": ["map"],
    }
    assert docs.sections(["09_speed"]) == {"Applications": ["09_speed"]}
    tutorials = ["tutorials/datasets", "tutorials/gpt_from_scratch"]
    assert docs.sections(tutorials) == {"Tutorials": tutorials[::-1]}
    assert docs.sections(["engine/new"]) == {"Engine: more": ["engine/new"]}
    with pytest.raises(docs.SiteError, match="nbs/essay.ipynb"):
        docs.sections(["index", "essay"])


def test_the_sidebar_tells_the_journey(site, docs):
    "In the order of reading, lessons with their numbers; the way to the next page follows it"
    folder = site[0]
    text = (folder / "index.html").read_text(encoding="utf-8")
    bar = re.search(r'<nav class="bd-links.*?</nav>', text, re.S)[0]
    captions = re.findall(r'class="caption-text">([^<]+)<', bar)
    assert captions[:2] == ["Getting started", "Lessons"] and captions[-1] == "Reference"
    order = ["Engine: from files to tokens", "Applications", "Tutorials", "Reference"]
    assert [c for c in captions if c in order] == order
    links = re.findall(r'<a class="reference internal" href="([^"#]+)">([^<]+)</a>', bar)
    pages_shown = [page for page, _ in links]
    assert len(pages_shown) == len(set(pages_shown)) == len(pages(folder)) - 2  # home and search
    assert pages_shown[:3] == [
        "start.html",
        "tutorials/shakespeare_training_notebook.html",
        "how_do_i.html",
    ]
    assert pages_shown[3] == "playground.html"
    titles = dict(links)
    assert titles["model.html"] == "02 Model" and titles["evaluate.html"] == "05 Evaluate"
    for here, there in zip(pages_shown, pages_shown[1:]):
        text = (folder / here).read_text(encoding="utf-8")
        found = re.search(r'<a class="right-next"\s+href="([^"]+)"', text, re.S)
        leads = found and os.path.join(os.path.dirname(here), found[1])
        assert leads and os.path.normpath(leads) == there, here


@pytest.fixture(scope="module")
def site(docs, tmp_path_factory):
    "The built site, served on loopback: its folder and address"
    work = tmp_path_factory.mktemp("site")
    leads = docs.write(work / "site")
    docs.build(work / "site", work / "html", leads)
    docs.add_downloads(work / "html")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=work / "html")
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield work / "html", f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def pages(folder):
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*.html")
        if not {"_static", "talk"} & set(p.parts)
    )


def visit(browser, url, width=WIDE, theme="light"):
    set_screen(browser, width, theme)
    browser.get(url)
    assert until(browser, f"return document.documentElement.dataset.theme === '{theme}'"), (
        url
    )  # the theme's own script sets it


def test_every_page_loads_whole(site, browser):
    folder, address = site
    wrong = []
    for page in pages(folder):
        visit(browser, f"{address}/{page}")
        wrong += [
            (page, e["message"])
            for e in browser.get_log("browser")
            if e["level"] in ("SEVERE", "WARNING")
        ]
        events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
        asked = [
            e["params"]["request"]["url"]
            for e in events
            if e["method"] == "Network.requestWillBeSent"
        ]
        wrong += [
            (page, "asks " + u[:80]) for u in asked if not u.startswith((address, "data:", "blob:"))
        ]
        wrong += [
            (page, "image", src)
            for src in browser.execute_script(
                "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => "
                "i.src)"
            )
        ]
        wrong += [
            (page, "no alt", src[:60])
            for src in browser.execute_script(
                "return [...document.images].filter(i => !i.alt).map(i => i.src)"
            )
        ]
    assert len(pages(folder)) >= 18 and wrong == []


def test_every_link_has_a_text(site):
    "No link stands inside of another, where the browser empties the outer one"
    wrong = []
    for page in pages(site[0]):
        text = (site[0] / page).read_text(encoding="utf-8")
        for link in re.findall(r'<a class="reference internal"[^>]*>.*?</a>', text, re.DOTALL):
            shown = re.sub(r"<(?!img|svg|i )[^>]+>", "", link).strip()
            if not shown or link.count("<a ") > 1:
                wrong.append((page, link))
    assert wrong == []


def test_every_link_and_anchor_leads_somewhere(site, browser):
    folder, address = site
    ids, links = {}, set()
    for page in pages(folder):
        visit(browser, f"{address}/{page}")
        ids[f"{address}/{page}"] = set(
            browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
        ) | {""}
        links |= {
            (page, href)
            for href in browser.execute_script(
                "return [...document.querySelectorAll('a[href]')].map(e => e.href)"
            )
            if href.startswith(address)
        }
    dead = [
        (page, href)
        for page, href in links
        for path, _, anchor in [href.partition("#")]
        if path in ids
        and anchor not in ids[path]
        or path not in ids
        and not (folder / path.removeprefix(address).lstrip("/")).exists()
    ]
    assert len(links) > 500 and dead == []
    assert {"train_iters", "optimizer.type", "optimizer.params.lr", "zero_optimization"} <= ids[
        f"{address}/reference/recipe_keys.html"
    ]
    visit(browser, f"{address}/map.html")
    browser.execute_script(
        "[...document.querySelectorAll('a')].find(a => "
        "a.href.endsWith('#bad-batches-clipping')).click()"
    )
    assert until(
        browser,
        "return location.pathname == '/train.html' && "
        "Math.abs(document.querySelector('#bad-batches-clipping').getBoundingClientRect().top) < "
        "300",
    )


def test_search_finds_rotary(site, browser):
    visit(browser, f"{site[1]}/search.html?q=rotary")
    href = until(
        browser,
        "return [...document.querySelectorAll('#search-results li a')].map(a => a.href).find(h "
        "=> h.includes('/model.html'))",
    )
    assert href
    visit(browser, href)
    assert "rotary" in browser.find_element("tag name", "article").text.lower()


def test_math_is_typeset(site, browser):
    visit(browser, f"{site[1]}/data.html")
    assert until(
        browser, "return document.querySelectorAll('article mjx-container svg').length > 0"
    )
    assert browser.execute_script("return document.querySelectorAll('mjx-merror').length") == 0


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_nothing_runs_over(site, browser, width):
    over = []
    for page in pages(site[0]):
        visit(browser, f"{site[1]}/{page}", width)
        if (seen := browser.execute_script("return document.documentElement.scrollWidth")) > width:
            over.append((page, seen))
    assert over == []


def test_tables_fit(site, browser):
    "At the width of a desk"
    wide = []
    for page in pages(site[0]):
        visit(browser, f"{site[1]}/{page}")
        wide += [
            (page, head)
            for head in browser.execute_script("""
                const box = '.pst-scrollable-table-container, .cell_output'
                return [...document.querySelectorAll('article table')]
                    .filter(t => t.scrollWidth
                        > (t.closest(box) ?? t.parentElement).clientWidth + 1)
                    .map(t => t.innerText.slice(0, 60))""")
        ]
    visit(browser, f"{site[1]}/reference/recipe_keys.html")
    row = browser.execute_script(
        "return [...document.querySelectorAll('tr')].find(r => "
        "r.innerText.includes('pipe_partition_method')).innerText"
    )
    assert wide == [] and "transformer|mlp" in row and "shared out" in row


def test_home_is_one_screen(site, browser):
    "Sentence, curve, verse, three doors and the first commands"
    visit(browser, f"{site[1]}/index.html")
    for part in (".lead", ".home img", ".verse pre", "a.door", ".first pre"):
        assert (
            browser.execute_script(
                "return "
                "[...document.querySelectorAll(arguments[0])].at(-1).getBoundingClientRect().bottom",
                part,
            )
            < 800
        ), part
    assert len(browser.find_elements("css selector", "a.door")) == 3
    assert "git clone https://" in browser.find_element("css selector", ".first pre").text
    assert browser.title.count("shakespeare_neox") == 1


def test_home_is_light(site, browser):
    "What a visitor's browser gets, packed as GitHub's pages send it: less than 500 kB"
    folder, address = site
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.clearBrowserCache", {})
    browser.get_log("performance")
    visit(browser, f"{address}/index.html")
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = {
        e["params"]["request"]["url"].partition("?")[0]
        for e in events
        if e["method"] == "Network.requestWillBeSent"
    }
    files = [folder / url.removeprefix(address).lstrip("/") for url in asked if url != "data:"]
    sizes = {
        f.name: len(gzip.compress(f.read_bytes()))
        if f.suffix in (".html", ".css", ".js", ".svg")
        else f.stat().st_size
        for f in files
        if f.is_file()
    }
    assert {"index.html", "docs.css", "picture.png"} <= set(sizes)
    assert sum(sizes.values()) < 500_000, sizes
    assert not {"tex-svg.js", "fontawesome.js", "searchindex.js"} & set(sizes)


def test_math_is_loaded_where_it_is_used(site):
    for page in pages(site[0]):
        text = (site[0] / page).read_text(encoding="utf-8")
        assert ("tex-svg.js" in text) == ('class="math' in text), page
        assert "fontawesome.js" not in text and ("searchindex.js" in text) == (
            page == "search.html"
        )


def test_what_others_show_of_a_link(site, docs):
    "Title, description and picture, on every page of ours"
    folder = site[0]
    for page in pages(folder):
        text = (folder / page).read_text(encoding="utf-8")
        if page != "search.html":
            facts = dict(re.findall(r'<meta property="(og:\w+)" content="([^"]+)"', text))
            assert {"og:title", "og:description", "og:url", "og:image"} <= set(facts), page
            assert facts["og:url"] == f"{docs.HOME}/{page}"
            assert (folder / facts["og:image"].removeprefix(docs.HOME + "/")).is_file()
            assert f'<meta name="description" content="{facts["og:description"]}"' in text


QUERIES = {
    "learning rate": "how_do_i",
    "early stopping": "how_do_i",
    "top-p": "how_do_i",
    "own text": "how_do_i",
    "novel": "how_do_i",
    "GPU": "how_do_i",
    "resume": "how_do_i",
    "epochs": "how_do_i",
    "temperature": "how_do_i",
    "wandb": "how_do_i",
    "BPE": "how_do_i",
    "transformers": "how_do_i",
    "sweep": "how_do_i",
    "ONNX": "how_do_i",
    "NEOX_DATA": "how_do_i",
    "rotary positions": "model",
    "attention": "model",
    "perplexity": "train",
    "key-value cache": "model",
    "LoRA": "engine/lora",
    "pass@k": "engine/pass_rate",
    "sandbox": "engine/sandbox",
    "packing": "finetune",
}


def test_search_leads_to_the_right_page_first(site, browser):
    "What twenty and more readers would type"
    visit(browser, f"{site[1]}/search.html")
    assert until(browser, "return Search.hasIndex()")
    first = {
        query: browser.execute_script(
            "return Search._performSearch(...Search._parseQuery(arguments[0])).at(-1)", query
        )
        for query in QUERIES
    }
    wrong = {
        q: found and found[:3] for q, found in first.items() if not found or found[0] != QUERIES[q]
    }
    assert len(QUERIES) >= 20 and wrong == {}


@pytest.mark.parametrize("query, says", [("early stopping", "patience"), ("novel", "gutenberg")])
def test_search_shows_the_text_of_the_page(site, browser, query, says):
    "The snippet comes from the place that was found, not from a menu, and the link leads there"
    visit(browser, f"{site[1]}/search.html?q={query.replace(' ', '+')}")
    snippet = until(
        browser, "return document.querySelector('#search-results li p.context')?.innerText"
    )
    assert says in snippet.lower(), snippet
    href = browser.execute_script("return document.querySelector('#search-results li a').href")
    visit(browser, href)
    place = href.partition("#")[2]
    assert (
        says
        in browser.execute_script(
            "return document.getElementById(arguments[0]).closest('section').innerText", place
        ).lower()
    )


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_nothing_is_cut_off(site, browser, width):
    "Code wraps, deeper than its line began; what is wider than its box scrolls, and shows a shadow"
    cut = []
    for page in ("serve", "run", "recipe"):
        visit(browser, f"{site[1]}/engine/{page}.html", width)
        cut += browser.execute_script("""
            const box = e => e.scrollWidth > e.clientWidth + 1
            const code = [...document.querySelectorAll('.cell_input pre, dd pre')].filter(box)
            const others = [...document.querySelectorAll(
                '.cell_output pre, .pst-scrollable-table-container')].filter(box)
            const plain = others.filter(e => getComputedStyle(e).overflowX != 'auto'
                || !getComputedStyle(e).backgroundImage.includes('gradient'))
            return [...code, ...plain].map(e => e.innerText.slice(0, 80))""")
    assert cut == []
    hanging = browser.execute_script("""
        const tall = [...document.querySelectorAll('.cell_input .line')].find(
            e => e.getClientRects()[0].height > 1.9*parseFloat(getComputedStyle(e).lineHeight))
        if (!tall) return null
        const style = getComputedStyle(tall)
        return [parseFloat(style.paddingLeft), parseFloat(style.textIndent)]""")
    assert width == WIDE or hanging and hanging[0] > 0 and hanging[0] == -hanging[1]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("part", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_axe_finds_no_serious_fault(site, browser, axe, theme, part):
    faults = []
    for page in (
        [
            "index.html",
            "tutorials/datasets.html",
            "reference/commands.html",
            "engine/base.html",
            "playground.html",
        ]
        if part == "some"
        else pages(site[0])
    ):
        visit(browser, f"{site[1]}/{page}", theme=theme)
        faults += [(page, *fault) for fault in serious_faults(browser, axe)]
    assert faults == [], "\n".join(map(str, faults))
