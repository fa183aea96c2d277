"Builds the documentation site from nbs/ into _docs/: python .ci/docs.py   (nbdev's processors, then Sphinx; no Quarto, no network)"
import ast, base64, fnmatch, importlib, inspect, json, re, shutil, sys, textwrap, time
from importlib.metadata import files
from pathlib import Path

import nbformat
from docutils.nodes import make_id
from fastcore.docments import docments
from nbdev.config import get_config
from nbdev.process import NBProcessor, read_nb
from nbdev.processors import FilterDefaults
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
LIB = get_config().lib_name
GITHUB, HOME, BRANCH = get_config().git_url, get_config().doc_host + get_config().doc_baseurl, get_config().branch
COLAB = GITHUB.replace("https://github.com", "https://colab.research.google.com/github")
SIDEBAR = {"Start": "index", "Build the model": "0[0-2]_*", "Train": "03_*", "Use": "0[4-9]_*", "Tutorials": "tutorials/*", "Reference": "map reference/*"}
MADE = ["reference/commands", "reference/credits"]         # pages that come from the code and from all notebooks together
SILENT = ("slow", "cuda", "network", "hide_input", "eval")  # options that change a test or were dealt with by nbdev
TAGS = {"echo: false": "remove-input", "output: false": "remove-output", "include: false": "remove-cell", "code-fold: true": "hide-input"}
QUARTO = re.compile(r"^:{3,}|\{[.#][\w-]+[^}]*\}|\{\{<|^\{target=|(?<![\w`])@(fig|tbl|sec|eq)-\w", re.M)
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.M | re.S)


ICON = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path d="M2 14 13 2l1 1L5 14z" fill="#459db9"/></svg>'     # a quill


class SiteError(Exception):
    "What cannot be shown, with the notebook and the cell"


def page(name: str) -> str:
    "A notebook's page under nbdev's name: `02_model` is `model`"
    if name == "index": return "start"
    return re.sub(r"(^|/)\d+[a-z]?_", r"\1", name)


def headings(nb) -> dict:
    "Jupyter's anchor of each heading of a notebook, and the site's"
    prose = "\n\n".join(CODE.sub(lambda m: m[0].strip("`") if not m[0].startswith("```") else "", c.source) for c in nb.cells if c.cell_type == "markdown")
    return {text.strip().replace(" ", "-"): make_id(text) for text in re.findall(r"^#+ +(.+)$", prose, re.M)}


def link(name: str, target: str, anchors: dict) -> str:
    "Where a link of notebook `name` leads on the site; `anchors`: the headings of every notebook"
    path, _, anchor = target.partition("#")
    if re.match(r"\w+:", target): return target
    file = (ROOT/"nbs"/name).parent/path if path else ROOT/"nbs"/f"{name}.ipynb"
    if file.suffix == ".ipynb":
        other = file.resolve().relative_to(ROOT/"nbs").with_suffix("").as_posix()
        if other not in anchors: raise SiteError(f"no notebook {target}")
        if anchor and anchor not in anchors[other]: raise SiteError(f"no heading {target}")
        up = "../"*page(name).count("/")
        return f"{up}{page(other)}.{'md' if other in MADE else 'ipynb'}" + (f"#{anchors[other][anchor]}" if anchor else "")
    if (ROOT/path).exists() and not anchor: return f"{GITHUB}/blob/{BRANCH}/{path}"
    raise SiteError(f"dead link {target}")


def prose(name: str, text: str, anchors: dict, symbols: dict) -> str:
    "Markdown of a notebook with the site's links; refuses what only Quarto knows"
    if bad := QUARTO.search(CODE.sub("", text)): raise SiteError(f"Quarto syntax {bad[0]!r}; write plain Markdown")
    text = re.sub(r"\[`([^`\]]+)`\]\(" + re.escape(HOME) + r"/([^)]+)\)", lambda m: f"{{py:obj}}`{m[1]} <{symbols[m[2]]}>`", text)
    return "".join(part if part.startswith("```") else re.sub(r"\]\(([^)\s]+)\)", lambda m: f"]({link(name, m[1], anchors)})", part)
                   for part in re.split(r"(^```.*?^```)", text, flags=re.M | re.S))


