"""Export: a model's graphs in another format, proved equal to the model before anyone sees them.

`flow` exports, `golden` verifies what was exported, without torch; `parity` is how both compare.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cambrian.artifact import GraphFile

if TYPE_CHECKING:
    from cambrian.model import Model
    from cambrian.runtime import Session


class Exporter(ABC):
    """Writes one file format.

    `distributions` are the packages whose versions a receipt records; `rounding` are precisions
    so coarse that what they cost the task must be measured on held-out data, and `fitted` those
    of them whose weights are made by `fit`.
    """

    distributions: ClassVar[tuple[str, ...]] = ()
    rounding: ClassVar[tuple[str, ...]] = ()
    fitted: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def refuses(self, model: Model, precision: str) -> str | None:
        """Why this model cannot be written in this precision, or None if it can."""

    def fit(self, model: Model, precision: str, drive: Callable[[Session], None]) -> Model:
        """A copy of `model` with weights that the precision can hold, in float32: what is then
        written, and what the files are held to. `drive` runs the model's task on a session, on
        data that the model may have been trained on."""
        return model

    @abstractmethod
    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        """Write every graph of `model` (float32, eval mode; left unchanged) below `folder`."""

    @abstractmethod
    def stamp(
        self, folder: Path, graphs: Mapping[str, GraphFile], facts: Mapping[str, str]
    ) -> None:
        """Write `facts` (origin, receipt) into the graphs' files, where the format has room."""
