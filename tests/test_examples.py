"""The example plugins, each installed as its reader would install it, checked by the public kit."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cambrian.conformance import read_record
from console import OFFLINE, own_python

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
# Over every registered architecture these would take minutes; two that hand on state are enough.
FEWER = {"cambrian-openvino": "bert,cnn,gan,vae", "cambrian-lora": "cnn,gan,vae"}
CHECKS = {
    "cambrian-lora": 10,
    "cambrian-lstm": 17,
    "cambrian-names": 7,
    "cambrian-openvino": 21,
    "cambrian-vit": 19,
}


def test_every_example_is_checked() -> None:
    assert {file.parent.name for file in EXAMPLES.glob("*/pyproject.toml")} == CHECKS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_an_example_conforms(name: str, tmp_path: Path) -> None:
    if name == "cambrian-openvino":
        pytest.importorskip("openvino", reason="openvino is not installed (group examples)")
    folder, record = tmp_path / name, tmp_path / "record.json"
    shutil.copytree(EXAMPLES / name, folder)
    python = own_python(tmp_path / "python")
    variables = {**os.environ, **OFFLINE, "CAMBRIAN_DISABLE_PLUGINS": FEWER.get(name, "")}
    for words in (
        ["pip", "install", "--quiet", "--no-deps", "."],
        ["pytest", "-q", "-p", "no:cacheprovider", "--cambrian", name,
         "--cambrian-record", str(record), *(["tests"] if (folder / "tests").is_dir() else [])],
    ):  # fmt: skip
        done = subprocess.run(
            [python, "-m", *words], cwd=folder, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = read_record(record)
    assert found is not None and found.distribution == name
    assert (found.count("passed"), found.count("failed")) == (CHECKS[name], 0)
