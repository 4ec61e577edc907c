"""The networks that read: text encoder, cross-attention, and the U-Net with text."""

import itertools
import math

import pytest
import torch
from cases import seeded, shaken

from companion import losses, networks, predictions, schedules
from companion.networks.text_unet import JOININGS
from companion.networks.unet import CrossAttention

VOCABULARY, LENGTH = 12, 5
EVERY_JOINING = [c for n in (1, 2, 3) for c in itertools.combinations(JOININGS, n)]


def encoder(**options):
    torch.manual_seed(0)
    return shaken(networks.TextEncoder(VOCABULARY, LENGTH, **{"width": 8, "layers": 2, "heads": 2, **options}))


def unet(joining=("scale-and-shift", "cross-attention"), **options):
    torch.manual_seed(0)
    settings = {"width": 8, "multipliers": (1, 2), "attention": (0, 1), "text_width": 8, **options}
    return shaken(networks.TextUNet(3, vocabulary=VOCABULARY, length=LENGTH, joining=joining, **settings))


def inputs(batch=2, size=8):
    generator = seeded(5)
    x = torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)
    t = torch.rand(batch, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, VOCABULARY + 1, (batch, LENGTH), generator=generator)
    tokens[:, 3:] = 0
    return x, t, tokens


# --- the text encoder ---


@pytest.mark.parametrize("options", [{}, {"layers": 1, "heads": 1}, {"width": 12, "heads": 3}])
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes(options, batch):
    read = encoder(**options)
    words, seen = read(inputs(batch)[2])
    assert words.shape == (batch, 1 + LENGTH, read.width) and words.isfinite().all()
    assert seen.tolist() == [[True, True, True, True, False, False]] * batch


def test_padding_is_not_read():
    """The words of a short prompt do not depend on how the padding is embedded."""
    read, tokens = encoder(), inputs()[2]
    before, seen = read(tokens)
    with torch.no_grad():
        read.words.weight[0] += torch.linspace(-3, 4, 8, dtype=torch.float64).square()
    after, _ = read(tokens)
    assert torch.allclose(before[seen], after[seen], atol=1e-12) and not torch.allclose(before, after)


def test_order_and_every_word_count():
    read, tokens = encoder(), inputs(1)[2]
    words, _ = read(tokens)
    for place in range(3):
        other = tokens.clone()
        other[0, place] = tokens[0, place] % VOCABULARY + 1
        assert (read(other)[0] - words).abs().amax(2)[0, :4].min() > 1e-6  # each word is seen from each
    swapped = tokens[:, [1, 0, 2, 3, 4]]
    assert (read(swapped)[0][0, 0] - words[0, 0]).abs().max() > 1e-6


def test_nothing_to_read_is_something():
    words, seen = encoder()(torch.zeros(2, LENGTH, dtype=torch.int64))
    assert words.isfinite().all() and seen.sum(1).tolist() == [1, 1] and torch.equal(words[0], words[1])


def test_attention_is_what_the_paper_says():
    """One head, one layer: the mixture is softmax(q k / sqrt(d)) v over the words that are there."""
    read, tokens = encoder(layers=1, heads=1), inputs(1)[2]
    block = read.layers[0]
    h = torch.cat([read.start, read.words(tokens) + read.places], 1)
    q, k, v = block.qkv(block.norm1(h)).chunk(3, dim=2)
    look = (q @ k.transpose(1, 2))[:, :, :4] / math.sqrt(8)
    mixed = h + block.mix(look.softmax(2) @ v[:, :4])
    h = mixed + block.narrow(torch.nn.functional.gelu(block.wide(block.norm2(mixed))))
    assert torch.allclose(read(tokens)[0], read.norm(h), atol=1e-12)


