"""Builds the documentation site from nbs/ into _docs/: python .ci/docs.py   (nbdev's processors,
then Sphinx; no Quarto, no network)"""

import ast
import base64
import fnmatch
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import textwrap
import time
from importlib.metadata import files
from pathlib import Path

import nbformat
from docutils.nodes import make_id
from fastcore.docments import docments
from nbdev.config import get_config
from nbdev.process import NBProcessor, read_nb
from nbdev.processors import FilterDefaults
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).resolve().parent))
import article
from glossary import Linker, read_terms

ROOT = Path(__file__).resolve().parent.parent
LIB = get_config().lib_name
GITHUB, HOME, BRANCH = (
    get_config().git_url,
    get_config().doc_host + get_config().doc_baseurl,
    get_config().branch,
)
COLAB = GITHUB.replace("https://github.com", "https://colab.research.google.com/github")
SIDEBAR = {
    "Start": "index tutorials/shakespeare_training_notebook",
    "Lessons": "0[0-8]_*",
    "Tutorials": "tutorials/gpt_from_scratch tutorials/nanogpt_on_a_book tutorials/*",
    "To tell others": "article talk",
    "The engine": "engine/base engine/encodings engine/text engine/records engine/documents "
    "engine/downloads engine/folders engine/corpora engine/*",
    "Reference": "map reference/*",
    "Benchmarks": "09_*",
}  # a page stands under the first caption that it fits
START, FIRST = "Getting started", "tutorials/shakespeare_training_notebook.ipynb"
DOWNLOADS = {
    "article": ("The article as Markdown, with its pictures", "article.zip"),
    "talk": ("Open the slides", "talk/slides.html"),
}  # what is built from a page and stands beside it
MADE = [
    "reference/commands",
    "reference/credits",
]  # pages that come from the code and from all notebooks together
SILENT = (
    "slow",
    "cuda",
    "network",
    "hide_input",
    "eval",
)  # options that change a test or were dealt with by nbdev
TAGS = {
    "echo: false": "remove-input",
    "output: false": "remove-output",
    "include: false": "remove-cell",
    "code-fold: true": "hide-input",
}
QUARTO = re.compile(
    r"^:{3,}|\{[.#][\w-]+[^}]*\}|\{\{<|^\{target=|(?<![\w`])@(fig|tbl|sec|eq)-\w", re.M
)
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.M | re.S)
BADGE = re.compile(r"<a href=\S+><img src=\S+badge.svg\S*[^>]*></a>")
SHOWN = re.compile(r"^show_doc\((\([\w., ]+\)\.\w+|[\w.]+)", re.M)
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path d="M2 14 13 2l1 1L5 14z" '
    'fill="#459db9"/></svg>'
)  # a quill


class SiteError(Exception):
    "What cannot be shown, with the notebook and the cell"


def page(name: str) -> str:
    "A notebook's page under nbdev's name: `02_model` is `model`"
    if name == "index":
        return "start"
    return re.sub(r"(^|/)\d+[a-z]?_", r"\1", name)


def written(nb) -> str:
    return "\n\n".join(c.source for c in nb.cells if c.cell_type == "markdown")


def headings(nb) -> dict:
    "Jupyter's anchor of each heading of a notebook, and the site's"
    text = CODE.sub(lambda m: "" if m[0].startswith("```") else m[0].strip("`"), written(nb))
    return {h.strip().replace(" ", "-"): make_id(h) for h in re.findall(r"^#+ +(.+)$", text, re.M)}


def link(name: str, target: str, anchors: dict) -> str:
    "Where a link of notebook `name` leads on the site; `anchors`: the headings of every notebook"
    path, _, anchor = target.partition("#")
    if re.match(r"\w+:", target):
        return target
    file = (ROOT / "nbs" / name).parent / path if path else ROOT / "nbs" / f"{name}.ipynb"
    if file.suffix == ".ipynb":
        other = file.resolve().relative_to(ROOT / "nbs").with_suffix("").as_posix()
        if other not in anchors:
            raise SiteError(f"no notebook {target}")
        if anchor and anchor not in anchors[other]:
            raise SiteError(f"no heading {target}")
        up = "../" * page(name).count("/")
        return f"{up}{page(other)}.{'md' if other in MADE else 'ipynb'}" + (
            f"#{anchors[other][anchor]}" if anchor else ""
        )
    if (ROOT / path).exists() and not anchor:
        return f"{GITHUB}/blob/{BRANCH}/{path}"
    raise SiteError(f"dead link {target}")


