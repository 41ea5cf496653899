"""Pictures from files: every kind there is, and what is wrong with a file in one sentence."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cambrian.data import image_files
from cambrian.data.image_sources import Images, read_images
from cambrian.errors import BrokenFile, CambrianError, NotFound, UsageError
from cambrian.specs import DatasetEntry

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "images"
RANDOM = np.random.Generator(np.random.PCG64(3))
GREY = RANDOM.integers(0, 256, (5, 6, 7), np.uint8)  # (N, H, W)
COLOUR = RANDOM.integers(0, 256, (5, 6, 7, 3), np.uint8)  # (N, H, W, C)


def grey(image: Image.Image) -> np.ndarray:
    assert image.mode in ("L", "RGB")
    return np.asarray(image.convert("L"))[None]


def colour(image: Image.Image) -> np.ndarray:
    assert image.mode in ("L", "RGB")
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def read(*items: Path | str, fit: Any = grey, **datasets: DatasetEntry) -> Images:
    return read_images([*map(str, items)], fit, datasets)


def idx(path: Path, array: Any, shape: tuple[int, ...] | None = None, kind: int = 8) -> Path:
    """Write a file as http://yann.lecun.com/exdb/mnist has it; `shape` is what it claims."""
    array = np.asarray(array, np.uint8)
    shape = array.shape if shape is None else shape
    data = struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + array.tobytes()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def picture(path: Path, value: Any = 7, **options: Any) -> Path:
    """Save an image, an array or a grey level as the picture file that the name says."""
    array = np.full((3, 4), value, np.uint8) if isinstance(value, int) else value
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((3, 4), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def entry(*source: str, kind: str = "images") -> DatasetEntry:
    return DatasetEntry(name="mine", kind=kind, source=source)


# -- IDX --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
        ("train-images.idx3-ubyte", "train-labels-idx1-ubyte"),
        ("images.idx3", "labels.idx1"),
    ],
)
def test_idx_with_the_labels_beside(images: str, labels: str, end: str, tmp_path: Path) -> None:
    file = idx(tmp_path / images, GREY)
    idx(tmp_path / (labels + end), [3, 1, 4, 1, 5])
    for found in (read(file), read(tmp_path)):
        assert found.pixels.dtype == np.uint8
        np.testing.assert_array_equal(found.pixels[:, 0], GREY)
        assert found.labels == ("3", "1", "4", "1", "5")


def test_idx_is_known_by_content_and_may_have_colours(tmp_path: Path) -> None:
    file = idx(tmp_path / "anything", COLOUR)
    file.write_bytes(gzip.compress(file.read_bytes()))
    found = read(file, fit=colour)
    np.testing.assert_array_equal(found.pixels, COLOUR.transpose(0, 3, 1, 2))
    assert found.labels is None


def test_labels_named_before_or_after_their_pictures(tmp_path: Path) -> None:
    a, b = idx(tmp_path / "a", GREY[:1]), idx(tmp_path / "b", GREY[1:2])
    one, two = idx(tmp_path / "1", [1]), idx(tmp_path / "2", [2])
    for order in ([a, one, b, two], [one, a, two, b], [a, one, two, b]):
        assert read(*order).labels == ("1", "2")
    # A name that fits goes before a place: here `one` stands next to the wrong pictures.
    named = idx(tmp_path / "x-images-idx3-ubyte", GREY[2:3])
    fits = idx(tmp_path / "x-labels-idx1-ubyte", [9])
    assert read(named, one, a, fits).labels == ("9", "1")
    assert read(named, two).labels == ("2",)  # what is named goes before what lies beside
    for order in ([one], [a, one, two], [one, two, a]):
        with pytest.raises(UsageError, match="holds labels, but no IDX file of pictures"):
            read(*order)
    with pytest.raises(UsageError, match=r"b, picture 1 has a label, but .*a, picture 1 has none"):
        read(a, b, two)


def test_a_folder_of_idx_has_all_its_sides_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for end in ("", ".gz"):
        idx(tmp_path / f"train-images-idx3-ubyte{end}", GREY[:2])
        idx(tmp_path / f"train-labels-idx1-ubyte{end}", [0, 1])
    idx(tmp_path / "t10k-images-idx3-ubyte.gz", GREY[2:3])
    idx(tmp_path / "t10k-labels-idx1-ubyte.gz", [2])
    (tmp_path / "README").write_text("not a picture")
    (tmp_path / "-").write_bytes(b"not standard input")
    monkeypatch.chdir(tmp_path)
    for item in (tmp_path, ".", "./t*e", "./t*z"):
        assert sorted(read(item).labels or ()) == (["0", "1"] if item == "./t*e" else [*"012"])


