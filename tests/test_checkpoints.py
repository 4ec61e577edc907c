"""A checkpoint comes back whole or is refused with the reason, whatever happens to the file."""

import json
import os
import pickle
import random

import pytest
import torch
from torch import nn

from companion import checkpoints, networks

ABOUT = {"step": 3, "text": "naïve", "list": [1, 2.5, None], "inner": {"yes": True}}
TENSORS = {
    "net.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
    "net.count": torch.tensor(7),
    "ema.weight": torch.ones(3, 2, dtype=torch.bfloat16),
    "double": torch.linspace(0, 1, 5, dtype=torch.float64),
    "state": torch.arange(9, dtype=torch.uint8),
    "mask": torch.tensor([True, False]),
    "nothing": torch.empty(0, 4),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.fixture
def written(path):
    checkpoints.write(path, TENSORS, ABOUT)
    return path


def same(one, other):
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


# --- there and back ---


def test_there_and_back(written):
    tensors, about = checkpoints.read(written)
    assert same(tensors, TENSORS) and about == ABOUT
    assert [p.name for p in written.parent.iterdir()] == ["run.safetensors"]  # nothing is left beside it


def test_a_path_may_be_text(path):
    checkpoints.write(str(path), TENSORS, {})
    assert same(checkpoints.read(str(path))[0], TENSORS)


def test_any_layout_comes_back(path, device):
    """A view, a transposed tensor, one with a graph, and two that share memory."""
    base = torch.arange(12.0, device=device).reshape(3, 4)
    given = {"view": base[1:, ::2], "turned": base.T, "graph": base.clone().requires_grad_() * 2, "again": base}
    checkpoints.write(path, given, {})
    tensors, _ = checkpoints.read(path)
    assert all(torch.equal(tensors[k], given[k].detach().cpu()) for k in given)
    assert {t.device.type for t in tensors.values()} == {"cpu"}


def test_nothing_at_all(path):
    checkpoints.write(path, {}, {})
    assert checkpoints.read(path) == ({}, {})


def test_other_tools_can_read_it(written):
    from safetensors import safe_open

    with safe_open(written, "pt") as file:
        assert set(file.keys()) == set(TENSORS) and torch.equal(file.get_tensor("net.weight"), TENSORS["net.weight"])
        mark = json.loads(file.metadata()["companion"])
    assert mark["format"] == 1 and json.loads(mark["about"]) == ABOUT and len(mark["sha256"]) == 64


def test_the_same_content_is_the_same_file(path):
    checkpoints.write(path, TENSORS, ABOUT)
    first = path.read_bytes()
    checkpoints.write(path, dict(reversed(TENSORS.items())), dict(reversed(ABOUT.items())))
    assert path.read_bytes() == first


def test_no_such_file(path):
    with pytest.raises(FileNotFoundError):
        checkpoints.read(path)


# --- a crash while writing ---


@pytest.mark.parametrize("where", ["pack", "fsync", "replace"])
def test_a_crash_leaves_the_old_file(written, monkeypatch, where):
    before = written.read_bytes()

    def crash(*_, **__):
        raise RuntimeError("the power is out")

    monkeypatch.setattr(*{"pack": ("safetensors.torch.save", crash)}.get(where, (f"os.{where}", crash)))
    with pytest.raises(RuntimeError, match="the power is out"):
        checkpoints.write(written, {"x": torch.zeros(1)}, {})
    monkeypatch.undo()
    assert written.read_bytes() == before and [p.name for p in written.parent.iterdir()] == ["run.safetensors"]


def test_what_a_killed_process_left_does_not_matter(written):
    """Killed in the middle of a write, it leaves a piece under another name, which the next write replaces."""
    piece = written.with_name("run.safetensors.tmp")
    piece.write_bytes(written.read_bytes()[:50])
    assert same(checkpoints.read(written)[0], TENSORS)
    checkpoints.write(written, {"x": torch.zeros(1)}, {})
    assert checkpoints.read(written)[0].keys() == {"x"} and not piece.exists()


def test_all_is_on_the_disk_before_it_has_the_name(path, monkeypatch):
    """The content is forced to the disk, then takes the name, then the folder is forced to the disk."""
    calls, fsync, replace = [], os.fsync, os.replace

    def watched_fsync(number):
        calls.append("fsync" if path.exists() else os.fstat(number).st_size)
        return fsync(number)

    def watched_replace(source, target):
        calls.append((os.path.dirname(source) == os.path.dirname(target), str(target) == str(path)))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    checkpoints.write(path, TENSORS, ABOUT)
    assert calls[:2] == [path.stat().st_size, (True, True)]
    assert calls[2:] == (["fsync"] if os.name == "posix" else [])


# --- damaged and foreign files ---


def test_truncated_anywhere(written):
    """Cut after any number of bytes it is refused, and where the header is whole the message has both sizes."""
    whole = written.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for length in range(0, len(whole), 7):
        written.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"run\.safetensors is truncated.*take an earlier checkpoint") as caught:
            checkpoints.read(written)
        if length >= start:
            assert f"it has {length} bytes and should have {len(whole)}" in str(caught.value)
        elif length >= 8:
            assert f"{length} bytes and its header alone would take {start}" in str(caught.value)


