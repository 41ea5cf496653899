"""Exporters with one defect each, made from the ONNX one: what the conformance kit must catch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cambrian import ExporterSpec, GraphFile, Model, Ref, Runtime, RuntimeSpec, hookimpl
from cambrian_onnx.exporter import OnnxExporter
from defect import Defect

DEFECTS: dict[str, Defect] = {}
EXPORTS = itertools.count()
LATEST: list[Model] = []
GOOD = ExporterSpec(
    name="good", summary="ONNX", format="onnx", exporter=Ref("defects_of_exporters:GoodExporter")
)


def exporter(what: str, check: str, says: str, **changes: Any) -> Any:
    """Note a defective exporter."""

    def note(thing: Any) -> Any:
        name, target = thing.__name__.lower(), f"defects_of_exporters:{thing.__name__}"
        DEFECTS[name] = Defect(name, what, check, says, {"exporter": Ref(target), **changes})
        return thing

    return note


@hookimpl
def register_exporters() -> Iterable[ExporterSpec]:
    yield GOOD
    for each in DEFECTS.values():
        yield replace(GOOD, name=each.name, **each.changes)


@hookimpl
def register_runtimes() -> Iterable[RuntimeSpec]:
    engine: Ref[Any] = Ref("defects_of_exporters:BlindEngine")
    yield RuntimeSpec(name="blind", summary="", formats=("blind",), runtime=engine)


DEFECTS["unread"] = Defect(
    "unread", "a format that no engine opens", "interface", "no installed engine opens scroll",
    {"format": "scroll"},
)  # fmt: skip


class GoodExporter(OnnxExporter):
    pass


@exporter("a precision that there is not among those that round", "interface",
          "rounding names int3, which is no precision")  # fmt: skip
class Inventing(OnnxExporter):
    rounding = ("int3",)


@exporter("a refusal without a reason", "refusals_are_a_sentence", "is no reason in one line")
class Wordless(OnnxExporter):
    def refuses(self, model: Model, precision: str) -> str | None:
        return "" if precision == "float16" else super().refuses(model, precision)


@exporter("whatever precision is asked for", "refusals_are_a_sentence",
          "precision 'float7' is not refused")  # fmt: skip
class Willing(OnnxExporter):
    def refuses(self, model: Model, precision: str) -> str | None:
        return None


@exporter("nothing that it exports", "refusals_are_a_sentence", "it refuses every registered")
class Unwilling(OnnxExporter):
    def refuses(self, model: Model, precision: str) -> str | None:
        return "not today"


@exporter("weights that are changed on the way", "export_leaves_the_model_alone", "changes")
class Changing(OnnxExporter):
    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        found = super().export(model, folder, precision=precision)
        next(model.parameters()).data.mul_(2)
        return found


@exporter("a model left in training mode", "export_leaves_the_model_alone", "in training mode")
class Training(OnnxExporter):
    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        found = super().export(model, folder, precision=precision)
        model.train()
        return found


@exporter("a graph that is left out", "export_leaves_the_model_alone", "it writes \\[\\], and not")
class Partial(OnnxExporter):
    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        super().export(model, folder, precision=precision)
        return {}


class Spoiling(OnnxExporter):
    """Adds to a weight in a precision that is named."""

    spoils = "float32"

    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        weight = next(model.parameters()).data
        weight.mul_(1.01 if precision == self.spoils else 1.0)
        found = super().export(model, folder, precision=precision)
        weight.div_(1.01 if precision == self.spoils else 1.0)
        return found


@exporter("weights that are a hundredth off", "every_export_verifies", "differ")
class Off(Spoiling):
    pass


@exporter("float16 that cannot be written", "every_precision_verifies", "too large")
class Overflowing(OnnxExporter):
    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        if precision == "float16":
            raise OverflowError("too large")
        return super().export(model, folder, precision=precision)


@exporter("a counter among the files", "same_model_same_bytes", "other bytes the second time")
class Counting(OnnxExporter):
    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        (folder / "made.txt").write_text(str(next(EXPORTS)))
        return super().export(model, folder, precision=precision)


@exporter("a file beside the folder", "it_writes_where_it_is_told", "it leaves log.txt beside")
class Littering(OnnxExporter):
    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        (folder.parent / "log.txt").write_text("")
        return super().export(model, folder, precision=precision)


@exporter("files that its engine does not read", "wrong_numbers_are_refused",
          "was exported with wrong weights, and that was not noticed", format="blind")  # fmt: skip
class Blind(OnnxExporter):
    def refuses(self, model: Model, precision: str) -> str | None:
        LATEST[:] = [model]
        return super().refuses(model, precision)


class BlindEngine(Runtime):
    def open(self, folder: Path, device: str) -> Any:
        from cambrian.runtime.torch import TorchSession

        return TorchSession(LATEST[0])
