"""GGUF: what is written, what is refused, and llama.cpp itself (from npm) writing the same text."""

import json
import shutil
import subprocess

import pytest
import torch
from conftest import refuses, succeeds

from shakespeare_neox.engine import gguf as ours
from shakespeare_neox.engine.base import NeoxError, assets
from shakespeare_neox.engine.checkpoints import open_checkpoint
from shakespeare_neox.engine.serve import generate
from shakespeare_neox.engine.tokens import load_tokenizer
from shakespeare_neox.engine.vocab import train_tokenizer
from shakespeare_neox.model import GPT, ModelConfig

gguf = pytest.importorskip("gguf", reason="wants: pip install 'shakespeare_neox[export]'")

TEXT = "ROMEO:\nIt is the east, and Juliet is the sun; arise, fair sun, naïve “two”   spaces!\n"
SIZES = dict(num_layers=2, hidden_size=64, num_attention_heads=4, seq_length=64)
PROGRAMS = {
    "gptneox": dict(pos_emb="rotary", rotary_pct=0.5, bias_gelu_fusion=True),
    "gptneox parallel": dict(pos_emb="rotary", gpt_j_residual=True, bias_gelu_fusion=True),
    "gpt2": dict(pos_emb="learned", bias_gelu_fusion=True, no_weight_tying=False),
    "nemotron": dict(pos_emb="rotary", activation="relu2"),
    "llama": dict(
        pos_emb="rotary",
        norm="rmsnorm",
        activation="swiglu",
        num_kv_heads=2,
        use_bias_in_attn_linear=False,
        use_bias_in_mlp=False,
        use_bias_in_norms=False,
    ),
}


@pytest.fixture(scope="module")
def tokenizers():
    return {
        "char": train_tokenizer([TEXT], "char"),
        "bpe": train_tokenizer([TEXT * 5], "bpe", 290),
    }


def saved(folder, tokenizer, style):
    "A model whose greedy text depends on each part: large matrices, small biases, norms around 1"
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, **SIZES, **style)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2 if parameter.ndim > 1 else 0.1)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    model.save_pretrained(folder, tokenizer)
    return folder


@pytest.mark.parametrize("style", PROGRAMS)
def test_every_number_is_there(style, tokenizers, tmp_path):
    folder = saved(tmp_path / "model", tokenizers["char"], PROGRAMS[style])
    program = ours.export_gguf(str(folder), tmp_path / "out")
    assert program == style.split()[0]
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    model, tokenizer = open_checkpoint(str(folder))
    expected = ours.gguf_tensors(model, ours.program_for(model.config), tokenizer.vocab_size)
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert set(found) == set(expected)
    assert all((found[name] == tensor).all() for name, tensor in expected.items())
    assert (tmp_path / "out" / "Modelfile").read_text().startswith("FROM ./model.gguf\n")


@pytest.mark.parametrize(
    "style, part",
    [
        (dict(pos_emb="learned", activation="relu2"), "activation="),
        (dict(pos_emb="rotary", activation="relu2", gpt_j_residual=True), "gpt_j_residual=True"),
        (PROGRAMS["llama"] | dict(rotary_pct=0.5), "rotary_pct=0.5"),
        (PROGRAMS["llama"] | dict(activation="geglu"), "geglu"),
        (PROGRAMS["gptneox"] | dict(num_kv_heads=2), "no program"),
    ],
)
def test_what_no_program_computes(style, part, tokenizers):
    config = ModelConfig(vocab_size=tokenizers["char"].vocab_size, **SIZES, **style)
    with pytest.raises(NeoxError, match=part):
        ours.program_for(config)


