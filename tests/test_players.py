"""Tests of companion.players: what is stored, what is refused, and the markup that a reader needs."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from browsing import spec_of
from torch import Tensor

from companion.players import Player, frames, trajectory


class Page(HTMLParser):
    """Collects (tag, attributes, text) of each element, in the order they open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag != "input":
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.elements[self.open[-1]][2].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, "".join(text)) for name, attrs, text in self.elements if name == tag]


def stored_points(text: str, extent: list[float]) -> np.ndarray:
    """Read points back as the script does: 65,536 levels over three times the extent."""
    xmin, xmax, ymin, ymax = extent
    places = 3 * np.frombuffer(base64.b64decode(text), "<u2").astype(float).reshape(-1, 2) / 65535 - 1
    return places * [xmax - xmin, ymax - ymin] + [xmin, ymin]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


PATHS = noise(4, 30, 2)
IMAGES = noise(3, 5, 1, 8, 6).clamp(-1, 1)


# What is stored is what was given


def test_ticks_can_be_left_out() -> None:
    assert spec_of(trajectory(PATHS, label="points", show_ticks=False))["ticks"] == [[], []]
    assert all(spec_of(trajectory(PATHS, label="points"))["ticks"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_points_come_back_within_half_a_step(dtype: torch.dtype) -> None:
    paths, reference = noise(4, 30, 2).to(dtype), noise(20, 2, seed=1).to(dtype)
    spec = spec_of(trajectory(paths, reference=reference, label="points"))
    xmin, xmax, ymin, ymax = spec["extent"]
    step = 3 * np.array([xmax - xmin, ymax - ymin]) / 65535
    for stored, given in [(spec["points"], paths), (spec["reference"], reference)]:
        error = np.abs(stored_points(stored, spec["extent"]) - given.double().reshape(-1, 2).numpy())
        assert (error <= 0.5001 * step).all()


def test_points_far_outside_stay_outside() -> None:
    paths = PATHS.clone()
    paths[0, 0] = torch.tensor([1e6, -1e6])
    spec = spec_of(trajectory(paths, label="one point flies off"))
    xmin, xmax, ymin, _ = spec["extent"]
    x, y = stored_points(spec["points"], spec["extent"])[0]
    assert x > xmax and y < ymin
    assert xmax - xmin < 50, "one stray point does not set the scale"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 2.0)])
def test_pixels_come_back_within_half_a_level(channels: int, value_range: tuple[float, float]) -> None:
    low, high = value_range
    images = noise(3, 5, channels, 8, 6)
    spec = spec_of(frames(images, label="images", value_range=value_range))
    stored = np.frombuffer(base64.b64decode(spec["pixels"]), np.uint8).reshape(3, 5, 8, 6, channels)
    shown = low + (high - low) * stored.astype(float) / 255
    given = images.clamp(low, high).permute(0, 1, 3, 4, 2).numpy()
    assert np.abs(shown - given).max() <= 0.5001 * (high - low) / 255
    assert spec["channels"] == channels


def test_classes_come_back() -> None:
    classes = torch.arange(30) % 8
    for given in (classes, classes.tolist(), classes.numpy(), classes.to(torch.uint8)):
        spec = spec_of(trajectory(PATHS, colors=given, label="classes"))
        assert list(base64.b64decode(spec["colors"])) == classes.tolist()
    assert spec_of(trajectory(PATHS, colors=classes > 3, label="two"))["colors"]
    assert spec_of(trajectory(PATHS, label="no classes"))["colors"] == ""


def test_lists_gradients_and_layouts_change_nothing() -> None:
    ts = [1.0, 0.6, 0.3, 0.0]
    want = trajectory(PATHS, ts, label="points").html
    assert trajectory(list(PATHS), torch.tensor(ts), label="points").html == want
    assert trajectory(tuple(PATHS.clone().requires_grad_()), np.array(ts), label="points").html == want
    assert trajectory(PATHS.mT.contiguous().mT, [torch.tensor(t) for t in ts], label="points").html == want
    assert frames(list(IMAGES.clone().requires_grad_()), label="i").html == frames(IMAGES, label="i").html


def test_inputs_are_not_changed() -> None:
    paths, images, colors, reference = PATHS.double(), IMAGES.clone(), torch.zeros(30), noise(9, 2).double()
    colors, before = colors.long(), [x.clone() for x in (paths, images, reference)]
    trajectory(paths, colors=colors, reference=reference, label="points")
    frames(images, label="images", value_range=(-0.1, 0.1))
    for x, was in zip((paths, images, reference), before, strict=True):
        assert torch.equal(x, was)
    assert not colors.any()