def prose(name: str, text: str, anchors: dict, symbols: dict) -> str:
    "Markdown of a notebook with the site's links; refuses what only Quarto knows"
    if bad := QUARTO.search(CODE.sub("", text)):
        raise SiteError(f"Quarto syntax {bad[0]!r}; write plain Markdown")
    text = re.sub(  # nbdev links a name inside of a link too: the outer one stays
        r"\[\[(`[^`\]]+`)\]\(" + re.escape(HOME) + r"/[^)]+\)\]\(", r"[\1](", text
    )
    text = re.sub(
        r"\[`([^`\]]+)`\]\(" + re.escape(HOME) + r"/([^)]+)\)",
        lambda m: f"{{py:obj}}`{m[1]} <{symbols[m[2]]}>`",
        text,
    )
    return "".join(
        part
        if part.startswith("```")
        else re.sub(r"\]\(([^)\s]+)\)", lambda m: f"]({link(name, m[1], anchors)})", part)
        for part in re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
    )


def table(head: list, rows: list) -> str:
    "A Markdown table"
    return "\n".join(
        "| " + " | ".join(c.replace("|", r"\|") for c in row) + " |"
        for row in [head, ["---"] * len(head), *rows]
    )


def cell_text(value) -> str:
    return "" if value is None else f"`{ast.unparse(value)}`"


def parameters(node, notes: dict) -> str:
    "The table of a signature's parameters"
    args = node.args
    plain = args.posonlyargs + args.args
    rows = [
        *zip(plain, [None] * (len(plain) - len(args.defaults)) + args.defaults),
        *([(args.vararg, None)] if args.vararg else []),
        *zip(args.kwonlyargs, args.kw_defaults),
        *([(args.kwarg, None)] if args.kwarg else []),
    ]
    rows = [
        [f"`{a.arg}`", cell_text(a.annotation), cell_text(d), notes.get(a.arg) or ""]
        for a, d in rows
        if a.arg not in ("self", "cls")
    ]
    if node.returns is not None or notes.get("return"):
        rows.append(["*gives*", cell_text(node.returns), "", notes.get("return") or ""])
    columns = [
        c for c in zip(["parameter", "type", "default", "meaning"], *rows) if any(c[1:])
    ]  # no empty ones
    head, *rows = zip(*columns) if len(columns) > 1 else [()]
    return table(head, rows) if head else ""


def constructor(node):
    "The definition that says what a class is made from: its `__init__`, or a dataclass's fields"
    inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if inits:
        return inits[0]
    fields = (
        [n for n in node.body if isinstance(n, ast.AnnAssign)]
        if "dataclass" in map(ast.unparse, node.decorator_list)
        else []
    )
    text = ", ".join(ast.unparse(n) for n in sorted(fields, key=lambda n: n.value is not None))
    return ast.parse(f"def __init__({text}): pass").body[0]


def near(code: str) -> str:
    "Code with its comments close behind it, so that a narrow screen breaks a line between words"
    return re.sub(r"(?<=\S) {3,}(?=# )", "  ", code)


