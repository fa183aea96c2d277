"""The story app: Streamlit's own test client, twenty visitors on websockets as a browser opens
them, a real Chromium, and what visitors do wrong"""

import html
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from urllib.request import urlopen

import psutil
import pytest
import torch
from browsers import NARROW, WIDE, axe, browser, serious_faults, set_screen, until  # noqa: F401
from conftest import refuses

from shakespeare_neox import app
from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.batching import BatchServer
from shakespeare_neox.engine.checkpoints import SHIPPED, STORIES, open_checkpoint, shipped
from shakespeare_neox.engine.serve import generate

pytest.importorskip("streamlit", reason="the app wants: pip install -e '.[app]'")
SCRIPT = str(app.SCRIPT)


@pytest.fixture(scope="module")
def bundled():
    return open_checkpoint("shakespeare")


def free_port():
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


@contextmanager
def serving(folder, model):
    "The command in a process of its own, with a model whose folder is removed once it is open"
    port = free_port()
    shutil.copytree(shipped(model), folder / "model")
    code = "from shakespeare_neox.app import neox_app_main; neox_app_main()"
    words = ["model", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], cwd=folder, stdout=log, stderr=log
        )
    address, end = f"127.0.0.1:{port}", time.monotonic() + 120
    while True:
        assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
        try:
            assert urlopen(f"http://{address}/_stcore/health", timeout=5).read() == b"ok"
            break
        except OSError:
            time.sleep(0.2)
    first = Visitor(address)  # the model is opened for the first visitor
    first.settled()
    first.close()
    shutil.rmtree(folder / "model")
    yield address, process, folder
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "A model that writes until it is stopped"
    with serving(tmp_path_factory.mktemp("served"), SHIPPED) as server:
        yield server


@pytest.fixture(scope="module", params=[STORIES, SHIPPED])
def served_model(request, tmp_path_factory):
    "Each of the models that come with the package"
    with serving(tmp_path_factory.mktemp("model"), request.param) as server:
        yield *server, request.param


class Visitor:
    "A page that is open somewhere: Streamlit's own messages over a websocket"

    def __init__(self, address, query=""):
        from websockets.sync.client import connect

        self.query = query
        self.socket = connect(
            f"ws://{address}/_stcore/stream", subprotocols=["streamlit"], max_size=None
        )
        self.buttons, self.texts, self.errors = {}, [], []
        self.run()

    def run(self, click=None):
        "Asks for the script to be run, as the page does at each click"
        from streamlit.proto.BackMsg_pb2 import BackMsg

        message = BackMsg()
        message.rerun_script.query_string = self.query
        if click:
            state = message.rerun_script.widget_states.widgets.add()
            state.id, state.trigger_value = self.buttons[click], True
        self.socket.send(message.SerializeToString())

    def receive(self, timeout=60):
        "Takes a message in; says whether the script has come to its end"
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        message = ForwardMsg.FromString(self.socket.recv(timeout=timeout))
        if message.WhichOneof("type") == "delta":
            element = message.delta.new_element
            kind = element.WhichOneof("type")
            if kind == "button":
                self.buttons[element.button.label] = element.button.id
            elif kind == "html":
                shown = re.sub("<[^>]*>", "", element.html.body)
                self.texts.append((time.monotonic(), html.unescape(shown)))
            elif kind == "alert":
                self.errors.append(element.alert.body)
        return message.WhichOneof("type") == "script_finished" and message.script_finished == 0

    def settled(self):
        "Waits for the end of a run"
        while not self.receive():
            pass

    def close(self):
        self.socket.close()


def opening_of(visitor, text):
    "The part of a drawn text that the model wrote"
    first = next(iter(app.OPENINGS.values()))
    return text.removeprefix(first) if text.startswith(first) else None


def write(visitor):
    "Clicks on Write and reads to the end; seconds to the first word, the text, its seconds"
    visitor.settled()
    start, first, last = time.monotonic(), None, ""
    visitor.texts.clear()
    visitor.run(click="Write")
    done = 0
    while done < 2:  # the script runs once more when the text is whole
        done += visitor.receive()
        for when, text in visitor.texts:
            written = opening_of(visitor, text)
            if written and first is None and " " in written.strip():
                first = when - start
            last = written or last
        visitor.texts.clear()
        if done and last and "Continue" in visitor.buttons:
            break
    return first, last, time.monotonic() - start


