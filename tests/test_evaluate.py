"The metrics, against the libraries and against slow references; the command and what it refuses"

import json
import math
import random

import numpy as np
import pytest
import torch
from conftest import refuses

from shakespeare_neox import evaluate
from shakespeare_neox.data import eval_batches
from shakespeare_neox.engine import answers, metrics, preferences
from shakespeare_neox.engine.base import NeoxError, assets
from shakespeare_neox.engine.checkpoints import open_checkpoint
from shakespeare_neox.engine.tokens import load_tokenizer
from shakespeare_neox.train import score

WORDS = "the a capital of France is Paris. Rome, 3.5 10-20 it's U.S. (so) &quot;x&quot; no-\nyes"
PIECES = [*WORDS.split(" "), "«naïve»", "don't", "..."]


def sentences(seed, n, lengths=(1, 20)):
    "Texts of few words, so that they share many"
    draws = random.Random(seed)
    return [" ".join(draws.choices(PIECES, k=draws.randint(*lengths))) for _ in range(n)]


@pytest.fixture(scope="module")
def bundled():
    model, tokenizer = open_checkpoint("shakespeare")
    return model.cpu(), tokenizer


@pytest.fixture(scope="module")
def verse():
    return (assets("data") / "sample.txt").read_text(encoding="utf-8")[:1500]


# ROUGE and BLEU


@pytest.mark.parametrize("seed", range(5))
def test_rouge_is_that_of_the_library(seed):
    scorers = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = scorers.RougeScorer(["rouge1", "rouge2", "rougeL"])
    for reference, answer in zip(sentences(seed, 40), sentences(seed + 100, 40)):
        theirs = scorer.score(reference, answer)
        ours = dict(
            rouge1=evaluate.rouge_n(reference, answer, 1),
            rouge2=evaluate.rouge_n(reference, answer, 2),
            rougeL=evaluate.rouge_l(reference, answer),
        )
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name].fmeasure, abs=1e-12), (reference, answer)


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_that_of_the_library(seed):
    sacrebleu = pytest.importorskip("sacrebleu")
    for n, lengths in ((30, (4, 20)), (1, (1, 6)), (3, (1, 3)), (8, (1, 30))):
        references, given = sentences(seed, n, lengths), sentences(seed + 100, n, lengths)
        counts = [evaluate.bleu_counts(*pair) for pair in zip(references, given)]
        sums = {name: sum(one[name] for one in counts) for name in counts[0]}
        theirs = sacrebleu.corpus_bleu(given, [references]).score
        assert float(evaluate.bleu(sums)) == pytest.approx(theirs, abs=1e-9), (references, given)


def test_words_of_bleu_are_those_of_the_library():
    tokenizers = pytest.importorskip("sacrebleu.tokenizers.tokenizer_13a")
    theirs = tokenizers.Tokenizer13a()
    for text in [*sentences(7, 200), "a &amp; b &lt;c&gt;", "x<skipped>y", "1,000.5-7 a,b .5 5."]:
        assert answers.bleu_words(text) == theirs(text).split()


def test_bleu_of_nothing():
    counts = evaluate.bleu_counts("a b c d", "")
    assert float(evaluate.bleu(counts)) == 0
    assert float(evaluate.bleu(evaluate.bleu_counts("a b c d", "x y z w"))) == 0


def test_bleu_of_many_sums_at_once():
    counts = [evaluate.bleu_counts(*pair) for pair in zip(sentences(1, 9), sentences(2, 9))]
    many = {name: np.array([one[name] for one in counts]) for name in counts[0]}
    each = [float(evaluate.bleu(one)) for one in counts]
    assert evaluate.bleu(many) == pytest.approx(each)


def test_common_length():
    "Against all subsequences"
    draws = random.Random(0)

    def subsequences(words):
        return {
            tuple(word for place, word in enumerate(words) if mask >> place & 1)
            for mask in range(2 ** len(words))
        }

    for _ in range(60):
        first, second = (draws.choices("abc", k=draws.randint(0, 7)) for _ in range(2))
        longest = max(map(len, subsequences(first) & subsequences(second)))
        assert evaluate.common_length(first, second) == longest


