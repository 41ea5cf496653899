"""Inference of models of pictures, of real sizes and with random weights, all on the CPU.

    python tests/benchmarks/bench_picture_inference.py dcgan|vae|kl [--rounds 3] [--only '*onnx*']

"dcgan" is the generator of Radford et al. 2016 for 64 by 64 pixels; "vae" the decoders of the fully
connected one of 28 by 28 pixels and of a convolutional one of 64 by 64; "kl" is AutoencoderKL as
Stable Diffusion has it (sd-vae-ft-mse), of 256 by 256 pixels, both ways, beside diffusers.

Every contender has the same weights and inputs, takes and gives numpy arrays, and runs in a process
of its own, in turn over the rounds. "off" is by how much its numbers differ from torch's in float32
at most, as a share of the largest; in float32 a thousandth is an error.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

REFERENCE = "torch float32"
NAMES = (
    REFERENCE,
    "torch channels-last",
    "torch compiled",
    "torch bfloat16",
    "onnx",
    "onnx-ort",
)
PEER = "diffusers float32"  # of "kl" alone
ENOUGH = 1.0  # seconds that a case is repeated for, at least once, after runs that warm up
NEAR = 1e-3
Call = Callable[[], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Case:
    """A graph of a model, given `batch` inputs of a shape, of which the first output counts."""

    model: str
    graph: str
    batch: int
    shape: tuple[int, ...]

    def inputs(self) -> np.ndarray[Any, Any]:
        """Noise, the same in every call."""
        rng = np.random.Generator(np.random.Philox(0))
        return rng.standard_normal((self.batch, *self.shape), np.float32)


SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "dcgan": {"image_size": (64, 64), "num_channels": 3, "hidden_sizes": (512, 256, 128, 64)},
    "vae": {},
    "conv-vae": {
        "image_size": (64, 64),
        "num_channels": 3,
        "hidden_sizes": (32, 64, 128, 256),
        "latent_size": 128,
    },
    "autoencoder-kl": {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "sample_size": 256,
    },
}
CASES = {
    "dcgan": [Case("dcgan", "generator", batch, (100,)) for batch in (1, 8)],
    "vae": [
        Case(model, "decoder", batch, (size,))
        for model, size in (("vae", 50), ("conv-vae", 128))
        for batch in (1, 8)
    ],
    "kl": [
        Case("autoencoder-kl", "decoder", 1, (4, 32, 32)),
        Case("autoencoder-kl", "encoder", 1, (3, 256, 256)),
    ],
}


# -- what is run ------------------------------------------------------------------------------


def make(family: str, folder: Path) -> None:
    """Write each model of the family and its exports, all or nothing."""
    import cambrian

    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    for model in {case.model for case in CASES[family]}:
        save(model, draft / model)
        for kind in ("onnx", "onnx-ort"):
            cambrian.export(draft / model, draft / f"{model}-{kind}", format=kind)
    draft.rename(folder)


def save(name: str, folder: Path) -> None:
    """Write a checkpoint. Its batch norms have seen pictures: as they begin, all would be grey."""
    import torch

    import cambrian
    from cambrian.checkpoint import save_description, save_weights
    from cambrian.data.images import ImageProcessor

    torch.manual_seed(0)
    spec = cambrian.load_registry().models[name]
    config = spec.config(**SETTINGS[name])
    model = spec.model.load()(config)
    if name == "dcgan":
        with torch.no_grad():
            for _ in range(50):
                model.generator(torch.randn(16, 100))
    kl = name == "autoencoder-kl"
    size = (256, 256) if kl else config.image_size
    channels = 3 if kl else config.num_channels
    processor = ImageProcessor(image_size=size, num_channels=channels)
    save_description(folder, spec, config, processor, cambrian.__version__)
    save_weights(folder, spec, config, model.eval())


def contend(name: str, family: str, folder: Path) -> list[dict[str, Any]]:
    """A contender's milliseconds and pixels, by case."""
    found: list[dict[str, Any]] = []
    for case in CASES[family]:
        call = opened(name, case, folder)
        for _ in range(1 if family == "kl" else 20):
            answer = call()
        file = folder / f"{name}-{len(found)}.npy"
        np.save(file, answer)
        found.append({"ms": timed(call), "answer": str(file)})
    return found


def opened(name: str, case: Case, folder: Path) -> Call:
    """One call of a contender, with what goes in at hand."""
    given, model = case.inputs(), folder / case.model
    if name == PEER:
        return diffusers_call(model, case.graph, given)
    session = torch_session(name, model) if name.startswith("torch") else onnx_session(name, model)
    port = session.signatures[case.graph].inputs[0].name
    return lambda: next(iter(session.run(case.graph, {port: given})[0].values()))