# without a browser


def visit(opening="MARIAN:\nThe ink is ", length=40, **state):
    from streamlit.testing.v1 import AppTest

    visitor = AppTest.from_file(SCRIPT, default_timeout=120)
    for name, value in dict(opening=opening, length=length, **state).items():
        visitor.session_state[name] = value
    return visitor.run()


def click(visitor, label):
    found = [button for button in visitor.button if button.label == label]
    return found[0].click().run()


def test_write_continue_edit_and_write_again(bundled):
    visitor = click(visit(), "Write")
    (first,) = visitor.session_state.story["texts"]
    expected = generate(
        *bundled, "MARIAN:\nThe ink is ", max_new_tokens=40, temperature=0.8, top_p=0.95
    )
    assert first == expected and not visitor.exception
    click(visitor, "Continue")
    (longer,) = visitor.session_state.story["texts"]
    assert longer.startswith(first) and len(longer) == len(first) + 40
    click(visitor, "Edit")
    assert visitor.session_state.opening == "MARIAN:\nThe ink is " + longer
    visitor.text_area(key="opening").set_value("MARIAN:\nThe ink is ").run()
    click(visitor, "Write")
    assert visitor.session_state.story["texts"][0] not in (first, longer)  # draws of its own
    assert len(visitor.session_state.history) == 2
    assert visitor.session_state.history[0]["texts"] == [longer]
    assert not visitor.exception and not visitor.error


def test_variants_and_surprise(bundled):
    visitor = click(visit(n=3), "Write")
    texts = list(visitor.session_state.story["texts"])
    assert len(set(texts)) == 3
    click(visitor, "Go on")
    after = visitor.session_state.story["texts"]
    assert len(after[0]) > len(texts[0]) and after[1:] == texts[1:]
    visitor.toggle[0].set_value(True).run()
    shown = [element.proto.body for element in visitor.get("html")]
    assert sum("nats" in body for body in shown) == 3 and not visitor.exception


def test_a_story_beyond_the_window_goes_on(bundled):
    window = bundled[0].config.max_position_embeddings
    visitor = click(visit(length=window), "Write")
    click(visitor, "Continue")
    assert len(visitor.session_state.story["texts"][0]) == 2 * window
    assert any("longer than the model can read" in each.value for each in visitor.markdown)


def test_repetition_is_noted():
    visitor = click(visit("ROMEO:\n", temperature=0.0, length=1000), "Write")
    repeats = app.repetition(visitor.session_state.story["texts"][0]) > 0.5
    assert any("repeats itself" in each.value for each in visitor.markdown) == repeats


@pytest.mark.parametrize(
    "opening, part",
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("\x89PNG\x00\x01", "no text"),
        ("half \ufffd", "no text"),
        ("a smile: \U0001f600", "U+1F600"),
        ("\u05d0\u05d1\u05d2", "U+05D0"),
        ("x" * (app.LONGEST_OPENING + 1), "shorten"),
    ],
)
def test_openings_that_cannot_be_continued(opening, part):
    visitor = click(visit(opening), "Write")
    assert [part in error.value for error in visitor.error] == [True]
    assert not visitor.exception and not visitor.session_state.story["texts"]
    assert "Stop" not in [button.label for button in visitor.button]
    visitor.text_area(key="opening").set_value("MARIAN:\n").run()
    click(visitor, "Write")
    assert visitor.session_state.story["texts"][0] and not visitor.error


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '<img src=x onerror="x">', "a & b"])
def test_signs_are_escaped(text):
    shown = app.as_html(text)
    assert shown.count("<") == 2 and html.escape(text) in shown and 'dir="auto"' in shown


def test_addresses(bundled):
    from streamlit.testing.v1 import AppTest

    visitor = AppTest.from_file(SCRIPT, default_timeout=120)
    asked = dict(temperature="0.3", n="99", top_k="x", seed="-1", length="1e9", min_p="nan")
    asked |= dict(top_p="1e999", __class__="x", __init__="x", __dict__="x", checked="x")
    for name, value in asked.items():
        visitor.query_params[name] = value
    visitor.run()
    assert visitor.session_state.temperature == 0.3 and visitor.session_state.n == app.Wish.n
    said = [each.value for each in visitor.warning]
    assert len(said) == 6 and not visitor.exception and all("is taken" in line for line in said)