def test_idx_that_is_not_whole(tmp_path: Path) -> None:
    def wrong(file: Path, says: str) -> None:
        with pytest.raises(BrokenFile, match=says) as caught:
            read(file)
        assert file.name in str(caught.value)

    large = RANDOM.integers(0, 256, 100_000, np.uint8)
    for end in ("", ".gz"):
        at = tmp_path / f"a{end}"
        wrong(idx(at, GREY[:4], GREY.shape), "ends after 4 of 5")
        wrong(idx(at, GREY, (4, 6, 7)), "goes on after the 4")
        wrong(idx(at, GREY, (2**32 - 1, 6, 7)), "more than a file of its size can")
        wrong(idx(at, large, (1, 9500, 9500)), "at most 89478485 pixels")
        wrong(idx(at, GREY, (5, 0, 7)), "at most 89478485 pixels")
        wrong(idx(at, GREY, (5, 3, 7, 2)), "1, 3 or 4 channels")
        wrong(idx(at, GREY, (5, 42)), "with 2 dimensions")
        wrong(idx(at, GREY, kind=0x0D), "type 0x0d")
    whole = idx(tmp_path / "b.gz", RANDOM.integers(0, 256, (50, 9, 9), np.uint8)).read_bytes()
    (tmp_path / "b.gz").write_bytes(whole[:-2000])
    wrong(tmp_path / "b.gz", "not a whole gzip file")
    (tmp_path / "t-images-idx3-ubyte").write_bytes(whole[:0])
    wrong(tmp_path / "t-images-idx3-ubyte", "no whole IDX header")
    file = idx(tmp_path / "c-images-idx3-ubyte", GREY)
    idx(tmp_path / "c-labels-idx1-ubyte", [1, 2])
    wrong(file, "holds 2 labels, but .* 5 pictures")
    idx(tmp_path / "c-labels-idx1-ubyte", [1, 2], (5,))
    with pytest.raises(BrokenFile, match=r"c-labels-idx1-ubyte ends after 0 of 1"):
        read(file)


