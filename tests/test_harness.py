"""Tasks of lm-eval on our models: the same answers as its own `hf` model gives, and what is
refused. Without lm-eval, what does not need it is tested."""

import importlib.util
import json
import logging
import math
import random
import sys

import numpy as np
import pytest
import torch
from conftest import refuses

from shakespeare_neox import evaluate
from shakespeare_neox.engine import harness, tasks
from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.checkpoints import open_checkpoint, save_model
from shakespeare_neox.engine.metrics import in_all
from shakespeare_neox.engine.vocab import CheckedTokenizer, train_tokenizer
from shakespeare_neox.model import GPT, ModelConfig

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed")
TEXT = "The ink is dry, and the letter is sealed.\nMy lord, the king is dead; speak no more.\n"
WINDOW = 24
STYLES = dict(
    gpt_neox=dict(pos_emb="rotary", rotary_pct=0.5),
    gpt2=dict(pos_emb="learned", bias_gelu_fusion=True),
    llama=dict(
        pos_emb="rotary",
        norm="rmsnorm",
        activation="swiglu",
        no_weight_tying=True,
        use_bias_in_attn_linear=False,
        use_bias_in_mlp=False,
        use_bias_in_norms=False,
        num_kv_heads=2,
    ),
)


class Wanted:
    "A request, as lm-eval hands it over"

    def __init__(self, *args):
        self.args = args


def random_model(style, tokenizer):
    "Every parameter random, so that a mistake changes what is probable"
    sizes = dict(num_layers=2, hidden_size=32, num_attention_heads=4, seq_length=16)
    config = ModelConfig(
        **sizes | STYLES[style],
        max_position_embeddings=WINDOW,
        vocab_size=tokenizer.vocab_size,
    )
    torch.manual_seed(0)
    model = GPT(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def with_begin(tokenizer):
    "A tokenizer that puts a token before each text by itself, as LLaMA's does"
    from tokenizers.processors import TemplateProcessing

    begin = tokenizer.backend.id_to_token(tokenizer.pad_id)
    tokenizer.roles["bos_token"] = begin
    tokenizer.roles.pop("pad_token", None)
    tokenizer.backend.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.pad_id)]
    )
    tokenizer.set_ids()
    return tokenizer


@pytest.fixture(scope="module", params=[*STYLES, "llama-bos"])
def pair(request, tmp_path_factory):
    "A checkpoint through our adapter, and the same folder opened as lm-eval's `hf` model"
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    style, *begin = request.param.split("-")
    tokenizer = train_tokenizer(TEXT * 3, "char")
    if begin:
        tokenizer = with_begin(tokenizer)
    folder = tmp_path_factory.mktemp(request.param) / "model"
    save_model(random_model(style, tokenizer), folder, tokenizer)
    model, tokenizer = open_checkpoint(str(folder))
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=3)
    return harness.as_task_model(model.cpu(), tokenizer, batch_size=4), theirs


def texts(seed, n, shortest, longest):
    "Pieces of the text, of many lengths"
    draws = random.Random(seed)
    starts = [draws.randrange(len(TEXT)) for _ in range(n)]
    return [(TEXT * 9)[s : s + draws.randint(shortest, longest)] for s in starts]


# the same answers


def test_continuations(pair):
    "With and without context, shorter and longer than the window"
    given = ["", "", *texts(0, 20, 1, 3 * WINDOW)]
    follows = texts(1, 22, 1, WINDOW - 1)
    requests = [Wanted(*each) for each in zip(given, follows)]
    ours, theirs = (model.loglikelihood(requests, disable_tqdm=True) for model in pair)
    for mine, other, request in zip(ours, theirs, requests):
        assert mine[0] == pytest.approx(other[0], abs=2e-4), request.args
        assert mine[1] == other[1], request.args
    assert len({round(nats, 3) for nats, _ in ours}) > 15


def test_greedy_is_told(pair):
    "Of what the model itself would say, each token is the first guess"
    ours, theirs = pair
    given, tokens = ours.tok_encode("The ink is dry,"), []
    with torch.no_grad():
        for _ in range(6):
            row = torch.tensor([given + tokens])
            tokens.append(ours.model(row)[0, -1].argmax().item())
    other = [*tokens[:-1], (tokens[-1] + 1) % 5]
    requests = [(None, given, ids) for ids in (tokens, other)]
    for model in (ours, theirs):
        found = model._loglikelihood_tokens(requests, disable_tqdm=True)
        assert [greedy for _, greedy in found] == [True, False]


@pytest.mark.parametrize("n", [1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 2 * WINDOW + 5])
def test_whole_texts(pair, n):
    requests = [Wanted((TEXT * 9)[start : start + n]) for start in (0, 3, 7)]
    ours, theirs = (model.loglikelihood_rolling(requests, disable_tqdm=True) for model in pair)
    assert ours == pytest.approx(theirs, abs=5e-4)


