"""Programs that mean harm, run in the sandbox: every one of them fails, and nothing is harmed. Each
attack is run a second time with a hole in the walls, where it must succeed: otherwise the first run
would show nothing."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from shakespeare_neox.engine import isolation, sandbox, supervisor
from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.sandbox import Limits, Sandbox, run_program, run_programs

WHOLE = {
    Path(module.__file__).name: Path(module.__file__).read_text(encoding="utf-8")
    for module in (isolation, supervisor)
}
SECRET = "a secret of the host"


def missing():
    "What keeps programs from being isolated on this machine"
    server, problem = sandbox.checked_server()
    if server:
        sandbox.stop_server(server)
    return problem


PROBLEM = missing()
isolated = pytest.mark.skipif(bool(PROBLEM), reason=f"no isolation here: {PROBLEM}")


# the host, with things that can be harmed


def of_nobody():
    "How subprocess starts a process of the user that programs have outside of their namespaces"
    return dict(user=isolation.NOBODY, group=isolation.NOBODY) if os.geteuid() == 0 else {}


@pytest.fixture
def host(monkeypatch, tmp_path):
    "A folder that everybody may write to, a process, a server, and a secret in the environment"
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o777)
    secret = folder / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o666)
    monkeypatch.setenv("NEOX_TOKEN", SECRET)
    monkeypatch.setenv("HOME", str(folder))
    victim = subprocess.Popen(["sleep", "600"], **of_nobody())
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    yield SimpleNamespace(
        folder=folder,
        secret=secret,
        victim=victim,
        listener=listener,
        port=listener.getsockname()[1],
        code=tmp_path / "code",
    )
    victim.kill()
    victim.wait()
    listener.close()
    shutil.rmtree(folder, ignore_errors=True)


def running(host):
    "The processes of this test's sandboxes, by their command line"
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if (
                str(host.code) in " ".join(process.cmdline())
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


def gone(host, but=(), seconds=5):
    "Whether none of them is left but these, soon: to end a namespace takes the kernel a moment"
    end = time.monotonic() + seconds
    while {each.pid for each in running(host)} - set(but) and time.monotonic() < end:
        time.sleep(0.05)
    return not {each.pid for each in running(host)} - set(but)


def with_holes(monkeypatch, host, holes):
    "Lets sandboxes run this library's text with parts of it replaced"
    texts = dict(WHOLE)
    for old, new in holes:
        files = [name for name in texts if old in texts[name]]
        assert files, f"no such part: {old}"
        for name in files:
            texts[name] = texts[name].replace(old, new)
    host.code.mkdir(exist_ok=True)
    for name, text in texts.items():
        (host.code / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(sandbox, "FILES", [host.code / name for name in texts])
    if holes:
        monkeypatch.setattr(sandbox, "LOOK_AROUND", "")


def attacked(host, attack, whole=True):
    "Runs an attack; the outcome, and the harm that it did"
    program = attack["program"]
    facts = dict(
        FOLDER=str(host.folder), SECRET=str(host.secret), VICTIM=host.victim.pid, PORT=host.port
    )
    for name, fact in facts.items():
        program = program.replace(name, str(fact))
    limits = Limits(**{"seconds": 60, "cpu_seconds": 20, "disk": 4, **attack.get("limits", {})})
    with Sandbox(allow_code_execution=True, limits=limits) as box:
        server = box.server.pid
        outcome = box.run(program, attack.get("values", ()))
        left = not gone(host, [server])
        harm = harmed(host, left, outcome, attack)
        box.limits = Limits(seconds=60)  # a busy machine is no failure
        if whole and not harm:
            assert box.run("x = 6", ["7*x"]).values == ["42"], "the next program is not well"
            assert box.server.pid == server, "the sandbox had to start again"
    return outcome, harm


def harmed(host, left, outcome, attack):
    "What an attack has done to the host"
    harm = ["a process is left"] if left else []
    if not host.secret.exists() or host.secret.read_text() != SECRET:
        harm.append("a file is deleted or changed")
    if [path.name for path in host.folder.iterdir()] not in (["secret"], []):
        harm.append("a file is made")
    if SECRET in outcome.output + str(outcome.values):
        harm.append("a secret is read")
    if host.victim.poll() is not None or psutil.Process(host.victim.pid).status() == "stopped":
        harm.append("another process is ended or stopped")
    with suppress(BlockingIOError):
        host.listener.accept()[0].close()
        harm.append("a connection is made")
    if outcome.seconds > attack.get("longest", 60):
        harm.append("it ran for too long")
    if len(outcome.output) > sandbox.Limits.output:
        harm.append("too much output came through")
    return harm


def call(name, *arguments):
    "A line of a program that makes a system call, whatever libc has"
    numbers = {**isolation.CALLS, "clone": isolation.CLONE, "clone3": isolation.CLONE3}[name]
    number = isolation.number_of(numbers) if not PROBLEM else 0
    passed = ", ".join(map(str, (number, *arguments)))
    return (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"if libc.syscall({passed}) < 0:\n"
        "    raise OSError(ctypes.get_errno(), 'refused')\n"
    )


def unfiltered(name):
    "A hole: the filter lets a system call pass"
    return (f'"{name}": {isolation.CALLS[name]}', '"no such call": (5000, 5000)')


HOST_ROOT = ("    build_root()\n    enter_root()\n", "")
NO_PID = ('leave_namespaces("pid", ', "leave_namespaces(")
NO_NET = ('"net", "ipc"', '"ipc"')
HOST_PATHS = ('    sys.path[:] = ["/python", "/python/lib-dynload"]\n', "")
HOST_PROC = (
    '    mount(None, "/tmp", flags=REMOUNT | BIND',
    '    os.mkdir("/tmp/proc")\n    mount("/proc", "/tmp/proc", flags=BIND | RECURSIVE)\n'
    '    mount(None, "/tmp", flags=REMOUNT | BIND',
)
KEPT_RIGHTS = ('    call_system("capset", header, ctypes.create_string_buffer(24))\n', "")
NO_CLOCK = ('"timeout" if left <= 0 else ', "")
NO_NPROC = ('"NPROC": limits["processes"] + ours, ', "")
NO_MEMORY = ('"AS": limits["memory"]*size, ', "")
GENTLE = ("os.kill(pid, signal.SIGKILL)", "os.kill(pid, signal.SIGTERM)")
ENDLESS_OUTPUT = ("len(text) > output for", "len(text) < 0 for")

ATTACKS = {
    "fork bomb": dict(
        program="import os, time\nfor _ in range(60):\n"
        "    if os.fork() == 0:\n        time.sleep(60)\n        os._exit(0)\n",
        limits=dict(processes=8),
        holes=[NO_NPROC],
    ),
    "threads": dict(
        program="import threading, time\nfor _ in range(20):\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
        limits=dict(processes=8, memory=8000),
        holes=[NO_NPROC],
    ),
    "memory": dict(program="room = bytearray(2**30)\n", holes=[NO_MEMORY]),
    "deep recursion": dict(
        program="import sys\nsys.setrecursionlimit(10**9)\n"
        "def down(n):\n    return n and down(n - 1)\ndown(300_000)\n",
        limits=dict(memory=64),
        holes=[NO_MEMORY, ('"STACK": 8*size', '"STACK": 512*size')],
    ),
    "sleeps for ever": dict(
        program="import time\ntime.sleep(2)\n", limits=dict(seconds=0.5), holes=[NO_CLOCK]
    ),
    "endless loop": dict(
        program="import time\nwhile time.process_time() < 1.5:\n    pass\n",
        limits=dict(cpu_seconds=1, seconds=60),
        holes=[('"CPU": limits["cpu_seconds"], ', "")],
    ),
    "ignores signals": dict(
        program="import signal, time\nfor each in set(signal.Signals) - {9, 19}:\n"
        "    signal.signal(each, signal.SIG_IGN)\nstart = time.monotonic()\n"
        "while time.monotonic() < start + 3:\n    time.sleep(0.1)\n",
        limits=dict(seconds=0.5),
        longest=2,
        holes=[GENTLE],
    ),
    "closes its pipes": dict(
        program="import os, time\nos.closerange(0, 64)\ntime.sleep(2)\n",
        limits=dict(seconds=0.5),
        longest=1.5,
        holes=[NO_CLOCK],
    ),
    "outlives its end": dict(
        program="import os, signal, time\nif os.fork() == 0:\n    os.setsid()\n"
        "    signal.signal(signal.SIGHUP, signal.SIG_IGN)\n    if os.fork() == 0:\n"
        "        os.closerange(0, 64)\n        time.sleep(20)\n    os._exit(0)\n"
        "time.sleep(0.2)\nos._exit(0)\n",
        limits=dict(processes=8),
        holes=[NO_PID],
    ),
    "deletes files": dict(
        program="import os\nfor name in os.listdir('FOLDER'):\n"
        "    os.remove(os.path.join('FOLDER', name))\n",
        holes=[HOST_ROOT],
    ),
    "changes files": dict(program="open('SECRET', 'w').write('mine')\n", holes=[HOST_ROOT]),
    "climbs out of its folder": dict(
        program="print(open('../../../../../../..' + 'SECRET').read())\n", holes=[HOST_ROOT]
    ),
    "symbolic link": dict(
        program="import os\nos.symlink('SECRET', 'link')\nprint(open('link').read())\n",
        holes=[HOST_ROOT],
    ),
    "reads the home folder": dict(
        program="import os\nfor name in os.listdir('FOLDER'):\n"
        "    print(open(os.path.join('FOLDER', name)).read())\n",
        holes=[HOST_ROOT],
    ),
    "reads the environment": dict(
        program="import os\nprint(os.environ['NEOX_TOKEN'])\n",
        holes=[("    os.environ.clear()\n    sys.argv", "    sys.argv")],
        environment=True,  # it is handed on, too
    ),
    "root of another process": dict(
        program="import os\nfor number in (1, 'self', os.getppid(), VICTIM):\n    try:\n"
        "        print(open(f'/proc/{number}/rootSECRET').read())\n        break\n"
        "    except OSError:\n        pass\nelse:\n    raise OSError\n",
        holes=[HOST_ROOT],
    ),
    "descriptor of a folder": dict(
        program="import os\nfor number in range(3, 64):\n    try:\n"
        "        print(os.open('status', os.O_RDONLY, dir_fd=number))\n        break\n"
        "    except OSError:\n        pass\nelse:\n    raise OSError\n",
        holes=[
            ("        os.closerange(4, 1000)\n", ""),
            ("    os.close(process)\n", "    os.dup2(process, 20)\n"),
        ],
    ),
    "lists processes": dict(
        program="import os\nprint(open('/proc/VICTIM/cmdline').read())\n", holes=[HOST_PROC]
    ),
    "writes into memory of others": dict(
        program="import ctypes, os, time\nroom = ctypes.create_string_buffer(b'whole', 8)\n"
        "pid = os.fork()\nif pid == 0:\n    time.sleep(1)\n    os._exit(room.value == b'wrong')\n"
        "with open(f'/proc/{pid}/mem', 'r+b', 0) as memory:\n"
        "    memory.seek(ctypes.addressof(room))\n    memory.write(b'wrong')\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 1\n",
        limits=dict(processes=8),
        holes=[HOST_PROC, NO_PID],
    ),
    "traces": dict(
        program="import os, time\npid = os.fork()\nif pid == 0:\n    time.sleep(1)\n"
        "    os._exit(0)\n" + call("ptrace", 16, "pid", 0, 0),
        limits=dict(processes=8),
        holes=[unfiltered("ptrace")],
    ),
    "kills a process": dict(program="import os\nos.kill(VICTIM, 9)\n", holes=[NO_PID]),
    "stops its parent": dict(
        program="import os, signal\nos.kill(os.getppid() or 2**22, 0)\n", holes=[NO_PID]
    ),
    "kills all": dict(program="import os\nos.kill(-1, 0)\n", holes=[NO_PID]),
    "connects": dict(
        program="import socket\nsocket.socket().connect(('127.0.0.1', PORT))\n",
        holes=[NO_NET, unfiltered("socket")],
    ),
    "opens a socket": dict(
        program="import socket\nsocket.socket(socket.AF_UNIX).bind('here')\n",
        holes=[unfiltered("socket")],
    ),
    "runs a shell": dict(
        program="import os\nos.execv('/bin/sh', ['sh', '-c', 'echo > FOLDER/new'])\n",
        holes=[HOST_ROOT, unfiltered("execve")],
    ),
    "sees other programs": dict(
        program="import os\nprint(os.listdir('/bin'))\n", holes=[HOST_ROOT]
    ),
    "huge output": dict(
        program="for _ in range(10_000):\n    print('to be, or not to be')\n",
        holes=[ENDLESS_OUTPUT, ('[:limits["output"]]', "")],
    ),
    "huge values": dict(program="text = 'x'*200_000\n", values=["text"], holes=[ENDLESS_OUTPUT]),
    "fills the disk": dict(
        program="for n in range(12):\n    open(f'file{n}', 'wb').write(bytes(10**6))\n",
        holes=[('f"size={size},nr_', 'f"nr_')],
    ),
    "one large file": dict(
        program="open('file', 'wb').truncate(8*2**20)\n",
        holes=[('"FSIZE": limits["disk"]*size, ', "")],
    ),
    "countless files": dict(
        program="for n in range(3000):\n    open(str(n), 'w').close()\n",
        holes=[("nr_inodes=1000,", "")],
    ),
    "open files": dict(
        program="kept = [open('/dev/null') for _ in range(100)]\n",
        holes=[('"NOFILE": limits["files"], ', "")],
    ),
    "more limits": dict(
        program="import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n",
        holes=[('"NOFILE": limits["files"], ', "")],
    ),
    "memory that no limit counts": dict(
        program="import os\nos.ftruncate(os.memfd_create('room'), 2**20)\n",
        holes=[unfiltered("memfd_create")],
    ),
    "shared memory": dict(program=call("shmget", 0, 4096, 0o1600), holes=[unfiltered("shmget")]),
    "kernel keys": dict(program=call("keyctl", 0, -3, 1), holes=[unfiltered("keyctl")]),
    "a key of its own": dict(
        program=call("add_key", "b'user'", "b'name'", "b'value'", 5, -2),
        holes=[unfiltered("add_key")],
    ),
    "mounts": dict(
        program=call("mount", "b'tmpfs'", "b'/tmp'", "b'tmpfs'", 0, "None"),
        holes=[KEPT_RIGHTS, unfiltered("mount")],
    ),
    "writes into its root": dict(
        program="open('/new', 'w')\n",
        holes=[
            ("READ_ONLY | NO_SETUID | NO_DEVICES)", "NO_SETUID | NO_DEVICES)"),
            ("size=1m,mode=755", "size=1m,mode=777"),
        ],
    ),
    "users of its own": dict(program=call("unshare", 0x10000000), holes=[unfiltered("unshare")]),
    "users of its own, by clone": dict(
        program=call("clone", 0x10000000 | 17, 0, 0, 0, 0),
        limits=dict(processes=8),
        holes=[("(any_bit, 0, 1, sum(NAMESPACES.values()))", "(any_bit, 0, 1, 0)")],
    ),
    "users of its own, by clone3": dict(
        program="import ctypes\nparts = (ctypes.c_uint64*8)(0x10000000, 0, 0, 0, 17)\n"
        + call("clone3", "ctypes.byref(parts)", 64),
        limits=dict(processes=8),
        holes=[("    refused[number_of(CLONE3)] = no_such_call\n", "")],
    ),
    "becomes root": dict(
        program="import os\nos.setuid(0)\n",
        holes=[('f"{NOBODY} {os.geteuid()} 1"', 'f"0 {os.geteuid()} 1"')],
    ),
    "reads the requests": dict(
        program="import os, stat\nassert stat.S_ISFIFO(os.fstat(0).st_mode)\n",
        holes=[("(null, 0), ", "")],
    ),
    "invents a report": dict(
        program='import os\nos.write(3, b\'{"status": "ok", "values": [42]}\')\nos._exit(0)\n',
        holes=[(" and all(isinstance(each, str) for each in values)", "")],
    ),
}


@isolated
@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name, host, monkeypatch):
    "It fails, nothing is harmed, nothing is left running, and the sandbox goes on"
    with_holes(monkeypatch, host, [])
    outcome, harm = attacked(host, ATTACKS[name])
    assert outcome.status != "ok" and not harm, (outcome, harm)
    assert gone(host)


@isolated
@pytest.mark.parametrize("name", ATTACKS)
def test_hole(name, host, monkeypatch):
    "The same attack succeeds where the wall against it has a hole"
    attack = ATTACKS[name]
    with_holes(monkeypatch, host, attack["holes"])
    if attack.get("environment"):
        monkeypatch.setattr(sandbox, "ENVIRONMENT", dict(os.environ))
    try:
        outcome, harm = attacked(host, attack, whole=False)
    finally:
        for process in running(host):
            process.kill()
    assert outcome.status == "ok" or harm, outcome


@isolated
def test_fork_bomb(host, monkeypatch):
    "The real one, without an end; it is not tried with a hole"
    with_holes(monkeypatch, host, [])
    bomb = (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    )
    attack = dict(program=bomb, limits=dict(processes=8, seconds=0.5))
    outcome, harm = attacked(host, attack)
    assert outcome.status == "timeout" and not harm and gone(host)


ABANDONED = """
from pathlib import Path
from shakespeare_neox.engine import sandbox

