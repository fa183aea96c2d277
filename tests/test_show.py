"Pictures: their numbers against independent computations, their text escaped and complete."

import math
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from shakespeare_neox.data import Batch
from shakespeare_neox.engine import show
from shakespeare_neox.engine.base import NeoxError
from shakespeare_neox.engine.vocab import train_tokenizer
from shakespeare_neox.model import GPT, ModelConfig
from shakespeare_neox.train import Callback, Trainer

transformers = pytest.importorskip("transformers")
VERSE = (
    "ROMEO:\nBut, soft! what light through yonder window breaks?\n"
    'It is the east & "Juliet" is <b>.\n'
)
SIZES = dict(num_layers=2, hidden_size=48, num_attention_heads=4, seq_length=128, vocab_size=60)
NEOX = dict(pos_emb="rotary", rotary_pct=0.5, gpt_j_residual=True)
GPT2 = dict(bias_gelu_fusion=True)
LLAMA = dict(
    pos_emb="rotary",
    norm="rmsnorm",
    activation="swiglu",
    num_kv_heads=2,
    no_weight_tying=True,
    use_bias_in_attn_linear=False,
    use_bias_in_mlp=False,
)
FAMILIES = dict(gpt_neox=NEOX, gpt2=GPT2, llama=LLAMA)


@pytest.fixture(scope="module")
def model():
    return random_model(**NEOX)


@pytest.fixture(scope="module")
def characters():
    return train_tokenizer(VERSE, "char")


@pytest.fixture(scope="module")
def pairs():
    return train_tokenizer(VERSE * 20, "bpe", 290)


def random_model(**settings):
    "A model whose every parameter is random"
    torch.manual_seed(0)
    model = GPT(ModelConfig(**{**SIZES, **settings}))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    "A model and the same one as transformers opens it"
    folder = tmp_path_factory.mktemp("show") / "m"
    model = random_model(**FAMILIES[request.param])
    model.save_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return model, theirs.eval()


