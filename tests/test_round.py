"""From raw text to ONNX and back, by the command line and by Python; and into transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cambrian
from cambrian.errors import CambrianError, NotFound, UsageError
from cambrian.loading import best_export
from cambrian_onnx.runtime import OnnxSession

TEXT = "".join(f"{n} times {m} is {n * m}.\n" for n in range(90) for m in range(30))
SMALL = (
    "n_layer=2",
    "n_embd=32",
    "n_head=2",
    "n_positions=32",
    "steps=30",
    "evaluate_every=10",
    "evaluate_batches=4",
    "validation_fraction=0.3",
    "precision=float32",
)


class Folders(NamedTuple):
    text: Path
    model: Path
    artifact: Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A model trained and exported through Python, once for all tests here."""
    root = tmp_path_factory.mktemp("round")
    made = Folders(root / "sums.txt", root / "model", root / "model-onnx")
    made.text.write_text(TEXT)
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    trained = cambrian.train("gpt-nano", made.model, data=[str(made.text)], settings=SMALL)
    assert trained.complete and trained.checkpoint is not None
    cambrian.export(made.model, made.artifact)
    return made


def command(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cambrian", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        input="",
    )


def results(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_loss_falls_and_the_run_is_on_record(folders: Folders) -> None:
    lines = (folders.model / "train" / "metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for line in lines if "loss" in (record := json.loads(line))]
    assert losses[-1] < losses[0] - 0.3
    card = (folders.model / "README.md").read_text()
    assert "best validation loss" in card and "sums.txt" in card
    recipe = (folders.model / "train" / "recipe.toml").read_text()
    assert "n_layer = 2" in recipe and "steps = 30" in recipe


def test_transformers_opens_it_with_equal_logits(folders: Folders) -> None:
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders.model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders.model)
    ours = cambrian.open_checkpoint(folders.model)
    ids = tokenizer("7 times 8 is")["input_ids"]
    assert ids == ours.processor().encode("7 times 8 is")  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        difference = theirs(torch.tensor([ids])).logits - ours.model()(torch.tensor([ids]))
    assert float(difference.abs().max()) < 1e-4


def test_what_transformers_saves_trains_and_exports_here(folders: Folders, tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=0
    )
    torch.manual_seed(0)
    theirs = tmp_path / "theirs"
    transformers.GPT2LMHeadModel(config).save_pretrained(theirs)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (theirs / name).write_bytes((folders.model / name).read_bytes())
    tuned = cambrian.train(
        theirs,
        tmp_path / "tuned",
        data=[str(folders.text)],
        settings=["steps=5", "validation_fraction=0.3", "evaluate_batches=2"],
    )
    assert tuned.checkpoint is not None and tuned.checkpoint.config.vocab_size == 300
    cambrian.export(tmp_path / "tuned", tmp_path / "onnx")
    assert cambrian.run(tmp_path / "onnx", ["7"], max_new_tokens=3)[0]["finish"] == "length"


def test_a_checkpoint_is_run_by_its_own_export(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(folders.model, tmp_path / "model")
    assert best_export(model) is None
    artifact = shutil.copytree(folders.artifact, tmp_path / "model-onnx")
    assert best_export(model) == artifact
    assert best_export(artifact) is best_export("gpt-nano") is None
    words = ("run", model, "7", "--set", "max_new_tokens=3")
    by_export, by_torch = command(*words), command(*words, "--runtime", "torch")
    assert "model-onnx runs on CPUExecutionProvider" in by_export.stderr
    assert "model runs on torch cpu" in by_torch.stderr
    assert by_export.stdout == by_torch.stdout
    other = shutil.copytree(artifact, tmp_path / "model-onnx-ort")
    assert best_export(model) == other  # named first by the engine
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"precision": "float16"}))
    assert best_export(model) == artifact
    (model / "generation_config.json").write_text('{"max_new_tokens": 2}')
    assert best_export(model) is None
    shutil.copy(folders.model / "generation_config.json", model)
    assert best_export(model) == artifact
    for broken in ("{}", json.dumps(manifest | {"receipt": {}})):
        (other / "manifest.json").write_text(broken)
        assert best_export(model) == artifact
    monkeypatch.chdir(model)
    assert best_export(".") == artifact
    (artifact / "model.onnx").unlink()
    left = command(*words)
    assert "model-onnx is left alone: " in left.stderr and "runs on torch cpu" in left.stderr
    assert left.stdout == by_torch.stdout
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {"1": vocabulary["2"], "2": vocabulary["1"]}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert best_export(model) is None
    shutil.copy(folders.model / "tokenizer.json", model)
    assert best_export(model) == artifact
    weights = load_file(model / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, model / "model.safetensors")
    assert best_export(model) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_an_engine_is_closed_where_the_rest_does_not_load(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    closed: list[OnnxSession] = []

    def close(session: OnnxSession) -> None:
        closed.append(session)

    monkeypatch.setattr(OnnxSession, "close", close)
    artifact = shutil.copytree(folders.artifact, tmp_path / "onnx")
    cambrian.load(artifact, device="cpu")
    assert not closed
    manifest = json.loads((artifact / "manifest.json").read_text())
    del manifest["files"][name]
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    (artifact / name).write_text('{"max_new_tokens": "many"}')
    with pytest.raises(CambrianError, match=name):
        cambrian.load(artifact, device="cpu")
    assert len(closed) == 1


def test_same_text_from_torch_and_onnx_and_the_command_line(folders: Folders) -> None:
    prompts = ["7 times 8 is", "1", "12 times 12 "]
    options: Mapping[str, Any] = {"max_new_tokens": 12, "do_sample": True, "seed": 3}
    onnx = cambrian.run(folders.artifact, prompts, **options)
    assert onnx == cambrian.run(folders.model, prompts, **options)
    done = command(
        *("run", folders.artifact, *prompts, "--json", "--seed", "3"),
        *("--set", "max_new_tokens=12", "--set", "do_sample=true"),
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == onnx
    assert onnx != cambrian.run(folders.artifact, prompts, **{**options, "seed": 4})


def test_running_and_verifying_an_artifact_import_no_torch(folders: Folders) -> None:
    code = (
        "import sys, cambrian;"
        "cambrian.run(sys.argv[1], ['7 times'], max_new_tokens=2);"
        "cambrian.verify(sys.argv[1]);"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folders.artifact)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_one_prompt_streams_and_reads_as_it_was_written(folders: Folders) -> None:
    done = command("run", folders.artifact, "7 times 8", "--set", "max_new_tokens=5")
    whole = cambrian.run(folders.artifact, ["7 times 8"], max_new_tokens=5)[0]
    assert done.stdout == whole["prompt"] + whole["text"] + "\n"
    assert "CPUExecutionProvider" in done.stderr


def test_the_command_line_goes_the_whole_way(folders: Folders, tmp_path: Path) -> None:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    model, artifact = tmp_path / "cli", tmp_path / "cli-onnx"
    trained = results(
        command("train", "gpt-nano", "-o", model, "-d", folders.text, "--json", *settings)
    )
    assert trained["complete"] and trained["step"] == 30
    # The same settings and seed: the same bytes as from Python.
    assert (model / "model.safetensors").read_bytes() == (
        folders.model / "model.safetensors"
    ).read_bytes()
    exported = results(command("export", model, "--json"))
    assert exported["folder"] == str(artifact)
    assert exported["receipt"]["max_abs_diff"] < 1e-4
    verified = results(command("verify", artifact, "--json"))
    assert verified["max_abs_diff"] < 1e-4
    measured = results(command("eval", model, "--json"))
    assert measured["loss"] == pytest.approx(cambrian.evaluate(model).metrics["loss"], rel=1e-6)


def test_evaluating_is_the_mean_loss_of_a_token(folders: Folders) -> None:
    """Against transformers, over text that fits one window and counts each token once."""
    import transformers

    text = folders.text.with_name("held-out.txt")
    text.write_text("3 times 4 is 12.")
    found = cambrian.evaluate(folders.model, data=[str(text)]).metrics
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders.model).eval()
    ids = cambrian.open_checkpoint(folders.model).processor().encode(text.read_text())  # pyright: ignore[reportAttributeAccessIssue]
    ids = torch.tensor([[*ids, theirs.config.eos_token_id]])
    with torch.no_grad():
        expected = float(theirs(ids, labels=ids).loss)
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["perplexity"] == pytest.approx(np.exp(expected), rel=1e-3)


def test_outputs_are_refused_and_replaced(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--force to replace it, or --resume"):
        cambrian.train("gpt-nano", folders.model)
    with pytest.raises(UsageError, match="exists already"):
        cambrian.export(folders.model, folders.artifact)
    with pytest.raises(UsageError, match="cannot be trained into itself"):
        cambrian.train(folders.model, folders.model, force=True)
    assert (folders.model / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("train",), 2, "Say what to train"),
        (("train", "gpt-nan"), 2, "Did you mean 'gpt-nano'"),
        (("train", "gpt-nano", "--set", "step=3"), 2, "Did you mean 'steps'"),
        (("train", "gpt-nano", "--data", "/no/such/file"), 2, "/no/such/file"),
        (("train", "gpt-nano", "--trainer", "lop"), 2, "Did you mean 'loop'"),
        (("train", "--resume", "/no/such/run"), 2, "holds no run to resume"),
        (("train", "x", "--resume", "y"), 2, "takes every setting from the run"),
        (("export", "gpt-nano"), 2, "has no weights yet"),
        (("export", "/no/such/folder"), 2, "There is no folder"),
        (("run", "gpt-nano", "x"), 2, "has no weights yet"),
        (("verify", "/no/such/folder"), 2, "is not an exported folder"),
        (("eval", "hf://x"), 2, "hf://owner/repo"),
    ],
)
def test_mistakes_are_one_sentence_and_a_code(
    words: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cambrian", *words],
        capture_output=True,
        text=True,
        input="",
        cwd=tmp_path,
    )
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_bad_options_of_a_run(folders: Folders) -> None:
    for words, message in (
        (("--set", "temprature=1"), "Did you mean 'temperature'"),
        (("--provider", "cuda"), "CUDA"),
        (("--runtime", "torch"), "does not open onnx folders"),
    ):
        done = command("run", folders.artifact, "x", *words)
        assert done.returncode in (1, 2) and message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    done = command("run", folders.artifact)
    assert done.returncode == 2 and "There is no input" in done.stderr
    done = command("run", folders.artifact, "a", os.fsdecode(b"b\xff"))
    assert done.returncode == 2 and "error: Cannot read the inputs: " in done.stderr
    words = [sys.executable, "-m", "cambrian", "run", folders.artifact]
    piped = subprocess.run(words, capture_output=True, input=b"a\xff\n")
    assert piped.returncode == 2 and b"error: Cannot read standard input: " in piped.stderr


