"""Benchmarks: who takes part, what is measured, what is made of it. Never how fast anything is."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import cambrian
from cambrian.benchmarking import course
from cambrian.benchmarking.child import Job, make, measure
from cambrian.benchmarking.course import run_child
from cambrian.benchmarking.figures import Figure, Measured, row
from cambrian.benchmarking.subjects import Subject, plan
from cambrian.errors import CambrianError, NotFound, UsageError
from cambrian.files import sha256
from cambrian.hub.snapshot import silent
from cambrian.registry import load_registry
from cambrian.runtime.torch import TorchSession
from cambrian.testing import example, prepared, train_example
from cambrian.training.worker import reduced_copy
from cambrian_onnx.runtime import OnnxRuntime


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT, its export, the same with a damaged file, and an export of other weights."""
    root = tmp_path_factory.mktemp("bench")
    spec = load_registry().models["gpt"]
    train_example(spec, root / "gpt")
    cambrian.export(root / "gpt", root / "onnx")
    shutil.copytree(root / "onnx", root / "damaged")
    with (root / "damaged" / "model.onnx").open("ab") as file:
        file.write(b"x")
    shutil.copytree(root / "onnx", root / "other-onnx")
    file, manifest = root / "other-onnx" / "model.onnx", root / "other-onnx" / "manifest.json"
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            turned = onnx.numpy_helper.to_array(tensor)[::-1]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(turned), tensor.name))
    onnx.save(model, file)
    facts = json.loads(manifest.read_text())
    facts["files"]["model.onnx"] = sha256(file)
    manifest.write_text(json.dumps(facts))
    return root


def bench(*words: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cambrian", "bench", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **variables},
    )


def test_side_by_side(folders: Path, tmp_path: Path) -> None:
    given = ["./gpt", "./onnx", "./damaged", "./other-onnx"]
    only = [word for name in ("*torch float32", *given[1:]) for word in ("--only", name)]
    chart = tmp_path / "bars.svg"
    done = bench(
        *(*given, *only, "--rounds", "2", "--json", "-o", chart),
        *("--set", "prompt=9", "--set", "new=7", "--set", "batch=3"),
        cwd=folders,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["cores"] >= 1 and found["machine"]["torch"] == torch.__version__
    assert (found["unit"], found["streams"], found["rounds"]) == ("tokens", True, 2)
    assert found["sizes"] == {"batch": 3, "prompt": 9, "new": 7}
    ours, onnx, damaged, other = found["rows"]
    assert [each["name"] for each in found["rows"]] == ["./gpt torch float32", *given[1:]]
    assert "is not the file that was exported" in damaged["problem"]
    assert damaged["rate"] is None
    for good in (ours, onnx, other):
        assert good["problem"] == "" and good["compared"] == 21
        for name in ("first_ms", "rate"):
            assert 0 < good[name]["low"] <= good[name]["median"] <= good[name]["high"]
        assert good["memory_mib"] > 20 and good["load_s"] > 0
        assert good["ratio"] == pytest.approx(good["rate"]["median"] / ours["rate"]["median"])
    assert (ours["equal"], onnx["equal"]) == (21, 21)
    assert other["equal"] < 21
    assert ours["provider"] == "torch cpu" and ours["operators"] == {}
    assert onnx["provider"] == "CPUExecutionProvider" and onnx["settings"]["threads"] >= 1
    assert onnx["operators"] == OnnxRuntime().open(folders / "onnx", "cpu").operators()
    assert onnx["operators"]["Attention"] == 2
    weights = (folders / "gpt" / "model.safetensors").stat().st_size
    assert ours["disk_mib"] == pytest.approx(weights / 2**20)
    unused = {"golden.safetensors", "manifest.json", "README.md"}
    opened = [file for file in (folders / "onnx").iterdir() if file.name not in unused]
    assert onnx["disk_mib"] == pytest.approx(sum(f.stat().st_size for f in opened) / 2**20)
    assert "<svg" in chart.read_text()
    assert "round 2/2: ./onnx" in done.stderr and "round 2/2: ./damaged" not in done.stderr


def test_people_read_a_table(folders: Path) -> None:
    done = bench("./onnx", "./damaged", "--rounds", "1", cwd=folders)
    assert done.returncode == 0, done.stderr
    machine, versions, work, empty, header, *rows = done.stdout.splitlines()
    assert "cores" in machine and "cambrian" in versions and not empty
    assert work == "batch 1, prompt 12, new 12; 1 round"
    assert header.split()[:4] == ["SUBJECT", "FIRST", "MS", "TOKENS/S"]
    assert rows[0].split()[0] == "./onnx" and "12/12" in rows[0]
    assert "is not the file that was exported" in rows[1]


def test_where_nothing_runs_it_fails(folders: Path, tmp_path: Path) -> None:
    chart = tmp_path / "bars.png"
    done = bench("./damaged", "--rounds", "1", "-o", chart, cwd=folders)
    assert done.returncode == 1
    assert "is not the file that was exported" in done.stdout
    assert done.stderr.endswith("error: Nothing could be measured; the reasons are in the table.\n")
    assert not chart.exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["./onnx", "--set", "prompts=3"], "unknown key 'prompts'. Did you mean 'prompt'?"),
        (["./onnx", "--set", "batch=0"], "batch must be at least 1, not 0"),
        (["./gpt", "--only", "tensorrt*"], "Nothing is called tensorrt*. There are: torch float32"),
        (["./onnx", "--rounds", "0"], "--rounds"),
        (["./onnx", "-o", "bars.txt"], "is no picture's name"),
        (["gpt"], "'gpt' has no weights yet"),
        (["./nothing"], "nothing"),
    ],
)
def test_wrong_requests(folders: Path, words: list[str], reason: str) -> None:
    done = bench(*words, cwd=folders)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr


