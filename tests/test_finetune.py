"""Instruction tuning: records of every shape, the template and the mask against transformers,
packing against single dialogues, runs that go on to the same bits, the command"""

import copy
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refuses, succeeds, tree

from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.chat import Dialogue, answers, chat_loop, fit_dialogue, neox_chat_main
from shakespeare_neox.engine.corpora import own_files
from shakespeare_neox.engine.instructions import (
    CHAT_TEMPLATE,
    Example,
    chat_ids,
    messages_of,
    read_instructions,
    split_examples,
    template_of,
    with_template,
    without_overlap,
)
from shakespeare_neox.engine.run import evaluate, train_run
from shakespeare_neox.engine.serve import neox_generate_main
from shakespeare_neox.engine.tokens import load_tokenizer
from shakespeare_neox.engine.tuning import Forgetting, PackedChats, WatchedText, chat_run, pack_rows
from shakespeare_neox.engine.vocab import train_tokenizer
from shakespeare_neox.finetune import (
    chat_data,
    encode_chat,
    encode_chats,
    neox_finetune_main,
    packed_batch,
)
from shakespeare_neox.model import GPT, ModelConfig
from shakespeare_neox.train import token_losses

pytestmark = pytest.mark.usefixtures("here")
WORDS = "lamp fox hill stone river bird cloud bread".split()
USER, ASSISTANT, SYSTEM = ("user", "assistant", "system")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def said(*contents, system=None):
    "Messages of a user and an assistant in turn"
    turns = [dict(role=(USER, ASSISTANT)[n % 2], content=c) for n, c in enumerate(contents)]
    return [dict(role=SYSTEM, content=system)] * bool(system) + turns


