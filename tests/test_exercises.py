"""Exercises and their scores: solutions that pass, wrong answers that do not, what is held out, and
pass@k. Programs here are ours: they run without isolation where there is none."""

import itertools
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.exercises import (
    LEVELS,
    PER_TEMPLATE,
    TOPICS,
    all_exercises,
    cut_answer,
    filled,
    mutants,
    run_answers,
)
from shakespeare_neox.engine.pass_rate import (
    ExerciseScores,
    exercise_overlap,
    load_benchmark,
    lookup,
    pass_at_k,
    pass_rate,
    score_exercises,
)

EXERCISES = all_exercises()
OURS = dict(allow_code_execution=True, unsafe=True)


def test_set():
    "Enough, different, graded, and the same each time"
    assert len(EXERCISES) >= 150 and EXERCISES == all_exercises()
    assert len({each.name for each in EXERCISES}) == len(EXERCISES)
    assert len({each.prompt for each in EXERCISES}) == len(EXERCISES)
    assert set(Counter(each.level for each in EXERCISES)) == {1, 2, 3, 4}
    assert {each.topic for each in EXERCISES} == set(TOPICS)
    assert min(Counter(each.level for each in EXERCISES).values()) >= 30
    for each in EXERCISES:
        assert 1 <= each.solution.count("\n") <= 6 and len(each.calls) == len(each.expected) >= 4
        assert len(set(each.expected)) > 1, f"{each.name}: a constant would pass"


def test_solutions():
    found = run_answers(EXERCISES, [each.solution for each in EXERCISES], **OURS)
    assert not [each.name for each, (passed, _) in zip(EXERCISES, found) if not passed]


def killed(exercises):
    "The wrong answers that pass, and how many were tried"
    pairs = [(each, answer) for each in exercises for answer in mutants(each)]
    found = run_answers([each for each, _ in pairs], [answer for _, answer in pairs], **OURS)
    return [pair for pair, (passed, _) in zip(pairs, found) if passed], len(pairs)


def test_wrong_answers_of_some():
    alive, tried = killed(EXERCISES[:: 12 * PER_TEMPLATE])
    assert tried > 40 and not alive


@pytest.mark.slow
def test_wrong_answers_of_all():
    "What passes is the same function, written in another way"
    alive, tried = killed(EXERCISES)
    assert tried > 2000 and len(alive) < tried / 50


def test_answers_are_cut():
    prompt = EXERCISES[0].prompt
    assert cut_answer("    return 1\n\n\nx = 1", prompt) == "    return 1\n\n\n"
    assert cut_answer("    return 1", prompt) == "    return 1\n"
    assert cut_answer("x = 1", prompt) == "\n"
    assert cut_answer("def f():\n    pass\nassert f()", '"""Text"""\n') == "def f():\n    pass\n"


@pytest.mark.parametrize(
    "answer", ["", "    return", "    return (\n", "    import os\n    os._exit(0)"]
)
def test_no_answer_passes_by_accident(answer):
    found = run_answers(EXERCISES[:1], [answer], **OURS)
    assert not found[0][0]


def test_values_are_compared_by_type():
    "True is not 1, and a list is no tuple"
    by_template = {each.template: each for each in EXERCISES}
    wrong = {
        "exceed": "    return int({0} > {1})\n",
        "evens": "    return tuple(x for x in {0} if x % 2 == 0)\n",
    }
    for name, body in wrong.items():
        each = by_template[name]
        noun, k = each.prompt.split("(")[1].split(")")[0], each.solution.split()[-1]
        assert not run_answers([each], [body.format(noun, k)], **OURS)[0][0]


def test_overlap():
    clean = exercise_overlap("def plus(apples):\n    return apples\n")
    assert not any(clean.values())
    for each in EXERCISES[::20]:
        found = exercise_overlap(each.prompt)
        assert found["names"] == [each.name] and each.name in found["docstrings"]
        assert each.template in found["templates"] and found["words"]
    nouns = [noun for pair in TOPICS.values() for noun in pair]
    assert all(exercise_overlap(f"twelve {noun}_left here")["words"] == [noun] for noun in nouns)


def test_templates_are_held_out_with_other_words():
    "Each template is found in a text of other nouns and numbers"
    for row in itertools.chain(*LEVELS):
        text = filled(row[2], ("apples", "plums"), 23)
        assert row[0] in exercise_overlap(f"A text. {text} More of it.")["templates"], text


