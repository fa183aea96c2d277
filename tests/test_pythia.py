"""gpt-neox's own Pythia recipes open as they are, with the published sizes; and what surprises a
reader of gpt-neox's keys."""

import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

from shakespeare_neox.data import eval_batches
from shakespeare_neox.engine.base import NeoxError, assets
from shakespeare_neox.engine.recipe import (
    MODEL_KEYS,
    TRAIN_KEYS,
    load_config,
    parse_override,
    read_recipe,
)
from shakespeare_neox.engine.run import evaluate, make_run
from shakespeare_neox.model import GPT, ModelConfig, activation_function, count_parameters, sample
from shakespeare_neox.train import token_losses

# The facts of gpt-neox's configs/pythia at ea7aefd (2026-05). Parameters: the table at the end of
# each Pythia model card for 70M to 12B; for 14M and 31M, which that table leaves out, the tensors
# of the published checkpoints.
TOKENIZER = 50277  # ids of the GPT-NeoX-20B tokenizer, which all sizes share
COLUMNS = (
    "num_layers hidden_size num_attention_heads lr train_micro_batch_size_per_gpu "
    "model_parallel_size inner all vocabulary"
)
SIZES = """
    14M   6  128  4 1e-3   32 1      1_189_888     14_067_712 50304
    31M   6  256  8 1e-3   32 1      4_739_072     30_494_720 50304
    70M   6  512  8 1e-3   32 1     18_915_328     70_426_624 50304
    160M 12  768 12 6e-4   32 1     85_056_000    162_322_944 50304
    410M 24 1024 16 3e-4   32 1    302_311_424    405_334_016 50304
    1B   16 2048  8 2.5e-4  4 1    805_736_448  1_011_781_632 50304
    1.4B 24 2048 16 2e-4   16 1  1_208_602_624  1_414_647_808 50304
    2.8B 32 2560 32 1.6e-4  8 1  2_517_652_480  2_775_208_960 50304
    6.9B 32 4096 32 1.2e-4  8 2  6_444_163_072  6_857_302_016 50432
    12B  36 5120 40 1.2e-4  8 4 11_327_027_200 11_846_072_320 50688
"""
SIZES = {
    name: dict(zip(COLUMNS.split(), (float(x) if "e-" in x else int(x) for x in row)))
    for name, *row in (line.split() for line in SIZES.strip().splitlines())
}
SMALL, LARGE, SAVES = ("14M", "31M"), ("6.9B", "12B"), [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
UNDERSCORED = """
    init_method output_layer_init_method min_lr zero_optimization train_micro_batch_size_per_gpu
    num_workers gradient_clipping steps_per_print wall_clock_breakdown
""".split()


def pythia(name):
    "The settings of one of gpt-neox's Pythia recipes, in its order"
    size, bucket = (
        SIZES[name],
        50_000_000 if name == "14M" else 1_260_000_000 if name in LARGE else 500_000_000,
    )
    scale = dict(
        loss_scale=0, loss_scale_window=1000, initial_scale_power=12, hysteresis=2, min_loss_scale=1
    )
    s = dict(
        pipe_parallel_size=int(name not in SMALL),
        model_parallel_size=size["model_parallel_size"],
        **{k: size[k] for k in ("num_layers", "hidden_size", "num_attention_heads")},
        seq_length=2048,
        max_position_embeddings=2048,
    )
    if name in LARGE:
        s |= dict(norm="layernorm")
    s |= dict(
        pos_emb="rotary",
        rotary_pct=0.25,
        no_weight_tying=True,
        gpt_j_residual=True,
        output_layer_parallelism="column",
    )
    if name != "1B":
        s |= dict(attention_config=[[["flash"], size["num_layers"]]])
    s |= dict(scaled_upper_triang_masked_softmax_fusion=True, bias_gelu_fusion=True)
    if name not in LARGE:
        s |= dict(init_method="small_init", output_layer_init_method="wang_init")
    s |= dict(
        optimizer=dict(type="Adam", params=dict(lr=size["lr"], betas=[0.9, 0.95], eps=1e-8)),
        min_lr=float(f"{size['lr'] / 10:.3g}"),
        zero_optimization=dict(
            stage=int(name not in (*SMALL, "1B")),
            allgather_partitions=True,
            allgather_bucket_size=bucket,
            overlap_comm=True,
            reduce_scatter=True,
            reduce_bucket_size=bucket,
            contiguous_gradients=True,
            cpu_offload=False,
        ),
    )
    if name == "1B":
        s |= dict(
            fp16=dict(enabled=True, type="bfloat16", auto_cast=True, **scale), fp32_allreduce=True
        )
    else:
        s |= dict(fp16=dict(fp16=True, enabled=True, **scale))
    s |= dict(train_micro_batch_size_per_gpu=size["train_micro_batch_size_per_gpu"])
    if steps := {"1B": 4, "2.8B": 2, "6.9B": 2, "12B": 2}.get(name):
        s |= dict(gradient_accumulation_steps=steps)
    s |= dict(data_impl="mmap") | (
        {} if name in LARGE else dict(num_workers={"14M": 4, "31M": 2}.get(name, 1))
    )
    s |= dict(
        checkpoint_activations=name not in SMALL,
        checkpoint_num_layers=1,
        partition_activations=name not in SMALL,
        synchronize_each_layer=True,
        gradient_clipping=1.0,
        weight_decay=0.1,
        hidden_dropout=0,
        attention_dropout=0,
        train_iters=143000,
        lr_decay_iters=143000,
        distributed_backend="nccl",
        lr_decay_style="cosine",
        warmup=0.01,
        checkpoint_factor=1000,
        extra_save_iters=SAVES,
        eval_interval={"14M": 100000, "31M": 100000, "70M": 100000, "2.8B": 40000}.get(
            name, 143000
        ),
        eval_iters=10,
        log_interval=10,
        steps_per_print=10,
        wall_clock_breakdown=True,
    )
    if name in ("2.8B", "12B"):
        s |= dict(log_grad_norm=True)
    if name in SMALL:
        s |= {
            f"{part}_data_paths": ["/data/pile_20B_tokenizer_text_document"]
            for part in ("train", "valid", "test")
        }
    return (
        s
        | dict(tokenizer_type="HFTokenizer")
        | (dict(vocab_file="/data/20B_tokenizer.json") if name in SMALL else {})
    )


def pythia_2023(name):
    """The same with what EleutherAI/pythia's older files add: hyphens, a key of old, and how the
    run was launched"""
    return pythia(name) | dict(gas=1, launcher="slurm", deepspeed_slurm=True)


def write(path, settings, hyphens):
    """A recipe as gpt-neox writes it: braces and quotes of JSON with comments, and a comma behind
    the last key"""

    def spelled(key):
        return key.replace("_", "-") if hyphens and key not in UNDERSCORED else key

    lines = [f'  "{spelled(k)}": {json.dumps(v)}, # {k}' for k, v in settings.items()]
    path.write_text("\n".join(["{", "  # parallelism settings", *lines, "}", ""]))
    return str(path)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("recipe", [pythia, pythia_2023], ids=["gpt-neox", "pythia"])
def test_pythia_recipe(name, recipe, tmp_path, capsys):
    """It opens; sizes, rates and the padded vocabulary are as published; what is ignored is said
    once"""
    settings, size = recipe(name), SIZES[name]
    opened = load_config(
        write(tmp_path / f"{name}.yml", settings, hyphens=name in SMALL or recipe is pythia_2023)
    )
    said = capsys.readouterr().err.splitlines()
    within = {f"fp16.{key}" for key in set(settings["fp16"]) - {"enabled", "type"}}
    assert len(said) == 1 and said[0].endswith(
        ": " + ", ".join(sorted(set(settings) - MODEL_KEYS - TRAIN_KEYS | within))
    )
    assert {
        "zero_optimization",
        "pipe_parallel_size",
        "distributed_backend",
        "steps_per_print",
    } <= set(re.findall(r"\w+", said[0]))
    assert opened.settings == settings and set(opened.model) <= MODEL_KEYS
    c, t, parts = (
        opened.model_config(TOKENIZER),
        opened.train,
        count_parameters(opened.model_config(TOKENIZER)),
    )
    assert c.padded_vocab_size == size["vocabulary"] and sum(parts.values()) == size["all"]
    assert sum(parts.values()) - parts["embedding"] - parts["head"] == size["inner"]
    assert (c.intermediate_size, c.head_size * c.num_attention_heads) == (
        4 * c.hidden_size,
        c.hidden_size,
    ) and c.rotary_size == c.head_size // 4
    assert (t.rates["lr"], t.min_lr, t.weight_decay, t.train_iters) == (
        size["lr"],
        pytest.approx(size["lr"] / 10),
        0.1,
        143000,
    )
    assert (t.wants("fp16"), t.wants("bf16")) == (
        name != "1B",
        name == "1B",
    )  # whose fp16 has type: bfloat16
    if name in LARGE:
        assert (c.init_method, c.output_layer_init_method) == (
            "normal",
            "scaled_normal",
        )  # theirs name none, so the defaults hold


def test_vocabulary_is_padded_for_model_parallelism(tmp_path):
    "12B was trained on 4 GPUs at once: without that fact it would have 384 rows too few, twice"
    settings = pythia("12B")
    del settings["model_parallel_size"]
    alone = load_config(write(tmp_path / "alone.yml", settings, False)).model_config(TOKENIZER)
    assert alone.padded_vocab_size == 50304
    assert SIZES["12B"]["all"] - sum(count_parameters(alone).values()) == 2 * 384 * 5120
    with pytest.raises(NeoxError, match="model_parallel_size"):
        load_config(write(tmp_path / "none.yml", settings | dict(model_parallel_size=0), False))


@pytest.mark.parametrize(
    "change",
    [
        dict(pipe_parallel_size=2),
        dict(attention_config=[[["flash", "sparse_fixed"], 3]]),
        dict(gpt_j_tied=True),
        dict(moe_num_experts=8),
    ],
    ids=lambda c: next(iter(c)),
)
def test_what_would_change_the_result_is_refused(change, tmp_path):
    with pytest.raises(NeoxError, match=next(iter(change))):
        load_config(write(tmp_path / "changed.yml", pythia("70M") | change, False))


def test_reference_of_keys():
    """Every key of gpt-neox stands in one place only, with a default and a meaning; harmless values
    are harmless, others are refused"""
    from shakespeare_neox.engine.recipe import sort_key

    neox = json.loads((assets("configs") / "gpt_neox_keys.json").read_text())
    refused, ignored = neox["refused"], neox["ignored"]
    assert not set(refused) & set(ignored) and not (set(refused) | set(ignored)) & (
        MODEL_KEYS | TRAIN_KEYS
    )
    assert (
        len(refused) > 40
        and len(ignored) > 200
        and list(refused) == sorted(refused)
        and list(ignored) == sorted(ignored)
    )
    for key, entry in (refused | ignored).items():
        assert 4 <= len(entry["meaning"].split()) <= 14 and "default" in entry, key
    for key, entry in refused.items():
        assert all(sort_key(key, value) == "ignored" for value in entry["harmless"])
        assert not entry["harmless"] or entry["default"] in entry["harmless"], key
        with pytest.raises(NeoxError, match=key):
            sort_key(key, "anything else")


NEOX_OPTIMIZERS = [
    "adam",
    "onebitadam",
    "cpu_adam",
    "cpu_torch_adam",
    "sm3",
    "madgrad_wd",
    "sgd",
    "lion",
]


@pytest.mark.parametrize("path", sorted(assets("configs").glob("*.yml")), ids=lambda p: p.stem)
def test_shipped_recipes_open_in_gpt_neox(path):
    """What gpt-neox checks when it opens a recipe: optimizer's type and params,
    max_position_embeddings, min_lr below the rate"""
    settings = read_recipe(path)
    if "num_layers" not in settings:
        pytest.skip("an addition to another recipe")
    optimizer = settings["optimizer"]
    assert (
        optimizer["type"].lower() in NEOX_OPTIMIZERS and "weight_decay" not in optimizer["params"]
    )
    assert (
        settings["max_position_embeddings"] >= settings["seq_length"]
        and settings["min_lr"] <= optimizer["params"]["lr"]
    )


# traps


def test_gelu_is_erf_and_tanh_when_fused(tmp_path):
    """Pythia's recipes are fused, so theirs is the tanh form; the constants are those of gpt-neox's
    kernel"""
    x = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    erf, tanh = (
        x * 0.5 * (1 + torch.erf(x / 2**0.5)),
        x * 0.5 * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))),
    )
    recipe = write(tmp_path / "70M.yml", pythia("70M"), False)
    fused, exact = (
        activation_function(load_config(recipe, bias_gelu_fusion=f).model_config(TOKENIZER))(x)
        for f in (True, False)
    )
    assert (exact - erf).abs().max() < 1e-12 and (fused - tanh).abs().max() < 1e-7
    assert 1e-4 < (fused - exact).abs().max() < 1e-3
    for name in ("relu", "silu"):  # the kernel is GELU's alone
        a, b = (
            activation_function(
                load_config(recipe, bias_gelu_fusion=f, activation=name).model_config(TOKENIZER)
            )(x)
            for f in (True, False)
        )
        assert torch.equal(a, b) and torch.equal(a, getattr(F, name)(x))