def some_examples(n=24):
    return [
        Example(
            said(f"Say {WORDS[i % 8]} {i}.", f"{WORDS[i % 8]} " * (1 + i % 3) + "done"), "ab"[i % 2]
        )
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    text = "".join(m["content"] + "\n" for e in some_examples(80) for m in e.messages)
    text += "USER:\nASSISTANT:\nSYSTEM:\n caf\u00e9 Ü ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 4
    return with_template(train_tokenizer(text, "bpe", 300))


def some_model(tokenizer, seed=1, **settings):
    "Large random weights: a wrong row would be seen"
    torch.manual_seed(seed)
    sizes = dict(
        num_layers=2, hidden_size=32, num_attention_heads=2, seq_length=64, pos_emb="rotary"
    )
    model = GPT(ModelConfig(**{**sizes, **settings}, vocab_size=tokenizer.vocab_size))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


# records


@pytest.mark.parametrize(
    "record",
    [
        dict(instruction="Why?", context="", response="So.", category="open_qa"),
        dict(instruction="Why?", input="", output="So."),
        dict(instruction="Why?", input="", output="So.", text="Below: Why?\nAnswer: So."),
        dict(prompt="Why?", completion="So."),
        dict(messages=said("Why?", "So.")),
        dict(conversations=[{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]),
    ],
)
def test_shapes(record):
    assert messages_of(record, "here") == said("Why?", "So.")


def test_context_and_system():
    dolly = dict(instruction="Why?", context="Rain.", response="So.\r\nYes.")
    assert messages_of(dolly, "here") == said("Why?\n\nRain.", "So.\nYes.")
    record = dict(
        system="Be brief.",
        conversations=[{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
    )
    assert messages_of(record, "here") == said("Why?", "So.", system="Be brief.")


@pytest.mark.parametrize(
    "record, word",
    [
        (dict(prompt="Why?"), "no instruction with one"),
        (dict(prompt="Why?", completion=""), "completion is empty"),
        (dict(prompt="Why?", completion=" \n"), "completion is empty"),
        (dict(prompt="Why?", completion=7), "int"),
        (dict(prompt={"a": {"b": "c"}}, completion="So."), "dict"),
        (dict(text="Only a text."), "no question with an answer"),
        (dict(messages=said("Why?")), "assistant come last"),
        (dict(messages=said("Why?", "So.", "And?")), "assistant come last"),
        (dict(messages=said("Why?", "So.")[::-1]), "must alternate"),
        (dict(messages=[dict(role="tool", content="7"), *said("Why?", "So.")]), "no role"),
        (dict(messages=[]), "messages"),
        (dict(messages=said("", "So.")), "empty"),
        (dict(prompt="half \ud800", completion="So."), "half a character"),
        (
            dict(system="Be brief.", messages=said("Why?", "So.", system="Be long.")),
            "roles are system, system",
        ),
        (dict(text="Why? So.", instruction=["Why?"], output="So."), "instruction holds list"),
        (dict(text="Why? So.", messages=[dict(x="Why?")]), "a turn needs role and content"),
        (
            dict(text="Why? So.", instruction="Why?", prompt="Why?", output="So."),
            "no question with an answer",
        ),
    ],
)
def test_bad_records_are_named(record, word):
    with pytest.raises(NeoxError, match=word) as e:
        messages_of(record, "file.jsonl, line 3")
    assert str(e.value).startswith("file.jsonl, line 3") and "\n" not in str(e.value)


def write(records, name="data.jsonl"):
    path = Path(name)
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet"])
def test_files(name):
    records = [
        dict(instruction=f"Say {i}.", response=f"{i}", category="ab"[i % 2]) for i in range(6)
    ]
    found = read_instructions(write(records, name))
    assert [e.messages for e in found.examples] == [said(f"Say {i}.", f"{i}") for i in range(6)]
    assert [e.category for e in found.examples] == list("ababab")


def test_bad_lines_are_counted_and_duplicates_left_out():
    path = write([dict(prompt=f"Say {i}.", completion=f"{i}") for i in range(3)])
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([lines[0], "{no", lines[1], "[1]", '{"prompt": "x"}', lines[0], lines[2]])
    )
    found = read_instructions(path)
    assert len(found.examples) == 3
    assert [p.split(":")[0].split(", ")[1] for p in found.problems] == [
        "line 2",
        "line 4",
        "line 5",
    ]
    assert found.duplicates == [f"{path}, line 6"]
    assert "3 examples" in repr(found) and "3 bad, 1 duplicates" in repr(found)


def test_nothing_to_learn():
    Path("a.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(NeoxError, match="line 1"):
        read_instructions("a.jsonl")
    Path("a.txt").write_text("running text\n")
    with pytest.raises(NeoxError, match="not records"):
        read_instructions("a.txt")


def test_split():
    examples = [Example(said(f"Q{i % 40}", f"A{i}"), "abc"[i % 40 % 3]) for i in range(80)]
    train, valid = split_examples(examples, 0.25)
    assert len(train) + len(valid) == 80
    assert not {e.question for e in train} & {e.question for e in valid}
    for category in "abc":
        assert (
            0.15
            < sum(e.category == category for e in valid)
            / sum(e.category == category for e in examples)
            < 0.35
        )
    assert split_examples(examples, 0.25) == (train, valid)
    assert split_examples(examples, 0.25, seed=1)[1] != valid
    with pytest.raises(NeoxError, match="too few"):
        split_examples(examples[:1])


def test_questions_that_differ_in_case_and_spaces_are_one(tokenizer):
    examples = [Example(said(f"Say {i % 8}{' ' * (i // 8)} now.", f"{i}")) for i in range(16)]
    train, valid = split_examples(examples, 0.25)
    assert len(valid) == 4 and not {e.key for e in train} & {e.key for e in valid}
    held = [Example(said("SAY 3  now.", "so"))]
    kept, n_same = without_overlap(examples, held)
    assert n_same == 2 and len(kept) == 14
    with pytest.raises(NeoxError, match="held out too"):
        without_overlap(held, held)


def test_an_overlap_of_files_is_reported(tokenizer, capsys):
    a_base(tokenizer)
    records = [dict(messages=e.messages) for e in some_examples()]
    write(records)
    write(records[:3], "held.jsonl")
    words = [f"{key}={value}" for key, value in STEPS.items() if value is not None]
    given = ["--pretrained_ckpt_path", "base", "--dataset_path", "data.jsonl"]
    given += ["--finetuned_model_dir", "tuned", "--valid_path", "held.jsonl", *words]
    done = succeeds(neox_finetune_main, given, capsys)
    assert "3 records of data.jsonl ask what held.jsonl holds out; not trained on" in done.err


def nested(depth):
    value = "deep"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(dict(prompt=nested(50), completion="So.")),
        '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + ', "completion": "So."}',
        '{"prompt": "Why?", "completion": "So.", "prompt": "How?"}',
        '{"prompt": "Why?", "completion": NaN}',
        '"Why?"',
    ],
    ids=["nested", "very deep", "twice the same field", "nan", "a text"],
)
def test_strange_lines_are_left_out(line):
    Path("a.jsonl").write_text(json.dumps(dict(prompt="Why?", completion="So.")) + "\n" + line)
    found = read_instructions("a.jsonl")
    assert len(found.examples) == 1 and len(found.problems) == 1
    assert "line 2" in found.problems[0] and len(found.problems[0]) < 400


def test_a_binary_file_is_refused():
    Path("a.jsonl").write_bytes(b'{"prompt": "Why?", "completion": "So."}\n\x00')
    with pytest.raises(NeoxError, match="a.jsonl: binary"):
        read_instructions("a.jsonl")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_encodings(encoding):
    line = json.dumps(dict(prompt="Why caf\u00e9?", completion="So."), ensure_ascii=False)
    Path("a.jsonl").write_bytes(f"{line}\n".encode(encoding))
    if encoding == "utf-8-sig":
        assert read_instructions("a.jsonl").examples[0].question == "Why caf\u00e9?"
        return
    with pytest.raises(NeoxError, match="a.jsonl") as e:
        read_instructions("a.jsonl")
    assert "\n" not in str(e.value) and "UTF-8" in str(e.value)


def test_ten_megabytes_in_one_answer(tokenizer):
    write(
        [dict(prompt="Say lamp.", completion="lamp " * 2_000_000), dict(prompt="a", completion="b")]
    )
    examples = read_instructions("data.jsonl").examples
    assert len(examples) == 2
    found = encode_chats(tokenizer, examples, 64)
    assert found.n_cut == 1 and len(found.chats[0]) == 64 and not found.problems


# template and mask


DIALOGUES = [
    said("Say lamp.", "lamp"),
    said("Say lamp.", "lamp", "Again?", "lamp lamp", "And\n\n again?", "done"),
    said("Say stone.", "stone", system="Be brief."),
    said(" caf\u00e9 \n", "\n Ü "),
]


@pytest.mark.parametrize("messages", DIALOGUES)
def test_template_against_transformers(tokenizer, messages):
    from transformers import AutoTokenizer

    tokenizer.save(Path("."))
    theirs = AutoTokenizer.from_pretrained(".")
    for prompt in (False, True):
        given = messages[:-1] if prompt else messages
        expected = theirs.apply_chat_template(
            given, add_generation_prompt=prompt, return_dict=False, tokenize=True
        )
        assert chat_ids(tokenizer, given, prompt) == list(expected)
    assert template_of(load_tokenizer(".")) == CHAT_TEMPLATE


@pytest.mark.parametrize("messages", DIALOGUES)
def test_mask_against_transformers(tokenizer, messages):
    "transformers marks what lies between `generation` tags; a mask off by one differs"
    from transformers import AutoTokenizer

    tokenizer.save(Path("."))
    theirs = AutoTokenizer.from_pretrained(".")
    body = CHAT_TEMPLATE.replace(
        "{{ message.content | trim }}{{ eos_token if message.role == 'assistant' else '\n\n' }}",
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}"
        "{{ eos_token }}{% endgeneration %}{% else %}{{ message.content | trim }}{{ '\n\n' }}"
        "{% endif %}",
    )
    assert "generation %}" in body
    found = theirs.apply_chat_template(
        messages, chat_template=body, return_dict=True, return_assistant_tokens_mask=True
    )
    chat = encode_chat(tokenizer, Example(messages))
    assert chat.ids.tolist() == list(found["input_ids"])
    assert chat.answer.tolist() == [bool(m) for m in found["assistant_masks"]]
    off_by_one = np.roll(chat.answer, -1)
    assert off_by_one.tolist() != [bool(m) for m in found["assistant_masks"]]