def alive(scratch: Path) -> list[str]:
    """The processes whose temporary files lie below a folder."""
    found: list[str] = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TMPDIR={scratch}/cambrian-bench-".encode() in file.read_bytes():
                found.append(file.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="needs Linux' /proc")
@pytest.mark.parametrize(
    ("name", "after"), [("SIGINT", 0), ("SIGINT", 1.5), ("SIGTERM", 0), ("SIGKILL", 1.5)]
)
def test_an_interrupted_benchmark_leaves_nothing(
    folders: Path, tmp_path: Path, name: str, after: float
) -> None:
    # A shell that runs the tests in the background has its children ignore the signal.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from cambrian.cli import main; main()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code, "bench", "./onnx", "--set", "batch=20000"],  # takes long
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folders,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    until(lambda: bool(alive(tmp_path)))
    time.sleep(after)
    assert alive(tmp_path) and [*tmp_path.iterdir()]
    running.send_signal(getattr(signal, name))
    out, errors = running.communicate(timeout=30)
    status = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}[name]
    assert (running.returncode, out) == (status, "")
    assert "Traceback" not in errors
    until(lambda: not alive(tmp_path), seconds=3)
    if name != "SIGKILL":
        assert [*tmp_path.iterdir()] == []


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_child_that_dies_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    hook = tmp_path / "sitecustomize.py"
    hook.write_text("import os; os.kill(os.getpid(), 9)")
    assert "killed, as happens when memory runs out" in run_child("{}", tmp_path)["problem"]
    hook.write_text("import os, sys; sys.stderr.write('no such driver'); sys.stderr.flush()\n"
                    "os._exit(3)")  # fmt: skip
    assert run_child("{}", tmp_path)["problem"] == "its process ended with status 3: no such driver"


def test_a_child_that_hangs_is_a_reason_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "LONGEST", 3)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "done.json").write_text(json.dumps({"done": asdict(measured())}))
    (tmp_path / "sitecustomize.py").write_text(
        "import os, subprocess, sys\n"
        "if 'hanging' in sys.stdin.readline(): subprocess.run(['sleep', '100'])\n"  # has our pipe
        f"os.write(1, open({str(tmp_path / 'done.json')!r}, 'rb').read()); os._exit(0)\n"
    )
    subjects = [Subject(name=name, target=".") for name in ("hanging", "other")]
    said: list[str] = []
    under_way = course.Course(tmp_path, "cpu", {}, (), said.append)
    under_way.prepare(subjects)
    begun = time.monotonic()
    under_way.round("round 1/1", first=False)
    assert time.monotonic() - begun < 30
    hanging, other = under_way.result(rounds=1).rows
    assert hanging.problem == "it had not ended after 0.05 minutes"
    assert (other.problem, other.name) == ("", "other") and other.rate is not None
    assert said[1] == f"hanging failed: {hanging.problem}"


