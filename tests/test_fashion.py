"""The clothes: what ships, the full set by path, by variable and by download, and the script that made the sheet."""

import gzip
import hashlib
import importlib.util
import io
import os
from pathlib import Path

import pytest
import torch

from companion import data
from companion.data import _fashion

ROOT = Path(__file__).resolve().parents[1]
COUNTS = {"train": 23, "held-out": 11}  # images in the set made up here


def idx(values, header):
    return b"\0" * header + bytes(values.to(torch.uint8).flatten().tolist())


@pytest.fixture
def full(tmp_path, monkeypatch):
    """A set made up, its folder, and its checksums in the place of the real ones."""
    content, generator = {}, torch.Generator().manual_seed(0)
    for split, count in COUNTS.items():
        name = {"train": "train", "held-out": "t10k"}[split]
        content[f"{name}-images-idx3-ubyte.gz"] = idx(torch.randint(256, (count, 28, 28), generator=generator), 16)
        content[f"{name}-labels-idx1-ubyte.gz"] = idx(torch.arange(count) % 10, 8)
    assert list(content) == list(_fashion.FILES)
    monkeypatch.setattr(_fashion, "FILES", {k: hashlib.sha256(v).hexdigest() for k, v in content.items()})
    folder = tmp_path / "fashion"
    folder.mkdir()
    for name, value in content.items():
        (folder / name).write_bytes(gzip.compress(value))
    return folder


# --- the subset ---


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize(("split", "count"), [("train", 5000), ("held-out", 1000)])
def test_subset(split, count, size):
    x, y = data.fashion(split, size=size)
    assert x.shape == (count, 1, size, size) and x.dtype == torch.float32
    assert y.shape == (count,) and y.dtype == torch.int64
    assert torch.equal(y.bincount(), torch.full((10,), count // 10)) and torch.equal(y[:20], torch.arange(20) % 10)
    assert x.min() == -1 and x.max() == 1
    assert torch.equal(((x + 1) * 127.5).round() / 127.5 - 1, x)  # whole bytes


def test_the_default_is_the_training_split_28_wide():
    assert torch.equal(data.fashion()[0], data.fashion("train", source="subset", size=28)[0])


def test_border():
    small, large = data.fashion("held-out")[0], data.fashion("held-out", size=32)[0]
    assert torch.equal(large[:, :, 2:-2, 2:-2], small)
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    assert bool((large[:, 0, border] == -1).all())


def test_splits_share_no_image():
    seen = [{row.numpy().tobytes() for row in data.fashion(split)[0]} for split in ("train", "held-out")]
    assert len(seen[0]) > 4990 and not seen[0] & seen[1]


def test_labels_are_of_these_images():
    """The nearest class mean of the training split names two held-out images in three."""
    x, y = data.fashion()
    means = torch.stack([x[y == c].mean(0) for c in range(10)]).flatten(1)
    held_out, labels = data.fashion("held-out")
    right = (torch.cdist(held_out.flatten(1), means).argmin(1) == labels).double().mean()
    assert right > 0.6
    assert len(data.FASHION_CLASSES) == 10 and data.FASHION_CLASSES[1] == "trouser"
    trousers, bags = (held_out[labels == data.FASHION_CLASSES.index(name)] for name in ("trouser", "bag"))
    assert ((trousers > -1).any(2).sum(-1).double().mean()) < 20 < ((bags > -1).any(2).sum(-1).double().mean())


def test_what_is_returned_may_be_changed():
    x, y = data.fashion("held-out")
    x.zero_(), y.zero_()
    again, labels = data.fashion("held-out")
    assert again.min() == -1 and labels.max() == 9


def test_small_and_licensed():
    files = [path for path in _fashion.FOLDER.iterdir() if path.name.startswith("fashion")]
    assert sum(path.stat().st_size for path in files) <= 2.5e6
    notice = (_fashion.FOLDER / "fashion-LICENSE.txt").read_text(encoding="utf8")
    assert "The MIT License" in notice and "Zalando SE" in notice


# --- the full set ---


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("split", COUNTS)
def test_full_by_path_and_by_variable(full, split, size, monkeypatch):
    x, y = data.fashion(split, source=full, size=size)
    assert x.shape == (COUNTS[split], 1, size, size) and torch.equal(y, torch.arange(COUNTS[split]) % 10)
    assert x.dtype == torch.float32 and y.dtype == torch.int64 and x.min() == -1 and x.max() == 1
    name = {"train": "train", "held-out": "t10k"}[split]
    raw = gzip.decompress((full / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:]
    edge = (size - 28) // 2
    assert x[3, 0, edge + 1, edge + 2].item() == pytest.approx(raw[3 * 784 + 28 + 2] / 127.5 - 1)
    monkeypatch.setenv("FASHION_MNIST", str(full))
    assert torch.equal(data.fashion(split, source="full", size=size)[0], x)
    assert torch.equal(data.fashion(split, source=str(full), size=size)[0], x)
    assert len(data.fashion(split)[0]) in (5000, 1000)  # the variable does not change what "subset" gives


@pytest.mark.parametrize("value", [None, ""])
def test_full_that_is_not_named(monkeypatch, value):
    monkeypatch.delenv("FASHION_MNIST", raising=False)
    if value is not None:
        monkeypatch.setenv("FASHION_MNIST", value)
    with pytest.raises(FileNotFoundError, match=r'"full" but FASHION_MNIST is not set') as error:
        data.fashion(source="full")
    for way in ("source=PATH", "environment variable FASHION_MNIST", "data.download_fashion(PATH)", 'source="subset"'):
        assert way in str(error.value)


def test_full_that_is_not_there(full, monkeypatch):
    (full / "t10k-labels-idx1-ubyte.gz").unlink()
    missing = "there is no t10k-labels-idx1-ubyte.gz: give its folder.*FASHION_MNIST.*download_fashion"
    with pytest.raises(FileNotFoundError, match=missing):
        data.fashion(source=full)
    monkeypatch.setenv("FASHION_MNIST", str(full))
    with pytest.raises(FileNotFoundError, match=missing):
        data.fashion(source="full")
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte\.gz, no train-labels-idx1"):
        data.fashion(source=full / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda packed: packed[:-20], "damaged, it does not unpack"),
        (lambda packed: b"nothing", "damaged, it does not unpack"),
        (lambda packed: packed[:30] + bytes([packed[30] ^ 255]) + packed[31:], "damaged"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-1]), "SHA-256 of its content is"),
        (lambda packed: gzip.compress(gzip.decompress(packed) + b"\0"), "it must be"),
    ],
    ids=["truncated", "not packed", "one byte", "short", "long"],
)
def test_damaged_file(full, damage, message):
    path = full / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte\.gz is .*{message}.*"):
        data.fashion(source=full)
    data.fashion("held-out", source=full)  # the other split is sound