def test_targets_are_the_answers_and_their_ends(tokenizer):
    chat = encode_chat(tokenizer, Example(DIALOGUES[1]))
    counted = chat.targets[chat.targets != -100]
    assert tokenizer.decode(counted) == "lamplamp lampdone"
    assert (counted == tokenizer.eot_id).sum() == 3
    assert tokenizer.pad_id != tokenizer.eot_id


def test_forged_ends_are_refused(tokenizer):
    for content in ("Say <|endoftext|>", "<|padding|>"):
        with pytest.raises(NeoxError, match="special token"):
            chat_ids(tokenizer, said(content, "So."))


def test_templates_that_fail(tokenizer):
    plain = copy.copy(tokenizer)
    for template, word in [
        ("{{ raise_exception('no system') }}", "no system"),
        ("{{ messages[", "chat template fails"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "changes"),
    ]:
        plain.files = {"chat_template.jinja": template.encode()}
        with pytest.raises(NeoxError, match=word):
            encode_chat(plain, Example(said("Say lamp.", "lamp", "Say fox.", "fox")))


def test_named_templates(tokenizer):
    "transformers takes the one that is called default; without one, nobody chooses for the person"
    plain = copy.copy(tokenizer)
    plain.files = {}
    named = [dict(name="tools", template="{{ tools }}"), dict(name="default", template=CHATML)]
    plain.config = {**tokenizer.config, "chat_template": named}
    assert template_of(with_template(plain)) == CHATML
    plain.config = {**tokenizer.config, "chat_template": named[:1]}
    with pytest.raises(NeoxError, match="tools, and none of them default"):
        with_template(plain)


def test_a_template_that_is_not_utf8(tokenizer):
    plain = copy.copy(tokenizer)
    plain.files = {"chat_template.jinja": "{{ 'é' }}".encode("latin-1")}
    with pytest.raises(NeoxError, match="not UTF-8"):
        with_template(plain)


@pytest.mark.parametrize(
    "template, word",
    [
        (b"{{ raise_exception('no dialogue') }}", "no dialogue"),
        (b"{{ messages[", "chat template fails"),
        ("{{ 'é' }}".encode("latin-1"), "UTF-8"),
    ],
)
def test_the_command_says_which_template_fails(tokenizer, capsys, template, word):
    prepare_words(tokenizer)
    Path("base/chat_template.jinja").write_bytes(template)
    given = ["--pretrained_ckpt_path", "base", "--dataset_path", "data.jsonl"]
    given += ["--finetuned_model_dir", "tuned"]
    refuses(neox_finetune_main, given, capsys, word, steps=True)
    assert not Path("tuned").exists()


def test_own_template_is_kept(tokenizer):
    plain = copy.copy(tokenizer)
    plain.files = {"chat_template.jinja": CHATML.encode()}
    assert template_of(with_template(plain)) == CHATML
    plain.eot_id = None
    with pytest.raises(NeoxError, match="end-of-text"):
        with_template(plain)


def test_long_dialogues(tokenizer):
    examples = [
        Example(said("Say lamp.", "lamp " * 50 + "x"), where="line 1"),
        Example(said("lamp " * 90 + "x", "fox"), where="line 2"),
        Example(said("Say fox.", "fox"), where="line 3"),
    ]
    found = encode_chats(tokenizer, examples, 40)
    assert [c.where for c in found.chats] == ["line 1", "line 3"] and found.n_cut == 1
    assert "line 2" in found.problems[0] and len(found.chats[0]) == 40
    assert tokenizer.eot_id not in found.chats[0].targets  # nobody learns to stop at a cut
    assert tokenizer.eot_id in found.chats[1].targets


def test_the_command_says_what_is_cut_and_names_what_is_left_out(tokenizer, capsys):
    records = [dict(messages=e.messages, category=e.category) for e in some_examples()]
    records += [dict(prompt="Say all.", completion="lamp " * 90 + "x")] * 2
    records += [dict(prompt="lamp " * 90 + "x", completion="fox"), dict(prompt="Say.")]
    write(records)
    words = [f"{key}={value}" for key, value in STEPS.items() if value is not None]
    given = ["--pretrained_ckpt_path", a_base(tokenizer), "--dataset_path", "data.jsonl"]
    given += ["--finetuned_model_dir", "tuned", "--held_out", "0.3", *words]
    done = succeeds(neox_finetune_main, given, capsys)
    assert "1 cut to the context" in done.err and "has no end" in done.err
    left_out = Path("tuned/left_out.txt").read_text().splitlines()
    assert f"{len(left_out)} records are left out; tuned/left_out.txt" in done.err
    named = {int(re.search(r"data.jsonl, line (\d+)", line)[1]) for line in left_out}
    assert named == {26, 27, 28}, left_out