def test_texts_that_are_written(pair):
    "Prompts of many lengths in batches, two kinds of settings, stop strings"
    kinds = (dict(until=["\n", " "], max_gen_toks=10), dict(until=[], max_gen_toks=4))
    requests = [
        Wanted(prompt, dict(kinds[number % 2]))
        for number, prompt in enumerate(texts(2, 9, 1, 2 * WINDOW))
    ]
    ours, theirs = (model.generate_until(requests) for model in pair)
    assert ours == theirs and any(ours)


@pytest.mark.parametrize("n", range(40))
def test_windows_are_lm_evals(n):
    utils = pytest.importorskip("lm_eval.utils")
    ids = list(range(n))
    theirs = utils.get_rolling_token_windows(ids, -1, max_seq_len=7, context_len=1)
    assert harness.rolling_pairs(ids, -1, 7) == list(map(utils.make_disjoint_window, theirs))


# without lm-eval


def test_rows():
    "Each target follows its input, and nothing that is given is a target"
    inputs, targets = harness.continuation_row([1, 2, 3], [4, 5], 9)
    assert inputs == [1, 2, 3, 4] and targets == [-100, -100, 4, 5]
    assert harness.continuation_row([1, 2, 3], [4, 5], 3) == ([2, 3, 4], [-100, 4, 5])
    assert harness.continuation_row([1, 2, 3], [4, 5], 2) == ([3, 4], [4, 5])
    for follows in ([], [1, 2, 3]):
        with pytest.raises(NeoxError, match="window holds 2"):
            harness.continuation_row([1], follows, 2)


def test_each_token_is_a_target_once():
    for n in range(1, 40):
        pairs = harness.rolling_pairs(list(range(n)), -1, 7)
        assert [i for _, follows in pairs for i in follows] == list(range(n))
        for given, follows in pairs:
            row = [*given, *follows]
            assert row == list(range(row[0], row[0] + len(row))) and len(row) <= 8


def test_scores_do_not_depend_on_the_batch():
    tokenizer = train_tokenizer(TEXT * 3, "char")
    model = random_model("gpt_neox", tokenizer)
    pairs = [(tokenizer.encode(text), tokenizer.encode("dry")) for text in texts(3, 9, 1, 40)]
    whole, single = (harness.continuation_scores(model, pairs, size) for size in (9, 1))
    assert [nats for nats, _ in whole] == pytest.approx([nats for nats, _ in single], abs=1e-4)
    for (given, follows), (nats, _) in zip(pairs, whole):
        row = (given + follows)[-WINDOW - 1 :]
        with torch.no_grad():
            chances = model(torch.tensor([row[:-1]]))[0].log_softmax(-1)
        slow = sum(chances[n, row[n + 1]].item() for n in range(len(row) - 4, len(row) - 1))
        assert nats == pytest.approx(slow, abs=1e-4)


@pytest.mark.parametrize(
    "wanted, settings",
    [
        ({}, dict(stop=[], max_new_tokens=256, temperature=0)),
        (dict(until=""), dict(stop=[], max_new_tokens=256, temperature=0)),
        (dict(until=["a", ""]), dict(stop=["a"], max_new_tokens=256, temperature=0)),
        (dict(max_new_tokens=3), dict(stop=[], max_new_tokens=3, temperature=0)),
        (dict(max_tokens=5, max_gen_toks=4), dict(stop=[], max_new_tokens=4, temperature=0)),
        (dict(temperature=0.5), dict(stop=[], max_new_tokens=256, temperature=0.5)),
        (
            dict(temperature=0.5, do_sample=False, top_k=3),
            dict(stop=[], max_new_tokens=256, temperature=0),
        ),
        (
            dict(temperature=0.5, do_sample=True, top_k=3),
            dict(stop=[], max_new_tokens=256, temperature=0.5, top_k=3),
        ),
    ],
)
def test_settings(wanted, settings):
    assert harness.writing_settings(wanted) == settings


def test_rows_of_tasks():
    "Filters apart, missing values, pairs with counts; what is no mean is told without an interval"

    def mean(values):
        return sum(values) / len(values)

    def weighted_perplexity(values):
        return math.exp(-sum(v for v, _ in values) / sum(n for _, n in values))

    def f1(values):
        return 0.25

    class Task:
        def aggregation(self):
            return dict(acc=mean, words=weighted_perplexity, f1=f1)

    samples = [
        dict(filter=kind, acc=value, words=(-2.0 * n, n), f1=(1, 1))
        for kind, value, n in (("none", 1, 3), ("none", 0, 5), ("last", 1, 2))
    ]
    samples[1].pop("acc")
    found = {
        "samples": {"t": samples},
        "n-samples": {"t": dict(effective=2, original=9)},
        "results": {"t": {"acc,none": 1.0, "f1,none": 0.25, "acc,last": 1.0, "alias": "t"}},
    }
    groups = tasks.task_groups(found, dict(tasks={"t": Task()}))
    names = [name for _, metrics in groups for name in metrics]
    assert names == ["t/acc", "t/words", "t[last]/acc", "t[last]/words"]
    rows, metrics = groups[0]
    assert in_all(rows, metrics["t/acc"]) == 1.0
    assert in_all(rows, metrics["t/words"]) == pytest.approx(math.exp(2))
    assert tasks.task_facts(found, names) == {"t examples": 2, "t/f1": 0.25}


