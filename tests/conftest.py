"""Fixtures of all tests: a folder to work in, a tiny trained run, and how a command refuses bad
input"""

import faulthandler
import os
import re
from pathlib import Path

os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # before huggingface_hub is imported: no test asks the network
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is: models as small as these are slower on two

import pytest

TINY = [
    "num_layers=1",
    "hidden_size=32",
    "num_attention_heads=2",
    "seq_length=32",
    "max_position_embeddings=32",
    "train_iters=30",
    "eval_interval=15",
    "checkpoint_factor=15",
    "compile='off'",
    "sample_tokens=20",
]
NOTES = re.compile(
    r"^command line overrides |^    \w.* -> |\(command line\)$|; licence: |: not read: |"
    r"^\S+ writes($| \(step )"
)  # overrides, corpora and the model that was opened are told before anything can go wrong
SECONDS = float(
    os.environ.get("NEOX_TEST_SECONDS", 600)
)  # for one test, with the fixtures that it is the first to need
SLOW = 3  # times as many for a test that is marked slow
stderr = None  # the real one, while pytest captures what tests write


def pytest_configure(config):
    global stderr
    config.addinivalue_line("markers", "slow: runs in the full tier only (NEOX_FULL=1)")
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        stderr = os.fdopen(os.dup(2), "w")


def seconds(item):
    "How long a test may take"
    return SECONDS * (SLOW if item.get_closest_marker("slow") else 1)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if config.pluginmanager.hasplugin("timeout"):
            item.add_marker(pytest.mark.timeout(seconds(item)))
        if item.get_closest_marker("slow") and os.environ.get("NEOX_FULL") != "1":
            item.add_marker(pytest.mark.skip(reason="runs with NEOX_FULL=1"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    "Ends the whole run, and shows where it hangs, if a test hangs where no exception reaches it"
    faulthandler.dump_traceback_later(1.2 * seconds(item), exit=True, file=stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory):
    "A cache of this session's own, and W&B as it is for a newcomer"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("WANDB_MODE", raising=False)
        yield


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty working directory"
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    "The folder of a tiny run, trained once; copy it before changing it"
    from shakespeare_neox.engine.run import neox_train_main

    folder = tmp_path_factory.mktemp("trained") / "tiny"
    neox_train_main(["quickstart", *TINY, "--checkpoint_dir", str(folder)])
    return folder


def tree(folder):
    """Every file under a folder, with its content and time of change; locks do not count, some
    releases of filelock write them anew"""
    found = [p for p in sorted(Path(folder).rglob("*")) if p.name != ".lock"]
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) if p.is_file() else None
        for p in found
    }


def succeeds(main, argv, capsys):
    "Runs a command in this process; gives standard output and standard error"
    capsys.readouterr()
    main([str(word) for word in argv])
    return capsys.readouterr()


def before_speed(err):
    "What neox_generate said before the line with its speed, which is the last"
    return re.fullmatch(r"(?s)(.*\n)[\d,]+ tokens, [\d,]+ tokens/s\n", err)[1]


def refuses(main, argv, capsys, *parts, steps=False):
    """Asserts that a command ends with code 2 and one line that holds `parts`; `steps`: a run's own
    lines may come before it"""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in argv])
    out, err = capsys.readouterr()
    lines = [
        line
        for line in err.splitlines()
        if not NOTES.search(line) and not (steps and not line.startswith("neox_"))
    ]
    assert stopped.value.code == 2 and out == "", (stopped.value.code, out)
    assert len(lines) == 1 and lines[0].startswith("neox_") and "Traceback" not in err, err
    assert all(str(part) in lines[0] for part in parts), (parts, lines[0])
    return lines[0]
