"""Checkpoints by name: fetched from a hub on loopback, opened, and continued; and what is said when
the hub refuses"""

import json
import shutil

import pytest
import torch
from servers import hub  # noqa: F401 (fixtures)

from shakespeare_neox.engine.corpora import load_corpus
from shakespeare_neox.engine.vocab import train_tokenizer

OPEN = """
import json, torch
from transformers import GPTNeoXForCausalLM
from shakespeare_neox.model import GPT
from shakespeare_neox.engine.checkpoints import find_folder
ours, folder = GPT.from_pretrained("owner/tiny"), find_folder("owner/tiny")
theirs = GPTNeoXForCausalLM.from_pretrained("owner/tiny", dtype=torch.float32).eval()
ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    a, b = ours(ids), theirs(ids).logits
seen = dict(
    files=sorted(p.name for p in folder.iterdir()),
    dtype=str(a.dtype),
    size=b.abs().max().item(),
    difference=(a - b).abs().max().item(),
)
print(json.dumps(seen))
"""
GENERATE = (
    "import sys; sys.argv = ['neox_generate', {name!r}, '--prompt', 'O', *'--max_new_tokens "
    "5'.split(), *{more}]; "
    "from shakespeare_neox.engine.serve import neox_generate_main; neox_generate_main()"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The files of a random GPT-NeoX as Pythia's are: in half precision, in shards, with a
    vocabulary padded beyond the tokenizer's"""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    folder, tokenizer = (
        tmp_path_factory.mktemp("tiny"),
        train_tokenizer(load_corpus("sample").text, "bpe", 300),
    )
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=384,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            rotary_pct=0.5,
        )
    )
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(
            1 if p.ndim == 1 else 0, 0.3, generator=generator
        )  # large everywhere, so that no mistake hides
    model.half().save_pretrained(folder, max_shard_size="30KB")
    tokenizer.save(folder)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_half_and_sharded_equals_transformers(tiny, hub):
    shards = [name for name in tiny if name.endswith(".safetensors")]
    assert (
        len(shards) > 2
        and "model.safetensors.index.json" in tiny
        and all(b'"F16"' in tiny[name] and b'"F32"' not in tiny[name] for name in shards)
    )
    hub.repos = {"owner/tiny": {**tiny, "pytorch_model.bin": b"\0" * 9, "README.md": b"# tiny"}}
    done = hub.python(OPEN)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (
        seen["files"] == sorted(tiny) and seen["dtype"] == "torch.float32"
    )  # only what is needed was fetched
    assert seen["difference"] < 1e-5 < 1 < seen["size"], seen


def test_generate_by_name(tiny, hub):
    hub.repos = {"owner/tiny": tiny}
    done = hub.python(GENERATE.format(name="owner/tiny", more=["--temperature", "3"]))
    assert done.returncode == 0 and done.stdout.startswith("O") and len(done.stdout) > 3, (
        done.stderr
    )
    hub.faults = {
        "owner/tiny": 429
    }  # what was fetched once is used while the hub refuses, or is away
    assert (
        hub.python(GENERATE.format(name="owner/tiny", more=["--temperature", "3"])).stdout
        == done.stdout
    )
    assert (
        hub.python(
            GENERATE.format(name="owner/tiny", more=["--temperature", "3"]), HF_HUB_OFFLINE="1"
        ).stdout
        == done.stdout
    )


SAID = {
    401: "needs a login, or the name is wrong",
    403: "accept its terms",
    404: "no such repository",
    429: "try again in a minute",
    500: "the hub answers 500",
    None: "(OfflineModeIsEnabled)",
}


