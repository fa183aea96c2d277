"""Runs that log to TensorBoard: what its own reader finds there, also after a run was stopped and
went on, and one line where it is missing"""

import sys

import pytest
from conftest import TINY, refuses, succeeds

from shakespeare_neox.engine.report import read_log
from shakespeare_neox.engine.run import neox_train_main

pytest.importorskip("tensorboard")


def scalars(folder):
    "tag -> {step: value}, as TensorBoard itself reads them"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    tags = found.Tags()["scalars"]
    return {tag: {point.step: point.value for point in found.Scalars(tag)} for tag in tags}


def command(tmp_path, *words):
    boards = f"tensorboard_dir={tmp_path}/boards"
    return ["quickstart", *TINY, "log_interval=5", boards, *words]


def test_the_curves_of_a_run_are_those_of_its_log(tmp_path, capsys):
    argv = command(tmp_path, "--checkpoint_dir", tmp_path / "verse")
    succeeds(neox_train_main, argv, capsys)
    found = scalars(tmp_path / "boards" / "verse")
    for kind in ("log", "evaluation"):
        logged = [event for event in read_log(tmp_path / "verse") if event["event"] == kind]
        assert found[f"{kind}/loss"] == {
            event["step"]: pytest.approx(event["loss"], rel=1e-6) for event in logged
        }
    assert sorted(found["evaluation/loss"]) == [15, 30]


def test_a_run_that_goes_on_writes_each_step_once(tmp_path, capsys, monkeypatch):
    folder = ["--checkpoint_dir", tmp_path / "verse"]
    from shakespeare_neox.engine import run as engine_run

    def broken(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        step = engine_run.Progress.step
        patched.setattr(
            engine_run.Progress,
            "step",
            lambda self, trainer: broken() if trainer.step == 22 else step(self, trainer),
        )
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            neox_train_main([str(word) for word in command(tmp_path, *folder)])
    assert max(scalars(tmp_path / "boards" / "verse")["log/loss"]) >= 20
    succeeds(neox_train_main, command(tmp_path, *folder), capsys)
    events = [e for e in read_log(tmp_path / "verse") if e["event"] == "log"]
    found = scalars(tmp_path / "boards" / "verse")["log/loss"]
    assert found == {e["step"]: pytest.approx(e["loss"], rel=1e-6) for e in events}


def test_one_line_where_tensorboard_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    argv = command(tmp_path, "--checkpoint_dir", tmp_path / "verse")
    refuses(neox_train_main, argv, capsys, "tensorboard", "pip install", steps=True)
    assert not (tmp_path / "verse").exists() and not (tmp_path / "boards").exists()


def test_a_folder_that_cannot_be_written_is_told_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "boards").write_text("a file")
    argv = command(tmp_path, "--checkpoint_dir", tmp_path / "verse")
    err = succeeds(neox_train_main, argv, capsys).err
    assert "TensorBoard: " in err and (tmp_path / "verse" / "best").exists()
