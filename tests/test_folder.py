"""A folder of images: every kind of file that lies in one, and what becomes of it."""

import builtins
import os
import struct
import unicodedata
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from companion import data


def save(path, size=(8, 8), colour=(10, 20, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour).convert(mode)
    image.save(path, **options)
    return image


def pixels(x):
    """The 8-bit values of an image (C, H, W)."""
    return (x * 127.5 + 127.5).round().byte()


def test_pixels_arrive_as_they_are(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(content).save(tmp_path / "a.png")
    found = data.folder(tmp_path, size=8)
    assert found.x.shape == (1, 3, 8, 8) and found.x.dtype == torch.float32 and found.x.is_contiguous()
    assert torch.equal(pixels(found.x[0]).permute(1, 2, 0), torch.from_numpy(content))
    assert found.labels is None and found.classes == () and found.files == ("a.png",)
    assert found.skipped == () and found.ignored == () and found.sizes == {(8, 8): 1}


def test_the_range_is_minus_one_to_one(tmp_path):
    save(tmp_path / "black.png", colour="black")
    save(tmp_path / "white.png", colour="white")
    x = data.folder(tmp_path, size=8).x
    assert x[0].unique().tolist() == [-1.0] and x[1].unique().tolist() == [1.0]


# --- classes and names ---


def test_each_subfolder_is_a_class_and_what_lies_deeper_belongs_to_it(tmp_path):
    for name in ("dogs/1.png", "cats/old/2.png", "cats/3.png"):
        save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    found = data.folder(tmp_path, size=8)
    assert found.classes == ("cats", "dogs")
    assert dict(zip(found.files, found.labels.tolist(), strict=True)) == {
        "cats/3.png": 0, "cats/old/2.png": 0, "dogs/1.png": 1,
    }  # fmt: skip
    assert found.labels.dtype == torch.int64


def test_a_single_subfolder_makes_no_class(tmp_path):
    save(tmp_path / "all" / "1.png")
    found = data.folder(tmp_path, size=8)
    assert found.labels is None and found.classes == () and found.files == ("all/1.png",)


def test_images_beside_and_inside_subfolders_are_refused(tmp_path):
    save(tmp_path / "one.png")
    save(tmp_path / "cats" / "two.png")
    with pytest.raises(ValueError, match=r"holds 1 image\(s\) itself, such as one\.png, and 1 in 1 subfolder.*cats"):
        data.folder(tmp_path, size=8)


def test_the_order_is_that_of_the_letters_whatever_the_system_says(tmp_path, monkeypatch):
    names = ["b.png", "a 2.png", "B.png", "é.png", "a.png", "日本.png", "z.PNG"]
    for name in names:
        save(tmp_path / name)
    walk = os.walk
    monkeypatch.setattr(
        os, "walk", lambda *a, **k: ((h, d[::-1], sorted(f, reverse=True)) for h, d, f in walk(*a, **k))
    )
    assert data.folder(tmp_path, size=8).files == tuple(sorted(names))


def test_accents_are_one_character_however_they_are_stored(tmp_path):
    for name in (unicodedata.normalize("NFD", "é"), "z"):
        save(tmp_path / name / "1.png")
    assert data.folder(tmp_path, size=8).classes == ("z", "é")


def test_hidden_files_and_others_are_listed_as_ignored(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".cache" / "b.png")
    (tmp_path / "notes.txt").write_text("x")
    found = data.folder(tmp_path, size=8, strict=True)
    assert found.files == ("a.png",)
    assert found.ignored == (".cache/", ".hidden.png", "notes.txt")


def test_links_to_folders_are_followed_once(tmp_path):
    save(tmp_path / "real" / "1.png")
    save(tmp_path / "images" / "a" / "2.png")
    (tmp_path / "images" / "b").symlink_to(tmp_path / "real")
    (tmp_path / "images" / "b" / "round").symlink_to(tmp_path / "images")
    found = data.folder(tmp_path / "images", size=8)
    assert found.files == ("a/2.png", "b/1.png")


# --- kinds of image ---


def test_the_camera_says_which_way_is_up(tmp_path):
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))  # its top
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    image.save(tmp_path / "a.png", exif=exif)
    x = data.folder(tmp_path, size=8).x[0, 0]
    assert (x[:, 4:] == 1).all() and (x[:, :4] == -1).all()  # the top has gone to the right