def test_a_model_that_is_not_there(monkeypatch):
    "It is said, and what was typed is kept until another one is chosen"
    names = ["shakespeare", "no_such"]
    monkeypatch.setenv(app.MODELS, json.dumps(dict(names=names)))
    visitor = visit("My own beginning")
    visitor.selectbox[0].set_value("no_such").run()
    assert "no_such" in visitor.error[0].value and not visitor.exception
    visitor.selectbox[0].set_value("shakespeare").run()
    assert visitor.session_state.opening == "My own beginning" and not visitor.error


def test_colours_that_cannot_be_had():
    "One letter has no surprise; the page says so, once"
    visitor = visit("M", length=10)
    visitor.session_state.story = dict(opening="M", texts=[""], round=0)
    visitor.run()
    visitor.toggle[0].set_value(True).run()
    assert not visitor.exception and not visitor.error
    assert any("single token" in element.proto.body for element in visitor.get("html"))


# the command


def test_the_command_refuses(here, capsys):
    refuses(app.neox_app_main, ["no_such"], capsys, "no_such")
    refuses(app.neox_app_main, ["--port", "0"], capsys, "port")
    refuses(app.neox_app_main, ["--port", "70000"], capsys, "port")
    refuses(app.neox_app_main, ["--max_rows", "0"], capsys, "max_rows")
    for host in ("203.0.113.7", "\u00e9" * 70, "no such host"):
        refuses(app.neox_app_main, ["--host", host], capsys, host)
    refuses(app.neox_app_main, ["--host", ""], capsys, "host: give an address")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refuses(app.neox_app_main, ["--port", port], capsys, str(port), "another --port")
    assert list(here.iterdir()) == []


def test_two_apps_on_one_port(served, capsys):
    port = served[0].split(":")[1]
    refuses(app.neox_app_main, ["shakespeare", "--port", port], capsys, port)


# visitors