def test_one_bit_flipped_anywhere(written):
    """Every byte of the file, header and tensors alike, with a bit of it flipped."""
    whole, draw = written.read_bytes(), random.Random(0)
    reasons = set()
    for i in range(len(whole)):
        changed = bytearray(whole)
        changed[i] ^= 1 << draw.randrange(8)
        written.write_bytes(changed)
        with pytest.raises(ValueError, match=r"^run\.safetensors (is|was|has) ") as caught:
            checkpoints.read(written)
        reasons.add(str(caught.value).split(":")[0].split(" ", 1)[1])
    assert any("is damaged or was changed" in reason for reason in reasons)
    assert any("has a damaged header" in reason for reason in reasons)


def test_bytes_appended(written):
    written.write_bytes(written.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"run\.safetensors is damaged: .*take an earlier checkpoint or train again"):
        checkpoints.read(written)


@pytest.mark.parametrize("what", ["value", "name", "dtype", "shape", "card", "swapped"])
def test_tampered_with_on_purpose(written, what):
    """A file packed anew with the old checksum."""
    from safetensors import safe_open
    from safetensors.torch import save

    with safe_open(written, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if what == "value":
        tensors["net.weight"][0, 0] += 1e-6
    elif what == "name":
        tensors["net.bias"] = tensors.pop("net.weight")
    elif what == "dtype":
        tensors["net.count"] = tensors["net.count"].view(torch.float64)
    elif what == "shape":
        tensors["net.weight"] = tensors["net.weight"].reshape(2, 3)
    elif what == "swapped":
        tensors["net.weight"], tensors["ema.weight"] = tensors["ema.weight"], tensors["net.weight"]
    else:
        metadata["companion"] = metadata["companion"].replace('\\"step\\": 3', '\\"step\\": 4')
    written.write_bytes(save(tensors, metadata=metadata))
    with pytest.raises(
        ValueError, match=r"is damaged or was changed: its SHA-256 is [0-9a-f]{12}\.\.\., the file says"
    ):
        checkpoints.read(written)


class Bomb:
    """Says when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, "torch.save"])
def test_a_pickle_is_not_opened(path, protocol):
    if protocol == "torch.save":
        torch.save({"weight": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Bomb()}, protocol=protocol))
    with pytest.raises(
        ValueError, match=r"is a pickle or a file of torch\.save, which can run code.*checkpoints\.save"
    ):
        checkpoints.read(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"companion": '{"format": 2, "about": "{}"}'}])
def test_safetensors_of_another_maker(path, metadata):
    from safetensors.torch import save

    path.write_bytes(save({"weight": torch.zeros(3)}, metadata=metadata))
    with pytest.raises(
        ValueError, match=r"was not written by this version.*no mark of format 1; load its tensors with"
    ):
        checkpoints.read(path)


def header(content):
    return len(content).to_bytes(8, "little") + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated, or no safetensors file: it has 0 bytes"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "is truncated, or no safetensors file"),
        (b'{"a": 1, "b": "json is text"}', "is truncated, or no safetensors file"),
        (header(b"not json"), "has a damaged header"),
        (header(b"[]"), "has a damaged header"),
        (header(b"3"), "has a damaged header"),
        (header(b'{"x": {}}'), "has a damaged header"),
        (header(b'{"x": {"data_offsets": [0]}}'), "has a damaged header"),
        (header(b'{"x": {"data_offsets": 3}}'), "has a damaged header"),
        (header(b'{"__metadata__": 3}'), "has a damaged header"),
        (header(b'{"__metadata__": {"companion": "{"}}'), "has a damaged header"),
        (header(b'{"__metadata__": {"companion": "[]"}}'), "has a damaged header"),
        (header(b'{"__metadata__": {"companion": "{\\"format\\": 1}"}}'), "has a damaged header"),
        (header(b'{"__metadata__": {"companion": "{\\"format\\": 1, \\"about\\": 3}"}}'), "was not written by"),
        (header(b'{"__metadata__": {"companion": "{\\"format\\": 1, \\"about\\": \\"\\"}"}}'), "was not written by"),
        (header(b"[" * 100_000), "has a damaged header"),
        (header(b"\xff\xfe"), "has a damaged header"),
    ],
)
def test_files_that_are_something_else(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^run\.safetensors {message}"):
        checkpoints.read(path)


# --- networks ---


def test_save_and_load(path):
    net, other = (networks.MLP(2, width=8, depth=1, num_classes=3) for _ in range(2))
    checkpoints.save(path, net, {"trained on": "moons"})
    assert not same(net.state_dict(), other.state_dict())
    for averaged in (True, False):  # only one kind of weights is there
        assert checkpoints.load(path, other, averaged=averaged) == {"trained on": "moons"}
        assert same(net.state_dict(), other.state_dict())
    checkpoints.save(path, net)
    assert checkpoints.load(path, other) == {}


def test_load_takes_the_averaged_weights_unless_told(path):
    raw, averaged, net = nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(2, 1)
    parts = {"net": raw, "ema": averaged}
    checkpoints.write(path, {f"{k}.{n}": v for k, m in parts.items() for n, v in m.state_dict().items()}, {})
    checkpoints.load(path, net)
    assert same(net.state_dict(), averaged.state_dict())
    checkpoints.load(path, net, averaged=False)
    assert same(net.state_dict(), raw.state_dict())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(3, 1), r"weight is \(1, 2\) torch\.float32 there and \(1, 3\) torch\.float32 here, and 0 more"),
        (nn.Linear(2, 4), r"weight is \(1, 2\) torch\.float32 there and \(4, 2\) torch\.float32 here, and 1 more"),
        (nn.Linear(2, 1).double(), r"weight is \(1, 2\) torch\.float32 there and \(1, 2\) torch\.float64 here, and 1"),
        (nn.Linear(2, 1, bias=False), r"bias is \(1,\) torch\.float32 there and not here, and 0 more"),
        (nn.Bilinear(2, 1, 1), r"weight is \(1, 2\) torch\.float32 there and \(1, 2, 1\) torch\.float32 here, and 0"),
        (nn.Sequential(nn.Linear(2, 1)), r"0\.weight is not there and \(1, 2\) torch\.float32 here, and 3 more differ"),
    ],
)
def test_another_architecture(path, other, message):
    checkpoints.save(path, nn.Linear(2, 1))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(
        ValueError, match=rf"^run\.safetensors is of another network: {message}.*build the network with"
    ):
        checkpoints.load(path, other)
    assert same(before, other.state_dict())


def test_part():
    assert checkpoints.part({"a.b.c": 1, "a.d": 2, "ab.c": 3, "c.a.b": 4}, "a") == {"b.c": 1, "d": 2}


def test_a_header_of_any_length_is_read_again(tmp_path):
    """The length comes first in the file: 640 bytes begin as a pickle does, 19,280 as a zip file does."""
    net, lengths = torch.nn.Linear(2, 1), set()
    for size in (*range(0, 1500, 8), *range(18_700, 19_400, 8)):
        path = tmp_path / "net.safetensors"
        checkpoints.save(path, net, {"note": "x" * size})
        assert checkpoints.load(path, torch.nn.Linear(2, 1)) == {"note": "x" * size}
        lengths.add(int.from_bytes(path.read_bytes()[:8], "little"))
    assert {640, 896, 1152, 19_280} <= lengths
