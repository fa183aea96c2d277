"""Builds the documentation site from nbs/ into _docs/: python .ci/docs.py   (nbdev's processors,
then Sphinx; no Quarto; no network but npm's, for the playground)"""

import ast
import base64
import fnmatch
import html
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
import playground
from figures import figure_alt
from glossary import KEPT, Linker, pattern, read_terms

ROOT = Path(__file__).resolve().parent.parent
LIB = get_config().lib_name
GITHUB, HOME, BRANCH = (
    get_config().git_url,
    get_config().doc_host + get_config().doc_baseurl,
    get_config().branch,
)
COLAB = GITHUB.replace("https://github.com", "https://colab.research.google.com/github")
SIDEBAR = {
    "Getting started": "index tutorials/shakespeare_training_notebook how_do_i "
    "playground",
    "Lessons": "0[0-6]_*",
    "Engine: from files to tokens": "engine/base engine/encodings engine/text engine/records "
    "engine/documents engine/downloads engine/folders engine/corpora engine/vocab engine/tokens",
    "Engine: models and training": "engine/settings engine/attention engine/checkpoints "
    "engine/optimizers engine/recipe engine/report engine/tensorboard engine/device engine/state "
    "engine/run engine/tune engine/show",
    "Engine: writing and answering": "engine/decode engine/speculative engine/compiled "
    "engine/serve engine/batching engine/gguf engine/export engine/instructions engine/tuning "
    "engine/lora engine/chat",
    "Engine: measuring": "engine/metrics engine/baselines engine/answers engine/preferences "
    "engine/evaluation engine/tasks engine/harness engine/copying engine/archive",
    "Engine: programs that a model wrote": "engine/isolation engine/supervisor engine/sandbox "
    "engine/exercises engine/pass_rate",
    "Engine: textbooks": "engine/functions engine/assistant engine/quality engine/synthetic",
    "Engine: more": "engine/*",
    "Applications": "07_* 08_* 09_*",
    "Tutorials": "tutorials/gpt_from_scratch tutorials/reading_a_loss_curve "
    "tutorials/tokenizers tutorials/architectures tutorials/tiny_stories "
    "tutorials/story_requests tutorials/datasets tutorials/licences_and_privacy "
    "tutorials/nanogpt_on_a_book tutorials/debugging "
    "tutorials/working_with_an_assistant tutorials/instruction_tuning "
    "tutorials/tuning_beside_trl tutorials/many_devices tutorials/textbooks_method "
    "tutorials/textbooks_case_study tutorials/*",
    "To tell others": "article talk",
    "Reference": "map reference/*",
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
SETTINGS = ("engine.decode.generate_ids", "engine.decode.Decoder.step", "generate.filter_logits")
OPEN = 20  # lines of source that a definition shows at once; a longer one is folded
DRAWS = re.compile(r"\b(ax|axes|axis|plt|fig|figure|panel)\b")
WORDS = re.compile(r"^<!-- index: (.+?) -->$", re.M)  # what a reader may search for at this place
ENTRY = "```{{index}} {}\n```"  # as Sphinx takes it; each word leads here
SEARCHED = ("searchtools.js", "language_data.js", "searchindex.js")  # scripts of the search page
ICONS = re.compile(
    r'<i class="((?:[\w-]+ )*?fa(?:[bs]|-solid|-brands) fa-([\w-]+)[^"]*)"([^>]*)>\s*</i>'
)
PARAMETERS = re.compile(r"<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>", re.S)  # of a signature
LINES = re.compile(
    r'(<div class="highlight-(?:ipython3|python|sh|yaml|text) notranslate"><div class="highlight">'
    r"<pre>)(.*?)(</pre>)",
    re.S,
)
PRINTED = re.compile(
    r'(<div class="output [^"]*highlight-[\w-]+ notranslate"><div class="highlight">)'
    r"<pre>(.*?)(</pre>)",
    re.S,
)
WIDTH, MOST = 85, 110  # characters that a line of output has room for; and in smaller type
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
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
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


def numbered(name: str, title: str) -> str:
    "A page's title in the sidebar: lessons have their numbers"
    number = re.match(r"(\d+)[a-z]?_", name)
    return f"{number[1]} {title}" if number else title


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


def given_names(node, notes: dict) -> list:
    "The rows of a signature's parameters: name, type, default, meaning"
    args = node.args
    plain = args.posonlyargs + args.args
    rows = [
        *zip(plain, [None] * (len(plain) - len(args.defaults)) + args.defaults),
        *([(args.vararg, None)] if args.vararg else []),
        *zip(args.kwonlyargs, args.kw_defaults),
        *([(args.kwarg, None)] if args.kwarg else []),
    ]
    return [
        [f"`{a.arg}`", cell_text(a.annotation), cell_text(d), notes.get(a.arg) or ""]
        for a, d in rows
        if a.arg not in ("self", "cls")
    ]


def definition(obj):
    "The tree of a function, or of what a class is made from; and the notes on its parameters"
    node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))).body[0]
    if isinstance(node, ast.ClassDef):
        node = constructor(node)
    return node, docments(inspect.unwrap(obj), args_kwargs=True)