def test_char_level_tokenizer_means_bytes(tmp_path):
    with pytest.raises(NeoxError, match="bytes.*HFTokenizer"):
        load_config("quickstart", tokenizer_type="CharLevelTokenizer")
    with pytest.raises(NeoxError, match="nearest: HFTokenizer"):
        load_config("quickstart", tokenizer_type="HFTokeniser")


def test_positions_default_to_learned(tmp_path):
    settings = pythia("70M")
    del settings["pos_emb"]
    config = load_config(write(tmp_path / "70M.yml", settings, False)).model_config(TOKENIZER)
    assert (
        config.pos_emb == "learned"
        and sum(count_parameters(config).values()) == SIZES["70M"]["all"] + 2048 * 512
    )


def tiny(**settings):
    given = {}
    for word in TINY:
        given |= parse_override(word)
    return make_run(load_config("quickstart", **{**given, "save": "run", **settings}))


def test_eval_iters_counts_batches(here):
    """Not windows, nor tokens: two batches are scored, whatever their size, and the whole split
    where nothing is said"""
    score = {}
    for size in (2, 4):
        run = tiny(data_path="sample", eval_iters=2, train_micro_batch_size_per_gpu=size)
        first = [
            made for _, made in zip(range(2), eval_batches(run.data.files["valid"].ids, size, 32))
        ]
        with torch.no_grad():
            by_hand = (
                torch.stack([token_losses(run.model.eval(), made)[0].mean() for made in first])
                .mean()
                .item()
            )
        score[size] = evaluate(run)["loss"]
        assert first[0].x.shape == (size, 32) and score[size] == pytest.approx(by_hand, rel=1e-5)
        assert evaluate(tiny(data_path="sample", train_micro_batch_size_per_gpu=size))[
            "loss"
        ] != pytest.approx(by_hand, rel=1e-5)
    assert score[2] != pytest.approx(score[4], rel=1e-5)