def test_distinct_and_repetition():
    assert answers.distinct(["a b c", "a b d"], 1) == 4 / 6
    assert answers.distinct(["a b c", "a b d"], 2) == 3 / 4
    assert answers.distinct(["a"], 2) == answers.distinct([], 1) == 0
    assert answers.repetition("a b a b a b", 2) == pytest.approx(1 - 2 / 5)
    assert answers.repetition("a b c d e f") == answers.repetition("a") == 0


def test_copied():
    source = "one two three four five six seven eight nine ten"
    assert answers.copied("Two three four, five six seven eight NINE", source) == 1
    assert answers.copied("two three", source) == 0
    assert answers.copied("nine eight seven six five four three two one", source) == 0


# the loss of a text


@pytest.mark.parametrize("stride", [None, 100, 256])
def test_score_tokens(bundled, verse, stride):
    "Every token but the first counts once, and the sum is that of `score`"
    model, tokenizer = bundled
    ids = tokenizer.encode(verse[:600])
    nats, hits = metrics.score_tokens(model, ids, stride, batch_size=2)
    with torch.no_grad():
        whole = score(model, eval_batches(np.array(ids), 3, model.config.seq_length, stride))
    assert len(nats) == len(hits) == whole.n_tokens == len(ids) - 1
    assert nats.sum() == pytest.approx(whole.nats, rel=1e-5)


def test_hits_are_first_guesses(bundled, verse):
    model, tokenizer = bundled
    ids = tokenizer.encode(verse[:100])
    with torch.no_grad():
        guesses = model(torch.tensor([ids]))[0, :-1].argmax(-1)
    _, hits = metrics.score_tokens(model, ids)
    assert hits.tolist() == (guesses == torch.tensor(ids[1:])).tolist()


@pytest.mark.parametrize("size", [10, 1000])
@pytest.mark.parametrize(
    "text", ["one\ntwo\n\nthree", "x" * 99, "a" * 7000 + "\nb", "\n" * 50, "é\n" * 600]
)
def test_passages(text, size):
    cut = metrics.passages(text, size)
    assert "".join(cut) == text and all(cut)
    assert max(map(len, cut)) <= 4 * size + 1


def test_sums_of_a_text(bundled, verse):
    model, tokenizer = bundled
    small = metrics.score_text(model, tokenizer, verse, size=100)
    large = metrics.score_text(model, tokenizer, verse, size=10**6)
    assert len(small["nats"]) > 5 and len(large["nats"]) == 1
    for name in small:
        assert small[name].sum() == pytest.approx(large[name].sum(), rel=1e-9), name
    assert large["bytes"] == len(verse[1:].encode())
    assert math.log(metrics.in_all(small, evaluate.perplexity)) == pytest.approx(
        large["nats"].sum() / large["tokens"].sum()
    )


class Even:
    "A model that finds all tokens equally probable"

    def __init__(self, n):
        self.n, self.weight = n, torch.nn.Parameter(torch.zeros(1))
        self.config, self.training = type("Config", (), dict(seq_length=16)), False

    def parameters(self):
        return iter([self.weight])

    def train(self, mode=True):
        self.training = mode

    def eval(self):
        self.training = False

    def __call__(self, x, **packed):
        return torch.zeros(*x.shape, self.n)


@pytest.mark.parametrize("kind", ["bpe", "characters", "unigram"])
def test_bytes_belong_to_their_tokens(kind):
    "With any tokenizer: bytes of more than one letter, tokens over the edges of passages"
    tokenizer = load_tokenizer(assets("tokenizer") / kind)
    text = "To be, or not to be\nthat is the question\n" * 9
    if kind == "bpe":
        text = text.replace("that", "thät")
    rows = metrics.score_text(Even(tokenizer.vocab_size), tokenizer, text, size=40)
    ids = tokenizer.encode(text)
    assert rows["tokens"].sum() == len(ids) - 1
    assert rows["nats"] == pytest.approx(rows["tokens"] * math.log(tokenizer.vocab_size))
    first = tokenizer.backend.encode(text).offsets[1][0]
    assert rows["bytes"].sum() == len(text[first:].encode())
    assert metrics.in_all(rows, evaluate.perplexity) == pytest.approx(tokenizer.vocab_size)


