"""The conformance kit: every check can fail, the record says what was found, `plugins` shows it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cambrian
import defects
from cambrian import deprecation
from cambrian.conformance import Conformance, code_sha256, read_record, record_file, write_record
from cambrian.errors import BrokenFile, CambrianError
from cambrian.plugins import Plugin
from cambrian.registry import load_registry
from cambrian.specs import ModelSpec
from cambrian.testing import MODEL_CHECKS
from cambrian.testing.network import offline
from cambrian.testing.plan import LONG
from cambrian.testing.plugins import (
    check_it_states_what_it_supports,
    check_looking_is_light,
    check_row_is_clean,
)
from installed import TESTS, forget, install

TEMPLATE = Path(cambrian.__file__).with_name("scaffold") / "plugin"
CHECKS = {check.__name__.removeprefix("check_"): check for check in MODEL_CHECKS}


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModelSpec]]:
    """The defective architectures, installed."""
    site = tmp_path_factory.mktemp("site")
    install(site, "defects")
    places = [str(site), str(TESTS), str(TEMPLATE)]
    with pytest.MonkeyPatch.context() as patch:
        for place in places:
            patch.syspath_prepend(place)
        patch.setenv("PYTHONPATH", os.pathsep.join(places))
        forget()
        yield dict(load_registry().models)
    forget()


def slow(name: str, check: str) -> Any:
    """A parameter, marked where its check runs whole commands."""
    return pytest.param(name, marks=[pytest.mark.slow] if check == "command_line_round" else [])


@pytest.mark.parametrize("name", [slow(d.name, d.check) for d in defects.DEFECTS.values()])
def test_a_defect_is_caught(name: str, specs: dict[str, ModelSpec], tmp_path: Path) -> None:
    found = defects.DEFECTS[name]
    with pytest.raises((AssertionError, CambrianError), match=found.says), offline():
        CHECKS[found.check](specs[name], tmp_path)


@pytest.mark.parametrize("check", [slow(check, check) for check in CHECKS])
def test_the_good_one_passes(check: str, specs: dict[str, ModelSpec], tmp_path: Path) -> None:
    with offline():
        CHECKS[check](specs["good"], tmp_path)


SHORT = [check for check in CHECKS if check not in LONG | {"export_equals_the_model"}]


@pytest.mark.parametrize("name", defects.UNUSUAL)
def test_what_is_right_and_unusual_passes(
    name: str, specs: dict[str, ModelSpec], tmp_path: Path
) -> None:
    for check in SHORT:
        (tmp_path / check).mkdir()
        CHECKS[check](specs[name], tmp_path / check)


def test_every_check_has_a_defect() -> None:
    assert CHECKS.keys() == {each.check for each in defects.DEFECTS.values()}


HOOK = "import cambrian\n@cambrian.hookimpl\ndef register_trainers():\n    return "
GUESTS = {
    "noisy": ("print('hello')\n" + HOOK + "[]", "cambrian>=0.1", check_row_is_clean, "prints"),
    "breaks": ("1 / 0", "cambrian>=0.1", check_row_is_clean, "ZeroDivisionError"),
    "claims": (
        HOOK + "[cambrian.TrainerSpec(name='loop', summary='', trainer=cambrian.Ref('a:b'))]",
        "cambrian>=0.1", check_row_is_clean, "clash: trainer 'loop' is also registered by builtin",
    ),
    "heavy": ("import numpy\n" + HOOK + "[]", "cambrian>=0.1", check_looking_is_light,
              "imports numpy"),
    "homeless": (HOOK + "[]", "", check_it_states_what_it_supports, "no dependency on cambrian"),
    "vague": (HOOK + "[]", "cambrian", check_it_states_what_it_supports, "depends on any cambrian"),
    "late": (HOOK + "[]", "cambrian>=9", check_row_is_clean,
             "unsupported: made for cambrian >=9, and this is .* pip install 'cambrian>=9'"),
    "early": (HOOK + "[]", "cambrian<0.1", check_row_is_clean,
              "unsupported: made for cambrian <0.1.*pip install --upgrade early"),
}  # fmt: skip


@pytest.mark.parametrize("name", GUESTS)
def test_a_bad_guest_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, requires, check, says = GUESTS[name]
    install(tmp_path / "site", name, source, requires)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(AssertionError, match=says):
        check(Plugin(name=name, distribution=name, version="1.0"), tmp_path)


def test_a_connection_is_noticed_even_if_it_is_swallowed() -> None:
    noticed = pytest.raises(AssertionError, match=r"reaches for the network: 192\.0\.2\.1")
    with noticed, offline(), contextlib.suppress(OSError):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)
    with socket.create_server(("127.0.0.1", 0)) as server, offline():
        socket.create_connection(server.getsockname(), timeout=1).close()


def conform(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """pytest, as the author of a plugin runs it."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONWARNINGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_pytest_checks_and_records(tmp_path: Path) -> None:
    """An entries-only plugin: quick, and one of its two models is wrong."""
    site = tmp_path / "site"
    install(
        site,
        "names",
        HOOK.replace("trainers", "entries") + "[\n"
        "    cambrian.Entry(name='small', architecture='gpt', summary='a small one',\n"
        "                   config={'n_layer': 1, 'n_embd': 32, 'n_head': 2}),\n"
        "    cambrian.Entry(name='odd', architecture='gpt', config={'n_embd': 33, 'n_head': 2})]\n",
    )
    done = conform(site, "--cambrian", "names")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "model odd: summary is empty" in done.stdout
    assert "FAILED names::model odd::settings_make_a_model" in done.stdout
    file = site / "names.conformance.json"
    record = read_record(file)
    assert record is not None and record.version == "1.0"
    assert record.checks["model small"] == {
        "settings_make_a_model": "passed", "it_says_what_it_is": "passed"
    }  # fmt: skip
    assert record.checks["model odd"] == {
        "settings_make_a_model": "failed", "it_says_what_it_is": "failed"
    }  # fmt: skip
    assert record.failures["model odd: it_says_what_it_is"] == "model odd: summary is empty"
    assert (record.count("passed"), record.count("failed")) == (5, 2)
    row = shown(site, "names")
    assert row["conformance"]["checks"] == record.checks and not row["conformance"]["stale"]
    (site / "names.py").write_text((site / "names.py").read_text() + "# changed\n")
    assert shown(site, "names")["conformance"]["stale"]
    file.unlink()
    done = conform(site, "--cambrian", "names", "-k", "small")
    assert done.returncode == 0 and not file.exists()
    assert "did not run, so no record" in done.stdout


