"""Emoji: as they are, coloured, and two in a picture."""

import colorsys
import json
import sys

import pytest
import torch
from cases import seeded

from companion import data
from companion.data import _emoji

COLOURS, RELATIONS = tuple(data.COLOURS), tuple(data.RELATIONS)


@pytest.fixture(scope="module")
def everything():
    return data.coloured_emoji("all")


# --- the emoji ---


def test_the_emoji():
    x, names, categories = data.emoji()
    assert x.shape == (1591, 3, 32, 32) and x.dtype == torch.float32
    assert x.min() == -1 and x.max() == 1
    assert len(names) == len(set(names)) == len(categories) == 1591
    assert {"red apple", "fox", "tiger face", "1st place medal"} <= set(names)
    assert categories[names.index("fox")] == "Animals & Nature"
    assert not any(name.endswith((" light", " medium", " dark")) for name in names)
    assert (x[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] == 1).float().mean() > 0.9  # drawn on white
    assert (x.flatten(1).std(1) > 0.05).all()


def test_a_picture_stands_beside_its_name():
    """The apple is red, the frog green, and the swan mostly white: the order of the sheet is that of the names."""
    x, names, _ = data.emoji()
    apple, green = (x[names.index(name)].mean((1, 2)) for name in ("red apple", "green apple"))
    assert apple[0] > apple[1] + 0.2 and green[1] > green[0]
    last = x[names.index("zzz")]  # the last of the sheet: blue letters on white
    red, _, blue = last[:, (last < 0.9).any(0)].mean(1).tolist()
    assert blue > 0.8 and red < 0


def test_the_licence_goes_with_them():
    about = json.loads((_emoji.FOLDER / "emoji.json").read_text())
    notice = (_emoji.FOLDER / "emoji-LICENSE.txt").read_text()
    assert "MIT" in about["source"] and "Microsoft" in notice and "Permission is hereby granted" in notice


def test_without_pillow(monkeypatch):
    _emoji._sheet.cache_clear()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        data.emoji()


# --- in eight colours ---


def test_splits_share_nothing_and_leave_nothing_out(everything):
    train, held_out = data.coloured_emoji("train"), data.coloured_emoji("held-out")
    assert len(train.x) == 2202 and len(held_out.x) == 734 and len(everything.x) == 2936 == 367 * 8
    pairs = [set(zip(s.objects.tolist(), s.colours.tolist(), strict=True)) for s in (train, held_out, everything)]
    assert pairs[0] | pairs[1] == pairs[2] and not pairs[0] & pairs[1]
    assert not set(train.captions) & set(held_out.captions) and len(set(everything.captions)) == 2936


def test_what_is_held_out_is_balanced():
    held_out, train = data.coloured_emoji("held-out"), data.coloured_emoji("train")
    assert (held_out.objects.bincount(minlength=367) == 2).all()
    assert (train.objects.bincount(minlength=367) == 6).all()
    counts = held_out.colours.bincount(minlength=8)
    assert counts.max() - counts.min() <= 1
    both = held_out.colours.reshape(-1, 2)
    assert len({tuple(row) for row in both.tolist()}) == 28  # every two colours are held out together somewhere


def test_captions(everything):
    names = data.emoji_objects()
    assert len(names) == 367 and all(1 <= len(name.split()) <= 2 for name in names)
    assert not {word for name in names for word in name.split()} & {*COLOURS, "black", "white", "brown"}
    for caption, o, c in zip(
        everything.captions, everything.objects.tolist(), everything.colours.tolist(), strict=True
    ):
        article = "an" if COLOURS[c] == "orange" else "a"
        assert caption == f"{article} {COLOURS[c]} {names[o]}"


def test_each_is_in_its_colour(everything):
    """Of the pixels with colour that change between colours, the median hue is the one named."""
    x = (everything.x.reshape(367, 8, 3, 32, 32) + 1) / 2
    moves = (x - x[:, [5]]).abs().sum((1, 2)) > 0.5  # where red to pink differ from blue
    for k in range(0, 367, 7):
        for c, (degrees, _, _) in enumerate(data.COLOURS.values()):
            pixels = x[k, c][:, moves[k]].T.tolist()
            hues = [
                ((h * 360 - degrees + 180) % 360 - 180, s * v) for h, s, v in (colorsys.rgb_to_hsv(*p) for p in pixels)
            ]
            off = torch.tensor([h for h, chroma in hues if chroma > 0.1]).median()
            assert abs(off) < 8, (data.emoji_objects()[k], COLOURS[c])


def test_what_is_not_of_the_colour_stays(everything):
    x = everything.x.reshape(367, 8, -1)
    plain, names, _ = data.emoji()
    original = plain[[names.index(name) for name in data.emoji_objects()]].flatten(1)
    white = (original == 1).reshape(367, 3, -1).all(1).repeat(1, 3)
    assert white.float().mean() > 0.2
    assert (x.transpose(1, 2)[white] == 1).all()  # the ground is white in every colour
    dark = ((original < -0.6).reshape(367, 3, -1).all(1)).repeat(1, 3)
    assert (x - original[:, None]).abs().transpose(1, 2)[dark].mean() < 0.1


