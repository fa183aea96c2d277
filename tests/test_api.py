"The library from Python, with the habits that people bring from transformers"

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shakespeare_neox as neox
from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.checkpoints import open_checkpoint, shipped
from shakespeare_neox.engine.report import TrainResult
from shakespeare_neox.engine.vocab import CheckedTokenizer
from shakespeare_neox.model import GPT, ModelConfig

pytestmark = pytest.mark.usefixtures("here")
SIZES = dict(num_layers=2, hidden_size=32, num_attention_heads=4, seq_length=32, vocab_size=80)
STYLES = dict(
    gpt_neox=dict(pos_emb="rotary", rotary_pct=0.5, gpt_j_residual=True, no_weight_tying=True),
    gpt2={},
    llama=dict(
        pos_emb="rotary",
        norm="rmsnorm",
        activation="swiglu",
        no_weight_tying=True,
        use_bias_in_attn_linear=False,
        use_bias_in_mlp=False,
    ),
)


@pytest.fixture(scope="module")
def bundled():
    return open_checkpoint("shakespeare")


def fresh(code):
    "Runs code in an interpreter of its own"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# names at the top


def test_the_names_for_editors():
    "Those that are listed, those that are found, and those that an editor reads are the same"
    source = Path(neox.__file__).read_text(encoding="utf-8")
    block = source.split("if TYPE_CHECKING:")[1].split("def ")[0]
    read = re.findall(r"import (.+)", block) + re.findall(r"(\w+) = ", block)
    assert sorted(", ".join(read).split(", ")) == sorted(neox.NAMES) == sorted(neox.__all__)
    for module, names in re.findall(r"from \.(\S+) import (.+)", block):
        assert all(neox.NAMES[name][0] == module for name in names.split(", "))


def test_the_package_imports_nothing():
    fresh(
        "import sys; before = set(sys.modules); import shakespeare_neox; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "assert new <= {'shakespeare_neox', 'importlib', 'warnings'}, new"
    )


@pytest.mark.parametrize("name", neox.NAMES)
def test_a_name_is_imported_when_it_is_asked_for(name):
    module, there = neox.NAMES[name]
    home = importlib.import_module(f"shakespeare_neox.{module}")
    assert getattr(neox, name) is getattr(home, there)
    assert name in dir(neox) and name in neox.__all__
    given = {}
    exec("from shakespeare_neox.all import *", given)
    assert given[name] is getattr(home, there)
    fresh(f"from shakespeare_neox import {name}; assert callable({name})")


@pytest.mark.parametrize("first", ["train", "generate", "all", "engine.run", "benchmark"])
def test_functions_stay_functions(first):
    "The package has modules named train and generate; imported first or later, they hide nothing"
    both = "assert all(isinstance(f, types.FunctionType) for f in (n.train, n.generate)); "
    fresh(
        f"import importlib, types, shakespeare_neox.{first}; import shakespeare_neox as n; {both}"
        "from shakespeare_neox.train import Trainer; from shakespeare_neox.generate import draw; "
        f"{both} module = importlib.import_module('shakespeare_neox.train'); "
        "assert module.Trainer is Trainer"
    )


@pytest.mark.parametrize(
    "name, near", [("trian", "train"), ("GPTNeo", "GPTNeoX"), ("open_checkpoints", "open_check")]
)
def test_a_name_with_a_mistake(name, near):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'.*{near}"):
        getattr(neox, name)
    with pytest.raises(ImportError):
        exec(f"from shakespeare_neox import {name}")
    assert not hasattr(neox, "__wrapped__")


def test_modules_are_still_there():
    from shakespeare_neox import data, evaluate

    assert data.get_batch and evaluate.neox_evaluate
    assert neox.__version__ and importlib.import_module("shakespeare_neox.generate").draw


# keywords with a mistake


@pytest.mark.parametrize(
    "call, near",
    [
        (lambda m, t: neox.generate(m, t, "O", temprature=1), "temperature"),
        (lambda m, t: list(neox.stream(m, t, "O", max_token=1)), "max_new_tokens"),
        (lambda m, t: neox.generate(m, t, ["O"], topk=1), "top_k"),
        (lambda m, t: m.generate(torch.tensor([[5]]), top_pp=1), "top_p"),
        (lambda m, t: neox.train("quickstart", train_iter=9), "train_iters"),
        (lambda m, t: neox.train("quickstart", calback=print), "callback"),
        (lambda m, t: neox.train("quickstart", device="cuda"), "CUDA_VISIBLE_DEVICES"),
        (lambda m, t: neox.train("quickstart", epochs=3), "train_epochs"),
    ],
    ids=["generate", "stream", "many", "model", "setting", "keyword", "device", "other name"],
)
def test_a_keyword_with_a_mistake(call, near, bundled):
    with pytest.raises(NeoxError, match=near) as error:
        call(*bundled)
    assert "\n" not in str(error.value)


# the model


def reference(model):
    "The same model in transformers"
    from transformers import AutoModelForCausalLM

    model.save_pretrained("m")
    return AutoModelForCausalLM.from_pretrained("m").double().eval()