def api(module: str, name: str, depth: int = 0) -> str:
    "The block of one definition: signature, source link, table of parameters, code"
    obj = importlib.import_module(module)
    for part in name.split("."):
        holder, obj = obj, getattr(obj, part)
    if "." in name and not callable(obj):
        obj = inspect.getattr_static(holder, part)
        obj = getattr(obj, "fget", None) or obj.func  # a property
    lines, start = inspect.getsourcelines(obj)
    source = textwrap.dedent("".join(lines)).rstrip()
    node = ast.parse(source).body[0]
    is_class = isinstance(node, ast.ClassDef)
    made = constructor(node) if is_class else node
    made.args.args = [a for a in made.args.args if a.arg not in ("self", "cls")]
    signature = f"{name}({ast.unparse(made.args)})" + (
        f" -> {ast.unparse(made.returns)}" if made.returns and not is_class else ""
    )
    url = f"{GITHUB}/blob/{BRANCH}/{module.replace('.', '/')}.py#L{start}"
    methods = (
        [
            n.name
            for n in node.body
            if isinstance(n, ast.FunctionDef)
            and not n.name.startswith("_")
            and ast.get_docstring(n)
        ]
        if is_class
        else []
    )
    code = (
        []
        if depth
        else [
            "<details open><summary>The code</summary>",
            f"```python\n{near(source)}\n```",
            "</details>",
        ]
    )
    fence, kind = (
        "`" * (5 - depth),
        "class" if is_class else "method" if "." in name else "function",
    )
    source_link = f'<a class="source" href="{url}">source<span class="hidden"> of {name}</span></a>'
    nbdevs = (
        f'<span id="{name.lower()}"></span>' if name != name.lower() else ""
    )  # the anchor that other libraries link to
    return "\n\n".join(
        filter(
            None,
            [
                f"{fence}{{py:{kind}}} {signature}",
                source_link + nbdevs,
                ast.get_docstring(node) or "",
                parameters(made, docments(inspect.unwrap(obj), args_kwargs=True)),
                *code,
                *(api(module, f"{name}.{m}", depth + 1) for m in methods),
                fence,
            ],
        )
    )


def figure_alt(source: str) -> str:
    "What a plot shows, in the words of its own labels"
    words = re.findall(r"(?:title|xlabel|ylabel|label|suptitle)\s*[=(]\s*f?[\"']([^\"']+)", source)
    return "Figure: " + (
        re.sub(r"\{[^}]*\}", "…", "; ".join(dict.fromkeys(words))) or "made by the code above"
    )


def wide(outputs: list) -> str:
    """The class of a figure that a phone cannot show whole: more than 700 pixels across, as its PNG
    header says"""
    pictures = [
        base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})
    ]
    return "wide" if any(int.from_bytes(p[16:20]) > 700 for p in pictures) else ""


def shown_names(words: str) -> list:
    "What nbdev shows: `Old.write`, or `(Old, New).write` of a method on several classes"
    classes, _, method = words.rpartition(").")
    if not classes:
        return [words]
    return [f"{one.strip()}.{method}" for one in classes.strip("(").split(",") if one.strip()]


def convert(name: str, anchors: dict, symbols: dict, terms: list = ()):
    "One notebook as MyST-NB reads it; the first use of a term links to the glossary"
    linker = Linker(name, terms)
    nb = read_nb(ROOT / "nbs" / f"{name}.ipynb")
    module = next(
        (
            f"{LIB}.{m}"
            for c in nb.cells
            for m in re.findall(r"^#\| *default_exp ([\w.]+)", c.source, re.M)
        ),
        None,
    )
    run = [
        p
        for p in FilterDefaults().procs()
        if p.__name__ not in ("exec_show_docs", "insert_warning")
    ]  # nothing is executed
    NBProcessor(nb=nb, procs=run).process()
    meta, cells = {**nb.frontmatter_}, []
    if name == "index":
        meta["title"] = START
    for i, cell in enumerate(nb.cells):
        try:
            if cell.cell_type == "raw":
                continue
            source = cell.source
            if cell.cell_type == "markdown":
                if source := BADGE.sub("", source).strip():
                    cells.append(
                        nbformat.v4.new_markdown_cell(
                            prose(name, linker.linked(source), anchors, symbols)
                        )
                    )
                continue
            if shown := SHOWN.search(source):
                blocks = [api(module, one) for one in shown_names(shown[1])]
                cells.append(nbformat.v4.new_markdown_cell("\n\n".join(blocks)))
                continue
            options = re.findall(r"^#\| *(.+?) *$", source, re.M)
            unknown = [
                o for o in options if o not in TAGS and o.split(":")[0].split()[0] not in SILENT
            ]
            if unknown:
                raise SiteError(f"the option {unknown[0]!r} is not known here")
            body = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
            outputs = nbformat.from_dict(
                json.loads(json.dumps(cell.get("outputs", []), default=dict))
            )
            for o in outputs:
                if "text/markdown" in o.get("data", {}):
                    o.data["text/markdown"] = prose(
                        name, "".join(o.data["text/markdown"]), anchors, symbols
                    )
            if not body and not outputs:
                continue
            seen = {
                "tags": [TAGS[o] for o in options if o in TAGS],
                "mystnb": {"image": {"alt": figure_alt(body), "classes": wide(outputs)}},
            }
            cells.append(nbformat.v4.new_code_cell(near(body), outputs=outputs, metadata=seen))
        except SiteError as e:
            raise SiteError(
                f"nbs/{name}.ipynb, cell {i} ({cell.source.strip().splitlines()[0][:60]}): {e}"
            ) from None
    file = f"nbs/{name}.ipynb"
    head = [
        f"# {meta['title']}",
        f'<div class="lead">\n\n{meta.get("description", "")}\n\n</div>',
        f"[Open in Colab]({COLAB}/blob/{BRANCH}/{file}){{.button}} "
        f"[Source]({GITHUB}/blob/{BRANCH}/{file}){{.button}}",
    ]
    if name in DOWNLOADS:
        words, target = DOWNLOADS[name]
        head.append(f'<a class="button" href="{target}">{words}</a>')
    kernel = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    return meta, nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("\n\n".join(head)), *cells], metadata=kernel
    )


