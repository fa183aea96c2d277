"""The project around the library: recipes, links, notebooks, README, pins, the sample and the
wheel. Needs a clone."""

import ast
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
import zipfile
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "nbs").is_dir(), reason="no clone around")
if (ROOT / "nbs").is_dir():
    sys.path.insert(0, str(ROOT / ".ci"))
    from notebooks import cells, faults, modules, notebooks, source

    NOTEBOOKS, NAMES = notebooks(ROOT), modules(ROOT)
else:
    NOTEBOOKS, NAMES = [], {}
NUMBERED = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name)]
MODULES = list(NAMES.values())
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def ini():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


# recipes


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yml")), ids=lambda p: p.stem)
def test_recipes(path):
    from shakespeare_neox.engine.recipe import (
        MODEL_KEYS,
        OWN_KEYS,
        TRAIN_KEYS,
        load_config,
        read_recipe,
    )

    neox = json.loads((ROOT / "configs/gpt_neox_keys.json").read_text())
    known = (
        (MODEL_KEYS | TRAIN_KEYS | set(neox["ignored"]) | set(neox["refused"]))
        - set(OWN_KEYS)
        - {"padded_vocab_size"}
    )
    own = read_recipe(path)
    if path.parent.name == "own":  # what gpt-neox does not know
        alone = "num_layers" in own or "fit_to_text" in own
        load_config(*([] if alone else ["shakespeare_cpu", "fast"]), str(path))
        return
    recipe = load_config(str(path))
    assert recipe.name == path.stem and set(recipe.settings) <= known
    if recipe.model.get("make_vocab_size_divisible_by") != 1:
        assert recipe.model_config(65).padded_vocab_size % 64 == 0


# notebooks


@by_name
def test_badges_and_install_cells(path):
    c, text = ini(), "\n".join(map(source, cells(path)))
    where = path.relative_to(ROOT).as_posix()
    for link in re.findall(r"colab\.research\.google\.com/github/([^)\"\s]+\.ipynb)", text):
        assert (
            link.startswith(f"{c['user']}/{c['repo']}/blob/{c['branch']}/nbs/")
            and (ROOT / link.split(f"/{c['branch']}/")[1]).exists()
        ), link
    if path in NUMBERED:
        assert (
            f"https://colab.research.google.com/github/{c['user']}/{c['repo']}/blob/{c['branch']}/{where}"
            in text
        ), "no badge"
        installs = [source(x) for x in cells(path, "code") if "google.colab" in source(x)]
        assert len(installs) == 1 and f'git+{c["git_url"]}"' in installs[0]


def test_links_to_this_repository():
    "Wherever the repository is named, it is named as settings.ini does"
    c, files = (
        ini(),
        [
            *NOTEBOOKS,
            *ROOT.glob("*.md"),
            *ROOT.glob("*/README.md"),
            *(p for p in (ROOT / ".github").rglob("*") if p.is_file()),
            *MODULES,
        ],
    )
    for path in files:
        found = re.findall(
            r"github\.com/([\w.-]+/" + c["repo"] + r")\b", path.read_text(encoding="utf-8")
        )
        assert {f"https://github.com/{name}" for name in found} <= {c["git_url"]}, path


def parameters(function):
    "Name and last line of each parameter of a function, but self"
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
    pairs = [*zip(positional, defaults), *zip(given.kwonlyargs, given.kw_defaults)]
    pairs += [(rest, None) for rest in (given.vararg, given.kwarg) if rest]
    return [(arg.arg, (default or arg).end_lineno) for arg, default in pairs if arg.arg != "self"]


