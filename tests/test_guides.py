"""The code of every guide runs from top to bottom in one namespace, at small sizes, and does what its page says.

A guide's sizes are constants at its top, which a test replaces: {"NUM_STEPS": "3"} makes NUM_STEPS = 5_000 a 3.
"""

import ast
import json
import re
from pathlib import Path

import pytest
import torch

import companion
from companion import data

BOOK = Path(__file__).parents[1] / "book"
GUIDES = sorted(path.stem for path in BOOK.glob("guide-*.md"))
RESULTS = Path(companion.__file__).parent / "results"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def text_of(name):
    return (BOOK / f"{name}.md").read_text(encoding="utf8")


def run(name, sizes, folder, monkeypatch, leave_out=()):
    """Run a guide's blocks in a folder, with other sizes, and return its names."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(folder)
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text_of(name), re.S)]
    for key, value in sizes.items():
        assert len(re.findall(rf"^{key} = ", blocks[0], re.M)) == 1, f"{key} is no constant at the top of {name}"
        blocks[0] = re.sub(rf"^{key} = .*$", f"{key} = {value}", blocks[0], flags=re.M)
    names: dict = {}
    with torch.random.fork_rng(devices=[]):
        for block in blocks:
            if not any(word in block for word in leave_out):
                exec(compile(block, name, "exec"), names)
    return names


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_is_short(name):
    words = re.sub(r"```.*?```", "", text_of(name), flags=re.S).split()
    assert 300 <= len(words) <= 750, len(words)


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_imports_what_it_uses_and_nothing_else(name):
    blocks = re.findall(r"```python\n(.*?)```", text_of(name), re.S)
    imported, used, own = set(), set(), set()
    for part in ast.walk(ast.parse("\n".join(blocks))):
        if isinstance(part, ast.Import | ast.ImportFrom):
            imported |= {alias.name.split(".")[0] for alias in part.names}
        elif isinstance(part, ast.Name):
            (used if isinstance(part.ctx, ast.Load) else own).add(part.id)
    assert imported <= used and imported >= (used - own) & set(companion.__all__)


def test_the_guides_are_all_here():
    assert GUIDES == ["guide-fine-tune", "guide-guidance", "guide-own-images", "guide-sample-faster"]


# --- own images ---


@pytest.fixture
def photos(tmp_path):
    """A folder of emoji in two classes, one file of which is broken."""
    image = pytest.importorskip("PIL.Image")
    found = data.emoji()
    for k in range(2):
        (tmp_path / "photos" / f"kind {k}").mkdir(parents=True)
        for i in range(20):
            pixels = ((found.x[20 * k + i] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            image.fromarray(pixels).save(tmp_path / "photos" / f"kind {k}" / f"{i}.png")
    (tmp_path / "photos" / "kind 0" / "broken.png").write_bytes(b"no image")
    return tmp_path


def test_own_images(photos, monkeypatch, capsys):
    sizes = {"SIZE": "8", "NUM_STEPS": "20", "BATCH": "16"}
    names = run("guide-own-images", sizes, photos, monkeypatch)
    printed = capsys.readouterr().out
    assert "40 images in classes ('kind 0', 'kind 1')" in printed
    assert "skipped kind 0/broken.png" in printed
    assert "step 20: loss" in printed
    assert len(names["train"]) == 36 and len(names["held_out"]) == 4
    assert not {row.numpy().tobytes() for row in names["train"]} & {row.numpy().tobytes() for row in names["held_out"]}
    assert names["samples"].shape == (4, 3, 8, 8) and float(names["samples"].abs().max()) <= 1
    assert float(names["step"].loss) < 2 and not names["net"].training
    assert (photos / "photos.safetensors").exists()
    assert 0 < float(names["usual"]) < float(names["nearest"])  # after 20 steps a sample is far from any image
    assert torch.equal(names["draw"](4), names["draw"](4))


def test_own_images_without_classes(photos, monkeypatch):
    sizes = {"FOLDER": repr("photos/kind 1"), "SIZE": "8", "NUM_STEPS": "3", "BATCH": "8"}
    names = run("guide-own-images", sizes, photos, monkeypatch)
    assert names["classes"] is None and names["labels"] is None
    assert names["samples"].shape == (2, 3, 8, 8)


# --- sample faster ---


def numbers(row):
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", row)]


def test_sample_faster(tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    names = run("guide-sample-faster", {"NUM_SAMPLES": "80"}, tmp_path, monkeypatch)
    assert names["drawn"].shape == (4, 1, 8, 8) and bool(names["drawn"].isfinite().all())
    right = (names["judge"](names["images"]).argmax(1) == names["labels"]).float().mean()
    assert right > 0.9
    printed = capsys.readouterr().out
    distances = [float(d) for d in re.findall(r"adams, \d+ calls: (\S+) times", printed)]
    assert len(distances) == 3 and min(distances) > 0
    assert "adams, 10: 1.23 ± 0.11 times the floor" in printed


def test_sample_faster_quotes_the_stored_results():
    rows = json.loads((RESULTS / "samplers.json").read_text())["digits"]["rows"]
    quoted = re.findall(r"^\| `(\w+)`, (\d+) \| (\S+) \| (\S+) \|$", text_of("guide-sample-faster"), re.M)
    assert len(quoted) == 9
    for sampler, steps, ratio, error in quoted:
        row = rows[f"{sampler}, {steps}"]
        assert (f"{row['ratio']:.2f}", f"{row['error']:.2f}") == (ratio, error), sampler
    assert rows["heun, 9"]["ratio"] > 2 > rows["heun, 19"]["ratio"]  # "about 20 calls before it is of use"
    ratio, error = ({name: row[key] for name, row in rows.items()} for key in ("ratio", "error"))
    for name in ("adams, 20", "dpmpp_2m, 10", "ddim, 20"):  # "gains nothing by a second ten", "as near"
        assert abs(ratio["adams, 10"] - ratio[name]) < error["adams, 10"], name
    for name in ("adams, 5", "ddim, 10", "ddpm, 20"):
        assert ratio[name] - ratio["adams, 10"] > 2 * error["adams, 10"], name


# --- guide ---


def test_guidance(tmp_path, monkeypatch):
    names = run("guide-guidance", {"EACH": "6", "WEAK_STEPS": "2", "NUM_CALLS": "8"}, tmp_path, monkeypatch)
    found = {name: [float(v) for v in both] for name, both in names["found"].items()}
    assert found["scale 0"][0] < 0.4 < 0.9 < found["scale 1"][0] <= found["scale 2"][0]
    assert found["scale 0"][1] > found["scale 1"][1] > found["scale 1.5"][1] > found["scale 2"][1]
    assert found["scale 2"][1] < found["interval"][1]
    assert found["scale 2"][1] < found["rescale"][1] < found["scale 1"][1]
    assert float(names["chance"]) < float(names["plain"])
    assert "autoguidance" in found


def test_guidance_costs_what_the_page_says(tmp_path, monkeypatch):
    names = run("guide-guidance", {"EACH": "1"}, tmp_path, monkeypatch, leave_out=("table =", "report(", "draw(away)"))
    assert "auto" not in names
    from companion import denoisers, guidance, predictions, schedules, weights

    net, asked = weights.load("digit_denoiser"), []

    class Counting(torch.nn.Module):
        null_cond = net.null_cond

        def forward(self, x, t, cond):
            asked.append(len(x))
            return net(x, t, cond)

    model = denoisers.from_network(Counting(), schedules.Cosine(), predictions.V)
    told, untold = guidance.condition(model, torch.arange(10)), guidance.condition(model, None)
    x = torch.zeros(10, 1, 8, 8)
    guidance.extrapolate(told, untold, 2.0)(x, torch.tensor(0.5))
    guidance.extrapolate(told, untold, 1.0)(x, torch.tensor(0.5))
    guidance.extrapolate(told, untold, 2.0, t_range=(0.1, 0.2))(x, torch.tensor(0.5))
    assert asked == [20, 10, 10]


def test_guidance_quotes_the_stored_results():
    rows = json.loads((RESULTS / "guidance.json").read_text())["rows"]
    quoted = re.findall(r"^\| ([a-z][^|]*\w) \| (\S+) % \| (\S+) ± (\S+) \| (\S+) \|$", text_of("guide-guidance"), re.M)
    assert len(quoted) == 6
    for name, right, distance, sd, spread in quoted:
        row = rows[name]
        assert f"{100 * row['as asked']:.1f}" == right, name
        assert (f"{row['distance']:.2f}", f"{row['distance, sd']:.2f}") == (distance, sd), name
        assert f"{row['spread']:.2f}" == spread, name
    missed = [1 - rows[name]["as asked"] for name in ("off", "interval 0.1 to 0.2, 2")]
    assert missed[1] < 0.5 * missed[0]


# --- fine-tune ---


def test_fine_tune_reads_its_own_numbers():
    """What the page says after the printed lines is what stands in them."""
    text = text_of("guide-fine-tune")
    printed = re.search(r"```text\n(.*?)```", text, re.S).group(1)
    rows = {name: numbers(rest) for name, rest in re.findall(r"^ *(\w[\w ]*): (.*)$", printed, re.M)}
    floor, usual = rows["real trousers"]
    assert rows["before"][0] > 95 and rows["alone"][0] < 50 and rows["mixed"][0] > 95
    assert f"from {rows['before'][1]:.3f} to about 0.05, near the {floor:.3f}" in text
    assert all(abs(rows[name][1] - 0.05) < 0.005 and rows[name][2] >= usual for name in ("alone", "mixed"))


def test_fine_tune(tmp_path, monkeypatch, capsys):
    names = run("guide-fine-tune", {"NUM_STEPS": "30", "EACH": "5", "NUM_NEW": "40"}, tmp_path, monkeypatch)
    before, alone, mixed = names["before"], names["after_alone"], names["after_mixed"]
    assert before[0] > 0.9 and mixed[0] > 0.8 > alone[0]  # on new images alone it forgets
    assert alone[1] < 0.5 * before[1] and mixed[1] < before[1]  # and both learn
    assert names["floor"] < min(alone[1], mixed[1])
    about = names["checkpoints"].load("trousers.safetensors", names["start"]())
    assert about == {"classes": 11, "from": "digit_denoiser", "steps": 60}
    old, new = names["weights"].load("digit_denoiser").eval(), names["start"]().eval()
    x, t, y = torch.randn(4, 1, 8, 8), torch.rand(4), torch.tensor([0, 5, 9, 10])
    asked = torch.tensor([0, 5, 9, 11])  # what was "no class" is one further down
    torch.testing.assert_close(new(x, t, asked), old(x, t, y))
    assert capsys.readouterr().out.count("of digits as asked") == 3
