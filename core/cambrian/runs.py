"""A run: from a name and settings to a trained checkpoint, and on from where one stopped.

OUT/         the checkpoint: the best by held-out loss, or the last without held-out data
             and, of a model that makes pictures, preview.png, a contact sheet
OUT/train/   run.json, recipe.toml, data.json, metrics.jsonl, loss.svg, step-NNNNNNNN/,
             previews/step-NNNNNNNN.png
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import tomli_w

import cambrian
from cambrian.card import checkpoint_card
from cambrian.checkpoint import (
    GENERATION,
    Checkpoint,
    keep_fitting,
    save_description,
    save_weights,
)
from cambrian.config import Changes, Recipe, apply, as_changes, parse_settings, read_changes
from cambrian.errors import CambrianError, NotFound, UsageError
from cambrian.files import read_json, require_free, write_bytes, write_json
from cambrian.loading import checkpoint_in, folder_for, open_checkpoint
from cambrian.registry import Registry, load_registry
from cambrian.specs import LOOP, ModelSpec

if TYPE_CHECKING:
    from cambrian.data import Prepared, Processor
    from cambrian.model import Model
    from cambrian.training import Job, Outcome

TRAIN = "train"
RUN = "run.json"
RECIPE = "recipe.toml"
DATA = "data.json"
PREVIEWS = "previews"
PREVIEW = "preview.png"
CONTENT = "content_sha256"  # of a data summary

Report = Callable[[Mapping[str, Any]], None]


def silent(event: Mapping[str, Any]) -> None:
    """Report nothing."""


def never() -> bool:
    """Do not stop."""
    return False


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished or stopped run: its checkpoint (None if nothing was published) and figures."""

    folder: Path
    checkpoint: Checkpoint | None
    complete: bool
    step: int
    metrics: Mapping[str, Any]


def train(
    target: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    data: Sequence[str] = (),
    validation: Sequence[str] = (),
    config: str | Path | None = None,
    settings: Sequence[str] | Changes = (),
    trainer: str = LOOP,
    force: bool = False,
    report: Report = silent,
    stop: Callable[[], bool] = never,
) -> Trained:
    """Train `target` into the folder `out`.

    An architecture, or an entry without weights, is trained from scratch; anything with weights
    is trained further. With `base`, a checkpoint or a named model, an architecture begins with
    that one's processor, sizes and whatever weights fit it by name and shape; `report` is told
    what was kept and what is fresh. `settings` are "key=value" in TOML syntax or changes by
    section, stronger than the file `config`, which is stronger than the recipe.
    """
    out = Path(out)
    registry = load_registry()
    require_free(out, force, "give another folder, --force to replace it, or --resume to go on.")
    wishes = Wishes(file=config, settings=settings, data=data, validation=validation)
    start = settle(registry, str(target), trainer, wishes, base, report=report)
    if start.checkpoint is not None and start.checkpoint.path.resolve() == out.resolve():
        raise UsageError(f"{out} cannot be trained into itself; give another folder.")
    require_run(out)
    job = prepare(registry, start, out, report, stop)
    remove_run(out, registry.models.values())
    recipe = tomli_w.dumps(as_changes(start.config, start.recipe))
    write_bytes(out / TRAIN / RECIPE, recipe.encode())
    record = {"target": start.target, "trainer": trainer, "base": start.base}
    write_json(out / TRAIN / RUN, record)
    return fit(registry, start, out, job)


def resume(
    out: str | Path, *, report: Report = silent, stop: Callable[[], bool] = never
) -> Trained:
    """Go on with a run that was stopped or killed, from its last saved state."""
    out = Path(out)
    if not (out / TRAIN / RUN).is_file() or not (out / TRAIN / RECIPE).is_file():
        raise NotFound(
            f"{out} holds no run to resume; start one with cambrian train NAME -o {out}."
        )
    registry = load_registry()
    record = read_json(out / TRAIN / RUN)
    wishes = Wishes(file=out / TRAIN / RECIPE)
    target, trainer = str(record["target"]), str(record["trainer"])
    start = settle(registry, target, trainer, wishes, record.get("base"), report=report)
    job = prepare(registry, start, out, report, stop)
    require_same_data(out, job.data.summary)
    require_same_processor(out, job.data.processor)
    return fit(registry, start, out, job)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a caller sets, weakest first: a file, settings, and sources of data."""

    file: str | Path | None = None
    settings: Sequence[str] | Changes = ()
    data: Sequence[str] = ()
    validation: Sequence[str] = ()

    def grant(self, config: Any, recipe: Recipe) -> tuple[Any, Recipe]:
        """Apply them."""
        if self.file is not None:
            config, recipe = apply(config, recipe, read_changes(Path(self.file)), str(self.file))
        changes = self.settings
        if not isinstance(changes, Mapping):
            changes = parse_settings(changes, config, recipe)
        config, recipe = apply(config, recipe, changes, "--set")
        for key in ("tokenizer", "extractor"):
            named = getattr(recipe.data, key, "")
            if named and (place := absolute(named)) != named:
                config, recipe = apply(config, recipe, {"data": {key: place}}, "--set")
        named = {"source": self.data, "validation": self.validation}
        for key, given in named.items():
            if sources := given or getattr(recipe.data, key, ()):
                change = {"data": {key: [absolute(source) for source in sources]}}
                config, recipe = apply(config, recipe, change, "--data")
        return config, recipe


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run starts from, with every setting decided.

    checkpoint: what the target names, if that has weights, or else what `base` names.
    """

    target: str
    trainer: str
    base: str | None
    spec: ModelSpec
    config: Any
    recipe: Recipe
    checkpoint: Checkpoint | None