def test_mnist() -> None:
    """Against what is published of it: 7 comes first, and the mean of the test set is 33.79."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here")
    found = read(SHARED / "mnist-t10k-images-idx3-ubyte.gz")
    assert found.pixels.shape == (10_000, 1, 28, 28)
    assert found.labels is not None
    assert found.labels[:5] == ("7", "2", "1", "0", "4")
    assert found.pixels.mean() == pytest.approx(33.79, abs=0.1)


# -- picture files ----------------------------------------------------------------------------


def test_a_file_of_each_format(tmp_path: Path) -> None:
    smooth = np.full((16, 16, 3), (200, 90, 30), np.uint8)
    for end, exact in [("png", 0), ("bmp", 0), ("webp", 4), ("jpg", 4), ("gif", 0)]:
        found = read(picture(tmp_path / f"a.{end}", smooth), fit=colour)
        assert found.labels is None
        difference = np.abs(found.pixels[0].astype(int) - smooth.transpose(2, 0, 1))
        assert difference.max() <= exact, end
    one, two = (Image.new("L", (4, 3), level) for level in (10, 200))
    one.save(tmp_path / "b.gif", save_all=True, append_images=[two])
    assert (read(tmp_path / "b.gif").pixels == 10).all()
    assert len(read(tmp_path / "a.*g", fit=lambda image: colour(image.resize((2, 2))))) == 2


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 257], [1000, 32768, 65278, 65535]], np.uint16)
    found = read(picture(tmp_path / "a.png", levels))
    assert found.pixels[0, 0].tolist() == [[0, 0, 1, 1], [4, 128, 254, 255]]


def test_what_is_clear_is_white_and_what_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    clear = np.zeros((1, 3, 4), np.uint8)
    clear[0, :, 3] = 0, 51, 255  # of 255: how much of the black is there
    assert read(picture(tmp_path / "a.png", clear)).pixels.tolist() == [[[[255, 204, 0]]]]
    two = np.array([[0, 99]], np.uint8)
    assert read(picture(tmp_path / "b.png", two, transparency=0)).pixels.tolist() == [[[[255, 99]]]]
    sixteen = Image.fromarray(np.array([[5, 257 * 9]], np.uint16))
    assert read(picture(tmp_path / "d.png", sixteen, transparency=5)).pixels.tolist() == [
        [[[255, 9]]]
    ]
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is what is seen on the right
    assert read(picture(tmp_path / "c.png", two, exif=exif)).pixels.tolist() == [[[[0], [99]]]]


def test_a_folder_a_class(tmp_path: Path) -> None:
    for level, name in enumerate(["cat/b.png", "cat/a.PNG", "cat/deep/er/c.png", "ant/z.png"]):
        picture(tmp_path / "zoo" / name, level)
    elsewhere = picture(tmp_path / "elsewhere" / "e.png", 4).parent
    (tmp_path / "zoo" / "emu").symlink_to(elsewhere)
    picture(tmp_path / "zoo" / ".hidden" / "x.png")
    picture(tmp_path / "zoo" / "cat" / ".x.png")
    (tmp_path / "zoo" / "cat" / "notes.txt").write_text("a cat")
    found = read(tmp_path / "zoo")
    assert found.pixels[:, 0, 0, 0].tolist() == [3, 1, 0, 2, 4]
    assert found.labels == ("ant", "cat", "cat", "cat", "emu")
    assert read(tmp_path / "zoo" / "ant").labels is None
    assert found.skipped == ()
    stray = picture(tmp_path / "zoo" / "stray.png")
    with pytest.raises(UsageError, match=r"zoo/ant/z.png has a label, but .*zoo/stray.png has no"):
        read(tmp_path / "zoo")
    stray.unlink()
    with pytest.raises(UsageError, match="has a label, but"):
        read(tmp_path / "zoo", picture(tmp_path / "a.png"))


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    noise = RANDOM.integers(0, 256, (64, 64, 3), np.uint8)
    good = picture(tmp_path / "good.png", noise)
    (tmp_path / "bad1.png").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "bad2.png").write_bytes(b"GIF? no")
    whole = picture(tmp_path / "bad3.jpg", noise).read_bytes()
    (tmp_path / "bad3.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (10_000, 9_000)).save(tmp_path / "bad4.png")
    found = read(tmp_path)
    assert len(found) == 1
    assert [Path(name).name for name, _ in found.skipped] == [
        "bad1.png", "bad2.png", "bad3.jpg", "bad4.png"
    ]  # fmt: skip
    reasons = [reason for _, reason in found.skipped]
    assert "truncated" in reasons[0] and "truncated" in reasons[2] and "bomb" in reasons[3]
    assert reasons[1] == "this is no PNG, JPEG, WebP, BMP or GIF"
    good.unlink()
    with pytest.raises(UsageError, match=r"gives no pictures \(.*bad1.png: .*truncated"):
        read(tmp_path)


def test_what_names_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no file, folder or data set 'mnst'. Did you mean 'mnist'"):
        read("mnst", mnist=entry("x"))
    with pytest.raises(UsageError, match="standard input"):
        read("-")
    with pytest.raises(UsageError, match=r"holds no pictures .* or IDX files"):
        read(tmp_path)
    with pytest.raises(UsageError, match="an empty list gives no pictures"):
        read()
    with pytest.raises(UsageError, match=r"Cannot read .*: File name too long"):
        read("x" * 5000)


# -- NumPy ------------------------------------------------------------------------------------


def test_npz_of_every_layout(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    labels = np.array([3, 1, 4, 1, 5])
    first = COLOUR.transpose(0, 3, 1, 2)
    for arrays in (
        {"images": COLOUR, "labels": labels},
        {"x": np.asfortranarray(COLOUR), "y": labels[:, None]},
        {"pixels": first, "labels": labels.astype("S1")},
        {"something": first / 255, "other": labels, "labels": labels.astype(str)},
        {"images": first.astype(np.float32), "labels": labels.astype(np.uint8)},
        {"x_train": COLOUR, "y_train": labels, "x_test": GREY, "y_test": labels[:1]},
    ):
        np.savez_compressed(file, **arrays)
        found = read(file, fit=colour)
        np.testing.assert_array_equal(found.pixels, first, err_msg=str(list(arrays)))
        assert found.labels == ("3", "1", "4", "1", "5")
    clear = np.concatenate([COLOUR, np.full_like(COLOUR[..., :1], 255)], -1)
    for end in (GREY, GREY[..., None], clear):
        np.save(tmp_path / "b.npy", end)
        found = read(tmp_path / "b.npy", fit=grey if end is not clear else colour)
        np.testing.assert_array_equal(found.pixels, first if end is clear else GREY[:, None])
        assert found.labels is None
    np.save(tmp_path / "b.npy", np.zeros((1, 3, 5, 4), np.uint8))  # the last axis wins
    assert read(tmp_path / "b.npy").pixels.shape == (1, 1, 3, 5)


class _Trap:
    """Unpickling it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(_Trap.folder),)

    folder = Path()