# packing


def test_pack_holds_each_dialogue_once():
    rng = np.random.default_rng(0)
    for longest in (1, 7, 64):
        lengths = rng.integers(1, longest + 1, 200).tolist()
        rows = pack_rows(lengths, longest)
        assert sorted(i for row in rows for i in row) == list(range(200))
        assert all(0 < sum(lengths[i] for i in row) <= longest for row in rows)
        assert len(rows) <= 1.25 * np.ceil(sum(lengths) / longest) + 1


def losses_and_gradient(model, batches):
    model.zero_grad()
    found = []
    for batch in batches:
        values, mask = token_losses(model, batch)
        values.sum().backward()
        found.append(values.detach()[mask])
    return torch.cat(found), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("padding", ["a token of its own", "none"])
@pytest.mark.parametrize("pos_emb", ["rotary", "learned"])
def test_packed_equals_unpacked(tokenizer, pos_emb, padding):
    "Also for a tokenizer without padding, as GPT-2's: its rows are filled with the end of text"
    tokenizer = copy.copy(tokenizer)
    if padding == "none":
        tokenizer.pad_id = None
    model = some_model(tokenizer, pos_emb=pos_emb)
    chats = encode_chats(tokenizer, some_examples(), 64).chats
    rows = pack_rows([len(c) for c in chats], 64)
    assert max(map(len, rows)) > 1
    filler = PackedChats(chats, tokenizer, 64, packed_batch).filler
    assert filler == (tokenizer.eot_id if padding == "none" else tokenizer.pad_id)
    batch = packed_batch(chats, rows, 64, filler)
    assert (batch.x == filler).any() and (batch.y[batch.document < 0] == -100).all()
    alone = [packed_batch(chats, [[i]], len(chats[i]), 0) for row in rows for i in row]
    expected, gradient = losses_and_gradient(model, alone)

    def differs(changed):
        losses, found = losses_and_gradient(model, [changed])
        return (
            (losses - expected).abs().max() / expected.abs().max(),
            (found - gradient).norm() / gradient.norm(),
        )

    assert max(differs(batch)) < 1e-5
    assert min(differs(replace(batch, document=None))) > 1e-3  # attention across dialogues
    if pos_emb == "learned":
        assert min(differs(replace(batch, positions=None))) > 1e-3


def test_each_epoch_reads_every_row_once(tokenizer):
    chats = encode_chats(tokenizer, some_examples(), 64).chats
    packed = PackedChats(chats, tokenizer, 64, packed_batch)
    n = len(packed.rows)

    def rows_of(start, count):
        return [
            tuple(row.tolist())
            for number in range(start, start + count)
            for row in packed.batch_at(3, number, 1).x
        ]

    first, second = rows_of(0, n), rows_of(n, n)
    assert sorted(first) == sorted(second) and len(set(first)) == n and first != second
    assert rows_of(0, 2 * n) == first + second
    scored = list(packed.scored_batches(2, 64))
    assert sum(batch.n_targets for batch in scored) == packed.n_tokens
    other = [replace(chats[0], answer=np.roll(chats[0].answer, 1)), *chats[1:]]
    assert PackedChats(other, tokenizer, 64, packed_batch).checksum() != packed.checksum()


# runs

STEPS = dict(
    train_iters=6,
    eval_interval=3,
    log_interval=1,
    checkpoint_factor=2,
    train_micro_batch_size_per_gpu=2,
    gradient_accumulation_steps=2,
    warmup=0.0,
    precision="fp32",
    compile="off",
    sample_tokens=5,
)


def a_run(tokenizer, folder, **settings):
    train, valid = split_examples(some_examples(), 0.25)
    data = chat_data(tokenizer, train, valid, 64, "mine")
    return chat_run(
        some_model(tokenizer),
        data,
        Path(folder),
        {**STEPS, **settings},
        prompt=valid[0].messages[:1],
    )


def weights(folder):
    return GPT.from_pretrained(folder).state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def test_score_is_that_of_single_answers(tokenizer):
    run = a_run(tokenizer, "run")
    file = run.data.files["valid"]
    alone = [packed_batch(file.chats, [[i]], len(c), 0) for i, c in enumerate(file.chats)]
    losses = torch.cat([v[m] for v, m in (token_losses(run.model, b) for b in alone)])
    assert evaluate(run)["loss"] == pytest.approx(losses.mean().item(), rel=1e-4)
    assert len(losses) == file.n_tokens


def test_passes_with_unequal_counts_equal_the_big_batch(tokenizer):
    small, big = (
        a_run(tokenizer, "a"),
        a_run(tokenizer, "b", train_micro_batch_size_per_gpu=4, gradient_accumulation_steps=1),
    )
    steps = range(20)
    step = next(s for s in steps if len({b.n_targets for b in small.trainer.batches(s)}) == 2)
    passes, whole = small.trainer.batches(step), big.trainer.batches(step)
    found = []
    for run, batches in ((small, passes), (big, whole)):
        run.trainer.backward(batches)
        found.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]))
    assert (found[0] - found[1]).norm() < 1e-4 * found[1].norm()


def test_a_stopped_run_goes_on_to_the_same_bits(tokenizer):
    def stop(event):
        if event["event"] == "log" and event["step"] == 5:
            raise RuntimeError("stopped")

    train_run(a_run(tokenizer, "whole"), shown="lines")
    with pytest.raises(RuntimeError):
        train_run(a_run(tokenizer, "halves"), stop, shown="lines")
    seen = []
    train_run(a_run(tokenizer, "halves"), seen.append, shown="lines")
    assert [e["step"] for e in seen if e["event"] == "log"] == [5, 6]
    assert same(weights("whole/last"), weights("halves/last"))


