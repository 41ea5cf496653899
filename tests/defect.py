"""What a defect is, for the tests of the conformance kit: things that are good but for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Defect(NamedTuple):
    """What is wrong with the thing of that name, which check must catch it, a pattern of what that
    check says, and the fields of the spec that bring it about."""

    name: str
    what: str
    check: str
    says: str
    changes: Mapping[str, Any]
