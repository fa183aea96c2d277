"""LoRA through peft: adapters on all three families, opened by peft and transformers, merged,
resumed to the same bits, and what is refused"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import refuses, succeeds, tree
from test_finetune import (
    STEPS,
    a_run,
    prepare_words,
    same,
    some_examples,
    some_model,
    tokenizer,  # noqa: F401
    tune_words,
    weights,
)

from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.lora import (
    Lora,
    adapter_layers,
    add_adapters,
    lora_given,
    merged,
    named_layers,
    target_names,
)
from shakespeare_neox.engine.run import evaluate, train_run
from shakespeare_neox.engine.state import read_state
from shakespeare_neox.engine.tuning import chat_run
from shakespeare_neox.finetune import chat_data, neox_finetune_main
from shakespeare_neox.model import GPT

pytestmark = pytest.mark.usefixtures("here")
FAMILIES = dict(
    gpt_neox=dict(pos_emb="rotary", rotary_pct=0.25, gpt_j_residual=True),
    gpt2=dict(pos_emb="learned", bias_gelu_fusion=True, no_weight_tying=False),
    llama=dict(
        pos_emb="rotary",
        norm="rmsnorm",
        activation="swiglu",
        num_kv_heads=1,
        use_bias_in_attn_linear=False,
        use_bias_in_mlp=False,
    ),
)
GIVEN = ["--pretrained_ckpt_path", "base", "--dataset_path", "data.jsonl"]
GIVEN += ["--finetuned_model_dir", "tuned"]
WORDS = [f"{key}={value}" for key, value in STEPS.items() if value is not None]


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


def a_base(tokenizer, family="gpt_neox"):
    import copy

    plain = copy.copy(tokenizer)
    plain.files = {}
    model = some_model(tokenizer, **FAMILIES[family])
    model.save_pretrained("base", plain)
    return model


def shaken(model):
    "Adapters that do something: B is zero at first"
    torch.manual_seed(2)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    return model


def off(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def some_ids(tokenizer):
    torch.manual_seed(3)
    return torch.randint(0, tokenizer.vocab_size, (2, 40))


# the names, without peft


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_layers_of_attention_and_mlp(tokenizer, family):
    config = some_model(tokenizer, **FAMILIES[family]).config
    ours = named_layers(config, ["all-linear"])
    assert len(ours) == (5 if family == "llama" else 4)
    theirs = target_names(config, ours)
    assert named_layers(config, theirs) == ours  # the way back
    for layer in ours:
        assert named_layers(config, target_names(config, [layer])) == [layer]
        assert named_layers(config, [layer.split(".")[1]]) == [layer]


@pytest.mark.parametrize(
    "family, wanted, word",
    [
        ("gpt_neox", ["q_proj"], "'q_proj' is no linear layer"),
        ("gpt2", ["c_fx"], "nearest: c_fc"),
        ("llama", ["q_proj", "v_proj"], "are one matrix here"),
        ("gpt2", ["lm_head"], "is no linear layer"),
        ("gpt2", [""], "is no linear layer"),
    ],
)
def test_layers_that_are_not_there(tokenizer, family, wanted, word):
    config = some_model(tokenizer, **FAMILIES[family]).config
    with pytest.raises(NeoxError, match=word) as e:
        named_layers(config, wanted)
    assert "\n" not in str(e.value)


def test_flags_without_a_rank():
    assert lora_given() is None and lora_given(4) == Lora(4, 8)
    assert lora_given(4, 16, 0.1, " a, b,").target_modules == ("a", "b")
    for more in (dict(alpha=1.0), dict(dropout=0.0), dict(target_modules="c_fc")):
        with pytest.raises(NeoxError, match="given without --lora_rank"):
            lora_given(**more)


def test_without_peft_one_line(tokenizer, capsys, monkeypatch):
    prepare_words(tokenizer)
    before = tree(".")
    monkeypatch.setitem(sys.modules, "peft", None)
    refuses(
        neox_finetune_main,
        [*GIVEN, "--lora_rank", 4, *WORDS],
        capsys,
        "pip install",
        "shakespeare_neox[lora]",
    )
    assert tree(".") == before


BAD = [
    (["--lora_rank", 0], "lora_rank: 0 is out of range", "1 to 32"),
    (["--lora_rank", -4], "lora_rank: -4"),
    (["--lora_rank", 33], "lora_rank: 33"),
    (["--lora_rank", 4, "--lora_alpha", 0], "lora_alpha"),
    (["--lora_rank", 4, "--lora_alpha", "nan"], "lora_alpha"),
    (["--lora_rank", 4, "--lora_dropout", 1], "lora_dropout"),
    (["--lora_rank", 4, "--lora_dropout", -0.1], "lora_dropout"),
    (["--lora_rank", 4, "--lora_target_modules", "embed_in"], "'embed_in' is no linear layer"),
    (["--lora_rank", 4, "optimizer.type=Muon"], "Muon is for whole matrices"),
    (["--lora_alpha", 8], "given without --lora_rank"),
    (["--lora_rank", 4, "hidden_size=64"], "belongs to the model"),
]


@pytest.mark.parametrize("bad", BAD, ids=[" ".join(map(str, b[0])) for b in BAD])
def test_refused_before_anything_is_written(peft, tokenizer, capsys, bad):
    given, *parts = bad
    prepare_words(tokenizer)
    before = tree(".")
    refuses(neox_finetune_main, [*GIVEN, *WORDS, *given], capsys, *parts, steps=True)
    assert tree(".") == before


@pytest.mark.parametrize("word", ["four", "2.5"])
def test_a_rank_that_is_no_number(peft, tokenizer, capsys, word):
    prepare_words(tokenizer)
    refuses(neox_finetune_main, [*GIVEN, "--lora_rank", word], capsys, "lora_rank", steps=True)


# a model with adapters


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wanted", ["all-linear", "attention"])
def test_peft_and_transformers_open_it(peft, tokenizer, family, wanted):
    "The adapter on the base, and the merged model, give the logits of our own"
    from transformers import AutoModelForCausalLM

    base = a_base(tokenizer, family)
    ids = some_ids(tokenizer)
    plain = base(ids).detach()
    names = [wanted] if wanted == "all-linear" else ["qkv", "out"]
    ours = shaken(add_adapters(base, Lora(4, 12, target_modules=names), adapts="base"))
    expected = ours(ids).detach()
    assert off(expected, plain) > 0.05
    assert off(merged(ours)(ids), expected) < 1e-5
    ours.save_pretrained("tuned", tokenizer)
    assert off(GPT.from_pretrained("tuned")(ids), expected) < 1e-5
    V = base.config.vocab_size
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained("tuned")
        assert off(whole(ids).logits[..., :V], expected[..., :V]) < 1e-5
        theirs = AutoModelForCausalLM.from_pretrained("base")
        assert off(theirs(ids).logits[..., :V], plain[..., :V]) < 1e-5
        theirs = peft.PeftModel.from_pretrained(theirs, "tuned/adapter")
        assert off(theirs(ids).logits[..., :V], expected[..., :V]) < 1e-5
        again = theirs.merge_and_unload()
        assert off(again(ids).logits[..., :V], expected[..., :V]) < 1e-5
        found = peft.AutoPeftModelForCausalLM.from_pretrained("tuned/adapter")  # finds the base
        assert off(found(ids).logits[..., :V], expected[..., :V]) < 1e-5


def test_adapters_are_drawn_from_the_seed_and_nothing_else_is(peft, tokenizer):
    def drawn(seed):
        torch.manual_seed(9)
        model = add_adapters(some_model(tokenizer), Lora(4, dropout=0.5), seed)
        torch.manual_seed(9)
        some_model(tokenizer)
        expected = torch.rand(3)
        return model, expected

    one, other = drawn(5)[0], drawn(6)[0]
    same_one = drawn(5)[0]
    lists = [[p for n, p in m.named_parameters() if "lora_A" in n] for m in (one, same_one, other)]
    assert all(a.equal(b) for a, b in zip(*lists[:2])) and not lists[0][0].equal(lists[2][0])
    torch.manual_seed(9)
    before = torch.get_rng_state()
    model = some_model(tokenizer)
    torch.set_rng_state(before)
    add_adapters(model, Lora(4))
    assert torch.get_rng_state().equal(before)
    ids = some_ids(tokenizer)
    assert one(ids).equal(one(ids))  # its dropout is off, as the model's mode says
    one.train()
    shaken(one)
    assert not one(ids).equal(one(ids))
    with pytest.raises(NeoxError, match="has adapters already"):
        add_adapters(one, Lora(4))


# runs


def a_lora_run(tokenizer, folder, lora=None, **settings):
    from shakespeare_neox.engine.instructions import split_examples

    train, valid = split_examples(some_examples(), 0.25)
    data = chat_data(tokenizer, train, valid, 64, "mine")
    lora = lora or Lora(4, 32, dropout=0.1)
    return chat_run(some_model(tokenizer), data, Path(folder), {**STEPS, **settings}, lora=lora)


def test_only_adapters_are_trained_and_have_moments(peft, tokenizer):
    run = a_lora_run(tokenizer, "run", optimizer=dict(params=dict(lr=1e-2)))
    ids = some_ids(tokenizer)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    first = evaluate(run)["loss"]
    full = a_run(tokenizer, "full")
    assert first == pytest.approx(evaluate(full)["loss"], rel=1e-6)  # B is zero
    result = train_run(run, shown="lines")
    assert result.best_loss < first - 0.1
    moved = {n for n, p in run.model.named_parameters() if not p.equal(before[n])}
    assert moved == {n for n in before if "lora_" in n}
    facts, tensors = read_state(Path("run"), 6)
    moments = {n.split("|")[1] for n in tensors if n.startswith("optimizer|")}
    assert moments == moved
    best = GPT.from_pretrained("run/best")
    run.model.eval()
    last = GPT.from_pretrained("run/last")
    assert off(last(ids), run.model(ids)) < 1e-5
    assert not adapter_layers(best) and (Path("run") / "best/adapter").is_dir()


def test_a_stopped_run_goes_on_to_the_same_bits(peft, tokenizer):
    def stop(event):
        if event["event"] == "log" and event["step"] == 5:
            raise RuntimeError("stopped")

    train_run(a_lora_run(tokenizer, "whole"), shown="lines")
    with pytest.raises(RuntimeError):
        train_run(a_lora_run(tokenizer, "halves"), stop, shown="lines")
    seen = []
    train_run(a_lora_run(tokenizer, "halves"), seen.append, shown="lines")
    assert [e["step"] for e in seen if e["event"] == "log"] == [5, 6]
    for part in ("last", "best"):
        assert same(weights(f"whole/{part}"), weights(f"halves/{part}"))
        files = [f"{part}/adapter/adapter_{n}" for n in ("config.json", "model.safetensors")]
        for file in files:
            assert Path("whole", file).read_bytes() == Path("halves", file).read_bytes()


@pytest.mark.parametrize(
    "other, word",
    [
        (Lora(8, 32, dropout=0.1), "'rank': 4"),
        (Lora(4, 16, dropout=0.1), "'alpha': 32"),
        (Lora(4, 32), "'dropout': 0.1"),
        (Lora(4, 32, 0.1, ("qkv",)), "attention.qkv"),
        (None, "lora: "),
    ],
)
def test_other_adapters_do_not_go_on(peft, tokenizer, other, word):
    train_run(a_lora_run(tokenizer, "run"), shown="lines")
    before = tree("run")
    run = a_lora_run(tokenizer, "run", other) if other else a_run(tokenizer, "run")
    with pytest.raises(NeoxError, match="holds another run") as e:
        train_run(run, shown="lines")
    assert word in str(e.value)
    assert tree("run") == before


def test_the_mean_of_adapters_is_kept(peft, tokenizer):
    "Weight averaging keeps a model of its own, which is saved in the same way"
    run = a_lora_run(tokenizer, "run", average_steps=3, optimizer=dict(params=dict(lr=1e-2)))
    train_run(run, shown="lines")
    ids = some_ids(tokenizer)
    run.model.eval()
    mean = run.average.model.eval()
    assert off(mean(ids), run.model(ids)) > 1e-3
    assert off(GPT.from_pretrained("run/last")(ids), mean(ids)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_command(peft, tokenizer, capsys, family):
    prepare_words(tokenizer)
    import shutil

    shutil.rmtree("base")
    base = a_base(tokenizer, family)
    given = [*GIVEN, "--lora_rank", 4, "--lora-alpha", 64, "--lora_dropout", 0.05, *WORDS]
    done = succeeds(neox_finetune_main, given, capsys)
    assert done.out.strip() == str(Path("tuned/best"))
    found = re.search(r"^([\d,]+) of ([\d,]+) parameters are trained", done.err, re.M)
    trained, total = (int(n.replace(",", "")) for n in found.groups())
    add_adapters(base, Lora(4))
    sizes = {n: p.numel() for n, p in base.named_parameters()}
    assert trained == sum(s for n, s in sizes.items() if "lora_" in n)
    assert total == sum(sizes.values())
    config = json.loads(Path("tuned/best/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base" and config["lora_alpha"] == 64
    assert "is complete" in succeeds(neox_finetune_main, given, capsys).err
    refuses(neox_finetune_main, [*GIVEN, *WORDS], capsys, "holds another run", "lora", steps=True)


@pytest.mark.skipif(os.name == "nt", reason="signals as on POSIX")
def test_killed_runs_go_on_to_the_same_bits(peft, tokenizer):
    prepare_words(tokenizer)
    lora = ["--lora_rank", "4", "--lora_dropout", "0.1"]
    words = {name: [*tune_words(name, *more), *lora] for name, *more in (("whole",), ("killed",))}
    whole = subprocess.run(
        [sys.executable, *words["whole"]], capture_output=True, text=True, timeout=300
    )
    assert whole.returncode == 0, whole.stderr
    with Path("err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, *tune_words("killed", "--slow"), *lora], stderr=err, stdout=err
        )
        start = time.monotonic()
        while not re.search(r"^step +7/16  loss", Path("err").read_text(), re.M):
            assert process.poll() is None and time.monotonic() - start < 200
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = subprocess.run(
        [sys.executable, *words["killed"]], capture_output=True, text=True, timeout=300
    )
    assert "goes on from step" in last.stderr, last.stderr
    for part in ("last", "best"):
        assert same(weights(f"whole/{part}"), weights(f"killed/{part}"))


@pytest.mark.skipif(os.name == "nt", reason="torchrun as on POSIX")
def test_two_processes_tune_as_one(peft, tokenizer):
    prepare_words(tokenizer)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    found = {}
    for name, n in (("one", 1), ("two", 2)):
        words = tune_words(name, train_micro_batch_size_per_gpu=4 // n, train_iters=4)
        done = subprocess.run(
            [*launch, str(n), *words, "--lora_rank", "4"],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found[name] = torch.cat([w.flatten() for w in weights(f"{name}/last").values()])
    start = torch.cat([w.flatten() for w in weights("base").values()])
    moved = (found["one"] - start).norm()
    assert moved > 0 and (found["one"] - found["two"]).norm() < 0.01 * moved
