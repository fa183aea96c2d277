"""Functions, the quality filter, lessons by rule and the three diets: what goes wrong, and what
must not change. Programs here are ours: they run without isolation where there is none."""

import ast
import hashlib
import io
import json
import keyword
import os
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import numpy as np
import pytest
from conftest import refuses, succeeds

from shakespeare_neox.engine.assistant import AnswerFile, Assistant, ask_assistant, ask_once
from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.exercises import all_exercises
from shakespeare_neox.engine.functions import (
    Functions,
    add_file,
    deduplicated,
    normal_form,
    read_functions,
    split_by_package,
)
from shakespeare_neox.engine.pass_rate import exercise_overlap
from shakespeare_neox.engine.quality import (
    filter_scores,
    judged_functions,
    outside_names,
    read_judgments,
    rubric_fails,
    verdict_of,
)
from shakespeare_neox.engine.recipe import load_config
from shakespeare_neox.engine.run import neox_train_main
from shakespeare_neox.engine.synthetic import (
    ALONE,
    CHANGES,
    CONDITIONS,
    FIRST_STEPS,
    KINDS,
    THINGS,
    draft_of_answer,
    held_out_shapes,
    invented,
    make_draft,
    make_synthetic,
    make_task,
    proven,
    shapes_in,
    wrong_pieces,
)
from shakespeare_neox.model import count_parameters
from shakespeare_neox.textbooks import DIETS, neox_textbooks_main

OURS = dict(allow_code_execution=True, unsafe=True)
FEW = "json,heapq,statistics,email,collections,textwrap,tempfile,mailbox"


def functions_of(text, file="shelf.py"):
    found = Functions("a trial", [])
    add_file(found, file, text if isinstance(text, bytes) else text.encode(), "ours")
    return found


# functions


def test_functions_are_cut_out_whole():
    text = (
        "class A:\n    @property\n    def f(self):\n        '''One\n  two'''\n        return '''\n"
        "left'''\n\n    async def g(self): return 1\nif True:\n\tdef h():\n\t\treturn 2\n"
        "for _ in ():\n    def i(): pass\nmatch 1:\n    case 1:\n        def j(): pass\n"
    )
    found = functions_of(text)
    assert [one.name for one in found.functions] == [
        f"shelf.{name}" for name in ("A.f", "A.g", "h", "i", "j")
    ]
    for one in found.functions:
        assert len(ast.parse(one.text).body) == 1
        assert one.text.split("\n")[0] in text.replace("    @", "@").replace("    async", "async")
    assert found.functions[0].text.startswith("@property\ndef f(self):\n")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_newlines(newline):
    found = functions_of("def f():\n    return 1\n".replace("\n", newline))
    assert found.functions[0].text == "def f():\n    return 1\n"


def test_form_feeds_do_not_shift_lines():
    found = functions_of("x = 1\n\x0c\ndef f():\n    return 1\n\x0c\ndef g():\n    return 2\n")
    assert [one.text for one in found.functions] == [
        "def f():\n    return 1\n",
        "def g():\n    return 2\n",
    ]


@pytest.mark.parametrize(
    "raw, why",
    [
        (b"# coding: utf-16\ndef f(): pass\n", "not decodable"),
        ("def größe(): pass\n".encode("latin-1"), "not decodable"),
        (b"\xff\xfe" + "def f(): pass\n".encode("utf-16-le"), "not decodable"),
        (b"def f(:\n", "does not parse"),
        (b"def f():\n\treturn 1\n        return 2\n", "does not parse"),
        (b"x = " + b"-" * 100_000 + b"1", "very long lines"),
        (b"x = (\n" + b"-\n" * 100_000 + b"1)", "does not parse"),
    ],
)
def test_bad_files_are_counted(raw, why):
    found = functions_of(raw)
    assert not found.functions and found.left_out == {f"files: {why}": 1}


def test_declared_encodings():
    text = "# -*- coding: cp1252 -*-\ndef preis():\n    return '5 €'\n"
    assert "5 €" in functions_of(text.encode("cp1252")).functions[0].text
    assert functions_of("\ufeffdef f(): pass\n".encode()).functions


