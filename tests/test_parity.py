"""Folders written here open in transformers with equal logits, and folders written there open here:
three families."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F

from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.checkpoints import (
    FAMILIES,
    family_for,
    full_name,
    open_checkpoint,
    packed,
    places,
    to_hf,
)
from shakespeare_neox.engine.decode import generate_ids
from shakespeare_neox.engine.serve import generate
from shakespeare_neox.engine.vocab import train_tokenizer
from shakespeare_neox.model import GPT, Cache, ModelConfig, count_parameters

transformers = pytest.importorskip("transformers")
AutoModel, AutoTokenizer, AutoConfig = (
    transformers.AutoModelForCausalLM,
    transformers.AutoTokenizer,
    transformers.AutoConfig,
)
BASICS = dict(num_layers=2, hidden_size=64, num_attention_heads=4, seq_length=24, vocab_size=50)
NEOX = dict(pos_emb="rotary", rotary_pct=0.5)
GPT2 = dict(pos_emb="learned", bias_gelu_fusion=True)
LLAMA = dict(
    pos_emb="rotary",
    norm="rmsnorm",
    activation="swiglu",
    no_weight_tying=True,
    use_bias_in_attn_linear=False,
    use_bias_in_mlp=False,
    use_bias_in_norms=False,
)
STYLES = dict(gpt_neox=NEOX, gpt2=GPT2, llama=LLAMA | dict(num_kv_heads=2))
CLASSES = dict(gpt_neox="GPTNeoXForCausalLM", gpt2="GPT2LMHeadModel", llama="LlamaForCausalLM")
TEXT = (
    "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet is "
    "the sun.\n  Two   spaces, 'tis\n\n"
)


def grid(style, **choices):
    return [style | dict(zip(choices, values)) for values in itertools.product(*choices.values())]


GRID = [
    *grid(
        NEOX,
        rotary_pct=[0.25, 0.5, 1.0],
        gpt_j_residual=[False, True],
        no_weight_tying=[False, True],
        use_bias_in_attn_linear=[False, True],
    ),
    *grid(
        GPT2,
        no_weight_tying=[False, True],
        use_bias_in_attn_linear=[False, True],
        use_bias_in_mlp=[False, True],
        use_bias_in_norms=[False, True],
    ),
    *grid(
        LLAMA,
        num_kv_heads=[4, 2, 1],
        activation=["swiglu", "geglu"],
        no_weight_tying=[False, True],
        use_bias_in_attn_linear=[False, True],
    ),
    *[
        style | other
        for style in (NEOX, GPT2)
        for other in (
            dict(activation="relu"),
            dict(activation="silu"),
            dict(activation="relu2"),
            dict(bias_gelu_fusion=False),
            dict(use_bias_in_mlp=False),
            dict(use_bias_in_norms=False),
            dict(layernorm_epsilon=0.1),
            dict(intermediate_size=37),
        )
    ],
    *[
        style | other
        for style in (NEOX, GPT2, LLAMA)
        for other in (
            dict(max_position_embeddings=40),
            dict(hidden_dropout=0.2, attention_dropout=0.2),
            dict(make_vocab_size_divisible_by=1),
            dict(num_attention_heads=1),
            dict(num_layers=1, hidden_size=16, num_attention_heads=2),
        )
    ],
    NEOX | dict(rotary_emb_base=500),
    NEOX | dict(bias_gelu_fusion=True),
    LLAMA | dict(rotary_emb_base=500),
    LLAMA | dict(use_bias_in_mlp=True),
    LLAMA | dict(intermediate_size=100, mlp_multiple_of=16),
    LLAMA | dict(rms_norm_epsilon=0.1),
]


def randomize(model, std=0.3):
    "Every parameter random: a fresh model's zero biases hide mistakes"
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.eval()


def ours(**settings):
    return randomize(GPT(ModelConfig(**{**BASICS, **settings})))


def ids_for(config, B=3):
    return torch.randint(
        config.vocab_size,
        (B, config.max_position_embeddings),
        generator=torch.Generator().manual_seed(1),
    )


def differ(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def theirs(kind="gpt_neox", **settings):
    "A random model of transformers, in the words of the installed version"
    old = int(transformers.__version__.split(".")[0]) < 5
    sizes = dict(
        vocab_size=96,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    if kind == "gpt_neox":
        rope = dict(
            rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5)
        )
        sizes |= dict(intermediate_size=96) | (
            dict(rotary_pct=0.5, rotary_emb_base=5000) if old else rope
        )
    elif kind == "llama":
        rope = dict(rope_parameters=dict(rope_type="default", rope_theta=5000.0))
        sizes |= dict(intermediate_size=90, num_key_value_heads=2) | (
            dict(rope_theta=5000.0) if old else rope
        )
    return randomize(AutoModel.from_config(AutoConfig.for_model(kind, **{**sizes, **settings})))


@pytest.mark.parametrize("settings", GRID, ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()))
def test_equal_in_transformers(settings, tmp_path):
    "Logits and all gradients, by way of a folder, and the folder opened again to the same bits"
    model = ours(**settings)
    model.save_pretrained(tmp_path / "m")
    family, ids = family_for(model.config), ids_for(model.config)
    hf = AutoModel.from_pretrained(tmp_path / "m", attn_implementation="eager").eval()
    assert type(hf).__name__ == family.class_name and next(hf.parameters()).dtype == torch.float32
    mine, other = model(ids), hf(ids).logits
    assert differ(mine, other) < 1e-5
    for logits in (mine, other):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    grads, where = (
        {full_name(family, n): p.grad for n, p in hf.named_parameters()},
        places(family, model.config),
    )
    for name, p in model.named_parameters():
        grad = where[name].packing.join([grads[n] for n in where[name].names], model.config)
        if grad.abs().max() > 1e-6:
            assert differ(p.grad, grad) < 2e-5, name
    again = GPT.from_pretrained(tmp_path / "m")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(w, again.state_dict()[n]) for n, w in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(ids), model(ids))


@pytest.mark.parametrize("kind", STYLES)
@torch.no_grad()
def test_cache_and_padding(kind, tmp_path):
    "Piece by piece with the cache, and rows padded on either side"
    model = ours(**STYLES[kind])
    model.save_pretrained(tmp_path / "m")
    ids, hf = ids_for(model.config), AutoModel.from_pretrained(tmp_path / "m").eval()
    cache = Cache(model.config, 3, 24)
    pieces = torch.cat(
        [model(piece, cache=cache) for piece in ids.split([11, 1, 12], dim=1)], dim=1
    )
    assert differ(pieces, hf(ids).logits) < 1e-5
    for mask in (
        torch.arange(24) < torch.tensor([[24], [9], [1]]),
        torch.arange(24) >= torch.tensor([[0], [9], [23]]),
    ):
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        reference = hf(ids, attention_mask=mask.long(), position_ids=positions).logits
        assert differ(model(ids, mask=mask)[mask], reference[mask]) < 1e-5
        assert (
            differ(model(ids)[mask], reference[mask]) > 1e-3 or mask[:, 0].all()
        )  # without the mask, left padding would count


WRONG = [
    ("gpt_neox", "rotary_pct", 0.25),
    ("gpt_neox", "gpt_j_residual", True),
    ("gpt_neox", "bias_gelu_fusion", True),
    ("gpt_neox", "rotary_emb_base", 500),
    ("gpt2", "bias_gelu_fusion", False),
    ("gpt2", "gpt_j_residual", True),
    ("gpt2", "layernorm_epsilon", 1e-2),
    ("llama", "rotary_emb_base", 500),
    ("llama", "activation", "geglu"),
    ("llama", "rotary_pct", 0.5),
    ("llama", "rms_norm_epsilon", 1e-2),
    ("llama", "gpt_j_residual", True),
]


@pytest.mark.parametrize("kind, key, wrong", WRONG)
@torch.no_grad()
def test_a_wrong_setting_is_seen(kind, key, wrong, tmp_path):
    "The comparison above can fail: the same weights under another setting disagree"
    model = ours(**STYLES[kind])
    model.save_pretrained(tmp_path / "m")
    other = GPT(ModelConfig(**{**BASICS, **STYLES[kind], key: wrong})).eval()
    other.load_state_dict(model.state_dict())
    ids = ids_for(model.config)
    assert differ(other(ids), AutoModel.from_pretrained(tmp_path / "m").eval()(ids).logits) > 1e-4


@pytest.mark.parametrize("kind", STYLES)
@torch.no_grad()
def test_a_wrong_packing_is_seen(kind, tmp_path):
    "Queries and keys exchanged, or the heads in another order"
    model = ours(**STYLES[kind])
    model.save_pretrained(tmp_path / "m")
    ids, hf = ids_for(model.config), AutoModel.from_pretrained(tmp_path / "m").eval()
    right = {name: w.clone() for name, w in model.state_dict().items()}
    for change in (
        lambda w: w.roll(16, 0),
        lambda w: w.unflatten(0, (-1, 16)).flip(0).flatten(0, 1) if kind != "llama" else w.flip(0),
    ):
        model.load_state_dict(
            {name: change(w) if "qkv" in name else w for name, w in right.items()}
        )
        assert differ(model(ids), hf(ids).logits) > 1e-2


SAME = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_kv_heads",
    "rotary_pct",
    "rotary_emb_base",
    "gpt_j_residual",
    "no_weight_tying",
    "vocab_size",
    "padded_vocab_size",
    "seq_length",
    "max_position_embeddings",
    "layernorm_epsilon",
    "rms_norm_epsilon",
    "bias_gelu_fusion",
    "use_bias_in_attn_linear",
    "use_bias_in_mlp",
    "use_bias_in_norms",
    "mlp_size",
    "pos_emb",
    "norm",
    "activation",
    "hidden_dropout",
    "attention_dropout",
)
OTHER = dict(
    gpt_neox=dict(
        gpt_j_residual=True,
        rotary_emb_base=500,
        max_position_embeddings=40,
        bias_gelu_fusion=True,
        layernorm_epsilon=1e-3,
        use_bias_in_mlp=False,
    ),
    gpt2=dict(
        max_position_embeddings=40,
        layernorm_epsilon=1e-3,
        use_bias_in_attn_linear=False,
        use_bias_in_norms=False,
        hidden_dropout=0.2,
    ),
    llama=dict(
        max_position_embeddings=40,
        rms_norm_epsilon=1e-3,
        use_bias_in_attn_linear=True,
        rotary_emb_base=500,
        hidden_dropout=0.2,
    ),
)


@pytest.mark.parametrize("kind", STYLES)
def test_config_round_trip(kind, tmp_path):
    "config.json through AutoConfig, saved again by transformers, opens here as the same model"
    model = ours(**STYLES[kind] | OTHER[kind])
    model.save_pretrained(tmp_path / "m")
    hf = AutoModel.from_pretrained(tmp_path / "m")
    hf.save_pretrained(tmp_path / "again")
    config, again = (
        AutoConfig.from_pretrained(tmp_path / "m"),
        GPT.from_pretrained(tmp_path / "again"),
    )
    assert (
        config.model_type,
        config.hidden_size,
        config.vocab_size,
        config.tie_word_embeddings,
    ) == (kind, 64, 128, kind != "llama")
    defaults = vars(ModelConfig(**BASICS)) | dict(mlp_size=0)
    unused = {"layernorm_epsilon"} if kind == "llama" else {"rms_norm_epsilon"}
    unused |= {"rotary_pct", "rotary_emb_base"} if kind == "gpt2" else set()
    names = [n for n in SAME if n not in unused]
    assert defaults.keys() >= set(names) and {n: getattr(again.config, n) for n in names} == {
        n: getattr(model.config, n) for n in names
    }
    ids = ids_for(model.config)
    with torch.no_grad():
        assert torch.equal(again(ids), model(ids))


FOREIGN = [
    ("gpt_neox", dict()),
    ("gpt_neox", dict(tie_word_embeddings=True)),
    ("gpt_neox", dict(use_parallel_residual=False)),
    ("gpt_neox", dict(attention_bias=False)),
    *[("gpt_neox", dict(hidden_act=act)) for act in ("relu", "silu", "gelu_new", "gelu_fast")],
    ("gpt2", dict()),
    ("gpt2", dict(tie_word_embeddings=False)),
    ("gpt2", dict(n_inner=100)),
    ("gpt2", dict(activation_function="gelu")),
    ("gpt2", dict(activation_function="relu")),
    ("gpt2", dict(reorder_and_upcast_attn=True)),
    ("llama", dict()),
    ("llama", dict(num_key_value_heads=4)),
    ("llama", dict(num_key_value_heads=1, tie_word_embeddings=True)),
    ("llama", dict(attention_bias=True)),
    ("llama", dict(mlp_bias=True)),
    ("llama", dict(hidden_act="gelu")),
    ("llama", dict(rms_norm_eps=1e-2)),
]


@pytest.mark.parametrize("how", [dict(), dict(max_shard_size="40KB")], ids=["whole", "sharded"])
@pytest.mark.parametrize("kind,settings", FOREIGN, ids=str)
@torch.no_grad()
def test_folders_of_transformers_open(kind, settings, how, tmp_path):
    hf = theirs(kind, **settings)
    hf.save_pretrained(tmp_path / "hf", **how)
    assert (len(list((tmp_path / "hf").glob("*.safetensors"))) > 1) == bool(how)
    model = GPT.from_pretrained(tmp_path / "hf")
    ids = ids_for(model.config)
    assert differ(model(ids), hf(ids).logits) < 1e-5
    model.save_pretrained(tmp_path / "again")
    hf.save_pretrained(tmp_path / "hf")
    stored = {full_name(FAMILIES[kind], n): w for n, w in hf.state_dict().items()}
    assert all(torch.equal(w, stored[n]) for n, w in packed(model, torch.float32).items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", STYLES)
@torch.no_grad()
def test_half_precision_opens(kind, dtype, tmp_path):
    """The parameters become fp32, or what is asked for, and the logits are those of the rounded
    weights"""
    theirs(kind).to(dtype).save_pretrained(tmp_path / "hf")
    model, hf = (
        GPT.from_pretrained(tmp_path / "hf"),
        AutoModel.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval(),
    )
    ids = ids_for(model.config)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and differ(
        model(ids), hf(ids).logits
    ) < 1e-5
    assert {p.dtype for p in GPT.from_pretrained(tmp_path / "hf", dtype=dtype).parameters()} == {
        dtype
    }


def rewrite(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


SCALED = dict(rope_type="linear", factor=2.0, rope_theta=5000.0)
REFUSED = [
    ("gpt_neox", dict(rope_scaling=SCALED, rope_parameters=SCALED), "linear"),
    ("llama", dict(rope_scaling=SCALED, rope_parameters=SCALED), "linear"),
    ("llama", dict(rope_parameters=dict(rope_type="llama3", factor=8.0, rope_theta=5e5)), "llama3"),
    ("llama", dict(head_dim=8), "head_dim"),
    ("llama", dict(hidden_act="relu"), "relu"),
    (
        "llama",
        dict(rope_parameters=dict(rope_type="default", rope_theta=5e3, partial_rotary_factor=0.5)),
        "partial_rotary_factor",
    ),
    ("llama", dict(num_key_value_heads=3), "num_kv_heads"),
    ("llama", dict(sliding_window=8, model_type="mistral"), "mistral"),
    ("gpt2", dict(scale_attn_weights=False), "scale_attn_weights"),
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
    ("gpt2", dict(add_cross_attention=True), "add_cross_attention"),
    ("gpt2", dict(activation_function="quick_gelu"), "quick_gelu"),
]


@pytest.mark.parametrize("kind,changes,part", REFUSED, ids=str)
def test_what_is_not_available_is_named(kind, changes, part, tmp_path):
    theirs(kind).save_pretrained(tmp_path / "hf")
    rewrite(tmp_path / "hf", **changes)
    with pytest.raises(NeoxError, match=part) as error:
        GPT.from_pretrained(tmp_path / "hf")
    assert "config.json" in str(error.value)


INEXPRESSIBLE = [
    (dict(pos_emb="none"), "pos_emb"),
    (GPT2 | dict(gpt_j_residual=True), "gpt_j_residual"),
    (GPT2 | dict(num_kv_heads=2), "num_kv_heads"),
    (NEOX | dict(num_kv_heads=2), "num_kv_heads"),
    (NEOX | dict(activation="swiglu"), "activation"),
    (GPT2 | dict(activation="geglu"), "activation"),
    (GPT2 | dict(norm="rmsnorm"), "norm"),
    (LLAMA | dict(rotary_pct=0.5), "rotary_pct"),
    (LLAMA | dict(gpt_j_residual=True), "gpt_j_residual"),
    (LLAMA | dict(activation="silu"), "activation"),
    (LLAMA | dict(pos_emb="learned"), "pos_emb"),
    (LLAMA | dict(norm="layernorm"), "activation"),
]


@pytest.mark.parametrize("settings,key", INEXPRESSIBLE, ids=str)
def test_what_no_class_expresses_is_not_saved(settings, key, tmp_path):
    with pytest.raises(NeoxError, match=f"^{key}: .* cannot be saved") as error:
        ours(**settings).save_pretrained(tmp_path / "m")
    assert "\n" not in str(error.value) and not (tmp_path / "m").exists()


def test_zero_biases_that_are_none(tmp_path):
    "What transformers trains where there were no biases is not forgotten here"
    ours(**GPT2, use_bias_in_mlp=False).save_pretrained(tmp_path / "m")
    hf = AutoModel.from_pretrained(tmp_path / "m")
    assert not hf.transformer.h[0].mlp.c_fc.bias.any()
    assert GPT.from_pretrained(tmp_path / "m").blocks[0].mlp.up.bias is None
    hf.transformer.h[1].mlp.c_fc.bias.data[3] = 1
    hf.save_pretrained(tmp_path / "trained")
    with pytest.raises(
        NeoxError, match="transformer.h.1.mlp.c_fc.bias is not zero; set use_bias_in_mlp to true"
    ):
        GPT.from_pretrained(tmp_path / "trained")
    rewrite(tmp_path / "trained", use_bias_in_mlp=True)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert differ(GPT.from_pretrained(tmp_path / "trained")(ids), hf.eval()(ids).logits) < 1e-5


@torch.no_grad()
def test_names_without_prefix(tmp_path):
    "The first GPT-2 of the hub: names without transformer., and buffers of masks"
    from safetensors.torch import load_file, save_file

    hf = theirs("gpt2")
    hf.save_pretrained(tmp_path / "m")
    weights = {
        n.removeprefix("transformer."): w
        for n, w in load_file(tmp_path / "m/model.safetensors").items()
    }
    weights |= {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(3)} | {
        "h.0.attn.masked_bias": torch.tensor(-1e4)
    }
    save_file(weights, tmp_path / "m/model.safetensors", metadata={"format": "pt"})
    model = GPT.from_pretrained(tmp_path / "m")
    assert differ(model(ids_for(model.config)), hf(ids_for(model.config)).logits) < 1e-5


PUBLISHED = {
    "GPT-2": (GPT2, 12, 768, 12, 124_439_808),
    "GPT-2 medium": (GPT2, 24, 1024, 16, 354_823_168),
    "GPT-2 large": (GPT2, 36, 1280, 20, 774_030_080),
    "GPT-2 XL": (GPT2, 48, 1600, 25, 1_557_611_200),
    "LLaMA 7B": (
        LLAMA | dict(vocab_size=32000, intermediate_size=32768, mlp_multiple_of=256),
        32,
        4096,
        32,
        6_738_415_616,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    "Counted without allocating anything, here and by the family's own table"
    style, n_layers, width, n_heads, published = PUBLISHED[name]
    config = ModelConfig(
        **{
            **BASICS,
            "vocab_size": 50257,
            "seq_length": 1024,
            "make_vocab_size_divisible_by": 1,
            **style,
            "num_layers": n_layers,
            "hidden_size": width,
            "num_attention_heads": n_heads,
        }
    )
    stored = sum(
        torch.Size(shape).numel()
        for place in places(family_for(config), config).values()
        for shape in place.shapes
    )
    assert sum(count_parameters(config).values()) == stored == published
    if name == "LLaMA 7B":
        assert to_hf(config)["intermediate_size"] == 11008


RECIPES = dict(
    nanogpt_char=("gpt2", 65, 10_646_784 + 256 * 384),
    gpt2_124m=("gpt2", 50257, 124_439_808 + 47 * 768),
    llama_char=("llama", 65, 10_646_784),
    llama_15m=("llama", 32000, 15_191_712),
)


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_of_recipes(name):
    """nanoGPT counts its character model without the positions; GPT-2's vocabulary is padded by 47
    rows"""
    from shakespeare_neox.engine.recipe import load_config

    family, n_ids, n_parameters = RECIPES[name]
    config = load_config(name).model_config(n_ids)
    assert (
        family_for(config).model_type == family
        and sum(count_parameters(config).values()) == n_parameters
    )


@pytest.fixture(params=["char", "bpe"])
def tokenizer(request):
    return train_tokenizer(TEXT, request.param, 300)


@pytest.fixture(params=STYLES)
def saved(request, tokenizer, tmp_path):
    "A random model with a tokenizer, here and in transformers"
    model = ours(
        **STYLES[request.param]
        | dict(vocab_size=tokenizer.vocab_size, seq_length=48, no_weight_tying=True)
    )
    model.save_pretrained(tmp_path / "m", tokenizer)
    return (
        model,
        AutoModel.from_pretrained(tmp_path / "m").eval(),
        AutoTokenizer.from_pretrained(tmp_path / "m"),
    )


@pytest.mark.parametrize("text", [TEXT, "\n", " a", "light  \n\n  light ", "the east"], ids=repr)
def test_tokenizer_equal(tokenizer, text, tmp_path):
    ours(vocab_size=tokenizer.vocab_size).save_pretrained(tmp_path / "m", tokenizer)
    auto = AutoTokenizer.from_pretrained(tmp_path / "m")
    if tokenizer.kind == "byte-level BPE":
        text += " \u2581naïve 𝒳 \t"
    ids = tokenizer.encode(text)
    assert auto(text)["input_ids"] == ids and auto.decode(ids) == tokenizer.decode(ids) == text
    assert (auto.eos_token_id, auto.pad_token_id, len(auto)) == (
        tokenizer.eot_id,
        tokenizer.pad_id,
        tokenizer.vocab_size,
    )


@torch.no_grad()
def test_greedy_equal(tokenizer, saved):
    model, hf, auto = saved
    prompt = tokenizer.encode("ROMEO:\n")
    mine = [
        new for (new,) in generate_ids(model, tokenizer, [prompt], max_new_tokens=30, temperature=0)
    ]
    out = hf.generate(
        torch.tensor([prompt]),
        do_sample=False,
        max_new_tokens=30,
        min_new_tokens=30,
        eos_token_id=None,
        pad_token_id=1,
    )
    assert mine == out[0, len(prompt) :].tolist()
    text = generate(model, tokenizer, "ROMEO:\n", max_new_tokens=30, temperature=0)
    stops = mine[: mine.index(tokenizer.eot_id)] if tokenizer.eot_id in mine else mine
    assert text == auto.decode(stops, skip_special_tokens=True)


@torch.no_grad()
def test_batch_equal(tokenizer, saved):
    "Rows of different length: the greedy continuation of the batch, here as in transformers"
    model, hf, auto = saved
    rows = [tokenizer.encode(t) for t in ("ROMEO:\nBut, soft!", "It", "the sun.\n")]
    longest = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_id] * (longest - len(r)) + r for r in rows])
    mask = torch.tensor([[False] * (longest - len(r)) + [True] * len(r) for r in rows])
    alone = torch.cat([model(torch.tensor([r]))[0] for r in rows])
    assert differ(model(ids, mask=mask)[mask], alone) < 1e-5
    out = hf.generate(
        ids,
        attention_mask=mask.long(),
        do_sample=False,
        max_new_tokens=10,
        eos_token_id=None,
        pad_token_id=1,
    )
    assert list(zip(*generate_ids(model, tokenizer, rows, max_new_tokens=10, temperature=0))) == [
        tuple(r) for r in out[:, ids.shape[1] :].tolist()
    ]


@pytest.mark.parametrize(
    "how", [dict(do_sample=False), dict(do_sample=True, top_k=0)], ids=["greedy", "sampled"]
)
@torch.no_grad()
def test_padded_ids_suppressed(how, tmp_path):
    """Padded ids made the most likely of all are still never drawn, by transformers' own generate
    either"""
    model, tokenizer = (
        ours(**NEOX, no_weight_tying=True),
        train_tokenizer("".join(map(chr, range(97, 145)))),
    )
    model.head.weight[50:] *= 30
    model.save_pretrained(tmp_path / "m", tokenizer)
    hf, ids = AutoModel.from_pretrained(tmp_path / "m").eval(), torch.tensor([[5, 6, 7]] * 4)
    assert hf.generation_config.suppress_tokens == list(range(50, 128))
    assert (hf(ids).logits[:, -1].argmax(-1) >= 50).all()  # it would take them, were it left to
    torch.manual_seed(0)
    assert (
        hf.generate(ids, max_new_tokens=15, attention_mask=torch.ones_like(ids), **how).max() < 50
    )
    assert (
        max(max(new) for new in generate_ids(model, tokenizer, ids.tolist(), max_new_tokens=15))
        < 50
    )


@torch.no_grad()
def test_a_llama_with_a_sentencepiece_tokenizer(tmp_path):
    """Spaces as ▁, unknown characters as bytes, a first token for the beginning: opened, encoded,
    continued as in transformers"""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, trainers

    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    backend.decoder = decoders.Sequence(steps)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    backend.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=340, special_tokens=first[:3], initial_alphabet=["▁"], show_progress=False
        ),
    )
    vocab = json.loads(backend.to_str())["model"]
    ranks = {
        token: i for i, token in enumerate([*first, *[t for t in vocab["vocab"] if t not in first]])
    }
    merges = [tuple(m) for m in vocab["merges"]]
    whole = Backend(
        models.BPE(vocab=ranks, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    whole.normalizer, whole.decoder = backend.normalizer, backend.decoder
    whole.add_special_tokens(first[:3])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    hf = theirs("llama", vocab_size=len(ranks))
    hf.save_pretrained(tmp_path / "m")
    fast.save_pretrained(tmp_path / "m")
    model, tokenizer = open_checkpoint(str(tmp_path / "m"))
    for text in ("But, soft!", "the east  and", "naïve sun"):
        ids = tokenizer.encode(text)
        assert (
            ids == fast(text, add_special_tokens=False)["input_ids"]
            and tokenizer.decode(ids).strip() == text
        )
    ids = tokenizer.encode("It is")
    out = hf.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0
    )[0, len(ids) :].tolist()
    assert [
        new for (new,) in generate_ids(model, tokenizer, [ids], max_new_tokens=12, temperature=0)
    ] == out