def differ(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@torch.no_grad()
def test_attention_is_that_of_transformers(both, characters):
    model, theirs = both
    ids = characters.encode(VERSE)[:100]
    expected = theirs(torch.tensor([ids]), output_attentions=True).attentions
    for layer in range(2):
        weights = show.attention_weights(model, ids, layer)
        assert differ(weights, expected[layer][0]) < 1e-5
        assert differ(weights, expected[1 - layer][0]) > 0.1  # the other layer's differ
    shown = show.show_attention(model, characters, VERSE, layer=1, head=2, longest=20).values
    expected = theirs(torch.tensor([ids[:20]]), output_attentions=True).attentions
    assert differ(shown, expected[1][0, 2]) < 1e-5


@torch.no_grad()
def test_attention_leaves_no_trace(characters):
    model = random_model(attention_dropout=0.5, hidden_dropout=0.5).train()
    ids = characters.encode(VERSE)[:30]
    assert torch.equal(show.attention_weights(model, ids, 0), show.attention_weights(model, ids, 0))
    assert model.training
    assert not show.attention_modules(model)[0]._forward_pre_hooks


@torch.no_grad()
def test_wrong_variants_of_attention_are_seen(both, characters, monkeypatch):
    model, theirs = both
    ids = characters.encode(VERSE)[:100]
    expected = theirs(torch.tensor([ids]), output_attentions=True).attentions[0][0]
    right = show.queries_and_keys
    for wrong in (
        lambda q, k: (2 * q, k),
        lambda q, k: (q.flip(1), k),
        lambda q, k: (k, q),
        lambda q, k: (q, k.roll(1, 2)),
    ):
        monkeypatch.setattr(
            show, "queries_and_keys", lambda *args, wrong=wrong: wrong(*right(*args))
        )
        assert differ(show.attention_weights(model, ids, 0), expected) > 0.05


@torch.no_grad()
def test_surprise_is_the_loss_of_transformers(both, characters):
    model, theirs = both
    ids = characters.encode(VERSE)
    nats = show.surprise(model, ids)
    assert math.isnan(nats[0]) and len(nats) == len(ids)
    batch = torch.tensor([ids])
    assert abs(nats[1:].mean() - theirs(batch, labels=batch).loss) < 1e-4
    logits = theirs(batch).logits[0].double()
    expected = torch.nn.functional.cross_entropy(logits[:-1], batch[0, 1:], reduction="none")
    assert differ(nats[1:].double(), expected) < 1e-5
    assert differ(nats[:-1].nan_to_num().double(), expected) > 0.1  # one place off


@torch.no_grad()
def test_a_text_longer_than_the_context_is_scored_token_by_token(characters):
    model = random_model(seq_length=16, max_position_embeddings=16).eval()
    ids = (characters.encode(VERSE) * 2)[:75]
    nats = show.surprise(model, ids)
    for n in range(1, 75):
        window = 0 if n <= 16 else math.ceil((n - 16) / 8) * 8
        logits = model(torch.tensor([ids[window:n]]))[0, -1]
        assert abs(nats[n] + logits.log_softmax(-1)[ids[n]]) < 1e-4
    model.train()
    show.surprise(model, ids)
    assert model.training


def test_surprise_picture(model, characters):
    shown = show.show_surprise(model, characters, VERSE)
    texts, nats = zip(*shown.values)
    assert "".join(texts) == VERSE
    mean = f"{np.nanmean(nats):.2f} nats"
    assert mean in shown.text and mean in shown.html
    shares = [float(s) for s in re.findall(r"rgba\(213,94,0,([\d.]+)\)", shown.html)]
    blind = math.log(characters.vocab_size)
    assert shares[0] == 0
    assert shares[1:] == pytest.approx([0.6 * min(1, n / blind) for n in nats[1:]], abs=0.006)
    lines = shown.text.splitlines()
    assert [int(d) for d in lines[1].split()[0]] == [min(9, round(n)) for n in nats[1:7]]
    notes = re.findall(r'title="([^"]*)"', shown.html)
    assert "first token" in notes[0] and "nan" not in shown.html and "nan" not in shown.text
    assert f"{math.exp(-nats[1]):.2%}" in notes[1] and show.DIGITS in lines


def inside(html):
    "What a browser shows of HTML, by Python's own parser"
    from html.parser import HTMLParser

    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found, self.tags = "", set()

        def handle_data(self, data):
            self.found += data

        def handle_starttag(self, tag, attrs):
            self.tags |= {tag, *(name for name, _ in attrs)}

    reader = Reader()
    reader.feed(html)
    return reader


@pytest.mark.parametrize(
    "text",
    [
        VERSE,
        "<script>alert(1)</script>",
        '" onmouseover="x',
        "&amp; ' <",
        "a\u202eb\x00c\u2028d\te",
    ],
)
def test_html_is_escaped(text):
    tokenizer = train_tokenizer(text, "char")
    model = random_model(vocab_size=tokenizer.vocab_size)
    for shown in (show.show_tokens(tokenizer, text), show.show_surprise(model, tokenizer, text)):
        read = inside(shown.html)
        assert read.tags == {"div", "span", "style", "title"}
        assert read.found.startswith(show.visible(text, line_end="↵\n"))
        assert not set("\u202e\x00\u2028") & set(shown.html + shown.text)


@pytest.mark.parametrize("text", [VERSE, "é", "naïve 🙂 ende", "  two\n\n\nlines "])
def test_tokens_have_their_own_text(text, pairs, characters):
    ids = pairs.encode(text)
    texts = show.token_texts(pairs, ids)
    assert len(texts) == len(ids)
    assert "".join(t for t in texts if t != show.PART) == text
    assert [i for i, _ in show.show_tokens(pairs, text).values] == ids


def test_parts_of_characters(pairs):
    assert show.token_texts(pairs, pairs.encode("🙂")) == [show.PART] * 3 + ["🙂"]
    assert show.token_texts(pairs, pairs.encode("🙂")[:2]) == [show.PART] * 2
    assert show.token_texts(pairs, [pairs.eot_id]) == [f"⟨{pairs.eot_id}⟩"]


def test_what_is_left_out_is_said(model, characters):
    said = f"the first 7 of {len(characters.encode(VERSE)):,} tokens"
    for shown in (
        show.show_tokens(characters, VERSE, longest=7),
        show.show_surprise(model, characters, VERSE, longest=7),
    ):
        assert said in shown.text and said in shown.html
    shown = show.show_attention(model, characters, VERSE, longest=7)
    assert said in shown.text and shown.values.shape == (7, 7)
    assert said in shown.figure.axes[0].get_title()
    assert "the first" not in show.show_tokens(characters, VERSE).text
    shown = show.show_embeddings(random_model(), characters, longest=7)
    assert f"7 of {characters.vocab_size} tokens" in shown.text and len(shown.values) == 7


def test_embeddings_are_principal_components(characters):
    model = random_model()
    shown = show.show_embeddings(model, characters)
    kept = show.known_tokens(characters)
    rows = show.embedding_rows(model)[list(kept)].double().numpy()
    variance, directions = np.linalg.eigh(np.cov(rows.T))
    expected = (rows - rows.mean(0)) @ directions[:, [-1, -2]]
    found = np.array([shown.values[text] for text in kept.values()])
    assert np.allclose(np.abs(found), np.abs(expected), atol=1e-6)
    not_centred = rows @ directions[:, [-1, -2]]
    assert not np.allclose(np.abs(found), np.abs(not_centred), atol=1e-2)
    share = f"({variance[-1] / variance.sum():.0%} of the variance)"
    assert share in shown.figure.axes[0].get_xlabel()


def test_embeddings_of_words(pairs):
    shown = show.show_embeddings(random_model(vocab_size=pairs.vocab_size), pairs)
    assert all(len(text) > 1 for text in shown.values)
    assert f"{len(shown.values)} of {pairs.vocab_size} tokens" in shown.text


def test_labels_of_embeddings_lie_apart(characters, pairs):
    "Also where many tokens have the same embedding"
    for tokenizer in (characters, pairs):
        model = random_model(vocab_size=tokenizer.vocab_size)
        boxes_apart(show.show_embeddings(model, tokenizer).figure)
        with torch.no_grad():
            model.embed.weight[8:] = model.embed.weight[8]
        boxes_apart(show.show_embeddings(model, tokenizer).figure)


def test_labels_with_room_stay():
    points = torch.tensor([[0.0, 0], [1.5, 0], [0.1, 0.7], [5, 5]])
    places = show.apart(points, torch.ones(4, 2))
    assert torch.allclose(places[[1, 3]], points[[1, 3]].double(), atol=1e-4)
    assert not torch.allclose(places, points.double(), atol=1e-2)


CONFIGS = [
    *FAMILIES.values(),
    dict(gpt_j_residual=True),
    dict(pos_emb="none"),
    dict(activation="geglu", mlp_multiple_of=64),
    dict(activation="relu2"),
    {**LLAMA, "gpt_j_residual": True},
]


@pytest.mark.parametrize("settings", CONFIGS, ids=str)
def test_a_drawn_model_is_the_model(settings):
    model = random_model(**settings)
    drawn = show.draw_model(model.config)
    assert sum(drawn.values.values()) == sum(p.numel() for p in model.parameters())
    assert f"{sum(drawn.values.values()):,} parameters" in drawn.text
    written = " ".join(t.get_text() for ax in drawn.figure.axes for t in ax.texts)
    for part in ("embed", "final_norm", "head", "norm_1", "norm_2", "attention", "MLP"):
        assert part in written and part in drawn.text
    config, block = model.config, model.blocks[0]
    titles = " ".join(ax.get_title() for ax in drawn.figure.axes)
    for words, there in [
        ("parallel", config.gpt_j_residual),
        ("position_embed", hasattr(model, "position_embed")),
        ("RMSNorm", config.norm == "rmsnorm"),
        ("rotary", config.pos_emb == "rotary"),
        ("up and gate", block.mlp.gate is not None),
        ("again", not hasattr(model, "head")),
        ("heads of keys", config.num_kv_heads < config.num_attention_heads),
    ]:
        assert (words in f"{written} {titles}") == (words in drawn.text) == there, words
    for name in ("qkv", "out"):
        wide, narrow = getattr(block.attention, name).weight.shape
        assert f"{name} {narrow:,} → {wide:,}" in written
    wide, narrow = block.mlp.up.weight.shape
    assert f"{narrow:,} → {wide:,}" in written and f"down {wide:,} → {narrow:,}" in written


def boxes_apart(figure):
    "No text lies over another one"
    figure.canvas.draw()
    for ax in figure.axes:
        texts = [t for t in ax.texts if t.get_text() and "block" not in t.get_text()]
        boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
        for n, (text, box) in enumerate(boxes):
            assert not [other for other, another in boxes[n + 1 :] if box.overlaps(another)], text


@pytest.mark.parametrize("settings", CONFIGS, ids=str)
@pytest.mark.parametrize("size", [1, 100])
def test_a_drawing_can_be_read(settings, size):
    large = dict(hidden_size=48 * size, seq_length=128 * size, vocab_size=50_000)
    config = ModelConfig(**{**SIZES, **large, **settings})
    boxes_apart(show.draw_model(config).figure)


@pytest.mark.parametrize("settings", CONFIGS, ids=str)
def test_a_simple_drawing(settings):
    config = random_model(**settings).config
    drawn, whole = show.draw_model(config, simple=True), show.draw_model(config)
    boxes_apart(drawn.figure)
    assert drawn.values == whole.values and drawn.text != whole.text
    written = " ".join(t.get_text() for ax in drawn.figure.axes for t in ax.texts)
    for part in ("embed", "2 × block", "attention", "MLP", "head", f"{config.padded_vocab_size} "):
        assert part in written and part in drawn.text
    assert "qkv" not in written and "norm" not in written


def test_curves():
    curves = {"list": [3.0, 2.0], "dict": {10: 3.0, 20: 2.5}, "pair": ((1, 2), torch.ones(2))}
    shown = show.show_curves(curves, "step", "loss", "Down", {"bigram": 2.48}, ylim=(1, 4))
    ax = shown.figure.axes[0]
    drawn = [tuple(map(list, line.get_data())) for line in ax.lines[:3]]
    assert drawn == [([0, 1], [3, 2]), ([10, 20], [3, 2.5]), ([1, 2], [1, 1])]
    assert drawn == list(shown.values.values())
    assert list(ax.lines[3].get_ydata()) == [2.48, 2.48]
    assert [t.get_text() for t in ax.texts] == ["bigram"] and ax.get_ylim() == (1, 4)
    assert len({line.get_color() for line in ax.lines}) == 4
    assert "Down" in shown.text and "dict: loss from 3 to 2.5" in shown.text


@pytest.mark.parametrize("fails", [False, True])
def test_inside_a_run(characters, fails):
    model, inside = random_model(), show.Inside()
    ids = torch.tensor([characters.encode(VERSE)[:40]])
    weight = model.blocks[-1].mlp.up.weight
    seen = [weight.detach().clone()]

    class Watch(Callback):
        def step(self, trainer):
            seen.append(weight.detach().clone())
            if fails and trainer.step == 2:
                raise KeyboardInterrupt

    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters()),
        lambda step: [Batch(ids[:, :20], ids[:, 1:21]), Batch(ids[:, 19:-1], ids[:, 20:])],
        lambda step: 0.01,
        n_steps=3,
        callbacks=[inside, Watch()],
    )
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        trainer.fit()
    sizes, norms, updates = inside.curves.values()
    expected = [((b - a).norm() / a.norm()).item() for a, b in zip(seen, seen[1:])]
    assert updates == pytest.approx(expected, rel=1e-4) and min(updates) > 0
    assert len(sizes) == len(norms) == len(updates) == (2 if fails else 3)
    assert norms[-1] == trainer.gradient_norm
    assert not model.blocks[-1]._forward_hooks


