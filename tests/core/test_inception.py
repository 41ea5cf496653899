"""FID's network, against pytorch-fid 0.3.0 (torch 2.14.1, torchvision 0.29.1, CPU).

That one was given the weights that `number` makes and the pictures of `drawn`.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from cambrian import fidelity, image_pipeline, inception
from cambrian.errors import BrokenFile, NotFound
from cambrian.image_pipeline import compared, require_extractor
from cambrian.inception import Inception, open_inception, outline, require_inception

# Some of the 2,048 features: of each branch of the last block, and the mean of all.
PLACES = [2, 31, 300, 330, 800, 1090, 1500, 1860, 2040, 2047]
GREY = [2.280282, 23.353145, 8.020089, 14.419252, 0.0,
        25.780809, 2.955732, 15.636472, 2.364219,
        0.800400, 4.047543]  # fmt: skip
COLOUR = [3.652607, 30.645574, 10.039944, 19.189779, 0.0,
          35.768726, 4.521724, 21.557521, 4.168450,
          1.410980, 5.448597]  # fmt: skip
LARGE = [4.384785, 36.666313, 12.653212, 22.559042,
         0.0, 44.139793, 5.025352, 26.853544,
         4.867942, 1.639239, 6.648354]  # fmt: skip


def number(name: str, shape: tuple[int, ...]) -> Any:
    """A tensor by its name: even numbers from Philox, whose stream is fixed for good; convolutions
    as He et al. have them, scales and variances from 0.5 to 1.5, all else from -0.5 to 0.5."""
    if not shape:
        return np.zeros((), np.int64)
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    even = ((raw >> np.uint64(40)).astype(np.float32) / 2**24).reshape(shape)
    if len(shape) > 1:
        return (2 * even - 1) * np.float32((6 / np.prod(shape[1:])) ** 0.5)
    return even + np.float32(0.5 if name.endswith(("bn.weight", "running_var")) else -0.5)


def drawn(count: int, channels: int, height: int, width: int) -> NDArray[np.uint8]:
    n, c, y, x = np.ogrid[:count, :channels, :height, :width]
    return ((n + 1) * 31 + (c + 2) * (3 * y + 5 * x) + y * x * (n + 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as pytorch-fid's, of 566 tensors."""
    file = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    shapes = {name: tuple(tensor.shape) for name, tensor in outline().state_dict().items()}
    assert len(shapes) == 566
    torch.save({n: torch.from_numpy(np.asarray(number(n, s))) for n, s in shapes.items()}, file)
    return file


@pytest.fixture(scope="module")
def network(weights: Path) -> Inception:
    return open_inception(weights)


