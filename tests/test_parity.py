"Folders written here open in transformers with equal logits, and folders written there open here."
import itertools, json

import pytest
import torch
from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.decode import generate_ids
from shakespeare_neox.engine.serve import generate
from shakespeare_neox.model import GPT, ModelConfig
from shakespeare_neox.tokenizer import train_tokenizer

transformers = pytest.importorskip("transformers")
AutoModel, AutoTokenizer, AutoConfig = transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.AutoConfig
BASICS = dict(num_layers=2, hidden_size=64, num_attention_heads=4, seq_length=24, vocab_size=50, rotary_pct=0.5)
TEXT = "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n  Two   spaces, 'tis\n\n"
GRID = [dict(zip(("rotary_pct", "gpt_j_residual", "no_weight_tying", "use_bias_in_attn_linear"), v))
        for v in itertools.product((0.25, 0.5, 1.0), *[(False, True)]*3)]
OTHERS = [dict(activation="relu"), dict(activation="silu"), dict(activation="relu2"), dict(bias_gelu_fusion=True), dict(max_position_embeddings=40), dict(rotary_emb_base=500),
          dict(layernorm_epsilon=0.1), dict(intermediate_size=37), dict(hidden_dropout=0.2, attention_dropout=0.2),
          dict(make_vocab_size_divisible_by=1), dict(num_attention_heads=1), dict(num_layers=1, hidden_size=16, num_attention_heads=2)]


def randomize(model, std=0.3):
    "Every parameter random: a fresh model's zero biases hide mistakes"
    torch.manual_seed(0)
    for p in model.parameters(): torch.nn.init.normal_(p, std=std)
    return model.eval()


def ours(**settings): return randomize(GPT(ModelConfig(**{**BASICS, **settings})))


def ids_for(config, B=3):
    return torch.randint(config.vocab_size, (B, config.max_position_embeddings), generator=torch.Generator().manual_seed(1))


def differ(a, b): return ((a - b).abs().max()/b.abs().max()).item()


def theirs(**settings):
    "A random GPTNeoXForCausalLM, in the words of the installed version"
    rope = dict(rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5))
    if int(transformers.__version__.split(".")[0]) < 5: rope = dict(rotary_pct=0.5, rotary_emb_base=5000)
    sizes = dict(vocab_size=96, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, max_position_embeddings=32)
    return randomize(transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**{**sizes, **rope, **settings})))


@pytest.mark.parametrize("settings", GRID + OTHERS, ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()))
@torch.no_grad()
def test_logits_equal(settings, tmp_path):
    model = ours(**settings)
    model.save_pretrained(tmp_path/"m")
    ids, hf = ids_for(model.config), AutoModel.from_pretrained(tmp_path/"m").eval()
    assert type(hf).__name__ == "GPTNeoXForCausalLM" and next(hf.parameters()).dtype == torch.float32
    assert differ(model(ids), hf(ids).logits) < 1e-5
    assert torch.equal(GPT.from_pretrained(tmp_path/"m")(ids), model(ids))


@pytest.mark.parametrize("key, wrong", [("rotary_pct", 0.25), ("gpt_j_residual", True), ("bias_gelu_fusion", True), ("rotary_emb_base", 500)])
@torch.no_grad()
def test_a_wrong_setting_is_seen(key, wrong, tmp_path):
    "The comparison above can fail: the same weights under another setting disagree"
    model = ours(); model.save_pretrained(tmp_path/"m")
    other = GPT(ModelConfig(**{**BASICS, key: wrong})).eval(); other.load_state_dict(model.state_dict())
    ids = ids_for(model.config)
    assert differ(other(ids), AutoModel.from_pretrained(tmp_path/"m").eval()(ids).logits) > 1e-4


def test_config_round_trip(tmp_path):
    "config.json through AutoConfig, saved again by transformers, opens here as the same model"
    model = ours(gpt_j_residual=True, rotary_emb_base=500, max_position_embeddings=40, bias_gelu_fusion=True, layernorm_epsilon=1e-3)
    model.save_pretrained(tmp_path/"m")
    hf = AutoModel.from_pretrained(tmp_path/"m"); hf.save_pretrained(tmp_path/"again")
    config, again = AutoConfig.from_pretrained(tmp_path/"m"), GPT.from_pretrained(tmp_path/"again")
    assert (config.model_type, config.hidden_size, config.vocab_size, config.tie_word_embeddings) == ("gpt_neox", 64, 128, True)
    names = ("num_layers", "hidden_size", "rotary_pct", "rotary_emb_base", "gpt_j_residual", "no_weight_tying", "vocab_size", "padded_vocab_size",
             "seq_length", "max_position_embeddings", "layernorm_epsilon", "bias_gelu_fusion", "use_bias_in_attn_linear", "intermediate_size")
    assert {n: getattr(again.config, n) for n in names} == {n: getattr(model.config, n) for n in names}
    ids = ids_for(model.config)
    with torch.no_grad(): assert torch.equal(again(ids), model(ids))


FOREIGN = [dict(), dict(tie_word_embeddings=True), dict(use_parallel_residual=False), dict(attention_bias=False), dict(hidden_act="relu"),
           dict(hidden_act="silu"), dict(hidden_act="gelu_new"), dict(hidden_act="gelu_fast")]