@pytest.mark.parametrize(
    "n, passed, k", [(1, 0, 1), (1, 1, 1), (10, 3, 4), (20, 2, 10), (200, 7, 100)]
)
def test_pass_at_k(n, passed, k):
    exact = 1 - math.comb(n - passed, k) / math.comb(n, k)
    assert pass_at_k(n, passed, k) == pytest.approx(exact)


def test_pass_at_k_by_drawing():
    "The share of all draws in which one passes"
    answers = [True, True, False, False, False, False]
    draws = list(itertools.combinations(answers, 3))
    assert pass_at_k(6, 2, 3) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("n, passed, k", [(1, 0, 2), (1, 0, 0), (1, 2, 1), (0, 0, 1)])
def test_pass_at_k_refuses(n, passed, k):
    with pytest.raises(NeoxError, match="give k from 1"):
        pass_at_k(n, passed, k)


def test_interval_draws_templates():
    "Three exercises that stand or fall together count as one"
    passed = np.array([[number // PER_TEMPLATE % 2 == 0] for number in range(len(EXERCISES))])
    scores = ExerciseScores(EXERCISES, passed, [])
    alone = ExerciseScores([replace(each, template="") for each in EXERCISES], passed, [])
    wide, narrow = pass_rate(scores, 1), pass_rate(alone, 1)
    assert wide["value"] == narrow["value"] == pytest.approx(passed.mean())
    ratio = (wide["high"] - wide["low"]) / (narrow["high"] - narrow["low"])
    assert 1.4 < ratio < 2.1  # the root of three is 1.7


def test_scores():
    "Answers in order, by level, with how they ended"
    some = [EXERCISES[0], EXERCISES[-1]]

    def complete(prompt, n, seed):
        right = next(each.solution for each in some if each.prompt == prompt)
        return [right if number == 1 else "    1/0\n" for number in range(n)]

    scores = score_exercises(complete, some, n=3, **OURS)
    assert scores.passed.tolist() == [[False, True, False]] * 2
    assert scores.statuses() == {"ok": 2, "failed": 4}
    assert pass_rate(scores, 1)["value"] == pytest.approx(1 / 3)
    assert pass_rate(scores, 3, level=4) == dict(value=1.0, low=1.0, high=1.0, exercises=1)
    with pytest.raises(NeoxError, match="1 answers instead of 2"):
        score_exercises(lambda *_: ["x"], some, n=2, **OURS)
    with pytest.raises(NeoxError, match="allow_code_execution"):
        score_exercises(complete, some)


def test_lookup():
    "Copies the nearest body, with the parameters of the prompt; broken functions are left out"
    text = (
        "def add(a):\n    '''Return 2 more than a.'''\n    return a + 2\n"
        "def broken(\n"
        "def turn(a, b):\n    '''Return b before a.'''\n    return b, a\n"
    )
    complete = lookup(text)
    prompt = 'def add_pears(pears):\n    """Return 2 more than pears."""\n'
    assert complete(prompt, 1, 0) == ["    return pears + 2\n"]
    assert complete(prompt, 3, 0)[1:] == ["    return (b, pears)\n", ""]
    assert lookup("no code at all")(prompt, 2, 0) == ["", ""]


def test_benchmarks(tmp_path, monkeypatch):
    monkeypatch.setenv("NEOX_DATA", str(tmp_path))
    with pytest.raises(NeoxError, match="HumanEval.jsonl from https://"):
        load_benchmark("humaneval")
    with pytest.raises(NeoxError, match="no such file or benchmark"):
        load_benchmark("humanevil")
    record = dict(
        task_id="T/0",
        entry_point="f",
        prompt='def f(x):\n    """x"""\n',
        canonical_solution="    return x\n",
        test="def check(f):\n    assert f(1) == 1\n",
    )
    file = tmp_path / "humaneval" / "HumanEval.jsonl"
    file.parent.mkdir()
    file.write_text(json.dumps(record) + "\n")
    (found,) = load_benchmark("humaneval")
    answers = [found.solution, "    return 2\n", "    import os\n    os._exit(0)\n"]
    assert [passed for passed, _ in run_answers([found] * 3, answers, **OURS)] == [
        True,
        False,
        False,
    ]
    file.write_text(json.dumps({**record, "prompt": None}) + "\n" + json.dumps(dict(a=1)) + "\n")
    with pytest.raises(NeoxError, match="line"):
        load_benchmark("humaneval")
