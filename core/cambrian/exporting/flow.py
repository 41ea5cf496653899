"""From a model to an exported folder that has been proved equal to it, or to no folder at all."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cambrian
from cambrian.artifact import MANIFEST, REJECTED, Artifact, GraphFile, Manifest
from cambrian.data import Processor
from cambrian.errors import Rejected, UsageError
from cambrian.exporting import Exporter, quality
from cambrian.exporting.card import CARD, card
from cambrian.exporting.golden import GOLDEN, Recorder
from cambrian.exporting.parity import (
    Progress,
    compare_probes,
    receipt,
    sweep,
    tolerance_for,
    verdict,
)
from cambrian.files import disk_failure, require_free, sha256, staged_folder
from cambrian.model import Model
from cambrian.pipeline import Pipeline
from cambrian.runtime import Session
from cambrian.runtime.torch import TorchSession
from cambrian.specs import ExporterSpec, ModelSpec, RuntimeSpec

Measure = Callable[[Pipeline], Mapping[str, float]]
Drive = Callable[[Pipeline], None]
DISTRIBUTIONS = ("torch", "numpy")  # whose versions a receipt records, beside the exporter's


@dataclass(frozen=True, kw_only=True)
class _Export:
    """One export: what `export_model` was given, and what the exporter made of the model."""

    model: Model
    rounded: Model
    spec: ModelSpec
    processor: Processor
    config: Any
    exporter: ExporterSpec
    runtime: RuntimeSpec
    config_files: Mapping[str, bytes]
    weights_sha256: str
    precision: str
    device: str
    limit: float
    progress: Progress
    measure: Measure | None
    tolerated: Mapping[str, float]

    def fit(self, exporter: Exporter, drive: Drive | None) -> _Export:
        """The same with the exporter's weights; UsageError if there is nothing to fit them to."""
        if drive is None:
            raise UsageError(f"Weights in {self.precision} must be fitted to data; name some.")
        self.progress(f"fitting weights to {self.precision}")
        rounded = exporter.fit(
            self.model, self.precision, lambda session: drive(self.pipeline(session))
        )
        return replace(self, rounded=rounded)

    def write(self, folder: Path, exporter: Exporter) -> Manifest:
        """Fill the folder with all but what verification adds."""
        graphs = exporter.export(self.rounded, folder, precision=self.precision)
        for name, data in self.config_files.items():
            (folder / name).write_bytes(data)
        self.processor.save(folder)
        return self.describe(folder, graphs, {})

    def describe(
        self, folder: Path, graphs: Mapping[str, GraphFile], found: Mapping[str, Any]
    ) -> Manifest:
        """Write the manifest over the files as they are now; the card is for people to edit."""
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        files = {
            name: sha256(folder / name)
            for name in sorted(names)
            if (folder / name).is_file() and name not in (MANIFEST, CARD)
        }
        manifest = Manifest(
            format=self.exporter.format,
            architecture=self.spec.name,
            task=self.spec.task,
            precision=self.precision,
            graphs=graphs,
            files=files,
            receipt=found,
            cambrian=cambrian.__version__,
        )
        manifest.write(folder / MANIFEST)
        return manifest

    def verify(self, folder: Path, exporter: Exporter) -> tuple[dict[str, Any], str]:
        """Open the folder as users will and hold it to the model, with its weights as the
        precision has them: the receipt, and why it fails.

        Writes the golden vectors on the way.
        """
        reference = TorchSession(self.rounded, self.device)
        candidate = self.runtime.runtime.load()().open(folder, self.device)
        try:
            recorder = Recorder()
            results = sweep(
                self.model.cases(),
                reference,
                candidate,
                self.limit,
                observe=recorder.observe,
                progress=lambda case: self.progress(f"checking {case}"),
            )
            want = self.pipeline(reference).probe()
            probe = None
            if not verdict(results, None, self.precision):  # else it may fail with what is wrong
                probe = compare_probes(want, self.pipeline(candidate).probe())
            recorder.write(folder / GOLDEN, want)
            problem = verdict(results, probe, self.precision)
            found = receipt(results, probe, candidate, self.limit)
            if self.measure is not None:
                self.progress("measuring what the rounding costs")
                before = self.measure(self.pipeline(TorchSession(self.model, self.device)))
                after = self.measure(self.pipeline(candidate))
                found["quality"] = quality.summary(before, after, self.tolerated)
                problem = problem or quality.worse(before, after, self.tolerated)
            found = {
                "passed": not problem,
                **found,
                "fitted": self.rounded is not self.model,
                "weights_sha256": self.weights_sha256,
                "versions": versions((*DISTRIBUTIONS, *exporter.distributions)),
            }
            return found, problem
        finally:
            candidate.close()

    def pipeline(self, session: Session) -> Pipeline:
        """The model's pipeline over a session, with its defaults."""
        return self.spec.pipeline.load()(session, self.processor, self.config)

    def seal(
        self, folder: Path, exporter: Exporter, draft: Manifest, found: Mapping[str, Any], name: str
    ) -> Manifest:
        """Write the receipt into the graphs, the manifest and the card."""
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        facts = {
            "cambrian.version": cambrian.__version__,
            "cambrian.architecture": self.spec.name,
            "cambrian.precision": self.precision,
            "cambrian.weights_sha256": self.weights_sha256,
            "cambrian.receipt_sha256": digest,
            "cambrian.max_abs_diff": f"{found['max_abs_diff']:.3g}",
            "cambrian.argmax_agreement": f"{found['argmax_agreement']:.6g}",
        }
        exporter.stamp(folder, draft.graphs, facts)
        manifest = self.describe(folder, draft.graphs, found)
        (folder / CARD).write_text(card(manifest, self.spec.summary, name), "utf-8")
        return manifest

    def set_aside(
        self, folder: Path, draft: Manifest, found: Mapping[str, Any], aside: Path
    ) -> None:
        """Move the folder to `aside`, without a manifest, so that nothing opens it by mistake."""
        self.describe(folder, draft.graphs, found)
        (folder / MANIFEST).rename(folder / REJECTED)
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)