@pytest.fixture(params=STYLES)
def model(request):
    torch.manual_seed(0)
    model = GPT(ModelConfig(**SIZES, **STYLES[request.param])).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_labels_are_those_of_transformers(model):
    "Loss and logits, with targets that do not count; gradients flow"
    theirs = reference(model)
    ours = model.double()
    ids = torch.randint(80, (3, 20))
    labels = ids.clone()
    labels[0, :9] = labels[2, 15] = -100
    expected = theirs(input_ids=ids, labels=labels)
    found = ours(ids, labels=labels)
    close = dict(atol=1e-5, rtol=1e-5)  # norms of LLaMA are in single precision
    torch.testing.assert_close(found.logits[..., :80], expected.logits[..., :80], **close)
    torch.testing.assert_close(found.loss, expected.loss.to(found.loss), **close)
    loss, logits = found
    assert loss is found.loss and torch.equal(logits, ours(ids))
    wrong = ours(ids, labels=labels.roll(1, dims=1)).loss  # shifted twice
    assert abs(wrong - loss) > 1e-3
    loss.backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_num_parameters_and_device(model):
    theirs = reference(model)
    extra = sum(n.numel() for name, n in theirs.named_parameters() if "bias" in name)
    mine = sum(n.numel() for name, n in model.named_parameters() if "bias" in name)
    assert model.num_parameters() - mine == theirs.num_parameters() - extra
    assert model.device == torch.device("cpu") == next(model.parameters()).device
    assert model.to("meta").device == torch.device("meta")


@pytest.mark.parametrize("padded", [False, True])
def test_generate_is_that_of_transformers(model, padded):
    "Greedy ids of two rows, one of them padded on its left"
    theirs = reference(model)
    ours = model.double()
    ids, mask = torch.randint(80, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    if padded:
        mask[1, :4] = 0
    expected = theirs.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    found = ours.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    assert found.tolist() == expected.tolist() and found.shape == (2, 26)
    if padded:  # without the mask the padding is read
        assert ours.generate(ids, max_new_tokens=20, do_sample=False).tolist() != found.tolist()


def test_generate_ends(model):
    "Behind the end of a text there is padding; when all rows have ended, so does the call"
    ids = torch.randint(80, (2, 6))
    whole = model.generate(ids, max_new_tokens=20, do_sample=False)
    end = int(whole[0, 9])
    model.special_ids = dict(eos_token_id=[end], pad_token_id=79)
    found = model.generate(ids, max_new_tokens=20, do_sample=False)
    for row, full in zip(found[:, 6:].tolist(), whole[:, 6:].tolist()):
        n = full.index(end) + 1 if end in full else len(row)
        assert row == full[:n] + [79] * (len(row) - n)
    alone = model.generate(ids[0], max_new_tokens=20, do_sample=False)
    assert alone.shape == (1, 7 + whole[0, 6:].tolist().index(end))


def test_generate_draws_what_generate_draws(bundled):
    model, tokenizer = bundled
    settings = dict(max_new_tokens=30, temperature=0.7, top_k=9, seed=4)
    ids = model.generate(**tokenizer(["ROMEO:", "O"], return_tensors="pt"), **settings)
    texts = neox.generate(model, tokenizer, ["ROMEO:", "O"], **settings)
    for row, prompt, text in zip(ids.tolist(), ("ROMEO:", "O"), texts):
        assert tokenizer.decode(row) == prompt + text
    assert torch.equal(model.generate(ids[:1, -9:], max_new_tokens=0), ids[:1, -9:])
    for empty in (torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 3, dtype=torch.long)):
        with pytest.raises(NeoxError, match="a prompt is empty"):
            model.generate(empty)


def test_one_rule_for_the_prompt_and_the_seed(bundled):
    "Text functions give the continuation alone; draws follow from seed 0 if none is given"
    one = neox.generate(*bundled, "ROMEO:", max_new_tokens=20)
    assert not one.startswith("ROMEO:") and one == neox.generate(
        *bundled, "ROMEO:", max_new_tokens=20, seed=0
    )
    assert "".join(neox.stream(*bundled, "ROMEO:", max_new_tokens=20)) == one
    assert neox.generate(*bundled, ["ROMEO:"], max_new_tokens=20) == [one]


# the tokenizer


def test_tokenizer_has_the_habits_of_transformers(bundled):
    from transformers import AutoTokenizer

    ours, theirs = bundled[1], AutoTokenizer.from_pretrained(shipped())
    theirs.padding_side = "left"
    for text in ("O", "ROMEO:\nSpeak."):
        assert ours(text) == {name: theirs(text)[name] for name in ours(text)}
        assert ours(text).input_ids == ours(text)["input_ids"] == ours.encode(text)
    texts = ["O", "ROMEO:", ""]
    assert ours(texts) == {name: theirs(texts)[name] for name in ours(texts)}
    found = ours(texts, return_tensors="pt")
    expected = theirs(texts, return_tensors="pt", padding=True)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(found[name], expected[name])
    assert len(ours) == len(theirs)
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    with pytest.raises(NeoxError, match="give 'pt'"):
        ours("O", return_tensors="tf")
    assert isinstance(ours, CheckedTokenizer)


# what a run gives back


def test_result_in_a_notebook():
    events = [dict(event="log", step=n, loss=3 / n) for n in (1, 2, 3)]
    result = TrainResult(Path("runs/<b>"), 3, 1.0, 1.4, 2.0, 9.0, events, "MARIAN:\n<i>Good</i>")
    page = result._repr_html_()
    assert page.count("<img") == 1 and "data:image/png;base64," in page
    assert "MARIAN:\n&lt;i&gt;Good" in page and "<b>" not in page
    result.sample = ""
    assert "<pre>" not in result._repr_html_()


def test_result_without_a_plot(monkeypatch, capsys):
    from shakespeare_neox.engine import report

    def broken(self):
        raise RuntimeError("no font")

    monkeypatch.setattr(report.TrainResult, "plot", broken)
    page = TrainResult(Path("runs/x"), 3, 1.0, 1.4, 2.0, 9.0, [], "O")._repr_html_()
    assert "<img" not in page and "<pre>O</pre>" in page
    assert "no font" in capsys.readouterr().err
