"""Export: ONNX graphs of three families against the model, what cannot be exported, and the page
on which the model writes, in Node and in a real browser."""

import functools
import http.server
import importlib.util
import json
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from browsers import NARROW, WIDE, axe, browser, serious_faults, set_screen, until  # noqa: F401
from conftest import refuses, succeeds, tree

from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.checkpoints import open_checkpoint
from shakespeare_neox.engine.serve import generate
from shakespeare_neox.engine.vocab import train_tokenizer
from shakespeare_neox.generate import filter_logits
from shakespeare_neox.model import GPT, ModelConfig, context_start

for needed in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(needed, reason="export wants: pip install 'shakespeare_neox[export]'")

from shakespeare_neox.engine import export  # noqa: E402
from shakespeare_neox.engine.export import neox_export_main  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / ".ci" / "playground"
TEXT = "ROMEO:\nIt is the east, and Juliet is the sun; arise, fair sun, two   spaces!\n"
SIZES = dict(num_layers=2, hidden_size=32, num_attention_heads=4, seq_length=16)
LLAMA = dict(
    pos_emb="rotary",
    norm="rmsnorm",
    activation="swiglu",
    num_kv_heads=2,
    use_bias_in_attn_linear=False,
    use_bias_in_mlp=False,
    use_bias_in_norms=False,
)
STYLES = {
    "gpt_neox": dict(pos_emb="rotary", rotary_pct=0.5),
    "gpt_neox parallel": dict(pos_emb="rotary", gpt_j_residual=True, activation="relu2"),
    "gpt2": dict(pos_emb="learned", bias_gelu_fusion=True, no_weight_tying=False),
    "llama": LLAMA,
}


@pytest.fixture(scope="module")
def characters():
    return train_tokenizer([TEXT], "char")


def random_model(tokenizer, style, std=0.3):
    "Large matrices, small biases, norms around 1: the text depends on each part"
    torch.manual_seed(2)  # of the first seeds the one whose greedy text varies in each style
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, **SIZES, **style)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=std if parameter.ndim > 1 else 0.1)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


def saved(folder, tokenizer, style, std=0.3):
    random_model(tokenizer, style, std).save_pretrained(folder, tokenizer)
    return folder


# equal to the model


@pytest.mark.parametrize("style", STYLES)
def test_three_families(style, characters, tmp_path):
    "Logits at once and id by id, and a greedy text four windows long"
    folder = saved(tmp_path / "model", characters, STYLES[style])
    manifest = export.export_onnx(str(folder), tmp_path / "out")
    assert manifest.difference < export.LOGIT_TOLERANCE
    exported, tokenizer = export.open_export(tmp_path / "out")
    model, _ = open_checkpoint(str(folder))
    start = tokenizer.encode("ROMEO:")
    found = tokenizer.decode(exported.write(start, 60, temperature=0))
    written = generate(model, tokenizer, "ROMEO:", max_new_tokens=60, temperature=0)
    assert found == "ROMEO:" + written and len(set(written)) > 3
    for shift in (1, -1):
        with pytest.raises(NeoxError, match="other logits"):
            export.check_logits(exported, model, shift)


@pytest.fixture(scope="module")
def made(characters, tmp_path_factory):
    "A model folder, and its export in half precision; copy it before changing it"
    folder = tmp_path_factory.mktemp("made")
    saved(folder / "model", characters, STYLES["gpt2"])
    export.export_onnx(str(folder / "model"), folder / "out", weights="fp16")
    return folder


def test_half_precision_is_exact_for_rounded_weights(made):
    "The rounding itself is seen"
    model, _ = open_checkpoint(str(made / "model"))
    exported, _ = export.open_export(made / "out")
    assert export.check_logits(exported, export.rounded_to_half(model)) < export.LOGIT_TOLERANCE
    with pytest.raises(NeoxError, match="other logits"):
        export.check_logits(exported, model)
    weights = (made / "model" / "model.safetensors").stat().st_size
    assert (made / "out" / export.GRAPH).stat().st_size < weights