def test_transparency_lies_over_white(tmp_path):
    for name, alpha in (("0.png", 0), ("1.png", 255), ("2.png", 51)):
        Image.new("RGBA", (8, 8), (0, 0, 0, alpha)).save(tmp_path / name)
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "3.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "4.png", transparency=1)
    values = pixels(data.folder(tmp_path, size=8).x)[:, :, 0, 0].tolist()
    assert values == [[255] * 3, [0] * 3, [204] * 3, [255] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("name", "mode", "channels", "expected"),
    [
        ("a.png", "P", 3, [255, 0, 0]), ("a.gif", "P", 3, [255, 0, 0]), ("a.bmp", "RGB", 3, [255, 0, 0]),
        ("a.png", "L", 3, [76, 76, 76]), ("a.png", "RGB", 1, [76]), ("a.png", "L", 1, [76]),
        ("a.png", "1", 1, None), ("a.tif", "CMYK", 3, [255, 0, 0]), ("a.webp", "RGB", 3, None),
        ("A.JPEG", "RGB", 3, None),
    ],
)  # fmt: skip
def test_modes_and_formats(tmp_path, name, mode, channels, expected):
    save(tmp_path / name, colour=(255, 0, 0), mode=mode)
    x = data.folder(tmp_path, size=8, channels=channels).x
    assert x.shape == (1, channels, 8, 8)
    if expected is not None:
        assert pixels(x)[0, :, 4, 4].tolist() == expected


def test_sixteen_bits_of_grey_are_rounded_to_eight(tmp_path):
    value = np.full((8, 8), 257 * 200 + 100, dtype=np.uint16)
    Image.fromarray(value).save(tmp_path / "a.png")
    (tmp_path / "b.pgm").write_bytes(b"P5 8 8 65535\n" + value.astype(">u2").tobytes())
    for channels in (1, 3):
        assert pixels(data.folder(tmp_path, size=8, channels=channels, strict=True).x).unique().tolist() == [200]


def test_of_sixteen_bits_of_colour_the_upper_eight_are_kept(tmp_path):
    rows = 8 * (b"\0" + np.full((8, 3), 257 * 200 + 100, dtype=">u2").tobytes())
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in parts]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert pixels(data.folder(tmp_path, size=8).x).unique().tolist() == [(257 * 200 + 100) // 256]  # 201


def test_what_a_file_holds_counts_and_no_program_is_called_to_read_it(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    called = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *words, **_: called.append(words))
    save(tmp_path / "really-a-gif.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "really-a-gif.png", format="GIF")
    Image.new("RGB", (8, 8)).save(tmp_path / "eps.png", format="EPS")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "phone.jpg") as opened:
        assert opened.format == "MPO"  # what some phones write
    found = data.folder(tmp_path, size=8)
    assert found.files == ("phone.jpg", "really-a-gif.png") and found.x[0].unique().tolist() == [1.0]
    assert found.skipped == (("eps.png", "it is none of PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM, or damaged"),)
    assert not called


def test_a_large_photo_is_read_without_a_warning_and_a_larger_one_skipped(tmp_path, monkeypatch):
    save(tmp_path / "a.png", (10, 10))
    save(tmp_path / "b.png", (20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    found = data.folder(tmp_path, size=8)
    assert found.files == ("a.png",) and "exceeds limit" in dict(found.skipped)["b.png"]


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert data.folder(tmp_path, size=8).x.unique().tolist() == [1.0]


# --- sizes ---


def test_the_middle_square_is_cut_out(tmp_path):
    image = Image.new("RGB", (13, 8), "black")
    image.paste("white", (2, 0, 10, 8))
    image.save(tmp_path / "wide.png")
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "tall.png")
    found = data.folder(tmp_path, size=8)
    assert (found.x[1] == 1).all() and (found.x[0, :, 1:, :] == 1).all()
    assert found.sizes == {(8, 13): 1, (13, 8): 1}


def test_shrinking_averages(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    x = data.folder(tmp_path, size=8, channels=1).x
    assert x.abs().max() < 0.05  # picking single pixels would give only black or white


def test_sizes_are_counted_and_strict_refuses_them(tmp_path):
    for i, size in enumerate([(8, 8), (8, 8), (20, 10), (4, 4)]):
        save(tmp_path / f"{i}.png", size)
    found = data.folder(tmp_path, size=8)
    assert found.x.shape == (4, 3, 8, 8) and found.sizes == {(8, 8): 2, (4, 4): 1, (20, 10): 1}
    message = r"images of 3 sizes: 2 of 8x8 such as 0\.png, 1 of 20x10 such as 2\.png, 1 of 4x4 such as 3\.png; bring"
    with pytest.raises(ValueError, match=message):
        data.folder(tmp_path, size=8, strict=True)


def test_strict_takes_one_size_whatever_it_is(tmp_path):
    save(tmp_path / "a.png", (20, 10))
    save(tmp_path / "b.png", (20, 10))
    assert len(data.folder(tmp_path, size=8, strict=True).x) == 2


# --- files that cannot be read ---


def damaged(folder):
    """A folder with one good image and three that are not."""
    save(folder / "good.png", (40, 40))
    content = (folder / "good.png").read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:900])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "torn.png").write_bytes(content[:40])
    Image.new("F", (8, 8)).save(folder / "units.tiff")


