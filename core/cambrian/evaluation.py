"""How good a model is: its losses and its task's figures on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambrian.artifact import MANIFEST, Artifact
from cambrian.checkpoint import Checkpoint
from cambrian.config import Changes, Recipe, apply, read_changes
from cambrian.errors import UsageError
from cambrian.hub import Report
from cambrian.hub.snapshot import silent
from cambrian.loading import checkpoint_in, folder_for, load, make_pipeline
from cambrian.progress import Progress, told, untold
from cambrian.registry import load_registry
from cambrian.runs import RECIPE, TRAIN, Wishes, absolute

if TYPE_CHECKING:
    from cambrian.data import Batches, Prepared, Processor
    from cambrian.pipeline import Pipeline
    from cambrian.scores import Scores


MOST = 500  # examples, or batches, that an export is measured on
ENOUGH = 1 << 14  # labels that weights are fitted to


def evaluate(
    target: str | Path,
    *,
    data: Sequence[str] = (),
    settings: Sequence[str] | Changes = (),
    device: str = "auto",
    fetching: Report = silent,
    progress: Progress = untold,
    **options: Any,
) -> Scores:
    """Measure a model on held-out data: what `data` names, whole, or else the held-out part of
    the data that the checkpoint's run, or its recipe, names.

    A checkpoint is measured by its losses and by its task's own figures (accuracy, BLEU); an
    exported folder, on its engine, by the latter. `options` are the pipeline's; `progress` is told
    how far the measuring is.
    """
    registry = load_registry()
    resolved = registry.resolve(str(target))
    folder = folder_for(resolved, registry, str(target), fetching)
    if not (folder / MANIFEST).is_file():
        checkpoint = checkpoint_in(resolved, registry, folder)
        prepared = held_out(checkpoint, checkpoint.processor(), data, settings)
        return evaluate_checkpoint(checkpoint, prepared, device, progress, options)
    if not data:
        raise UsageError("An exported folder knows no data; name some with --data.")
    spec = registry.pick("architecture", Artifact.open(folder).manifest.architecture)
    opened = load(target, device=device)
    config, recipe = measured_on(opened.config, spec.recipe, data, settings)
    prepared = spec.data.load()(config, recipe, processor=opened.processor, evaluate_only=True)
    pipeline = make_pipeline(spec, prepared.config, folder, opened.processor, opened.session)
    pipeline.progress = progress
    scores = figures(pipeline, prepared, options)
    if scores is None:
        raise UsageError(
            f"An exported {spec.name} model has no figures of its own; measure the checkpoint."
        )
    return scores


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    prepared: Prepared,
    device: str,
    progress: Progress,
    options: Mapping[str, Any],
) -> Scores:
    """The losses over all held-out batches, and the figures of the model's pipeline."""
    from cambrian.runtime.torch import TorchSession
    from cambrian.scores import Scores
    from cambrian.training.loop import mean_metrics, to_device

    spec = checkpoint.spec
    validation, examples = prepared.validation, prepared.examples
    model = replace(checkpoint, config=prepared.config).model()
    session = TorchSession(model, device)
    metrics: dict[str, float] = {}
    if validation is not None:
        batches = (
            to_device(validation.batch(i), session.device)
            for i in told(range(len(validation)), "batches", progress)
        )
        metrics = mean_metrics(model, batches)
        model.eval()
    scores = None
    if examples:
        pipeline = make_pipeline(
            spec, prepared.config, checkpoint.path, prepared.processor, session
        )
        pipeline.progress = progress
        scores = pipeline.score(examples, **{**prepared.scoring, **options})
    elif options:
        raise UsageError(f"Evaluating {spec.name} takes no options; it gives the loss alone.")
    if scores is None and not metrics:
        raise UsageError(
            f"{spec.name} has no loss that says how good it is, and its task has no figures."
        )
    return (
        Scores(metrics)
        if scores is None
        else replace(scores, metrics={**metrics, **scores.metrics})
    )


def held_out(
    checkpoint: Checkpoint,
    processor: Processor,
    data: Sequence[str],
    settings: Sequence[str] | Changes,
) -> Prepared:
    """What `data` names, or else what the checkpoint's run held out; UsageError if it is nothing.

    A checkpoint that no run of ours made is measured on its recipe's data.
    """
    config, recipe = measured_on(*trained_on(checkpoint), data, settings)
    prepared = checkpoint.spec.data.load()(config, recipe, processor=processor, evaluate_only=True)
    return _with_held_out(prepared)