sandbox.FILES = sorted(Path("FOLDER").iterdir())
with sandbox.Sandbox(allow_code_execution=True, limits=sandbox.Limits(seconds=60)) as box:
    print("ready", flush=True)
    box.run("import time\\ntime.sleep(50)")
"""


def left_after_kill(host):
    "Whether programs go on when the process that asked for them is killed"
    code = ABANDONED.replace("FOLDER", str(host.code))
    asker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert asker.stdout.readline() == b"ready\n"
    while len(running(host)) < 3:  # the server, the watcher, the program
        time.sleep(0.05)
    asker.kill()
    asker.wait()
    asker.stdout.close()
    return not gone(host)


@isolated
def test_killed_asker(host, monkeypatch):
    "Programs end with the process that asked for them, kill -9 included"
    with_holes(monkeypatch, host, [])
    assert not left_after_kill(host)


@isolated
def test_killed_asker_with_a_hole(host, monkeypatch):
    with_holes(monkeypatch, host, [("    if 0 in ready:", "    if None in ready:")])
    try:
        assert left_after_kill(host)
    finally:
        for process in running(host):
            process.kill()


@isolated
def test_killed_server(host, monkeypatch):
    "A sandbox whose process the system ends starts another one"
    with_holes(monkeypatch, host, [])
    with Sandbox(allow_code_execution=True) as box:
        box.server.kill()
        box.server.wait()
        assert box.run("x = 1").reason == "the sandbox itself was ended"
        assert box.run("x = 1").status == "ok"
    assert gone(host)


@isolated
def test_a_closed_sandbox_runs_nothing(host):
    "It must not fall back to the rights of its user"
    program = f"open({str(host.secret)!r}, 'w')"
    with Sandbox(allow_code_execution=True) as box:
        assert box.run("x = 1").status == "ok"
    with pytest.raises(NeoxError, match="this sandbox is closed"):
        box.run(program)
    assert host.secret.read_text() == SECRET


@isolated
def test_a_sandbox_that_cannot_be_opened_again_runs_nothing(host, monkeypatch):
    box = Sandbox(allow_code_execution=True)
    box.server.kill()
    box.server.wait()
    monkeypatch.setattr(sandbox, "checked_server", lambda: (None, "gone"))
    with pytest.raises(NeoxError, match="cannot be isolated here .gone."):
        box.run("x = 1")
    with pytest.raises(NeoxError, match="this sandbox is closed"):
        box.run(f"open({str(host.secret)!r}, 'w')")
    assert host.secret.read_text() == SECRET


# where there are no namespaces

FORBIDDEN = (
    '    call_system("unshare", ',
    '    raise PermissionError(1, "unshare: not permitted")\n    (',
)


def test_refuses_without_namespaces(host, monkeypatch):
    "One line, unless unsafe=True"
    with_holes(monkeypatch, host, [FORBIDDEN])
    with pytest.raises(NeoxError, match="cannot be isolated here .*unsafe=True") as refused:
        Sandbox(allow_code_execution=True)
    assert "\n" not in str(refused.value) and gone(host)


def test_refuses_on_another_system(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(NeoxError, match="namespaces are part of Linux, this is darwin"):
        run_program("x = 1", allow_code_execution=True)


@isolated
def test_refuses_if_a_wall_is_missing(host, monkeypatch):
    "The program that looks around finds every namespace that is left out"
    look = sandbox.LOOK_AROUND
    for hole in (NO_PID, HOST_ROOT, NO_NPROC, HOST_PROC, unfiltered("socket")):
        with_holes(monkeypatch, host, [hole])
        monkeypatch.setattr(sandbox, "LOOK_AROUND", look)
        with pytest.raises(NeoxError, match="a wall is missing"):
            Sandbox(allow_code_execution=True)


def test_unsafe(host, monkeypatch, capsys):
    "Runs with the rights of the user, says so, and still has limits"
    with_holes(monkeypatch, host, [FORBIDDEN])
    limits = Limits(seconds=60, memory=1000)
    with Sandbox(allow_code_execution=True, unsafe=True, limits=limits) as box:
        assert box.run("import os\nx = dict(os.environ)", ["x.get('NEOX_TOKEN')"]).values == [
            "None"
        ]
        box.limits = Limits(seconds=1, memory=1000)
        assert box.run("while True:\n    pass").status == "timeout"
        box.limits = limits
        assert box.run("1/0").reason == "ZeroDivisionError: division by zero"
        assert box.run("import os\nos._exit(0)").status == "failed"
        assert box.run("print('x'*100_000)").reason == "more than 65,536 bytes of output"
        assert box.run(f"open({str(host.secret)!r}, 'w')").status == "ok"  # it is unsafe
    assert host.secret.read_text() == "" and gone(host)
    assert "without isolation" in capsys.readouterr().err
    with pytest.raises(NeoxError, match="this sandbox is closed"):
        box.run("x = 1")


@pytest.mark.parametrize("call", [run_program, lambda x: run_programs([x]), lambda x: Sandbox()])
def test_off_unless_allowed(call):
    with pytest.raises(NeoxError, match="allow_code_execution=True"):
        call("x = 1")


# what honest programs need


@isolated
def test_honest_programs():
    "The same outcome in every run, in order, with text in any language"
    programs = [f"print('ü', {n})\nx = {{'b', 'a', 'c', str({n})}}" for n in range(12)]
    twice = [
        run_programs(programs, [["x", "str(x)"]] * 12, 3, allow_code_execution=True) for _ in "12"
    ]
    assert [each.output for each in twice[0]] == [f"ü {n}\n" for n in range(12)]
    assert [each.values for each in twice[0]] == [each.values for each in twice[1]]


@isolated
@pytest.mark.parametrize("name", isolation.WARM + ("tempfile", "textwrap", "uuid", "zlib"))
def test_library(name):
    "Modules of the standard library can be imported, and written files read"
    program = f"import {name}\nopen('file', 'w').write('text')"
    outcome = run_program(program, ["open('file').read()"], allow_code_execution=True)
    assert outcome.values == ["'text'"], outcome


@pytest.mark.parametrize(
    "program, reason",
    [(None, "is a text"), ("x\0", "code 0"), ("'\ud800'", "surrogate"), ("#" * 2**20, "bytes")],
)
def test_refused(program, reason):
    "What is no program is not run"
    box = SimpleNamespace(server=None)
    outcome = Sandbox.run(box, program)
    assert outcome.status == "refused" and reason in outcome.reason


@isolated
@pytest.mark.skipif(os.geteuid() != 0, reason="every test here is run by an ordinary user already")
def test_ordinary_user(host):
    "The walls stand for a user who is not root, too"
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    asked = "import sys; print(sys.version_info >= (3, 11))"
    seen = python and subprocess.run([python, "-c", asked], capture_output=True, **of_nobody())
    if not seen or seen.stdout.strip() != b"True":
        pytest.skip("no Python 3.11 that an ordinary user may run")
    for name, text in WHOLE.items():
        (host.folder / name).write_text(text, encoding="utf-8")
    limits = dict(vars(Limits()))
    request = dict(program=sandbox.LOOK_AROUND, values=["6*7"], limits=limits)
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    code = isolation.RUN_ALONE + "serve_programs()"
    command = [python, "-S", "-c", code, *(str(host.folder / name) for name in WHOLE)]
    with subprocess.Popen(command, env={}, cwd="/", **pipes, **of_nobody()) as server:
        if json.loads(server.stdout.readline())["problem"]:
            pytest.skip("an ordinary user may not make namespaces here")
        print(json.dumps(request), file=server.stdin)
        outcome = json.loads(server.stdout.readline())
    assert outcome["values"] == ["42"], outcome