def test_state_is_put_back():
    "The seeds, the bars of tqdm and the levels of logging, after an error too"
    from tqdm import tqdm

    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), vars(tqdm)["__init__"]
    level = logging.getLogger("lm_eval").level
    with pytest.raises(ZeroDivisionError):
        with tasks.task_seeds(), tasks.quiet_harness():
            drawn = random.random(), np.random.rand()
            assert vars(tqdm)["__init__"] is not before[2]
            raise ZeroDivisionError
    after = random.getstate(), np.random.get_state()[1].tolist(), vars(tqdm)["__init__"]
    assert after == before
    assert logging.getLogger("lm_eval").level == level
    random.seed(0)
    np.random.seed(1234)
    assert drawn == (random.random(), np.random.rand())


# files of tasks


@pytest.fixture
def folder(here):
    "Three tasks with their data beside them, and files that are only included"
    made = here / "my tasks"
    made.mkdir()
    lines = [
        "The ink is dry.",
        "My lord, the king is dead.",
        "Speak no more of it, my lord.",
        "All is well that ends well.",
    ]
    (made / "lines.jsonl").write_text("\n".join(json.dumps(dict(text=line)) for line in lines))
    common = dict(
        dataset_path="json",
        dataset_kwargs=dict(data_files=dict(test="lines.jsonl")),
        test_split="test",
    )
    but_last, last = "{{text.rsplit(' ', 1)[0]}}", "{{' ' + text.rsplit(' ', 1)[1]}}"
    kinds = dict(
        word=dict(
            output_type="loglikelihood",
            doc_to_text=but_last,
            doc_to_target=last,
            metric_list=[dict(metric="perplexity"), dict(metric="acc")],
        ),
        whole=dict(
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{text}}",
            metric_list=[dict(metric="bits_per_byte"), dict(metric="word_perplexity")],
        ),
        choice=dict(
            output_type="multiple_choice",
            doc_to_text=but_last,
            doc_to_choice=["lord.", "well."],
            doc_to_target="{{0 if text.endswith('lord.') else 1}}",
            metric_list=[
                dict(metric="acc"),
                dict(metric="f1", aggregation="f1", higher_is_better=True),
            ],
        ),
        finish=dict(
            output_type="generate_until",
            doc_to_text=but_last,
            doc_to_target=last,
            generation_kwargs=dict(until=["."], max_gen_toks=8),
            metric_list=[dict(metric="exact_match")],
        ),
    )
    for name, task in kinds.items():
        (made / f"{name}.yaml").write_text(json.dumps(dict(task=name, **common, **task)))
    (made / "_common.yaml").write_text(json.dumps(common))
    return made


def test_files(folder):
    names = [file.name for file in tasks.task_files("my tasks")]
    assert names == ["choice.yaml", "finish.yaml", "whole.yaml", "word.yaml"]
    assert tasks.task_files("my tasks/word.yaml") == [tasks.Path("my tasks/word.yaml")]
    assert tasks.task_files("wikitext") == []


@needs_lm_eval
def test_command(folder, here, capsys):
    "Tasks alone: no text is scored; the numbers are those of lm-eval"
    words = ["shakespeare", "--tasks", "my tasks", "--limit", "3", "--out", "out"]
    evaluate.neox_evaluate_main(words)
    out = capsys.readouterr().out
    found = json.loads((here / "out/evaluation.json").read_text())
    assert "| whole/bits_per_byte |" in out and "bits_per_byte" not in found["numbers"]
    assert set(found["numbers"]) == {
        *("word/perplexity", "word/acc", "whole/bits_per_byte", "whole/word_perplexity"),
        *("choice/acc", "finish/exact_match"),
    }
    assert found["facts"]["word examples"] == 3 and 0 <= found["facts"]["choice/f1"] <= 1

    loaded = tasks.load_tasks("my tasks")
    model, tokenizer = open_checkpoint("shakespeare")
    theirs = tasks.run_tasks(harness.as_task_model(model, tokenizer), loaded, 3)["results"]
    for name, numbers in found["numbers"].items():
        task, metric = name.split("/")
        assert numbers["value"] == pytest.approx(theirs[task][f"{metric},none"], rel=1e-6), name