def test_unreachable_hub_is_one_sentence(tmp_path: Path) -> None:
    done = command(
        *("run", "gpt2", "x"),
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HUB_OFFLINE="0",
        HF_HOME=str(tmp_path / "hf"),
    )
    assert done.returncode == 1
    assert "Cannot fetch hf://openai-community/gpt2@607a30d" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_missing_checkpoints_are_named() -> None:
    with pytest.raises(NotFound):
        cambrian.load("/no/such/folder")
    with pytest.raises(CambrianError):
        cambrian.open_checkpoint("gpt-nano")


def test_public_names_are_all_there() -> None:
    for name in cambrian.__all__:
        assert getattr(cambrian, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cambrian.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_force_replaces_runs_only_and_only_when_the_new_one_can_begin(
    folders: Folders, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    (project / "train").mkdir(parents=True)
    (project / "train" / "corpus.txt").write_text(TEXT)
    with pytest.raises(UsageError, match="is no run and will not be replaced"):
        cambrian.train("gpt-nano", project, data=[str(project / "train")], force=True)
    assert (project / "train" / "corpus.txt").read_text() == TEXT
    before = (folders.model / "model.safetensors").read_bytes()
    for wrong in ("steps=0", "seed=-1", "optimizer.lr=-1.0", "device=cuda:9", "ema=2.0"):
        with pytest.raises(UsageError):
            cambrian.train(
                "gpt-nano",
                folders.model,
                data=[str(folders.text)],
                settings=[*SMALL, wrong],
                force=True,
            )
        assert (folders.model / "model.safetensors").read_bytes() == before


def test_a_terminal_sees_a_bar(folders: Folders, tmp_path: Path) -> None:
    """Under a real pseudo-terminal, where the live display is on."""
    master, slave = os.openpty()
    settings = [part for setting in SMALL for part in ("--set", setting)]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cambrian", "train", "gpt-nano"),
            *(f"--out={tmp_path / 'out'}", f"--data={folders.text}", *settings),
        ],
        stdout=slave,
        stderr=slave,
        stdin=slave,
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(master)
    assert process.wait() == 0, seen.decode()
    assert b"30/30" in seen and b"tokens/s" in seen and b"held-out loss" in seen


def test_the_whole_text_is_evaluated_even_if_it_was_trained_on(folders: Folders) -> None:
    found = cambrian.evaluate(folders.model, data=[str(folders.text)]).metrics
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]), rel=1e-6)