def cell_text(value) -> str: return "" if value is None else f"`{ast.unparse(value)}`".replace("|", r"\|")


def parameters(node, notes: dict) -> str:
    "The table of a signature's parameters"
    args = node.args; plain = args.posonlyargs + args.args
    rows = [*zip(plain, [None]*(len(plain) - len(args.defaults)) + args.defaults), *([(args.vararg, None)] if args.vararg else []),
            *zip(args.kwonlyargs, args.kw_defaults), *([(args.kwarg, None)] if args.kwarg else [])]
    rows = [[f"`{a.arg}`", cell_text(a.annotation), cell_text(d), (notes.get(a.arg) or "").replace("|", r"\|")] for a, d in rows if a.arg not in ("self", "cls")]
    if node.returns is not None or notes.get("return"): rows.append(["*gives*", cell_text(node.returns), "", (notes.get("return") or "").replace("|", r"\|")])
    kept = [i for i in range(4) if i == 0 or any(r[i] for r in rows)]                                   # no empty columns
    return "\n".join("| " + " | ".join(r[i] for i in kept) + " |" for r in [["parameter", "type", "default", "meaning"], ["---"]*4, *rows]) if len(kept) > 1 else ""


def constructor(node):
    "The definition that says what a class is made from: its `__init__`, or a dataclass's fields"
    inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if inits: return inits[0]
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)] if "dataclass" in map(ast.unparse, node.decorator_list) else []
    text = ", ".join(ast.unparse(n) for n in sorted(fields, key=lambda n: n.value is not None))
    return ast.parse(f"def __init__({text}): pass").body[0]