def sections(names: list) -> dict:
    "The sidebar: which pages stand under which caption"
    found, left = {}, list(names)
    for caption, patterns in SIDEBAR.items():
        fits = [n for p in patterns.split() for n in left if fnmatch.fnmatchcase(n, p)]
        found[caption] = list(dict.fromkeys(fits))  # in the order of the patterns
        left = [n for n in left if n not in found[caption]]
    if left:
        raise SiteError(f"nbs/{left[0]}.ipynb: belongs to no part of the sidebar")
    return {caption: ns for caption, ns in found.items() if ns}


def commands() -> str:
    "Each command and its flags, from the functions that settings.ini names"
    base = importlib.import_module(f"{LIB}.engine.base")
    parts = [
        "# Commands\n\nThe flags of each command. A flag may be spelled with `_` or `-`; an "
        "error is one line and ends with exit code 2."
    ]
    for script in get_config().console_scripts.split():
        name = script.partition("=")[0]
        parser = base.make_parser(
            getattr(importlib.import_module(f"{LIB}.{base.COMMANDS[name]}"), name)
        )

        def once(spellings):
            return dict.fromkeys(
                "--" + s[2:].replace("-", "_") if s.startswith("--") else s for s in spellings
            )

        rows = [
            (
                ", ".join(f"`{o}`" for o in once(a.option_strings or [a.dest])),
                (a.help or "").replace("%%", "%"),
            )
            for a in parser._actions
        ]
        words = re.findall(r"\[[^]]*\]|\S+", parser.format_usage().removeprefix("usage: "))
        usage = textwrap.fill(
            " ".join(re.sub(r"\s+", "\xa0", w) for w in words),
            84,
            subsequent_indent="    ",
            break_on_hyphens=False,
        ).replace("\xa0", " ")
        lead = f"{parser.description.rstrip('.')}. Made by {{py:obj}}`{name}`."
        parts.append(
            f"## {name}\n\n{lead}\n\n```text\n{usage}\n```\n\n{table(['flag', 'meaning'], rows)}"
        )
    return "\n\n".join(parts) + "\n"


