"""Pictures from trained and exported models, by Python and by the command line."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from cambrian import api, fidelity, pictures
from cambrian.data.samples import few_printed_digits
from cambrian.errors import UsageError
from cambrian.registry import load_registry
from cambrian.testing import train_example

NAMES = {"gan": "gan", "classes": "dcgan", "vae": "vae", "cnn": "cnn"}
ENGINES = ("{}", "{}-onnx")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models, and of all that make pictures an export; "classes" is a conditional
    one."""
    root = tmp_path_factory.mktemp("zoo")
    for folder, name in NAMES.items():
        spec = load_registry().models[name]
        if folder == "classes":
            parts = {
                "model": {**spec.example["model"], "conditional": True},
                "optimizer": {"lr": 1e-2},  # pictures differ after a few steps
            }
            parts = {**spec.example, **parts}
            spec = dataclasses.replace(spec, example=parts)
        assert train_example(spec, root / folder).complete
        if folder != "cnn":
            api.export(root / folder, root / f"{folder}-onnx")
    return root


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture file of another size than the models see, in colour."""
    file = tmp_path_factory.mktemp("files") / "digit.png"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 24, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def images(results: list[Any]) -> np.ndarray:
    """As numbers that can be subtracted, (N, H, W[, 3])."""
    return np.stack([result["image"] for result in results]).astype(np.int64)


def distance(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cambrian", *map(str, words)],
        capture_output=True,
        text=True,
        input="",
    )


def run(zoo: Path, name: str, *inputs: Path, **options: Any) -> list[Any]:
    return api.run(zoo / name, [str(file) for file in inputs], **options)


# -- noise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gan", "classes", "vae"])
def test_a_seed_gives_the_same_pictures_on_both_engines(name: str, zoo: Path) -> None:
    ours, exported = (run(zoo, each.format(name), count=20, seed=5) for each in ENGINES)
    assert images(ours).shape == (20, 12, 12) and ours[0]["image"].dtype == np.uint8
    assert distance(images(ours), images(exported)) <= 1
    for key in ("number", "label"):
        assert [r.get(key) for r in ours] == [r.get(key) for r in exported]
    assert distance(images(ours), images(run(zoo, name, count=20, seed=6))) > 3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["gan", "classes", "vae"])
def test_a_numbers_picture_is_the_same_in_any_company(name: str, engine: str, zoo: Path) -> None:
    folder = engine.format(name)
    whole = run(zoo, folder, count=12, seed=5)
    for count, batch_size in ((12, 1), (5, 64), (7, 3)):
        part = run(zoo, folder, count=count, seed=5, batch_size=batch_size)
        assert [r["number"] for r in part] == [*range(count)]
        assert distance(images(part), images(whole[:count])) <= 1
    pipeline: Any = api.load(zoo / folder)
    chosen = pipeline.sample([9, 2], dataclasses.replace(pipeline.defaults, seed=5))
    assert distance(chosen[:, 0].astype(np.int64), images([whole[9], whole[2]])) <= 1
    assert distance(images(whole[:1]), images(whole[1:2])) > 3


@pytest.mark.parametrize("name", ["gan", "classes", "vae"])
def test_a_walk_passes_the_numbered_pictures(name: str, zoo: Path) -> None:
    walk = run(zoo, name, count=3, seed=2, interpolate=4)
    assert len(walk) == 9 and {result["columns"] for result in walk} == {5}
    ends = run(zoo, name, count=3, seed=2)
    if name == "classes":  # a class is kept up to the next end
        assert [r["label"] for r in walk] == ["0"] * 4 + ["1"] * 4 + ["2"]
    assert distance(images(walk[::4]), images(ends)) <= 1
    assert len(run(zoo, name, count=1, interpolate=4)) == 1


def test_a_label_asks_for_a_class_and_none_for_all_in_turn(zoo: Path) -> None:
    turn = run(zoo, "classes", count=12)
    assert [result["label"] for result in turn] == [*"012345678901"]
    sevens = run(zoo, "classes", count=12, label="7")
    assert {result["label"] for result in sevens} == {"7"}
    assert distance(images(sevens[7:8]), images(turn[7:8])) <= 1
    assert np.array_equal(images(run(zoo, "classes", count=12, label=7)), images(sevens))
    threes = run(zoo, "classes", count=12, label="3")
    assert distance(images(sevens), images(threes)) > 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("classes", {"label": "x"}, "no class 'x', only 0, 1, 2"),
        ("gan", {"label": "7"}, "no class '7', none at all"),
        ("gan", {"count": 0}, "count must be at least 1, not 0"),
        ("gan", {"seed": -1}, "seed cannot be negative"),
        ("vae", {"task": "encode"}, "task=encode takes picture files"),
        ("vae", {"task": "decode"}, "task"),
        ("vae", {"cuont": 3}, "Did you mean 'count'"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str, zoo: Path) -> None:
    with pytest.raises(UsageError, match=message):
        run(zoo, name, **options)


def test_a_generator_takes_no_input(zoo: Path, digit: Path) -> None:
    with pytest.raises(UsageError, match=r"takes no input such as '.*digit\.png'; say how many"):
        run(zoo, "gan", digit)


# -- given pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_reconstructing_and_encoding_a_file(engine: str, zoo: Path, digit: Path) -> None:
    folder = engine.format("vae")
    [coded] = run(zoo, folder, digit, task="encode")
    assert coded["mean"].shape == coded["logvar"].shape == (4,) and coded["input"] == str(digit)
    [beside] = run(zoo, folder, digit)
    pipeline: Any = api.load(zoo / folder)
    given = pipeline.processor.open(digit)[0].astype(np.int64)
    made = pipeline.pixels(coded["mean"][None], pipeline.defaults)[0, 0].astype(np.int64)
    assert given.shape == (12, 12)
    assert distance(beside["image"].astype(np.int64), np.concatenate([given, made], 1)) <= 1


def test_latents_are_the_models(zoo: Path, digit: Path) -> None:
    import torch

    checkpoint = api.open_checkpoint(zoo / "vae")
    model: Any = checkpoint.model().eval()
    processor: Any = checkpoint.processor()
    with torch.no_grad():
        pixels = torch.from_numpy(processor.normalize(processor.open(digit))[None])
        mean, logvar = model.encode(pixels)
    for each in ENGINES:
        [coded] = run(zoo, each.format("vae"), digit, task="encode")
        np.testing.assert_allclose(coded["mean"], mean[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(coded["logvar"], logvar[0], rtol=0, atol=1e-5)


def test_a_walk_between_files(zoo: Path, digit: Path, tmp_path: Path) -> None:
    other = tmp_path / "black.png"
    Image.fromarray(np.zeros((12, 12), np.uint8)).save(other)
    walk = run(zoo, "vae", digit, other, interpolate=3)
    assert len(walk) == 4
    ends = [each["image"][:, 12:] for each in run(zoo, "vae", digit, other)]
    assert distance(images(walk)[[0, -1]], np.stack(ends).astype(np.int64)) <= 1


def test_what_is_no_picture_is_named(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no picture")
    for file in (tmp_path / "words.png", tmp_path / "gone.png"):
        for model in ("vae", "cnn"):
            with pytest.raises(UsageError, match=file.name):
                run(zoo, model, file)


def test_a_classifier_names_the_class_of_a_file(zoo: Path, digit: Path) -> None:
    [found] = run(zoo, "cnn", digit)
    assert found["label"] == max(found["scores"], key=found["scores"].get)
    assert sum(found["scores"].values()) == pytest.approx(1) and len(found["scores"]) == 10
    assert found["score"] == found["scores"][found["label"]]
    pipeline: Any = api.load(zoo / "cnn")
    assert pipeline.show(found).startswith(f"{found['label']}  0.")


# -- command line -----------------------------------------------------------------------------


def test_the_command_line_writes_what_the_name_says(zoo: Path, tmp_path: Path) -> None:
    made = run(zoo, "gan-onnx", count=5, seed=3)
    words = ("run", zoo / "gan-onnx", "--count", "5", "--seed", "3", "-o")
    for suffix in (".png", ".npy", ".json"):
        file = tmp_path / f"grid{suffix}"
        done = command(*words, file)
        assert done.returncode == 0 and f"wrote {file}" in done.stderr.splitlines(), done.stderr
    sheet = pictures.sheet([each["image"] for each in made])
    assert np.array_equal(np.asarray(opened((tmp_path / "grid.png").read_bytes())), sheet)
    assert np.array_equal(np.load(tmp_path / "grid.npy", allow_pickle=False), images(made))
    lines = [json.loads(line) for line in (tmp_path / "grid.json").read_text().splitlines()]
    for line, result in zip(lines, made, strict=True):
        image = opened(base64.b64decode(line["image"]))
        assert line["number"] == result["number"]
        assert np.array_equal(np.asarray(image), result["image"])


def test_the_command_line_makes_pictures_move(zoo: Path, tmp_path: Path) -> None:
    file = tmp_path / "walk.gif"
    words = ("run", zoo / "gan-onnx", "--count", "2", "--set", "interpolate=4", "-o", file)
    assert command(*words).returncode == 0
    made = [r["image"] for r in run(zoo, "gan-onnx", count=2, interpolate=4)]
    seen = [np.asarray(f.convert("L")) for f in ImageSequence.Iterator(opened(file.read_bytes()))]
    assert len(made) == 5 and all(map(np.array_equal, seen, made)) and len(seen) == 5


def test_the_command_line_draws_a_sketch(zoo: Path) -> None:
    done = command("run", zoo / "vae-onnx", "--count", "2")
    assert done.returncode == 0, done.stderr
    shown = "\n".join(pictures.sketch(r["image"]) for r in run(zoo, "vae-onnx", count=2))
    assert done.stdout == shown + "\n"


def test_latents_are_written_as_numbers(zoo: Path, digit: Path, tmp_path: Path) -> None:
    words = ("run", zoo / "vae-onnx", digit, "--set", "task=encode", "-o")
    assert command(*words, tmp_path / "z.npy").returncode == 0
    latents = np.load(tmp_path / "z.npy", allow_pickle=False)
    [coded] = run(zoo, "vae-onnx", digit, task="encode")
    assert np.array_equal(latents, np.stack([coded["mean"], coded["logvar"]])[None])
    pipeline: Any = api.load(zoo / "vae-onnx")
    [line] = pipeline.encode([coded], ".json").decode().splitlines()
    assert json.loads(line)["mean"] == coded["mean"].tolist()
    with pytest.raises(UsageError, match=r"Latents are written as \.npy or \.json"):
        pipeline.encode([coded], ".png")


def test_a_name_that_says_nothing_is_refused(zoo: Path, tmp_path: Path) -> None:
    words = ("run", zoo / "gan-onnx", "--set", "nothing=2", "-o")  # found wrong on generating
    done = command(*words, tmp_path / "x.txt")
    assert done.returncode == 2 and done.stdout == ""
    [error] = [line for line in done.stderr.splitlines() if " runs on " not in line]
    assert error.startswith("error: '.txt' is no kind of file") and ".png" in error
    assert "unknown key 'nothing'" in command(*words, tmp_path / "x.png").stderr
    assert not [*tmp_path.iterdir()]


# -- measures and previews --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gan", "classes", "vae"])
def test_pictures_are_measured_by_an_extractor(name: str, zoo: Path) -> None:
    found = api.evaluate(zoo / name, extractor=str(zoo / "cnn"), samples=40)
    measures = {f"{m}_cnn" for m in ("frechet_distance", "kernel_distance", "precision", "recall")}
    assert measures | {"rarest_class", "commonest_class"} <= found.metrics.keys()
    assert {n for n in found.metrics if "distance" in n} == {n for n in measures if "dist" in n}
    assert all(np.isfinite(value) for value in found.metrics.values())
    weights = (zoo / "cnn" / "model.safetensors").read_bytes()
    assert found.facts["extractor_sha256"] == hashlib.sha256(weights).hexdigest()
    assert found.facts["made"] == 40 and found.facts["resizer"] == "none"
    assert sum(found.facts["classes"].values()) == pytest.approx(1)
    assert ("active_units" in found.metrics) == (name == "vae")


def test_whoever_waits_for_a_measure_is_told_how_far_it_is(zoo: Path) -> None:
    told: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    api.evaluate(zoo / "vae", extractor=str(zoo / "cnn"), samples=130, progress=progress)
    kinds = (
        "batches",
        "batches of pictures read",
        "batches of pictures made",
        "batches of pictures",
    )
    assert [*dict.fromkeys(what for what, _, _ in told)] == [*kinds]
    made = [(done, total) for what, done, total in told if what == "batches of pictures made"]
    assert made == [(0, 3), (1, 3), (2, 3), (3, 3)]
    seen = [(done, total) for what, done, total in told if what == "batches of pictures"]
    assert [total for done, total in seen if done == total] == [seen[0][1], 3]  # real and made ones


def test_the_measures_are_of_the_extractors_features(zoo: Path) -> None:
    """By the classifier itself, of the data set's pictures and of those that `run` makes."""
    import torch

    found = api.evaluate(zoo / "gan", data=["printed-digits-nano"], extractor=str(zoo / "cnn"))
    checkpoint = api.open_checkpoint(zoo / "cnn")
    model, processor = checkpoint.model().eval(), checkpoint.processor()
    real = [processor.fit(image) for image, _ in few_printed_digits()]  # pyright: ignore[reportAttributeAccessIssue]
    made = images(run(zoo, "gan", count=340))[:, None]
    with torch.no_grad():
        scaled = [torch.from_numpy(np.asarray(s) / 127.5 - 1).float() for s in (real, made)]
        features = [model(each)[1].numpy() for each in scaled]
    for measure in (fidelity.frechet_distance, fidelity.kernel_distance):
        value = found.metrics[f"{measure.__name__}_cnn"]
        assert value == pytest.approx(measure(*features), rel=0.02)