def torch_session(name: str, folder: Path) -> Any:
    import torch

    import cambrian
    from cambrian.runtime.torch import TorchSession
    from cambrian.training.worker import reduced_copy

    torch.compiler.reset()  # or a second batch size makes all sizes dynamic, and slower
    model = cambrian.open_checkpoint(folder).model()
    if name.endswith("channels-last"):
        model = model.to(memory_format=torch.channels_last)
    if name.endswith("bfloat16"):
        model = reduced_copy(model, torch.bfloat16)
    return TorchSession(model, compiled=name.endswith("compiled"))


def onnx_session(name: str, folder: Path) -> Any:
    import cambrian

    return cambrian.load(folder.with_name(f"{folder.name}-{name}"), device="cpu").session


def diffusers_call(folder: Path, graph: str, given: np.ndarray[Any, Any]) -> Call:
    import torch
    from diffusers import AutoencoderKL

    network: Any = AutoencoderKL.from_pretrained(folder).eval()

    def call() -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            inputs = torch.from_numpy(given)
            if graph == "decoder":
                return network.decode(inputs).sample.numpy()
            return network.encode(inputs).latent_dist.mean.numpy()

    return call


def timed(call: Call) -> float:
    """Median milliseconds."""
    times: list[float] = []
    begun = time.perf_counter()
    while not times or time.perf_counter() - begun < ENOUGH:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


# -- what is found ----------------------------------------------------------------------------


Rounds = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]  # by contender, of each its cases


def off(found: Rounds, name: str, number: int) -> float | None:
    """By how much a contender's numbers differ from the reference's; None without one.

    SystemExit where one in float32 computes something else.
    """
    if REFERENCE not in found:
        return None
    want, got = (np.load(found[each][0][number]["answer"]) for each in (REFERENCE, name))
    share = float(np.abs(want - got).max() / np.abs(want).max())
    if not (share < NEAR or name.endswith("bfloat16")):
        raise SystemExit(f"{name} is {share:.1e} off, so it is no contender.")
    return share


def summary(family: str, found: Rounds) -> Iterator[dict[str, Any]]:
    """A row for each case and contender."""
    for number, case in enumerate(CASES[family]):
        base = [each[number]["ms"] for each in found.get(REFERENCE, ())]
        for name, rounds in found.items():
            times = [each[number]["ms"] for each in rounds]
            ms = statistics.median(times)
            yield {
                "case": f"{case.model} {case.graph}, batch {case.batch}",
                "name": name,
                "ms": ms,
                "best": min(times),
                "pictures/s": case.batch / ms * 1e3,
                "ratio": statistics.median(base) / ms if base else None,
                "off": off(found, name, number),
            }


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table for each case. Of ratios, more is faster."""
    seen = ""
    for row in rows:
        if row["case"] != seen:
            seen = row["case"]
            print(f"\n{seen:24}{'ms':>10}{'best':>10}{'pictures/s':>12}{'x eager':>9}{'off':>9}")
        ratio, share = (row[name] for name in ("ratio", "off"))
        print(
            f"{row['name']:24}{row['ms']:10.4g}{row['best']:10.4g}{row['pictures/s']:12.4g}"
            f"{'-' if ratio is None else f'{ratio:.2f}':>9}"
            f"{'-' if share is None else f'{share:.0e}':>9}"
        )


def child(family: str, folder: Path, *options: str) -> str:
    """What a process of this script prints; SystemExit with its last words where it fails."""
    done = subprocess.run(
        [sys.executable, __file__, family, "--folder", str(folder), *options],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(options)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def compare(given: argparse.Namespace, names: Sequence[str], folder: Path) -> None:
    """Make what is missing, let everyone run in turn, and tell."""
    if not folder.is_dir():
        child(given.family, folder, "--make")
    found: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(given.rounds):
        for name in names:
            print(f"round {number + 1}/{given.rounds}: {name}", file=sys.stderr)
            printed = child(given.family, folder, "--child", name)
            found[name].append(json.loads(printed.splitlines()[-1]))
    machine = describe_machine("torch", "onnxruntime-gpu", "diffusers")
    rows = [*summary(given.family, found)]
    print(f"{machine}\nfloat32 unless it says otherwise; medians and best of {given.rounds} rounds")
    show(rows)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", metavar="PATTERN", help="of names; repeatable")
    parser.add_argument("--folder", type=Path, help="where models are kept, and found again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        make(given.family, given.folder)
        return
    if given.child:
        print(json.dumps(contend(given.child, given.family, given.folder)))
        return
    known = (*NAMES, PEER) if given.family == "kl" else NAMES
    names = [n for n in known if any(fnmatchcase(n, p) for p in given.only or ("*",))]
    if not names or given.rounds < 1:
        parser.error(f"there must be a round, and a contender of: {', '.join(known)}")
    with tempfile.TemporaryDirectory() as scratch:
        compare(given, names, given.folder or Path(scratch) / given.family)


if __name__ == "__main__":
    main()