def test_files_that_cannot_be_read_are_listed_with_the_reason(tmp_path):
    damaged(tmp_path)
    found = data.folder(tmp_path, size=8)
    assert found.files == ("good.png",) and found.sizes == {(40, 40): 1}
    reasons = dict(found.skipped)
    assert list(reasons) == ["cut.jpg", "empty.png", "text.png", "torn.png", "units.tiff"]
    assert reasons["empty.png"] == "it is empty (0 bytes)"
    assert reasons["text.png"] == "it is none of PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM, or damaged"
    assert "truncated" in reasons["cut.jpg"] and reasons["torn.png"]
    assert "floating point" in reasons["units.tiff"]


def test_strict_refuses_them(tmp_path):
    damaged(tmp_path)
    with pytest.raises(ValueError, match=r"5 of 6 image file\(s\) cannot be read \(cut\.jpg: .*; and 2 more\); remove"):
        data.folder(tmp_path, size=8, strict=True)


def test_a_folder_of_nothing_else_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 1 image file\(s\) cannot be read \(a\.png: it is empty"):
        data.folder(tmp_path, size=8)


def test_running_out_of_memory_is_not_a_damaged_file(tmp_path, monkeypatch):
    save(tmp_path / "a.png")

    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_memory)
    with pytest.raises(MemoryError):
        data.folder(tmp_path, size=8)


# --- what is no folder of images ---


def test_bad_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; give the path of a folder"):
        data.folder(tmp_path / "nowhere", size=8)
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(NotADirectoryError, match=r"file\.png is a file; give the folder"):
        data.folder(tmp_path / "file.png", size=8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no image but nothing; images end in \.png"):
        data.folder(tmp_path / "empty", size=8)
    (tmp_path / "empty" / "a.heic").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no image but 1 other file\(s\) \(\.heic\)"):
        data.folder(tmp_path / "empty", size=8)


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    save(tmp_path / "a.png")

    def walk(path, followlinks, onerror):
        onerror(PermissionError(13, "Permission denied", str(path)))

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(PermissionError):
        data.folder(tmp_path, size=8)


def test_bad_arguments(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="size is 0"):
        data.folder(tmp_path, size=0)
    with pytest.raises(ValueError, match="channels is 2; it must be 3 for colour or 1 for grey"):
        data.folder(tmp_path, size=8, channels=2)


def test_without_pillow_the_message_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install pillow"):
        data.folder(tmp_path, size=8)