def test_packed_again_is_the_same_set(full):
    path = full / "train-images-idx3-ubyte.gz"
    before = data.fashion(source=full)[0]
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    assert torch.equal(data.fashion(source=full)[0], before)


@pytest.mark.parametrize("split", ["test", "Train", "", None])
def test_unknown_split(split):
    with pytest.raises(ValueError, match=r'split is .*; it must be "train" or "held-out"'):
        data.fashion(split)


@pytest.mark.parametrize("size", [27, 30, 64, 0])
def test_unknown_size(size):
    with pytest.raises(ValueError, match=f"size is {size}; it must be 28, or 32"):
        data.fashion(size=size)


# --- download ---


class Server:
    """Opens the files of a folder under the set's address, and remembers what was asked for."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def __call__(self, url):
        assert url.startswith("https://") and "zalandoresearch/fashion-mnist" in url
        self.asked.append(url.rsplit("/", 1)[1])
        return io.BytesIO((self.folder / self.asked[-1]).read_bytes())


def test_download(full, tmp_path):
    server, folder = Server(full), tmp_path / "new" / "place"
    assert data.download_fashion(folder, opener=server) == folder
    assert server.asked == list(_fashion.FILES) == sorted(_fashion.FILES, reverse=True, key=lambda n: n[:5])
    assert sorted(path.name for path in folder.iterdir()) == sorted(_fashion.FILES)
    assert torch.equal(data.fashion(source=folder)[0], data.fashion(source=full)[0])


def test_download_keeps_what_is_there(full):
    server = Server(full)
    data.download_fashion(full, opener=server)
    assert server.asked == []
    (full / "train-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz is damaged.*remove it and fetch it again"):
        data.download_fashion(full, opener=server)


def test_download_keeps_nothing_that_is_wrong(full, tmp_path):
    folder = tmp_path / "new"

    def wrong(url):
        return io.BytesIO(gzip.compress(b"something else"))

    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged or of another set"):
        data.download_fashion(folder, opener=wrong)
    assert not list(folder.iterdir())

    def broken(url):
        raise OSError("no connection")

    with pytest.raises(OSError, match="no connection"):
        data.download_fashion(folder, opener=broken)
    assert not list(folder.iterdir())


# --- where the sheet comes from ---


def sheet_script():
    spec = importlib.util.spec_from_file_location("fashion_sheet", ROOT / "scripts" / "fashion_sheet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_what_fashion_reads(full, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_fashion, "KEPT", {"train": 2, "held-out": 1})
    sheet_script().main([str(full), "--out", str(tmp_path)])
    assert capsys.readouterr().out == "30 images\n"
    monkeypatch.setattr(_fashion, "FOLDER", tmp_path)
    _fashion._subset.cache_clear()
    try:
        for split, count in (("train", 20), ("held-out", 10)):
            x, y = data.fashion(split)
            assert torch.equal(x, data.fashion(split, source=full)[0][:count])  # there the classes come in turn
            assert torch.equal(y, torch.arange(count) % 10)
    finally:
        _fashion._subset.cache_clear()


def test_the_script_takes_the_first_of_each_class():
    x, y = torch.linspace(-1, 1, 256)[:24, None, None, None].expand(-1, 1, 28, 28), torch.arange(24) // 2 % 10
    picked = sheet_script().chosen(x, y, 2)[:, 0, 0]
    assert picked.tolist() == [*range(0, 20, 2), *range(1, 20, 2)]


@pytest.mark.skipif(not os.environ.get("FASHION_MNIST"), reason="needs the full set")
def test_the_subset_is_part_of_the_full_set():
    script = sheet_script()
    for split, count in _fashion.KEPT.items():
        ours = ((data.fashion(split)[0][:, 0] + 1) * 127.5).round().to(torch.uint8)
        assert torch.equal(script.chosen(*data.fashion(split, source="full"), count), ours)
