"""Speculative decoding writes what plain decoding writes, for any model, draft and setting"""

import random

import pytest
import torch

from shakespeare_neox.engine.checkpoints import open_checkpoint
from shakespeare_neox.engine.compiled import WORTH_COMPILING, CompiledDecoder, compiled_decoder
from shakespeare_neox.engine.decode import generate_ids
from shakespeare_neox.engine.serve import stream
from shakespeare_neox.engine.speculative import LookupDraft, ModelDraft, NgramDraft, speculate
from shakespeare_neox.model import GPT, ModelConfig

KINDS = {
    "gpt_neox": dict(),
    "gpt2": dict(pos_emb="learned", gpt_j_residual=False),
    "llama": dict(norm="rmsnorm", num_kv_heads=2, gpt_j_residual=False),
}


class RandomDraft:
    "Guesses at random, and draws: its draws must not move those of the model"

    def guess(self, decoder, n, **sampling):
        torch.rand(3, generator=decoder.rows[0].generator)
        return random.choices(range(decoder.known), k=n)


def a_model(window=32, seed=0, **settings):
    torch.manual_seed(seed)
    shape = dict(num_layers=2, hidden_size=32, num_attention_heads=4, vocab_size=23)
    config = ModelConfig(seq_length=window, max_position_embeddings=window, **shape, **settings)
    model = GPT(config).eval()
    with torch.no_grad():  # fresh weights write one id over and over, or all alike
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0, 0.7, 1.5])
def test_the_same_ids_as_without_a_draft(kind, temperature):
    model = a_model(**KINDS[kind])
    drafts = dict(
        lookup=LookupDraft,
        ngrams=lambda: NgramDraft([[random.randrange(23) for _ in range(500)]]),
        random=RandomDraft,
        model=lambda: ModelDraft(a_model(seed=1, **KINDS[kind]), None),
        itself=lambda: ModelDraft(model, None),
    )
    settings = [dict(top_k=9), dict(top_p=0.8, repetition_penalty=1.3)]
    for name, make in drafts.items():
        for seed, sampling in enumerate(settings):
            random.seed(seed)
            prompt = [random.randrange(23) for _ in range(1 + 19 * seed)]
            sampling = dict(sampling, temperature=temperature, seed=seed)
            plain = [new for (new,) in generate_ids(model, None, [prompt], 50, **sampling)]
            passes = list(speculate(model, None, prompt, make(), 50, most=7, **sampling))
            assert sum(passes, []) == plain, (name, sampling)
            assert all(passes)


def test_a_draft_that_is_right_saves_passes():
    model = a_model(window=128)
    passes = list(speculate(model, None, [1, 2], ModelDraft(model, None), 100, most=9))
    assert len(passes) < 20


def test_no_more_ids_than_were_asked_for():
    model = a_model()
    for n in range(6):
        written = sum(speculate(model, None, [3], ModelDraft(model, None), n), [])
        assert len(written) == n


def test_a_greedy_stream_is_the_greedy_text():
    model, tokenizer = open_checkpoint("shakespeare")
    texts = []
    for prompt in ("ROMEO:\n", "O"):
        steps = generate_ids(model, tokenizer, [tokenizer.encode(prompt)], 60, temperature=0)
        text = "".join(stream(model, tokenizer, prompt, temperature=0, max_new_tokens=60))
        texts.append(text)
        assert text == tokenizer.decode([new for (new,) in steps])
    assert all(texts)


def test_earlier_texts_are_looked_up_and_change_nothing():
    model = a_model(window=128)
    before = [new for (new,) in generate_ids(model, None, [[4, 5]], 100, temperature=0)]
    draft, plain = LookupDraft([[4, 5, *before]]), LookupDraft()
    passes = {}
    for name, made in (("earlier", draft), ("plain", plain)):
        written = list(speculate(model, None, [4, 5], made, 100, temperature=0))
        assert sum(written, []) == before
        passes[name] = len(written)
    assert passes["earlier"] < 15 < passes["plain"]


def test_a_lookup_forgets_what_it_met_first():
    draft = LookupDraft([range(70_000), range(200_000, 200_100)])
    assert len(draft.after) == 2**18
    assert tuple(range(200_000, 200_008)) in draft.after and tuple(range(8)) not in draft.after
    assert tuple(range(60_000, 60_012)) in draft.after


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_passes_write_the_same_ids(kind):
    model = a_model(**KINDS[kind])
    decoder = compiled_decoder(model, None)
    if decoder is None:
        pytest.skip("torch.compile does not work here")
    for most, sampling in ((16, dict(temperature=0)), (30, dict(temperature=0.9, top_k=9))):
        plain = [new for (new,) in generate_ids(model, None, [[1, 2, 3]], 90, **sampling)]
        for draft in (None, LookupDraft(), RandomDraft()):
            passes = speculate(
                model, None, [1, 2, 3], draft, 90, most=most, decoder=decoder, **sampling
            )
            assert sum(passes, []) == plain, (type(draft), sampling)
            decoder.drop(0)


def test_a_text_is_written_where_nothing_compiles(monkeypatch, capsys):
    def read(self, ids, positions):
        raise RuntimeError("no compiler")

    model, tokenizer = open_checkpoint("shakespeare")
    short = "".join(stream(model, tokenizer, "ROMEO:\n", temperature=0, max_new_tokens=60))
    monkeypatch.setattr(CompiledDecoder, "read", read)
    monkeypatch.setitem(WORTH_COMPILING, "greedy", 50)
    assert short == "".join(stream(model, tokenizer, "ROMEO:\n", temperature=0, max_new_tokens=60))
    said = capsys.readouterr().err
    assert "compiling for 60 tokens" in said and "(RuntimeError: " in said