def defined(full: str):
    "A function or class by its full name, such as `engine.decode.Decoder.step`"
    parts = full.split(".")
    cut = next(
        i for i, part in enumerate(parts) if i and (part[0].isupper() or i == len(parts) - 1)
    )
    obj = importlib.import_module(".".join([LIB, *parts[:cut]]))
    for part in parts[cut:]:
        obj = getattr(obj, part)
    return obj


def meant(note: str, module: str):
    'What a note such as "as of `generate`" names: a function or class of this library, or None'
    found = re.search(r"(?:\bof|\bby) `([A-Za-z_][\w.]*)`", note)
    if not found:
        return None
    first, *rest = found[1].split(".")
    obj = vars(importlib.import_module(module)).get(first)
    if obj is None:
        syms = importlib.import_module(f"{LIB}._modidx").d["syms"]
        homes = [home for home, names in syms.items() if f"{home}.{first}" in names]
        obj = homes and getattr(importlib.import_module(homes[0]), first)
    for part in rest:
        obj = getattr(obj, part, None)
    ours = getattr(obj, "__module__", "").startswith(LIB)
    return obj if ours and (inspect.isfunction(obj) or inspect.isclass(obj)) else None


def listed_settings(names: list) -> list:
    "The rows of settings that a note lists by their names, each from the first that defines it"
    rows = [row for full in SETTINGS for row in given_names(*definition(defined(full)))]
    found = {name: [row for row in rows if row[0] == f"`{name}`" and row[2]] for name in names}
    for name in names:
        if not found[name]:
            raise SiteError(f"{name}: none of {', '.join(SETTINGS)} has such a setting")
    return [found[name][0] for name in names]


def settings_of(node, notes: dict, module: str, name: str) -> list:
    "The rows of what a signature's `**settings` takes, those of others that it passes on too"
    rest = node.args.kwarg
    note = (rest and notes.get(rest.arg)) or ""
    names, obj = note.split(", "), meant(note, module)
    if len(names) > 2 and all(word.isidentifier() for word in names):
        rows = listed_settings(names)
    elif obj and obj.__name__ != name.rpartition(".")[2]:
        other, notes_there = definition(obj)
        rows = [row for row in given_names(other, notes_there) if row[2]]
        rows += settings_of(other, notes_there, obj.__module__, obj.__name__)
    else:
        return []
    own = {f"`{a.arg}`" for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
    names = [row[0].partition(" in ")[0] for row in rows]
    return [[f"{n} in `{rest.arg}`", *row[1:]] for n, row in zip(names, rows) if n not in own]


def parameters(node, notes: dict, module: str, name: str) -> str:
    "The table of a signature's parameters, with the settings that it takes by name"
    rows = given_names(node, notes) + settings_of(node, notes, module, name)
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
            f"<details{' open' * (source.count(chr(10)) < OPEN)}><summary>The code</summary>",
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
                parameters(made, docments(inspect.unwrap(obj), args_kwargs=True), module, name),
                *code,
                *(api(module, f"{name}.{m}", depth + 1) for m in methods),
                fence,
            ],
        )
    )