def api(module: str, name: str, depth: int = 0) -> str:
    "The block of one definition: signature, source link, table of parameters, code"
    obj = importlib.import_module(module)
    for part in name.split("."): holder, obj = obj, getattr(obj, part)
    if "." in name and not callable(obj): static = inspect.getattr_static(holder, part); obj = getattr(static, "fget", None) or static.func   # a property
    lines, start = inspect.getsourcelines(obj); source = textwrap.dedent("".join(lines)).rstrip()
    node = ast.parse(source).body[0]; is_class = isinstance(node, ast.ClassDef); made = constructor(node) if is_class else node
    made.args.args = [a for a in made.args.args if a.arg not in ("self", "cls")]
    signature = f"{name}({ast.unparse(made.args)})" + (f" -> {ast.unparse(made.returns)}" if made.returns and not is_class else "")
    url = f"{GITHUB}/blob/{BRANCH}/{module.replace('.', '/')}.py#L{start}"
    methods = [n.name for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")] if is_class else []
    code = [] if depth else ["<details open><summary>The code</summary>", f"```python\n{source}\n```", "</details>"]
    fence, kind = "`"*(5 - depth), "class" if is_class else "method" if "." in name else "function"
    source_link = f'<a class="source" href="{url}">source<span class="hidden"> of {name}</span></a>'
    nbdevs = f'<span id="{name.lower()}"></span>' if name != name.lower() else ""                        # the anchor that other libraries link to
    return "\n\n".join(filter(None, [f"{fence}{{py:{kind}}} {signature}", source_link + nbdevs, ast.get_docstring(node) or "",
                                     parameters(made, docments(obj)), *code, *(api(module, f"{name}.{m}", depth + 1) for m in methods), fence]))


def figure_alt(source: str) -> str:
    "What a plot shows, in the words of its own labels"
    words = re.findall(r"(?:title|xlabel|ylabel|label|suptitle)\s*[=(]\s*f?[\"']([^\"']+)", source)
    return "Figure: " + (re.sub(r"\{[^}]*\}", "…", "; ".join(dict.fromkeys(words))) or "made by the code above")


def convert(name: str, anchors: dict, symbols: dict):
    "One notebook as MyST-NB reads it"
    raw = nb = read_nb(ROOT/"nbs"/f"{name}.ipynb")
    module = next((f"{LIB}.{m}" for c in raw.cells for m in re.findall(r"^#\| *default_exp (\w+)", c.source, re.M)), None)
    run = [p for p in FilterDefaults().procs() if p.__name__ not in ("exec_show_docs", "insert_warning")]   # nothing is executed
    NBProcessor(nb=nb, procs=run).process()
    meta, cells = {**nb.frontmatter_}, []
    if name == "index": meta["title"] = "Getting started"
    for i, cell in enumerate(nb.cells):
        try:
            if cell.cell_type == "raw": continue
            source = cell.source
            if cell.cell_type == "markdown":
                if source := re.sub(r"<a href=\S+><img src=\S+badge.svg\S*[^>]*></a>", "", source).strip(): cells.append(nbformat.v4.new_markdown_cell(prose(name, source, anchors, symbols)))
                continue
            if shown := re.search(r"^show_doc\(([\w.]+)", source, re.M):
                cells.append(nbformat.v4.new_markdown_cell(api(module, shown[1]))); continue
            options = re.findall(r"^#\| *(.+?) *$", source, re.M)
            if unknown := [o for o in options if o not in TAGS and o.split(":")[0].split()[0] not in SILENT]: raise SiteError(f"the option {unknown[0]!r} is not known here")
            body = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
            tags = [TAGS[o] for o in options if o in TAGS]
            outputs = nbformat.from_dict(json.loads(json.dumps(cell.get("outputs", []), default=dict)))
            for o in outputs:
                if "text/markdown" in o.get("data", {}): o.data["text/markdown"] = prose(name, "".join(o.data["text/markdown"]), anchors, symbols)
            if not body and not outputs: continue
            cells.append(nbformat.v4.new_code_cell(body, outputs=outputs, metadata={"tags": tags, "mystnb": {"image": {"alt": figure_alt(body)}}}))
        except SiteError as e: raise SiteError(f"nbs/{name}.ipynb, cell {i} ({cell.source.strip().splitlines()[0][:60]}): {e}") from None
    file = f"nbs/{name}.ipynb"
    head = [f"# {meta['title']}", f"<div class=\"lead\">\n\n{meta.get('description', '')}\n\n</div>",
            f"[Open in Colab]({COLAB}/blob/{BRANCH}/{file}){{.button}} [Source]({GITHUB}/blob/{BRANCH}/{file}){{.button}}"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    return meta, nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("\n\n".join(head)), *cells], metadata=kernel)


def sections(names: list) -> dict:
    "The sidebar: which pages stand under which caption"
    found = {caption: [n for p in patterns.split() for n in names if fnmatch.fnmatchcase(n, p)] for caption, patterns in SIDEBAR.items()}
    if lost := set(names) - {n for ns in found.values() for n in ns}: raise SiteError(f"nbs/{min(lost)}.ipynb: belongs to no part of the sidebar")
    return {caption: ns for caption, ns in found.items() if ns}


def commands() -> str:
    "Each command and its flags, from the functions that settings.ini names"
    make_parser = importlib.import_module(f"{LIB}.base").make_parser
    parts = ["# Commands\n\nThe flags of each command. A flag may be spelled with `_` or `-`; an error is one line and ends with exit code 2."]
    for script in get_config().console_scripts.split():
        name, module, main = re.split("[=:]", script)
        parser = make_parser(getattr(importlib.import_module(module), main.removesuffix("_main")))
        rows = [(", ".join(f"`{o}`" for o in a.option_strings) or f"`{a.dest}`", (a.help or "").replace("%%", "%").replace("|", r"\|")) for a in parser._actions]
        usage = re.sub(r"\s+", " ", parser.format_usage().removeprefix("usage: ")).strip()
        table = "\n".join(["| flag | meaning |", "|---|---|", *(f"| {f} | {h} |" for f, h in rows)])
        parts.append(f"## {name}\n\n{parser.description.rstrip('.')}. Made by {{py:obj}}`{name}`.\n\n```text\n{usage}\n```\n\n{table}")
    return "\n\n".join(parts) + "\n"