def test_the_same_input_gives_the_same_text_and_no_ids() -> None:
    one, two = (trajectory(PATHS, colors=[0] * 30, reference=PATHS[0], label="points").html for _ in range(2))
    assert one == two
    for player in (one, frames(IMAGES, label="images").html):
        assert all("id" not in attrs for _, attrs, _ in Page(player).elements)
        assert "currentScript" not in player and "eval(" not in player and "http" not in player


# Sizes


def test_sizes_stay_within_budget() -> None:
    paths = noise(41, 500, 2)
    player = trajectory(paths, torch.linspace(1, 0, 41), colors=[0] * 500, reference=noise(500, 2), label="p")
    assert len(player.html.encode()) < 130_000
    digits = frames(noise(21, 20, 1, 8, 8), torch.linspace(1, 0, 21), titles=["digit 3"] * 20, label="d")
    assert len(digits.html.encode()) < 60_000
    assert len(trajectory(PATHS, label="p").html.encode()) < 12_000  # the script, the style and little data


# What shows


def test_times_have_as_few_decimals_as_tell_them_apart() -> None:
    def labels(ts: list[float] | None) -> list[str]:
        return spec_of(trajectory(PATHS, ts, label="points"))["labels"]

    assert labels(None) == ["frame 1 of 4", "frame 2 of 4", "frame 3 of 4", "frame 4 of 4"]
    assert labels([1.0, 0.65, 0.35, 0.0]) == ["t = 1.00", "t = 0.65", "t = 0.35", "t = 0.00"]
    assert labels([1.0, 0.5, 0.002, 0.001])[2:] == ["t = 0.002", "t = 0.001"]
    assert labels([1.0, 0.5, 0.0, 0.0])[2:] == ["t = 0.00", "t = 0.00"]


def test_extent_is_kept_or_widened_to_a_sane_shape() -> None:
    def extent(*given: float) -> list[float]:
        return spec_of(trajectory(PATHS, extent=given, label="points"))["extent"]  # type: ignore[arg-type]

    assert extent(-1, 2, -1, 1) == [-1, 2, -1, 1]
    assert extent(0, 10, 0, 1) == pytest.approx([0, 10, -1.5, 2.5])
    assert extent(0, 1, 0, 10) == pytest.approx([-2, 3, 0, 10])


def test_default_extent_shows_the_data() -> None:
    data, eps = noise(400, 2, seed=1), noise(400, 2, seed=2)
    ts = torch.linspace(1, 0, 21)
    xmin, xmax, *_ = spec_of(trajectory([(1 - t) * data + t * eps for t in ts], label="flow"))["extent"]
    assert 2.5 < xmax < 5 and -5 < xmin < -2.5
    xmin, xmax, *_ = spec_of(trajectory([data + 80 * t**7 * eps for t in ts], label="exploding"))["extent"]
    assert 2.5 < xmax < 12 and -12 < xmin < -2.5, "the first frame reaches 250"
    moving = torch.linspace(-5, 5, 11)[:, None, None].expand(11, 1, 2)
    xmin, xmax, *_ = spec_of(trajectory(moving, label="one point on its way"))["extent"]
    assert xmin < -5 and xmax > 5
    wide = spec_of(trajectory(PATHS, reference=10 * PATHS[0], label="wide"))["extent"]
    assert wide[1] > 10 * float(PATHS[0, :, 0].max()) * 0.9


@pytest.mark.parametrize("place", [0.0, 5.0, -1e-9, 1e6])
def test_points_that_never_move_still_make_a_picture(place: float) -> None:
    spec = spec_of(trajectory(torch.full((2, 3, 2), place, dtype=torch.float64), label="still"))
    xmin, xmax, ymin, ymax = spec["extent"]
    assert xmin < place < xmax and ymin < place < ymax
    assert all(2 <= len(axis) <= 12 and all(0 <= u <= 1 for u, _ in axis) for axis in spec["ticks"])


def test_ticks_are_round_numbers_in_their_place() -> None:
    across, up = spec_of(trajectory(PATHS, extent=(-2, 2, -1, 3), label="points"))["ticks"]
    assert across == [[0.0, "\u22122"], [0.25, "\u22121"], [0.5, "0"], [0.75, "1"], [1.0, "2"]]
    assert up[0] == [0.0, "\u22121"]


def test_columns_and_scale() -> None:
    def style(n: int, **options: int) -> str:
        page = Page(frames(noise(2, n, 1, 8, 8), label="i", **options).html)
        return next(attrs["style"] or "" for attrs, _ in page.all("div") if "role" in attrs)

    assert "repeat(10," in style(20) and f"max-width:{640 + 36}px" in style(20)
    assert "repeat(6," in style(12) and "repeat(7," in style(7)
    assert "repeat(4," in style(12, columns=4)
    assert f"max-width:{3 * 16 + 8}px" in style(3, scale=2)