def test_what_a_child_raises_is_a_reason(tmp_path: Path) -> None:
    subject = Subject(name="x", target="./x", runtime="torch", form="float32")
    job = {"subject": asdict(subject), "device": "cpu", "sizes": {}}
    assert "x" in run_child(json.dumps(job), tmp_path)["problem"]
    assert "ValidationError" in run_child("{}", tmp_path)["problem"]


def test_an_export_that_an_exporter_refuses_is_left_out(folders: Path, tmp_path: Path) -> None:
    subject = Subject(name="x", target=str(folders / "gpt"), exporter="onnx", precision="float8")
    job = Job(subject=subject, device="cpu", sizes={}, out=str(tmp_path / "x"))
    assert "precision 'float8'" in make(job)["refused"]
    assert not (tmp_path / "x").exists()


def test_who_takes_part(folders: Path) -> None:
    target, registry = str(folders / "gpt"), load_registry()

    def names(*only: str) -> list[str]:
        return [each.name for each in plan([target], registry, only, silent)]

    assert names()[:3] == ["torch float32", "torch compiled", "torch bfloat16"]
    assert {"onnx float32", "onnx float16"} <= {*names()}
    idle = [name for name, spec in registry.exporters.items() if spec.repackages]
    assert not [name for name in names() if name.split()[0] in idle]
    assert all(f"{name} float32" in names(f"{name} *") for name in idle)
    assert names("torch c*", "onnx *32") == ["torch compiled", "onnx float32"]
    with pytest.raises(NotFound, match="Nothing is called y or z"):
        names("y", "z")
    artifact = str(folders / "onnx")
    both = plan([target, artifact], registry, [], silent)
    assert both[0].name == f"{target} torch float32"
    assert both[-1] == Subject(name=artifact, target=artifact)


def test_every_task_has_work() -> None:
    tasks = {spec.pipeline.target: spec for spec in load_registry().models.values()}
    for spec in tasks.values():
        data, _ = prepared(spec)
        torch.manual_seed(0)
        model = spec.model.load()(data.config).eval()
        kind = spec.pipeline.load()
        pipeline = kind(TorchSession(model), data.processor, data.config)
        sizes = kind.default_sizes(data.config)
        for batch in (1, 2):
            work = pipeline.workload(replace(sizes, batch=batch))
            assert work is not None, spec.name
            first, second = ([*work.run()] for _ in range(2))
            assert len(first) == getattr(sizes, "new", 1)
            assert work.count == batch == len(first[0])
            assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)), spec.name
            assert (first[0].dtype == np.int64) == (work.unit == "tokens")


@pytest.mark.parametrize(
    ("name", "sizes", "reason"),
    [
        ("gpt", {"prompt": 20, "new": 6}, "has room for 5 tokens, not for new=6"),
        ("bert", {"length": 41}, "reads 40 tokens, not length=41"),
    ],
)
def test_work_has_to_fit(name: str, sizes: dict[str, int], reason: str) -> None:
    spec = load_registry().models[name]
    config, _ = example(spec)
    kind: Any = spec.pipeline.load()
    pipeline = kind(None, None, config)
    with pytest.raises(UsageError, match=reason):
        pipeline.workload(replace(kind.default_sizes(config), **sizes))


def test_nothing_is_generated_beyond_what_was_asked(folders: Path) -> None:
    pipeline = cambrian.load(folders / "onnx", device="cpu")
    calls: list[int] = []
    run = pipeline.session.run

    def counted(graph: str, inputs: Any, state: Any = None) -> Any:
        calls.append(inputs["input_ids"].shape[1])
        return run(graph, inputs, state)

    pipeline.session.run = counted
    work = pipeline.workload(replace(pipeline.default_sizes(pipeline.config), prompt=5, new=4))
    assert work is not None and len([*work.run()]) == 4
    assert calls == [5, 1, 1, 1]


