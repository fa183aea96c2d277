"The loop, beyond what lesson 03 shows: odd batches, errors half way, frozen parts, going on"

import copy
import math

import numpy as np
import pytest
import torch

from shakespeare_neox.data import Batch, eval_batches, get_batch
from shakespeare_neox.engine.optimizers import (
    WeightAverage,
    make_optimizer,
    moments_of,
    parameter_groups,
)
from shakespeare_neox.model import GPT, ModelConfig
from shakespeare_neox.train import Callback, Score, Trainer, learning_rate, score, token_losses

IDS = np.random.default_rng(0).integers(0, 20, 700).astype(np.uint16)


def small(**settings):
    torch.manual_seed(0)
    sizes = dict(num_layers=2, hidden_size=32, num_attention_heads=2, seq_length=16)
    return GPT(ModelConfig(**{**sizes, "vocab_size": 20, "pos_emb": "rotary", **settings}))


def batches(step):
    return [get_batch(IDS, 0, 2 * step + i, 4, 16) for i in range(2)]


def trainer(model, n_steps=4, callbacks=(), **settings):
    optimizer = make_optimizer(model)
    return Trainer(model, optimizer, batches, lambda step: 0.01, n_steps, callbacks, **settings)


class Noted(Callback):
    "Notes each event; fails or stops where it is told to"

    def __init__(self, fails_at=None, stops_at=None):
        self.events, self.fails_at, self.stops_at = [], fails_at, stops_at

    def start(self, trainer):
        self.events.append("start")

    def step(self, trainer):
        self.events.append(trainer.step)
        if trainer.step == self.fails_at:
            raise KeyboardInterrupt
        trainer.stopping = trainer.step == self.stops_at

    def end(self, trainer):
        self.events.append("end")

    def close(self, trainer):
        self.events.append("close")


def test_events_in_order():
    noted = Noted()
    trainer(small(), 3, [noted]).fit()
    assert noted.events == ["start", 1, 2, 3, "end", "close"]


def test_a_callback_stops():
    noted = Noted(stops_at=2)
    trainer(small(), 4, [noted]).fit()
    assert noted.events == ["start", 1, 2, "end", "close"]


def test_all_are_closed_after_an_error():
    first, second = Noted(), Noted(fails_at=2)
    with pytest.raises(KeyboardInterrupt):
        trainer(small(), 4, [first, second]).fit()
    assert first.events == ["start", 1, 2, "close"] and second.events == ["start", 1, 2, "close"]


def test_nothing_left_to_do():
    noted = Noted()
    done = trainer(small(), 4, [noted])
    done.step = 4
    done.fit()
    assert noted.events == ["start", "end", "close"]


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_goes_on_to_the_same_bits(kind):
    "Weights, moments and the step are all that a loop needs to go on"

    def fresh(n_steps):
        model = small(hidden_dropout=0.0)
        optimizer = make_optimizer(model, kind, dict(lr=0.01))

        def schedule(step):
            return learning_rate(step, 0.01, 8, 0.2)

        return Trainer(model, optimizer, batches, schedule, n_steps)

    whole, half, rest = fresh(8), fresh(4), fresh(8)
    whole.fit()
    half.fit()
    rest.model.load_state_dict(half.model.state_dict())
    theirs = dict(zip(rest.model.parameters(), half.model.parameters()))
    for p, q in theirs.items():
        rest.optimizer.state[p] = copy.deepcopy(half.optimizer.state[q])
    rest.step = half.step
    rest.fit()
    for p, q in zip(whole.model.parameters(), rest.model.parameters()):
        assert torch.equal(p, q)


def test_passes_with_unequal_counts_are_one_batch():
    whole = get_batch(IDS, 0, 0, 8, 16)
    whole.y[:3] = -100
    whole.y[5, 7:] = -100
    gradients = []
    for passes in (
        [whole],
        [Batch(whole.x[i : i + 2], whole.y[i : i + 2]) for i in range(0, 8, 2)],
    ):
        one = trainer(small())
        loss = one.backward(passes)
        gradients.append(torch.cat([p.grad.flatten() for p in one.model.parameters()]))
        assert torch.isclose(loss, token_losses(small(), whole)[0].sum() / (whole.y != -100).sum())
    assert torch.allclose(*gradients, atol=1e-6)


def test_no_target_at_all_moves_nothing_to_nan():
    one = trainer(small())
    empty = get_batch(IDS, 0, 0, 4, 16)
    empty.y[:] = -100
    assert one.backward([empty]) == 0
    assert all(bool(p.grad.isfinite().all()) for p in one.model.parameters())


@pytest.mark.parametrize("max_norm", [None, 0, 1e9])
def test_without_clipping_gradients_stay(max_norm):
    one = trainer(small(), max_norm=max_norm)
    one.backward(batches(0))
    before = [p.grad.clone() for p in one.model.parameters()]
    norm = one.clip()
    assert all(torch.equal(p.grad, b) for p, b in zip(one.model.parameters(), before))
    assert torch.isclose(norm, torch.cat([b.flatten() for b in before]).norm())


def test_a_frozen_part_stays():
    model = small(no_weight_tying=True)
    model.blocks[0].requires_grad_(False)
    model.embed.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    for kind in ("adam", "muon"):
        Trainer(model, make_optimizer(model, kind), batches, lambda step: 0.01, 2).fit()
    after = model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved == trained


def test_a_tied_head_is_counted_once():
    for tied in (False, True):
        model = small(no_weight_tying=not tied)
        groups = parameter_groups(model)
        assert sum(map(len, groups.values())) == len(list(model.parameters()))
        assert len(groups["embeddings"]) == 2 - tied


@pytest.mark.parametrize("n", [2, 3, 15, 16, 17, 18, 33, 34, 700])
@pytest.mark.parametrize("stride", [None, 1, 5, 16])
def test_each_target_is_scored_once(n, stride):
    settings = {} if stride is None else dict(stride=stride)
    result = score(small(), eval_batches(IDS[:n], 4, 16, **settings))
    assert result.n_tokens == n - 1


def test_a_score_leaves_the_mode_as_it_was():
    model = small(hidden_dropout=0.5)
    model.train()
    first, second = (score(model, eval_batches(IDS, 4, 16)).nats for _ in range(2))
    assert first == second and model.training
    model.eval()
    score(model, eval_batches(IDS, 4, 16))
    assert not model.training
    model.train()
    with pytest.raises(ZeroDivisionError):
        score(model, (1 / 0 for _ in range(1)))
    assert model.training


def test_what_a_score_says():
    part = Score(nats=math.log(8) * 10, n_tokens=10, n_bytes=15)
    assert math.isclose(part.perplexity, 8) and math.isclose(part.bits_per_byte, 2)


def test_packed_rows_reach_the_model():
    seen = {}

    def model(ids, **packed):
        seen.update(packed)
        return torch.zeros(*ids.shape, 20)

    row = torch.zeros(1, 4, dtype=torch.long)
    token_losses(model, Batch(row, row))
    assert not seen
    token_losses(model, Batch(row, row, positions=row, document=row))
    assert set(seen) == {"positions", "document"}


def test_half_precision_is_scored_in_single():
    logits = torch.randn(1, 4, 20)
    row = torch.randint(0, 20, (1, 4))
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        losses, _ = token_losses(lambda ids, dtype=dtype: logits.to(dtype), Batch(row, row))
        assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_mean_of_weights():
    model = small()
    average = WeightAverage(model, 4)
    steps = trainer(model, 6, [average])
    steps.fit()
    assert not torch.equal(average.model.embed.weight, model.embed.weight)
    assert set(moments_of(steps.optimizer)) == set(model.parameters())