def settle(
    registry: Registry,
    target: str,
    trainer: str,
    wishes: Wishes,
    base: str | Path | None = None,
    *,
    report: Report = silent,
) -> Start:
    """Decide a run's settings: the recipe, the entry's differences, the base's config, the
    trainer's own, the caller's wishes."""
    resolved = registry.resolve(target)
    own = resolved.folder is not None or resolved.uri is not None
    if own and base is not None:
        raise UsageError(
            f"'{target}' has weights of its own; with --base, name an architecture or a model "
            "without weights (see `cambrian list`)."
        )
    checkpoint = None
    if own:
        folder = folder_for(resolved, registry, target, report)
        checkpoint = checkpoint_in(resolved, registry, folder)
        spec, config = checkpoint.spec, checkpoint.config
        recipe = spec.fine_tuning or spec.recipe
    else:
        config, recipe = registry.settings(resolved)
        spec = resolved.spec
        assert spec is not None  # what is neither a folder nor an address has an architecture
    if base is not None:
        base = named_for_good(registry, str(base))
        checkpoint = open_checkpoint(base, registry, report)
        require_family(checkpoint, spec)
        config = carried_over(checkpoint.config, config)
        recipe = spec.fine_tuning or spec.recipe
    if checkpoint is not None and resolved.entry is not None:
        config, recipe = apply(config, recipe, resolved.entry.recipe, resolved.entry.name)
    config, recipe = registry.pick("trainer", trainer).settings(config, recipe)
    config, recipe = wishes.grant(config, recipe)
    return Start(
        target=named_for_good(registry, target),
        trainer=trainer,
        base=base,
        spec=spec,
        config=config,
        recipe=recipe,
        checkpoint=checkpoint,
    )


def named_for_good(registry: Registry, target: str) -> str:
    """A folder by its whole path, so that a run can be resumed from elsewhere."""
    folder = registry.resolve(target).folder
    return target if folder is None else str(folder.resolve())


def require_family(base: Checkpoint, spec: ModelSpec) -> None:
    """UsageError for a base of another family, whose weights would mean something else."""
    if (base.spec.model_type or base.spec.name) != (spec.model_type or spec.name):
        raise UsageError(
            f"{base.path} is a {base.spec.name} model, which {spec.name} cannot begin with; begin "
            "with a model of the same family."
        )


def carried_over(base: Any, config: Any) -> Any:
    """The config with the base's values wherever both have a field of that name, save those that
    say what its data were (`field(metadata={"of_data": True})`)."""
    names = {f.name for f in dataclasses.fields(base)}
    shared = [f for f in dataclasses.fields(config) if f.name in names]
    kept = {f.name: getattr(base, f.name) for f in shared if not f.metadata.get("of_data")}
    return dataclasses.replace(config, **kept)


def absolute(source: str) -> str:
    """Make a path absolute, so that a run can be resumed from elsewhere; leave names alone."""
    path = Path(source)
    is_path = path.exists() or any(char in source for char in "*?[")
    return str(path.absolute()) if is_path and source != "-" else source


def prepare(
    registry: Registry, start: Start, out: Path, report: Report, stop: Callable[[], bool]
) -> Job:
    """Find the trainer, prepare the data, build the model; writes nothing."""
    import torch

    from cambrian.training import Job

    spec, recipe = start.spec, start.recipe
    trainer = registry.pick("trainer", start.trainer).trainer.load()()
    processor = start.checkpoint.processor() if start.checkpoint is not None else None
    prepared = spec.data.load()(start.config, recipe, processor=processor)
    config, fresh = prepared.config, ()
    if start.checkpoint is not None and start.base is None:
        model = dataclasses.replace(start.checkpoint, config=config).model()
    else:
        torch.manual_seed(recipe.train.seed)
        model = spec.model.load()(config)
        fresh = tuple(model.state_dict())
    if start.checkpoint is not None and start.base is not None:
        tensors = start.checkpoint.tensors(spec, config)
        kept = keep_fitting(model, tensors, start.checkpoint.path)
        fresh = kept.fresh
        report({"base": start.base, **dataclasses.asdict(kept)})
    job = Job(
        model=model,
        data=prepared,
        recipe=recipe,
        folder=out / TRAIN,
        publish=lambda model: save_weights(out, spec, config, model),
        fresh=fresh,
        observe=observer(spec, prepared, recipe, out),
        report=report,
        stop=stop,
    )
    trainer.check(job)
    return job