def credits(names: list) -> str:
    "Every paper, repository and other source that the notebooks link to, and where"
    found = {}
    for name in names:
        nb = read_nb(ROOT/"nbs"/f"{name}.ipynb")
        title = re.search(r"^# (.+)", "\n".join(c.source for c in nb.cells if c.cell_type == "markdown"), re.M)[1]
        texts = [c.source for c in nb.cells if c.cell_type == "markdown"] + ["".join(o.data["text/markdown"]) for c in nb.cells if c.cell_type == "code"
                 for o in c.outputs if "text/markdown" in o.get("data", {})]
        for label, url in re.findall(r"(?<!!)\[([^\]]+)\]\((https?://[^)\s]+)\)", "\n".join(texts)):
            if url.startswith((HOME, GITHUB, COLAB)): continue
            labels, pages = found.setdefault(url.rstrip("/"), ([], {})); labels.append(label); pages[page(name)] = title
    def kind(url): return "Papers" if re.search(r"arxiv\.org|aclanthology|jmlr|proceedings|doi\.org|openreview", url) else "Repositories" if re.match(r"https://github\.com/[^/]+/[^/]+", url) else "Courses, standards and other pages"
    parts = ["# Credits\n\nWhat this library learns from. The facts and formulas are theirs; each page that uses one says so at its place."]
    for part in ("Papers", "Repositories", "Courses, standards and other pages"):
        rows = sorted((re.sub(r"https://github\.com/([^/]+/[^/]+).*", r"\1", url) if part == "Repositories" else max(labels, key=len).replace("|", r"\|"), url,
                       ", ".join(f"[{t}](../{p}.ipynb)" for p, t in pages.items())) for url, (labels, pages) in found.items() if kind(url) == part)
        parts.append(f"## {part}\n\n" + "\n".join(["| source | used in |", "|---|---|", *(f"| [{label}]({url}) | {pages} |" for label, url, pages in rows)]))
    return "\n\n".join(parts) + "\n"


def home(nb, meta: dict, toctrees: str) -> str:
    "The first screen: the picture, the commands and the table of what is proven, out of index.ipynb"
    text = "\n\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    fences = re.findall(r"^```sh\n.*?^```", text, re.M | re.S)[:2]
    proven = re.search(r"^## What is proven.*?\n(.+?)(?=^## |\Z)", text, re.M | re.S)
    picture = next((c for c in nb.cells if any("image/png" in o.get("data", {}) for o in c.get("outputs", []))), None)
    if len(fences) < 2 or not proven or not picture: raise SiteError("nbs/index.ipynb: needs a picture, two sh fences and a part `What is proven`")
    claims = proven[1].strip()
    if claims.startswith("- "):                                   # a list becomes a table: what holds, and by how much
        cut = [re.split(r": |; ", line[2:].rstrip("."), maxsplit=1) + [""] for line in claims.splitlines() if line.startswith("- ")]
        claims = "\n".join(["| what is proven | how far |", "|---|---|", *(f"| {c[0]} | {c[1]} |" for c in cut)])
    return f"""# {LIB}

<div class="lead">

{meta['description']}

</div><div class="home"><div>

![{figure_alt(picture.source)}](picture.png)

</div><div>

{fences[0]}

{fences[1]}

[Start](start.ipynb){{.button}} [The model](model.ipynb){{.button}} [Open in Colab]({COLAB}/blob/{BRANCH}/nbs/02_model.ipynb){{.button}} [GitHub]({GITHUB}){{.button}}

</div></div><div class="proven">

{claims}

</div>

{toctrees}
""", next(o.data["image/png"] for o in picture.outputs if "image/png" in o.get("data", {}))


