"A run that logs to Weights & Biases without a login: offline, without a prompt, and with one line that says so."
import os, subprocess, sys

import pytest
import yaml

pytest.importorskip("wandb")
RECIPE = dict(num_layers=1, hidden_size=16, num_attention_heads=2, seq_length=16, pos_emb="rotary", data_path="sample", split="90,1,9",
              train_iters=4, train_micro_batch_size_per_gpu=2,
              warmup=0.25, eval_interval=2, log_interval=1, sample_tokens=2, precision="fp32", compile="off", use_wandb=True)


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    "A real run in a home without a login, with nobody to answer a prompt"
    home = tmp_path_factory.mktemp("home")
    (home/"logged.yml").write_text(yaml.safe_dump(RECIPE))
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k not in ("NETRC", "XDG_CONFIG_HOME")}
    env |= dict(HOME=str(home), USERPROFILE=str(home), NEOX_CACHE=str(home/"cache"), OMP_NUM_THREADS="1")
    code = "from shakespeare_neox.train import neox_train_main as m; m()"
    quiet = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180)
    done = subprocess.run([sys.executable, "-c", code, "logged.yml"], cwd=home, env=env, **quiet)
    assert done.returncode == 0, done.stderr
    return home/"runs/logged", done


def test_offline_run_is_kept(offline):
    folder, done = offline
    kept = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(kept) == 1 and kept[0].stat().st_size > 1000
    assert not [p for p in folder.parent.parent.iterdir() if p.name == "wandb"]


def test_standard_output_is_the_result_alone(offline): assert offline[1].stdout == os.path.join("runs", "logged", "best") + "\n"


def test_one_line(offline):
    lines = [line for line in offline[1].stderr.splitlines() if "wandb" in line.lower() or "w&b" in line.lower()]
    assert [line for line in lines if "offline" in line and "wandb sync" in line], lines


def test_one_line_alone(offline):
    lines = [line for line in offline[1].stderr.splitlines() if "wandb" in line.lower() or "w&b" in line.lower()]
    assert len(lines) == 1, lines