def observer(
    spec: ModelSpec, prepared: Prepared, recipe: Recipe, out: Path
) -> Callable[[Model, int], Mapping[str, float]]:
    """What keeps a picture of the model as it is trained, where its pipeline draws one, and
    measures it where train.score asks for that."""
    from cambrian.runtime.torch import TorchSession

    def observe(model: Model, step: int) -> Mapping[str, float]:
        session = TorchSession(model, str(next(model.parameters()).device))
        pipeline = spec.pipeline.load()(session, prepared.processor, prepared.config)
        if (picture := pipeline.preview()) is not None:
            write_bytes(out / TRAIN / PREVIEWS / f"step-{step:08d}.png", picture)
            write_bytes(out / PREVIEW, picture)
        if not (recipe.train.score and prepared.examples):
            return {}
        scores = pipeline.score(prepared.examples, **prepared.scoring)
        return scores.metrics if scores is not None else {}

    return observe


def fit(registry: Registry, start: Start, out: Path, job: Job) -> Trained:
    """Describe the model in its folder and let the trainer fit it."""
    from cambrian.training.state import remove_leftovers

    trainer = registry.pick("trainer", start.trainer).trainer.load()()
    remove_leftovers(out)
    record_data(out, job.data.summary)
    save_description(out, start.spec, job.data.config, job.data.processor, cambrian.__version__)
    save_generation(out, start.spec, job.data.config)
    return conclude(registry, start, out, job.data.summary, trainer.fit(job))


def remove_run(out: Path, specs: Iterable[ModelSpec]) -> None:
    """Remove what an earlier run left: its record first, then its weights, which may have been of
    another architecture and so of another name, and its state."""
    (out / TRAIN / RUN).unlink(missing_ok=True)
    (out / PREVIEW).unlink(missing_ok=True)
    for name in {spec.weights_file for spec in specs}:
        (out / name).unlink(missing_ok=True)
    if (out / TRAIN).exists():
        shutil.rmtree(out / TRAIN)


def require_run(out: Path) -> None:
    """Never replace what is no run of ours; UsageError if `out` holds something else."""
    if out.is_dir() and any(out.iterdir()) and not (out / TRAIN / RECIPE).is_file():
        raise UsageError(f"{out} is no run and will not be replaced; choose another folder.")


def require_same_processor(out: Path, processor: Processor) -> None:
    """A resumed run must go on with the processor that its weights know."""
    with tempfile.TemporaryDirectory() as scratch:
        processor.save(Path(scratch))
        for file in Path(scratch).iterdir():
            kept = out / file.name
            if kept.is_file() and kept.read_bytes() != file.read_bytes():
                raise CambrianError(
                    f"{kept} is not what the run's settings make now, so it cannot go on exactly; "
                    "put back the tokenizer or the base model that it began with."
                )


def save_generation(out: Path, spec: ModelSpec, config: Any) -> None:
    """Write the pipeline's options that this model sets, for other tools to read too."""
    options = msgspec.to_builtins(spec.pipeline.load().default_options(config))
    plain = msgspec.to_builtins(spec.pipeline.load().options())
    chosen = {k: v for k, v in options.items() if v is not None and v != plain[k]}
    write_json(out / GENERATION, chosen)


def record_data(out: Path, summary: Mapping[str, Any]) -> None:
    """Write down what the run trains on."""
    write_json(out / TRAIN / DATA, msgspec.to_builtins(summary))


def require_same_data(out: Path, summary: Mapping[str, Any]) -> None:
    """A resumed run must find the data that it began with."""
    file = out / TRAIN / DATA
    if file.is_file() and read_json(file).get(CONTENT) != summary.get(CONTENT):
        raise CambrianError(
            f"The data of {out} has changed since the run began, so it cannot go on exactly; put "
            "the data back, or start a new run from this folder's weights."
        )


def conclude(
    registry: Registry, start: Start, out: Path, data: Mapping[str, Any], outcome: Outcome
) -> Trained:
    """Write the card and open what was trained."""
    base = f" --base {start.base}" if start.base is not None else ""
    by = f" --trainer {start.trainer}" if start.trainer != LOOP else ""
    command = f"cambrian train {start.target}{base}{by} --config train/recipe.toml -o FOLDER"
    card = checkpoint_card(start.spec, out.resolve().name, data, outcome.metrics, command)
    write_bytes(out / "README.md", card.encode())
    published = (out / start.spec.weights_file).is_file()
    return Trained(
        folder=out,
        checkpoint=Checkpoint.open(out, registry.models.values()) if published else None,
        complete=outcome.complete,
        step=outcome.step,
        metrics=outcome.metrics,
    )