def test_attention_that_is_given_out(made):
    "Rows sum to 1, and nobody sees what comes later"
    exported, _ = export.open_export(made / "out")
    past = np.zeros((0, 2, 4, 8), np.float32)
    given = (np.arange(7), np.arange(7), past, past)
    (weights,) = exported.session.run(["attention"], dict(zip(export.INPUTS, given)))
    assert weights.shape == (2, 4, 7, 7)
    assert np.allclose(weights.sum(-1), 1, atol=1e-5) and (np.triu(weights, 1) == 0).all()


def test_a_graph_names_no_folder_of_this_machine(made):
    text = (made / "out" / export.GRAPH).read_bytes()
    assert b".py" not in text and str(ROOT).encode() not in text


def test_a_wrong_graph_is_not_written(characters, tmp_path, monkeypatch):
    "Whatever the mistake is: here values in the place of keys"
    folder = saved(tmp_path / "model", characters, STYLES["gpt_neox"])
    monkeypatch.setattr(export, "INPUTS", ("ids", "positions", "past_values", "past_keys"))
    made = export.make_graph

    def swapped(*given):
        with monkeypatch.context() as patch:
            patch.setattr(export, "INPUTS", ("ids", "positions", "past_keys", "past_values"))
            return made(*given)

    monkeypatch.setattr(export, "make_graph", swapped)
    with pytest.raises(NeoxError, match="other logits"):
        export.export_onnx(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# the command, and what it refuses


def test_command(trained, here, capsys):
    out, err = succeeds(neox_export_main, [trained, "--page", "--weights", "fp16"], capsys)
    assert out == "export\n" and "equal greedy text" in err
    facts = json.loads(Path("export/export.json").read_text(encoding="utf-8"))
    assert set(facts["files"]) >= {"model.onnx", "tokenizer.json"}
    assert len(facts["tokens"]) == facts["n_known"] and len(facts["source_sha256"]) == 64
    before = tree(here / "export")
    refuses(neox_export_main, [trained], capsys, "export", steps=True)
    assert tree(here / "export") == before
    succeeds(neox_export_main, [trained, "--replace"], capsys)
    assert json.loads(Path("export/export.json").read_text())["weights"] == "fp32"


def test_bad_input(trained, here, capsys):
    refuses(neox_export_main, [trained, "--weights", "int4"], capsys, "int4")
    refuses(neox_export_main, ["runs/none"], capsys, "runs/none")
    refuses(neox_export_main, [trained, "shakespeare"], capsys, "give one checkpoint")
    assert not Path("export").exists()


def test_what_a_page_cannot_take(tmp_path, characters):
    pairs = train_tokenizer([TEXT * 3], "bpe", 290)
    folder = saved(tmp_path / "pairs", pairs, STYLES["gpt2"])
    with pytest.raises(NeoxError, match="longer tokens"):
        export.export_onnx(str(folder), tmp_path / "out", page=True)
    with pytest.raises(NeoxError, match="32 MB at most"):
        export.check_page(17_000_000, "fp16")
    export.check_page(16_000_000, "fp16")
    assert not (tmp_path / "out").exists()


def test_weights_too_large_for_half_precision(tmp_path, characters):
    folder = saved(tmp_path / "model", characters, STYLES["gpt2"], std=60000.0)
    with pytest.raises(NeoxError, match="does not fit into fp16"):
        export.export_onnx(str(folder), tmp_path / "out", weights="fp16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.onnx", "export.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_damaged_folders_do_not_open(made, tmp_path, name, how):
    shutil.copytree(made / "out", tmp_path / "out")
    file = tmp_path / "out" / name
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(NeoxError, match=name):
        export.open_export(tmp_path / "out")


def test_a_missing_package_is_named(tmp_path, characters, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(NeoxError, match=r"onnxscript is not installed.*shakespeare_neox\[export\]"):
        export.make_graph(random_model(characters, STYLES["gpt2"]), 20)


# the page's arithmetic, in Node

in_clone = pytest.mark.skipif(not PAGE.is_dir(), reason="no clone around")


def in_node(program, given, tmp_path):
    "Runs a module that gets `given` and the page's scripts; gives what it prints"
    node = shutil.which("node")
    if not node:
        pytest.skip("no Node: apt-get install nodejs")
    for script in PAGE.glob("*.js"):
        shutil.copy(script, tmp_path / f"{script.stem}.mjs")
    text = (tmp_path / "writer.mjs").read_text(encoding="utf-8")
    (tmp_path / "writer.mjs").write_text(text.replace("./sampling.js", "./sampling.mjs"))
    (tmp_path / "given.json").write_text(json.dumps(given))
    head = (
        'import fs from "node:fs"; import * as s from "./sampling.mjs"; '
        'import * as w from "./writer.mjs"; '
        'const given = JSON.parse(fs.readFileSync("given.json"));\n'
    )
    (tmp_path / "main.mjs").write_text(head + program)
    done = subprocess.run(
        [node, "main.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@in_clone
def test_the_same_random_numbers(tmp_path):
    pairs = [(seed, i) for seed in (0, 1, 7, 2**31, 2**32 - 1) for i in (0, 1, 2, 99, 100_000)]
    program = "console.log(JSON.stringify(given.map(([seed, i]) => s.mulberry32(seed, i))))"
    assert in_node(program, pairs, tmp_path) == [export.mulberry32(*pair) for pair in pairs]


@in_clone
def test_the_same_filters_and_draws(tmp_path):
    "What is kept, its probabilities, and the id that is picked"
    rng = np.random.default_rng(0)
    cases = []
    for n in range(400):
        logits = rng.normal(scale=3, size=67).astype(np.float32).tolist()
        settings = dict(
            temperature=float(rng.choice([0, 0.3, 0.8, 1, 1.7])),
            top_k=int(rng.choice([0, 1, 5, 66, 67, 90])),
            top_p=float(rng.choice([0, 0.05, 0.5, 0.95, 1])),
            min_p=float(rng.choice([0, 0.02, 0.3, 1])),
        )
        cases.append((logits, settings, export.mulberry32(n, 0)))
    program = """
    const named = (c) => ({temperature: c.temperature, topK: c.top_k, topP: c.top_p, minP: c.min_p})
    console.log(JSON.stringify(given.map(([logits, c, number]) =>
        [s.chances(logits, named(c)), s.pick(logits, number, named(c))])))"""
    for (logits, settings, number), (found, id_) in zip(cases, in_node(program, cases, tmp_path)):
        logits = torch.tensor([logits])
        assert id_ == export.pick(logits, number, **settings), settings
        if settings["temperature"]:
            expected = filter_logits(logits, **settings).double().softmax(-1)[0].numpy()
            assert np.allclose(found, expected, atol=1e-6), settings
            assert ((np.array(found) > 0) == (expected > 0)).all(), settings


@in_clone
def test_the_same_contexts_and_ids(tmp_path):
    pairs = [(n, window) for window in (1, 2, 16, 255, 256) for n in range(1, 700, 13)]
    program = "console.log(JSON.stringify(given.map(([n, T]) => w.contextStart(n, T))))"
    assert in_node(program, pairs, tmp_path) == [context_start(*pair) for pair in pairs]
    program = 'console.log(JSON.stringify(w.encode("cab ü😀bü", ["", "a", "b", "c", " "])))'
    assert in_node(program, [], tmp_path) == {"ids": [3, 1, 2, 4, 2], "unknown": ["ü", "😀"]}


# the page in a browser


class Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *args):
        pass


def glue():
    "The script that fills the page's folder, as a module"
    spec = importlib.util.spec_from_file_location("playground", ROOT / ".ci" / "playground.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HEAD = (
    '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"/>'
    '<link rel="icon" href="data:,"/><title>The demo alone</title></head><body><main><h1>x</h1>'
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    "The demo on a page of its own, served on loopback: its address and its folder"
    if not PAGE.is_dir():
        pytest.skip("no clone around")
    folder = tmp_path_factory.mktemp("demo")
    glue().add(folder / "_static" / "playground")
    built = json.loads((folder / "_static/playground/built.json").read_text())
    if not built["runtime"]:
        pytest.skip(built["why"])
    body = (PAGE / "playground.html").read_text(encoding="utf-8")
    (folder / "index.html").write_text(f"{HEAD}{body}</main></body></html>", encoding="utf-8")
    handler = functools.partial(Quiet, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()


def opened(browser, address, state="ready", calm=True, width=WIDE):
    "Opens the demo; `calm`: as a reader who asked for less motion, for whom nothing starts itself"
    set_screen(browser, width)
    motion = dict(name="prefers-reduced-motion", value="reduce" if calm else "no-preference")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=[motion]))
    browser.get_log("performance")
    browser.get(f"{address}/index.html")
    reached = f"return document.getElementById('playground').dataset.state === '{state}'"
    assert until(browser, reached, 60), state_of(browser)


def state_of(browser):
    return browser.execute_script(
        "return [document.getElementById('playground').dataset.state, "
        "document.getElementById('pg-message').textContent]"
    )


def put(browser, **values):
    "Sets fields, as a hand does, and tells the page"
    for name, value in values.items():
        browser.execute_script(
            "const field = document.getElementById('pg-' + arguments[0]); "
            "field.value = arguments[1]; "
            "field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change'))",
            name.replace("_", "-"),
            str(value),
        )


def click(browser, name):
    browser.find_element("id", f"pg-{name}").click()


def text_of(browser):
    return browser.execute_script("return document.getElementById('pg-text').textContent")


def ended(browser):
    state = "return document.getElementById('playground').dataset.state"
    assert until(browser, f"{state} !== 'writing' && {state.removeprefix('return ')}", 120)
    return browser.execute_script(state)


def test_the_text_of_the_browser_is_pythons(demo, browser):
    "Greedy and drawn, past the window of 256; nothing is asked for elsewhere"
    address, folder = demo
    opened(browser, address)
    model, tokenizer = open_checkpoint("shakespeare")
    put(browser, beginning="JULIET:\nO", count=320, temperature=0)
    click(browser, "write")
    assert ended(browser) == "written"
    expected = generate(model, tokenizer, "JULIET:\nO", max_new_tokens=320, temperature=0)
    assert text_of(browser) == "JULIET:\nO" + expected
    place = folder / "_static" / "playground"
    facts = export.read_json(place / "export.json", export.ExportManifest)
    exported = export.OnnxModel((place / "model.onnx").read_bytes(), facts)
    put(browser, beginning="ROMEO:\n", seed=5, temperature=0.9, top_k=20, top_p=0.9, min_p=0.02)
    click(browser, "write")
    assert ended(browser) == "written"
    drawn = dict(seed=5, temperature=0.9, top_k=20, top_p=0.9, min_p=0.02)
    ids = exported.write(tokenizer.encode("ROMEO:\n"), 320, **drawn)
    assert text_of(browser) == tokenizer.decode(ids)
    asked = [
        event["params"]["request"]["url"]
        for event in (json.loads(e["message"])["message"] for e in browser.get_log("performance"))
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert len(asked) >= 8
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []


def test_it_starts_by_itself(demo, browser):
    "But not for a reader who asked for less motion"
    opened(browser, demo[0], "written", calm=False)
    assert len(text_of(browser)) == 6 + 300
    seen = browser.execute_script(
        "const data = document.getElementById('playground').dataset; return [data.first, data.rate]"
    )
    print("first words after", seen[0], "ms;", seen[1], "characters a second")
    opened(browser, demo[0])
    assert text_of(browser) == "KING:\n"


def test_it_stops_when_told_and_goes_on(demo, browser):
    opened(browser, demo[0])
    put(browser, count=2000)
    click(browser, "write")
    length = "return document.getElementById('pg-text').textContent.length > "
    assert until(browser, f"{length} 12")
    click(browser, "stop")
    assert ended(browser) == "stopped"
    stopped = text_of(browser)
    assert 12 < len(stopped) < 2006
    assert not until(browser, f"{length} {len(stopped)}", 1)
    put(browser, count=5)
    click(browser, "write")
    ended(browser)
    assert text_of(browser).startswith(stopped) and len(text_of(browser)) == len(stopped) + 5


def test_looking_inside(demo, browser):
    "The table follows the sliders; a head colours the text; surprise has its number"
    opened(browser, demo[0])
    click(browser, "step")
    ended(browser)
    cells = "return [...document.querySelectorAll('#pg-rows tr')].map(r => r.cells[2].textContent)"
    put(browser, top_k=3, top_p=1, temperature=1)
    drawn = browser.execute_script(cells)
    assert drawn[3:] == ["cut off"] * 7 and "cut off" not in drawn[:3]
    assert abs(sum(float(x.split()[0]) for x in drawn[:3]) - 100) < 0.2
    put(browser, top_k=0)
    assert "cut off" not in browser.execute_script(cells)
    heads = browser.find_elements("css selector", "#pg-heads button")
    assert len(heads) == 24 and heads[8].get_attribute("aria-label") == "layer 2, head 3"
    heads[8].click()
    shares = browser.execute_script(
        "return [...document.querySelectorAll('#pg-text span')].map("
        "s => Number(s.style.getPropertyValue('--share')))"
    )
    assert max(shares) == 1 and min(shares) < 0.5
    put(browser, place=3)
    assert "bits" in browser.find_element("id", "pg-place-is").text


def test_keyboard_and_screen_reader(demo, browser):
    "Every control has a name and is reached by Tab; what was written is said once, at the end"
    opened(browser, demo[0])
    put(browser, count=12)
    keys = importlib.import_module("selenium.webdriver").Keys
    browser.execute_script("document.getElementById('pg-beginning').focus()")
    browser.switch_to.active_element.send_keys(keys.TAB)
    assert browser.switch_to.active_element.get_attribute("id") == "pg-write"
    browser.switch_to.active_element.send_keys(keys.ENTER)
    ended(browser)
    said = browser.execute_script("return document.getElementById('pg-said').textContent")
    assert len(said) == 12 and text_of(browser).endswith(said)
    slider = browser.find_element("id", "pg-temperature")
    slider.send_keys(keys.ARROW_RIGHT)
    assert browser.find_element("id", "pg-temperature-is").text == "0.85"
    live = "return document.getElementById('pg-said').getAttribute('aria-live')"
    assert browser.execute_script(live) == "polite"


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_it_fits(demo, browser, axe, width):
    opened(browser, demo[0], width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert serious_faults(browser, axe) == []


def test_unknown_characters_are_named(demo, browser):
    opened(browser, demo[0])
    put(browser, beginning="Zoë 7")
    message = "document.getElementById('pg-message').textContent"
    assert until(browser, f"return {message}.includes('ë 7')"), state_of(browser)
    assert text_of(browser) == "Zo "


def test_a_browser_without_webassembly_gets_one_sentence(demo, browser):
    script = browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", dict(source="delete window.WebAssembly")
    )
    try:
        opened(browser, demo[0], "none")
        assert "no WebAssembly" in state_of(browser)[1]
        assert not browser.find_element("id", "pg-main").is_displayed()
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


@in_clone
def test_a_build_without_npm_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NO_NPM", "npm was not asked")
    glue().add(tmp_path / "playground")
    built = json.loads((tmp_path / "playground" / "built.json").read_text())
    assert built == dict(runtime=None, why="npm was not asked")
    assert "npm was not asked" in capsys.readouterr().err
    assert not (tmp_path / "playground" / "model.onnx").exists()
