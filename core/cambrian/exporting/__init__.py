"""Export: a model's graphs in another format, proved equal to the model before anyone sees them.

`flow` exports, `golden` verifies what was exported, without torch; `parity` is how both compare.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cambrian.artifact import GraphFile

if TYPE_CHECKING:
    from cambrian.model import Model


class Exporter(ABC):
    """Writes one file format.

    `distributions` are the packages whose versions a receipt records; `rounding` are precisions
    so coarse that what they cost the task must be measured on held-out data.
    """

    distributions: ClassVar[tuple[str, ...]] = ()
    rounding: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def refuses(self, model: Model, precision: str) -> str | None:
        """Why this model cannot be written in this precision, or None if it can."""

    @abstractmethod
    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        """Write every graph of `model` (float32, eval mode; left unchanged) below `folder`."""

    @abstractmethod
    def stamp(
        self, folder: Path, graphs: Mapping[str, GraphFile], facts: Mapping[str, str]
    ) -> None:
        """Write `facts` (origin, receipt) into the graphs' files, where the format has room."""