def export_model(
    model: Model,
    spec: ModelSpec,
    processor: Processor,
    out: Path,
    *,
    config: Any,
    exporter: ExporterSpec,
    runtime: RuntimeSpec,
    config_files: Mapping[str, bytes],
    weights_sha256: str,
    precision: str = "float32",
    force: bool = False,
    device: str = "cpu",
    tolerance: float | None = None,
    progress: Progress = lambda what: None,
    measure: Measure | None = None,
    tolerated: Mapping[str, float] = MappingProxyType({}),
    drive: Drive | None = None,
) -> Artifact:
    """Export `model` to the folder `out` and prove the result equal to it on `runtime`.

    `config_files` are written as they are (config.json, generation_config.json). `tolerance`
    replaces the precision's limit. `progress` is told what goes on. `measure` gives a pipeline's
    figures on held-out data: the export is refused if they are worse than the model's by more
    than is `tolerated`. `drive` runs a pipeline on other data, for precisions whose weights are
    fitted. Whatever fails, and whenever, leaves no `out` and no part of it; UsageError where `out`
    exists and `force` is not given, or where the exporter refuses; Rejected where the result does
    not equal the model: its files are then in `out`.rejected.
    """
    require_free(out, force, "add --force to replace it, or choose another folder.")
    require_ours(out)
    require_ours(beside(out))
    job = _Export(
        model=model,
        rounded=model,
        spec=spec,
        processor=processor,
        config=config,
        exporter=exporter,
        runtime=runtime,
        config_files=config_files,
        weights_sha256=weights_sha256,
        precision=precision,
        device=device,
        limit=tolerance_for(precision, tolerance),
        progress=progress,
        measure=measure,
        tolerated=tolerated,
    )
    if exporter.format not in runtime.formats:
        raise UsageError(f"Runtime '{runtime.name}' cannot open {exporter.format} files.")
    writer = exporter.exporter.load()()
    if reason := writer.refuses(model, precision):
        raise UsageError(f"Cannot export {spec.name} with '{exporter.name}': {reason}.")
    if precision in writer.fitted:
        job = job.fit(writer, drive)
    try:
        with staged_folder(out) as folder:
            job.progress(f"exporting {spec.name}")
            draft = job.write(folder, writer)
            found, problem = job.verify(folder, writer)
            if problem:
                aside = beside(out)
                job.set_aside(folder, draft, found, aside)
                raise Rejected(
                    f"The export does not equal its model: {problem}. Nothing was written to "
                    f"{out}; the files are in {aside} for inspection."
                )
            job.seal(folder, writer, draft, found, out.name)
    except OSError as error:
        raise disk_failure(error, f"{out}") from error
    return Artifact.open(out)


def beside(out: Path) -> Path:
    """Where an export goes that fails; UsageError where nothing can be beside it (".")."""
    if out.name in ("", ".."):
        raise UsageError(f"{out} cannot be replaced as a whole; name a folder that is to be made.")
    return out.with_name(f"{out.name}.rejected")


def require_ours(folder: Path) -> None:
    """Never replace a folder that is no export; UsageError if this is one."""
    if not folder.exists():
        return
    if not folder.is_dir() or (
        any(folder.iterdir())
        and not (folder / MANIFEST).is_file()
        and not (folder / REJECTED).is_file()
    ):
        raise UsageError(
            f"{folder} is no exported folder and will not be replaced; choose another."
        )


def versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python, Cambrian and of those of the distributions that are installed."""
    found = {"python": platform.python_version(), "cambrian": cambrian.__version__}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