@pytest.mark.parametrize(
    "padding,rows",
    [({}, 128), (dict(make_vocab_size_divisible_by=1), 65), (dict(model_parallel_size=4), 512)],
    ids=str,
)
@torch.no_grad()
def test_first_loss_and_padded_ids(padding, rows):
    """A fresh model knows nothing of padding: its loss is ln of the padded size; and even where
    padded ids are by far the likeliest, none is drawn"""
    torch.manual_seed(0)
    model = GPT(
        ModelConfig(
            num_layers=2,
            hidden_size=64,
            num_attention_heads=4,
            seq_length=64,
            vocab_size=65,
            pos_emb="rotary",
            rotary_pct=0.5,
            no_weight_tying=True,
            init_method="small_init",
            output_layer_init_method="wang_init",
            **padding,
        )
    ).eval()
    ids = torch.randint(65, (8, 65))
    logits = model(ids[:, :-1])
    assert (
        logits.shape[-1] == rows
        and abs(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) - math.log(rows)) < 0.25
    )
    model.head.weight[65:] *= 50
    drawn = sample(model, [1, 2, 3], 60)
    assert max(drawn) < 65 and (
        rows == 65 or (model(ids[:, 1:])[:, -1].argmax(-1) >= 65).float().mean() > 0.9
    )