def luminance(color):
    "By WCAG 2"
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (c / 255 for c in color)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    "page, ink",
    [((255, 255, 255), (33, 33, 33)), ((18, 18, 18), (224, 224, 224))],
    ids=["light", "dark"],
)
def test_text_on_colour_can_be_read(page, ink):
    for color, share in [(show.RED, 0.6), *((tint, 0.35) for tint in show.TINTS)]:
        ground = [share * int(c) + (1 - share) * p for c, p in zip(color.split(","), page)]
        light, dark = sorted((luminance(ground), luminance(ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, color


def test_figures_follow_a_dark_style(model, characters):
    import matplotlib.style

    with matplotlib.style.context("dark_background"):
        drawn = show.draw_model(model.config)
        assert matplotlib.colors.to_hex(drawn.figure.get_facecolor()) == "#000000"
        assert matplotlib.colors.to_hex(drawn.figure.axes[1].lines[0].get_color()) == "#ffffff"
    assert drawn._repr_png_().startswith(b"\x89PNG")


def test_no_window_and_no_backend(model, characters):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    show.show_attention(model, characters, VERSE)
    show.draw_model(model.config)
    assert plt.get_fignums() == before


def test_save(tmp_path, model, characters):
    tokens, drawn = show.show_tokens(characters, VERSE), show.draw_model(model.config)
    assert "charset" in tokens.save(tmp_path / "tokens.html").read_text("utf-8")
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        assert drawn.save(tmp_path / f"m.{kind}").read_bytes().startswith(start)
    with pytest.raises(NeoxError, match="saved as .png or .svg or .pdf"):
        drawn.save(tmp_path / "m.html")
    with pytest.raises(NeoxError, match="saved as .html"):
        tokens.save(tmp_path / "tokens")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pdf", "m.png", "m.svg", "tokens.html"]


OTHER = "tokenizer of the same folder"


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m, t: show.show_tokens(t, ""), "nothing to show"),
        (lambda m, t: show.show_tokens(t, 5), "nothing to show"),
        (lambda m, t: show.show_surprise(m, t, "R"), "two or more"),
        (
            lambda m, t: show.show_attention(m, t, VERSE, layer=2),
            "layer: this model has no 2; give",
        ),
        (
            lambda m, t: show.show_attention(m, t, VERSE, head=-1),
            "head: this model has no -1; give",
        ),
        (
            lambda m, t: show.show_attention(m, t, VERSE, head="all"),
            "head: this model has no 'all'",
        ),
        (lambda m, t: show.show_surprise(m, train_tokenizer(VERSE * 20, "bpe", 290), VERSE), OTHER),
        (lambda m, t: show.show_embeddings(m, train_tokenizer(VERSE * 20, "bpe", 290)), OTHER),
    ],
)
def test_errors_are_one_line(call, said, model, characters):
    with pytest.raises(NeoxError, match=re.escape(said)) as e:
        call(model, characters)
    assert "\n" not in str(e.value)
