"""Rounds with a Hub: a pull that is killed again and again, and all verbs without a network."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cambrian import load_registry
from cambrian.checkpoint import save_description, save_weights
from cambrian.testing import built, prepared
from cambrian.testing.hub import Fault, LoopbackHub
from cambrian.weight_files import TensorInfo, encode_header

pytestmark = pytest.mark.slow
KILLS, MEGABYTES = 30, 200
LONGEST = 2.0  # seconds until a kill; all of them fetch under KILLS * LONGEST * SPEED bytes,
SPEED = 3_000_000  # which is less than the file has, however fast the machine
WEIGHTS = "GET cdn .*safetensors"


def test_a_pull_killed_thirty_times_fetches_next_to_nothing_twice(tmp_path: Path) -> None:
    chance, count = random.Random(7), MEGABYTES * 1_000_000
    big = tmp_path / "model.safetensors"
    with big.open("wb") as file:
        file.write(encode_header({"x": TensorInfo("U8", (count,), (0, count))}, {}))
        file.writelines(chance.randbytes(1_000_000) for _ in range(MEGABYTES))
    with LoopbackHub() as hub, big.open("rb") as whole:
        repo = hub.create("acme/big")
        repo.commit({"config.json": b'{"model_type": "gpt2"}', "model.safetensors": big})
        hub.fault(WEIGHTS, Fault(throttle=SPEED), times=None)
        environment = {**hub.environment(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "x")}
        words = [sys.executable, "-m", "cambrian", "pull", "hf://acme/big"]
        for _ in range(KILLS):
            child = subprocess.Popen(
                words, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL
            )
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(chance.uniform(0.3, LONGEST))
            child.send_signal(signal.SIGKILL)
            child.wait()
        hub.heal()
        done = subprocess.run(
            words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        got = Path(done.stdout.splitlines()[-1]) / "model.safetensors"
        with got.open("rb") as held:
            same = [hashlib.file_digest(file, "sha256").digest() for file in (held, whole)]
        assert same[0] == same[1]
        assert len(hub.matching(WEIGHTS)) > 3  # some kills did hit the download
        assert hub.bytes_sent(WEIGHTS) < 1.1 * big.stat().st_size


def test_every_verb_without_a_network(tmp_path: Path) -> None:
    alone = ["unshare", "--user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("this system lets nobody make a namespace without a network (unshare)")
    spec, model = load_registry().models["gpt"], tmp_path / "model"
    data, _ = prepared(spec)
    save_description(model, spec, data.config, data.processor, "0")
    save_weights(model, spec, data.config, built(spec, data.config))
    project = tmp_path / "project"
    project.mkdir()
    (project / "cambrian.toml").write_text(
        '[models.mine]\narchitecture = "gpt"\nweights = "hf://acme/tiny"\n'
    )
    (project / "fox.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    cambrian = [sys.executable, "-m", "cambrian"]
    homes = {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("CACHE", "CONFIG")}
    with LoopbackHub() as hub:
        hub.create("acme/tiny").commit({path.name: path for path in model.iterdir()})
        environment = {**hub.environment(tmp_path / "home"), **homes}
        for words in (["lock"], ["pull", "--locked"]):
            subprocess.run([*cambrian, *words], env=environment, cwd=project, check=True)
    for line in (
        "list",
        "lock --check",
        "pull --locked",
        "info mine",
        "run mine the --set max_new_tokens=3",
        "train mine --data fox.txt --out tuned --set steps=3 --set length=8",
        "export tuned",
        "verify tuned-onnx",
        "run tuned-onnx the --set max_new_tokens=3",
    ):
        done = subprocess.run(
            [*alone, *cambrian, *line.split()],
            env={**environment, "HF_HUB_OFFLINE": "1"},
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