@pytest.mark.parametrize(
    ("tokens", "error", "match"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), ValueError, r"shape \(2, 4\) for a batch of 2; give \(2, 5\)"),
        (torch.zeros(5, dtype=torch.int64), ValueError, r"shape \(5,\)"),
        (torch.zeros(2, 5), TypeError, "torch.float32; they must be integers"),
        (torch.zeros(2, 5, dtype=torch.bool), TypeError, "torch.bool"),
        ("a fox", TypeError, "str; they must be integers"),
        (torch.full((1, 5), 13), ValueError, "range from 13 to 13; words are 1 to 12"),
        (torch.full((1, 5), -1), ValueError, "range from -1 to -1"),
    ],
)
def test_tokens_that_are_none(tokens, error, match):
    with pytest.raises(error, match=match):
        encoder()(tokens)


@pytest.mark.parametrize(
    ("options", "match"), [({"width": 9}, "9 with 2 heads"), ({"layers": 0}, "layers"), ({"heads": 0}, "heads")]
)
def test_sizes_that_are_none(options, match):
    with pytest.raises(ValueError, match=match):
        encoder(**options)
    with pytest.raises(ValueError, match="vocabulary"):
        networks.TextEncoder(0, 3)


# --- cross-attention ---


def test_cross_attention_is_what_the_paper_says():
    torch.manual_seed(0)
    layer = shaken(CrossAttention(8, 6, head_dim=4))
    x = torch.randn(2, 8, 3, 2, generator=seeded(1), dtype=torch.float64)
    words = torch.randn(2, 5, 6, generator=seeded(2), dtype=torch.float64)
    seen = torch.tensor([[True] * 5, [True, True, False, False, False]])
    look, out = layer.weights(x, words, seen), layer(x, words, seen)
    assert look.shape == (2, 2, 5, 3, 2)
    assert torch.allclose(look.sum(2), torch.ones(2, 2, 3, 2, dtype=torch.float64))
    assert (look[1, :, 2:] == 0).all()
    q, k, v = layer.query(layer.norm(x)), layer.key(words), layer.value(words)
    for b, row, column in itertools.product(range(2), range(3), range(2)):
        found = []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = k[b, :, part] @ q[b, part, row, column] / 2
            weights = scores[seen[b]].softmax(0)
            assert torch.allclose(look[b, head, seen[b], row, column], weights)
            found.append(weights @ v[b, seen[b], part])
        change = layer.out.weight[:, :, 0, 0] @ torch.cat(found) + layer.out.bias
        assert torch.allclose(out[b, :, row, column] - x[b, :, row, column], change)


# --- the U-Net with text ---


@pytest.mark.parametrize("joining", EVERY_JOINING, ids="+".join)
@pytest.mark.parametrize(
    "options", [{}, {"attention": (1,)}, {"multipliers": (1, 2, 2), "blocks": 2, "attention": (2,)}]
)
def test_every_joining_reads(joining, options):
    net, (x, t, tokens) = unet(joining, **options), inputs()
    out = net(x, t, tokens)
    assert out.shape == x.shape and out.isfinite().all()
    for place in range(3):
        other = tokens.clone()
        other[:, place] = tokens[:, place] % VOCABULARY + 1
        assert ((net(x, t, other) - out).abs().amax((1, 2, 3)) > 1e-6).all()


@pytest.mark.parametrize("joining", JOININGS)
def test_no_text(joining):
    net, (x, t, tokens) = unet(joining), inputs()
    assert net.null_cond == 0
    nothing = torch.full_like(tokens, net.null_cond)
    assert torch.equal(net(x, t), net(x, t, nothing)) and not torch.allclose(net(x, t), net(x, t, tokens))


def test_one_prompt_for_all():
    net, (x, t, tokens) = unet(), inputs()
    both = net(x, t, tokens[:1].expand(2, -1))
    assert torch.equal(net(x, t, tokens[:1]), both)
    assert torch.allclose(both[1:], net(x[1:], t[1:], tokens[:1]), atol=1e-12)  # and each by itself