@pytest.mark.parametrize(
    ("pixels", "wanted"),
    [
        (drawn(1, 1, 28, 28), GREY),
        (drawn(1, 3, 40, 52), COLOUR),
        (drawn(1, 3, 320, 310), LARGE),
    ],
    ids=["grey", "colour", "large"],
)
def test_features_are_pytorch_fids(
    network: Inception, pixels: NDArray[np.uint8], wanted: list[float]
) -> None:
    [found] = network.describe(pixels)
    assert found.shape == (2048,) and found.dtype == np.float32
    seen = [*found[PLACES], found.astype(np.float64).mean()]
    assert seen == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_pictures_go_through_a_few_at_a_time(
    network: Inception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And grey is colour with equal channels."""
    sizes: list[int] = []
    hook = network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr(inception, "BATCH", 2)
    grey = drawn(3, 1, 28, 28)
    found = network.describe(grey)
    assert sizes == [2, 1] and found.shape == (3, 2048)
    alone = network.describe(np.repeat(grey[2:], 3, axis=1))
    hook.remove()
    assert alone[0] == pytest.approx(found[2], rel=1e-4, abs=1e-4)
    assert np.abs(found[1] - found[2]).max() > 0.1


def test_a_receipt_says_whether_it_is_fid(
    weights: Path, network: Inception, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = drawn(2, 1, 28, 28), drawn(3, 1, 28, 28)[1:]
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    found = compared(real, made, str(weights))
    assert found.facts == {
        "extractor": str(weights), "extractor_sha256": digest, "is_fid": False,
        "resizer": "bilinear", "real": 2, "made": 2,
    }  # fmt: skip
    measures = ("frechet_distance", "kernel_distance", "precision", "recall")
    assert [*found.metrics] == [f"{measure}_inception" for measure in measures]
    wanted = fidelity.frechet_distance(network.describe(real), network.describe(made))
    assert found.metrics["frechet_distance_inception"] == pytest.approx(wanted, rel=1e-3)
    monkeypatch.setattr(inception, "PUBLISHED", digest)
    large = drawn(2, 3, 299, 299)
    facts = compared(large, large, str(weights)).facts
    assert facts["is_fid"] is True and facts["resizer"] == "none"


def test_the_same_real_pictures_are_described_once(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is scored again and again waits for its made pictures alone."""
    seen: list[int] = []
    describe = Inception.describe

    def counted(self: Inception, pixels: NDArray[np.uint8], *others: Any) -> NDArray[np.float32]:
        seen.append(len(pixels))
        return describe(self, pixels, *others)

    monkeypatch.setattr(Inception, "describe", counted)
    monkeypatch.setattr(image_pipeline, "_real", {})
    real, made = drawn(3, 1, 20, 20), drawn(4, 1, 20, 20)[:2]
    first = compared(real, made, str(weights)).metrics
    assert seen == [3, 2]
    assert compared(real, made, str(weights)).metrics == first and seen == [3, 2, 2]
    others = compared(255 - real, made, str(weights)).metrics
    assert seen == [3, 2, 2, 3, 2] and others != first


def torchvisions(tensors: dict[str, Any]) -> None:
    tensors["fc.weight"], tensors["fc.bias"] = torch.zeros(1000, 2048), torch.zeros(1000)


def quantised(tensors: dict[str, Any]) -> None:
    tensors["Mixed_5b.branch1x1.conv.weight"] = torch.zeros(64, 192, 1, 1, dtype=torch.int8)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (torchvisions, "'fc.bias', 'fc.weight'"),
        (quantised, "'Mixed_5b.branch1x1.conv.weight'"),
        (lambda tensors: tensors.pop("Mixed_7c.branch_pool.bn.bias"), "'Mixed_7c.branch_pool"),
        (lambda tensors: tensors.update(AuxLogits=torch.zeros(1)), "'AuxLogits'"),
    ],
)
def test_other_weights_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], object], named: str
) -> None:
    tensors: dict[str, Any] = {
        name: torch.zeros(tensor.shape, dtype=torch.float16) if tensor.shape else torch.tensor(0)
        for name, tensor in outline().state_dict().items()
    }
    file = tmp_path / "other.safetensors"
    save_file(tensors, file)
    require_inception(file)
    spoil(tensors)
    save_file(tensors, file)
    with pytest.raises(BrokenFile, match=f"Inception network of FID: .* are {named}.*; name"):
        require_extractor(str(file))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_file_of_weights_is_refused(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"odd{suffix}"
    file.write_text("What is this?")
    with pytest.raises(BrokenFile, match=r"odd.* (cannot be read|is not a readable)"):
        require_extractor(str(file))


def test_a_file_that_is_not_there_is_called_a_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"There is no file .*lost\.pth with Inception's weights"):
        require_extractor(str(tmp_path / "lost.pth"))


def test_the_command_line_says_it_in_a_sentence(tmp_path: Path) -> None:
    """Before anything is trained."""
    file = tmp_path / "small.pth"
    torch.save({"fc.bias": torch.zeros(10)}, file)
    words = ("train", "gan", "--out", "run", "--data", "printed-digits-nano", "-s")
    done = subprocess.run(
        [sys.executable, "-m", "cambrian", *words, "extractor=small.pth"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    [error] = done.stderr.splitlines()
    assert error.startswith("error: ") and "small.pth does not hold the Inception network" in error
    assert not (tmp_path / "run").exists()