def test_other_answers_do_not_go_on(tokenizer):
    train_run(a_run(tokenizer, "run"), shown="lines")
    run = a_run(tokenizer, "run")
    chat = run.data.files["train"].chats[0]
    chat.answer[:] = True
    with pytest.raises(NeoxError, match="run"):
        train_run(run, shown="lines")


def test_settings_of_the_model_are_refused(tokenizer):
    with pytest.raises(NeoxError, match="hidden_size: belongs to the model"):
        a_run(tokenizer, "run", hidden_size=64)


def test_learns_to_answer_and_to_stop(tokenizer, capsys):
    words = WORDS[:4]
    examples = [Example(said(f"Say {w}.", w)) for w in words]
    data = chat_data(tokenizer, examples, examples, 64)
    torch.manual_seed(0)
    model = GPT(
        ModelConfig(
            num_layers=2,
            hidden_size=64,
            num_attention_heads=2,
            seq_length=64,
            pos_emb="rotary",
            vocab_size=tokenizer.vocab_size,
        )
    )
    settings = dict(
        STEPS,
        log_interval=50,
        train_iters=250,
        eval_interval=250,
        checkpoint_factor=250,
        gradient_accumulation_steps=1,
        optimizer=dict(params=dict(lr=3e-3)),
    )
    asked = examples[0].messages[:1]
    run = chat_run(model, data, Path("run"), settings, dict(sample_tokens=16), prompt=asked)
    result = train_run(run, shown="lines")
    assert result.sample == run.plan.sample_prompt + words[0]  # nothing after its end
    shown = capsys.readouterr().err
    assert f"    | {words[0]}\n" in shown and "USER" not in shown
    found = answers(run.model.eval(), tokenizer, [f"Say {w}." for w in words], 16)
    assert found == [(w, True) for w in words]
    assert answers(run.model, tokenizer, ["Say fox."], 1)[0][1] is False  # cut, not ended


# the command


def a_base(tokenizer, folder="base"):
    plain = copy.copy(tokenizer)
    plain.files = {}
    some_model(tokenizer).save_pretrained(folder, plain)
    return folder


def test_command(tokenizer, capsys):
    write([dict(messages=e.messages, category=e.category) for e in some_examples()])
    words = [f"{key}={value}" for key, value in STEPS.items() if value is not None]
    given = [
        "--pretrained_ckpt_path",
        a_base(tokenizer),
        "--dataset-path",
        "data.jsonl",
        "--finetuned_model_dir",
        "tuned",
        *words,
    ]
    done = succeeds(neox_finetune_main, given, capsys)
    assert done.out.strip().splitlines()[-1] == str(Path("tuned/best"))
    assert "24 examples in 2 categories" in done.err and "before tuning" in done.err
    assert template_of(load_tokenizer("tuned/best")) == CHAT_TEMPLATE
    assert "is complete" in succeeds(neox_finetune_main, given, capsys).err


def test_command_refuses(tokenizer, capsys):
    base = a_base(tokenizer)
    write([dict(prompt="Say fox.", completion="fox")])
    train_tokenizer("abc" * 9 + "\n", "char").save(Path(base).parent)
    here = ["--pretrained_ckpt_path", base, "--dataset_path", "data.jsonl"]
    refuses(neox_finetune_main, here, capsys, "finetuned_model_dir")
    refuses(
        neox_finetune_main, [*here, "--finetuned_model_dir", "x"], capsys, "too few", steps=True
    )
    other = [*here, "--finetuned_model_dir", "x", "--tokenizer_path", "tokenizer.json"]
    refuses(neox_finetune_main, other, capsys, "is not the tokenizer that the model")
    assert not Path("x").exists()


def test_a_tokenizer_that_does_not_fit(tokenizer, capsys):
    "A model folder without a tokenizer of its own: too many ids are refused, else one line warns"
    some_model(tokenizer).save_pretrained("weights")
    prepare_words(tokenizer)
    Path("large").mkdir()
    train_tokenizer("".join(map(chr, range(200, 900))) * 2 + "abc\n", "char").save(Path("large"))
    given = ["--pretrained_ckpt_path", "weights", "--dataset_path", "data.jsonl"]
    given += ["--finetuned_model_dir", "tuned"]
    large = [*given, "--tokenizer_path", "large"]
    refuses(neox_finetune_main, large, capsys, "large", "--tokenizer_path", steps=True)
    assert not Path("tuned").exists()
    words = [f"{key}={value}" for key, value in STEPS.items() if value is not None]
    done = succeeds(neox_finetune_main, [*given, "--tokenizer_path", "base", *words], capsys)
    assert done.err.count("has no tokenizer of its own") == 1
    assert f"blind guessing ({np.log(tokenizer.vocab_size):.1f} nats" in done.err


OTHER_KINDS = dict(
    bert=("config.json", '{"model_type": "bert"}', "model_type"),
    nothing=("config.json", "{}", "model_type"),
    adapter=("adapter_config.json", '{"peft_type": "LORA"}', "adapter"),
)


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("command", ["finetune", "chat"])
def test_a_checkpoint_of_another_kind(tokenizer, capsys, kind, command):
    name, content, part = OTHER_KINDS[kind]
    write([dict(messages=e.messages) for e in some_examples()])
    Path("other").mkdir()
    Path("other", name).write_text(content)
    given = ["--pretrained_ckpt_path", "other", "--dataset_path", "data.jsonl"]
    given += ["--finetuned_model_dir", "tuned"]
    if command == "chat":
        refuses(neox_chat_main, ["other"], capsys, "other", part)
    else:
        refuses(neox_finetune_main, given, capsys, "other", part)
    assert not Path("tuned").exists()


