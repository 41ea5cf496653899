"""The conformance kit on trainers, exporters and engines: every check can fail, the good pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import defects_of_engines
import defects_of_exporters
import defects_of_trainers
from cambrian.errors import CambrianError
from cambrian.registry import load_registry
from cambrian.testing import EXPORTER_CHECKS, RUNTIME_CHECKS, TRAINER_CHECKS
from cambrian.testing.network import offline
from defect import Defect
from installed import TESTS, forget, install

KINDS: dict[str, tuple[Any, tuple[Callable[..., None], ...]]] = {
    "trainers": (defects_of_trainers, TRAINER_CHECKS),
    "exporters": (defects_of_exporters, EXPORTER_CHECKS),
    "runtimes": (defects_of_engines, RUNTIME_CHECKS),
}
OTHERS = "bert,cnn,gan,t5,vae"  # one family is enough: it has state, and no exporter refuses it


def checks(kind: str) -> dict[str, Callable[..., None]]:
    return {check.__name__.removeprefix("check_"): check for check in KINDS[kind][1]}


@pytest.fixture(scope="module")
def specs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Callable[..., None]], dict[str, Any]]]:
    """The checks of a kind, and the good one and the defective ones, installed."""
    site = tmp_path_factory.mktemp("site")
    install(site, KINDS[request.param][0].__name__)
    places = [str(site), str(TESTS)]
    with pytest.MonkeyPatch.context() as patch:
        for place in places:
            patch.syspath_prepend(place)
        patch.setenv("PYTHONPATH", os.pathsep.join(places))
        patch.setenv("CAMBRIAN_DISABLE_PLUGINS", OTHERS)
        forget()
        yield checks(request.param), dict(getattr(load_registry(), request.param))
    forget()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("specs", "found"),
    [
        pytest.param(kind, each, id=f"{kind}-{each.name}")
        for kind in KINDS
        for each in KINDS[kind][0].DEFECTS.values()
    ],
    indirect=["specs"],
)
def test_a_defect_is_caught(
    specs: Any,
    found: Defect,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))  # one of them leaves things about
    by_name, installed = specs
    with pytest.raises((AssertionError, CambrianError, OverflowError)) as caught, offline():
        by_name[found.check](installed[found.name], tmp_path)
    caught.match(found.says)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("specs", "check"),
    [(kind, name) for kind in KINDS for name in checks(kind)],
    indirect=["specs"],
)
def test_the_good_one_passes(specs: Any, check: str, tmp_path: Path) -> None:
    by_name, installed = specs
    with offline():
        by_name[check](installed["good"], tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_has_a_defect(kind: str) -> None:
    assert checks(kind).keys() == {each.check for each in KINDS[kind][0].DEFECTS.values()}
