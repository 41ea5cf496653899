"""The pytest side of the conformance kit: checks as items, and the record of what they found."""

from __future__ import annotations

import datetime
import platform
import tempfile
from collections import defaultdict
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cambrian import __version__
from cambrian.conformance import Conformance, code_sha256, record_file, write_record
from cambrian.discovery import discover
from cambrian.errors import CambrianError
from cambrian.testing.network import offline
from cambrian.testing.plan import LONG, Planned, plan


class Check(pytest.Item):
    """One check; its id is "distribution::subject::check". It uses no fixtures."""

    fixturenames: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, planned: Planned, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.planned = planned
        self.extra_keyword_matches |= {planned.plugin.name, *planned.subject.split()}  # for -k
        self.add_marker("cambrian")
        if planned.name in LONG:
            self.add_marker("cambrian_long")

    def runtest(self) -> None:
        """Run it in a folder of its own, away from the network."""
        with tempfile.TemporaryDirectory(prefix="cambrian-check-") as folder, offline():
            self.planned.run(Path(folder))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What is wrong in a sentence; a traceback only where it is no check that says so."""
        if isinstance(excinfo.value, (AssertionError, CambrianError)) and str(excinfo.value):
            sentence = str(excinfo.value).partition("\nassert ")[
                0
            ]  # pytest adds its own to asserts
            return f"{self.planned.subject}: {sentence}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """What the report's headline says."""
        return self.path, 0, f"{self.planned.subject}: {self.planned.name}"


def node_id(planned: Planned) -> str:
    """How pytest calls a check."""
    return f"{planned.plugin.distribution}::{planned.subject}::{planned.name}"


class Conform:
    """Adds the checks to whatever else pytest collects, and keeps the record."""

    def __init__(self, config: pytest.Config, names: list[str]) -> None:
        self.config = config
        self.names = names
        self.outcomes: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.notes: list[str] = []

    @cached_property
    def planned(self) -> dict[str, Planned]:
        """Every check by its id."""
        try:
            found = [check for name in self.names for check in plan(name)]
        except CambrianError as error:
            raise pytest.UsageError(f"--cambrian: {error}") from error
        where = self.config.getoption("--cambrian-record")
        if where not in (None, "none") and len({check.plugin.label for check in found}) > 1:
            raise pytest.UsageError(
                "--cambrian-record names one file, and these are several plugins"
            )
        return {node_id(check): check for check in found}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> None:
        """Put the checks behind the tests, before -k and -m choose."""
        for name, check in self.planned.items():
            items.append(
                Check.from_parent(session, name=check.name, nodeid=name, planned=check)  # pyright: ignore
            )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a check ended; a test of the same run is not our concern."""
        if report.nodeid not in self.planned or (report.when != "call" and report.passed):
            return
        self.outcomes[report.nodeid] = report.outcome
        if report.failed:
            self.failures[report.nodeid] = str(report.longrepr)[-2000:]

    def pytest_sessionfinish(self) -> None:
        """Write the records of the plugins of which every check ran."""
        where = self.config.getoption("--cambrian-record")
        if hasattr(self.config, "workerinput") or where == "none":
            return  # a worker of pytest-xdist; the records are its controller's
        by_plugin: defaultdict[tuple[str, str], dict[str, Planned]] = defaultdict(dict)
        for name, check in self.planned.items():
            by_plugin[check.plugin.name, check.plugin.distribution][name] = check
        for checks in by_plugin.values():
            self._write(checks, Path(where) if where else None)

    def _write(self, checks: dict[str, Planned], where: Path | None) -> None:
        plugin = next(iter(checks.values())).plugin
        if missing := len(checks.keys() - self.outcomes.keys()):
            if not self.config.getoption("markexpr"):  # who chooses by -m knows
                self.notes.append(f"{plugin.label}: {missing} checks did not run, so no record")
            return
        target = next(
            c.target for c in discover()
            if (c.name, c.distribution) == (plugin.name, plugin.distribution)
        )  # fmt: skip
        beside = record_file(plugin.name, target)
        file = where or beside
        if file is None or beside is None:
            self.notes.append(f"{plugin.label}: it has no file, so no record")
            return
        try:
            record = self._record(checks, code_sha256(beside))
            write_record(file, record)
        except OSError as error:
            self.notes.append(f"{plugin.label}: no record, {file}: {error.strerror}")
            return
        self.notes.append(f"{plugin.label}: {record.shown(record.code_sha256)}, in {file}")

    def _record(self, checks: dict[str, Planned], code: str) -> Conformance:
        plugin = next(iter(checks.values())).plugin
        found: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for name, check in checks.items():
            found[check.subject][check.name] = self.outcomes[name]
        return Conformance(
            plugin=plugin.name,
            distribution=plugin.distribution,
            version=plugin.version,
            code_sha256=code,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            cambrian=__version__,
            torch=metadata.version("torch"),
            python=platform.python_version(),
            platform=platform.platform(),
            checks=dict(found),
            failures={
                f"{checks[n].subject}: {checks[n].name}": text
                for n, text in self.failures.items()
                if n in checks
            },
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where the records are."""
        if self.notes:
            terminalreporter.section("conformance of plugins")
            for note in self.notes:
                terminalreporter.write_line(note)