def split(checkpoint: Checkpoint, processor: Processor, data: Sequence[str]) -> Prepared:
    """What `data` names, or else what the checkpoint's run read, in two parts as for training;
    UsageError if nothing is held out."""
    config, recipe = trained_on(checkpoint)
    if data:
        named: dict[str, Any] = {"source": [absolute(source) for source in data], "validation": []}
        config, recipe = apply(config, recipe, {"data": named}, "--data")
    return _with_held_out(checkpoint.spec.data.load()(config, recipe, processor=processor))


def trained_on(checkpoint: Checkpoint) -> tuple[Any, Recipe]:
    """The settings of the checkpoint's run, or of its recipe where no run of ours made it."""
    config, recipe = checkpoint.config, checkpoint.spec.recipe
    file = checkpoint.path / TRAIN / RECIPE
    if file.is_file():
        changes = {k: v for k, v in read_changes(file).items() if k not in ("model", "trainer")}
        config, recipe = apply(config, recipe, changes, str(file))
    return config, recipe


def _with_held_out(prepared: Prepared) -> Prepared:
    if prepared.validation is None and not prepared.examples:
        raise UsageError("There is no held-out data to evaluate on; name some with --data.")
    return prepared


def measuring(
    checkpoint: Checkpoint, processor: Processor, data: Sequence[str], fitted: bool = False
) -> tuple[Callable[[Pipeline], Mapping[str, float]], Callable[[Pipeline], None]]:
    """For an export that rounds: a function that gives a pipeline's figures on held-out data, and
    one that runs a pipeline on other data, for weights to be `fitted` to. These are two parts of
    the data then, and else all of it is held out.

    UsageError if the checkpoint knows no such data and none is named, or the task has no figure
    that tells its quality.
    """
    spec = checkpoint.spec
    if not spec.pipeline.load().tolerated:
        raise UsageError(
            f"{spec.name} has no figure that tells what rounding costs; export it in float16."
        )
    if not data and not (checkpoint.path / TRAIN / RECIPE).is_file():
        raise UsageError(
            "What rounding costs must be measured, and this checkpoint names no held-out data; "
            "name some with --data."
        )
    parts = split if fitted else partial(held_out, settings=())
    prepared = parts(checkpoint, processor, data)

    def measure(pipeline: Pipeline) -> Mapping[str, float]:
        found = figures(pipeline, prepared, {}, MOST)
        measured = {} if found is None else found.metrics
        if missing := pipeline.tolerated.keys() - measured.keys():
            raise UsageError(
                f"The data gives {spec.name} no {min(missing)}, which tells what rounding costs; "
                "name other data with --data."
            )
        return measured

    return measure, partial(run_on, prepared.train)


def run_on(batches: Batches, pipeline: Pipeline) -> None:
    """Run a pipeline on the first ENOUGH labels; UsageError for a task without likelihood."""
    seen = number = 0
    while seen < ENOUGH and number < len(batches):
        found = pipeline.likelihood(batches.batch(number))
        if found is None:
            raise UsageError(
                f"A {type(pipeline).__name__} has no likelihood to fit weights by; export in int8."
            )
        seen, number = seen + found[1], number + 1


def figures(
    pipeline: Pipeline, prepared: Prepared, options: Mapping[str, Any], most: int | None = None
) -> Scores | None:
    """The task's figures on any engine: those of the examples or else, where the task has a
    likelihood, the mean "loss" in nats and its "perplexity"; None if it has neither.

    `most`: how many examples, or batches, are enough.
    """
    from cambrian.scores import Scores

    if prepared.examples:
        examples = prepared.examples if most is None else [*islice(prepared.examples, most)]
        return pipeline.score(examples, **{**prepared.scoring, **options})
    batches = prepared.validation
    total, count = 0.0, 0
    numbers = range(min(len(batches), most or len(batches)) if batches is not None else 0)
    for number in told(numbers, "batches", pipeline.progress):
        assert batches is not None
        found = pipeline.likelihood(batches.batch(number))
        if found is None:
            return None
        total, count = total + found[0], count + found[1]
    if not count:
        return None
    return Scores({"loss": total / count, "perplexity": exp(min(total / count, 700))})


def measured_on(
    config: Any, recipe: Recipe, data: Sequence[str], settings: Sequence[str] | Changes
) -> tuple[Any, Recipe]:
    """The settings that make the data to measure on. What is named is held out and nothing else:
    all of it, whatever the run was trained on."""
    config, recipe = Wishes(settings=settings).grant(config, recipe)
    if data:
        sources = [absolute(source) for source in data]
        named: dict[str, Any] = {"source": sources, "validation": sources}
        whole = {"deduplicate": False} if hasattr(recipe.data, "deduplicate") else {}
        config, recipe = apply(config, recipe, {"data": {**named, **whole}}, "--data")
    return config, recipe
