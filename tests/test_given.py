"Runs on a model and a text given in Python: what they train, what they call it, how they go on"

import copy
import os
from pathlib import Path

import pytest
import torch
from conftest import TINY, refuses, succeeds

from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.recipe import load_config, read_recipe
from shakespeare_neox.engine.report import read_log
from shakespeare_neox.engine.run import evaluate, make_run, neox_train_main, open_data, train_run
from shakespeare_neox.engine.state import RunData
from shakespeare_neox.model import GPT, ModelConfig

pytestmark = pytest.mark.usefixtures("here")
STEPS = dict(train_iters=6, eval_interval=3, log_interval=1, checkpoint_factor=2, warmup=0.0)
SIZES = dict(num_layers=1, hidden_size=32, num_attention_heads=2, seq_length=32)


def recipe(**settings):
    "A short run whose own sizes and text are those of another one"
    return load_config("quickstart", **{**STEPS, "precision": "fp32", "save": "run", **settings})


def some_data(**facts):
    "Token files that no recipe names"
    Path("mine.txt").write_text("It was a dark and stormy night.\n" * 200)
    vocab = "tokenizer/characters/tokenizer.json"
    opened = open_data(recipe(data_path="mine.txt", vocab_file=vocab).train)
    return RunData(opened.files, opened.tokenizer, **facts)


def some_model(seed=0, **settings):
    torch.manual_seed(seed)
    sizes = dict(SIZES, vocab_size=67, pos_emb="rotary")
    return GPT(ModelConfig(**{**sizes, **settings}))


def weights(folder):
    return GPT.from_pretrained(folder).state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def test_what_was_given_is_named_as_such():
    train_run(make_run(recipe(), model=some_model(), data=some_data()), shown="lines")
    start = read_log(Path("run"))[0]
    assert (start["data"], start["weights"]) == ("given in Python",) * 2
    assert start["licence"] == "unknown"
    assert "| text | given in Python |" in Path("run/report.md").read_text()
    assert not {"data_path", "vocab_file"} & set(read_recipe("run/config.yml"))


@pytest.mark.parametrize("given", ["model", "data", "neither"])
def test_only_what_was_given(given):
    model = some_model() if given == "model" else None
    data = some_data(name="my night", licence="CC0-1.0") if given == "data" else None
    train_run(make_run(recipe(**SIZES), model=model, data=data), shown="lines")
    start = read_log(Path("run"))[0]
    assert start["data"] == ("my night" if given == "data" else "sample")
    assert start["weights"] == ("given in Python" if given == "model" else "new")
    assert start["licence"] == "CC0-1.0"


def test_a_checkpoint_goes_on(trained):
    "The score before the first step is the checkpoint's; its weights are trained, not new ones"
    best = min(e["loss"] for e in read_log(trained) if e["event"] == "evaluation")
    kept = read_recipe(trained / "config.yml")
    longer = {**kept, **STEPS, "save": "run", "optimizer": dict(params=dict(lr=1e-3))}
    model = GPT.from_pretrained(trained / "best")
    before = copy.deepcopy(model.state_dict())
    run = make_run(load_config("quickstart", **longer), model=model)
    assert run.model is model and same(run.model.state_dict(), before)
    assert evaluate(run)["loss"] == pytest.approx(best, abs=1e-3)
    result = train_run(run, shown="lines")
    assert result.best_loss < best
    assert not same(weights("run/best"), before)
    assert same(weights(trained / "best"), before)


def test_a_stopped_run_goes_on_to_the_same_bits():
    def train(folder, callback=None):
        given = make_run(recipe(save=folder), model=some_model(), data=some_data())
        return train_run(given, callback, shown="lines")

    def stop(event):
        if event["event"] == "log" and event["step"] == 5:
            raise RuntimeError("stopped")

    train("whole")
    with pytest.raises(RuntimeError):
        train("halves", stop)
    assert os.listdir("halves/state") == ["step_4"]
    seen = []
    train("halves", seen.append)
    assert [e["step"] for e in seen if e["event"] == "log"] == [5, 6]
    assert same(weights("whole/last"), weights("halves/last"))