def test_damaged_archives(tmp_path):
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(NeoxError, match="neither a folder nor"):
        read_functions(tmp_path / "torn.zip")
    good = tmp_path / "good.zip"
    with zipfile.ZipFile(good, "w") as archive:
        archive.writestr("a/one.py", "def f(): return 1\n" * 50)
        archive.writestr("../../two.py", "def g(): return 1\n")
    raw = bytearray(good.read_bytes())
    raw[45] ^= 255
    good.write_bytes(raw)
    found = read_functions(good)
    assert sum(found.left_out.values()) == 1 and found.functions[0].name.endswith("g")
    assert not (tmp_path.parent / "two.py").exists()


def test_links_in_archives_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("passwd.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        member = tarfile.TarInfo("a.py")
        raw = b"def f(): return 1\n"
        member.size = len(raw)
        archive.addfile(member, io.BytesIO(raw))
    assert len(read_functions(tmp_path / "links.tar")) == 1


def test_copies_and_parts():
    pytest.importorskip("datasketch")
    base = (
        "def f{0}(books):\n    total = 0\n    for book in books:\n        total += book*{1}\n"
        "    return total\n"
    )
    found = Functions("a trial", [])
    for number in range(6):
        add_file(found, f"p{number}/m.py", base.format(number, number + 2).encode(), "ours")
        add_file(found, f"p{number}/n.py", base.format(number, number + 2).encode(), "ours")
    unique, copies = deduplicated(found, 0.99)
    assert len(unique) == 6 and all(one.exact for one in copies)
    near, copies = deduplicated(found, 0.3)
    assert len(near) == 1 and len(near) + len(copies) == len(found)
    with pytest.raises(NeoxError, match="threshold"):
        deduplicated(found, 0)
    for seed in range(20):
        try:
            parts = split_by_package(unique, 0.5, seed)
        except NeoxError:
            continue
        sides = [{one.package for one in parts[part]} for part in ("train", "valid")]
        assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 6


def test_normal_form_keeps_what_matters():
    one = "def f(a):\n    'A text'\n    return a + 1\n"
    assert normal_form(one) == normal_form(one.replace("A text", "Another"))
    assert normal_form(one) != normal_form(one.replace("+", "-"))
    assert normal_form("def f():\n    'only this'\n") == "def f():\n    pass"


@pytest.mark.parametrize("field", ["content", "code", "text"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_dataset_is_read_by_project(tmp_path, monkeypatch, kind, field):
    "Python of two projects and of none; what does not parse is counted"
    rows = [dict(repo_name="a/b", license="mit"), dict(repo_name="a/b", license="mit")]
    rows += [dict(repo_name="c/d", license="bsd"), dict(repo_name=None, license=None)]
    codes = [f"def f_{n}(x):\n    return {n}\n" for n in range(3)] + ["def f(:", "", None]
    rows += [dict(repo_name="c/d", license="bsd")] * 2
    rows = [{**row, field: code} for row, code in zip(rows, codes)]
    folder = tmp_path / "hf" / "me" / "code"
    folder.mkdir(parents=True)
    if kind == "jsonl":
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "train.jsonl").write_text(lines)
    else:
        pytest.importorskip("pyarrow.parquet").write_table(
            pytest.importorskip("pyarrow").Table.from_pylist(rows), folder / "train.parquet"
        )
    monkeypatch.setenv("NEOX_DATA", str(tmp_path))
    found = read_functions("hf:me/code")
    assert [(one.package, one.licence) for one in found.functions] == [
        ("a_b", "mit"),
        ("a_b", "mit"),
        ("c_d", "bsd"),
    ]
    assert found.left_out == {"files: does not parse": 1}


def test_a_dataset_without_code_is_refused(tmp_path, monkeypatch, capsys):
    pytest.importorskip("datasketch")
    folder = tmp_path / "hf" / "me" / "code"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(json.dumps(dict(title="x")) + "\n")
    monkeypatch.setenv("NEOX_DATA", str(tmp_path))
    words = ["--source", "hf:me/code", "--allow_code_execution", "--unsafe"]
    refuses(neox_textbooks_main, words, capsys, "line 1", "content, code, text")
    (folder / "train.jsonl").rename(folder / "notes.txt")
    refuses(neox_textbooks_main, words, capsys, "hf:me/code", "no records")


# the assistant


class Answering(BaseHTTPRequestHandler):
    "Answers with what its server holds"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.headers_seen.append(dict(self.headers))
        status, body, headers = self.server.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    made.answers, made.headers_seen = [], []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def said(text):
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def asking(server, **settings):
    usual = dict(timeout=5, tries=3, pause=0.01, key="")
    return Assistant(f"http://127.0.0.1:{server.server_port}/v1/", "small", **usual | settings)


def test_key_is_sent_and_kept_nowhere(server, tmp_path):
    server.answers = [(200, said("yes"), {})]
    assistant = asking(server, key="a-secret")
    ask_assistant(assistant, ["?"], tmp_path / "a.jsonl")
    assert server.headers_seen[0]["Authorization"] == "Bearer a-secret"
    assert "a-secret" not in repr(assistant) + (tmp_path / "a.jsonl").read_text()


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_hopeless_answers_are_not_repeated(server, status):
    server.answers = [(status, b"no", {})]
    with pytest.raises(NeoxError, match=str(status)):
        ask_once(asking(server), "?")
    assert not server.answers


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_busy_servers_are_asked_again(server, status):
    later = (status, b"later", {"Retry-After": "0"})
    server.answers = [later, (200, b"{", {}), (200, said("ok"), {})]
    assert ask_once(asking(server), "?").text == "ok"


def test_what_was_answered_before_an_error_is_kept(server, tmp_path):
    file = tmp_path / "deep" / "a.jsonl"
    server.answers = [(200, said("one"), {}), (200, said("two"), {}), (401, b"", {})]
    with pytest.raises(NeoxError, match="key is not accepted"):
        ask_assistant(asking(server), ["1", "2", "3", "4"], file, workers=1)
    assert [one.text for one in AnswerFile(file).replies.values()] == ["one", "two"]
    server.answers = [(200, said("three"), {}), (200, said("four"), {})]
    replies = ask_assistant(asking(server), ["1", "2", "3", "4"], file, workers=1)
    assert [one.text for one in replies] == ["one", "two", "three", "four"]


def test_verdicts():
    for text, verdict in {
        "YES": True,
        "no.": False,
        "\n\n**Yes** because": True,
        "Yesterday": None,
        "I say no": None,
        "": None,
    }.items():
        assert verdict_of(text) is verdict


# the filter


def test_judgments_are_of_this_library():
    told = read_judgments()
    assert len(told["judgments"]) == 200 == len({one["digest"] for one in told["judgments"]})
    assert not any({"text", "code"} & set(one) for one in told["judgments"])
    found, good = judged_functions()
    assert len(found) + sum(found.left_out.values()) == 200 and len(good) == len(found)
    if sys.version_info[:3] == (3, 11, 7):
        assert len(found) == 200


def test_scores():
    scores = filter_scores([1, 1, 1, 0], [1, 0, 0, 1])
    assert scores["precision"][0] == pytest.approx(1 / 3) and scores["recall"][0] == 0.5
    nothing = filter_scores([0, 0], [1, 0])
    assert nothing["precision"][0] == 0 and nothing["recall"][0] == 0


def test_rubric():
    good = (
        "def mean(values):\n    '''The mean of some numbers'''\n    total = sum(values)\n"
        "    return total/len(values)\n"
    )
    assert rubric_fails(good) == []
    mute = good.replace("total", "t").replace("values", "v")
    mute = mute.replace("return t", "u = t\n    return u")
    for wrong, word in {
        good.replace("'''The mean of some numbers'''", "pass"): "docstring",
        good.replace("return total/len(values)", "print(total)"): "gives",
        good.replace("sum(values)", "_sum(values)"): "stands alone",
        good.replace("sum(values)", "self.a + self.b + self.c"): "object",
        good.replace("    return", "    total += 1\n" * 40 + "    return"): "short",
        mute: "speaks",
    }.items():
        assert [question for question in rubric_fails(wrong) if word in question], wrong


def test_outside_names():
    text = (
        "def f(a, *b, c=D, **e):\n    def g():\n        nonlocal a\n        return a + h\n"
        "    import os\n    return [x for x in b if os.sep] + [g, len, re]\n"
    )
    assert outside_names(text) == {"h"}


def test_forest_is_no_pickle(tmp_path):
    pytest.importorskip("skops")
    from shakespeare_neox.engine.quality import open_forest, train_forest

    rng = np.random.default_rng(0)
    means = rng.normal(size=(60, 4)).astype(np.float32)
    forest = train_forest(means, means[:, 0] > 0, trees=40)
    import pickle

    import skops.io

    skops.io.dump(forest, tmp_path / "good.skops")
    again = open_forest(tmp_path / "good.skops")
    assert (again.predict_proba(means) == forest.predict_proba(means)).all()
    (tmp_path / "bad.skops").write_bytes(pickle.dumps(forest))
    skops.io.dump([1], tmp_path / "list.skops")
    skops.io.dump(os.system, tmp_path / "system.skops")
    for name in ("bad", "list", "system", "absent"):
        with pytest.raises(NeoxError):
            open_forest(tmp_path / f"{name}.skops")


# lessons by rule


def test_pieces():
    assert wrong_pieces(CONDITIONS + CHANGES) == []


@pytest.mark.parametrize("kind", dict.fromkeys(KINDS), ids=lambda kind: kind.__name__)
def test_each_way_of_each_kind(kind):
    "All bodies of a task give the same answers, and do not always give the same one"
    for seed in range(12):
        rng = Random(seed)
        task = make_task(rng, *rng.sample(THINGS, 2), kind)
        for way in range(len(task.bodies)):
            names = {}
            exec(task.code(way), names)
            values = [eval(task.call(number), names) for number in range(len(task.inputs))]
            assert list(map(repr, values)) == list(map(repr, task.answers)), task.code(way)
        assert task.doc[0].isupper() and task.doc.endswith(".") and ",," not in task.doc


def test_held_out_solutions():
    shapes = held_out_shapes()
    for one in all_exercises():
        assert shapes_in(one.prompt + one.solution) <= shapes
    assert not shapes_in("def f(laps):\n    return laps**3 - 5\n") & shapes


@pytest.mark.parametrize("given", ALONE)
def test_steps_alone_are_no_exercises(given):
    "What stands alone is not asked for; what is asked for does not stand alone"
    parameters = "x, y" if given == "two numbers" else "x"
    held_out = held_out_shapes()

    def shapes(pieces):
        codes = [piece.code.format(x="x", y="y", k=3) for piece in pieces]
        return [shapes_in(f"def f({parameters}):\n    return {code}\n") for code in codes]

    assert not any(shape & held_out for shape in shapes(ALONE[given]))
    assert all(shape <= held_out for shape in shapes(FIRST_STEPS[given]))


def test_invented_words():
    "No word of Python, and hardly one twice"
    rng = Random(5)
    words = [invented(rng) for _ in range(1000)]
    assert len(set(words)) > 900 and not any(keyword.iskeyword(word) for word in words)
    assert all(word.isidentifier() and word.endswith("s") for word in words)


def test_lessons():
    pytest.importorskip("datasketch")
    made = make_synthetic(40_000, seed=3, **OURS)
    texts = [text for _, text in made.documents]
    assert 40_000 <= made.size + 4000 and len(set(texts)) == len(texts)
    assert not any(exercise_overlap("\n".join(texts)).values())
    assert "\0" not in "".join(texts)
    assert texts == [text for _, text in make_synthetic(40_000, seed=3, **OURS).documents]
    assert texts != [text for _, text in make_synthetic(40_000, seed=4, **OURS).documents]


def test_wrong_drafts_are_dropped():
    from dataclasses import replace

    good = [make_draft(number) for number in range(1, 13, 2)]
    bad = [replace(one, expected=(*one.expected[:-1], "'another'")) for one in good]
    kept, dropped = proven(good + bad, **OURS)
    assert [draft for draft, _ in kept] == good and dropped == {"computed something else": 6}


def test_answers_without_code_are_no_lessons():
    for text in ("", "No.", "```python\nx = 1\n```", "```python\ndef f(:\n```", "def f(): pass"):
        assert draft_of_answer(text, "lists") is None
    assert draft_of_answer("```py\ndef f(): return 1\n```\n", "lists").program


# the command


def test_command(tmp_path, capsys):
    pytest.importorskip("datasketch")
    words = ["--packages", FEW, "--size", "15000", "--allow_code_execution", "--unsafe"]
    neox_textbooks_main(["--out", str(tmp_path / "one"), *words])
    neox_textbooks_main(["--out", str(tmp_path / "two"), *words])
    assert capsys.readouterr().out.split() == [str(tmp_path / "one"), str(tmp_path / "two")]
    manifests = [json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("one", "two")]
    assert manifests[0] == manifests[1]
    for name, facts in manifests[0]["files"].items():
        raw = (tmp_path / "one" / name).read_bytes()
        records = [json.loads(line) for line in raw.decode().splitlines()]
        assert hashlib.sha256(raw).hexdigest() == facts["sha256"]
        assert len(records) == facts["documents"] and all(one["licence"] for one in records)
    read = {
        diet: {json.loads(line)["text"] for line in (tmp_path / f"one/{diet}/train.jsonl").open()}
        for diet in DIETS
    }
    assert read["filtered"] < read["raw"] and read["filtered"] < read["textbooks"]
    assert not any(exercise_overlap("\n".join(set().union(*read.values()))).values())
    refuses(neox_textbooks_main, ["--out", tmp_path / "one", *words], capsys, "--replace")
    neox_textbooks_main(["--out", str(tmp_path / "one"), "--replace", *words])


def test_diets_are_trained_on(tmp_path):
    "As the notes of the command say"
    pytest.importorskip("datasketch")
    from shakespeare_neox.engine.run import neox_train_main

    words = ["--packages", FEW, "--size", "5000", "--allow_code_execution", "--unsafe"]
    neox_textbooks_main(["--out", str(tmp_path / "diets"), *words])
    few = ["train_iters=2", "eval_interval=2", "checkpoint_factor=2", "bpe_vocab_size=300"]
    data = f"data_path={tmp_path}/diets/textbooks"
    run = f"{tmp_path}/run"
    neox_train_main(["quickstart", data, "vocab_file=", *few, "--checkpoint_dir", run])
    assert (tmp_path / "run" / "best").is_dir()


def test_command_refuses(tmp_path, capsys):
    pytest.importorskip("datasketch")
    out, may = ["--out", tmp_path / "no"], ["--allow_code_execution", "--unsafe"]
    refuses(neox_textbooks_main, out, capsys, "--allow_code_execution")
    refuses(neox_textbooks_main, [*out, *may, "--size", "1"], capsys, "size")
    refuses(neox_textbooks_main, [*out, *may, "--packages", "nothing"], capsys, "no Python")
    refuses(neox_textbooks_main, [*out, *may, "--source", tmp_path / "x"], capsys, "no such folder")
    refuses(neox_textbooks_main, [*out, *may, "--lessons", "3"], capsys, "together")
    words = [*out, *may, "--lessons", "3", "--assistant_url", "here", "--assistant_model", "m"]
    refuses(neox_textbooks_main, words, capsys, "no address")
    refuses(
        neox_textbooks_main,
        [*out, *may, "--packages", FEW, "--filter_path", tmp_path / "filter"],
        capsys,
        "filter",
        steps=True,
    )
    assert not (tmp_path / "no").exists() and not list(tmp_path.iterdir())


# recipes for a larger machine


@pytest.mark.parametrize(
    ("name", "millions", "billions"), [("125m", 124.4, 2.62), ("350m", 350.2, 7.03)]
)
def test_recipes(name, millions, billions):
    recipe = load_config(f"textbooks_{name}")
    config, c = recipe.model_config(recipe.train.bpe_vocab_size), recipe.train
    assert sum(count_parameters(config).values()) / 1e6 == pytest.approx(millions, abs=0.1)
    at_once = c.train_micro_batch_size_per_gpu * c.gradient_accumulation_steps
    assert c.train_iters * at_once * config.seq_length / 1e9 == pytest.approx(billions, abs=0.01)
    assert config.gpt_j_residual and c.compile == "on" and c.texts == "diets/textbooks"


@pytest.mark.parametrize("name", ["125m", "350m"])
def test_recipes_train_on_a_diet(name, tmp_path, monkeypatch, capsys):
    "Their blocks in small, on records as neox_textbooks writes them; all passes of a step count"
    monkeypatch.chdir(tmp_path)
    records = [dict(text=f"def f_{n}(x):\n    return x + {n}\n") for n in range(300)]
    for part, those in dict(train=records[:250], valid=records[250:]).items():
        path = tmp_path / "diets" / "textbooks" / f"{part}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(one) + "\n" for one in those))
    words = ["bpe_vocab_size=300", "seq_length=32", "max_position_embeddings=32"]
    words += ["num_layers=1", "hidden_size=32", "num_attention_heads=2", "compile=off"]
    said = succeeds(neox_train_main, [f"textbooks_{name}", "--dry_run", *words], capsys)
    assert "tokens to train on" in said.out and not Path("runs").exists()
