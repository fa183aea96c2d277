"The metrics, against the libraries and against slow references; the command and what it refuses"

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import refuses, succeeds, tree

from shakespeare_neox import evaluate
from shakespeare_neox.data import eval_batches
from shakespeare_neox.engine import answers, evaluation, metrics, preferences
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


VOTER = """
import sys, time
from pathlib import Path
from shakespeare_neox.engine.preferences import BlindPairs

n = int(sys.argv[2])
prompts, first, second = ([f"{kind} {i}" for i in range(n)] for kind in "PQR")

def reader(question):
    print(question.split(" of ")[0].strip(), flush=True)       # all votes before it are sure now
    time.sleep(0.002)
    return "a" if "A: Q" in question else "b"

BlindPairs(prompts, first, second, Path(sys.argv[1])).ask(reader)
"""


def test_kill_at_any_instant(tmp_path):
    """Votes of a person whose process is killed again and again: what was followed by another
    question is there, each pair has one vote, and none is asked twice"""
    path, n, asked, kills = tmp_path / "votes.jsonl", 300, [], 0
    draws = random.Random(0)
    while len(pairs(path, n).votes) < n:
        voter = [sys.executable, "-c", VOTER, str(path), str(n)]
        process = subprocess.Popen(voter, stdout=subprocess.PIPE, text=True)
        first = process.stdout.readline()
        time.sleep(draws.uniform(0.01, 0.15))
        process.send_signal(signal.SIGKILL)
        seen = [int(number) for number in (first + process.communicate()[0]).split()]
        kills += process.returncode == -signal.SIGKILL
        votes = pairs(path, n).votes
        assert set(range(seen[-1] - 1)) <= set(votes), "a vote that was followed is lost"
        assert not asked or seen[0] in (asked[-1], asked[-1] + 1), "goes on where it stopped"
        asked = seen
    assert kills >= 3
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["pair"] for line in lines) == list(range(n))
    assert {line["vote"] for line in lines} == {"first"}


def test_cut_off_anywhere(tmp_path):
    "A last line that was cut off at any byte: its vote alone is asked again"
    path = tmp_path / "votes.jsonl"
    pairs(path, 4).ask(lambda question: "a")
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        asked = []
        pairs(path, 4).ask(lambda question, asked=asked: asked.append(question) or "a")
        assert len(asked) == 1 and path.read_bytes() == whole, whole[start:end]


def test_each_vote_is_on_the_disk_before_the_next_question(tmp_path, monkeypatch):
    "The file is synced with the vote in it; its folder too when the file is new"
    path, happened, sync = tmp_path / "votes.jsonl", [], os.fsync

    def watched(descriptor):
        sync(descriptor)
        folder = os.path.isdir(f"/proc/self/fd/{descriptor}")
        happened.append("folder" if folder else len(path.read_bytes().splitlines()))

    monkeypatch.setattr(os, "fsync", watched)
    pairs(path, 3).ask(lambda question: happened.append("asks") or "a")
    wanted = ["asks", 1, "folder", "asks", 2, "asks", 3]
    if not os.path.isdir("/proc/self/fd"):
        wanted.remove("folder")
        happened = [each for each in happened if each != "folder"]
    assert happened == wanted


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


def test_a_reference_without_a_word():
    for references, said in ((["x", ""], ["y", "y"]), (["?!"], ["y"]), ([], []), (["x"], [])):
        with pytest.raises(NeoxError) as error:
            evaluate.score_answers(references, said)
        assert "\n" not in str(error.value)


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
    both = metrics.Compared(scores, metrics.ModelScores("two", scores.groups))
    assert metrics.send(both, tmp_path)
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


def test_blind_pairs_by_the_command(here, verse, capsys, monkeypatch):
    "Two models answer, a person votes, stops, and goes on another day"
    model, tokenizer = open_checkpoint("shakespeare")
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.3 * parameter.data.std() * torch.randn_like(parameter)
    model.save_pretrained(here / "other", tokenizer)
    (here / "held.txt").write_text(verse, encoding="utf-8")
    names = ("MARIAN", "TAM", "NED", "ROMEO")
    records = [dict(prompt=f"{name}:\n", reference="The ink is dry.") for name in names]
    (here / "answers.jsonl").write_text("\n".join(map(json.dumps, records)))
    words = ["shakespeare", "--compare", "other", "--text", "held.txt", "--out", "out"]
    words += ["--answers", "answers.jsonl", "--max_new_tokens", "8", "--prefer", "votes.jsonl"]
    typed = iter(["a", "nonsense", "b", "q"])
    monkeypatch.setattr(preferences.BlindPairs.ask, "__defaults__", (lambda q: next(typed),))
    first = succeeds(evaluate.neox_evaluate_main, words, capsys).out
    assert len((here / "votes.jsonl").read_text().splitlines()) == 2 and "'first'" in first
    typed = iter(["t", "a"])
    last = succeeds(evaluate.neox_evaluate_main, words, capsys).out
    assert len((here / "votes.jsonl").read_text().splitlines()) == 4 and "'ties': 1" in last


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


@pytest.mark.parametrize(
    "words, flag",
    [
        (["--out", "file/out"], "--out"),
        (["--out", "held.txt"], "--out"),
        (
            ["--compare", "b", "--answers", "a.jsonl", "--prefer", "file/votes.jsonl"],
            "file/votes.jsonl",
        ),
        (["--compare", "b", "--answers", "a.jsonl", "--prefer", "held.txt"], "held.txt"),
    ],
)
def test_outputs_are_tried_first(here, verse, capsys, monkeypatch, words, flag):
    "Before anything is read, and nothing is left behind"
    (here / "held.txt").write_text(verse, encoding="utf-8")
    (here / "file").write_text("no folder")
    for work in ("load_corpus", "read_answers", "open_checkpoint"):
        monkeypatch.setattr(evaluation, work, None)
    before = tree(here)
    refuses(
        evaluate.neox_evaluate_main, ["shakespeare", "--text", "held.txt", *words], capsys, flag
    )
    assert tree(here) == before