def test_a_run_on_another_text_does_not_go_on():
    train_run(make_run(recipe(train_iters=2), model=some_model(), data=some_data()), shown="lines")
    other = make_run(recipe(train_iters=2), model=some_model())
    with pytest.raises(NeoxError, match="run"):
        train_run(other, shown="lines")


def test_config_tells_the_sizes_that_were_trained(capsys):
    asked = recipe(train_iters=2)
    before = copy.deepcopy(asked)
    train_run(make_run(asked, model=some_model()), shown="lines")
    kept = read_recipe("run/config.yml")
    assert asked == before and asked.model["hidden_size"] == 128
    assert {key: kept[key] for key in SIZES} == SIZES
    assert kept["train_iters"] == 2 and "rotary_pct" not in kept
    again = succeeds(neox_train_main, ["run/config.yml", "--checkpoint_dir", "run"], capsys)
    assert "run is complete" in again.err


def test_a_model_that_lacks_ids_is_refused():
    with pytest.raises(NeoxError, match="67 ids, the model 50.*vocab_file"):
        make_run(recipe(), model=some_model(vocab_size=50), data=some_data())
    assert not Path("run").exists()


def test_memory_is_asked_for_what_is_given(monkeypatch):
    monkeypatch.setattr("shakespeare_neox.engine.device.device_bytes", lambda device: 2**16)
    with pytest.raises(NeoxError, match="of memory"):
        make_run(recipe(), model=some_model(), data=some_data())
    assert make_run(recipe(), force=True, model=some_model(), data=some_data())


# sizes that fit the text


def test_a_fitting_recipe_opens_no_text(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a text was opened")

    monkeypatch.setattr("shakespeare_neox.engine.corpora.load_corpus", fail)
    monkeypatch.setattr("shakespeare_neox.engine.run.load_corpus", fail)
    opened = load_config("book", data_path="none.txt", hidden_dropout=0.5)
    assert opened.model["hidden_dropout"] == 0.5 and "num_layers" not in opened.model
    with pytest.raises(NeoxError, match="num_layers is not given: fit_to_text"):
        opened.model_config(67)


def test_the_run_is_planned_by_the_size_of_its_text():
    Path("mine.txt").write_text("It was a dark and stormy night.\n" * 900)
    asked = load_config("book", data_path="mine.txt", num_layers=1, save="run")
    before = copy.deepcopy(asked)
    run = make_run(asked)
    assert (run.config.num_layers, run.config.hidden_size, run.plan.n_steps) == (1, 64, 300)
    assert run.recipe.settings["train_iters"] == 300 and asked == before
    given = make_run(load_config("book", data_path="none.txt"), data=some_data())
    assert given.config.hidden_size == 64


def test_a_text_that_is_not_there(capsys):
    argv = ["book", "data_path=none.txt", "--checkpoint_dir", "run"]
    refuses(neox_train_main, argv, capsys, "none.txt")
    assert not os.listdir()


def test_a_size_that_does_not_fit_is_named(capsys):
    Path("mine.txt").write_text("It was a dark and stormy night.\n" * 900)
    argv = ["book", "data_path=mine.txt", "hidden_size=66", "--checkpoint_dir", "run"]
    line = refuses(neox_train_main, argv, capsys, "command line: hidden_size 66 is not divisible")
    assert line.count("command line") == 1 and os.listdir() == ["mine.txt"]


def test_a_fitted_run_is_repeated_from_its_config(capsys):
    Path("mine.txt").write_text("It was a dark and stormy night.\n" * 200)
    few = [word for word in TINY if not word.startswith(("vocab_file", "data_path"))]
    succeeds(neox_train_main, ["book", "data_path=mine.txt", *few, "save=run"], capsys)
    said = succeeds(neox_train_main, ["run/config.yml", "--checkpoint_dir", "run"], capsys)
    assert "run is complete" in said.err