def credits(names: list) -> str:
    "Every paper, repository and other source that the notebooks link to, and where"
    found, parts = {}, {"Papers": [], "Repositories": [], "Courses, standards and other pages": []}
    for name in names:
        nb = read_nb(ROOT / "nbs" / f"{name}.ipynb")
        title = START if name == "index" else re.search(r"^# (.+)", written(nb), re.M)[1]
        tables = [
            "".join(o.data["text/markdown"])
            for c in nb.cells
            for o in c.get("outputs", [])
            if "text/markdown" in o.get("data", {})
        ]
        for label, url in re.findall(
            r"(?<!!)\[([^\]]+)\]\((https?://[^)\s]+)\)", "\n".join([written(nb), *tables])
        ):
            if url.startswith((HOME, GITHUB, COLAB)):
                continue
            if repository := re.match(r"https://github\.com/([^/]+/[^/#]+)", url):
                url, label = repository[0], repository[1]
            labels, pages = found.setdefault(url.rstrip("/"), ([], {}))
            labels.append(label)
            pages[page(name)] = title
    for url, (labels, pages) in found.items():
        paper, repository = (
            re.search(r"arxiv\.org|aclanthology|jmlr|proceedings|doi\.org|openreview", url),
            url.startswith("https://github.com"),
        )
        row = (
            f"[{max(labels, key=len)}]({url})",
            ", ".join(f"[{t}](../{p}.ipynb)" for p, t in pages.items()),
        )
        parts[
            "Papers"
            if paper
            else "Repositories"
            if repository
            else "Courses, standards and other pages"
        ].append(row)
    lead = (
        "# Credits\n\nWhat this library learns from. The facts and formulas are theirs; each "
        "page that uses one says so at its place."
    )
    return (
        "\n\n".join(
            [
                lead,
                *(
                    f"## {part}\n\n{table(['source', 'used in'], sorted(rows))}"
                    for part, rows in parts.items()
                ),
            ]
        )
        + "\n"
    )


def home(nb, meta: dict, toctrees: str) -> tuple:
    """The first screen out of index.ipynb: picture, commands, the table of what is proven; and the
    picture's bytes"""
    fences = re.findall(r"^```sh\n.*?^```", written(nb), re.M | re.S)[:2]
    proven = re.search(r"^## What is proven.*?^(\|.+?)\n(?!\|)", written(nb), re.M | re.S)
    pictures = [
        (c.source, o.data["image/png"])
        for c in nb.cells
        for o in c.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]
    if len(fences) < 2 or not proven or not pictures:
        raise SiteError(
            "nbs/index.ipynb: needs a picture, two sh fences and a table `What is proven`"
        )
    return (
        f"""# {LIB}

<div class="lead">

{meta["description"]}

</div><div class="home"><div>

![{figure_alt(pictures[0][0])}](picture.png)

</div><div>

{fences[0]}

{fences[1]}

</div></div>

[{START}](start.ipynb){{.button}} [Train your first model]({FIRST}){{.button}}
[The model](model.ipynb){{.button}}
[Open in Colab]({COLAB}/blob/{BRANCH}/nbs/{FIRST}){{.button}} [GitHub]({GITHUB}){{.button}}

<div class="proven">

{proven[1]}

</div>

{toctrees}
""",
        base64.b64decode(pictures[0][1]),
    )


def write(source: Path):
    "The whole site's source"
    names = sorted(
        f.relative_to(ROOT / "nbs").with_suffix("").as_posix()
        for f in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in f.parts
    )
    anchors = {n: headings(read_nb(ROOT / "nbs" / f"{n}.ipynb")) for n in names} | {
        n: {} for n in MADE
    }
    syms = importlib.import_module(f"{LIB}._modidx").d["syms"]
    symbols = {
        url: full.removeprefix(f"{module}.")
        for module, s in syms.items()
        for full, (url, _) in s.items()
    }
    leads, terms = {}, read_terms(ROOT / "nbs/reference/glossary.ipynb")
    for name in names:
        meta, nb = convert(name, anchors, symbols, terms)
        target = source / f"{page(name)}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        leads[page(name)] = (meta["title"], meta.get("description", ""))
        nbformat.write(nb, target)
        if name == "index":
            index, index_meta = nb, meta
    (source / "reference").mkdir(exist_ok=True)
    for made, text in zip(MADE, (commands(), credits(names))):
        (source / f"{made}.md").write_text(text, encoding="utf-8")
    leads |= {
        MADE[0]: ("Commands", "the flags of each command"),
        MADE[1]: ("Credits", "papers, courses and repositories that this learns from"),
    }
    tree = {caption: [page(n) for n in ns] for caption, ns in sections(names + MADE).items()}
    toctrees = "\n\n".join(
        f"```{{toctree}}\n:caption: {c}\n:hidden:\n\n" + "\n".join(ps) + "\n```"
        for c, ps in tree.items()
    )
    text, picture = home(index, index_meta, toctrees)
    (source / "index.md").write_text(text, encoding="utf-8")
    (source / "picture.png").write_bytes(picture)
    listed = "\n\n".join(
        f"## {c}\n\n" + "\n".join(f"- [{leads[p][0]}]({HOME}/{p}.html): {leads[p][1]}" for p in ps)
        for c, ps in tree.items()
    )
    (source / "llms.txt").write_text(
        f"# {LIB}\n\n> {index_meta['description']}\n\n{listed}\n", encoding="utf-8"
    )