def shown(site: Path, name: str) -> dict[str, object]:
    """A plugin's row."""
    done = subprocess.run(
        [sys.executable, "-m", "cambrian", "plugins", "--json"],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    return next(row for row in json.loads(done.stdout)["plugins"] if row["name"] == name)


def test_metadata_that_nobody_can_read_costs_that_plugin(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "umlaut", HOOK + "[]")
    metadata = site / "umlaut-1.0.dist-info" / "METADATA"
    metadata.write_bytes(metadata.read_bytes() + "Author: Jörg\n".encode("latin-1"))
    install(site, "marked", HOOK + "[]", "cambrian>=0.1; platform_system ~= 'Linux'")
    assert shown(site, "umlaut")["status"] in ("ok", "broken")
    assert shown(site, "marked")["status"] == "ok"


def test_a_check_may_be_skipped(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "bare", HOOK + "[cambrian.TrainerSpec(name='z', summary='s', "
            "trainer=cambrian.Ref('a:b'))]")  # fmt: skip
    (tmp_path / "conftest.py").write_text(
        "import pytest\n"
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        "        if 'trainer' in item.nodeid:\n"
        "            item.add_marker(pytest.mark.skip(reason='needs a GPU'))\n"
    )
    done = conform(site, "--cambrian", "bare")
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_record(site / "bare.conformance.json")
    assert record is not None and (record.count("passed"), record.count("skipped")) == (3, 7)
    assert record.shown(record.code_sha256).startswith("3/3, 7 skipped, cambrian ")


def test_one_file_holds_one_record(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    done = conform(site, "--cambrian", "cambrian", "--cambrian-record", "one.json")
    assert done.returncode == 4 and "these are several plugins" in done.stderr


def test_an_unknown_plugin_is_one_sentence(tmp_path: Path) -> None:
    done = conform(tmp_path / "site", "--cambrian", "gtp")
    assert done.returncode == 4
    assert "No plugin 'gtp' is installed. Did you mean 'gpt'?" in done.stderr
    assert "Traceback" not in done.stderr


RECORD = Conformance(
    plugin="x", distribution="x", version="1", code_sha256="0", date="2026-01-02T03:04:05+00:00",
    cambrian="0.1.0", torch="2", python="3", platform="p",
    checks={"plugin x": {"a": "passed", "b": "failed", "c": "skipped"}},
)  # fmt: skip


def test_a_record_is_read_as_written(tmp_path: Path) -> None:
    write_record(tmp_path / "conformance.json", RECORD)
    assert read_record(tmp_path / "conformance.json") == RECORD
    assert RECORD.shown("0") == "1/2, 1 skipped, cambrian 0.1.0, 2026-01-02"
    assert RECORD.shown("1").startswith("stale")
    assert read_record(tmp_path / "nothing.json") is None


@pytest.mark.parametrize("content", [b"", b"[]", b'{"plugin": "x"}', b"\xff", b"[" * 10**5])
def test_a_malformed_record_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "conformance.json").write_bytes(content)
    with pytest.raises(BrokenFile, match="is no record of checks"):
        read_record(tmp_path / "conformance.json")


def test_a_record_of_any_size_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "conformance.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(BrokenFile, match="more than"):
        read_record(tmp_path / "conformance.json")


def test_code_is_known_by_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("2")
    record = tmp_path / "conformance.json"
    first = code_sha256(record)
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    renamed = code_sha256(record)
    (tmp_path / "c.py").write_text("3")
    assert len({first, renamed, code_sha256(record)}) == 3
    (tmp_path / "__init__.py").unlink()
    alone = code_sha256(tmp_path / "a.conformance.json")
    (tmp_path / "c.py").write_text("4")
    assert code_sha256(tmp_path / "a.conformance.json") == alone
    (tmp_path / "__init__.py").write_text("")
    part = code_sha256(tmp_path / "a.conformance.json")
    (tmp_path / "names.toml").write_text("")
    whole = code_sha256(tmp_path / "a.conformance.json")
    assert whole != part and whole == code_sha256(record)  # all of a package, data too
    record.write_text("{}")
    assert code_sha256(record) == whole


def test_where_a_record_lies() -> None:
    gpt = TESTS.parent / "plugins" / "cambrian_gpt"
    assert record_file("gpt", "cambrian_gpt") == gpt / "conformance.json"
    assert record_file("a", "cambrian_gpt:part") == gpt / "a.conformance.json"
    builtin = record_file("builtin", "cambrian.builtin")
    assert builtin == TESTS.parent / "core" / "cambrian" / "builtin.conformance.json"
    assert record_file("x", "sys") is None and record_file("x", "not_imported") is None


def test_an_old_name_warns_and_works() -> None:
    from cambrian import testing

    with pytest.warns(DeprecationWarning, match=r"CHECKS is now cambrian\.testing\.MODEL_CHECKS"):
        assert testing.CHECKS is MODEL_CHECKS
    with pytest.raises(AttributeError, match="no attribute 'CHECKED'"):
        deprecation.moved("cambrian.testing", {})("CHECKED")