def test_a_text_of_one_token(bundled):
    with pytest.raises(NeoxError, match="no target"):
        metrics.score_text(*bundled, "a")


# intervals and comparisons


def test_the_interval_covers():
    "Of 100 samples, about 95% have the true mean inside their interval"
    draws, inside = np.random.default_rng(0), 0
    for _ in range(100):
        rows = dict(value=draws.normal(3, 1, 60), answers=np.ones(60))
        low, high = metrics.interval(metrics.bootstrap(rows, metrics.mean_of("value"), 400))
        inside += low < 3 < high
    assert 88 <= inside <= 99


def test_a_paired_difference():
    draws = np.random.default_rng(1)
    hard = draws.normal(0, 5, 80)
    first = dict(value=hard, answers=np.ones(80))
    second = dict(value=hard + draws.normal(0.3, 0.5, 80), answers=np.ones(80))
    found = metrics.difference(first, second, metrics.mean_of("value"))
    apart = metrics.difference(
        first, dict(second, value=draws.permutation(second["value"])), metrics.mean_of("value")
    )
    assert found["low"] > 0 and found["p"] < 0.01
    assert apart["high"] - apart["low"] > 5 * (found["high"] - found["low"])
    with pytest.raises(NeoxError, match="same passages"):
        short = {name: column[:5] for name, column in second.items()}
        metrics.difference(first, short, metrics.mean_of("value"))


def test_equal_models_seldom_differ():
    "p below 0.05 in about 5% of the cases where nothing differs"
    draws = np.random.default_rng(2)
    low = 0
    for _ in range(100):
        pair = [dict(value=draws.normal(0, 1, 50), answers=np.ones(50)) for _ in range(2)]
        low += metrics.difference(*pair, metrics.mean_of("value"), 400)["p"] < 0.05
    assert low <= 12


# a person's choice


def test_sign_test():
    assert preferences.sign_test(0, 0) == preferences.sign_test(4, 4) == 1
    assert preferences.sign_test(10, 0) == 2 / 1024 == preferences.sign_test(0, 10)
    assert preferences.sign_test(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)


def pairs(path, n=10):
    prompts, first, second = ([f"{kind} {i}" for i in range(n)] for kind in "PQR")
    return preferences.BlindPairs(prompts, first, second, path)


def test_votes_go_to_the_text_that_was_chosen(tmp_path):
    blind = pairs(tmp_path / "votes.jsonl", 30)

    def chooses_q(question):
        return "a" if "A: Q" in question else "b"

    assert blind.ask(chooses_q)["first"] == 30
    assert {blind.order(n)[0] for n in range(30)} == {"first", "second"}


def test_votes_are_resumed(tmp_path):
    path = tmp_path / "votes.jsonl"
    typed = iter(["x", "a", "t", "Q"])
    pairs(path).ask(lambda question: next(typed))
    assert len(pairs(path).votes) == 2 and pairs(path).result["ties"] == 1
    asked = []
    pairs(path).ask(lambda question: asked.append(question) or "b")
    assert len(asked) == 8 and len(pairs(path).votes) == 10
    pairs(path).ask(lambda question: pytest.fail("all were asked"))


def test_votes_of_other_texts(tmp_path):
    path = tmp_path / "votes.jsonl"
    pairs(path).ask(lambda question: "a")
    with pytest.raises(NeoxError, match="other texts"):
        pairs(path, 9).ask(lambda question: "a")
    path.write_text("not votes")
    with pytest.raises(NeoxError, match="no file of votes"):
        pairs(path).ask(lambda question: "a")


# files of answers, and the command


