"""Gives pytest `--cambrian NAME`. Every pytest of every environment that Cambrian is installed in
imports this file, so it does nothing and imports nothing until it is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("cambrian", "conformance of Cambrian's plugins")
    group.addoption(
        "--cambrian",
        metavar="NAME",
        action="append",
        default=[],
        help="check the installed plugin or distribution NAME against Cambrian's contracts, and "
        "write conformance.json beside its code; repeatable",
    )
    group.addoption(
        "--cambrian-record",
        metavar="FILE",
        help="write the record there instead; 'none': nowhere",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Markers; and the kit, where it is asked for."""
    if names := config.getoption("--cambrian"):
        config.addinivalue_line("markers", "cambrian: a check of the conformance kit")
        config.addinivalue_line("markers", "cambrian_long: such a check that takes long")
        from cambrian.testing.session import Conform

        config.pluginmanager.register(Conform(config, names), "cambrian-conformance")
