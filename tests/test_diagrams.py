"""The diagrams are those that the code draws, say what the networks are, and can be read; the pictures fit the page."""

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from companion import networks, plots

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "book" / "_static"
PHONE = 326  # pixels that a figure has on a page 390 wide
SVG = "{http://www.w3.org/2000/svg}"


def script(name):
    """A module of scripts/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


diagrams, front_page = script("diagrams"), script("front_page")
NAMES = sorted(diagrams.DIAGRAMS)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder into which every diagram was drawn anew."""
    folder = tmp_path_factory.mktemp("diagrams")
    diagrams.main(["--folder", str(folder)])
    return folder


def stored(name):
    return (STATIC / "diagrams" / f"{name}.svg").read_text(encoding="utf-8")


def words(svg):
    """Every line of text of a diagram."""
    return ["".join(text.itertext()) for text in ET.fromstring(svg).iter(f"{SVG}text")]


def size_of(element, around):
    """The size of the letters of a text or tspan, in units."""
    classes = (element.get("class") or "").split()
    if "s" in classes:
        around = float(re.search(r"\.s\{font-size:([\d.]+)px", diagrams.STYLE)[1])
    elif "q" in classes:
        around = float(re.search(r"\.q\{font-size:([\d.]+)px", diagrams.STYLE)[1])
    return around * (float(re.search(r"font-size:([\d.]+)em", diagrams.STYLE)[1]) if classes == ["m"] else 1)


def test_the_stored_diagrams_are_those_that_the_code_draws(drawn):
    assert sorted(path.stem for path in (STATIC / "diagrams").iterdir()) == NAMES
    assert sorted(path.stem for path in drawn.iterdir()) == NAMES
    for name in NAMES:
        new, old = (drawn / f"{name}.svg").read_text(encoding="utf-8"), stored(name)
        if new != old:  # another processor may round a dot or a pixel the other way; nothing else may differ
            computed = r'<g class="computed".*'
            assert re.sub(computed, "", new) == re.sub(computed, "", old), name
            assert len(re.findall(computed, new)) == len(re.findall(computed, old)), name
            assert abs(len(new) - len(old)) < 0.01 * len(old), name


def test_the_same_code_gives_the_same_bytes(drawn):
    assert diagrams.DIAGRAMS["unet-digits"]().svg() == (drawn / "unet-digits.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_diagram_is_small_whole_and_asks_nothing_of_another_file(name):
    svg = stored(name)
    root = ET.fromstring(svg)
    assert len(svg.encode()) < 40_000
    assert root.get("role") == "img" and root.get("aria-labelledby") == "title desc"
    assert [root.find(f"{SVG}{tag}").get("id") for tag in ("title", "desc")] == ["title", "desc"]
    assert len(root.find(f"{SVG}title").text) > 10 and len(root.find(f"{SVG}desc").text) > 80
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "title", "desc", "style", "defs", "linearGradient", "stop", "rect", "g", "path", "text",
                    "tspan", "circle"}  # fmt: skip
    assert "href" not in svg and "@import" not in svg and "@font-face" not in svg
    assert set(re.findall(r"url\(([^)]*)\)", svg)) <= {"#mixed", "#mixed-line"}
    assert svg.count("http") == 1  # the namespace
    assert not re.search(r"\bnan\b|\binf\b|None|tensor", svg)


@pytest.mark.parametrize("name", NAMES)
def test_a_diagram_can_be_read_on_a_phone(name):
    root = ET.fromstring(stored(name))
    left, top, width, height = map(float, root.get("viewBox").split())
    assert (left, top) == (0, 0) and width <= 420 and float(root.get("width")) <= 720
    assert abs(float(root.get("width")) / float(root.get("height")) - width / height) < 0.01
    for text in root.iter(f"{SVG}text"):
        around = size_of(text, diagrams.SIZE)
        sizes = [around] + [size_of(part, around) for part in text.iter(f"{SVG}tspan")]
        assert min(sizes) * PHONE / width >= 11, "".join(text.itertext())
        long = 0.52 * around * len("".join(text.itertext()).replace("\u0302", ""))
        classes = (text.get("class") or "").split()
        begin = float(text.get("x")) - (0 if "l" in classes else long if "r" in classes else long / 2)
        assert begin > 0 and begin + long < width + 4, f"{''.join(text.itertext())!r} leaves the picture"
        assert 10 < float(text.get("y")) < height


def parameters(net):
    return f"{sum(p.numel() for p in net.parameters()):,}"