@pytest.mark.parametrize("how", [dict(), dict(max_shard_size="40KB")], ids=["whole", "sharded"])
@pytest.mark.parametrize("settings", FOREIGN, ids=lambda s: str(s) if s else "defaults")
@torch.no_grad()
def test_folders_of_transformers_open(settings, how, tmp_path):
    hf = theirs(**settings); hf.save_pretrained(tmp_path/"hf", **how)
    assert (len(list((tmp_path/"hf").glob("*.safetensors"))) > 1) == bool(how)
    model = GPT.from_pretrained(tmp_path/"hf")
    ids = ids_for(model.config)
    assert differ(model(ids), hf(ids).logits) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_half_precision_opens(dtype, tmp_path):
    "The parameters become fp32, or what is asked for, and the logits are those of the rounded weights"
    theirs().to(dtype).save_pretrained(tmp_path/"hf")
    model, hf = GPT.from_pretrained(tmp_path/"hf"), AutoModel.from_pretrained(tmp_path/"hf", dtype=torch.float32).eval()
    ids = ids_for(model.config)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and differ(model(ids), hf(ids).logits) < 1e-5
    assert {p.dtype for p in GPT.from_pretrained(tmp_path/"hf", dtype=dtype).parameters()} == {dtype}


def test_rotary_scaling_is_refused(tmp_path):
    theirs().save_pretrained(tmp_path/"hf"); path = tmp_path/"hf/config.json"
    scaled = dict(rope_type="linear", factor=2.0, rope_theta=5000.0, partial_rotary_factor=0.5)
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_scaling": scaled, "rope_parameters": scaled}))
    with pytest.raises(NeoxError, match="linear"): GPT.from_pretrained(tmp_path/"hf")


@pytest.fixture(params=["char", "bpe"])
def tokenizer(request): return train_tokenizer(TEXT, request.param, 300)


@pytest.fixture
def saved(tokenizer, tmp_path):
    "A random model with a tokenizer, here and in transformers"
    model = ours(vocab_size=tokenizer.vocab_size, seq_length=48, no_weight_tying=True)
    model.save_pretrained(tmp_path/"m", tokenizer)
    return model, AutoModel.from_pretrained(tmp_path/"m").eval(), AutoTokenizer.from_pretrained(tmp_path/"m")


@pytest.mark.parametrize("text", [TEXT, "\n", " a", "light  \n\n  light ", "the east"], ids=repr)
def test_tokenizer_equal(tokenizer, saved, text):
    auto = saved[2]
    if tokenizer.kind != "characters": text += " \u2581naïve 𝒳 \t"
    ids = tokenizer.encode(text)
    assert auto(text)["input_ids"] == ids and auto.decode(ids) == tokenizer.decode(ids) == text
    assert (auto.eos_token_id, auto.pad_token_id, len(auto)) == (tokenizer.eot_id, tokenizer.pad_id, tokenizer.vocab_size)


@torch.no_grad()
def test_greedy_equal(tokenizer, saved):
    model, hf, auto = saved
    prompt = tokenizer.encode("ROMEO:\n")
    mine = [new for (new,) in generate_ids(model, tokenizer, [prompt], max_new_tokens=30, temperature=0)]
    out = hf.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=30, min_new_tokens=30, eos_token_id=None, pad_token_id=1)
    assert mine == out[0, len(prompt):].tolist()
    text = generate(model, tokenizer, "ROMEO:\n", max_new_tokens=30, temperature=0)
    stops = mine[:mine.index(tokenizer.eot_id)] if tokenizer.eot_id in mine else mine
    assert text == auto.decode(stops, skip_special_tokens=True)


@torch.no_grad()
def test_left_padding_equal(tokenizer, saved):
    "Rows of different length, padded on the left: logits, and the greedy continuation of the batch"
    model, hf, auto = saved
    rows = [tokenizer.encode(t) for t in ("ROMEO:\nBut, soft!", "It", "the sun.\n")]
    T = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_id]*(T - len(r)) + r for r in rows])
    mask = torch.tensor([[False]*(T - len(r)) + [True]*len(r) for r in rows])
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    a, b = model(ids, mask=mask), hf(ids, attention_mask=mask.long(), position_ids=positions).logits
    assert differ(a[mask], b[mask]) < 1e-5
    alone = torch.cat([model(torch.tensor([r]))[0] for r in rows])
    assert differ(a[mask], alone) < 1e-5
    out = hf.generate(ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=10, eos_token_id=None, pad_token_id=1)
    assert list(zip(*generate_ids(model, tokenizer, rows, max_new_tokens=10, temperature=0))) == [tuple(r) for r in out[:, ids.shape[1]:].tolist()]


@pytest.mark.parametrize("how", [dict(do_sample=False), dict(do_sample=True, top_k=0)], ids=["greedy", "sampled"])
@torch.no_grad()
def test_padded_ids_suppressed(how, tmp_path):
    "Padded ids made the likeliest of all are still never drawn, by transformers' own generate either"
    model, tokenizer = ours(vocab_size=50, no_weight_tying=True), train_tokenizer("".join(map(chr, range(97, 145))))
    model.head.weight[50:] *= 30
    model.save_pretrained(tmp_path/"m", tokenizer)
    hf, ids = AutoModel.from_pretrained(tmp_path/"m").eval(), torch.tensor([[5, 6, 7]]*4)
    assert hf.generation_config.suppress_tokens == list(range(50, 128))
    assert (hf(ids).logits[:, -1].argmax(-1) >= 50).all()                                     # it would take them, were it left to
    torch.manual_seed(0)
    assert hf.generate(ids, max_new_tokens=15, attention_mask=torch.ones_like(ids), **how).max() < 50
    assert max(max(new) for new in generate_ids(model, tokenizer, ids.tolist(), max_new_tokens=15)) < 50