@pytest.mark.parametrize(
    "record, problem",
    [
        ({}, "reference"),
        (dict(answer="x"), "reference"),
        (dict(reference="", answer="x"), "reference"),
        (dict(reference=" ?! ", answer="x"), "reference"),
        (dict(reference="x"), "neither an answer nor a prompt"),
        (dict(reference="x", prompt=""), "neither an answer nor a prompt"),
        (dict(reference="x", answer=["y"]), "answer is a list"),
        (dict(reference=dict(a=1), answer="y"), "reference is a dict"),
        (dict(reference="x", answer=None), "answer is a NoneType"),
        (dict(reference="x", answer="y" * 10_000_000), "10,000,000 characters"),
    ],
)
def test_bad_records(tmp_path, record, problem):
    file = tmp_path / "answers.jsonl"
    good = json.dumps(dict(reference="x", answer="y"))
    file.write_text(f"{good}\n{json.dumps(record)}\n")
    with pytest.raises(NeoxError, match="line 2") as error:
        answers.read_answers(file)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_bad_files(tmp_path):
    file = tmp_path / "answers.jsonl"
    with pytest.raises(NeoxError, match="no such file"):
        answers.read_answers(file)
    file.write_text("\n")
    with pytest.raises(NeoxError, match="empty"):
        answers.read_answers(file)
    file.write_text('{"reference": "x"\n')
    with pytest.raises(NeoxError, match="not a JSON object on line 1"):
        answers.read_answers(file)
    file.write_bytes('{"reference": "naïve", "answer": "x"}\n'.encode("latin-1"))
    with pytest.raises(NeoxError, match="UTF-8"):
        answers.read_answers(file)


def test_missing_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(NeoxError, match=r"pip install 'shakespeare_neox\[eval\]'"):
        answers.library_scores(["a"], ["a"])


def test_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    rows = dict(rouge1=np.array([0.5, 1.0]), answers=np.ones(2))
    scores = metrics.ModelScores("one", [(rows, dict(rouge1=metrics.mean_of("rouge1")))])
    assert metrics.send(scores, tmp_path)
    monkeypatch.setattr(metrics, "init_wandb", lambda *given: (None, "no room; "))
    assert not metrics.send(scores, tmp_path)


def test_doubts():
    once = dict(prompt="p", reference="a b c d e")
    assert answers.doubts([once], "x y z") == answers.doubts([once]) == []
    twice, known = answers.doubts([once, once], "x a b, c d e! y")
    assert twice.startswith("1 of 2 records") and known.startswith("2 of 2 references")


def test_command(here, verse, capsys):
    (here / "held.txt").write_text(verse, encoding="utf-8")
    record = dict(prompt="MARIAN:\n", reference="The ink is dry.")
    (here / "answers.jsonl").write_text(json.dumps(record), encoding="utf-8")
    words = ["shakespeare", "--text", "held.txt", "--answers", "answers.jsonl", "--out", "out"]
    evaluate.neox_evaluate_main([*words, "--max_new_tokens", "8", "--training_text", "held.txt"])
    assert "| bits_per_byte |" in capsys.readouterr().out
    found = json.loads((here / "out/evaluation.json").read_text())
    assert set(found["numbers"]) == {
        *evaluate.TEXT_METRICS,
        *evaluate.ANSWER_METRICS,
        "repetition4",
        "copied8",
    }
    evaluate.neox_evaluate_main([*words[:3], "--compare", "shakespeare", "--out", "out"])
    found = json.loads((here / "out/comparison.json").read_text())
    assert {numbers["value"] for numbers in found["difference"].values()} == {0}


@pytest.mark.parametrize(
    "words, part",
    [
        (["--stride", "-1"], "stride"),
        (["--batch_size", "0"], "batch_size"),
        (["--part", "tset"], "part"),
        (["--answers", "none.jsonl"], "none.jsonl"),
        (["--text", "none.txt"], "none.txt"),
        (["none_such"], "none_such"),
        (["--prefer", "votes.jsonl"], "--compare"),
    ],
)
def test_refused(here, verse, capsys, words, part):
    (here / "held.txt").write_text(verse, encoding="utf-8")
    text = [] if "--text" in words else ["--text", "held.txt"]
    refuses(evaluate.neox_evaluate_main, [*text, *words], capsys, part)
