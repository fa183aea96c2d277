"""What stands beside the playground's page: its scripts, the exported model, and onnxruntime-web
from npm:  python .ci/playground.py FOLDER"""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent / "playground"
RUNTIME = "onnxruntime-web@1.30.0"
SUM = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
NEEDED = (  # the smallest of its builds: WebAssembly on one thread's worth of browser, no WebGPU
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
DEMO = re.compile(r"^<!-- demo: playground -->$", re.M)  # where a page has it


class Missing(Exception):
    "Why the runtime is not there"


def with_demo(text: str) -> str:
    "Markdown with the demo in the place of its mark"
    page = (HERE / "playground.html").read_text(encoding="utf-8").strip()
    return DEMO.sub(lambda _: f"````{{raw}} html\n{page}\n````", text)


def packed_runtime(folder: Path) -> Path:
    "The package from npm, its sum checked"
    npm = shutil.which("npm")
    if not npm:
        raise Missing("npm was not installed where it was made")
    try:
        command = [npm, "pack", RUNTIME, "--silent", "--prefer-offline"]
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=180)
    except subprocess.TimeoutExpired:
        raise Missing("npm did not answer where it was made") from None
    found = [*folder.glob("*.tgz")]
    if done.returncode or not found:
        raise Missing(f"{RUNTIME} could not be taken from npm where it was made")
    made = base64.b64encode(hashlib.sha512(found[0].read_bytes()).digest()).decode()
    if made != SUM:
        raise SystemExit(f"playground: {RUNTIME} from npm has another sum than it had: {made}")
    return found[0]


def add_runtime(out: Path):
    "The three files of onnxruntime-web that the page loads"
    with tempfile.TemporaryDirectory() as folder, tarfile.open(packed_runtime(Path(folder))) as tar:
        for name in NEEDED:
            with tar.extractfile(f"package/dist/{name}") as file:
                (out / name).write_bytes(file.read())


def add_model(out: Path):
    "The bundled model, exported for the page"
    from shakespeare_neox.engine.checkpoints import shipped
    from shakespeare_neox.engine.export import EXPORT_MANIFEST, GRAPH, export_onnx

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "export"
        export_onnx(str(shipped()), made, weights="fp16", page=True)
        for name in (GRAPH, EXPORT_MANIFEST):
            shutil.copy(made / name, out)


def add(out: Path):
    "Fills the folder; where npm does not give the runtime, built.json says so"
    out.mkdir(parents=True)
    for file in (*HERE.glob("*.js"), *HERE.glob("*.css")):
        shutil.copy(file, out)
    built = dict(runtime=RUNTIME, why="")
    try:
        if reason := os.environ.get("NO_NPM"):
            raise Missing(reason)
        lacking = [p for p in ("onnx", "onnxscript", "onnxruntime") if find_spec(p) is None]
        if lacking:
            raise Missing(f"{lacking[0]} was not installed where it was made")
        add_runtime(out)
        add_model(out)
    except Missing as e:
        built = dict(runtime=None, why=str(e))
        print(f"playground: {e}", file=sys.stderr)
    (out / "built.json").write_text(json.dumps(built), encoding="utf-8")


if __name__ == "__main__":
    add(Path(sys.argv[1]))