@needs_lm_eval
def test_command_compares(folder, here, capsys):
    (here / "held.txt").write_text(TEXT * 20, encoding="utf-8")
    words = ["shakespeare", "--compare", "shakespeare", "--text", "held.txt", "--out", "out"]
    evaluate.neox_evaluate_main([*words, "--tasks", "my tasks/word.yaml,my tasks/whole.yaml"])
    found = json.loads((here / "out/comparison.json").read_text())
    assert {"word/acc", "whole/bits_per_byte", "bits_per_byte"} <= set(found["difference"])
    assert {numbers["value"] for numbers in found["difference"].values()} == {0}


@needs_lm_eval
@pytest.mark.parametrize(
    "content, part",
    [
        ("- no task", "lm-eval cannot use it"),
        ("task: [", "lm-eval cannot use it"),
        ("dataset_path: json", "lm-eval cannot use it"),
        (
            "task: x\ndataset_path: json\ntest_split: test\ndataset_kwargs: {data_files: {test: "
            "none.jsonl}}",
            "none.jsonl",
        ),
        (
            "task: x\ndataset_path: someone/no-such-data-set\ntest_split: test\n"
            "output_type: loglikelihood",
            "could not be downloaded",
        ),
        (
            "task: x\ndataset_path: json\ntest_split: test\noutput_type: loglikelihood\n"
            "dataset_kwargs: {data_files: {test: lines.jsonl}}\ndoc_to_text: '{{nothing.at}}'\n"
            "doc_to_target: '{{text}}'\nmetric_list: [{metric: acc}]",
            "lm-eval cannot use it",
        ),
    ],
)
def test_bad_files(folder, capsys, monkeypatch, content, part):
    "One line, before a model is opened"
    (folder / "bad.yaml").write_text(content)
    monkeypatch.setattr("shakespeare_neox.engine.evaluation.open_checkpoint", None)
    line = refuses(
        evaluate.neox_evaluate_main,
        ["shakespeare", "--tasks", "my tasks/bad.yaml", "--out", "out"],
        capsys,
        part,
        "bad.yaml",
    )
    assert len(line) < 500


@needs_lm_eval
def test_names(folder, capsys):
    "An unknown name, and one whose data are not on this machine, which is offline"
    words = ["shakespeare", "--out", "out", "--tasks"]
    refuses(evaluate.neox_evaluate_main, [*words, "lambada_opneai"], capsys, "lambada_openai")
    refuses(
        evaluate.neox_evaluate_main,
        [*words, "lambada_openai"],
        capsys,
        "lambada_openai: its data are not here",
    )


@needs_lm_eval
def test_twice(folder, capsys):
    twice = "my tasks,my tasks/word.yaml"
    refuses(evaluate.neox_evaluate_main, ["shakespeare", "--tasks", twice], capsys, "word", "twice")


@pytest.mark.parametrize(
    "words, part",
    [
        (["--tasks", "none.yaml"], "no such file"),
        (["--limit", "-1", "--tasks", "x"], "limit"),
        (["--limit", "5"], "--tasks"),
        (["--tasks", "x", "--training_text", "y"], "--training_text"),
    ],
)
def test_refused(here, capsys, words, part):
    refuses(evaluate.neox_evaluate_main, ["shakespeare", *words], capsys, part)


def test_without_lm_eval(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    words = ["shakespeare", "--tasks", "wikitext"]
    fix = "pip install 'shakespeare_neox[harness]'"
    refuses(evaluate.neox_evaluate_main, words, capsys, "lm_eval", fix)


@needs_lm_eval
@pytest.mark.parametrize("task", ["finish", "whole"])
def test_a_tokenizer_without_an_end(folder, here, capsys, task):
    backend = train_tokenizer(TEXT * 3 + (folder / "lines.jsonl").read_text(), "char").backend
    spec = backend.to_str().replace("<|endoftext|>", "<|nothing|>")
    tokenizer = CheckedTokenizer(type(backend).from_str(spec))
    save_model(random_model("gpt_neox", tokenizer), here / "endless", tokenizer)
    words = ["endless", "--tasks", f"my tasks/{task}.yaml", "--out", "out"]
    refuses(evaluate.neox_evaluate_main, words, capsys, "no end-of-text token")
    assert not (here / "out").exists()


@needs_lm_eval
def test_more_new_tokens_than_the_window(folder, here, capsys):
    file = folder / "finish.yaml"
    file.write_text(file.read_text().replace('"max_gen_toks": 8', '"max_gen_toks": 256'))
    words = ["shakespeare", "--tasks", "my tasks/finish.yaml", "--out", "out"]
    refuses(evaluate.neox_evaluate_main, words, capsys, "256", "max_gen_toks")