def test_only_this_machine_can_reach_it(served):
    address, process, folder = served
    listening = [c for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"]
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_twenty_visitors_at_once(served_model, capsys):
    "Each gets the text of their own seed, whole; nobody waits for the others"
    address, process, folder, name = served_model
    visitors = [Visitor(address, f"seed={50 * n}&length=100") for n in range(20)]
    found, together = {}, threading.Barrier(len(visitors))

    def come(number):
        together.wait()
        found[number] = write(visitors[number])

    threads = [threading.Thread(target=come, args=(n,)) for n in range(len(visitors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for visitor in visitors:
        visitor.close()
    opening = next(iter(app.OPENINGS.values()))
    model, tokenizer = open_checkpoint(name)
    how = dict(max_new_tokens=100, temperature=0.8, top_p=0.95)
    for number in (0, 7, 19):
        assert found[number][1] == generate(model, tokenizer, opening, seed=50 * number, **how)
    assert len({text for _, text, _ in found.values()}) == 20
    firsts = sorted(first for first, _, _ in found.values())
    speeds = sorted(len(text.split()) / seconds for _, text, seconds in found.values())
    with capsys.disabled():
        print(
            f"\n20 visitors of {name}: first word after {firsts[10]:.2f} s "
            f"(at most {firsts[-1]:.2f}), {speeds[10]:.1f} words a second each"
        )


def test_who_leaves_costs_nothing_any_more(served):
    "The work that goes on after a tab was closed, in seconds of the processor: whatever the load"
    address, process, folder = served
    visitor = Visitor(address, "length=1000&n=4")
    visitor.settled()
    visitor.run(click="Write")
    while sum(len(opening_of(visitor, text) or "") for _, text in visitor.texts) < 20:
        visitor.receive()
    used = psutil.Process(process.pid)
    visitor.socket.socket.shutdown(socket.SHUT_RDWR)  # a cut connection, no farewell
    visitor.socket.socket.close()
    time.sleep(1)
    before = sum(used.cpu_times()[:2])
    time.sleep(3)
    assert sum(used.cpu_times()[:2]) - before < 0.5


def test_stop_keeps_what_was_written(served):
    address, process, folder = served
    visitor = Visitor(address, "length=1000")
    visitor.settled()
    visitor.run(click="Write")
    while not (visitor.texts and len(opening_of(visitor, visitor.texts[-1][1]) or "") > 20):
        visitor.receive()
    written = opening_of(visitor, visitor.texts[-1][1])
    visitor.run(click="Stop")
    visitor.texts.clear()
    while "Continue" not in visitor.buttons:
        visitor.receive()
    visitor.settled()
    kept = opening_of(visitor, visitor.texts[0][1])
    assert kept.startswith(written) and len(kept) < 1000
    visitor.close()


def test_nothing_is_logged_or_written(served):
    "After all these visits: no opening, no text, no file"
    address, process, folder = served
    assert [path.name for path in folder.iterdir()] == ["log"]
    log = (folder / "log").read_text()
    assert "ROMEO" not in log and "Traceback" not in log, log


# the server


@pytest.fixture
def server(bundled):
    made = BatchServer(*bundled, max_rows=2, max_waiting=2)
    yield made
    made.close()


def all_of(ticket):
    return "".join(ticket.read())


def test_a_step_that_fails_is_told_and_the_server_goes_on(server, monkeypatch):
    "Each reader gets an error of one line, after the text that came before it"
    step, calls = server.decoder.step_each, []

    def broken(sampling):
        calls.append(1)
        if len(calls) == 9:
            raise RuntimeError("out of memory")
        return step(sampling)

    monkeypatch.setattr(server.decoder, "step_each", broken)
    tickets = [server.submit("MARIAN:\n", max_new_tokens=200, seed=n) for n in (1, 2)]
    seen = []
    with pytest.raises(NeoxError, match="could not go on .out of memory.; try again"):
        for texts in app.growing(tickets):
            seen.append(texts)
    assert max(map(len, seen[-1])) > 2 and len(all_of(server.submit("A", max_new_tokens=9))) == 9


def test_a_prompt_that_cannot_be_taken_in_fails_alone(server, monkeypatch):
    admit, failing = server.decoder.admit, [True, False, True]

    def refuse(*given):
        if failing and failing.pop(0):
            raise MemoryError("no room")
        admit(*given)

    monkeypatch.setattr(server.decoder, "admit", refuse)
    with server.changed:  # so that the server sees all of them at once
        tickets = [server.submit("A", max_new_tokens=9, seed=n) for n in range(4)]
    found = []
    for ticket in tickets:
        try:
            found.append(len(all_of(ticket)))
        except NeoxError as e:
            found.append("no room" in str(e))
    assert sorted(map(str, found)) == ["9", "9", "True", "True"]
    assert server.thread.is_alive() and not server.writing and not server.decoder.rows


def test_a_row_without_numbers_leaves_alone(server, monkeypatch):
    logits = server.decoder.known_logits

    def damaged():
        found = logits()
        for place, row in enumerate(server.decoder.rows):
            if row.number == 2 and len(row.ids) > 20:
                found[place] = torch.nan
        return found

    monkeypatch.setattr(server.decoder, "known_logits", damaged)
    good, bad = (server.submit("MARIAN:\n", max_new_tokens=40, seed=n) for n in (1, 2))
    assert len(all_of(good)) == 40
    with pytest.raises(NeoxError, match="NaN"):
        all_of(bad)


def test_who_waits_can_give_up_and_is_not_kept_waiting(server):
    long = [server.submit("A", max_new_tokens=10**6, seed=n) for n in (1, 2)]
    patient = server.submit("A", max_new_tokens=9)
    start = time.monotonic()
    late = server.submit("A", seconds=0.2)
    with pytest.raises(NeoxError, match="all 2 rows are taken"):
        server.submit("A")
    assert all_of(late) == "" and late.late and time.monotonic() - start < 5
    given_up = server.submit("A")
    given_up.cancel()
    assert all_of(given_up) == "" and not given_up.late
    for ticket in long:
        ticket.cancel()
    assert len(all_of(patient)) == 9


def test_settings_that_are_not_of_the_sampling(server):
    for wrong in (dict(batch_size=3), dict(temprature=1), dict(stop=[""]), dict(top_p=7)):
        with pytest.raises(NeoxError):
            server.submit("A", **wrong)
    assert all_of(server.submit("A", max_new_tokens=0)) == ""
    whole = "a" * server.model.config.max_position_embeddings
    assert len(all_of(server.submit(whole, max_new_tokens=9, seed=2**62))) == 9


def test_a_process_that_ends_while_somebody_reads(here):
    "The server's thread ends before the interpreter does, which it would abort within torch"
    code = (
        "import time; from shakespeare_neox.engine.batching import BatchServer; "
        "from shakespeare_neox.engine.checkpoints import open_checkpoint; "
        "s = BatchServer(*open_checkpoint('shakespeare')); "
        "[s.submit('A', max_new_tokens=10**6) for _ in range(4)]; time.sleep(0.5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# a busy house, and clicks that come too late


class Visit(dict):
    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__


def a_visit():
    story = dict(opening="", texts=[], round=-1)
    return Visit(opening="MARIAN:\n", story=story, history=[], notes=[])


def draw_nothing(number):
    pass


def test_a_busy_house_costs_nobody_their_text(server):
    visit = a_visit()
    app.start_job(visit, "new")
    app.do_job(server, visit, app.Wish(n=1, length=20), draw_nothing)
    before = json.dumps([visit.story, visit.history])
    reader = server.submit("A", max_new_tokens=10**6)
    app.start_job(visit, "new")
    with pytest.raises(NeoxError, match="try again"):
        app.do_job(server, visit, app.Wish(n=4, length=20), draw_nothing)
    assert json.dumps([visit.story, visit.history]) == before
    reader.cancel()
    all_of(reader)
    assert len(all_of(server.submit("A", max_new_tokens=9))) == 9  # nobody is written for


def test_a_button_of_texts_that_are_gone(server):
    visit = a_visit()
    for n in (2, 1):
        app.start_job(visit, "new")
        app.do_job(server, visit, app.Wish(n=n, length=20), draw_nothing)
    before = json.dumps(visit.story)
    app.start_job(visit, "on", [1], of_round=0)
    app.do_job(server, visit, app.Wish(), draw_nothing)
    assert json.dumps(visit.story) == before


def test_half_a_character_at_the_end_is_not_kept(server):
    visit = a_visit()
    app.take_opening(visit, "The sea\ufffd")
    assert visit.opening == "The sea"
    visit.story = dict(opening="MARIAN:\n", texts=["The sea\ufffd"], round=0)
    tickets = [server.submit("A", max_new_tokens=5)]
    app.write_on(visit.story, [0], tickets, draw_nothing)
    assert visit.story["texts"][0].startswith("The sea") and "\ufffd" not in visit.story["texts"][0]


def test_a_visit_remembers_so_many_stories(server, monkeypatch):
    monkeypatch.setattr(app, "KEPT", 3)
    visit = a_visit()
    for _ in range(5):
        app.start_job(visit, "new")
        app.do_job(server, visit, app.Wish(length=10), draw_nothing)
    assert [story["round"] for story in visit.history] == [2, 3, 4]


# a real browser


CLICK = """
document.activeElement.blur();  // a hand that clicks elsewhere does it, too
const button = [...document.querySelectorAll('button')].find(b => b.innerText.trim() == %r);
if (button && !button.disabled) button.click();
return !!button && !button.disabled;
"""


def press(browser, label):
    "Clicks on a button, once what was typed has been taken over"
    browser.execute_script("document.activeElement.blur()")
    time.sleep(1)
    return until(browser, CLICK % label, 60)


HAS = """
const there = [...document.querySelectorAll('button')].map(b => b.innerText.trim());
return there.includes(%r);
"""
IDLE = "return document.querySelector('.stApp').dataset.testScriptState == 'notRunning'"
TEXT = "return (document.querySelector('[role=log]') || {}).innerText || ''"


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_chromium(served, browser, axe, width, theme):  # noqa: F811
    "Type, write, watch it grow, stop, go on; no fault for who cannot see, nothing too wide"
    address, process, folder = served
    set_screen(browser, width, theme)
    browser.get(f"http://{address}/?length=1000")
    assert until(browser, "return !!document.querySelector('textarea')", 60)
    area = browser.find_element("css selector", "textarea")
    area.send_keys("The ink ")
    assert press(browser, "Write")
    assert until(browser, TEXT + ".length > 60", 60), "nothing is written"
    first = browser.execute_script(TEXT)
    assert "The ink" in first, "what was typed is what is continued"
    assert until(browser, f"return ({TEXT.removeprefix('return ')}).length > {len(first)}", 60)
    assert press(browser, "Stop")
    assert press(browser, "Continue")
    assert press(browser, "Stop")
    assert until(browser, HAS % "Edit", 60) and until(browser, IDLE)
    assert browser.execute_script(TEXT).startswith(first[:40])
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= window.innerWidth"
    )
    faults = serious_faults(browser, axe)
    assert not faults, faults
