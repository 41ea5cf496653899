"""What every exporter must keep. A check exports the small models of the registered architectures,
and raises AssertionError, with a sentence, where something is not kept."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambrian.errors import CambrianError, Rejected
from cambrian.files import sha256
from cambrian.registry import load_registry
from cambrian.specs import ExporterSpec, Ref
from cambrian.testing.commands import cambrian, run
from cambrian.testing.examples import trained_example
from cambrian.testing.exported import (
    accepted,
    example_model,
    exported_example,
    first_accepted,
    refusal,
)

if TYPE_CHECKING:
    from cambrian.artifact import GraphFile
    from cambrian.exporting import Exporter
    from cambrian.model import Model

ExporterCheck = Callable[[ExporterSpec, Path], None]
UNKNOWN = "float7"  # no precision

EXPORT = """
import json, sys
from pathlib import Path
from cambrian import api, load_registry
from cambrian.files import sha256
exporter = load_registry().exporters[sys.argv[1]].exporter.load()()
out = Path("out")
out.mkdir()
exporter.export(api.open_checkpoint(sys.argv[2]).model(), out, precision="float32")
print(json.dumps({p.relative_to(out).as_posix(): sha256(p) for p in out.rglob("*") if p.is_file()}))
"""


def check_interface(spec: ExporterSpec, folder: Path) -> None:
    """The Ref leads to an Exporter that needs nothing to be made, its precisions that cost
    something are known ones, and an installed engine opens its format."""
    from cambrian.exporting import Exporter
    from cambrian.exporting.parity import TOLERANCES

    kind: Any = spec.exporter.load()
    assert isinstance(kind, type) and issubclass(kind, Exporter), (
        f"exporter names {kind!r}, which is no subclass of cambrian.Exporter"
    )
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    assert not missing, f"{kind.__name__} lacks {', '.join(missing)}"
    unknown = {*kind.rounding} - {*TOLERANCES}
    assert not unknown, f"rounding names {min(unknown)}, which is no precision"
    assert spec.summary and spec.format, "summary or format is empty"
    engines = [s.name for s in load_registry().runtimes.values() if spec.format in s.formats]
    assert engines, f"no installed engine opens {spec.format}, so no export could be verified"


def check_refusals_are_a_sentence(spec: ExporterSpec, folder: Path) -> None:
    """Of every architecture and precision it says yes, or why not: one line that ends the sentence
    "Cannot export X with Y: ...". A precision that there is not is refused, and some model is
    accepted in float32."""
    from cambrian.exporting.parity import TOLERANCES

    for name in load_registry().models:
        for precision in (*TOLERANCES, UNKNOWN):
            why = refusal(spec, name, precision)
            assert why is not None or precision != UNKNOWN, (
                f"precision '{UNKNOWN}' is not refused for {name}"
            )
            assert why is None or (why.strip() and len(why.splitlines()) == 1), (
                f"{name} in {precision}: {why!r} is no reason in one line"
            )
            assert not (why or "").endswith("."), (
                f"{why!r} ends with a full stop, and core adds one"
            )
    assert next(accepted(spec), None), "it refuses every registered architecture in float32"


def check_export_leaves_the_model_alone(spec: ExporterSpec, folder: Path) -> None:
    """Afterwards the model has the same tensors and is in eval mode; each of its graphs, and no
    other, has a file in the folder, with the graph's inputs and state."""
    import torch

    name = first_accepted(spec)
    model = copy.deepcopy(example_model(name))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    files = spec.exporter.load()().export(model, folder, precision="float32")
    after = model.state_dict()
    assert before.keys() == after.keys(), f"exporting {name} changes what the model holds"
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert not changed, f"exporting {name} changes {changed[0]}"
    assert not model.training, f"exporting {name} leaves the model in training mode"
    graphs = {graph.name: graph.signature for graph in model.graphs()}
    assert files.keys() == graphs.keys(), f"it writes {sorted(files)}, and not {sorted(graphs)}"
    for key, found in files.items():
        wanted = graphs[key]
        assert (folder / found.file).is_file(), f"graph {key}: there is no file {found.file}"
        assert [p.name for p in found.signature.inputs] == [p.name for p in wanted.inputs], (
            f"graph {key} is given other inputs than the model's"
        )
        assert found.signature.state == wanted.state, f"graph {key} has another state"


def check_every_export_verifies(spec: ExporterSpec, folder: Path) -> None:
    """Whatever it does not refuse it exports to what equals the model, and equals it again when it
    is verified; no case is left out."""
    from cambrian import api

    for name in accepted(spec):
        artifact = exported_example(spec.name, name)
        found = artifact.manifest.receipt
        cases = [case.name for case in example_model(name).cases()]
        assert [case["name"] for case in found["cases"]] == cases, f"{name}: cases were left out"
        assert found["probe"] == "equal", f"{name}: {found['probe']}"
        again = api.verify(artifact.path, device="cpu")
        assert again["passed"], f"{name} does not verify"


