"""Text as it is or an error: encodings, books, records, folders, names, downloads, limits; each
test holds the right value"""

import gzip
import hashlib
import json
import os
import random
import re
import socket
import stat
import time
from pathlib import Path

import pytest
from conftest import refuses, succeeds, tree
from servers import files  # noqa: F401 (fixtures)

import shakespeare_neox.engine.corpora as corpora
from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.corpora import Corpus, load_corpus, write_plain
from shakespeare_neox.engine.folders import part_of
from shakespeare_neox.engine.tokens import neox_prepare_main as prepare

pytestmark = pytest.mark.usefixtures("here")


def put(name, content):
    "A file with its folders"
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def documents(name, **settings):
    "The texts of a corpus"
    return ["".join(pieces) for _, pieces in load_corpus(name, **settings).documents()]


def refused(name, *parts, **settings):
    "Asserts that a corpus is refused in one line that holds `parts`"
    with pytest.raises(NeoxError) as error:
        _ = load_corpus(name, **settings).counts
    line = str(error.value)
    assert "\n" not in line and all(str(part) in line for part in parts), (parts, line)
    return line


def jsonl(name, *records):
    return put(name, "".join(json.dumps(record) + "\n" for record in records))


# books of Project Gutenberg

LICENCE = "This eBook is for the use of anyone anywhere.\n" * 20
SMALL_PRINT = "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n"


def book(title, body, stars="*** ", this="THE", end=True):
    "A file as Project Gutenberg writes it"
    marks = [
        f"{stars}{word} OF {this} PROJECT GUTENBERG EBOOK {title}{stars[::-1]}"
        for word in ("START", "END")
    ]
    foot = f"\n\n{marks[1]}\n{LICENCE}" if end else ""
    return f"The Project Gutenberg eBook of {title}\n\n{LICENCE}\n{marks[0]}\n\n{body}{foot}"


def test_all_books_of_a_file_are_kept(capsys):
    bodies = ["The first book.\nIts end.", "The second book.", "The third\n\nbook."]
    put("three.txt", "".join(book(f"No. {i}", body) for i, body in enumerate(bodies)))
    assert documents("three.txt") == [body + "\n" for body in bodies]
    assert "3 books" in capsys.readouterr().err
    assert load_corpus("three.txt").counts.documents == 3


OLD = {
    "small print": (
        f"Project Gutenberg Etext of X\n\n{LICENCE}{SMALL_PRINT}\nBODY\n\nEnd of Project "
        "Gutenberg's X\n"
    ),
    "later small print": (
        "*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.10/04/01*END*\nBODY\n\n"
        "End of the Project Gutenberg Etext of X,\nby Somebody\n"
    ),
    "no spaces": book("X", "BODY", stars="***", this="THIS"),
    "copyrighted": book("X", "BODY", this="THE COPYRIGHTED"),
    "last line before END": book(
        "X", "BODY\n\nEnd of the Project Gutenberg EBook of X, by\nSomebody", this="THIS"
    ),
    "long title": book("THE LIFE AND ADVENTURES\nOF SOMEONE, MARINER ", "BODY"),
    "credit": book("X", "Produced by A. Volunteer\nand others\n\n\nBODY"),
    "credit to nobody": book("X", "Produced by an anonymous Project Gutenberg volunteer\n\nBODY"),
    "credit of several lines": book(
        "X",
        "E-text prepared by Suzanne Shell, Sjaani,\nand the Project Gutenberg Online Distributed "
        "Proofreading\n"
        "Team (https://www.pgdp.net) from page images generously made available by\nInternet "
        "Archive\n\n\nBODY",
    ),
    "five stars": book("X", "BODY", stars="***** "),
    "stars alone on a line": book("A LONG TITLE\n", "BODY", stars="*** ").replace(
        "TITLE\n ***", "TITLE\n***"
    ),
    "small print at the foot": book("X", "BODY") + SMALL_PRINT,
    "windows": book("X", "BODY").replace("\n", "\r\n"),
}


@pytest.mark.parametrize("style", OLD)
def test_styles_of_gutenberg(style):
    body = "The lamp spoke.\nProject Gutenberg is named in it, and *** stars."
    put(
        "b.txt",
        OLD[style].replace("BODY", body.replace("\n", "\r\n" if style == "windows" else "\n")),
    )
    assert documents("b.txt") == [body + "\n"]


@pytest.mark.parametrize(
    "body",
    [
        "Produced by John\nCHAPTER I\n" + "It was a long first paragraph.\n" * 40,
        "Produced by magic, the castle stood.\n\nMore.",
        "Produced by Magic, the castle stood.\n\nMore.",
        "Produced by hand\nand sold in the street, it was dear.\n\nMore.",
        "Produced by John",
        "Chapter 1\n***\nLine three.\n\n***\n\nLine four.",
        "A title ***\nLine two.",
        "* * *\nLine two.\n*** a line with stars ***\nLine four.",
    ],
)
@pytest.mark.parametrize("closing", ["", " ***"])
def test_first_lines_of_a_book_are_kept(body, closing):
    "What only looks like a credit, and lines of stars, with and without closing stars in START"
    start, end = (
        f"*** {word} OF THE PROJECT GUTENBERG EBOOK A{closing}" for word in ("START", "END")
    )
    put(
        "b.txt",
        f"Header.\n{start}\n{body}\n\n{end}\n"
        if closing
        else f"Header.\n{start}\n\n{body}\n\n{end}\n",
    )
    assert documents("b.txt") == [body.rstrip("\n") + "\n"]


def test_a_credit_that_is_left_out_is_said(capsys):
    put("b.txt", book("X", "Produced by David Widger\n\nText."))
    assert (
        documents("b.txt") == ["Text.\n"]
        and "'Produced by David Widger'" in capsys.readouterr().err
    )


def test_a_book_of_many_pieces():
    body = "A line of the long book, and more.\n" * 20_000  # 700 kB: three pieces
    put("long.txt", book("LONG", body) + book("SHORT", "Short."))
    assert documents("long.txt") == [body, "Short.\n"]


HALF = {
    "no end": book("X", "Text.", end=False),
    "second has no end": book("X", "Text.") + book("Y", "More.", end=False),
    "first has no end": book("X", "Text.", end=False) + book("Y", "More."),
    "no start": "Text.\n\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\n" + LICENCE,
    "second has no start": book("X", "Text.")
    + "My own words.\n*** END OF THE PROJECT GUTENBERG EBOOK Y ***\n",
    "small print alone": SMALL_PRINT + "Text without a last line.",
}


@pytest.mark.parametrize("fault", HALF)
def test_half_books(fault):
    put("half.txt", HALF[fault])
    refused("half.txt", "half.txt", "START or END")


def test_own_words_around_a_book():
    """Neither a novel before the first START nor one after the last END is dropped as a header or
    footer"""
    novel = "A novel of my own.\n" * 5000
    put("before.txt", novel + book("X", "Text."))
    put("after.txt", book("X", "Text.") + novel)
    put("far.txt", novel * 4 + book("X", "Text."))  # the mark comes in the second piece
    for name in ("before.txt", "after.txt"):
        refused(name, name, "characters stand outside of")
    refused("far.txt", "in the midst of it")
    put("own.txt", novel + "He said *** START. Of the Project Gutenberg he knew nothing.\n")
    assert documents("own.txt") == [Path("own.txt").read_text()]


def test_composed_letters_are_told(capsys):
    put("b.txt", book("X", "A cafe\u0301."))
    assert documents("b.txt") == ["A café.\n"] and "NFC" in capsys.readouterr().err
    put("own.txt", "A cafe\u0301.")
    assert documents("own.txt") == ["A cafe\u0301."]  # your own text stays as it is


# records