def uncommented(text, public):
    """Public functions and classes without a docstring, and parameters without a comment of their
    own"""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {
        t.start[0] for t in tokens if t.type == tokenize.COMMENT and re.search(r"\w", t.string)
    }
    found = []
    for node in ast.parse(text).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in public:
            continue
        if not ast.get_docstring(node):
            found.append(node.name)
        inside = node.body if isinstance(node, ast.ClassDef) else []
        made_by = [n for n in inside if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        for function in made_by if isinstance(node, ast.ClassDef) else [node]:
            lines = [line for _, line in parameters(function)]
            for name, line in parameters(function):
                own = lines.count(line) == 1 and line in comments and line < function.body[0].lineno
                if not own:
                    found.append(f"{node.name}.{name}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_docments(name):
    """Every parameter of every public function, and of what makes a public class, has its own
    comment; functions and classes have docstrings"""
    public = getattr(importlib.import_module(f"shakespeare_neox.{name}"), "__all__", [])
    assert not uncommented(NAMES[name].read_text(encoding="utf-8"), public)


FUNCTION = (
    'def f(\n    a: int, # one\n    b: str = "#", # two\n    *rest, # the others\n    key: dict '
    '= {}, # three\n    **more, # all else\n):\n    "What it does"\n'
)
PLANTED = {
    "no comment": (FUNCTION.replace("int, # one", "int,"), ["f.a"]),
    "a hash in a default alone": (FUNCTION.replace(" # two", ""), ["f.b"]),
    "an empty comment": (FUNCTION.replace("# one", "#"), ["f.a"]),
    "a comment of signs alone": (FUNCTION.replace("# one", "# -"), ["f.a"]),
    "one comment for two": (FUNCTION.replace(" # one\n   ", ""), ["f.a", "f.b"]),
    "a comment above": (FUNCTION.replace("a: int, # one", "# one\n    a: int,"), ["f.a"]),
    "rest": (FUNCTION.replace(" # the others", ""), ["f.rest"]),
    "a keyword": (FUNCTION.replace(" # three", ""), ["f.key"]),
    "more": (FUNCTION.replace(" # all else", ""), ["f.more"]),
    "on the line of def": ('def f(a, b): # what it does\n    "What it does"\n', ["f.a", "f.b"]),
    "the comment of the body": ("def f(a): return a # one\n", ["f", "f.a"]),
    "no docstring": (FUNCTION.replace('"What it does"', "return 1"), ["f"]),
    "a class": (
        'class f:\n    "What it is"\n    def __init__(self,\n        a, # one\n        b=dict(\n '
        "           c=1), \n    ): pass\n",
        ["f.b"],
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_missing_docments_are_found(fault):
    text, found = PLANTED[fault]
    assert uncommented(FUNCTION, ["f"]) == [] and uncommented(text, []) == []
    assert uncommented(text, ["f"]) == found


def test_a_default_of_several_lines():
    "Its comment stands where it ends"
    assert (
        uncommented(
            'def f(\n    a=dict(\n        b=1), # one\n    c=2, # two\n):\n    "What it does"\n',
            ["f"],
        )
        == []
    )


# what modules may import

PAGES = {
    "00_data": "data",
    "01_tokenizer": "tokenizer",
    "03_train": "train",
    "04_generate": "generate",
    "06_finetune": "finetune",
    "engine/base": "engine.base",
    "engine/tokens": "engine.tokens",
    "engine/checkpoints": "engine.checkpoints",
}
OPENS = (
    "class Model:\n    def from_pretrained(name):\n        from {} import opened\n        return "
    "opened(name)\n"
)
ALLOWED = {
    "data": "import torch\nfrom .engine.base import say",
    "tokenizer": "from .data import windows",
    "generate": OPENS.format(".engine.checkpoints"),
    "finetune": "from .engine.tokens import prepare\nfrom .train import fit",
    "engine.tokens": "from ..tokenizer import Tokenizer\nfrom .base import say",
}
FORBIDDEN = {
    "the engine in a lesson": (
        "data",
        "from .engine.tokens import prepare",
        "data.py: line 1 imports engine.tokens: a lesson takes",
    ),
    "the package's name": (
        "data",
        "import os\nfrom shakespeare_neox.engine import tokens",
        "data.py: line 2 imports engine.tokens: a lesson",
    ),
    "a later lesson": (
        "data",
        "def f():\n    from .tokenizer import Tokenizer",
        "data.py: line 2 imports tokenizer, a later lesson",
    ),
    "checkpoints at the top": (
        "generate",
        "from .engine.checkpoints import opened",
        "generate.py: line 1 imports engine.checkpoints",
    ),
    "another module where a model is opened": (
        "generate",
        OPENS.format(".engine.tokens"),
        "generate.py: line 3 imports engine.tokens",
    ),
    "a late lesson in the engine": (
        "engine.tokens",
        "from ..finetune import f",
        "engine/tokens.py: line 1 imports finetune: the engine takes",
    ),
    "a lesson below the lessons": (
        "engine.base",
        "def f():\n    from ..data import windows",
        "engine/base.py: line 2 imports data: lessons stand on this page",
    ),
    "nbdev": (
        "engine.base",
        "def f():\n    import nbdev.export",
        "engine/base.py: line 2 imports nbdev.export",
    ),
    "a circle": (
        "engine.base",
        "from . import tokens",
        "imports itself: data -> engine.base -> engine.tokens -> tokenizer -> data",
    ),
}


def package(root, texts):
    "A small tree with the pages of `PAGES` and these modules"
    for page, module in PAGES.items():
        cell = {
            "cell_type": "code",
            "id": "a",
            "metadata": {},
            "source": f"#| default_exp {module}",
            "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}],
        }
        files = {
            root / f"nbs/{page}.ipynb": json.dumps({"cells": [cell]}),
            root / f"shakespeare_neox/{module.replace('.', '/')}.py": texts.get(module, ""),
        }
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("fault", FORBIDDEN)
def test_imports_against_the_rules_are_found(tmp_path, fault):
    module, text, says = FORBIDDEN[fault]
    package(tmp_path / "sound", ALLOWED)
    assert faults(tmp_path / "sound") == []
    package(tmp_path / "planted", ALLOWED | {module: text})
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/notebooks.py", tmp_path / "planted"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and sum(says in line for line in done.stderr.splitlines()) == 1, (
        done.stderr
    )


# what .ci/notebooks.py finds: the tree as it is, and one fault at a time in a copy


def test_notebooks_are_fit():
    assert not faults(ROOT)


@pytest.fixture
def plant(tmp_path):
    """Changes one cell of a page in a copy of the tree; gives what the checker says, as a person
    runs it"""
    for folder in ("nbs", "shakespeare_neox"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )

    def planted(page, pick, change):
        path = tmp_path / f"nbs/{page}.ipynb"
        nb = json.loads(path.read_text(encoding="utf-8"))
        place, cell = next((i, c) for i, c in enumerate(nb["cells"], 1) if pick(c))
        change(cell)
        path.write_text(json.dumps(nb), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, ROOT / ".ci/notebooks.py", tmp_path],
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        return done.returncode, done.stderr.splitlines(), f"nbs/{page}.ipynb: cell {place} ("

    return planted


def shown(cell):
    return cell["cell_type"] == "code" and cell["outputs"] and "hide" not in source(cell)


def prose(cell):
    return cell["cell_type"] == "markdown" and not source(cell).startswith("#")


def exported(cell):
    return source(cell).startswith("#| export") and "def " in source(cell)


def grow(text):
    return lambda c: c.update(source=source(c) + text)


def gives(**out):
    return lambda c: c.update(outputs=[out])


def reads(text):
    return gives(output_type="stream", name="stdout", text=[text])


FAULTS = {
    "not run": (
        "02_model",
        shown,
        lambda c: c.update(source="x = 1\nx", outputs=[]),
        "stores no output",
    ),
    "failed": (
        "tutorials/datasets",
        shown,
        gives(output_type="error", ename="ValueError", evalue="no", traceback=[]),
        "failed: ValueError: no",
    ),
    "path": ("engine/run", shown, reads("saved in /home/somebody/run"), "/home/"),
    "path in a table": (
        "engine/run",
        shown,
        gives(output_type="display_data", metadata={}, data={"text/html": ["<b>", "C:\\Users\\x"]}),
        "C:\\Users",
    ),
    "callout": ("map", prose, grow("\n\n::: {.callout-note}\nRead this\n:::"), "Quarto"),
    "class": ("index", prose, grow("\n\n[a word]{.unnumbered}"), "Quarto"),
    "shortcode": ("00_data", prose, grow("\n{{< include x.qmd >}}"), "Quarto"),
    "reference": ("00_data", prose, grow(" as @fig-loss shows"), "Quarto"),
    "merge": ("engine/tune", prose, lambda c: c.update(source="`<<<<<<< HEAD`"), "merge"),
    "option": (
        "04_generate",
        shown,
        lambda c: c.update(source="#| fig-cap: Loss\n" + source(c)),
        "fig-cap",
    ),
    "picture": (
        "03_train",
        lambda c: shown(c) and "\nshow_curves(" in source(c),
        grow("\nassert True"),
        "nobody sees: show_curves",
    ),
    "changed": ("engine/base", exported, grow("\n# and more"), "base.py: run nbdev_export"),
    "new": ("engine/base", exported, lambda c: c.update(id="fffffff0"), "run nbdev_export"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(plant, fault):
    page, pick, change, says = FAULTS[fault]
    code, lines, where = plant(page, pick, change)
    assert code == 2 and sum(line.startswith(where) and says in line for line in lines) == 1, lines
    assert len(lines) == (2 if fault == "new" else 1), lines


def test_what_looks_like_a_fault(plant):
    "Code and formulas in prose, calls that may give nothing, and paths that are no one's"
    assert plant(
        "00_data", prose, grow("\n\n`::: {.x}` and $x_{.a}$\n\n```\n::: note\n:::\n```\n")
    )[:2] == (0, [])
    assert plant("engine/tune", shown, reads("runs/quickstart/best"))[:2] == (0, [])
    assert plant(
        "02_model",
        lambda c: shown(c) and source(c).count("\n") > 3,
        lambda c: c.update(source="list.sort([1])", outputs=[]),
    )[:2] == (0, [])


def test_not_a_notebook(tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs/00_a.ipynb").write_text('<<<<<<< HEAD\n{"cells": []}')
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/notebooks.py", tmp_path], capture_output=True, text=True
    )
    assert (
        done.returncode == 2
        and len(done.stderr.splitlines()) == 1
        and "00_a.ipynb: is not a notebook" in done.stderr
    )


def test_a_page_that_was_never_run(plant, tmp_path):
    path = tmp_path / "nbs/tutorials/datasets.ipynb"
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell.update(source="f()", outputs=[])
    path.write_text(json.dumps(nb), encoding="utf-8")
    code, lines, _ = plant("map", prose, grow(""))
    assert (
        code == 2
        and len(lines) == 1
        and "tutorials/datasets.ipynb: cell 2 (f()) is the first of a page" in lines[0]
    ), lines


# a test that hangs

HANGS = {"in Python": "time.sleep(60)", "in C": "sum(range(10**12))"}  # the second hears no signal
LIMIT = {"in Python": "8", "in C": "2"}  # seconds; the report of a failure needs the fifth beyond


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
@pytest.mark.parametrize("where", HANGS)
def test_a_test_that_hangs_ends(tmp_path, where):
    "It fails alone where an exception reaches it; else the run ends and shows the line"
    if where == "in Python":
        pytest.importorskip("pytest_timeout")
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    hangs = f"import time\ndef test_hangs():\n    {HANGS[where]}\ndef test_next(): pass\n"
    (tmp_path / "test_it.py").write_text(hangs)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"NEOX_TEST_SECONDS": LIMIT[where]},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 1
    if where == "in Python":
        assert (
            "1 failed, 1 passed" in done.stdout and "FAILED test_it.py::test_hangs" in done.stdout
        )
    else:
        assert 'test_it.py", line 3 in test_hangs' in done.stderr


# README, pins


def test_readme_is_made_from_the_notebook(monkeypatch):
    for name in ("nbdev", "nbconvert"):
        pytest.importorskip(name)
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci/readme.py")
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    text, figures = readme.render(ROOT / "nbs/index.ipynb")
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "run python .ci/readme.py"
    stored = (
        {p.name: p.read_bytes() for p in (ROOT / "nbs/index_files").iterdir()}
        if (ROOT / "nbs/index_files").exists()
        else {}
    )
    assert stored == figures


def test_readme_begins_with_two_commands():
    fences = re.findall(
        r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S
    )
    commands = [line for line in fences[0].splitlines() if not line.startswith("#")]
    assert commands[:3] == [
        f"git clone {ini()['git_url']}",
        f"cd {ini()['repo']}",
        "pip install -r requirements.txt -e .",
    ]
    assert all(word in fences[0] for word in ("neox_train quickstart", "neox_generate"))
    assert all(word in fences[1] for word in ("[dev]", "pytest"))
    assert re.search(
        "^OMP_NUM_THREADS=1 nbdev_test$", fences[1], re.M
    )  # workers with two threads each fight for two cores


def test_the_first_screen_of_the_readme():
    "Before the first block: one sentence, verse beside the curve, three doors that lead somewhere"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = text[: text.index("```sh")]
    assert first.count("\n# ") == 1 and len(re.findall(r"^> \S", first, re.M)) == 1
    row = re.search(
        r"<table><tr><td>\n\n!\[Figure: [^\n]+\n\n</td><td>\n\n```text\n(.+?)```", first, re.S
    )
    assert row and len(row[1].splitlines()) >= 8
    doors = re.findall(r"^- \*\*\[.+?\]\((\S+)\)\*\*: ", first, re.M)
    headings = {
        "#" + re.sub(r"[^\w -]", "", h).lower().replace(" ", "-")
        for h in re.findall(r"^## (.+)$", text, re.M)
    }
    assert len(doors) == 3
    assert all(door in headings or (ROOT / door).exists() for door in doors), doors


def test_sections_of_the_readme():
    "A capability is told in ten lines and a picture; all pictures are there"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", text, re.M))
    for name in ("A model that answers", "Measured, with intervals"):
        told = re.sub(r"^!\[.*|^ {4}.*", "", parts[name], flags=re.M)  # figure and printed text
        assert "![Figure: " in parts[name] and len([x for x in told.splitlines() if x]) <= 10
    assert "runs/book/report.md" in parts["Your own book"]
    shown = set(re.findall(r"\]\((nbs/index_files/\S+)\)", text))
    assert shown == {f"nbs/index_files/{p.name}" for p in (ROOT / "nbs/index_files").iterdir()}


def test_version_in_one_place():
    "settings.ini has it; what is made from it or cites it agrees"
    yaml, version = pytest.importorskip("yaml"), ini()["version"]
    first = (ROOT / "shakespeare_neox/__init__.py").read_text().splitlines()[0]
    assert first == f'__version__ = "{version}"'
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == version and cited["repository-code"] == ini()["git_url"]
    assert re.search(
        rf"^## {re.escape(version)} \((unreleased|\d{{4}}-\d\d-\d\d)\)$",
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        re.M,
    )


def test_commands_are_those_of_the_table():
    "A console script for each, and each called by its name"
    from shakespeare_neox.engine.base import COMMANDS

    scripts = dict(word.split("=") for word in ini()["console_scripts"].split())
    assert set(scripts) == set(COMMANDS)
    assert set(scripts.values()) == {"shakespeare_neox.engine.base:start"}


def test_pins_satisfy_the_ranges():
    requirements = pytest.importorskip("packaging.requirements")
    from packaging.utils import canonicalize_name as name

    pins = {}
    for file, keys in {
        "requirements.txt": ["requirements"],
        "requirements-dev.txt": ["datasets_requirements", "eval_requirements", "dev_requirements"],
    }.items():
        lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
        added = {name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
        assert not pins.keys() & added.keys()  # each is pinned once
        pins |= added
        for wanted in (
            w for key in keys for w in map(requirements.Requirement, ini()[key].split())
        ):
            assert wanted.specifier.contains(pins[name(wanted.name)], prereleases=True), (
                f"{wanted}: pinned {pins[name(wanted.name)]}"
            )
    assert pins["torch"] == "2.13.0" and "python-fasthtml" not in pins


def test_the_first_command_installs_no_more_than_it_needs():
    "requirements.txt is what the package's own requirements bring along, on this platform"
    requirements = pytest.importorskip("packaging.requirements")
    from packaging.utils import canonicalize_name as name

    pins = {
        name(line.split("==")[0])
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if "==" in line
    }
    waiting = [requirements.Requirement(r) for r in ini()["requirements"].split()]
    needed = set()
    while waiting:
        wanted = waiting.pop()
        if (wanted.name, *sorted(wanted.extras)) in needed:
            continue
        needed.add((wanted.name, *sorted(wanted.extras)))
        for text in importlib.metadata.requires(wanted.name) or []:
            brought = requirements.Requirement(text)
            if brought.marker is None or any(
                brought.marker.evaluate({"extra": e}) for e in ("", *wanted.extras)
            ):
                waiting.append(brought)
    names = {name(first) for first, *_ in needed}
    assert {"torch", "wandb", "transformers"} <= names and pins <= names, pins - names


def third_party():
    "Each package that a module imports, wherever it stands, with the modules that do"
    found = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in (
                {name.split(".")[0] for name in names}
                - sys.stdlib_module_names
                - {"shakespeare_neox"}
            ):
                found.setdefault(name, set()).add(path.stem)
    return found


def test_what_is_imported_is_declared():
    "Nothing is there only because another package brings it"
    from packaging.utils import canonicalize_name as name

    extras = ("requirements", "harness_requirements", "app_requirements", "export_requirements")
    wanted = " ".join(ini()[extra] for extra in extras).split()
    declared = {name(re.match(r"[\w.-]+", r)[0]) for r in wanted}
    declared |= {"tqdm"}  # what lm-eval draws its bars with, and is told not to
    brings = importlib.metadata.packages_distributions()
    undeclared = {
        module: where
        for module, where in third_party().items()
        if not declared & {name(d) for d in brings.get(module, [module])}
    }
    assert undeclared == {}
    assert "requests" not in declared


def test_lower_bounds():
    "Each requirement has one, and .ci/lowest.py names them as pip takes them"
    requirements = pytest.importorskip("packaging.requirements")
    wanted = list(map(requirements.Requirement, ini()["requirements"].split()))
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/lowest.py"], capture_output=True, text=True, check=True
    )
    pins = dict(line.split("==") for line in done.stdout.splitlines())
    assert list(pins) == [w.name for w in wanted]
    for w in wanted:
        assert str(w.specifier).count(">=") == 1 and w.specifier.contains(pins[w.name]), w
        before = re.sub(r"\d+$", lambda last: str(int(last[0]) - 1), pins[w.name])
        assert not w.specifier.contains(before), f"{w}: allows {before}, which nobody tried"
    assert pins["torch"] == "2.9.1" and pins["transformers"] == "4.57.1"


def test_python_versions():
    "What the package claims is what CI runs"
    claimed = {
        f"3.{v}"
        for v in re.findall(r"for v in \(([\d, ]+)\)", (ROOT / "setup.py").read_text())[0].split(
            ", "
        )
    }
    run = set(
        re.findall(
            r'python(?:-version)?: "(3\.\d+)"', (ROOT / ".github/workflows/ci.yml").read_text()
        )
    )
    assert ini()["min_python"] in claimed and claimed <= run, (claimed, run)


# the sample


def test_sample():
    text = (ROOT / "data/sample.txt").read_bytes().decode("ascii")
    assert (
        len(text) >= 80_000
        and "\r" not in text
        and "\t" not in text
        and not re.search(r"\n{3}| \n", text)
        and text.endswith("\n")
    )
    blocks = text.strip().split("\n\n")
    speeches = [b.split("\n", 1) for b in blocks if re.match(r"[A-Z][A-Za-z' .,-]*:\n", b)]
    others = [b for b in blocks if not re.match(r"[A-Z][A-Za-z' .,-]*:\n", b)]
    assert len(speeches) > 0.95 * len(blocks) and not [
        b for b in others if "\n" in b and ":" in b.split("\n")[0]
    ]
    assert (
        len({who for who, _ in speeches}) >= 20
        and any(b.startswith("ACT") for b in others)
        and any("SCENE" in b for b in others)
    )
    assert not [
        s
        for s, n in Counter(" ".join(said.split()).lower() for _, said in speeches).items()
        if n > 1
    ]


# the wheel


def test_wheel(tmp_path):
    "Built in a copy of the tree: everything that the commands look for travels in it"
    if not all(map(importlib.util.find_spec, ("pip", "setuptools"))):
        pytest.skip("needs pip and setuptools")
    ignore = shutil.ignore_patterns(
        ".git",
        "build",
        "dist",
        "*.egg-info",
        "runs",
        "wandb",
        "__pycache__",
        ".venv",
        "nbs",
        ".*_cache",
        ".hypothesis",
    )
    shutil.copytree(ROOT, tmp_path / "tree", ignore=ignore)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(tmp_path),
        ".",
    ]
    done = subprocess.run(build, cwd=tmp_path / "tree", capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,), c = tmp_path.glob("*.whl"), ini()
    with zipfile.ZipFile(wheel) as z:
        names, read = set(z.namelist()), {n: z.read(n) for n in z.namelist()}
    assets = {"configs": "**/*.*", "data": "**/*.*", "tokenizer": "*/*.json"}
    shipped = {
        f"shakespeare_neox/assets/{d}/{p.relative_to(ROOT / d).as_posix()}": p
        for d, pattern in assets.items()
        for p in (ROOT / d).glob(pattern)
        if p != ROOT / "data/README.md"
    }
    assert {p.relative_to(ROOT).as_posix() for p in shipped.values()} >= {
        "configs/quickstart.yml",
        "configs/gpt_neox_keys.json",
        "data/sample.txt",
        "data/models/shakespeare/model.safetensors",
        *(
            f"tokenizer/{t}/{file}.json"
            for t in ("characters", "bpe", "unigram")
            for file in ("tokenizer", "tokenizer_config")
        ),
    }
    assert all(read.get(n) == p.read_bytes() for n, p in shipped.items()), set(shipped) - names
    assert {p.relative_to(ROOT).as_posix() for p in MODULES} <= names and not [
        n for n in names if n.startswith(("tests", "nbs"))
    ]
    assert (
        "shakespeare_neox/py.typed" in names
        and "shakespeare_neox/assets/data/corpora.json" in names
    )
    metadata = next(v for n, v in read.items() if n.endswith("METADATA")).decode()
    assert (
        f"Version: {c['version']}\n" in metadata
        and "License-Expression: Apache-2.0\n" in metadata
        and "Classifier: Typing :: Typed\n" in metadata
    )
    assert not re.findall(r"\]\((?!https://)[^)]*", metadata), (
        "a link that leads nowhere outside the repository"
    )
    scripts = next(v for n, v in read.items() if n.endswith("entry_points.txt")).decode()
    assert all(
        re.search(rf"^{w.split('=')[0]} *= *{re.escape(w.split('=')[1])}$", scripts, re.M)
        for w in c["console_scripts"].split()
    )


def test_links_of_the_pages():
    "Every link from a page to a page, and to a section of it, leads somewhere"
    from urllib.parse import unquote

    headings = {
        p: {
            h.strip().replace(" ", "-")
            for c in cells(p, "markdown")
            for h in re.findall(r"^#+ (.+)$", source(c), re.M)
        }
        for p in NOTEBOOKS
    }
    found = 0
    for path in NOTEBOOKS:
        for target, section in re.findall(
            r"\]\((?!https?:)([^)#\s]*\.ipynb|(?=#))(?:#([^)\s]*))?\)",
            "\n".join(map(source, cells(path, "markdown"))),
        ):
            there = (path.parent / target).resolve() if target else path
            assert there in headings, (path.name, target)
            assert not section or unquote(section) in headings[there], (path.name, target, section)
            found += 1
    assert found > 60


def test_links_of_the_readmes():
    "Every relative link in a Markdown file leads to a file"
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md")]:
        for target in re.findall(
            r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text(encoding="utf-8")
        ):
            assert (path.parent / target).exists(), (path.name, target)


def test_all_public_names():
    """`from shakespeare_neox.all import *` gives those of every module but the benchmark; a name
    means one thing"""
    found = {}
    for name in NAMES:
        if name not in ("all", "benchmark"):
            module = importlib.import_module(f"shakespeare_neox.{name}")
            for public in module.__all__:
                found.setdefault(public, {}).setdefault(id(getattr(module, public)), []).append(
                    name
                )
    assert {public: list(ways.values()) for public, ways in found.items() if len(ways) > 1} == {}
    given = {}
    exec("from shakespeare_neox.all import *", given)
    assert set(found) | {"GPTNeoX"} == set(given) - {"__builtins__"}
    assert given["GPTNeoX"] is given["GPT"]
    assert {"load_corpus", "train_tokenizer", "GPT", "train", "generate", "open_checkpoint"} <= set(
        given
    )