def test_a_text_that_was_trained_on(here, verse, capsys):
    """A scored text that stands in the training text is reported; the held-out part of the training
    text itself does not"""
    text = (assets("data") / "sample.txt").read_text(encoding="utf-8")
    (here / "held.txt").write_text(verse, encoding="utf-8")
    (here / "train.txt").write_text(text[:6000], encoding="utf-8")
    (here / "other.txt").write_text(text[-6000:], encoding="utf-8")
    words = ["shakespeare", "--part", "all", "--out", "out", "--text"]
    warning = "stand in the training text"
    for scored, trained, known in (("held", "train", True), ("held", "other", False)):
        flags = [f"{scored}.txt", "--training_text", f"{trained}.txt"]
        evaluate.neox_evaluate_main([*words, *flags])
        assert (warning in capsys.readouterr().err) == known, (scored, trained)
    valid = ["train.txt", "--training_text", "train.txt", "--part", "valid"]
    evaluate.neox_evaluate_main([*words, *valid])
    assert warning not in capsys.readouterr().err


def test_references_that_were_trained_on(here, verse, capsys):
    (here / "held.txt").write_text(verse, encoding="utf-8")
    (here / "train.txt").write_text("Well. The ink is dry, and all is well. Well.")
    record = dict(answer="It is.", reference="The ink is dry, and all is well.")
    (here / "answers.jsonl").write_text(f"{json.dumps(record)}\n" * 2)
    words = ["shakespeare", "--text", "held.txt", "--answers", "answers.jsonl", "--out", "out"]
    evaluate.neox_evaluate_main([*words, "--training_text", "train.txt"])
    said = capsys.readouterr().err
    assert "2 of 2 references stand in the training text" in said
    assert "1 of 2 records stand there more than once" in said


KINDS = dict(
    bert=(dict(model_type="bert", architectures=["BertForMaskedLM"]), "model_type"),
    t5=(dict(model_type="t5", architectures=["T5ForConditionalGeneration"]), "model_type"),
    nothing=({}, "model_type"),
    adapter=(None, "config.json"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flag", ["--checkpoint_path", "--compare"])
def test_a_checkpoint_of_another_kind(here, verse, capsys, kind, flag):
    "An encoder, a translator, a folder without a kind, an adapter without its model"
    config, part = KINDS[kind]
    (here / "held.txt").write_text(verse, encoding="utf-8")
    (here / "other").mkdir()
    if config is None:
        (here / "other/adapter_config.json").write_text('{"peft_type": "LORA"}')
    else:
        (here / "other/config.json").write_text(json.dumps(config))
    words = ["--text", "held.txt", "--out", "out", flag, "other"]
    refuses(evaluate.neox_evaluate_main, words, capsys, "other", part)
    assert not (here / "out").exists()


def test_tokenizers_that_differ(here, verse, capsys):
    "Bits per byte are compared, what counts tokens is not, and one line says so"
    from shakespeare_neox.engine.checkpoints import save_model
    from shakespeare_neox.engine.vocab import train_tokenizer
    from shakespeare_neox.model import GPT, ModelConfig

    (here / "held.txt").write_text(verse, encoding="utf-8")
    tokenizer = train_tokenizer(verse * 3, "bpe", 270)
    sizes = dict(num_layers=1, hidden_size=16, num_attention_heads=2, seq_length=16)
    torch.manual_seed(0)
    model = GPT(ModelConfig(**sizes, vocab_size=tokenizer.vocab_size))
    save_model(model, here / "pairs", tokenizer)
    words = ["shakespeare", "--compare", "pairs", "--text", "held.txt", "--out", "out"]
    evaluate.neox_evaluate_main([*words, "--part", "all"])
    found = json.loads((here / "out/comparison.json").read_text())
    assert set(found["difference"]) == {"bits_per_byte", "bits_per_character"}
    assert found["difference"]["bits_per_byte"]["value"] < -1
    assert capsys.readouterr().err.count("the tokenizers differ") == 1
    assert all((here / f"out/comparison.{kind}").stat().st_size > 100 for kind in ("md", "png"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["one", "two"])
def test_wandb_keeps_the_numbers(here, what):
    "Read back from W&B's own file: each number of one model or of two, and on what it was measured"
    from test_wandb import records

    rows = dict(rouge1=np.array([0.5, 1.0]), answers=np.ones(2))
    group = (rows, dict(rouge1=metrics.mean_of("rouge1")))
    code = (
        "import numpy as np; from shakespeare_neox.engine import metrics as m; "
        "rows = dict(rouge1=np.array([0.5, 1.0]), answers=np.ones(2)); "
        "group = (rows, dict(rouge1=m.mean_of('rouge1'))); "
        "one = m.ModelScores('one', [group], dict(stride=128)); "
        f"assert m.send({dict(one='one', two='m.Compared(one, one)')[what]}, '.')"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    env |= dict(HOME=str(here), WANDB_MODE="offline")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and "wandb sync" in done.stderr, done.stderr
    (kept,) = here.glob("wandb/offline-run-*/*.wandb")
    found, config = {}, {}
    for record in records(kept):
        for item in record.history.item:
            found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for item in (*record.run.config.update, *record.config.update):
            config[item.key] = json.loads(item.value_json)
    one = metrics.ModelScores("one", [group], dict(stride=128))
    result = dict(one=one, two=metrics.Compared(one, one))[what]
    wanted = metrics.flat_numbers(result.numbers)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert {key: config[key] for key in result.about()} == result.about()
