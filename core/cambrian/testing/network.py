"""No check may reach the network: this process is seen by an audit hook when it tries."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

_watchers: list[list[str]] = []


@contextmanager
def offline() -> Generator[None]:
    """Refuse connections and look-ups beyond this machine; AssertionError at the end if there was
    one, even if whoever tried it went on."""
    _install()
    tried: list[str] = []
    _watchers.append(tried)
    try:
        yield
    finally:
        _watchers.remove(tried)
        if tried:
            raise AssertionError(f"reaches for the network: {', '.join(sorted({*tried}))}")


@cache
def _install() -> None:
    sys.addaudithook(_audit)  # for the life of the process: there is no way to take one back


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watchers or event not in ("socket.connect", "socket.getaddrinfo"):
        return
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # no tuple: a Unix socket
    else:
        host = arguments[0]
    if host is None or _own(str(host)):
        return
    for tried in _watchers:
        tried.append(str(host))
    raise OSError(f"the conformance kit allows no connection to {host}")


def _own(host: str) -> bool:
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
