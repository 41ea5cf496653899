"""Looking costs nothing: what is never imported, by whom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "onnx", "onnxruntime", "huggingface_hub", "transformers", "numpy", "tokenizers",
         "safetensors", "matplotlib"}  # fmt: skip

PROGRAM = """
import atexit, sys
heavy = set({heavy!r})
atexit.register(lambda: print("\\nLOADED", sorted(heavy & sys.modules.keys())))
sys.argv = ["cambrian", *{arguments!r}]
from cambrian.cli import main
main()
"""


def last_line(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "--json"],
        ["info", "gpt2"],
        ["info", "checkpoint"],
        ["plugins"],
        ["env"],
        ["--help"],
        ["--version"],
        *(
            [verb, "--help"]
            for verb in ("list", "info", "train", "eval", "export", "verify", "bench")
        ),
        ["run", "--help"],
    ],
    ids=" ".join,
)
def test_looking_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text('{"model_type": "gpt2"}')
    code = PROGRAM.format(heavy=HEAVY, arguments=arguments)
    assert last_line(code, tmp_path) == "LOADED []"


@pytest.mark.parametrize(
    "module",
    ["", ".errors", ".specs", ".config", ".hookspecs", ".plugins", ".registry", ".artifact",
     ".checkpoint", ".files", ".builtin", ".data", ".data.config", ".cli"],
)  # fmt: skip
def test_lower_floors_import_nothing_heavy(module: str, tmp_path: Path) -> None:
    code = (
        f"import sys; import cambrian{module}; heavy = {HEAVY!r}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    assert last_line(code, tmp_path) == "[]"


@pytest.mark.parametrize("module", ["runtime", "pipeline"])
def test_inference_needs_no_torch(module: str, tmp_path: Path) -> None:
    code = f"import sys; import cambrian.{module}; print('torch' in sys.modules)"
    assert last_line(code, tmp_path) == "False"