def test_a_task_without_work_is_a_reason(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cambrian.pipeline import Pipeline
    from cambrian_gpt.pipeline import TextGeneration

    monkeypatch.setattr(TextGeneration, "workload", Pipeline.workload)
    subject = Subject(name="x", target=str(folders / "onnx"))
    with pytest.raises(CambrianError, match="TextGeneration declares no work"):
        measure(Job(subject=subject, device="cpu", sizes={}))


PICTURES = ("cnn", "gan", "dcgan", "resnet-gan", "vae", "conv-vae", "autoencoder-kl")


@pytest.mark.parametrize("name", ["gpt", *PICTURES])
def test_bfloat16_goes_in_and_comes_out_as_float32(name: str) -> None:
    spec = load_registry().models[name]
    data, _ = prepared(spec)
    torch.manual_seed(0)
    model = spec.model.load()(data.config).eval()
    kind, found = spec.pipeline.load(), list[Any]()
    for each in (model, reduced_copy(model, torch.bfloat16)):
        session = TorchSession(each)
        ports = [p for s in session.signatures.values() for p in (*s.inputs, *s.outputs)]
        assert "bfloat16" not in {port.dtype for port in ports}
        work = kind(session, data.processor, data.config).workload(kind.default_sizes(data.config))
        assert work is not None
        found.append(np.concatenate([*work.run()]).astype(np.float64))
        for case in itertools.islice(model.cases(), 2):  # a VAE's encoder, too
            for graph, inputs in case.calls:
                assert {x.dtype.name for x in session.run(graph, inputs)[0].values()} == {"float32"}
    assert found[0].shape == found[1].shape
    assert any(p.dtype == torch.bfloat16 for p in reduced_copy(model, torch.bfloat16).parameters())
    if name != "gpt":
        scale = np.abs(found[0]).max()
        assert np.abs(found[0] - found[1]).max() < 0.1 * scale


def measured(**changes: Any) -> Measured:
    plain: dict[str, Any] = {
        "unit": "texts", "pieces": 1, "first": 0.5, "rate": 2.0, "load": 1.0, "memory": 10.0,
        "gpu": None, "disk": 3.0, "provider": "p", "settings": {}, "answer": [1.0, -4.0, 2.0],
        "exact": False,
    }  # fmt: skip
    return Measured(**{**plain, **changes})


def test_a_row_sums_up_its_rounds() -> None:
    base = measured()
    rounds = [
        measured(rate=4.0, first=0.1, memory=7.0, answer=[1.03, -4.03, 2.05]),
        measured(rate=8.0, first=0.3, memory=9.0),
        measured(rate=5.0, first=0.2, memory=8.0),
    ]
    found = row("x", rounds, base, 2.0)
    assert found.rate == Figure(5.0, 4.0, 8.0)
    assert found.first_ms == Figure(200.0, 100.0, 300.0)
    assert (found.ratio, found.memory_mib, found.gpu_mib) == (2.5, 9.0, None)
    assert (found.equal, found.compared) == (2, 3)  # 0.05 is more than 1 % of 4


def test_results_that_are_no_numbers_equal_nothing() -> None:
    nothing = measured(answer=[math.nan, -4.0, math.inf])
    assert row("x", [nothing], measured(), 1.0).equal == 1
    tokens = measured(exact=True, answer=[7, 8, 9])
    assert row("x", [measured(exact=True, answer=[7, 8, 10])], tokens, 1.0).equal == 2


@pytest.mark.parametrize("changes", [{"unit": "tokens"}, {"answer": [1.0]}, {"exact": True}])
def test_other_work_does_not_stand_beside(changes: dict[str, Any]) -> None:
    assert "another" in row("x", [measured(**changes)], measured(), 1.0).problem


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "bert", "t5", "dcgan", "cnn"])
def test_every_engine_computes_the_same(name: str, tmp_path: Path) -> None:
    train_example(load_registry().models[name], tmp_path / "model")
    only = [] if name == "gpt" else ["torch*", "onnx*float32"]
    target, sizes = tmp_path / "model", {"batch": 2}
    found = cambrian.bench([target], only=only, rounds=1, device="cpu", sizes=sizes)
    rows = {each.name: each for each in found.rows}
    assert {"torch float32", "torch compiled", "torch bfloat16", "onnx float32"} <= {*rows}
    failed = {each.name: each.problem for each in found.rows if each.problem}
    assert not any("int8" not in each for each in failed), failed  # rounding may cost too much
    for each in (one for one in found.rows if not one.problem):
        if each.name.endswith(("float32", "compiled")):
            assert each.equal == each.compared, each.name
        assert bool(each.operators) != each.name.startswith("torch")
    assert found.streams == (found.unit == "tokens")
