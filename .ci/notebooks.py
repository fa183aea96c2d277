"""Whether the notebooks are fit to be read:  python .ci/notebooks.py [ROOT]
Looks at how pages are stored, and at what the modules import.
One line for each fault, with the notebook, the cell's number from 1 and its first line;
exit code 2 if there is one. Needs Python alone."""

import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVES = {
    "default_exp",
    "export",
    "hide",
    "slow",
    "cuda",
    "network",
    "echo",
    "code-fold",
}  # nbdev's; `echo: false` leaves code out of the README, `code-fold: true` folds it on the site
PRIVATE = re.compile(r"/home/|/root/|/work/|/tmp/|/Users/|/content/|C:\\+Users|site-packages")
QUARTO = re.compile(
    r"^:::.*|\{\{<.*|(?<=[\])\w \"'])\{[.#][A-Za-z][^}\n]*\}"
    r"|(?<![\w`])@(?:fig|tbl|sec|eq|lst)-\w+|^---\s*$(?=\n\w+:)",
    re.M,
)
SHOWS = (
    "print",
    "display",
    "plt.show",
    "show_doc",
    "Markdown",
    "HTML",
)  # calls that give an output whatever they are given
GROUND = ("engine.base", "engine.settings", "engine.attention")  # of the engine, below the lessons
READ = ("text/plain", "text/html", "text/markdown")


def notebooks(root: Path) -> list:
    "The notebooks of the project, in the order in which they are read"
    return sorted(
        p
        for p in (root / "nbs").rglob("*.ipynb")
        if not {".ipynb_checkpoints", "_proc"} & set(p.parts)
    )


def cells(path: Path, kind: str = None) -> list:
    "The cells of a notebook, of one kind or all"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as e:
        print(f"{path}: is not a notebook ({e})", file=sys.stderr)
        sys.exit(2)
    return [c for c in found if kind in (None, c["cell_type"])]


def source(cell):
    return "".join(cell["source"])


def body(text):
    return "\n".join(line for line in text.splitlines() if not line.startswith("#|")).strip()


def directives(cell):
    return re.findall(r"^#\| *([\w-]+)", source(cell), re.M)


def module_of(path: Path) -> str:
    "The module that a notebook writes, or None"
    return next(
        (
            m
            for c in cells(path, "code")
            for m in re.findall(r"#\| default_exp ([\w.]+)", source(c))
        ),
        None,
    )


def modules(root: Path) -> dict:
    "The name of each module in the package, such as data or engine.base, and its file"
    package = root / "shakespeare_neox"
    found = {}
    for file in sorted(package.rglob("*.py")):
        if file.stem not in ("__init__", "__main__", "_modidx"):
            found[".".join(file.relative_to(package).with_suffix("").parts)] = file
    return found


def lessons(root: Path) -> list:
    "(number, module) of each lesson that writes one, in the order of reading"
    numbered = [
        path for path in notebooks(root) if re.match(r"\d\d_", path.name) and module_of(path)
    ]
    return [(int(path.name[:2]), module_of(path)) for path in numbered]


def imports(file: Path, name: str) -> list:
    """(module of this package, line, functions around it) for each import in a module; of a
    package's name alone, what is taken from it"""
    found = []

    def visit(node, inside):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = (*inside, node.name)
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            package = ["shakespeare_neox", *name.split(".")]
            start = ".".join(package[: -node.level]) + "." if node.level else ""
            module = (start + (node.module or "")).rstrip(".")
            names = [module]
            if module in ("shakespeare_neox", "shakespeare_neox.engine"):
                names = [f"{module}.{alias.name}" for alias in node.names]
        found.extend((found_name, node.lineno, inside) for found_name in names)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(file.read_text(encoding="utf-8")), ())
    return found


def circle(known: dict, start: str) -> list:
    "The way from a module back to itself along imports at the top of modules, [] if there is none"
    ways = [[start]]
    seen = set()
    while ways:
        way = ways.pop()
        for module in sorted(known.get(way[-1], ())):
            if module == start:
                return [*way, start]
            if module not in seen:
                seen.add(module)
                ways.append([*way, module])
    return []