def test_what_is_refused(tokenizers, tmp_path, here, capsys):
    pytest.importorskip("onnx")
    from shakespeare_neox.engine.export import neox_export_main

    refuses(neox_export_main, ["shakespeare", "--gguf", "--page"], capsys, "one of them")
    refuses(neox_export_main, ["shakespeare", "--gguf", "--weights", "q4"], capsys, "q4")
    unigrams = load_tokenizer(assets("tokenizer") / "unigram")
    folder = saved(tmp_path / "model", unigrams, PROGRAMS["gpt2"])
    refuses(neox_export_main, [folder, "--gguf"], capsys, "Unigram")
    assert not (here / "export").exists()
    out, err = succeeds(neox_export_main, ["shakespeare", "--gguf"], capsys)
    assert out == "export\n" and "nemotron" in err


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(NeoxError, match=r"shakespeare_neox\[export\]"):
        ours.export_gguf("shakespeare", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# llama.cpp itself

PROGRAM = """
import {getLlama} from "node-llama-cpp";
const [,, path, prompt, n] = process.argv;
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: 64 < model.trainContextSize ?
    model.trainContextSize : 64, threads: 1, flashAttention: false,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"});
const ids = model.tokenize(JSON.parse(prompt));
const written = [];
for await (const id of context.getSequence().evaluate(ids, {temperature: 0})) {
    written.push(id);
    if (written.length >= Number(n)) break;
}
console.log(JSON.stringify({ids, written}));
process.exit(0);
"""
PACKAGES = ("node-llama-cpp@3.21.1", "@node-llama-cpp/linux-x64@3.21.1")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    "A function: file, prompt, number of ids -> the prompt's ids and what llama.cpp writes"
    folder, npm = tmp_path_factory.mktemp("llama"), shutil.which("npm")
    if not npm:
        pytest.skip("no npm")
    (folder / "package.json").write_text("{}")
    options = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        [npm, "i", "-E", *PACKAGES, *options], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"llama.cpp cannot be taken from npm: {done.stderr[-200:]}")
    (folder / "write.mjs").write_text(PROGRAM)

    def run(path, prompt, n):
        words = ["node", folder / "write.mjs", path, json.dumps(prompt), str(n)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout.splitlines()[-1])
        return found["ids"], found["written"]

    return run


@pytest.mark.slow
def test_llama_cpp_writes_what_the_bundled_model_writes(llama, tmp_path):
    assert ours.export_gguf("shakespeare", tmp_path / "out") == "nemotron"
    model, tokenizer = open_checkpoint("shakespeare")
    prompt = "KING:\nNow "
    ids, written = llama(tmp_path / "out" / "model.gguf", prompt, 200)
    assert ids == tokenizer.encode(prompt)
    expected = generate(model, tokenizer, prompt, max_new_tokens=200, temperature=0)
    assert tokenizer.decode(written) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["char", "bpe"])
@pytest.mark.parametrize("style", PROGRAMS)
def test_llama_cpp_writes_the_same(style, kind, tokenizers, llama, tmp_path):
    folder = saved(tmp_path / "model", tokenizers[kind], PROGRAMS[style])
    ours.export_gguf(str(folder), tmp_path / "out")
    model, tokenizer = open_checkpoint(str(folder))
    prompt = "Juliet is  “naïve”;\n"
    ids, written = llama(tmp_path / "out" / "model.gguf", prompt, 24)
    assert ids == tokenizer.encode(prompt)
    out = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0]
    assert written == out[len(ids) : len(ids) + len(written)].tolist()
    assert len(set(written)) > 2  # until the end of the text, if it writes that


@pytest.mark.slow
def test_a_wrong_order_of_rows_is_seen(tokenizers, llama, tmp_path, monkeypatch):
    "Queries and keys as we have them are not what llama's program turns"
    folder = saved(tmp_path / "model", tokenizers["char"], PROGRAMS["llama"])
    monkeypatch.setattr(ours, "interleaved", lambda rows, head_size: rows)
    ours.export_gguf(str(folder), tmp_path / "out")
    model, tokenizer = open_checkpoint(str(folder))
    ids, written = llama(tmp_path / "out" / "model.gguf", "Juliet is the sun;\n", 24)
    out = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0]
    assert written != out[len(ids) : len(ids) + len(written)].tolist()
