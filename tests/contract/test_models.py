"""Every registered architecture keeps the contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cambrian.registry import load_registry
from cambrian.specs import ModelSpec
from cambrian.testing import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(load_registry().models))
def test_contract(name: str, check: Callable[[ModelSpec, Path], None], tmp_path: Path) -> None:
    check(load_registry().models[name], tmp_path)