# Markup


@pytest.mark.parametrize(
    "player",
    [
        trajectory(PATHS, [1, 0.5, 0.25, 0], label="Points move."),
        frames(IMAGES, titles=list("abcde"), label="Images form."),
    ],
    ids=["trajectory", "frames"],
)
def test_markup_is_complete_and_labelled(player: Player) -> None:
    page, last = Page(player.html), str(player.num_frames - 1)
    assert re.fullmatch(r'<figure class="companion-player".*</figure>', player.html, re.DOTALL)
    assert player.html.count("</figure>") == 1 and player.html.count("</script>") == 1
    assert player.html.rstrip().endswith("</script>\n</figure>")
    ((figure, _),) = page.all("figure")
    assert figure["data-kind"] in ("trajectory", "frames") and "data-ready" not in figure
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs, _ in page.all("canvas"))
    ((button, text),) = page.all("button")
    assert button["type"] == "button" and text == "Play"
    ((slider, _),) = page.all("input")
    assert slider["type"] == "range" and (slider["min"], slider["max"], slider["value"]) == ("0", last, last)
    assert player.label in (slider["aria-label"] or "")
    for control in (button, slider):
        assert control["data-lm-suppress-shortcuts"] == "true", "or JupyterLab takes the arrow keys"
    ((_, shown),) = page.all("output")
    assert slider["aria-valuetext"] == shown == json.loads(figure["data-spec"] or "")["labels"][-1]
    assert page.all("figcaption") == [({}, player.label)]
    assert player._repr_html_() == player.html


def test_each_image_is_named() -> None:
    titled = Page(frames(IMAGES, titles=list("abcde"), label="i").html)
    assert [attrs["aria-label"] for attrs, _ in titled.all("canvas")] == list("abcde")
    assert [text for _, text in titled.all("span")] == list("abcde")
    plain = Page(frames(IMAGES, label="i").html)
    assert plain.all("canvas")[1][0]["aria-label"] == "image 2 of 5" and not plain.all("span")
    assert plain.all("canvas")[1][0]["width"] == "6" and plain.all("canvas")[1][0]["height"] == "8"


def test_text_is_escaped() -> None:
    nasty = "a < b & \"c\" </figure><script>alert('x')</script>"
    for player in (trajectory(PATHS, label=nasty), frames(IMAGES, titles=[nasty] * 5, label=nasty)):
        page = Page(player.html)
        assert len(page.all("script")) == 1 and player.html.count("</figure>") == 1
        assert page.all("figcaption")[0][1] == nasty
        assert page.all("canvas")[0][0]["aria-label"] == nasty
        assert page.all("input")[0][0]["aria-label"] == f"Frame of: {nasty}"


def test_repr_is_short_and_stable() -> None:
    player = trajectory(PATHS, label="Points move.")
    assert repr(player) == str(player) == "Player('Points move.', 4 frames)"
    assert player != trajectory(PATHS, label="Points move.") and hash(player)
    with pytest.raises(FrozenInstanceError):
        player.label = "another"  # type: ignore[misc]


def test_import_is_light() -> None:
    code = "import sys, companion.players; sys.exit(any(m in sys.modules for m in ('matplotlib', 'IPython')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Bad input