def folded(body: str, outputs: list) -> str:
    """The prompt under which a cell is folded: imports, and code that mostly draws; None if it is
    shown"""
    try:
        statements = ast.parse(re.sub(r"^\s*[%!].*", "pass", body, flags=re.M)).body
    except SyntaxError:
        return None
    lines = [line for line in body.splitlines() if line.strip()]
    if len(lines) < 3 or not statements:
        return None
    if all(isinstance(s, (ast.Import, ast.ImportFrom)) for s in statements):
        return "Imports"
    helper = all(isinstance(s, ast.FunctionDef) for s in statements)
    if helper and re.match(r"def (show|draw|plot)_", body):
        return "A helper that draws"
    seen = any("image/png" in o.get("data", {}) for o in outputs)
    n_drawing = sum(bool(DRAWS.search(line)) for line in lines)
    if seen and len(lines) >= 5 and n_drawing >= len(lines) / 2:
        return "The code of the figure"
    return None


def entries(text: str, terms: list) -> str:
    """Markdown with the words under which the site's search leads to it: those that its author
    noted in a comment, and the terms that are explained here"""
    text = WORDS.sub(lambda m: ENTRY.format(", ".join(f"! {w}" for w in m[1].split(", "))), text)
    if not terms:
        return text
    head, rest = re.match(r"((?:#+ .+\n+)*)(.*)", text, re.S).groups()
    return head + ENTRY.format(", ".join(f"! {w}" for w in terms)) + "\n\n" + rest


def explained(cell: str, waiting: list) -> list:
    "The terms of the glossary that a cell is the first to name, on the page that explains them"
    text = KEPT.sub(" ", cell)
    return [t for t in waiting if any(re.search(pattern(form), text) for form in t.forms)]


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


def convert(name: str, anchors: dict, symbols: dict, terms: list = (), noted: set = ()):
    """One notebook as MyST-NB reads it; the first use of a term links to the glossary; `noted`:
    words for which the search leads elsewhere"""
    linker = Linker(name, terms)
    waiting = [t for t in terms if t.page == name]
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
                    here = explained(source, waiting)
                    waiting = [t for t in waiting if t not in here]
                    words = [form for t in here for form in t.forms if form not in noted]
                    text = prose(name, linker.linked(source), anchors, symbols)
                    text = playground.with_demo(entries(text, words))
                    cells.append(nbformat.v4.new_markdown_cell(text))
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
            prompt = folded(body, outputs)
            if prompt and "remove-input" not in seen["tags"]:
                seen["tags"] = list({*seen["tags"], "hide-input"})
                seen["mystnb"] |= {"code_prompt_show": prompt, "code_prompt_hide": prompt}
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
    """The first screen out of index.ipynb: picture, verse, doors, the first commands; below it the
    table of what is proven; and the picture's bytes"""
    text = written(nb)
    fences = re.findall(r"^```sh\n.*?^```", text, re.M | re.S)[:1]
    doors = re.findall(r"^- \*\*\[(.+?)\]\((\S+?)\)\*\*[:.] (.+)$", text, re.M)
    proven = re.search(r"^## What is proven.*?^(\|.+?)\n(?!\|)", text, re.M | re.S)
    outputs = [(c.source, o) for c in nb.cells for o in c.get("outputs", [])]
    pictures = [(s, o.data["image/png"]) for s, o in outputs if "image/png" in o.get("data", {})]
    verse = ["".join(o.text) for _, o in outputs if o.output_type == "stream"]
    if not fences or len(doors) != 3 or not proven or not pictures or not verse:
        raise SiteError(
            "nbs/index.ipynb: needs a picture, a printed text, three doors (- **[name](page)**: "
            "what for), an sh fence and a table `What is proven`"
        )
    links = "\n".join(
        f"[**{name}** {LINK.sub(lambda m: m[1], what)}]({page}){{.door}}"
        for name, page, what in doors
    )
    return (
        f"""# {LIB}

<div class="lead">

{meta["description"]}

</div><div class="home"><div>

![{figure_alt(pictures[0][0])}](picture.png)

</div><div class="verse">

```text
{verse[0].strip()}
```

</div></div><div class="doors">

{links}

</div><div class="first">

{fences[0]}

</div>

[{START}](start.ipynb){{.button}} [Train your first model]({FIRST}){{.button}}
[Open in Colab]({COLAB}/blob/{BRANCH}/nbs/{FIRST}){{.button}} [GitHub]({GITHUB}){{.button}}

<div class="proven">

**What is proven, in the pages and the tests**

{proven[1]}

</div>

{toctrees}
""",
        base64.b64decode(pictures[0][1]),
    )