CHAT = [dict(role="user", content="Who prints it?"), dict(role="assistant", content="Marian.")]
SHAPES = {
    "text": (dict(text="Why? So.", answer=3), "Why? So."),
    "Dolly": (
        dict(instruction="Why?", context="It rains.", response="So.", category="qa"),
        "Why?\n\nIt rains.\n\nSo.",
    ),
    "Dolly without context": (dict(instruction="Why?", context="", response="So."), "Why?\n\nSo."),
    "Alpaca": (dict(instruction="Add.", input="1 and 2", output="3"), "Add.\n\n1 and 2\n\n3"),
    "Alpaca without input": (dict(instruction="Add.", input=None, output="3"), "Add.\n\n3"),
    "Alpaca with text": (
        dict(
            instruction="Add.",
            input="",
            output="3",
            text="Below is an instruction.\n\nAdd.\n\nAnswer: 3",
        ),
        "Below is an instruction.\n\nAdd.\n\nAnswer: 3",
    ),
    "empty text": (dict(text="", instruction="Why?", output="So."), "Why?\n\nSo."),
    "empty text and turns": (
        dict(text="", messages=CHAT),
        "USER:\nWho prints it?\n\nASSISTANT:\nMarian.",
    ),
    "prompt beside text": (dict(prompt="Write a story.", text="Once."), "Once."),
    "no tools": (
        dict(messages=CHAT, tools="[]", history=None, thinking=""),
        "USER:\nWho prints it?\n\nASSISTANT:\nMarian.",
    ),
    "input and output": (dict(input="Why?", output="So."), "Why?\n\nSo."),
    "completion": (dict(prompt="Why?", completion=" So."), "Why?\n\n So."),
    "question": (dict(question="Why?", answer="So."), "Why?\n\nSo."),
    "messages": (dict(messages=CHAT), "USER:\nWho prints it?\n\nASSISTANT:\nMarian."),
    "messages and prompt": (
        dict(prompt="Who prints it?", messages=CHAT),
        "USER:\nWho prints it?\n\nASSISTANT:\nMarian.",
    ),
    "ShareGPT": (
        dict(
            id=1,
            conversations=[{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Marian."}],
        ),
        "USER:\nWho?\n\nASSISTANT:\nMarian.",
    ),
    "ShareGPT with system": (
        dict(system="Be brief.", conversations=[{"from": "human", "value": "Who?"}]),
        "SYSTEM:\nBe brief.\n\nUSER:\nWho?",
    ),
    "system twice": (
        dict(
            system="Be brief.",
            conversations=[
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Who?"},
            ],
        ),
        "SYSTEM:\nBe brief.\n\nUSER:\nWho?",
    ),
    "parts": (
        dict(
            messages=[
                dict(
                    role="user",
                    content=[dict(type="text", text="Who "), dict(type="text", text="prints?")],
                )
            ]
        ),
        "USER:\nWho prints?",
    ),
    "null text": (dict(text=None, prompt="Why?", completion="So."), "Why?\n\nSo."),
    "empty turn": (
        dict(messages=[dict(role="user", content=""), dict(role="assistant", content="Yes?")]),
        "USER:\n\n\nASSISTANT:\nYes?",
    ),
}


@pytest.mark.parametrize("kind", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_records(shape, kind):
    record, text = SHAPES[shape]
    if kind == "a.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record, record]), kind)
    else:
        raw = json.dumps([record] * 2) if "jsonl" not in kind else f"{json.dumps(record)}\n" * 2
        put(kind, gzip.compress(raw.encode()) if kind.endswith(".gz") else raw)
    assert documents(kind) == [text, text]


def test_shapes_may_be_mixed():
    jsonl("mixed.jsonl", *(record for record, _ in SHAPES.values()))
    assert documents("mixed.jsonl") == [text for _, text in SHAPES.values()]


STRANGE = {
    "no answer": (dict(instruction="Why?"), ["instruction"]),
    "two answers": (
        dict(instruction="Why?", output="a", response="b"),
        ["instruction, output, response"],
    ),
    "chosen and rejected": (
        dict(prompt="Why?", chosen="a", rejected="b"),
        ["prompt, chosen, rejected"],
    ),
    "number": (dict(text=3), ["int"]),
    "list": (dict(text=["a", "b"]), ["list"]),
    "true": (dict(text=True), ["bool"]),
    "object": (dict(text={"en": "a"}), ["dict"]),
    "number in an answer": (dict(instruction="Add.", input="1 and 2", output=3), ["output", "int"]),
    "list in an answer": (dict(question="Why?", answer=["So."]), ["answer", "list"]),
    "number as context": (dict(instruction="Add.", context=7, response="8"), ["context", "int"]),
    "null answer": (dict(instruction="Why?", output=None), ["output (null)"]),
    "empty answer": (dict(instruction="Why?", output=" "), ["output is empty"]),
    "empty question": (dict(prompt="", completion="So."), ["prompt is empty"]),
    "turn without a role": (dict(messages=[dict(content="a")]), ["turn 1", "it has: content"]),
    "turn with other names": (
        dict(messages=[dict(speaker="a", said="b")]),
        ["turn 1", "speaker, said"],
    ),
    "turn that is text": (dict(messages=["a", "b"]), ["turn 1", "str"]),
    "null content": (
        dict(messages=[*CHAT, dict(role="assistant", content=None)]),
        ["turn 3", "role, content"],
    ),
    "number as content": (dict(messages=[dict(role="user", content=4)]), ["turn 1", "int"]),
    "object as content": (dict(messages=[dict(role="user", content={"a": 1})]), ["turn 1", "dict"]),
    "picture": (
        dict(messages=[dict(role="user", content=[dict(type="image_url", image_url="x")])]),
        ["part 1", "image_url"],
    ),
    "number as role": (dict(messages=[dict(role=1, content="a")]), ["turn 1", "int"]),
    "tool call": (
        dict(messages=[dict(role="assistant", content="", tool_calls=[1])]),
        ["turn 1", "tool_calls"],
    ),
    "no turns": (dict(messages=[]), ["messages", "no turns"]),
    "turns as text": (dict(messages="[]"), ["messages", "str"]),
    "two dialogues": (dict(messages=CHAT, conversations=CHAT), ["messages, conversations"]),
    "history": (dict(instruction="Why?", output="So.", history=[["a", "b"]]), ["history"]),
    "history beside turns": (dict(messages=CHAT, history=[["a", "b"]]), ["history", "messages"]),
    "tools": (
        dict(messages=CHAT, tools=[dict(name="search", description="Looks it up.")]),
        ["tools"],
    ),
    "tools as text": (dict(messages=CHAT, tools='[{"name": "search"}]'), ["tools"]),
    "thinking": (dict(prompt="Why?", response="So.", thinking="Hm."), ["thinking"]),
    "answer beside text": (dict(text="What is it?", response="THE ANSWER"), ["text", "response"]),
    "turns beside text": (dict(text="A title", messages=CHAT), ["text", "messages"]),
    "answer beside turns": (dict(messages=CHAT, response="Another."), ["messages", "response"]),
    "instruction beside text": (
        dict(text="A title", instruction="Why?", output="So."),
        ["text", "instruction", "output"],
    ),
    "instruction beside turns": (
        dict(messages=CHAT, prompt="Why?", completion="So."),
        ["messages", "prompt", "completion"],
    ),
    "thinking beside text": (dict(text="A text", reasoning_content="Hm."), ["reasoning_content"]),
    "content and value": (
        dict(messages=[dict(role="user", content="a", value="b")]),
        ["turn 1", "value"],
    ),
    "content and text": (
        dict(messages=[dict(role="user", content="a", text="b")]),
        ["turn 1", "text"],
    ),
    "content and response": (
        dict(messages=[dict(role="user", content="a", response="b")]),
        ["turn 1", "response"],
    ),
    "picture with text": (
        dict(
            messages=[dict(role="user", content=[dict(type="image_url", image_url="x", text="b")])]
        ),
        ["part 1", "image_url"],
    ),
    "text with picture": (
        dict(messages=[dict(role="user", content=[dict(type="text", image_url="x", text="b")])]),
        ["part 1", "image_url"],
    ),
    "thought as a part": (
        dict(messages=[dict(role="user", content=[dict(type="thinking", text="b")])]),
        ["part 1", "thinking"],
    ),
    "half a character": (dict(prompt="Why?", completion="\ud83d"), ["U+D83D"]),
}


@pytest.mark.parametrize("fault", STRANGE)
def test_strange_records(fault):
    "Refused with file, line and what stands there; nothing's `str` reaches the text"
    record, parts = STRANGE[fault]
    jsonl("r.jsonl", dict(text="fine"), record)
    refused("r.jsonl", "r.jsonl, line 2", *parts)
    put("r.json", json.dumps([dict(text="fine"), record]))
    refused("r.json", "r.json, record 2", *parts)


NOT_IN_PARQUET = ("half a character", "turn that is text")


@pytest.mark.parametrize("fault", [fault for fault in STRANGE if fault not in NOT_IN_PARQUET])
def test_strange_records_in_parquet(fault):
    "What .jsonl refuses, .parquet refuses: columns with words are not passed over"
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    record, parts = STRANGE[fault]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record, record]), "r.parquet")
    line = refused("r.parquet", "r.parquet")
    assert "rename" in line or all(part in line for part in parts)