def with_nan(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[3] = float("nan")
    return x


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"paths": PATHS[0]}, ValueError, [r"\(30, 2\)", "F, N, 2"]),
        ({"paths": noise(4, 30, 3)}, ValueError, [r"\(4, 30, 3\)", "F, N, 2"]),
        ({"paths": PATHS[:, :0]}, ValueError, [r"\(4, 0, 2\)"]),
        ({"paths": PATHS[:1]}, ValueError, ["1 frame", "2 or more"]),
        ({"paths": []}, ValueError, ["at least 2 frames"]),
        ({"paths": [PATHS[0], PATHS[1, :3]]}, ValueError, [r"\(3, 2\)", r"\(30, 2\)", "one shape"]),
        ({"paths": (x for x in PATHS)}, TypeError, ["generator", r"step\.x for step in steps"]),
        ({"paths": PATHS.numpy()}, TypeError, ["ndarray", "as_tensor"]),
        ({"paths": [[[0.0, 0.0]]] * 3}, TypeError, ["list", "as_tensor"]),
        ({"paths": PATHS.long()}, TypeError, ["int64", r"paths\.float\(\)"]),
        ({"paths": with_nan(PATHS)}, ValueError, ["paths", "NaN"]),
        ({"paths": PATHS / 0}, ValueError, ["paths", "infinity"]),
        ({"ts": [1.0, 0.0]}, ValueError, ["2 times", "4 frames"]),
        ({"ts": [1.0, 0.5, float("nan"), 0.0]}, ValueError, ["nan", "finite"]),
        ({"colors": [0] * 29}, ValueError, [r"\(29,\)", r"\(30,\)"]),
        ({"colors": [-1] * 30}, ValueError, ["-1", "0 to 7"]),
        ({"colors": [8] * 30}, ValueError, ["8", "0 to 7"]),
        ({"colors": [0.5] * 30}, TypeError, ["float32", r"long\(\)"]),
        ({"reference": noise(5, 3)}, ValueError, ["reference", r"\(5, 3\)", "M, 2"]),
        ({"reference": PATHS}, ValueError, ["reference", r"\(4, 30, 2\)"]),
        ({"reference": with_nan(PATHS[0])}, ValueError, ["reference", "NaN"]),
        ({"reference": [[0.0, 0.0]]}, TypeError, ["reference", "list"]),
        ({"label": ""}, ValueError, ["label", "empty"]),
        ({"label": "  "}, ValueError, ["label", "blank"]),
        ({"label": None}, TypeError, ["label", "None", "text"]),
        ({"extent": (1.0, 0.0, 0.0, 1.0)}, ValueError, [r"\(1\.0, 0\.0", "min < max"]),
        ({"extent": (0.0, 1.0)}, ValueError, [r"\(0\.0, 1\.0\)", "xmin"]),
        ({"extent": (0.0, float("inf"), 0.0, 1.0)}, ValueError, ["inf", "finite"]),
        ({"fps": 0}, ValueError, ["fps is 0", "positive"]),
        ({"fps": float("nan")}, ValueError, ["fps is nan"]),
        ({"height": 50}, ValueError, ["height is 50", "100"]),
        ({"height": 360.0}, TypeError, [r"height is 360\.0", "int"]),
    ],
)
def test_trajectory_refuses(change: dict, error: type[Exception], says: list[str]) -> None:
    with pytest.raises(error) as caught:
        trajectory(**({"paths": PATHS, "label": "points"} | change))
    for pattern in says:
        assert re.search(pattern, str(caught.value)), f"{pattern!r} not in {caught.value}"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"images": IMAGES[0]}, ValueError, [r"\(5, 1, 8, 6\)", "F, N, C, H, W"]),
        ({"images": IMAGES[:1]}, ValueError, ["1 frame", "2 or more"]),
        ({"images": noise(3, 5, 2, 8, 8)}, ValueError, ["2 channels", "1 or 3"]),
        ({"images": noise(3, 5, 8, 8, 3)}, ValueError, ["8 channels", "1 or 3"]),
        ({"images": IMAGES.to(torch.uint8)}, TypeError, ["uint8", r"float\(\)", r"\[-1, 1\]"]),
        ({"images": with_nan(IMAGES)}, ValueError, ["images", "NaN"]),
        ({"ts": torch.linspace(1, 0, 4)}, ValueError, ["4 times", "3 frames"]),
        ({"titles": ["a"] * 4}, ValueError, ["5 images"]),
        ({"titles": "abcde"}, ValueError, ["abcde", "list"]),
        ({"titles": [1, 2, 3, 4, 5]}, TypeError, ["titles", r"str\(\)"]),
        ({"value_range": (1.0, -1.0)}, ValueError, [r"\(1\.0, -1\.0\)", "black < white"]),
        ({"value_range": (0.0, float("nan"))}, ValueError, ["nan"]),
        ({"columns": 0}, ValueError, ["columns is 0"]),
        ({"scale": -1.0}, ValueError, [r"scale is -1\.0", "positive"]),
        ({"fps": -8}, ValueError, ["fps is -8"]),
        ({"label": ""}, ValueError, ["label", "empty"]),
    ],
)
def test_frames_refuses(change: dict, error: type[Exception], says: list[str]) -> None:
    with pytest.raises(error) as caught:
        frames(**({"images": IMAGES, "label": "images"} | change))
    for pattern in says:
        assert re.search(pattern, str(caught.value)), f"{pattern!r} not in {caught.value}"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_makes_no_difference() -> None:
    ts = torch.linspace(1, 0, 4)
    here = trajectory(PATHS, ts, colors=[0] * 30, reference=PATHS[0], label="points").html
    colors = torch.zeros(30, dtype=torch.long, device="cuda")
    there = trajectory(PATHS.cuda(), ts.cuda(), colors=colors, reference=PATHS[0].cuda(), label="points").html
    assert here == there
    assert frames(IMAGES.cuda(), label="i").html == frames(IMAGES, label="i").html