def test_no_two_objects_look_alike(everything):
    blue = everything.x.reshape(367, 8, -1)[:, COLOURS.index("blue")]
    apart = torch.cdist(blue, blue) / blue.shape[1] ** 0.5
    assert apart.fill_diagonal_(9.0).min() >= 0.149


def test_hue_there_and_back():
    x = torch.rand(5, 3, 4, 4, generator=seeded())
    hue, saturation, value = _emoji._to_hsv(x)
    assert torch.allclose(_emoji._to_rgb(hue, saturation, value), x, atol=1e-6)
    for pixel, *found in zip(
        x.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), *(v.flatten().tolist() for v in (hue, saturation, value)),
        strict=True,
    ):  # fmt: skip
        assert found == pytest.approx(colorsys.rgb_to_hsv(*pixel), abs=1e-5)
    grey = _emoji._to_hsv(torch.full((1, 3, 1, 1), 0.3))
    assert [v.item() for v in grey] == pytest.approx([0, 0, 0.3])


def test_a_caller_cannot_change_the_data():
    first = data.coloured_emoji("held-out")
    first.x.zero_()
    first.objects.zero_()
    again = data.coloured_emoji("held-out")
    assert again.x.std() > 0.3 and again.objects.max() == 366


@pytest.mark.parametrize("draw", [data.coloured_emoji, lambda split: data.scenes(2, split)])
def test_a_split_there_is_not(draw):
    with pytest.raises(ValueError, match="split is 'test'; it must be"):
        draw("test")


# --- two in a picture ---


@pytest.mark.parametrize("split", ["train", "held-out", "all"])
def test_scenes_show_what_they_say(split, everything):
    asked = data.scenes(60, split, generator=seeded(3))
    small = torch.nn.functional.avg_pool2d(everything.x, 2).reshape(367, 8, 3, 16, 16)
    places = {"left of": ((8, 0), (8, 16)), "right of": ((8, 16), (8, 0)), "above": ((0, 8), (16, 8))}
    places["below"] = places["above"][::-1]
    allowed = data.coloured_emoji(split)
    pairs = set(zip(allowed.objects.tolist(), allowed.colours.tolist(), strict=True))
    names = data.emoji_objects()
    for k in range(60):
        words, canvas = [], torch.ones(3, 32, 32)
        relation = RELATIONS[asked.relations[k]]
        for n, (row, column) in enumerate(places[relation]):
            o, c = asked.objects[k, n].item(), asked.colours[k, n].item()
            assert (o, c) in pairs
            canvas[:, row : row + 16, column : column + 16] = small[o, c]
            words.append(f"{'an' if COLOURS[c] == 'orange' else 'a'} {COLOURS[c]} {names[o]}")
        assert torch.allclose(asked.x[k], canvas, atol=1e-6)
        assert asked.captions[k] == f"{words[0]} {relation} {words[1]}"
    assert (asked.objects[:, 0] != asked.objects[:, 1]).all()


def test_scenes_of_many():
    asked = data.scenes(20_000, generator=seeded(1))
    assert (asked.objects[:, 0] != asked.objects[:, 1]).all()
    assert (asked.relations.bincount() > 4_700).all() and len(asked.relations.bincount()) == 4
    assert len(asked.objects.unique()) == 367 and (asked.colours.flatten().bincount() > 4_500).all()
    assert max(len(caption.split()) for caption in asked.captions) <= 10


def test_scenes_are_drawn_from_the_generator():
    before = torch.get_rng_state()
    one, two = (data.scenes(4, generator=seeded(7)) for _ in range(2))
    assert torch.equal(one.x, two.x) and one.captions == two.captions
    assert one.captions != data.scenes(4, generator=seeded(8)).captions
    assert torch.equal(before, torch.get_rng_state())


def test_left_and_right_are_mirror_words():
    objects, colours = torch.tensor([[3, 9]]), torch.tensor([[0, 5]])
    left, right = (data.compose(objects, colours, torch.tensor([k])) for k in (0, 1))
    swapped = data.compose(objects.flip(1), colours.flip(1), torch.tensor([1]))
    assert torch.equal(left.x, swapped.x) and not torch.equal(left.x, right.x)
    assert left.x[..., :16].std() > 0.1 and (left.x[:, :, :8] == 1).all() and (left.x[:, :, 24:] == 1).all()


def test_no_scenes():
    with pytest.raises(ValueError, match="n is 0; it must be at least 1"):
        data.scenes(0)


def test_scenes_of_a_few_objects():
    few = torch.tensor([3, 8, 200])
    asked = data.scenes(300, "held-out", among=few, generator=seeded())
    assert set(asked.objects.unique().tolist()) == {3, 8, 200}
    assert (asked.objects[:, 0] != asked.objects[:, 1]).all()
    with pytest.raises(ValueError, match=r"among names 1 object\(s\); a scene has two different ones"):
        data.scenes(2, among=torch.tensor([5]))