def in_imports(root: Path):
    """(module, line, what is wrong) for each import against the rules: lessons look back, the
    engine at the first lessons, no circles"""
    order = lessons(root)
    numbers = {module: number for number, module in order}
    places = {module: place for place, (_, module) in enumerate(order)}
    taken = {}
    for name, file in modules(root).items():
        for full, line, inside in imports(file, name):
            if full.split(".")[0] in ("nbdev", "execnb"):
                yield name, line, f"imports {full}: no module does"
            if not full.startswith("shakespeare_neox."):
                continue
            module = full.removeprefix("shakespeare_neox.")
            in_engine = module.startswith("engine.")
            if not inside:
                taken.setdefault(name, set()).add(module)
            if name in numbers and numbers[name] < 5:
                opening = {"from_pretrained", "save_pretrained"} & set(inside)
                allowed = module in GROUND or module == "engine.checkpoints" and opening
                if in_engine and not allowed:
                    yield (
                        name,
                        line,
                        f"imports {module}: a lesson takes {', '.join(GROUND)} and earlier "
                        "lessons alone",
                    )
            if name in GROUND and module not in GROUND:
                yield (
                    name,
                    line,
                    f"imports {module}: lessons stand on this page, it takes {', '.join(GROUND)} "
                    "alone",
                )
            if name in places and module in places and places[module] >= places[name]:
                yield name, line, f"imports {module}, a later lesson"
            if name.startswith("engine.") and numbers.get(module, 0) > 4:
                yield name, line, f"imports {module}: the engine takes lessons 00 to 04 alone"
    told = set()
    for name in taken:
        way = circle(taken, name)
        if way and told.isdisjoint(way):
            told.update(way)
            yield name, 1, f"imports itself: {' -> '.join(way)}"


def shows(cell) -> bool:
    "Whether a cell ends with a value to look at; of most calls nobody can say"
    text = re.sub(r"^\s*[%!].*", "", source(cell), flags=re.M)
    if text.rstrip().endswith(";"):
        return False
    try:
        last = (ast.parse(text).body or [None])[-1]
    except SyntaxError:
        return False
    if (
        not isinstance(last, ast.Expr)
        or isinstance(last.value, ast.Constant)
        and last.value.value is None
    ):
        return False
    return (
        not isinstance(last.value, (ast.Call, ast.Await))
        or isinstance(last.value, ast.Call)
        and ast.unparse(last.value.func) in SHOWS
    )


def pictures(root: Path) -> set:
    "The functions of engine.show that give a picture, which a page shows as a cell's last value"
    file = root / "shakespeare_neox/engine/show.py"
    if not file.exists():
        return set()
    return {
        node.name
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and node.returns
        and ast.unparse(node.returns) == "Picture"
    }


def unseen(cell, known: set) -> str:
    "The first picture that a cell makes and nobody sees, or None"
    try:
        body = ast.parse(re.sub(r"^\s*[%!].*", "", source(cell), flags=re.M)).body
    except SyntaxError:
        return None
    for statement in body[:-1]:
        value = getattr(statement, "value", None) if isinstance(statement, ast.Expr) else None
        if isinstance(value, ast.Call) and ast.unparse(value.func) in known:
            return ast.unparse(value.func)
    return None


def texts(cell):
    "The stored outputs of a cell that a person reads"
    for out in cell["outputs"]:
        yield "".join(out.get("text", ""))
        for kind, data in out.get("data", {}).items():
            if kind in READ:
                yield "".join(data)


def in_code(cell):
    "Faults of one code cell"
    if unknown := set(directives(cell)) - DIRECTIVES:
        yield f"holds '#| {sorted(unknown)[0]}', which nbdev does not know"
    if error := next((o for o in cell["outputs"] if o["output_type"] == "error"), None):
        yield f"failed: {error['ename']}: {error['evalue']}"
    elif not cell["outputs"] and "hide" not in directives(cell) and shows(cell):
        yield "ends with a value but stores no output: run it"
    for text in texts(cell):
        if found := PRIVATE.search(text):
            yield f"shows a path of the machine ({found.group()})"
            break


