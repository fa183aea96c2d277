"""A run that logs to Weights & Biases without a login: offline, without a prompt, and with one line
that says so."""

import json
import os
import struct
import subprocess
import sys

import pytest
import yaml

pytest.importorskip("wandb")
RECIPE = dict(
    num_layers=1,
    hidden_size=16,
    num_attention_heads=2,
    seq_length=16,
    pos_emb="rotary",
    data_path="sample",
    split="90,1,9",
    train_iters=4,
    train_micro_batch_size_per_gpu=2,
    warmup=0.25,
    eval_interval=2,
    log_interval=1,
    sample_tokens=2,
    precision="fp32",
    compile="off",
    use_wandb=True,
)


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    "A real run in a home without a login, with nobody to answer a prompt"
    home = tmp_path_factory.mktemp("home")
    (home / "logged.yml").write_text(yaml.safe_dump(RECIPE))
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("WANDB_") and k not in ("NETRC", "XDG_CONFIG_HOME")
    }
    env |= dict(
        HOME=str(home), USERPROFILE=str(home), NEOX_CACHE=str(home / "cache"), OMP_NUM_THREADS="1"
    )
    code = "from shakespeare_neox.engine.run import neox_train_main as m; m()"
    quiet = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180)
    done = subprocess.run([sys.executable, "-c", code, "logged.yml"], cwd=home, env=env, **quiet)
    assert done.returncode == 0, done.stderr
    return home / "runs/logged", done


def records(path):
    "The records of an offline run's file: a LevelDB log of protocol buffers"
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""  # 7 bytes of header
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue  # the rest of a block is too short for a record
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if not kind:
            break
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""  # whole, or the last part of one


def history(folder):
    "What W&B holds: a row of charts for each step, and the recipe"
    (kept,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows, config = [], {}
    for record in records(kept):
        items = record.history.item
        if items:
            rows.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in items
                }
            )
        for item in (*record.run.config.update, *record.config.update):
            config[item.key] = json.loads(item.value_json)
    return rows, config


def test_what_is_logged_is_what_happened(offline):
    """Read back from the real file: losses, rates, gradient norms, throughput, evaluations and the
    recipe equal log.jsonl's"""
    folder, _ = offline
    rows, config = history(folder)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for kind, keys in dict(
        log=("loss", "lr", "gradient_norm", "tokens_per_second"),
        evaluation=("loss", "bits_per_byte"),
    ).items():
        wanted = [e for e in events if e["event"] == kind]
        for key in keys:
            assert [row[f"{kind}/{key}"] for row in rows if f"{kind}/{key}" in row] == [
                e[key] for e in wanted
            ], (kind, key)
        assert [row["_step"] for row in rows if f"{kind}/loss" in row] == [
            e["step"] for e in wanted
        ]
    assert {k: config[k] for k in RECIPE} == RECIPE


def test_sample_table(offline):
    "Each evaluation's sample text stands in a table"
    folder, _ = offline
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    tables = sorted(
        folder.glob("wandb/offline-run-*/files/media/table/samples*.json"),
        key=lambda p: int(p.name.split("_")[1]),
    )
    newest = json.loads(tables[-1].read_text())
    assert newest["columns"] == ["step", "loss", "sample"]
    assert newest["data"] == [
        [e["step"], e["loss"], e["sample"]] for e in events if e["event"] == "evaluation"
    ]


def test_offline_run_is_kept(offline):
    folder, done = offline
    kept = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(kept) == 1 and kept[0].stat().st_size > 1000
    assert not [p for p in folder.parent.parent.iterdir() if p.name == "wandb"]


def test_standard_output_is_the_result_alone(offline):
    assert offline[1].stdout == os.path.join("runs", "logged", "best") + "\n"


def test_one_line(offline):
    lines = [
        line
        for line in offline[1].stderr.splitlines()
        if "wandb" in line.lower() or "w&b" in line.lower()
    ]
    assert [line for line in lines if "offline" in line and "wandb sync" in line], lines


def test_one_line_alone(offline):
    lines = [
        line
        for line in offline[1].stderr.splitlines()
        if "wandb" in line.lower() or "w&b" in line.lower()
    ]
    assert len(lines) == 1, lines


def test_the_best_model_is_an_artifact(offline):
    "The offline run holds the best model's folder as an artifact of type model"
    folder, _ = offline
    (kept,) = folder.glob("wandb/offline-run-*/*.wandb")
    models = [
        r.artifact if r.HasField("artifact") else r.request.log_artifact.artifact
        for r in records(kept)
        if r.HasField("artifact") or r.request.HasField("log_artifact")
    ]
    models = [a for a in models if a.type == "model"]
    assert [a.name for a in models] == ["logged-best"]
    assert {c.path for c in models[0].manifest.contents} == {
        p.name for p in (folder / "best").iterdir() if not p.name.startswith(".")
    }
