"""Each notebook with a badge, alone, as Colab opens it:  python .ci/colab.py [NOTEBOOK...]
Needs an environment with the built wheel, ipykernel and nbclient;
the clone gives the notebooks only. Cells marked slow are left out: `.ci/run full` runs them in a
step of their own, and the minutes below are those of a reader who skips them."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINUTES = {"tutorials": 10}  # on two cores; every other page has 3
STARTUP = """
import sys, pathlib
sys.path.append({fake!r}); import google.colab, shakespeare_neox
def pip(line): pathlib.Path("pip.txt").open("a").write(line + "\\n")
get_ipython().register_magic_function(pip, "line")
assert "site-packages" in shakespeare_neox.__file__, shakespeare_neox.__file__
pathlib.Path("started.txt").touch()
"""


def badged() -> list:
    "The notebooks that Colab opens"
    return sorted(
        p
        for p in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts
        and "colab-badge.svg" in p.read_text(encoding="utf-8")
    )


def reason(text: str) -> str:
    "The first line of the cell that failed, and the error, from what `jupyter execute` prints"
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    cell = re.search(r"^-{10,}\n(.*?)\n-{10,}$", text, re.M | re.S)
    lines = [line for line in cell[1].splitlines() if not line.startswith("#|")] if cell else [""]
    return (
        f"cell ({lines[0][:60]}): {text.strip().splitlines()[-1]}" if cell else text[-1000:].strip()
    )


def without_slow_cells(path: Path) -> str:
    "The notebook's text, less the cells that only the full tier runs"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = [cell for cell in notebook["cells"] if "#| slow\n" not in cell["source"]]
    return json.dumps(notebook)


def execute(path: Path) -> tuple:
    """What is wrong with a notebook in an empty folder where `google.colab` is there, or an empty
    text, and the seconds that it took"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = folder / "content"
        startup = folder / "ipython/profile_default/startup"
        fake = folder / "fake/google/colab"
        fake.mkdir(parents=True)
        (fake / "__init__.py").touch()
        work.mkdir()
        startup.mkdir(parents=True)
        (startup / "colab.py").write_text(
            STARTUP.format(fake=str(folder / "fake")), encoding="utf-8"
        )
        (work / path.name).write_text(without_slow_cells(path), encoding="utf-8")
        drop = ("PYTHONPATH", "NEOX_DATA", "WANDB_MODE", "WANDB_SILENT", "HF_HUB_OFFLINE")
        env = {k: v for k, v in os.environ.items() if k not in drop} | {
            "IPYTHONDIR": str(folder / "ipython"),
            "NEOX_CACHE": str(folder / "cache"),
        }
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "jupyter", "execute", "--timeout=1200", path.name],
            cwd=work,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        took, pip = time.monotonic() - start, work / "pip.txt"
        installs = pip.read_text(encoding="utf-8").splitlines() if pip.exists() else []
        if done.returncode:
            return reason(done.stderr) or f"exit code {done.returncode}", took
        if not (work / "started.txt").exists():
            return "the startup file did not run to its end: is the wheel installed?", took
        if len(installs) != 1 or "torch" in installs[0] or "git+https://" not in installs[0]:
            return f"installs {installs}", took
        return "" if took <= 60 * MINUTES.get(path.parent.name, 3) else "too slow", took


if __name__ == "__main__":
    failed = 0
    for path in map(Path, sys.argv[1:] or badged()):
        wrong, took = execute(path)
        failed += bool(wrong)
        print(
            f"{'failed' if wrong else 'passed'} {took / 60:5.1f} min  {path.stem}",
            wrong,
            flush=True,
        )
    sys.exit(2 if failed else 0)