def write(source: Path):
    "The whole site's source"
    names = sorted(f.relative_to(ROOT/"nbs").with_suffix("").as_posix() for f in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts)
    anchors = {n: headings(read_nb(ROOT/"nbs"/f"{n}.ipynb")) for n in names} | {n: {} for n in MADE}
    syms = importlib.import_module(f"{LIB}._modidx").d["syms"]
    symbols = {url: full.removeprefix(f"{module}.") for module, s in syms.items() for full, (url, _) in s.items()}
    leads = {}
    for name in names:
        meta, nb = convert(name, anchors, symbols)
        target = source/f"{page(name)}.ipynb"; target.parent.mkdir(parents=True, exist_ok=True)
        leads[page(name)] = (meta["title"], meta.get("description", "")); nbformat.write(nb, target)
        if name == "index": index, index_meta = nb, meta
    (source/"reference").mkdir(exist_ok=True)
    (source/"reference/commands.md").write_text(commands(), encoding="utf-8"); leads[MADE[0]] = ("Commands", "the flags of each command")
    (source/"reference/credits.md").write_text(credits(names), encoding="utf-8"); leads[MADE[1]] = ("Credits", "papers, courses and repositories that this learns from")
    tree = {caption: [page(n) for n in ns] for caption, ns in sections(names + MADE).items()}
    toctrees = "\n\n".join(f"```{{toctree}}\n:caption: {c}\n:hidden:\n\n" + "\n".join(ps) + "\n```" for c, ps in tree.items())
    text, picture = home(index, index_meta, toctrees)
    (source/"index.md").write_text(text, encoding="utf-8"); (source/"picture.png").write_bytes(base64.b64decode(picture))
    listed = "\n\n".join(f"## {c}\n\n" + "\n".join(f"- [{leads[p][0]}]({HOME}/{p}.html): {leads[p][1]}" for p in ps) for c, ps in tree.items())
    (source/"llms.txt").write_text(f"# {LIB}\n\n> {index_meta['description']}\n\n{listed}\n", encoding="utf-8")


def build(source: Path, out: Path):
    "HTML of the source; any warning is an error"
    static = source/"_static"; static.mkdir()
    shutil.copy(ROOT/".ci/docs.css", static)
    (static/"icon.svg").write_text(ICON)
    shutil.copy(next(f for f in files("sphinx-mathjax-offline") if f.name == "tex-svg.js").locate(), static)
    conf = dict(project=LIB, author=get_config().author, copyright=get_config().copyright, html_title=LIB, language="en", extensions=["myst_nb", "sphinx_copybutton", "sphinx.ext.githubpages"],
                html_theme="sphinx_book_theme", html_context={"default_mode": "auto"}, html_static_path=[str(static)], html_favicon=str(static/"icon.svg"), html_css_files=["docs.css"], html_extra_path=[str(source/"llms.txt")], exclude_patterns=["_static"],
                nb_execution_mode="off", nb_render_markdown_format="myst", nb_merge_streams=True, myst_enable_extensions=["dollarmath", "amsmath", "alert", "attrs_inline"],
                myst_heading_anchors=4, myst_heading_slug_func="docutils.nodes.make_id", nitpicky=True, nitpick_ignore_regex=[(r"py:(?!obj).*", ".*")],
                mathjax_path="tex-svg.js", add_function_parentheses=False, pygments_style="tango", html_show_sourcelink=False, html_copy_source=False,
                html_theme_options=dict(navbar_start=[], navbar_center=[], navbar_end=[], navbar_persistent=[], repository_url=GITHUB, use_repository_button=True, use_download_button=False, show_toc_level=2))
    app = Sphinx(source, None, out, source.parent/"doctrees", "html", confoverrides=conf, warningiserror=True, status=None, freshenv=True)
    app.build()
    for file in out.rglob("*.html"):                              # the theme names its search button with other words than it shows
        file.write_text(re.sub(r'(search-button-field[^>]*?) aria-label="Search"', r"\1", file.read_text(encoding="utf-8"), flags=re.S), encoding="utf-8")
    if app.statuscode: raise SiteError(f"{app._warncount} warnings, see above")


if __name__ == "__main__":
    started = time.time(); work, out = ROOT/"_proc", ROOT/get_config().doc_path.name
    for folder in (work, out): shutil.rmtree(folder, ignore_errors=True)
    try: write(work/"site"); build(work/"site", work/"html"); (work/"html").rename(out)
    except SiteError as e: sys.exit(f"docs: {e}")
    print(f"{sum(1 for _ in out.rglob('*.html'))} pages in {out.name}/, {time.time() - started:.0f} s")