def in_prose(cell):
    "Faults of one cell of text; code in it may hold anything"
    if re.match(r"`?(<{7}|={7}|>{7})", source(cell)):
        yield "is left from a merge: choose one side"
    text = re.sub(
        r"^(```+|~~~+).*?^\1|(`+)[^`\n]*\2|\$\$.*?\$\$|\$[^$\n]*\$",
        "",
        source(cell),
        flags=re.M | re.S,
    )
    if found := QUARTO.search(text):
        yield (
            f"holds Quarto's syntax ({found.group().strip()[:40]}), which GitHub and Colab show "
            "as it is"
        )


def relative(name: str, text: str) -> str:
    "Code as nbdev writes it into a module: imports from this package are relative"
    here = ["shakespeare_neox", *name.split(".")[:-1]]

    def shorter(found):
        parts = found[2].split(".")
        common = 0
        while common < min(len(here), len(parts)) and here[common] == parts[common]:
            common += 1
        return f"{found[1]}{'.' * (len(here) - common + 1)}{'.'.join(parts[common:])}"

    return re.sub(r"^(from )(shakespeare_neox(?:\.\w+)*)(?= import)", shorter, text, flags=re.M)


def in_module(root: Path, path: Path):
    "Cells that the module of a notebook lacks, has otherwise, or has beyond the notebook"
    name = module_of(path)
    if not name:
        return
    module = root / f"shakespeare_neox/{name.replace('.', '/')}.py"
    parts = re.split(
        r"^# %% .*#(\w+)$",
        module.read_text(encoding="utf-8") if module.exists() else "",
        flags=re.M,
    )
    written = {
        number: text.strip() for number, text in zip(parts[1::2], parts[2::2]) if number != "0"
    }
    for place, cell in enumerate(cells(path), 1):
        if cell["cell_type"] != "code" or "export" not in directives(cell):
            continue
        wanted = relative(name, body(source(cell)))
        if written.pop(cell.get("id"), None) != wanted:
            yield place, cell, f"is not what stands in {module.name}: run nbdev_export"
    if written:
        yield (
            1,
            cells(path)[0],
            f"{module.name} holds cells that are not here ({', '.join(written)}): run nbdev_export",
        )


def faults(root: Path = ROOT) -> list:
    "(notebook, cell's number, its first line, what is wrong) for each fault"
    found = []
    known = pictures(root)
    for path in notebooks(root):
        code, each = cells(path, "code"), list(enumerate(cells(path), 1))
        here = [
            (n, c, f)
            for n, c in each
            for f in {"code": in_code, "markdown": in_prose}.get(c["cell_type"], lambda c: ())(c)
        ]
        here += [
            (n, c, f"makes a picture that nobody sees: {name} belongs into its last line")
            for n, c in each
            if c["cell_type"] == "code" and (name := unseen(c, known))
        ]
        seen = [c for c in code if not re.search(r"^#\| *hide\b", source(c), re.M)]
        if seen and sum(bool(c["outputs"]) for c in seen) <= len(seen) / 4:
            here.append(
                (
                    *next((n, c) for n, c in each if c["cell_type"] == "code"),
                    "is the first of a page with next to no outputs: run the page",
                )
            )
        here += in_module(root, path)
        found += [
            (
                path.relative_to(root).as_posix(),
                n,
                next(iter(body(source(c)).splitlines() or source(c).splitlines()), "")[:60],
                f,
            )
            for n, c, f in sorted(here, key=lambda fault: fault[0])
        ]
    for name, line, fault in in_imports(root):
        found.append((f"shakespeare_neox/{name.replace('.', '/')}.py", line, "", fault))
    return found


if __name__ == "__main__":
    found = faults(Path(sys.argv[1]) if sys.argv[1:] else ROOT)
    for path, number, line, fault in found:
        where = f"line {number}" if path.endswith(".py") else f"cell {number} ({line})"
        print(f"{path}: {where} {fault}", file=sys.stderr)
    sys.exit(2 if found else 0)