def test_two_columns_of_one_name():
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    columns = [pyarrow.array(["one"]), pyarrow.array(["two"])]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_arrays(columns, names=["text", "text"]), "t.parquet"
    )
    refused("t.parquet", "more than one column named text")


def test_what_asks_for_a_text_is_named(capsys):
    jsonl("r.jsonl", *[dict(prompt="Write a story.", text="Once.")] * 3)
    assert documents("r.jsonl") == ["Once."] * 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "prompt" in said and "r.jsonl" in said


def test_all_strange_records_are_named():
    jsonl("r.jsonl", *[dict(text="a"), dict(text=1)] * 3)
    line = refused("r.jsonl", "r.jsonl, line 2", "also: line 4, line 6")
    assert line.count("int") == 1
    jsonl("all.jsonl", *[dict(title="a")] * 3000)
    assert "many more" in refused("all.jsonl", "line 1", "it has: title")


def test_empty_texts_are_counted(capsys):
    jsonl("r.jsonl", dict(text="a"), dict(text=""), dict(text="b"), dict(text=None))
    assert documents("r.jsonl") == ["a", "b"]
    said = capsys.readouterr().err
    assert "2 without text" in said and "line 2" in said


def test_one_record_as_json():
    put("chat.json", json.dumps(dict(messages=CHAT)))
    put(
        "book.json",
        json.dumps(dict(text="The whole book.", chapters=[dict(text="one"), dict(text="two")])),
    )
    assert documents("chat.json") == [SHAPES["messages"][1]] and documents("book.json") == [
        "The whole book."
    ]


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "one", "text": "two"}',
        '{"messages": [{"role": "user", "role": "gpt", "content": "a"}]}',
    ],
)
def test_a_key_given_twice(line):
    put("twice.jsonl", line + "\n")
    refused("twice.jsonl", "line 1", "twice")
    put("twice.json", f"[{line}]")
    refused("twice.json", "twice")


def test_line_separators_inside_of_text():
    "U+2028 and its like end no line of JSON, and stay"
    text = "one\u2028two\x85three\x0bfour\x1c"
    put("a.jsonl", json.dumps(dict(text=text), ensure_ascii=False) + "\n")
    put("a.txt", text)
    assert documents("a.jsonl") == documents("a.txt") == [text]


def test_byte_order_marks():
    "One at the beginning is no text; one in the middle stays where it is"
    put("a.txt", "\ufeffone\ufefftwo")
    put("a.jsonl", "\ufeff" + json.dumps(dict(text="\ufeffone")) + "\n")
    put("a.json", "\ufeff" + json.dumps([dict(text="one")]))
    assert (
        documents("a.txt") == ["one\ufefftwo"]
        and documents("a.jsonl") == ["\ufeffone"]
        and documents("a.json") == ["one"]
    )


# encodings