def write(source: Path) -> dict:
    "The whole site's source; title and lead of each page"
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
    noted = {
        word
        for n in names
        for words in WORDS.findall(written(read_nb(ROOT / "nbs" / f"{n}.ipynb")))
        for word in words.split(", ")
    }
    for name in names:
        meta, nb = convert(name, anchors, symbols, terms, noted)
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
    listed = sections(names + MADE)
    toctrees = "\n\n".join(
        f"```{{toctree}}\n:caption: {c}\n:hidden:\n\n"
        + "\n".join(f"{numbered(n, leads[page(n)][0])} <{page(n)}>" for n in ns)
        + "\n```"
        for c, ns in listed.items()
    )
    text, picture = home(index, index_meta, toctrees)
    (source / "index.md").write_text(text, encoding="utf-8")
    (source / "picture.png").write_bytes(picture)
    tree = {caption: [page(n) for n in ns] for caption, ns in listed.items()}
    lines = "\n\n".join(
        f"## {c}\n\n" + "\n".join(f"- [{leads[p][0]}]({HOME}/{p}.html): {leads[p][1]}" for p in ps)
        for c, ps in tree.items()
    )
    (source / "llms.txt").write_text(
        f"# {LIB}\n\n> {index_meta['description']}\n\n{lines}\n", encoding="utf-8"
    )
    return leads | {"index": (LIB, index_meta["description"])}


def parameter_lines(match) -> str:
    "The parameters of a signature, a line each: a list of meanings without terms is no list"
    rows = match[1].replace("<dd>", '<span class="parameter">').replace("</dd>", "</span>")
    return f'<span class="parameters">{rows}</span>'


def breakable(text: str) -> str:
    "HTML whose tables may break a long name in code after a mark within it"

    def name(m):
        return m[0] if m[0].startswith("--") else re.sub(r"(?<=[_/.,=(\[])(?=\w)", "<wbr/>", m[0])

    def cell(m):
        return re.sub(r'(?<=<span class="pre">)[^<]+', name, m[0])

    return re.sub(r"<td>.*?</td>", cell, text, flags=re.S)


def lined(match) -> str:
    "A block of code whose long lines go on below, deeper than they began"
    start, code, end = match.groups()
    lines = []
    for line in code.removesuffix("\n").split("\n"):
        plain = re.sub(r"<[^>]+>", "", line)
        depth = len(plain) - len(plain.lstrip(" "))
        style = f' style="--i:{depth}"' if depth else ""
        lines.append(f'<span class="line"{style}>{line}\n</span>')
    return start + "".join(lines) + end


def fitted(match) -> str:
    "What a cell printed: lines a little too long in smaller type, longer ones go on below"
    start, text, end = match.groups()
    longest = max(len(html.unescape(re.sub(r"<[^>]+>", "", line))) for line in text.split("\n"))
    if longest <= WIDTH:
        return match[0]
    if longest <= MOST:
        return f'{start}<pre style="--fit:{WIDTH / longest:.3f}">{text}{end}'
    whole = lined(re.match(r"()(.*)()", text, re.S))
    return f'{start}<pre class="whole">{whole}{end}'


def drawn(script: str):
    "Gives each icon of the theme as a picture of its own, so that no page loads all of them"

    def icon(match):
        names, name, rest = match.groups()
        path = re.findall(
            rf'[,{{]"?{re.escape(name)}"?:\[(\d+),(\d+),\[[^\]]*\],"[^"]*","([^"]+)"', script
        )
        if not path:
            raise SiteError(f"no icon {name}")
        width, height, line = path[-1]  # the solid one, if there are two
        return (
            f'<svg class="{names} icon"{rest} viewBox="0 0 {width} {height}" aria-hidden="true">'
            f'<path fill="currentColor" d="{line}"/></svg>'
        )

    return icon


