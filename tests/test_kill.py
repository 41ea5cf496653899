"""Killed at any instant and resumed, a run ends with the bytes of one that was left alone.

The command line is started for real, in a process group of its own, and killed by SIGKILL after
random times, over and over, until the run is complete.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cambrian.files import PARTIAL, sha256

CAMBRIAN = [sys.executable, "-m", "cambrian"]
STEPS = 600
KILLS = 24
SETTINGS = (
    f"steps={STEPS}",
    "evaluate_every=100",
    "checkpoint_every=2",  # so often that kills fall into the writing of checkpoints
    "batch_size=4",
    "ema=0.9",
    "evaluate_batches=4",
)
MODELS = {  # small ones, with dropout
    "gpt-nano": ("n_positions=32", "n_layer=2", "n_embd=64", "n_head=2", "resid_pdrop=0.1"),
    "bert-nano": (
        "max_position_embeddings=40", "num_hidden_layers=2", "hidden_size=64",
        "num_attention_heads=2", "intermediate_size=128", "hidden_dropout_prob=0.1",
        "data.vocab_size=600",
    ),
    "t5-nano": (
        "n_positions=40", "num_layers=1", "d_model=64", "d_kv=16", "num_heads=4", "d_ff=128",
        "dropout_rate=0.1",
    ),
    "vae-digits": ("hidden_sizes=[16]", "latent_size=4"),
    "dcgan-digits": ("hidden_sizes=[16, 8]", "latent_size=8", "discriminator_steps=2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


def train_command(out: Path, model: str = "gpt-nano") -> list[str]:
    settings = [part for setting in (*SETTINGS, *MODELS[model]) for part in ("--set", setting)]
    return [*CAMBRIAN, "train", model, "--out", str(out), *settings]


def finish(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def results(out: Path) -> tuple[str, str, str]:
    """Hashes of the published model, of the last state's weights, and of its optimizer."""
    state = out / "train" / f"step-{STEPS:08d}"
    files = (
        out / "model.safetensors",
        state / "weights.safetensors",
        state / "optimizer.safetensors",
    )
    return tuple(sha256(file) for file in files)  # pyright: ignore[reportReturnType]


def states(out: Path) -> set[str]:
    """The names of the states that a run has kept."""
    return {path.name for path in (out / "train").glob("step-*")}


def wait_for_writing(out: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the run is in the middle of writing a state."""
    while process.poll() is None and not list((out / "train").glob(f".step-*{PARTIAL}*")):
        pass  # no pause: a state of so small a model is written within milliseconds


def wait_for_a_state(out: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the run writes a state that was not there."""
    before = states(out)
    while process.poll() is None and not states(out) - before:
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_sigkill_at_random_instants(
    model: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    finish(train_command(whole, model), environment)
    kills, in_writing, seen = 0, 0, set[int]()
    rng = random.Random(0)
    while kills < KILLS:
        started = (out / "train" / "run.json").is_file()
        again = [*CAMBRIAN, "train", "--resume", str(out)]
        process = start(again if started else [*train_command(out, model), "--force"], environment)
        if kills % 4 == 0:  # anywhere: at import, in the data, before the first step
            time.sleep(rng.uniform(0, 2.0))
        elif kills % 4 == 1:
            wait_for_a_state(out, process)
            wait_for_writing(out, process)
        else:  # while it trains and writes states
            wait_for_a_state(out, process)
            time.sleep(rng.uniform(0, 0.1))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
        in_writing += bool(list((out / "train").glob(f".step-*{PARTIAL}*")))
        seen |= {int(name[5:]) for name in states(out)}
    finish([*CAMBRIAN, "train", "--resume", str(out)], environment)
    print(f"{kills} kills, {in_writing} while a checkpoint was being written, at {sorted(seen)}")
    assert kills == KILLS
    assert in_writing >= KILLS // 8
    assert len(seen) >= KILLS // 2  # spread over the run
    assert results(out) == results(whole)
    assert not list((out / "train").glob(f".*{PARTIAL}*"))


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, environment: dict[str, str]) -> None:
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    finish(train_command(whole), environment)
    process = start(train_command(out), environment)
    wait_for_a_state(out, process)  # the one at the start
    wait_for_a_state(out, process)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert f"cambrian train --resume {out}".encode() in stderr.splitlines()[-1]
    assert b"Traceback" not in stderr
    finish([*CAMBRIAN, "train", "--resume", str(out)], environment)
    assert results(out) == results(whole)


def test_resume_refuses_data_that_changed(tmp_path: Path, environment: dict[str, str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of a text to learn from\n" for i in range(3000)))
    out = tmp_path / "out"
    command = [*train_command(out), "--data", str(text), "--set", "validation_fraction=0.5"]
    finish(command, environment)
    text.write_text("".join(f"line {i} of another text to learn\n" for i in range(3000)))
    done = subprocess.run(
        [*CAMBRIAN, "train", "--resume", str(out)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "has changed since the run began" in done.stderr


def test_folder_that_cannot_be_written(environment: dict[str, str]) -> None:
    """/proc takes no new folders, not even from the superuser."""
    done = subprocess.run(
        train_command(Path("/proc/cambrian/out")), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "/proc/cambrian" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_full_disk_keeps_the_last_state(tmp_path: Path, environment: dict[str, str]) -> None:
    """A limit on file size stands in for the full disk: a later, larger state meets it."""
    out = tmp_path / "out"
    finish([*train_command(out), "--set", "steps=4"], environment)
    recipe = out / "train" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("steps = 4\n", "steps = 8\n"))
    before = sha256(out / "train" / "step-00000004" / "weights.safetensors")
    code = (
        "import resource, signal, sys;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "sys.argv[0] = 'cambrian';"
        "from cambrian.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--resume", str(out)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: Cannot write") and "Traceback" not in done.stderr
    assert sha256(out / "train" / "step-00000004" / "weights.safetensors") == before
    finish([*CAMBRIAN, "train", "--resume", str(out)], environment)
    assert (out / "train" / "step-00000008").is_dir()