def test_the_u_net_says_what_the_network_is():
    net = networks.UNet(1, width=24, multipliers=(1, 2), attention=(1,), num_classes=10)
    said = words(diagrams.unet(width=24).svg())
    assert f"{parameters(net)} parameters" in said and "11×96" in said  # 10 classes and none; a code of 4 widths
    assert sum("block" in line and "A block" not in line and "of a block" not in line for line in said) == 8 + 1
    shapes = []
    for layer in net.up:
        layer.register_forward_hook(lambda _, ins, out: shapes.append((ins[0].shape[1], tuple(out.shape[1:]))))
    net(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    for before, after in shapes:
        out = "×".join(map(str, after))
        assert (f"double, {out}" if before == after[0] else f"{before} → {out}") in said
    assert diagrams.unet(width=24).svg() != diagrams.unet(width=16).svg() == stored("unet-digits")
    without = words(diagrams.unet(num_classes=None).svg())
    assert "class" not in without and "class" in said


def test_the_three_networks_and_the_encoding_follow_their_sizes():
    said = words(diagrams.three_networks(width=8).svg())
    assert f"{parameters(networks.UNet(1, width=8, multipliers=(1, 2), attention=(1,)))} parameters" in said
    assert "8×8×8" in said and said.count("2 skips") == 2 and "= 16 numbers" in said
    said = words(diagrams.step_encoding(width=32).svg())
    assert "32 → 32 → 32" in said and "34 → 32" in said and "16 cosines" in said
    assert [line for line in said if line in ("u + b", "(1 + a) u + b")] == ["u + b", "(1 + a) u + b"]


def test_the_trained_networks_are_in_their_diagrams():
    from companion import weights

    said = words(stored("latent-diffusion"))
    net = weights.load("fashion_autoencoder")
    assert {parameters(net.encoder), parameters(net.decoder)} <= set(said)
    assert "latent z: 4×8×8 = 256 numbers" in said
    said = words(stored("text-to-image"))
    assert any(parameters(weights.load("emoji_text_to_image")) in line for line in said)
    assert "batch 20×1×8×8" in words(stored("classifier-free-guidance"))  # of 10: both answers come out of one call
    assert {"64 × 64 weights", "64 × 11 weights"} <= set(words(stored("text-block")))


def test_a_drawing_sets_mathematics_and_comes_back_to_the_line():
    set_as = diagrams.marked("a < $x_t^{ab}$ end")
    assert set_as == (
        'a &lt; <tspan class="m">x</tspan><tspan class="m s" dy="3.5">t</tspan><tspan class="m s" dy="-8.5">ab</tspan>'
        '<tspan dy="5"> end</tspan>'
    )
    assert diagrams.marked("plain") == "plain" and diagrams.marked("$1$") == "1"


def test_a_line_ends_in_a_head_that_points_its_way():
    heads = {(30, 10): "M30 10L23 6.5L23 13.5z", (10, 30): "M10 30L13.5 23L6.5 23z", (10, 2): "M10 2L6.5 9L13.5 9z"}
    for end, head in heads.items():
        d = diagrams.Drawing("title", "desc")
        d.line((10, 10), end)
        assert head in d.parts[0] and len(d.parts) == 2
    d.line((0, 0), (5, 0), head=False)
    assert len(d.parts) == 3


def test_the_colours_are_those_of_the_figures():
    roles = {name: diagrams.ROLES[name] for name in ("data", "noise", "told")}
    assert tuple(roles.values()) == plots.COLORS[:3]
    for name in NAMES:
        assert any(color in stored(name) for color in roles.values())
    d = diagrams.Drawing("title", "desc")
    d.box(8, 8, 100, 40, ["one"], "noise")
    assert "noise" in words(d.svg()) and "latent" not in words(d.svg())  # the legend holds what was used


@pytest.mark.parametrize("module", [diagrams, front_page], ids=["diagrams", "front_page"])
def test_a_name_that_is_not_known_is_refused(module, tmp_path, capsys):
    with pytest.raises(SystemExit):
        module.main(["unet-of-another-book", "--folder", str(tmp_path)])
    said = capsys.readouterr().err
    assert "unet-of-another-book" in said and ("text-block" in said or "social-preview" in said)
    assert not list(tmp_path.iterdir())


def test_the_front_pages_pictures_are_small_and_sharp():
    from PIL import Image

    for name in front_page.PICTURES:
        path = STATIC / f"{name}.png"
        with Image.open(path) as image:
            wide, high = image.size
        if name == "social-preview":
            assert (wide, high) == (1200, 630) and path.stat().st_size < 300_000
        else:
            assert 1380 <= wide <= 1460 and path.stat().st_size < 120_000, name
    assert front_page.TEXT / 72 / front_page.WIDTH * PHONE >= 11


def test_a_gallery_has_a_picture_under_each_title(tmp_path):
    figure = front_page.gallery(torch.zeros(3, 1, 4, 4), ["one", "a title that is long", "three"], columns=2, lines=2)
    shown = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert shown == [["one"], ["long", "that is", "a title"], ["three"], []]  # from the picture upwards
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 0]
    front_page.save(figure, tmp_path / "gallery.png")
    assert (tmp_path / "gallery.png").stat().st_size > 1000


def test_the_favicon_is_a_picture_of_its_own():
    root = ET.parse(STATIC / "favicon.svg").getroot()
    assert root.get("viewBox") == "0 0 64 64" and "href" not in (STATIC / "favicon.svg").read_text()