def card(name: str, title: str, lead: str) -> str:
    "What other sites show of a page that is linked there"
    words = re.sub(r"[`*]", "", lead)
    facts = {
        "og:title": title,
        "og:description": words,
        "og:type": "website",
        "og:url": f"{HOME}/{name}.html",
        "og:image": f"{HOME}/_images/picture.png",
    }
    return f'<meta name="description" content="{html.escape(words)}"/>' + "".join(
        f'<meta property="{key}" content="{html.escape(value)}"/>' for key, value in facts.items()
    )


def finish(out: Path, leads: dict):
    "What the theme leaves to be done: a search in the text alone, light pages, code that wraps"
    static = out / "_static"
    tools = static / "searchtools.js"
    search, main = tools.read_text(encoding="utf-8"), '[role="main"]'
    found = "return anchorContent.textContent"
    if search.count(f"`{main} ") != 1 or search.count(f"'{main}'") != 1 or found not in search:
        raise SiteError("the search script of Sphinx is not as it was: see `finish`")
    search = search.replace(f"`{main} ", "`article.bd-article ")
    search = search.replace(f"'{main}'", "'article.bd-article'")
    near = 'return (anchorContent.closest("section, dl") ?? anchorContent).textContent'
    tools.write_text(search.replace(found, near), encoding="utf-8")
    icon = drawn((static / "scripts/fontawesome.js").read_text(encoding="utf-8"))
    style = static / "styles/pydata-sphinx-theme.css"
    rules = re.sub(r"(?:\.fa-[\w-]+,?)+\{--fa:[^}]*\}", "", style.read_text(encoding="utf-8"))
    style.write_text(rules, encoding="utf-8")
    for heavy in {*static.rglob("fontawesome.js*"), *static.rglob("*.map")}:
        heavy.unlink()
    unused = re.compile(rf'\s*<script [^>]*src="[^"]*(?:{"|".join(SEARCHED)})[^>]*></script>')
    for file in out.rglob("*.html"):
        name = file.relative_to(out).with_suffix("").as_posix()
        text = file.read_text(encoding="utf-8")
        text = re.sub(r"\s*<script [^>]*fontawesome\.js[^>]*></script>", "", text)
        if name != "search":
            text = unused.sub("", text)
        text = ICONS.sub(icon, breakable(text))
        text = PRINTED.sub(fitted, LINES.sub(lined, text))
        if name == "index":
            title = f"<title>{LIB}: a language model that one person can read</title>"
            text = re.sub(r"<title>.*?</title>", title, text, count=1)
        if name in leads:
            text = text.replace("</title>", f"</title>\n    {card(name, *leads[name])}", 1)
        text = re.sub(r'(<img [^>]*class="wide")', r'\1 tabindex="0"', text)  # keys can scroll it
        text = text.replace('<summary aria-label="Toggle hidden content">', "<summary>")
        text = PARAMETERS.sub(parameter_lines, text)
        # the theme names its search button with other words than it shows
        text = re.sub(r'(search-button-field[^>]*?) aria-label="Search"', r"\1", text, flags=re.S)
        file.write_text(text, encoding="utf-8")


def build(source: Path, out: Path, leads: dict):
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
        python_maximum_signature_line_length=72,
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
    if app.statuscode:
        raise SiteError(f"{app._warncount} warnings, see above")
    finish(out, leads)


def add_downloads(out: Path):
    """The deck of slides, the article as one file, and what the playground loads; Sphinx builds
    once in a process"""
    subprocess.run([sys.executable, ROOT / ".ci/slides.py", out / "talk"], check=True)
    article.main(out / "article")
    playground.add(out / "_static/playground")


if __name__ == "__main__":
    started = time.time()
    work, out = ROOT / "_proc", ROOT / get_config().doc_path.name
    for folder in (work, out):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        leads = write(work / "site")
        build(work / "site", work / "html", leads)
        (work / "html").rename(out)
        add_downloads(out)
    except SiteError as e:
        sys.exit(f"docs: {e}")
    print(
        f"{sum(1 for _ in out.rglob('*.html'))} pages in {out.name}/, {time.time() - started:.0f} s"
    )