FRENCH = "Le café était fermé; où êtes-vous allée? Ça ne fait rien.\n" * 20
ENCODED = {
    "cp1252": ("He said: \u201cIt\u2019s late \u2014 go home.\u201d\n" * 20, "cp1252"),
    "latin-1": (FRENCH, "cp1252"),
    "one letter": ("A long text in plain letters.\n" * 500 + "A café.\n", "cp1252"),
    "late": ("A long text in plain letters.\n" * 20_000 + "It\u2019s late.\n", "cp1252"),
    "iso8859-15": ("Il a payé 5 € pour son œuvre, près du café où il dîne.\n" * 20, "iso8859-15"),
    "mac-roman": ("He said: “It’s late — the café is closed.”\n" * 20, "mac-roman"),
    "cp850": ("Über die Straße läuft ein Mädchen, schöner als alle.\n" * 20, "cp850"),
    "cp1250": ("Příliš žluťoučký kůň úpěl ďábelské ódy. Zítra půjdeme do lesa.\n" * 20, "cp1250"),
    "cp1251": ("Всё смешалось в доме Облонских. Жена узнала, что муж был в связи\n" * 20, "cp1251"),
    "koi8-r": ("Всё смешалось в доме Облонских. Жена узнала, что муж был в связи\n" * 20, "koi8-r"),
    "gb18030": ("学而时习之，不亦说乎？有朋自远方来，不亦乐乎？\n" * 20, "gb18030"),
    "shift_jis": ("吾輩は猫である。名前はまだ無い。どこで生れたか見当がつかぬ。\n" * 20, "cp932"),
    "utf-16": (FRENCH, "utf-16"),
    "utf-16-le": (FRENCH, "utf-16-le"),
    "utf-16-be": (FRENCH, "utf-16-be"),
    "utf-32": (FRENCH, "utf-32"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_encodings_are_named_and_taken(name):
    "The error names the encoding; the text in that encoding is the right one"
    text, likely = ENCODED[name]
    raw = text.encode({"one letter": "latin-1", "late": "cp1252"}.get(name, name))
    put("t.txt", raw)
    line = refused(
        "t.txt",
        "t.txt",
        f"--encoding {likely}",
        "not UTF-8" if "utf" not in name else name[:6].upper(),
    )
    assert "iconv" not in line and "binary" not in line
    assert documents("t.txt", encoding=likely) == [text]
    put("t.txt.gz", gzip.compress(raw))
    assert documents("t.txt.gz", encoding=likely) == [text]


LANGUAGES = {
    "French": "L’été à Noël, où l’œuvre était achevée.\n",
    "Portuguese": "Uma noite destas, o coração da irmã pôs-se a bater; não é só.\n",
    "Spanish": "En un lugar de la Mancha: “¿Qué es esto?” –dijo el niño–. ¡Años!\n",
    "Italian": "Ché la diritta via era smarrita; ahi quanto è dura, perché “così” disse.\n",
    "Swedish": "Det var en gång en pojke, fjorton år gammal, lång och "
    "ranglig: “Så är det” – sade han.\n",
    "Icelandic": "Það er upphaf á sögu þessari, "
    "að Hákon konungur réð fyrir Noregi. Þorkell hét maður.\n",
    "Polish": (
        "Litwo! Ile cię trzeba cenić, ten tylko się dowie, Kto cię stracił; ty jesteś jak "
        "zdrowie, źle.\n"
    ),
    "Hungarian": "Az öregebb fiú elment szerencsét próbálni; "
    "őszintén szólva űzte a bűnös kedvtelést.\n",
    "Czech": "Babička měla syna a dvě dcery. Druhá dcera šla pak na její místo; řemeslník.\n",
    "Romanian": "A fost odată ca-n poveşti, Din rude mari împărăteşti. Şi era una la părinţi.\n",
    "Turkish": "Şimdi güneş doğdu, ılık bir rüzgâr esti.\n",
    "English": "He heard Dvořák play in Prague with the others of the company that came.\n",
    "naive": "It is naïve to say so, though the façade was that of a café.\n",
    "Russian": "Война и мир, князь Андрей смотрел на небо.\n",
    "Greek": "Μηνιν αειδε θεα Πηληιαδεω Αχιληος\n",
    "Hebrew": "בראשית ברא אלהים את השמים\n",
    "Japanese": "吾輩は猫である。名前はまだ無い。\n",
    "Chinese": "话说天下大势，分久必合，合久必分。\n",
    "Korean": "나는 고양이로소이다. 이름은 아직 없다.\n",
}
WRITTEN = [
    (language, encoding)
    for encodings, languages in {
        "cp1252 mac-roman": "French Portuguese Spanish Italian Swedish naive",
        "cp850": "naive",
        "cp1252": "Icelandic",
        "cp1250": "Polish Hungarian Czech Romanian English",
        "iso8859-2 cp852": "Polish Hungarian Czech",
        "cp1254": "Turkish",
        "cp1251 koi8-r cp866 iso8859-5 mac-cyrillic": "Russian",
        "cp1253 iso8859-7": "Greek",
        "cp1255": "Hebrew",
        "euc-jp shift_jis": "Japanese",
        "gb18030": "Chinese",
        "euc-kr": "Korean",
    }.items()
    for language in languages.split()
    for encoding in encodings.split()
]


@pytest.mark.parametrize("times", [1, 30])
@pytest.mark.parametrize("language,encoding", WRITTEN)
def test_advice_never_changes_letters(language, encoding, times):
    """One --encoding is given only if it is the right one; else the right one is among those to
    look at"""
    text = LANGUAGES[language] * times
    put("t.txt", text.encode(encoding))
    line = refused("t.txt", "t.txt", "it reads")
    advised = re.findall(r"--encoding ([\w-]+) \(", line)
    named = (
        re.findall(r"([\w-]+) \(it reads", line.split("may be")[1])
        if "it may be" in line
        else advised
    )
    assert advised != named or len(named) == 1
    assert 0 < len(named) <= 3 and any(
        documents("t.txt", encoding=name) == [text] for name in named
    ), line
    if advised and "it may be" not in line:
        assert documents("t.txt", encoding=advised[0]) == [text]


@pytest.mark.parametrize(
    "language",
    [
        "French",
        "Portuguese",
        "Spanish",
        "Icelandic",
        "Hungarian",
        "Polish",
        "Czech",
        "Japanese",
        "Korean",
    ],
)
def test_no_doubt_about(language):
    encoding = {
        "Hungarian": "cp1250",
        "Polish": "cp1250",
        "Czech": "cp1250",
        "Japanese": "euc-jp",
        "Korean": "cp949",
    }.get(language, "cp1252")
    put("t.txt", (LANGUAGES[language] * 40).encode(encoding))
    refused("t.txt", f"give --encoding {encoding} (")


def test_doubt_is_said():
    put("t.txt", ("A fost odată ca-n poveşti, împărăteşti.\n" * 20).encode("cp1250"))
    line = refused(
        "t.txt",
        "it may be cp1250 (it reads",
        "poveşti",
        "iso8859-16 (it reads",
        "povești",
        "look which reads right",
    )
    assert "probably" not in line and "give --encoding" not in line
    put("u/a.txt", Path("t.txt").read_bytes())
    put("u/b.txt", Path("t.txt").read_bytes() * 2)
    assert "--encoding cp" not in refused("u", "2 files", "cp1250 or iso8859-16", "a.txt", "b.txt")


@pytest.mark.parametrize(
    "text",
    [
        "吾輩は猫である。名前はまだ無い。" * 300,
        "나는고양이로소이다.이름은아직없다." * 300,
        "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？" * 300,
        "мывсеучилисьпонемногу" * 300,
    ],
    ids=["Japanese", "Korean", "Chinese", "Russian"],
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_wide_texts_without_spaces(text, encoding):
    "Given explicitly, without a byte order mark"
    put("t.txt", text.encode(encoding))
    assert documents("t.txt", encoding=encoding) == [text]
    other = encoding.replace("le", "xx").replace("be", "le").replace("xx", "be")
    refused("t.txt", "t.txt", encoding=other)


def test_encodings_of_records():
    text = "It\u2019s a café."
    for name, body in {
        "r.jsonl": "".join(json.dumps(dict(text=text), ensure_ascii=False) + "\n" for _ in "ab"),
        "r.json": json.dumps([dict(text=text)] * 2, ensure_ascii=False),
    }.items():
        for encoding in ("cp1252", "utf-16"):
            put(name, body.encode(encoding))
            refused(name, name, "not UTF-8", f"--encoding {encoding}")
            assert documents(name, encoding=encoding) == [text, text]


def test_a_book_in_latin1():
    put("old.txt", book("X", "Text.\n" * 50_000 + "Là, un café.").encode("latin-1"))
    refused("old.txt", "old.txt", "0xe0", "--encoding cp1252")
    assert documents("old.txt", encoding="cp1252") == ["Text.\n" * 50_000 + "Là, un café.\n"]


def test_latin1_where_windows_1252_is_meant():
    "0x92 is an apostrophe in one, an unseen control character in the other"
    put("t.txt", b"It\x92s late, and the caf\xe9 is closed.\n")
    refused("t.txt", "0x92 at 2", "cp1252", encoding="latin-1")
    assert documents("t.txt", encoding="cp1252") == ["It\u2019s late, and the café is closed.\n"]


def test_thirty_files_are_named_at_once():
    for i in range(30):
        put(
            f"texts/{i:02}.txt",
            f"Café number {i}, where it\u2019s late.".encode("utf-8" if i % 2 else "cp1252"),
        )
    put("texts/wide.txt", FRENCH.encode("utf-16"))
    line = refused(
        "texts", "16 files", "UTF-16", "Windows-1252", "texts/wide.txt".replace("/", os.sep)
    )
    assert (
        all(str(Path(f"texts/{i:02}.txt")) in line for i in range(0, 30, 2))
        and "01.txt" not in line
    )
    Path("texts/wide.txt").unlink()
    refused("texts", "15 files", "--encoding cp1252")
    assert documents("texts", encoding="cp1252") == [
        f"Café number {i}, where it\u2019s late." for i in range(30)
    ]


def test_utf8_stays_utf8(capsys):
    """An encoding is for the files that need it: a UTF-8 text in the same folder is not decoded
    twice"""
    put("t/a.txt", "Das Mädchen.")
    for name in "bcd":
        put(f"t/{name}.txt", "Das Mädchen.".encode("latin-1"))
    assert documents("t", encoding="latin-1") == ["Das Mädchen."] * 4
    assert capsys.readouterr().err.count("\n") <= 1


def test_damaged_utf8_is_not_taken_for_another_encoding():
    put("t.txt", "Das Mädchen läuft über die Straße.\n".encode() * 20 + b"It\x92s late.\n")
    assert (
        "encoding"
        not in refused("t.txt", "UTF-8, but for byte 0x92", "fix that place").split(
            "two encodings"
        )[-1]
    )
    put("cut.txt", ("Das Mädchen läuft über die Straße und sieht ä").encode()[:-1])
    refused("cut.txt", "cut off in the midst of its last character", "copy it again")


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp1250", "mac-roman", "gb18030"])
@pytest.mark.parametrize("where", [0, 252, 700_000])
def test_damaged_utf8_is_read_in_no_other_encoding(encoding, where):
    "One wrong byte does not turn each accented letter into two"
    raw = ("é à ü " * 50).encode() + b"plain letters. " * 50_000
    put("t/whole.txt", "Das Mädchen.")
    put("t/damaged.txt", raw[:where] + b"\x96" + raw[where:])
    refused(
        "t",
        "damaged.txt",
        f"UTF-8, but for byte 0x96 at {where:,}",
        "fix that place",
        encoding=encoding,
    )
    put("cut.txt", "naïve café — ".encode() * 3 + b"\xe9")
    refused("cut.txt", "UTF-8, but for byte 0xe9 at 51", encoding=encoding)


def test_escapes_in_utf8():
    "What speaks of ISO-2022-JP is not in it"
    for text in (
        "the escape \x1b$B is used. " * 50,
        "Es heißt \x1b$B%F%9%H\x1b(B, schön. " * 50,
        "\x1b$@ and \x1b[31mred\x1b[0m",
    ):
        put("t.txt", text)
        assert documents("t.txt") == [text]


@pytest.mark.parametrize("encoding", ["no-such", "rot13", "base64", "", "unicode_escape", "cp\0"])
def test_encodings_that_are_none(encoding):
    put("t.txt", "abc")
    if encoding:
        refused("t.txt", "encoding=", "cp1252", encoding=encoding)
    else:
        assert documents("t.txt", encoding=encoding) == ["abc"]


@pytest.mark.parametrize(
    "wrong,right",
    [
        ("utf-16", "utf-16-be"),
        ("utf-16-be", "utf-16-le"),
        ("utf-16-le", "cp1252"),
        ("utf-32", "utf-16-le"),
    ],
)
def test_widths_that_give_no_text(wrong, right):
    "Almost any bytes can be read as UTF-16, as Chinese that nobody wrote"
    put("t.txt", FRENCH.encode(right))
    refused("t.txt", "t.txt", f"gives no text as {wrong}", f"--encoding {right}", encoding=wrong)
    chinese = "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？\n" * 20
    put("t.txt", chinese.encode("utf-16-be"))
    assert documents("t.txt", encoding="utf-16-be") == [chinese]
    put("t.txt", FRENCH.encode("utf-16")[:-1])
    refused("t.txt", "t.txt", "damaged or cut off", encoding="utf-16")


def test_japanese_in_seven_bits():
    text = "吾輩は猫である。名前はまだ無い。\n" * 20
    put("t.txt", text.encode("iso2022-jp"))
    refused("t.txt", "ISO-2022-JP", "--encoding iso2022-jp")
    assert documents("t.txt", encoding="iso2022-jp") == [text]


def test_other_bytes_in_the_given_encoding():
    put("t.txt", b"caf\xe9 \x81\n")  # 0x81 is nothing in Windows-1252
    refused("t.txt", "t.txt", "not cp1252", "0x81 at 5", encoding="cp1252")


@pytest.mark.parametrize(
    "magic,what",
    [
        (b"PK\x03\x04\x14\0\x06\0", "zip"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (b"\x1f\x8b\x08\0\0\0", "gzip"),
    ],
)
def test_what_is_no_text(magic, what):
    put("t.txt", magic + bytes(range(256)))
    refused("t.txt", "t.txt", what)


def test_any_bytes():
    """The very text, with newlines as one character, or an error of one line: damaged texts of many
    encodings"""
    draw, read = random.Random(0), 0
    good = [
        text.encode(name)
        for name, (text, _) in ENCODED.items()
        if name in ("utf-16", "gb18030", "cp1251")
    ]
    good += [
        "\ufeffNaïve\r\nПечать\r 印刷 🖋\n".encode() * 5,
        FRENCH.encode(),
        bytes(range(256)),
        b"\xff\xfe\0",
    ]
    for _ in range(250):
        raw = bytearray(draw.choice(good))
        for _ in range(draw.choice([0, 0, 1, 3])):
            at = draw.randrange(len(raw))
            raw[at : at + draw.randrange(3)] = draw.randbytes(draw.randrange(3)) or b"a"
        put("any.txt", bytes(raw))
        try:
            text = load_corpus("any.txt").text
        except NeoxError as error:
            assert "\n" not in str(error)
        else:
            read += 1
            assert (
                text == raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
                and "\0" not in text
            )
    assert read > 40


# folders


def test_hidden_files_are_not_read(capsys):
    for name in (
        "a.txt",
        "deep/b.txt",
        ".hidden.txt",
        ".drafts/c.txt",
        "__MACOSX/._a.txt",
        "__MACOSX/d.txt",
        "deep/.DS_Store.md",
    ):
        put(f"t/{name}", name)
    assert documents("t") == ["a.txt", "deep/b.txt"] == documents("t/**/*.txt")
    assert "__MACOSX" in capsys.readouterr().err
    put("one/.hidden.txt", "asked for")
    assert documents("one/.hidden.txt") == ["asked for"]


def test_what_a_folder_leaves_out_is_said_once(capsys):
    for name in (
        "a.txt",
        "README.md",
        "LICENSE.txt",
        "licence",
        "cover.png",
        "licensed_to_kill.txt",
    ):
        put(f"t/{name}", name)
    assert documents("t") == documents("t") == ["a.txt", "licensed_to_kill.txt"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and all(
        name in said[0] for name in ("README.md", "LICENSE.txt", "licence", "cover.png")
    )


def test_what_is_about_the_data_is_not_read(capsys):
    put("t/a.jsonl", json.dumps(dict(text="one")))
    put("t/b.txt", "two")
    for name in (
        "dataset_info.json",
        "dataset_infos.json",
        "sub/config.json",
        "tokenizer_config.json",
        "state.json",
    ):
        put(f"t/{name}", json.dumps(dict(splits=dict(train=1))))
    put("t/nothing.txt", "")
    put("t/data.json", json.dumps([dict(text="three")]))
    assert documents("t") == ["one", "two", "three"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(
        name in said
        for name in ("dataset_info.json", "config.json", "state.json", "nothing.txt (empty)")
    )
    put("t/labels.json", json.dumps(dict(yes=1, no=0)))
    refused("t", "labels.json", "holds no list of records", "take it out of the folder")
    put("u/a.txt", "")
    refused("u", "u/a.txt".replace("/", os.sep), "the file is empty")


def test_a_compressed_copy_is_read_once(capsys):
    text = "The ink is dry.\n" * 40_000
    put("t/a.txt", text)
    put("t/a.txt.gz", gzip.compress(text.encode()))
    put("t/b.jsonl", json.dumps(dict(text="one")))
    put("t/b.jsonl.gz", gzip.compress(json.dumps(dict(text="another")).encode()))
    assert documents("t") == documents("t/*") == [text, "one", "another"]
    said = capsys.readouterr().err
    assert said.count("a.txt.gz (the same as a.txt)") == 2 and "b.jsonl" not in said


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links(capsys):
    put("t/a.txt", "one")
    put("elsewhere/b.txt", "two")
    os.symlink(
        "../elsewhere/b.txt", "t/b.txt"
    )  # to a file elsewhere: read, as the hub's cache needs
    os.symlink("a.txt", "t/copy.txt")  # to a file that is read anyway
    os.symlink("nothing.txt", "t/broken.txt")
    os.symlink("../elsewhere", "t/linked")
    os.symlink("..", "t/loop")
    os.symlink("round.txt", "t/round.txt")
    os.mkfifo("t/pipe.txt")
    assert documents("t") == ["one", "two"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(
        name in said
        for name in ("copy.txt", "broken.txt", "linked", "loop", "round.txt", "pipe.txt")
    )
    refused("t/round.txt", "t/round.txt")
    refused("t/broken.txt", "link to nothing")


@pytest.mark.parametrize(
    "held_out",
    [
        "valid",
        "validation",
        "val",
        "dev",
        "test",
        "Validation",
        "eval",
        "evaluation",
        "heldout",
        "held-out",
        "held_out",
        "holdout",
        "Development",
        "tests",
    ],
)
def test_folders_give_the_split(held_out):
    put("t/train/one/a.txt", "to train on")
    put("t/train/b.jsonl", json.dumps(dict(text="to train on, too")))
    put(f"t/{held_out}/test_pilot.txt", "to score")
    corpus = load_corpus("t")
    assert corpus.parts == ["train", "valid"]
    assert ["".join(pieces) for _, pieces in corpus.documents("valid")] == ["to score"]
    assert load_corpus("t/*/*").parts == ["train", "valid"] and load_corpus("t/train").parts == []


def test_the_three_parts():
    for part in ("train", "validation", "test"):
        put(f"t/data/{part}/0.txt", part)
    corpus = load_corpus("t")
    assert {
        part: ["".join(pieces) for _, pieces in corpus.documents(part)] for part in corpus.parts
    } == dict(train=["train"], valid=["validation"], test=["test"])
    assert (
        part_of("train/test.txt", ".") == "train"
        and part_of("train/test.txt") == "test"
        and part_of("x/latest.txt", ".") == ""
    )


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "a.txt"),
        ("train/a.txt", "test/b.txt", "c.txt"),
        ("a.txt", "validation/b.txt"),
    ],
)
def test_what_is_held_out_is_never_trained_on(names):
    "Where some files say a part and others none, nobody guesses"
    for name in names:
        put(f"t/{name}", name)
    refused("t", "kept from training", "says neither", "rename")


def test_a_word_in_a_title_is_no_split(capsys):
    put("t/the-test.txt", "a novel")
    put("t/another.txt", "another novel")
    assert load_corpus("t").parts == [] and "the-test.txt" in capsys.readouterr().err
    put("u/train.txt", "a novel about a railway")
    put("u/another.txt", "another novel")
    assert load_corpus("u").parts == []
    said = capsys.readouterr().err
    assert all(word in said for word in ("train.txt", "another.txt", "read as one text"))


@pytest.mark.parametrize(
    "held_out",
    [
        "eval.txt",
        "evaluation.jsonl",
        "heldout.txt",
        "held-out.txt",
        "plays.held_out.txt",
        "holdout.txt",
        "dev.txt",
        "devel.txt",
        "tests.txt",
        "play-eval-00001.txt",
        "EVAL.txt",
        "eval1.txt",
        "unseen.txt",
    ],
)
def test_names_of_what_is_held_out(held_out):
    "None of them is trained on beside train"
    jsonl("t/train.jsonl", dict(text="to train on"))
    put(f"t/{held_out}", json.dumps(dict(text="to score")) if "json" in held_out else "to score")
    corpus = load_corpus("t")
    assert corpus.parts == ["train", "valid"] and corpus.count("train").characters == len(
        "to train on"
    )


@pytest.mark.parametrize(
    "name,part",
    [
        ("train.txt", "train"),
        ("train-00001.txt", "train"),
        ("train-00000-of-00002.parquet", "train"),
        ("wiki.valid.tokens", "valid"),
        ("T-GPT4-valid.txt.gz", "valid"),
        ("wiki.train.head.tokens", "train"),
        ("gsm8k_train_split.jsonl", "train"),
        ("data.train.v1.txt", "train"),
        ("train 1.txt", "train"),
        ("test (1).txt", "test"),
        ("my corpus - valid.txt", "valid"),
        ("a test of will.txt", ""),
        ("the train to paris.txt", ""),
        ("valid reasons.txt", ""),
        ("the express train.txt", ""),
        ("a-test-of-will.txt", ""),
        ("latest.txt", ""),
        ("trains of thought.txt", ""),
    ],
)
def test_part_words(name, part):
    "As the whole name, or as its first or last word; not within a title"
    assert part_of(name) == part


def test_titles_are_no_parts(capsys):
    for name in ("the train to paris.txt", "a test of will.txt", "valid reasons.txt", "other.txt"):
        put(f"t/{name}", name)
    assert load_corpus("t").parts == [] and load_corpus("t").counts.documents == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "taken for a title" in said
    put("u/my own corpus train.txt", "to train on")
    put("u/my own corpus valid.txt", "to score")
    assert load_corpus("u").parts == ["train", "valid"]  # one name, but for that word


def test_one_text_in_both_parts():
    "By content, by link and by path"
    put("t/train/a.txt", "the same text")
    put("t/valid/b.txt", "the same text")
    refused("t", "a.txt", "b.txt", "same text")
    put("t/valid/b.txt", "the same size")
    assert load_corpus("t").parts == ["train", "valid"]
    Path("t/valid/b.txt").unlink()
    put("t/valid/b.txt.gz", gzip.compress(b"the same text"))
    refused("t", "train and valid are the same text")
    with pytest.raises(NeoxError, match="same text"):
        Corpus("given", [(Path("t/train/a.txt"), "train"), (Path("t/../t/train/a.txt"), "valid")])


def test_texts_given_for_each_part(capsys):
    """What is given for training brings its train part alone; separators stay; the same text in
    both is refused"""
    from shakespeare_neox.engine.corpora import given_texts

    jsonl("t/train.jsonl", dict(text="one"), dict(text="two"))
    jsonl("t/valid.jsonl", dict(text="three"))
    put("a.txt", "four")
    corpus = given_texts(["t", "a.txt"], ["t"])
    assert {
        part: ["".join(pieces) for _, pieces in corpus.documents(part)] for part in corpus.parts
    } == dict(train=["one", "two", "four"], valid=["three"])
    assert "t: its own train part is taken" in capsys.readouterr().err
    with pytest.raises(NeoxError, match="same text"):
        given_texts(["a.txt"], ["./a.txt"])
    with pytest.raises(NeoxError, match="same text"):
        given_texts(["a.txt", "t/train.jsonl"], ["t/train.jsonl"])


def test_a_folder_that_may_not_be_read():
    put("t/a.txt", "a")
    Path("t/closed").mkdir(mode=0o000)
    try:
        if os.access("t/closed", os.R_OK):
            pytest.skip("this user may read everything")
        refused("t", "closed", "Permission denied")
    finally:
        Path("t/closed").chmod(0o700)


# one text at two times, and its fingerprint


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_text_that_changes_between_two_passes(name):
    put(name, json.dumps(dict(text="one")) if "json" in name else "one")
    corpus = load_corpus(name)
    assert corpus.counts.characters == 3
    put(name, json.dumps(dict(text="two")) if "json" in name else "two")
    with pytest.raises(NeoxError, match="changed between two readings"):
        for _, pieces in corpus.documents():
            "".join(pieces)
    put(name, json.dumps(dict(text="one")) if "json" in name else "one")
    assert ["".join(pieces) for _, pieces in corpus.documents()] == ["one"]


def test_a_part_that_changes(here):
    put("t/train/a.txt", "a training text")
    put("t/valid/a.txt", "a text to score")
    corpus = load_corpus("t")
    _ = corpus.counts
    put("t/valid/a.txt", "another text to score")
    assert ["".join(pieces) for _, pieces in corpus.documents("train")] == ["a training text"]
    with pytest.raises(NeoxError, match="changed"):
        [list(pieces) for _, pieces in corpus.documents("valid")]


def test_prepare_notices_it(monkeypatch, capsys):
    import shakespeare_neox.engine.tokens as data

    put("a.txt", "The ink is dry.\n" * 400)
    check = data.check_space

    def replace(*args):
        check(*args)
        put("a.txt", "The oil is dry.\n" * 400)

    monkeypatch.setattr(data, "check_space", replace)
    refuses(prepare, ["a.txt", "--out", "out"], capsys, "a: the text changed between two readings")
    assert not Path("out").exists()


def test_the_fingerprint_knows_the_parts():
    "Records moved from train to valid make another corpus, though the text of all is the same"

    def made(train, valid):
        jsonl("t/train.jsonl", *(dict(text=text) for text in train))
        jsonl("t/valid.jsonl", *(dict(text=text) for text in valid))
        return load_corpus("t").counts.sha256

    first = made(["one", "two"], ["three"])
    assert made(["one"], ["two", "three"]) != first == made(["one", "two"], ["three"])


def test_the_fingerprint_of_what_is_encoded():
    "Counts that somebody takes along the way equal those of the first pass"
    from shakespeare_neox.engine.corpora import Counts

    jsonl("a.jsonl", dict(text="one"), dict(text="two\nthree"))
    corpus, counts = load_corpus("a.jsonl"), Counts()
    for _, pieces in corpus.documents():
        for piece in pieces:
            for half in (piece[:2], piece[2:]):
                counts.add(half)
        counts.end()
    assert (
        counts == corpus.counts
        and counts.sha256 == hashlib.sha256(b"one\xfftwo\nthree\xff").hexdigest()
    )
    jsonl("t/train.jsonl", dict(text="one"))
    jsonl("t/valid.jsonl", dict(text="two"))
    assert load_corpus("t").count("valid").sha256 == hashlib.sha256(b"two\xff").hexdigest()


# names


@pytest.mark.parametrize(
    "name,called",
    [
        ("my.novel.v2.txt", "my.novel.v2"),
        ("my.novel.v1.txt", "my.novel.v1"),
        ("my.novel.v2.jsonl.gz", "my.novel.v2"),
        ("a.TXT", "a"),
        ("notes", "notes"),
        ("v1.2", "v1.2"),
        (".hidden.txt", "hidden"),
        ("..txt", "text"),
        (".txt", "text"),
        ("...", "text"),
        ("a b.txt", "a b"),
        ("a. .txt", "a"),
    ],
)
def test_names_of_files(name, called):
    put(f"t/{name}", "text")
    assert load_corpus(f"t/{name}").name == called


def test_each_text_has_its_own_folder(capsys):
    "Names that agree up to the first dot, and hidden ones"
    for name in ("my.novel.v1.txt", "my.novel.v2.txt", ".novel.txt"):
        put(name, "The ink is dry.\n" * 100)
        assert (
            succeeds(prepare, [name], capsys).out
            == str(Path("prepared") / name.strip(".").removesuffix(".txt")) + "\n"
        )
    assert sorted(os.listdir("prepared")) == ["my.novel.v1", "my.novel.v2", "novel"]


def test_names_of_folders_and_patterns(monkeypatch):
    for folder in ("v1.0/texts.old", "v1.1", ".hidden"):
        put(f"{folder}/a.txt", "text")
    assert [
        load_corpus(f).name for f in ("v1.0", "v1.1", "v1.0/texts.old", ".hidden", "v1.0/")
    ] == ["v1.0", "v1.1", "texts.old", "hidden", "v1.0"]
    monkeypatch.chdir("v1.0/texts.old")
    assert load_corpus(".").name == "texts.old" and load_corpus("..").name == "v1.0"
    monkeypatch.chdir("../..")
    names = {
        load_corpus(p).name
        for p in (
            "v1.1/*.txt",
            "v1.1/a*",
            "v1.1/*a*",
            "v1.0/**/*.txt",
            "v1.?/a.txt",
            "*/a.txt",
            ".hidden/*",
        )
    }
    assert len(names) == 7 and not any(n.startswith(".") or "/" in n or "*" in n for n in names)


def test_long_names():
    put("x" * 240 + "1.txt", "text")
    put("x" * 240 + "2.txt", "text")
    names = {load_corpus("x" * 240 + f"{i}.txt").name for i in (1, 2)}
    assert len(names) == 2 and all(len(n) <= 100 for n in names)


@pytest.mark.parametrize(
    "name",
    [
        "hf:../x",
        "hf:x",
        "hf:a/b/c",
        "hf:.../...",
        "hf:a/..",
        "hf:a//b",
        "hf:a/b--c",
        "hf:-a/b",
        "hf:a/b.git",
        "hf:a b/c",
        "hf:a/b:../..",
        "hf:a/b:/etc",
        "hf:a/b@../x",
        "hf:a/" + "b" * 97,
        "hf:",
        "hf:a/b\n",
    ],
)
def test_names_that_the_hub_refuses(name, monkeypatch, capsys):
    def asked(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(corpora, "hub_folder", asked)
    monkeypatch.setenv("NEOX_DATA", str(Path("mine").resolve()))
    put("x/a.txt", "not to be found")
    Path("mine/hf").mkdir(parents=True)
    refuses(prepare, [name], capsys, "hf:")


@pytest.mark.parametrize("number", ["../11", "x", "", "0", "²", "11.txt", "1" * 9])
def test_numbers_of_books(number, monkeypatch):
    monkeypatch.setenv("NEOX_DATA", str(Path("mine").resolve()))
    put("mine/11.txt", "not to be found")
    refused(f"gutenberg:{number}", "give a book's number")


def test_a_file_that_is_called_like_a_corpus(capsys):
    put("sample/a.txt", "my own")
    assert load_corpus("sample").counts.bytes == 140_422
    assert "the known corpus is read" in capsys.readouterr().err
    assert documents("./sample") == ["my own"]


# plain files


def test_plain_replaces_nothing(capsys):
    put("a.txt", "The ink is dry.")
    put("precious.txt", "precious")
    put("a.jsonl", json.dumps(dict(text="a")))
    before = tree(".")
    refuses(prepare, ["a.txt", "--plain", "a.txt"], capsys, "a.txt", "already there")
    refuses(prepare, ["a.txt", "--plain", "precious.txt"], capsys, "precious.txt", "already there")
    refuses(prepare, ["a.jsonl", "--plain", "./a.jsonl"], capsys, "a.jsonl", "already there")
    assert tree(".") == before


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_plain_follows_no_link():
    put("a.txt", "The ink is dry.")
    os.symlink("elsewhere.txt", "link.txt")
    with pytest.raises(NeoxError, match="already there"):
        write_plain(load_corpus("a.txt"), "link.txt")
    assert not Path("elsewhere.txt").exists() and os.path.islink("link.txt")


def test_plain_makes_its_folder(capsys):
    put("a.txt", "one\r\ntwo\r")
    succeeds(prepare, ["a.txt", "--plain", "data/deep/corpus.txt"], capsys)
    assert Path("data/deep/corpus.txt").read_bytes() == b"one\ntwo\n"
    mode = stat.S_IMODE(Path("data/deep/corpus.txt").stat().st_mode)
    assert mode == stat.S_IMODE(Path("a.txt").stat().st_mode)


def test_plain_is_whole_or_absent():
    jsonl("bad.jsonl", dict(text="fine"), dict(text=1))
    before = tree(".")
    for name in ("new/out.txt", "out.jsonl"):
        with pytest.raises(NeoxError, match="line 2"):
            write_plain(load_corpus("bad.jsonl"), name)
    assert tree(".") == before


def test_plain_keeps_fields_as_they_are():
    """Dates become text, halves of characters stay as JSON writes them; what JSON cannot hold is an
    error"""
    pyarrow = pytest.importorskip("pyarrow")
    import datetime

    import pyarrow.parquet

    at = datetime.datetime(2024, 1, 2, 3, 4)
    rows = [dict(conversation=[dict(role="user", content="Hi", timestamp=at)])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "a.parquet")
    assert write_plain(load_corpus("a.parquet"), "a.jsonl") == 1
    assert json.loads(Path("a.jsonl").read_text())["conversation"][0]["timestamp"] == at.isoformat()
    rows[0]["conversation"][0]["timestamp"] = b"\xff"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "b.parquet")
    with pytest.raises(NeoxError, match="bytes"):
        write_plain(load_corpus("b.parquet"), "b.jsonl")
    record = dict(text="fine", note="\ud83d")
    jsonl("c.jsonl", record)
    write_plain(load_corpus("c.jsonl"), "d.jsonl")
    assert json.loads(Path("d.jsonl").read_text()) == record


# limits before work


def quickly(name, *parts, seconds=5, **settings):
    start = time.process_time()
    line = refused(name, *parts, **settings)
    assert time.process_time() - start < seconds, line


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files here")
def test_what_has_no_end():
    os.mkfifo("pipe.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.txt")
        quickly("pipe.txt", "pipe.txt", "a pipe")
        quickly("socket.txt", "socket.txt", "a socket")
    for device in ("/dev/zero", "/dev/null", "/dev/stdin"):
        quickly(device, device)
    for name in ("/proc/cpuinfo", "/proc/kmsg", "/proc/self/mem"):
        if Path(name).exists():
            quickly(name, name, "made up by the system")
    with pytest.raises(NeoxError, match="a pipe"):
        next(Corpus("pipe", [(Path("pipe.txt"), "")]).documents())[1].__iter__().__next__()


@pytest.mark.parametrize("opening,closing", [("[", "]"), ('{"a":', "}")])
def test_deep_json(opening, closing):
    deep = f'{{"text": "a", "deep": {opening * 100_000}1{closing * 100_000}}}'
    put("deep.jsonl", f'{{"text": "a"}}\n{deep}\n')
    quickly("deep.jsonl", "deep.jsonl", "line 2", "nested too deeply")
    put("deep.json", f"[{deep}]")
    quickly("deep.json", "deep.json", "nested too deeply")


def test_a_line_of_50_megabytes():
    put("long.jsonl", b'{"text": "a"}\n{"text": "' + b"a" * 50_000_000 + b'"}\n')
    quickly("long.jsonl", "long.jsonl, line 2", "longer than")
    put("long.txt", b"a " * 25_000_000)  # running text may be one line
    assert load_corpus("long.txt").counts.lines == 0


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.jsonl.gz", "bomb.json.gz"])
def test_compressed_bombs(name):
    piece = {
        "bomb.txt.gz": b"a" * 2**20,
        "bomb.jsonl.gz": b'{"text": "aaaaaaaaaaaaaaaa"}\n' * 30_000,
        "bomb.json.gz": b" " * 2**20,
    }[name]
    with gzip.open(name, "wb", compresslevel=9) as file:
        for _ in range(2**27 // len(piece)):
            file.write(piece)
    assert Path(name).stat().st_size < 2**21
    quickly(name, name, "bytes for each compressed byte")
    if name == "bomb.txt.gz":  # the same, hidden from who asks for the size alone
        with gzip.open(name, "ab") as file:
            file.write(b"a")
        quickly(name, name, "bytes for each compressed byte")


def test_a_parquet_bomb():
    "A few kilobytes that say one long text a million times"
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    column = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 300_000, pyarrow.int32()), pyarrow.array(["a long text " * 100])
    )
    pyarrow.parquet.write_table(
        pyarrow.table([column.cast(pyarrow.string())], ["text"]), "bomb.parquet"
    )
    assert Path("bomb.parquet").stat().st_size < 100_000
    quickly("bomb.parquet", "bomb.parquet", "bytes for each compressed byte", seconds=15)


def test_text_that_compresses_well():
    "A log of 70 MB that a hundredth holds is text; so is anything up to 64 MB"
    line = "2026-01-02 03:04:05 INFO worker {} finished its task without a fault\n"
    text = "".join(line.format(i) for i in range(100_000)) * 10
    with gzip.open("log.txt.gz", "wb", compresslevel=1) as file:
        file.write(text.encode())
    with gzip.open("same.txt.gz", "wb") as file:
        file.write(b"The ink is dry.\n" * 2_000_000)
    assert load_corpus("log.txt.gz").counts.characters == len(text) > 2**26
    assert load_corpus("same.txt.gz").counts.lines == 2_000_000


def test_json_of_many_megabytes(monkeypatch):
    if not hasattr(os, "truncate"):
        pytest.skip("needs sparse files")
    put("huge.json", "[")
    os.truncate("huge.json", 2**40)
    quickly("huge.json", "huge.json", "too large", ".jsonl", seconds=1)


# damaged files


@pytest.fixture(scope="module")
def table():
    pytest.importorskip("pyarrow")
    import io

    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    texts = pyarrow.table(
        dict(
            text=[f"Story {i}: {hashlib.sha256(str(i).encode()).hexdigest()}" for i in range(3000)]
        )
    )
    pyarrow.parquet.write_table(
        texts,
        file,
        compression="zstd",
        row_group_size=1000,
        use_dictionary=False,
        write_page_checksum=True,
    )
    return file.getvalue()


@pytest.mark.parametrize("fault", ["page", "bit", "header", "footer", "cut", "length"])
def test_damaged_parquet(fault, table):
    raw = bytearray(table)
    if fault == "page":
        raw[len(raw) // 2 : len(raw) // 2 + 400] = os.urandom(400)
    elif fault == "bit":
        raw[len(raw) // 2] ^= 1
    elif fault == "header":
        raw[4:40] = bytes(36)
    elif fault == "footer":
        raw[-200:-100] = bytes(100)
    elif fault == "length":
        raw[-8:-4] = b"\xff\xff\xff\x7f"
    put("a.parquet", bytes(raw[: len(raw) // 2] if fault == "cut" else raw))
    refused("a.parquet", "a.parquet", "copy it again")


def test_columns_that_are_not_utf8():
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    raw = pyarrow.array([b"fine", "café".encode("latin-1")], pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table([column], ["text"]), "a.parquet")
    refused("a.parquet", "a.parquet", "rows 1 to", "not UTF-8")
    pyarrow.parquet.write_table(pyarrow.table([raw], ["text"]), "b.parquet")
    refused("b.parquet", "b.parquet, row 1", "bytes, not text")


# downloads


@pytest.fixture
def served(files, monkeypatch):
    "tinyshakespeare and one book of Project Gutenberg, from a server on this machine"
    import dataclasses

    body = ("The ink is dry. " * 500).encode()
    tiny = dict(
        corpora.CORPORA["tinyshakespeare"].files[0],
        url=f"{files.url}/input.txt",
        sha256=hashlib.sha256(body).hexdigest(),
        bytes=len(body),
    )
    books = dict(corpora.CORPORA["gutenberg"].files[0], url=f"{files.url}/{{id}}.txt")
    for name, entry in dict(tinyshakespeare=tiny, gutenberg=books).items():
        monkeypatch.setitem(
            corpora.CORPORA, name, dataclasses.replace(corpora.CORPORA[name], files=[entry])
        )
    monkeypatch.delenv("NEOX_DATA", raising=False)
    monkeypatch.setenv("NEOX_CACHE", str(Path("cache").resolve()))
    files.files = {"/input.txt": body, "/11.txt": book("X", "Text.").encode()}
    files.body = body
    return files


LOGIN = b"<!DOCTYPE html>\n<html><body>Welcome to the airport: log in</body></html>\n"


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-1] + b"x", lambda raw: raw[:100], lambda raw: b"", lambda raw: LOGIN],
    ids=["one byte", "cut", "empty", "login"],
)
def test_a_cached_download_is_verified(damage, served, capsys):
    assert load_corpus("tinyshakespeare").text == served.body.decode()
    cached = Path("cache/tinyshakespeare/input.txt")
    put(cached, damage(cached.read_bytes()))
    assert load_corpus("tinyshakespeare").text == served.body.decode()
    assert cached.read_bytes() == served.body and "damaged" in capsys.readouterr().err
    put(cached, damage(cached.read_bytes()))
    served.faults = {"/input.txt": 404}
    refused("tinyshakespeare", "damaged", "answers 404", "input.txt")


@pytest.mark.parametrize(
    "came",
    [
        LOGIN,
        b"\n<HTML><head>",
        b"",
        b"Sorry, too many requests.\n",
        book("X", "a", end=False).encode(),
        FRENCH.encode("utf-16"),
    ],
    ids=["login", "html", "empty", "words", "half", "utf-16"],
)
def test_what_is_no_book_is_not_kept(came, served):
    right = served.files["/11.txt"]
    served.files["/11.txt"] = came
    refused("gutenberg:11", "could not be downloaded", "what came is not the file")
    assert not Path("cache/gutenberg/11.txt").exists()
    put("cache/gutenberg/11.txt", came)  # kept by an older version
    served.files["/11.txt"] = right
    assert load_corpus("gutenberg:11").text == "Text.\n"
    asked = len(served.requests)
    assert load_corpus("gutenberg:11").text == "Text.\n" and len(served.requests) == asked


def test_large_files_are_hashed_once(served, monkeypatch):
    "A verified file is remembered by size and time, and looked at again when either changes"
    monkeypatch.setattr("shakespeare_neox.engine.downloads.REMEMBERED", 100)
    load_corpus("tinyshakespeare")
    load_corpus("tinyshakespeare")
    hashed = []
    whole = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: hashed.append(1) or whole(*args))
    load_corpus("tinyshakespeare")
    assert hashed == []
    os.utime("cache/tinyshakespeare/input.txt", ns=(1, 1))
    load_corpus("tinyshakespeare")
    assert hashed == [1] and load_corpus("tinyshakespeare").text == served.body.decode()


def test_own_copies_are_compared_and_read_as_they_are(served, monkeypatch, capsys):
    monkeypatch.setenv("NEOX_DATA", str(Path("mine").resolve()))
    put("mine/tinyshakespeare/input.txt", served.body)
    assert (
        load_corpus("tinyshakespeare").text == served.body.decode()
        and capsys.readouterr().err == ""
    )
    put("mine/tinyshakespeare/input.txt", b"An edition of my own.")
    assert load_corpus("tinyshakespeare").text == "An edition of my own."
    assert "not the published file" in capsys.readouterr().err and served.requests == []


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"a": {"about": "x"}}',
        '{"a": {}, "a": {}}',
        '{"a": {"about": "", "licence": "", "good_for": "", "where": "", "files": [{"path": '
        '"../x"}]}}',
    ],
)
def test_the_list_of_corpora_is_checked(content):
    put("corpora.json", content)
    with pytest.raises(NeoxError, match="corpora.json: not the list of known corpora"):
        corpora.read_sources(Path("corpora.json"))