@pytest.mark.parametrize("status", SAID, ids=str)
def test_refusals_are_one_line(status, tiny, hub):
    hub.repos, hub.faults = {"owner/tiny": tiny}, {"owner/tiny": status}
    done = hub.python(
        GENERATE.format(name="owner/tiny", more=[]), **({} if status else {"HF_HUB_OFFLINE": "1"})
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("neox_generate: owner/tiny: ") and SAID[status] in done.stderr, (
        done.stderr
    )


def test_datasets_by_name(hub, tmp_path):
    """hf:OWNER/NAME: every readable file, divided as the names say; a folder of it; the same
    refusals"""

    def rows(*texts):
        return "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()

    hub.repos = {
        "datasets/owner/plays": {
            "README.md": b"# plays",
            "train.jsonl": rows("O", "Romeo"),
            "test.jsonl": rows("Juliet"),
            "old/train.jsonl": rows("Nurse"),
            "cover.png": b"x",
        }
    }
    code = (
        "from shakespeare_neox.engine.corpora import load_corpus; c = load_corpus({!r}); "
        "print(c.parts, c.counts.documents, repr(c.text))"
    )
    assert (
        hub.python(code.format("hf:owner/plays")).stdout
        == "['train', 'valid'] 4 'Nurse\\nJuliet\\nO\\nRomeo'\n"
    )
    assert hub.python(code.format("hf:owner/plays:old")).stdout == "[] 1 'Nurse'\n"
    prepare = (
        "import sys; sys.argv = ['neox_prepare', {!r}]; from shakespeare_neox.engine.tokens "
        "import neox_prepare_main as m; m()"
    )
    for status, words in {
        401: "needs a login",
        404: "no such repository",
        429: "asks to wait",
    }.items():
        hub.faults = {"datasets/owner/other": status}
        hub.repos["datasets/owner/other"] = {"a.txt": b"a"}
        done = hub.python(prepare.format("hf:owner/other"))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (
            2,
            "",
            1,
        ) and words in done.stderr, done.stderr


def test_what_is_pushed_can_be_fetched(trained, hub, tmp_path):
    "A run is published with its card, opens again by its name, and a refusal is one line"
    shutil.copytree(trained, tmp_path / "run")
    push = (
        "import sys; sys.argv = ['neox_report', {!r}, '--push_to_hub', 'me/tiny']; from "
        "shakespeare_neox.engine.report import neox_report_main as m; m()"
    )
    done = hub.python(push.format(str(tmp_path / "run")), HF_TOKEN="hf_any")
    assert done.returncode == 0 and done.stdout == f"{hub.url}/me/tiny\n", done.stderr
    made = hub.repos["me/tiny"]
    assert (
        made["README.md"].startswith(b"---\nlibrary_name: transformers")
        and made["model.safetensors"] == (trained / "best" / "model.safetensors").read_bytes()
    )
    assert {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "recipe.yml",
        "loss.png",
    } <= set(made)
    done = hub.python(GENERATE.format(name="me/tiny", more=[]))
    assert done.returncode == 0 and done.stdout.startswith("O"), done.stderr
    hub.faults = {"me/tiny": 403}
    done = hub.python(push.format(str(tmp_path / "run")), HF_TOKEN="hf_any")
    assert (
        (done.returncode, done.stdout) == (2, "")
        and "use a token that may write" in done.stderr
        and done.stderr.count("\n") == 1
    ), done.stderr


FINETUNE = (
    "import sys; sys.argv = ['neox_finetune', '--pretrained_ckpt_path', 'hf:owner/tiny', "
    "'--dataset_path', 'pairs.jsonl', '--finetuned_model_dir', 'tuned', 'train_iters=2', "
    "'eval_interval=2', 'sample_tokens=2', 'compile=off']; "
    "from shakespeare_neox.finetune import neox_finetune_main; neox_finetune_main()"
)


def test_finetune_by_name(tiny, hub, here):
    "A base model of the hub, in half precision and in shards, is tuned and saved here"
    hub.repos = {"owner/tiny": tiny}
    records = [dict(prompt=f"Say {n}.", completion=f"{n}.") for n in range(12)]
    (here / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    done = hub.python(FINETUNE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("best") and (here / "tuned/best/config.json").exists()
    hub.faults = {"owner/tiny": 404}
    done = hub.python(FINETUNE.replace("tiny", "none").replace("'tuned'", "'other'"))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (here / "other").exists()