def test_a_run_that_diverges_names_the_command_that_tunes(tokenizer, capsys):
    "neox_train cannot repeat it: the settings of a tuned run name no text"
    write([dict(messages=e.messages, category=e.category) for e in some_examples()])
    words = [f"{key}={value}" for key, value in STEPS.items() if value is not None]
    given = ["--pretrained_ckpt_path", a_base(tokenizer), "--dataset_path", "data.jsonl"]
    given += ["--finetuned_model_dir", "tuned", *words, "optimizer.params.lr=1e30"]
    advice = "neox_finetune with --finetuned_model_dir tuned-2 optimizer.params.lr=5e+29"
    line = refuses(neox_finetune_main, given, capsys, advice, steps=True)
    assert "neox_train" not in line


def test_a_folder_that_cannot_be_written_is_said_first(tokenizer, capsys):
    Path("a_file").write_text("not a folder")
    given = ["--pretrained_ckpt_path", "no_model", "--dataset_path", "no_data.jsonl"]
    given += ["--finetuned_model_dir", "a_file/tuned"]
    refuses(neox_finetune_main, given, capsys, "a_file/tuned: cannot be written")


# families and flags

# Pythia-160m has 12 layers, 12 heads and width 768; so have GPT-2 and the smallest LLaMAs
SHAPE = dict(num_layers=3, hidden_size=48, num_attention_heads=3)
FAMILIES = dict(
    gpt_neox=dict(pos_emb="rotary", rotary_pct=0.25, gpt_j_residual=True),
    gpt2=dict(pos_emb="learned", bias_gelu_fusion=True, no_weight_tying=False),
    llama=dict(
        pos_emb="rotary",
        norm="rmsnorm",
        activation="swiglu",
        use_bias_in_attn_linear=False,
        use_bias_in_mlp=False,
    ),
)


def all_flags(tokenizer, family="gpt_neox"):
    plain = copy.copy(tokenizer)
    plain.files = {}
    some_model(tokenizer, **SHAPE, **FAMILIES[family]).save_pretrained("base", plain)
    records = [dict(messages=e.messages, category=e.category) for e in some_examples()]
    write(records[4:])
    write(records[:4], "held.jsonl")
    Path("plays.txt").write_text("lamp fox hill stone\n" * 50)
    return {
        "--pretrained_ckpt_path": "base",
        "--tokenizer_path": "base",
        "--dataset_path": "data.jsonl",
        "--finetuned_model_dir": "tuned",
        "--held_out": "0.2",
        "--valid_path": "held.jsonl",
        "--watch": "plays.txt",
    }


def as_words(flags):
    words = [f"{key}={value}" for key, value in STEPS.items() if value is not None]
    return [word for pair in flags.items() for word in pair] + words


@pytest.mark.parametrize("family", FAMILIES)
def test_every_flag_in_each_family(tokenizer, capsys, family):
    from transformers import AutoModelForCausalLM

    done = succeeds(neox_finetune_main, as_words(all_flags(tokenizer, family)), capsys)
    assert done.out.strip() == str(Path("tuned/best"))
    seen = [json.loads(line) for line in Path("tuned/forgetting.jsonl").read_text().splitlines()]
    assert [one["step"] for one in seen] == [0, 3, 6]
    kind = json.loads(Path("tuned/best/config.json").read_text())["model_type"]
    assert kind == family
    ids = torch.randint(0, tokenizer.vocab_size, (2, 40))
    with torch.no_grad():
        ours = GPT.from_pretrained("tuned/best")(ids)
        theirs = AutoModelForCausalLM.from_pretrained("tuned/best")(ids).logits
        before = GPT.from_pretrained("base")(ids)
    assert (ours - theirs).abs().max() < 1e-4 * ours.abs().max()
    assert (ours - before).abs().max() > 1e-3 * ours.abs().max()