def check_every_precision_verifies(spec: ExporterSpec, folder: Path) -> None:
    """The first architecture, in every precision that is not refused: it verifies, or it is refused
    in a sentence and nothing is written. What is rounded coarsely is measured on held-out data."""
    from cambrian import api
    from cambrian.exporting.parity import TOLERANCES

    name = first_accepted(spec)
    checkpoint = trained_example(name).checkpoint
    assert checkpoint is not None
    for precision in TOLERANCES:
        if refusal(spec, name, precision) is not None:
            continue
        out = folder / precision
        try:
            artifact = api.export(
                checkpoint.path, out, format=spec.name, precision=precision, device="cpu"
            )
        except CambrianError as error:
            assert precision != "float32", str(error)
            assert not out.exists(), f"{precision} was refused, and yet there is {out.name}"
            continue
        assert artifact.manifest.precision == precision
        api.verify(out, device="cpu")


def check_same_model_same_bytes(spec: ExporterSpec, folder: Path) -> None:
    """Exported twice, with another model in between, and again by another process, a model gives
    the same files: no time, path, counter or order of a set is in them."""
    name, *others = itertools.islice(accepted(spec), 2)
    other = next(iter(others), name)
    exporter = spec.exporter.load()()
    found: list[Mapping[str, str]] = []
    for number, each in enumerate((name, other, name)):
        out = folder / str(number)
        out.mkdir()
        exporter.export(copy.deepcopy(example_model(each)), out, precision="float32")
        found.append(hashes(out))
    checkpoint = trained_example(name).checkpoint
    assert checkpoint is not None
    (folder / "elsewhere").mkdir()
    done = run(folder / "elsewhere", "-c", EXPORT, spec.name, str(checkpoint.path))
    assert done.returncode == 0, " ".join(done.stderr.split())[-500:]
    found.append(json.loads(done.stdout.splitlines()[-1]))
    for which, again in (("the second time", found[2]), ("in another process", found[3])):
        assert found[0].keys() == again.keys(), f"{name} gives other files {which}"
        differ = [file for file, value in found[0].items() if again[file] != value]
        assert not differ, f"{name}: {differ[0]} has other bytes {which}"


def hashes(folder: Path) -> dict[str, str]:
    """Each file's sha256."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def check_it_writes_where_it_is_told(spec: ExporterSpec, folder: Path) -> None:
    """`cambrian export` adds its folder, with no file that the manifest does not name, and nothing
    beside it."""
    from cambrian.artifact import MANIFEST, Artifact
    from cambrian.card import CARD

    checkpoint = trained_example(first_accepted(spec)).checkpoint
    assert checkpoint is not None
    before = {*folder.iterdir()} | {folder / "home"}
    cambrian(folder, "export", str(checkpoint.path), "out", "--format", spec.name)
    beside = {*folder.iterdir()} - before - {folder / "out"}
    assert not beside, f"it leaves {min(beside).name} beside the folder that it was to write"
    manifest = Artifact.open(folder / "out").manifest
    unnamed = hashes(folder / "out").keys() - manifest.files.keys() - {MANIFEST, CARD}
    assert not unnamed, f"{min(unnamed)} is in the folder, and not in {MANIFEST}"


class _Given(Ref[Any]):
    """A Ref to what is at hand."""

    def load(self) -> Any:
        return GIVEN[self.target]


GIVEN: dict[str, type[Exporter]] = {}


def check_wrong_numbers_are_refused(spec: ExporterSpec, folder: Path) -> None:
    """Where the weights exported are not quite the model's, there is no export: its files stay
    aside, without a manifest. So the engine computes with what the files hold."""
    from cambrian.artifact import MANIFEST
    from cambrian.exporting.flow import export_model
    from cambrian.loading import choose_runtime

    kind: type[Exporter] = spec.exporter.load()

    class Wrong(kind):
        """Exports another model than it is given."""

        def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
            return super().export(spoilt(model), folder, precision=precision)

    GIVEN[spec.name] = Wrong
    name = first_accepted(spec)
    checkpoint = trained_example(name).checkpoint
    assert checkpoint is not None
    out = folder / "out"
    try:
        export_model(
            checkpoint.model(),
            checkpoint.spec,
            checkpoint.processor(),
            out,
            config=checkpoint.config,
            exporter=replace(spec, exporter=_Given(spec.name)),
            runtime=choose_runtime(load_registry(), spec.format),
            config_files={},
            weights_sha256="0" * 64,
        )
    except Rejected:
        assert not out.exists(), "what was refused was left in place"
        aside = out.with_name("out.rejected")
        assert aside.is_dir() and not (aside / MANIFEST).exists(), "what was refused can be opened"
        return
    raise AssertionError(f"{name} was exported with wrong weights, and that was not noticed")


def spoilt(model: Model) -> Model:
    """A copy in which the first number of each parameter is wrong."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.view(-1)[0] += 1.0
    return model


EXPORTER_CHECKS: tuple[ExporterCheck, ...] = (
    check_interface,
    check_refusals_are_a_sentence,
    check_export_leaves_the_model_alone,
    check_every_export_verifies,
    check_every_precision_verifies,
    check_same_model_same_bytes,
    check_it_writes_where_it_is_told,
    check_wrong_numbers_are_refused,
)