def test_a_batch_is_read_row_by_row():
    net, (x, t, tokens) = unet(JOININGS), inputs(3)
    together = net(x, t, tokens)
    for k in range(3):
        assert torch.allclose(together[k : k + 1], net(x[k : k + 1], t[k : k + 1], tokens[k : k + 1]), atol=1e-12)


def test_it_starts_at_zero_and_all_of_it_learns():
    torch.manual_seed(0)
    net = networks.TextUNet(
        3, vocabulary=VOCABULARY, length=LENGTH, joining=JOININGS, width=8, text_width=8, attention=(0, 1)
    )
    x, t, tokens = inputs()
    x = x.float()
    assert (net(x, t, tokens) == 0).all()
    net = shaken(net)
    loss = losses.denoising_loss(net, x.double(), schedules.Cosine(), predictions.V, cond=tokens, t=t)
    loss.mean().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_maps():
    net, (x, t, tokens) = unet(multipliers=(1, 2), attention=(0, 1)), inputs()
    before = net(x, t, tokens)
    maps = net.attention_maps(x, t, tokens)
    assert [m.shape[2] for m in maps] == [8, 4, 4, 4, 4, 8, 8]  # down, middle, up
    for each in maps:
        assert each.shape[:2] == (2, 1 + LENGTH)
        assert torch.allclose(each.sum(1), torch.ones_like(each[:, 0])) and (each[:, 4:] == 0).all()
    assert torch.equal(net(x, t, tokens), before)
    assert not any(module._forward_hooks for module in net.modules())
    layer = next(m for m in net.modules() if isinstance(m, CrossAttention))
    kept = []
    hook = layer.register_forward_hook(lambda module, given, output: kept.append(given))
    net(x, t, tokens)
    hook.remove()
    assert torch.allclose(maps[0], layer.weights(*kept[0]).mean(1))


def test_maps_without_cross_attention():
    net, (x, t, tokens) = unet("scale-and-shift"), inputs()
    with pytest.raises(ValueError, match="joins by scale-and-shift; only cross-attention has maps"):
        net.attention_maps(x, t, tokens)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"joining": ("telepathy",)}, r"joining is \('telepathy',\); give one or more of concatenation"),
        ({"joining": ()}, r"joining is \(\)"),
        ({"joining": "cross-attention", "attention": ()}, "cross-attention needs a level"),
        ({"text_width": 6}, "width is 6 with 4 heads"),
    ],
)
def test_networks_that_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        unet(**options)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda x, t, c: (x, t, c[:, :4]), ValueError, r"shape \(2, 4\) for a batch of 2"),
        (lambda x, t, c: (x, t, c.repeat(2, 1)), ValueError, r"shape \(4, 5\) for a batch of 2"),
        (lambda x, t, c: (x, t, 3), TypeError, "int; they must be integers: use a text.Tokenizer"),
        (lambda x, t, c: (x[:, :2], t, c), ValueError, r"built for \(B, 3, H, W\)"),
        (lambda x, t, c: (x[..., :7], t, c), ValueError, "8x7; with 1 halvings"),
        (lambda x, t, c: (x, t[:1].repeat(3), c), ValueError, r"t has shape \(3,\)"),
    ],
)
def test_bad_input(change, error, match):
    with pytest.raises(error, match=match):
        unet()(*change(*inputs()))


def test_a_training_drops_whole_prompts():
    """fit replaces the rows of tokens, not single words, by no text."""
    from companion.training import _drop

    tokens = torch.ones(4000, LENGTH, dtype=torch.int64)
    dropped = _drop(tokens, 0.25, 0, seeded())
    assert set(dropped.sum(1).tolist()) == {0, LENGTH} and (tokens == 1).all()
    assert dropped[:, 0].float().mean() == pytest.approx(0.75, abs=0.03)
    labels = _drop(torch.zeros(4000, dtype=torch.int64), 0.25, 9, seeded())
    assert (labels == 9).float().mean() == pytest.approx(0.25, abs=0.03)
