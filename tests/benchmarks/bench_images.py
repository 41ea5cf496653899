"""Image generators beside their peers, on MNIST's 10,000 test digits in three parts.

    python tests/benchmarks/bench_images.py vae [--epochs 48] [--binarize threshold]
    python tests/benchmarks/bench_images.py dcgan [--steps 2000]
    python tests/benchmarks/bench_images.py classes [--steps 2000] [--seed 0]
    python tests/benchmarks/bench_images.py onnx

"vae": pythae's VAE under its trainer and ours, of one shape (784-200-200-50), binarised by
threshold or, as "sample", anew each time they are seen, in equal epochs: pictures a second over
the whole of training, and the test bound and log p(x) by 5,000 importance samples, both by our
estimator on either's weights. pythae must be importable (pip install --no-deps pythae imageio);
otherwise its row is left out.
"dcgan": one and the same pair of networks trained by a plain loop, written as PyTorch's DCGAN
tutorial has it (DataLoader, Adam, binary cross-entropy, three backward passes), and by ours:
milliseconds a step, and the Frechet distance of 5,000 samples to the test digits over features of
a classifier trained here.
"classes": a DCGAN by class: how unlike each other 300 pictures of a class are (mean distance of two
by the classifier's features) against 300 real ones, how many of the real are among them (recall),
and how many the classifier takes for the class that was asked for; means of ten, and the worst.
"onnx": pictures a second of a DCGAN generator and a VAE decoder: torch eager, torch.compile, ONNX
Runtime, at batch 1 and 64.

Every contender runs in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from mnist import write_parts

BATCH = {"vae": 128, "dcgan": 64}


def child(what: str, *arguments: Any) -> dict[str, Any]:
    """Run a contender of this file in a process of its own; what it prints last is its result."""
    command = [sys.executable, __file__, "--child", what, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ours(model: str, folder: str, out: str, *settings: str) -> dict[str, Any]:
    """Train by the public API; seconds of the training loop, without start and data."""
    from cambrian import api
    from cambrian.allocator import keep_memory

    keep_memory()
    times: list[float] = []
    api.train(
        model, out, data=[f"{folder}/train.npz"], validation=[f"{folder}/validation.npz"],
        settings=settings, force=True, report=lambda event: times.append(time.perf_counter()),
    )  # fmt: skip
    metrics = [json.loads(x) for x in (Path(out) / "train" / "metrics.jsonl").open()]
    steps = [m["seconds_per_step"] for m in metrics if "seconds_per_step" in m]
    return {"step": statistics.median(steps[1:])}


def pythae(folder: str, out: str, epochs: str, binarize: str) -> dict[str, Any]:
    """pythae's VAE of the same shape; its weights under our names."""
    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from safetensors.torch import save_file
    from torch import nn

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU()
            )
            self.mean, self.logvar = nn.Linear(200, 50), nn.Linear(200, 50)

        def forward(self, x: Any) -> Any:
            features = self.body(x)
            return ModelOutput(embedding=self.mean(features), log_covariance=self.logvar(features))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(50, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 784)
            )

        def forward(self, z: Any) -> Any:
            pixels = torch.sigmoid(self.body(z)).reshape(-1, 1, 28, 28)
            return ModelOutput(reconstruction=pixels)

    class Drawn(BaseDataset):
        def __getitem__(self, index: int) -> Any:
            found = super().__getitem__(index)
            found["data"] = torch.bernoulli(found["data"])
            return found

    images = torch.from_numpy(np.load(f"{folder}/train.npz")["images"])[:, None].float() / 255
    if binarize == "threshold":
        train = BaseDataset((images > 0.5).float(), torch.ones(len(images)))
    else:
        train = Drawn(images, torch.ones(len(images)))
    torch.manual_seed(0)
    model = VAE(
        VAEConfig(input_dim=(1, 28, 28), latent_dim=50, reconstruction_loss="bce"),
        encoder=Encoder(), decoder=Decoder(),
    )  # fmt: skip
    config = BaseTrainerConfig(
        output_dir=out, num_epochs=int(epochs), per_device_train_batch_size=BATCH["vae"],
        per_device_eval_batch_size=1000, learning_rate=1e-3, no_cuda=True,
    )  # fmt: skip
    trainer = BaseTrainer(model, train_dataset=train, eval_dataset=None, training_config=config)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    tensors = {
        name.replace("encoder.body", "encoder")
        .replace("encoder.mean", "mean")
        .replace("encoder.logvar", "logvar")
        .replace("decoder.body", "decoder"): value
        for name, value in model.state_dict().items()
    }
    save_file(tensors, f"{folder}/pythae.safetensors")
    steps = int(epochs) * -(-len(images) // BATCH["vae"])
    return {"step": seconds / steps}


def plain(folder: str, steps: str) -> dict[str, Any]:
    """The tutorial's loop over our networks; weights kept for the comparison."""
    import torch
    from safetensors.torch import save_file
    from torch.utils.data import DataLoader, TensorDataset

    from cambrian_gan.config import DCGANConfig
    from cambrian_gan.model import DCGAN

    torch.manual_seed(0)
    model = DCGAN(DCGANConfig())
    generator, discriminator = model.generator.train(), model.discriminator.train()
    images = torch.from_numpy(np.load(f"{folder}/train.npz")["images"])[:, None]
    data = TensorDataset(images.float() / 127.5 - 1)
    loader = DataLoader(data, BATCH["dcgan"], shuffle=True, drop_last=True)
    adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
    d_optimizer = torch.optim.Adam(discriminator.parameters(), **adam)
    g_optimizer = torch.optim.Adam(generator.parameters(), **adam)
    criterion = torch.nn.BCELoss()
    done, times = 0, []
    while done < int(steps):
        for (real,) in loader:
            start = time.perf_counter()
            discriminator.zero_grad()
            ones, zeros = torch.ones(len(real)), torch.zeros(len(real))
            error = criterion(torch.sigmoid(discriminator(real)), ones)
            error.backward()
            fake = generator(torch.randn(len(real), 100))
            error = criterion(torch.sigmoid(discriminator(fake.detach())), zeros)
            error.backward()
            d_optimizer.step()
            generator.zero_grad()
            error = criterion(torch.sigmoid(discriminator(fake)), ones)
            error.backward()
            g_optimizer.step()
            times.append(time.perf_counter() - start)
            done += 1
            if done == int(steps):
                break
    save_file(model.state_dict(), f"{folder}/plain.safetensors")
    return {"step": statistics.median(times[10:])}


def opened(architecture: str, weights: str, **config: Any) -> Any:
    """A model of ours with the weights of a file."""
    from safetensors.torch import load_file

    from cambrian.registry import load_registry

    spec = load_registry().models[architecture]
    model = spec.model.load()(spec.config(**config))
    model.load_state_dict(load_file(weights))
    return model.eval()


def bound(weights: str, folder: str, binarize: str) -> dict[str, Any]:
    """Test bound and log p(x) of a VAE's weights, on digits binarised once."""
    import torch

    model = opened("vae", weights, evaluation_samples=5000)
    images = np.load(f"{folder}/test.npz")["images"][:, None] / 255
    draws = np.random.default_rng(0).random(images.shape) if binarize == "sample" else 0.5
    pixels = torch.from_numpy(images > draws).float()
    rows = [model.evaluate({"pixel_values": part}) for part in pixels.split(100)]
    return {name: float(np.mean([row[name] for row in rows])) for name in ("elbo", "log_px")}


def distance(weights: str, folder: str) -> dict[str, Any]:
    """Of 5,000 samples of a DCGAN's weights."""
    from cambrian import pictures
    from cambrian.image_pipeline import compared
    from cambrian.runtime.torch import TorchSession

    session = TorchSession(opened("dcgan", weights))
    noise = pictures.noise((100,), 0, range(5000))
    parts = [
        session.run("generator", {"latents": p})[0]["pixel_values"] for p in np.split(noise, 50)
    ]
    made = np.clip(np.rint((np.concatenate(parts) + 1) * 127.5), 0, 255).astype(np.uint8)
    real = np.load(f"{folder}/test.npz")["images"][:, None]
    scores = compared(real, made, f"{folder}/cnn")
    return {**scores.metrics, **scores.facts}


def variety(model: str, folder: str) -> dict[str, Any]:
    """Of 300 pictures of each class against as many real ones: (mean, worst) of each figure."""
    from cambrian import fidelity, pictures
    from cambrian.loading import load

    pipeline: Any = load(model, device="cpu")
    judge: Any = load(f"{folder}/cnn", device="cpu")
    real = np.load(f"{folder}/train.npz")
    order = np.random.default_rng(0)
    found: dict[str, list[float]] = {"spread": [], "recall": [], "right": []}
    for number in range(10):
        rows = order.permutation(np.flatnonzero(real["labels"] == number))[:300]
        noise = pictures.noise((100,), 0, range(1000 * number, 1000 * number + 300))
        label = pipeline.config.labels.index(str(number))
        logits, made = judge.compute(pipeline.pixels(noise, np.full(300, label), 64))
        _, wanted = judge.compute(real["images"][rows, None])
        found["spread"].append(spread(made) / spread(wanted))
        found["recall"].append(fidelity.precision_recall(wanted, made)[1])
        found["right"].append(float((logits.argmax(-1) == number).mean()))
    return {name: (float(np.mean(x)), min(x)) for name, x in found.items()}


def spread(features: Any) -> float:
    """The mean distance of two rows."""
    rows = features.astype(np.float64)
    squares = np.square(rows).sum(1)
    distances = np.sqrt(np.clip(squares[:, None] + squares - 2 * rows @ rows.T, 0, None))
    return float(distances.sum() / (len(rows) * (len(rows) - 1)))


def bench_classes(folder: Path, steps: int, seed: int) -> None:
    child("ours", "cnn", folder, folder / "cnn")
    out = folder / "dcgan"
    child("ours", "dcgan", folder, out, "conditional=true", f"steps={steps}", f"seed={seed}")
    cells = (f"{name} {mean:.3f} (worst {worst:.3f})"
             for name, (mean, worst) in child("variety", out, folder).items())  # fmt: skip
    print("   ".join(cells), flush=True)


def bench_vae(folder: Path, epochs: int, binarize: str) -> None:
    steps = epochs * 8000 // BATCH["vae"]
    rows: list[tuple[str, float, str]] = []
    settings = [f"steps={steps}", f"binarize={binarize}", "log_every=50"]
    if importlib.util.find_spec("pythae"):
        found = child("pythae", folder, folder / "pythae", epochs, binarize)
        rows.append(("pythae float32", found["step"], str(folder / "pythae.safetensors")))
    for name, extra in (
        ("cambrian float32", ["precision=float32"]),
        ("cambrian float32, medium", ["precision=float32", "matmul=medium"]),
        ("cambrian bfloat16", ["precision=bfloat16"]),
    ):
        out = folder / name.replace(" ", "-")
        found = child("ours", "vae", folder, out, *settings, "evaluate_every=200", *extra)
        rows.append((name, found["step"], str(out / "model.safetensors")))
    for name, step, weights in rows:
        measured = child("bound", weights, folder, binarize)
        print(
            f"{name:<28}{step * 1e3:8.3f} ms/step {BATCH['vae'] / step:10,.0f} images/s "
            f"{rows[0][1] / step:6.2f} x   test ELBO {measured['elbo']:.2f}   "
            f"log p(x) {measured['log_px']:.2f}",
            flush=True,
        )


def bench_dcgan(folder: Path, steps: int) -> None:
    child("ours", "cnn", folder, folder / "cnn")
    found = child("plain", folder, steps)
    rows = [("plain loop float32", found["step"], str(folder / "plain.safetensors"))]
    for precision in ("float32", "bfloat16"):
        out = folder / f"dcgan-{precision}"
        found = child("ours", "dcgan", folder, out, f"steps={steps}", f"precision={precision}")
        rows.append((f"cambrian {precision}", found["step"], str(out / "model.safetensors")))
    for name, step, weights in rows:
        m = child("distance", weights, folder)
        print(
            f"{name:<28}{step * 1e3:8.2f} ms/step {rows[0][1] / step:6.2f} x   Frechet "
            f"{m['frechet_distance_cnn']:.1f}   precision {m['precision_cnn']:.3f}   recall "
            f"{m['recall_cnn']:.3f}  classes {m['rarest_class']:.1%} to {m['commonest_class']:.1%}",
            flush=True,
        )


def speed(kind: str, folder: str, batch: str) -> dict[str, Any]:
    """Seconds a call of one engine."""
    import torch

    from cambrian import api, open_checkpoint

    size = 100 if "dcgan" in folder else 50
    name = "generator" if "dcgan" in folder else "decoder"
    noise = np.random.Generator(np.random.Philox(0)).standard_normal((int(batch), size), np.float32)
    if kind == "onnx":
        session = api.load(f"{folder}-onnx").session
        call: Any = lambda: session.run(name, {"latents": noise})  # noqa: E731
    else:
        graphs = {g.name: g.module for g in open_checkpoint(folder).model().graphs()}
        module = torch.compile(graphs[name]) if kind == "compile" else graphs[name]
        tensor = torch.from_numpy(noise)

        def call() -> Any:
            with torch.inference_mode():
                return module(latents=tensor)

    for _ in range(20):
        call()
    times = []
    for _ in range(200):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return {"call": statistics.median(times)}


def bench_onnx(folder: Path) -> None:
    from cambrian import api

    for model in ("dcgan", "vae"):
        child("ours", model, folder, folder / model, "steps=20", "evaluate_every=0")
        api.export(folder / model, folder / f"{model}-onnx")
        for batch in (1, 64):
            times = {k: child("speed", k, folder / model, batch)["call"]
                     for k in ("eager", "compile", "onnx")}  # fmt: skip
            cells = "   ".join(
                f"{k} {t * 1e3:.3f} ms ({times['eager'] / t:.2f} x, {batch / t:,.0f} images/s)"
                for k, t in times.items()
            )
            print(f"{model} batch {batch}: {cells}", flush=True)


CHILDREN = {
    "ours": ours, "pythae": pythae, "plain": plain, "bound": bound, "distance": distance,
    "speed": speed, "variety": variety,
}  # fmt: skip


def main() -> None:
    if "--child" in sys.argv:
        name, *arguments = sys.argv[2:]
        print(json.dumps(CHILDREN[name](*arguments)))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("vae", "dcgan", "classes", "onnx"))
    parser.add_argument("--epochs", type=int, default=48)
    parser.add_argument("--binarize", choices=("threshold", "sample"), default="threshold")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(describe_machine("torch", "onnxruntime-gpu"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_parts(folder)
        if options.what == "vae":
            bench_vae(folder, options.epochs, options.binarize)
        elif options.what == "dcgan":
            bench_dcgan(folder, options.steps)
        elif options.what == "classes":
            bench_classes(folder, options.steps, options.seed)
        else:
            bench_onnx(folder)


if __name__ == "__main__":
    main()