def test_a_run_that_is_over_keeps_its_card(folders: Folders) -> None:
    before = (folders.model / "README.md").read_text()
    again = cambrian.resume(folders.model)
    assert again.complete and again.metrics["best_validation_loss"] > 0
    assert (folders.model / "README.md").read_text().splitlines()[:5] == before.splitlines()[:5]
    assert "best validation loss" in (folders.model / "README.md").read_text()


def test_force_takes_another_tokenizer(folders: Folders, tmp_path: Path) -> None:
    out, given = tmp_path / "run", {"data": [str(folders.text)], "force": True}
    for kind in ("char", "bpe"):
        settings = [*SMALL, "steps=1", f"tokenizer={kind}"]
        trained = cambrian.train("gpt-nano", out, settings=settings, **given)
        assert trained.checkpoint is not None
        assert trained.checkpoint.processor().kind == kind  # pyright: ignore[reportAttributeAccessIssue]


def test_resuming_with_another_tokenizer_is_refused(folders: Folders, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cambrian.train("gpt-nano", out, data=[str(folders.text)], settings=SMALL)
    file = out / "tokenizer.json"
    file.write_text(file.read_text().replace("e", "E", 1))
    with pytest.raises(CambrianError, match=r"tokenizer\.json is not what"):
        cambrian.resume(out)


@pytest.mark.parametrize("address", ["hf://a/b--c", "hf://a/b..c", "hf://a/.."])
def test_names_that_the_hub_does_not_allow(address: str) -> None:
    with pytest.raises(UsageError):
        cambrian.open_checkpoint(address)
