"""Whether the notebooks are fit to be read:  python .ci/notebooks.py [ROOT]
One line for each fault, with the notebook, the cell's number from 1 and its first line; exit code 2 if there is one. Needs Python alone."""
import ast, json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVES = {"default_exp", "export", "hide", "slow", "cuda", "network", "echo"}   # nbdev's; `echo: false` leaves code out of the README
PRIVATE = re.compile(r"/home/|/root/|/work/|/tmp/|/Users/|/content/|C:\\+Users|site-packages")
QUARTO = re.compile(r"^:::.*|\{\{<.*|(?<=[\])\w \"'])\{[.#][A-Za-z][^}\n]*\}|(?<![\w`])@(?:fig|tbl|sec|eq|lst)-\w+|^---\s*$(?=\n\w+:)", re.M)
IMPORTED = re.compile(r"^\s*(?:from|import) shakespeare_neox(?:\.(\w+)| import (\w+))", re.M)
SHOWS = ("print", "display", "plt.show", "show_doc", "Markdown", "HTML")            # calls that give an output whatever they are given
READ = ("text/plain", "text/html", "text/markdown")


def notebooks(root: Path) -> list:
    "The notebooks of the project, in the order in which they are read"
    return sorted(p for p in (root/"nbs").rglob("*.ipynb") if not {".ipynb_checkpoints", "_proc"} & set(p.parts))


def cells(path: Path, kind: str = None) -> list:
    "The cells of a notebook, of one kind or all"
    try: found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as e: print(f"{path}: is not a notebook ({e})", file=sys.stderr); sys.exit(2)
    return [c for c in found if kind in (None, c["cell_type"])]


def source(cell): return "".join(cell["source"])
def body(text): return "\n".join(line for line in text.splitlines() if not line.startswith("#|")).strip()
def directives(cell): return re.findall(r"^#\| *([\w-]+)", source(cell), re.M)


def module_of(path: Path) -> str:
    "The module that a notebook writes, or None"
    return next((m for c in cells(path, "code") for m in re.findall(r"#\| default_exp (\w+)", source(c))), None)


def floors(root: Path) -> dict:
    "The place of each module in the order of the pages"
    return {module_of(p): place for place, p in enumerate(p for p in notebooks(root) if re.match(r"\d\d_", p.name))}


def shows(cell) -> bool:
    "Whether a cell ends with a value to look at; of most calls nobody can say"
    text = re.sub(r"^\s*[%!].*", "", source(cell), flags=re.M)
    if text.rstrip().endswith(";"): return False
    try: last = (ast.parse(text).body or [None])[-1]
    except SyntaxError: return False
    if not isinstance(last, ast.Expr) or isinstance(last.value, ast.Constant) and last.value.value is None: return False
    return not isinstance(last.value, (ast.Call, ast.Await)) or isinstance(last.value, ast.Call) and ast.unparse(last.value.func) in SHOWS


def texts(cell):
    "The stored outputs of a cell that a person reads"
    for out in cell["outputs"]:
        yield "".join(out.get("text", ""))
        for kind, data in out.get("data", {}).items():
            if kind in READ: yield "".join(data)


def in_code(cell):
    "Faults of one code cell"
    if unknown := set(directives(cell)) - DIRECTIVES: yield f"holds '#| {sorted(unknown)[0]}', which nbdev does not know"
    if error := next((o for o in cell["outputs"] if o["output_type"] == "error"), None): yield f"failed: {error['ename']}: {error['evalue']}"
    elif not cell["outputs"] and "hide" not in directives(cell) and shows(cell): yield "ends with a value but stores no output: run it"
    for text in texts(cell):
        if found := PRIVATE.search(text): yield f"shows a path of the machine ({found.group()})"; break


def in_prose(cell):
    "Faults of one cell of text; code in it may hold anything"
    if re.match(r"`?(<{7}|={7}|>{7})", source(cell)): yield "is left from a merge: choose one side"
    text = re.sub(r"^(```+|~~~+).*?^\1|(`+)[^`\n]*\2|\$\$.*?\$\$|\$[^$\n]*\$", "", source(cell), flags=re.M | re.S)
    if found := QUARTO.search(text): yield f"holds Quarto's syntax ({found.group().strip()[:40]}), which GitHub and Colab show as it is"


def in_module(root: Path, path: Path):
    "Cells that the module of a notebook lacks, has otherwise, or has beyond the notebook"
    name = module_of(path)
    if not name: return
    module = root/f"shakespeare_neox/{name}.py"
    parts = re.split(r"^# %% .*#(\w+)$", module.read_text(encoding="utf-8") if module.exists() else "", flags=re.M)
    written = {number: text.strip() for number, text in zip(parts[1::2], parts[2::2]) if number != "0"}
    for place, cell in enumerate(cells(path), 1):
        if cell["cell_type"] != "code" or "export" not in directives(cell): continue
        wanted = re.sub(r"^(\s*from )shakespeare_neox\.", r"\1.", body(source(cell)), flags=re.M)
        if written.pop(cell.get("id"), None) != wanted: yield place, cell, f"is not what stands in {name}.py: run nbdev_export"
    if written: yield 1, cells(path)[0], f"{name}.py holds cells that are not here ({', '.join(written)}): run nbdev_export"


def in_order(known: dict, path: Path):
    "Imports from a page that comes later"
    own = known.get(module_of(path))
    for place, cell in enumerate(cells(path), 1):
        if own is None or cell["cell_type"] != "code": continue
        for names in IMPORTED.findall(source(cell)):
            if known.get(name := next(filter(None, names)), -1) > own: yield place, cell, f"imports {name}, which comes on a later page"


def faults(root: Path = ROOT) -> list:
    "(notebook, cell's number, its first line, what is wrong) for each fault"
    found, known = [], floors(root)
    for path in notebooks(root):
        code, each = cells(path, "code"), list(enumerate(cells(path), 1))
        here = [(n, c, f) for n, c in each for f in {"code": in_code, "markdown": in_prose}.get(c["cell_type"], lambda c: ())(c)]
        seen = [c for c in code if not re.search(r"^#\| *hide\b", source(c), re.M)]
        if seen and sum(bool(c["outputs"]) for c in seen) <= len(seen)/4:
            here.append((*next((n, c) for n, c in each if c["cell_type"] == "code"), "is the first of a page with next to no outputs: run the page"))
        here += [*in_module(root, path), *in_order(known, path)]
        found += [(path.relative_to(root).as_posix(), n, next(iter(body(source(c)).splitlines() or source(c).splitlines()), "")[:60], f)
                  for n, c, f in sorted(here, key=lambda fault: fault[0])]
    return found


if __name__ == "__main__":
    found = faults(Path(sys.argv[1]) if sys.argv[1:] else ROOT)
    for path, number, line, fault in found: print(f"{path}: cell {number} ({line}) {fault}", file=sys.stderr)
    sys.exit(2 if found else 0)