def test_numpy_that_is_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(says: str, **arrays: Any) -> None:
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(BrokenFile, match=says):
            read(tmp_path / "a.npz")

    wrong("2 arrays that could be pictures among a, b", a=GREY, b=GREY)
    wrong("0 arrays", labels=np.arange(3))
    wrong("holds int64", images=GREY.astype(np.int64))
    wrong("from 0 to 255", images=GREY * -1.0)
    wrong("from 0 to 255", images=GREY * np.nan)
    wrong(r"has shape \(5, 7\)", images=GREY[:, 0])
    wrong("5 x 6 x 7; they must", images=np.zeros((2, 5, 6, 7), np.uint8))
    wrong(r"labels of shape \(4,\) for 5", images=GREY, labels=np.arange(4))
    wrong("labels are text or integers, not float", images=GREY, labels=np.arange(5) / 2)
    wrong("half a surrogate", images=GREY, labels=np.array(["\ud800"] * 5))
    _Trap.folder = tmp_path / "sprung"
    wrong("which could run code", images=np.array([_Trap()], object))
    np.save(tmp_path / "b.npy", np.array([_Trap()], object))
    whole = io.BytesIO()
    np.save(whole, GREY)
    (tmp_path / "c.npy").write_bytes(whole.getvalue()[:-1])
    lies = whole.getvalue().replace(b"(5, 6, 7), }      ", b"(5, 6, 7000000), }")
    assert b"7000000" in lies
    (tmp_path / "d.npy").write_bytes(lies)
    (tmp_path / "e.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-9])
    (tmp_path / "f.npz").write_bytes(b"")
    (tmp_path / "h.npy").write_bytes(whole.getvalue().replace(b"'descr'", b"(descr'"))
    (tmp_path / "i.npy").write_bytes(pickle.dumps(_Trap()))
    with zipfile.ZipFile(tmp_path / "g.npz", "w") as packed:
        packed.writestr("images.npy", lies)
    for name in ("b.npy", "c.npy", "d.npy", "e.npz", "f.npz", "g.npz", "h.npy", "i.npy"):
        with pytest.raises(BrokenFile, match=rf"{name} is no whole NumPy file"):
            read(tmp_path / name)
    assert not _Trap.folder.exists()
    monkeypatch.setattr(image_files, "MOST_BYTES", GREY.size)
    wrong("bytes unpacked, more than 210; split it", images=GREY)


# -- Parquet ----------------------------------------------------------------------------------


def table(file: Path, names: list[str] | None = None, **columns: list[Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    made = pyarrow.table(columns)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        said = json.dumps({"info": {"features": features}})
        made = made.replace_schema_metadata({b"huggingface": said.encode()})
    parquet.write_table(made, file, row_group_size=50)
    return file


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    levels = [*range(150)]
    rows = [{"bytes": png(level), "path": None} for level in levels]
    rows[16]["bytes"] = b"no picture"
    rows[17]["bytes"] = None
    labels = [level % 2 for level in levels]
    file = table(tmp_path / "a.parquet", ["cat", "dog"], thumb=rows[::-1], image=rows, label=labels)
    found = read(file)
    kept = [level for level in levels if level not in (16, 17)]
    assert found.pixels[:, 0, 0, 0].tolist() == kept
    assert found.labels == tuple(["cat", "dog"][level % 2] for level in kept)
    assert [name for name, _ in found.skipped] == [f"{file}, row 17", f"{file}, row 18"]


def test_parquet_with_other_columns(tmp_path: Path) -> None:
    data = [png(1), png(2)]
    structs = [{"bytes": item} for item in data]
    for columns, labels in (
        ({"img": data, "fine_label": [7, 8], "coarse_label": [0, 0]}, ("7", "8")),
        ({"id": [b"a", b"b"], "scan": structs, "labels": ["x", "y"]}, ("x", "y")),
        ({"n": [1, 2], "jpg": data}, None),
    ):
        found = read(table(tmp_path / "a.parquet", **columns))
        assert found.pixels[:, 0, 0, 0].tolist() == [1, 2]
        assert found.labels == labels
    unlabelled = table(tmp_path / "b.parquet", ["cat"], image=data, label=[-1, -1])
    assert read(unlabelled).labels is None


def test_parquet_that_is_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    with pytest.raises(BrokenFile, match="no column of image bytes among text, label"):
        read(table(file, text=["a"], label=[1]))
    with pytest.raises(BrokenFile, match=r"row 2: label 5, but there are 1 names"):
        read(table(file, ["cat"], image=[png(1), png(2)], label=[0, 5]))
    with pytest.raises(BrokenFile, match=r"labels are text or integers, not list"):
        read(table(file, image=[png(1)], label=[[0]]))
    whole = table(file, image=[png(1)]).read_bytes()
    for part in (b"", whole[:-20], whole[:8] + bytes(40) + whole[48:]):
        file.write_bytes(part)
        with pytest.raises(BrokenFile, match="not a whole Parquet file"):
            read(file)
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    with pytest.raises(CambrianError, match=r"pip install 'cambrian\[parquet\]'"):
        read(file)


# -- data sets --------------------------------------------------------------------------------


def made() -> Iterator[tuple[Any, Any]]:
    """What a package may give."""
    yield GREY[0], "a"
    yield COLOUR[0], 2
    yield COLOUR[0, ..., :1], np.int64(3)
    yield Image.new("RGBA", (7, 6)), "clear"
    yield Image.new("F", (7, 6)), "floats"


def test_named_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "a_package", sys.modules[__name__])
    found = read("mine", mine=entry("python:a_package:made"))
    assert found.labels == ("a", "2", "3", "clear")
    np.testing.assert_array_equal(found.pixels[0, 0], GREY[0])
    np.testing.assert_array_equal(found.pixels[2, 0], COLOUR[0, ..., 0])
    assert (found.pixels[3] == 255).all()
    assert found.skipped == (("mine, picture 5", "its values are floats, of no known range"),)
    idx(tmp_path / "images.idx3", GREY)
    idx(tmp_path / "labels.idx1", [*range(5)])
    mine = entry(str(tmp_path), str(tmp_path / "im*"))
    assert read("mine", mine=mine).labels == tuple("0123401234")
    with pytest.raises(UsageError, match="holds text, not images"):
        read("mine", mine=entry("x", kind="text"))
    with pytest.raises(UsageError, match="may not be made of another, 'other'"):
        read("mine", mine=entry("other"), other=entry(str(tmp_path)))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (GREY[0], "no pair of a picture"),
        (("a.png", 1), "no pair of a picture"),
        ((GREY[0], 1.5), "no pair of a picture"),
        ((GREY[0] / 255, 1), "is float64 of shape"),
        ((GREY[0, 0], 1), r"of shape \(7,\)"),
        ((GREY[:0, 0], 1), "at most 89478485 pixels"),
        ((COLOUR[0, ..., :2], 1), "1, 3 or 4 channels"),
    ],
)
def test_a_package_that_gives_no_pictures(
    row: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "a_package", sys.modules[__name__])
    monkeypatch.setattr(sys.modules[__name__], "made", lambda: [row])
    with pytest.raises(CambrianError, match=says):
        read("mine", mine=entry("python:a_package:made"))


def test_some_of_the_pictures(tmp_path: Path) -> None:
    file = idx(tmp_path / "a", GREY)
    found = read(file, idx(tmp_path / "b", [5, 6, 7, 8, 9]))
    for rows in (np.array([1, 3]), np.array([False, True, False, True, False])):
        some = found.take(rows)
        assert some.labels == ("6", "8")
        np.testing.assert_array_equal(some.pixels[:, 0], GREY[[1, 3]])
    assert len(read(file).take(np.zeros(5, bool))) == 0
