"Shared n-grams and copied passages, against a reference that compares all places with all others"

import random

import numpy as np
import pytest

from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.copying import (
    copied_places,
    longest_copy,
    matches,
    numbered,
    shared_ngrams,
)


def grams(text, n):
    "All n-grams of a text, as tuples"
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]


def plain_longest(text, source):
    "The length of the longest common passage, and where it first stands"
    best = 0, 0
    for start in range(len(text)):
        for other in range(len(source)):
            length = 0
            while (
                start + length < len(text)
                and other + length < len(source)
                and text[start + length] == source[other + length]
            ):
                length += 1
            if length > best[0]:
                best = length, start
    return best


def cases(number):
    "Pairs of texts: characters or words, of few symbols or many, of any length down to 1"
    draws = random.Random(number)
    for _ in range(60):
        alphabet = "ab" if draws.random() < 0.5 else "abcdefgh\U0001f40dé"
        text, source = (
            [draws.choice(alphabet) for _ in range(draws.randint(1, 40))] for _ in range(2)
        )
        if draws.random() < 0.5:  # a passage that was copied on purpose
            at = draws.randrange(len(text))
            source += text[at : at + draws.randint(1, 30)]
        yield (text, source) if draws.random() < 0.3 else ("".join(text), "".join(source))


@pytest.mark.parametrize("number", range(5))
def test_matches_and_shares(number):
    for text, source in cases(number):
        for n in {1, 2, 3, 5, 8, len(text)} & set(range(1, len(text) + 1)):
            known = set(grams(source, n))
            expected = [gram in known for gram in grams(text, n)]
            assert matches(text, source, n).tolist() == expected
            assert shared_ngrams(text, source, n) == pytest.approx(sum(expected) / len(expected))


@pytest.mark.parametrize("number", range(5))
def test_longest_copy(number):
    found_long = 0
    for text, source in cases(number):
        length, start = plain_longest(text, source)
        assert longest_copy(text, source) == text[start : start + length]
        found_long = max(found_long, length)
    assert found_long > 10


@pytest.mark.parametrize("number", range(3))
def test_copied_places(number):
    for text, source in cases(number):
        for n in {1, 3, len(text)} & set(range(1, len(text) + 1)):
            known = set(grams(source, n))
            expected = np.zeros(len(text), dtype=bool)
            for start, gram in enumerate(grams(text, n)):
                if gram in known:
                    expected[start : start + n] = True
            assert copied_places(text, source, n).tolist() == expected.tolist()


def test_whole_texts():
    assert longest_copy("", "abc") == longest_copy("abc", "") == ""
    assert longest_copy([], ["a"]) == []
    assert longest_copy("abc" * 200, "abc" * 200) == "abc" * 200
    assert longest_copy("a" * 1000, "a" * 999) == "a" * 999
    assert shared_ngrams("abc", "xabcx", 3) == 1 and shared_ngrams("abc", "ab", 3) == 0
    assert longest_copy([3, 1, 2], (9, 1, 2, 8)) == [1, 2]
    assert numbered("", "").tolist() == []


def test_no_passage_crosses_from_the_text_into_the_source():
    assert longest_copy("ab", "cd") == ""
    assert not matches("xa", "bxb", 2).any()  # "ab" stands where the two are joined


@pytest.mark.parametrize(
    "text, source, n, part",
    [
        ("abc", "abc", 0, "n=0"),
        ("abc", "abc", 4, "n=4"),
        ("", "abc", 1, "n=1"),
        ("abc", ["a"], 1, "give two texts"),
        (None, "abc", 1, "NoneType"),
        ("abc", b"abc", 1, "bytes"),
    ],
)
def test_bad_input(text, source, n, part):
    for function in (matches, shared_ngrams, copied_places):
        with pytest.raises(NeoxError, match=part) as error:
            function(text, source, n)
        assert "\n" not in str(error.value)


def test_a_novel_takes_seconds():
    draws = np.random.default_rng(0)
    letters = np.array(list("etaoin shrdlu"))
    source = "".join(letters[draws.integers(len(letters), size=400_000)])
    text = "".join(letters[draws.integers(len(letters), size=2_000)])
    text = text[:1000] + source[200_000:200_500] + text[1000:]
    assert source[200_000:200_500] in longest_copy(text, source)