def breakable(text: str) -> str:
    "HTML whose tables may break a long name in code after a mark within it"

    def name(m):
        return m[0] if m[0].startswith("--") else re.sub(r"(?<=[_/.,=(\[])(?=\w)", "<wbr/>", m[0])

    def cell(m):
        return re.sub(r'(?<=<span class="pre">)[^<]+', name, m[0])

    return re.sub(r"<td>.*?</td>", cell, text, flags=re.S)


def build(source: Path, out: Path):
    "HTML of the source; any warning is an error"
    static = source / "_static"
    static.mkdir()
    shutil.copy(ROOT / ".ci/docs.css", static)
    (static / "icon.svg").write_text(ICON)
    shutil.copy(
        next(f for f in files("sphinx-mathjax-offline") if f.name == "tex-svg.js").locate(), static
    )
    theme = dict.fromkeys(
        ("navbar_start", "navbar_center", "navbar_end", "navbar_persistent"), []
    )  # else a second header appears
    theme |= dict(
        repository_url=GITHUB,
        use_repository_button=True,
        use_download_button=False,
        show_toc_level=2,
    )
    conf = dict(
        project=LIB,
        author=get_config().author,
        copyright=get_config().copyright,
        html_title=LIB,
        language="en",
        extensions=["myst_nb", "sphinx_copybutton", "sphinx.ext.githubpages"],
        exclude_patterns=["_static"],
        html_theme="sphinx_book_theme",
        html_theme_options=theme,
        html_context={"default_mode": "auto"},
        pygments_style="tango",
        highlight_language="none",
        smartquotes=False,
        html_static_path=[str(static)],
        html_css_files=["docs.css"],
        html_favicon=str(static / "icon.svg"),
        html_extra_path=[str(source / "llms.txt")],
        html_use_index=False,
        html_show_sourcelink=False,
        html_copy_source=False,
        add_function_parentheses=False,
        nb_execution_mode="off",
        nb_render_markdown_format="myst",
        nb_merge_streams=True,
        myst_enable_extensions=["dollarmath", "amsmath", "alert", "attrs_inline"],
        myst_heading_anchors=4,
        mathjax_path="tex-svg.js",
        myst_heading_slug_func="docutils.nodes.make_id",
        nitpicky=True,
        nitpick_ignore_regex=[(r"py:(?!obj).*", ".*")],
    )
    app = Sphinx(
        source,
        None,
        out,
        source.parent / "doctrees",
        "html",
        confoverrides=conf,
        warningiserror=True,
        status=None,
        freshenv=True,
    )
    app.build()
    for file in out.rglob(
        "*.html"
    ):  # the theme names its search button with other words than it shows
        text = file.read_text(encoding="utf-8")
        text = re.sub(
            r'(<img [^>]*class="wide")', r'\1 tabindex="0"', breakable(text)
        )  # the keyboard can scroll it, too
        file.write_text(
            re.sub(r'(search-button-field[^>]*?) aria-label="Search"', r"\1", text, flags=re.S),
            encoding="utf-8",
        )
    if app.statuscode:
        raise SiteError(f"{app._warncount} warnings, see above")


def add_downloads(out: Path):
    "The deck of slides, and the article as one file; Sphinx builds once in a process"
    subprocess.run([sys.executable, ROOT / ".ci/slides.py", out / "talk"], check=True)
    article.main(out / "article")


if __name__ == "__main__":
    started = time.time()
    work, out = ROOT / "_proc", ROOT / get_config().doc_path.name
    for folder in (work, out):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        write(work / "site")
        build(work / "site", work / "html")
        (work / "html").rename(out)
        add_downloads(out)
    except SiteError as e:
        sys.exit(f"docs: {e}")
    print(
        f"{sum(1 for _ in out.rglob('*.html'))} pages in {out.name}/, {time.time() - started:.0f} s"
    )