@pytest.mark.parametrize(
    "flag, value, parts",
    [
        ("--pretrained_ckpt_path", "nowhere", "nowhere"),
        ("--tokenizer_path", "nowhere/tokenizer.json", "nowhere"),
        ("--dataset_path", "nowhere.jsonl", "nowhere.jsonl"),
        ("--valid_path", "nowhere.jsonl", "nowhere.jsonl"),
        ("--watch", "nowhere.txt", "nowhere.txt"),
        ("--finetuned_model_dir", "plays.txt", "--finetuned_model_dir"),
        ("--valid_path", "data.jsonl", "are held out too"),
        ("--dataset_path", "plays.txt", "not records"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missing_or_wrong_file_is_named(tokenizer, capsys, flag, value, parts):
    flags = {**all_flags(tokenizer), flag: value}
    before = tree(".")
    refuses(neox_finetune_main, as_words(flags), capsys, parts, steps=True)
    assert tree(".") == before


@pytest.mark.parametrize("share", ["0", "1", "-1", "2", "nan"])
def test_a_share_that_is_none(tokenizer, capsys, share):
    flags = {**all_flags(tokenizer), "--held_out": share}
    del flags["--valid_path"]
    refuses(neox_finetune_main, as_words(flags), capsys, "held_out", steps=True)
    assert not Path("tuned").exists()


@pytest.mark.parametrize("word", ["data_path=x.txt", "vocab_file=x", "fit_to_text=true"])
def test_settings_of_the_text_are_refused(tokenizer, capsys, word):
    words = [*as_words(all_flags(tokenizer)), word]
    parts = word.split("=")[0], "belongs to the text"
    refuses(neox_finetune_main, words, capsys, *parts, steps=True)


# chat


def long_talk(n):
    return said(*[WORDS[i % 8] for i in range(n)])


def test_window_drops_whole_turns_from_the_front(tokenizer):
    talk = [dict(role=SYSTEM, content="Be"), *long_talk(15)]
    whole = len(chat_ids(tokenizer, talk, True))
    assert fit_dialogue(tokenizer, talk, whole) == (talk, 0)
    for room in range(60, whole):
        kept, dropped = fit_dialogue(tokenizer, talk, room)
        n_ids = len(chat_ids(tokenizer, kept, True))
        assert kept == talk[:1] + talk[1 + dropped :] and dropped % 2 == 0 < dropped
        assert n_ids <= room
        longer = talk[:1] + talk[dropped - 1 :]  # one turn more would not fit
        assert len(chat_ids(tokenizer, longer, True)) > room
    with pytest.raises(NeoxError, match="does not fit"):
        fit_dialogue(tokenizer, talk, 5)


def test_a_talk_says_what_it_forgets(tokenizer, capsys):
    model = some_model(tokenizer, seq_length=160, max_position_embeddings=160)
    talk = Dialogue(model, tokenizer, max_new_tokens=8, temperature=0)
    seen = []
    for n in range(12):
        before = talk.messages
        answer = "".join(talk.ask(f"Say {WORDS[n % 8]}."))
        prompt = chat_ids(tokenizer, talk.messages[:-1], True)
        assert len(prompt) + 8 <= 160
        assert talk.messages[-1] == dict(role=ASSISTANT, content=answer)
        forgot = len(before) + 2 - len(talk.messages)
        said_so = "forgotten" in capsys.readouterr().err
        assert said_so == (forgot > 0)
        seen.append(forgot)
    assert max(seen) > 0 and seen[0] == 0


def test_a_question_that_fails_leaves_the_talk_as_it_was(tokenizer):
    talk = Dialogue(some_model(tokenizer), tokenizer, max_new_tokens=4, temperature=0)
    first = "".join(talk.ask("Say fox."))
    before = talk.messages
    for bad in ("<|endoftext|>", "lamp " * 200):
        with pytest.raises(NeoxError):
            list(talk.ask(bad))
        assert talk.messages == before
    left = talk.ask("Say lamp.")
    next(left, None)
    left.close()
    assert talk.messages == before or len(talk.messages) == len(before) + 2
    assert before[1]["content"] == first


def test_chat_loop(tokenizer, capsys):
    talk = Dialogue(some_model(tokenizer), tokenizer, max_new_tokens=4, temperature=0)
    out = io.StringIO()
    chat_loop(talk, io.StringIO("Say fox.\n\n<|endoftext|>\n/new\nSay lamp.\n/quit\nnever\n"), out)
    assert [m["content"] for m in talk.messages if m["role"] == USER] == ["Say lamp."]
    assert "special token" in capsys.readouterr().err and "special token" not in out.getvalue()
    chat_loop(talk, io.StringIO("Say hill."), out)  # no line end, then the end of the input
    assert len(talk.messages) == 4


def test_chat_commands(tokenizer, capsys, monkeypatch):
    some_model(tokenizer, seed=2).save_pretrained("tuned", tokenizer)  # 1 answers with an end
    monkeypatch.setattr("sys.stdin", io.StringIO("Say fox.\n"))
    one = succeeds(neox_chat_main, ["tuned", "--temperature", 0], capsys).out
    monkeypatch.setattr("sys.stdin", io.StringIO("Say fox.\n"))
    other = succeeds(neox_generate_main, ["tuned", "--chat", "--temperature", 0], capsys).out
    assert one == other and one.strip()
    refuses(neox_generate_main, ["tuned", "--chat", "--prompt", "x"], capsys, "--prompt and --chat")
    base = a_base(tokenizer)
    refuses(neox_chat_main, [base], capsys, "no chat template", "--plain")
    monkeypatch.setattr("sys.stdin", io.StringIO("Say fox.\n"))
    assert succeeds(neox_chat_main, [base, "--plain", "--max_new_tokens", 4], capsys).out


# forgetting, kills, processes

TEXT = "lamp fox hill stone river bird cloud bread " * 40


def watched_run(tokenizer, folder):
    run = a_run(tokenizer, folder)
    forgetting = Forgetting(run, WatchedText(TEXT, tokenizer))
    forgetting.begin()
    return run, forgetting


def test_forgetting_is_watched_and_changes_nothing(tokenizer):
    run, forgetting = watched_run(tokenizer, "watched")
    train_run(run, forgetting, shown="lines")
    train_run(a_run(tokenizer, "alone"), shown="lines")
    assert same(weights("watched/last"), weights("alone/last"))
    steps = [one["step"] for one in forgetting.seen]
    assert steps == [0, 3, 6]
    kept = [json.loads(line) for line in Path("watched/forgetting.jsonl").read_text().splitlines()]
    assert kept == forgetting.seen
    tuned = a_run(tokenizer, "other")
    tuned.model.load_state_dict(weights("watched/last"))
    last = Forgetting(tuned, WatchedText(TEXT, tokenizer)).loss()
    assert last == pytest.approx(kept[-1]["loss"], rel=1e-5)
    assert abs(kept[0]["loss"] - kept[-1]["loss"]) > 1e-3  # it is not the first model


def test_best_is_chosen_by_held_out_answers(tokenizer):
    result = train_run(a_run(tokenizer, "run"), shown="lines")
    scores = {e["step"]: e["loss"] for e in result.events if e["event"] == "evaluation"}
    best = a_run(tokenizer, "again")
    best.model.load_state_dict(weights("run/best"))
    assert evaluate(best)["loss"] == pytest.approx(min(scores.values()), rel=1e-5)


WORKER = """
import sys, time
from shakespeare_neox.engine import tuning
from shakespeare_neox.finetune import neox_finetune_main
if "--slow" in sys.argv:
    sys.argv.remove("--slow")
    fast = tuning.RowData.batch_at
    tuning.RowData.batch_at = lambda *args: time.sleep(0.05) or fast(*args)
if "--same" in sys.argv:  # a mistake on purpose: all processes read the same rows
    sys.argv.remove("--same")
    real = tuning.RowData.batch_at
    tuning.RowData.batch_at = lambda self, seed, i, n: real(self, seed, i // 2, n)
neox_finetune_main()
"""


def tune_words(folder, *words, **settings):
    Path("worker.py").write_text(WORKER)
    given = {**STEPS, "train_iters": 16, "eval_interval": 8, **settings}
    words = [*words, *(f"{key}={json.dumps(value)}" for key, value in given.items())]
    flags = dict(pretrained_ckpt_path="base", dataset_path="data.jsonl", finetuned_model_dir=folder)
    return ["worker.py", *[w for k, v in flags.items() for w in (f"--{k}", v)], *words]


def prepare_words(tokenizer):
    a_base(tokenizer)
    write([dict(messages=e.messages, category=e.category) for e in some_examples()])


@pytest.mark.skipif(os.name == "nt", reason="signals as on POSIX")
def test_killed_runs_go_on_to_the_same_bits(tokenizer):
    prepare_words(tokenizer)
    whole = subprocess.run(
        [sys.executable, *tune_words("whole")], capture_output=True, text=True, timeout=300
    )
    assert whole.returncode == 0, whole.stderr
    for step in (3, 9):
        with Path("err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, *tune_words("killed", "--slow")], stderr=err, stdout=err
            )
            start = time.monotonic()
            while not re.search(rf"^step +{step}/16  loss", Path("err").read_text(), re.M):
                assert process.poll() is None and time.monotonic() - start < 200
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
    last = subprocess.run(
        [sys.executable, *tune_words("killed")], capture_output=True, text=True, timeout=300
    )
    assert "goes on from step" in last.stderr, last.stderr
    for part in ("last", "best"):
        assert same(weights(f"whole/{part}"), weights(f"killed/{part}"))


@pytest.mark.skipif(os.name == "nt", reason="torchrun as on POSIX")
def test_two_processes_tune_as_one(tokenizer):
    prepare_words(tokenizer)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    Path("watched.txt").write_text("Say lamp 1.\nfox done " * 80)
    found = {}
    for name, n, *words in (("one", 1), ("two", 2), ("same", 2, "--same")):
        words += ["--watch", "watched.txt"]
        words = tune_words(name, *words, train_micro_batch_size_per_gpu=4 // n, train_iters=4)
        done = subprocess.run(
            [*launch, str(n), *words], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        found[name] = torch.cat([w.flatten() for w in weights(f"{name}/last").values()])
        watched = Path(name, "forgetting.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in watched] == [0, 4], "one process writes"
        assert done.stderr.count("text watched") == 2, done.stderr
    start = torch.cat([w.flatten() for w in weights("base").values()])
    moved = (found["one"] - start).norm()
    assert (found["one"] - found["two"]).norm() < 0.01 * moved
    assert (found["one"] - found["same"]).norm() > 0.1 * moved


# real data


@pytest.mark.skipif(not own_files("dolly"), reason="needs NEOX_DATA")
def test_dolly():
    found = read_instructions("dolly")
    total = len(found.examples) + len(found.problems) + len(found.duplicates)
    assert total == 15_015 and len({e.category for e in found.examples}) == 8
    train, valid = split_examples(found.examples)
    assert 0.09 < len(valid) / len(found.examples) < 0.11
    assert not {e.question for e in train} & {e.question for e in valid}


def test_parquet_that_unpacks_to_too_much_is_refused(monkeypatch):
    "The limit of records holds for instructions too"
    datasets = pytest.importorskip("datasets")
    from shakespeare_neox.engine import instructions, records

    rows = [dict(prompt="Say fox.", completion="fox " * 5000, category="x")] * 50
    datasets.Dataset.from_list(rows).to_parquet("bomb.parquet")
    assert len(list(instructions.parquet_rows(Path("bomb.parquet")))) == 50
    monkeypatch.setattr(records, "UNPACKED_FREELY", 1000)
    monkeypatch.setattr(records, "UNPACKED_RATIO", 2)
    with pytest.raises(NeoxError, match="for each compressed byte"):
        list(instructions.parquet_rows(Path("bomb.parquet")))


@pytest.mark.slow
def test_the_shape_of_pythia_160m(tokenizer, capsys):
    "The worked example's sizes with random weights: two steps in a CPU's memory, a model comes out"
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)
    shape |= dict(intermediate_size=3072, max_position_embeddings=2048, rotary_pct=0.25)
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50304, **shape)).save_pretrained("pythia")
    plain = copy.copy(tokenizer)
    plain.files = {}
    plain.save(Path("pythia"))
    write([dict(messages=e.messages, category=e.category) for e in some_examples(12)])
    given = ["--pretrained_ckpt_path", "pythia", "--dataset_path", "data.jsonl"]
    given += ["--finetuned_model_dir", "tuned", "train_iters=2", "eval_interval=2"]
    given += ["train_micro_batch_size_per_gpu=1", "gradient_accumulation_steps=1"]
    done = succeeds(neox_finetune_main, [*given, "optimizer.params.lr=2e-5"], capsys)
    before = float(re.search(r"before tuning: ([\d.]+)", done.err)[1])
    log = [json.loads(line) for line in Path("tuned/log.jsonl").read_text().splitlines()]
    after = [event["loss"] for event in log if event["event"] == "evaluation"][-1]
    model = GPT.from_pretrained("tuned/best")
    assert 162e6 < sum(p.numel() for p in model.parameters()) < 163e6
    assert after < before