def test_an_exports_pictures_are_measured_as_the_models(zoo: Path) -> None:
    given: dict[str, Any] = {"data": ["printed-digits-nano"], "extractor": str(zoo / "cnn")}
    ours, exported = (api.evaluate(zoo / each.format("gan"), **given) for each in ENGINES)
    assert ours.facts == exported.facts and ours.facts["real"] == 340
    for name in ("frechet_distance_cnn", "kernel_distance_cnn"):
        assert exported.metrics[name] == pytest.approx(ours.metrics[name], rel=0.02, abs=1e-6)


def test_without_an_extractor_there_is_nothing_to_say_of_a_generator(zoo: Path) -> None:
    done = command("eval", zoo / "gan")
    assert done.returncode == 2 and done.stdout == ""
    [error] = done.stderr.splitlines()
    assert error.startswith("error: ") and "--option extractor=FOLDER" in error
    with pytest.raises(UsageError, match="extractor=FOLDER"):
        api.evaluate(zoo / "gan-onnx", data=["printed-digits-nano"])
    with pytest.raises(UsageError, match="is no classifier of pictures; train one"):
        api.evaluate(zoo / "gan", extractor=str(zoo / "vae"))


@pytest.mark.parametrize("name", ["gan", "classes", "vae"])
def test_training_keeps_a_preview_of_each_evaluation(name: str, zoo: Path) -> None:
    previews = sorted((zoo / name / "train" / "previews").iterdir())
    assert [file.name for file in previews] == ["step-00000006.png", "step-00000012.png"]
    last = (zoo / name / "preview.png").read_bytes()
    assert previews[1].read_bytes() == last != previews[0].read_bytes()
    made = [each["image"] for each in run(zoo, name, count=64, seed=0)]
    shown = np.asarray(opened(last)).astype(np.int64)
    assert distance(shown, pictures.sheet(made).astype(np.int64)) <= 1
    assert not (zoo / "cnn" / "preview.png").exists()


@pytest.mark.parametrize(
    "module", ["cambrian_gan.pipeline", "cambrian_vae.pipeline", "cambrian.image_pipeline"]
)
def test_no_torch_is_needed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
