"""The trainer: the built-in loop over a model with adapters in it."""

from __future__ import annotations

import dataclasses

from cambrian import Job, LoopTrainer, Model, Outcome, UsageError
from cambrian_lora.adapters import adapt, adaptable, matches, merged, trained_whole


class LoraTrainer(LoopTrainer):
    """Trains adapters alone; what it publishes has them merged, and is an ordinary model."""

    def check(self, job: Job) -> None:
        """Refuse a model without weights to adapt, and patterns that match nothing."""
        super().check(job)
        if {*job.fresh} >= {*job.model.state_dict()}:
            raise UsageError(
                "LoRA adapts weights that exist, and this run begins with none; train a "
                "checkpoint's folder, or give one with --base."
            )
        config = job.recipe.trainer
        for pattern in config.whole:
            require("whole", pattern, [name for name, _ in job.model.named_parameters()])
        whole = trained_whole(job.model, config, job.fresh)
        for pattern in config.targets:
            require("targets", pattern, list(adaptable(job.model, whole)))

    def fit(self, job: Job) -> Outcome:
        """Train the adapters to the last step, or until told to stop."""
        adapt(job.model, job.recipe.trainer, job.fresh, job.recipe.train.seed)

        def publish(model: Model) -> None:
            with merged(model):
                job.publish(model)

        outcome = super().fit(dataclasses.replace(job, publish=publish))
        sizes = {True: 0, False: 0}
        for parameter in job.model.parameters():
            sizes[parameter.requires_grad] += parameter.numel()
        counts = {"parameters_trained": sizes[True], "parameters_frozen": sizes[False]}
        return dataclasses.replace(outcome, metrics={**outcome.metrics, **counts})


def require(key: str, pattern: str, names: list[str]) -> None:
    """UsageError for a pattern that matches none of the names."""
    if not any(matches(name, [pattern]) for name in names):
        shown = f"it could be '{names[len(names) // 2]}', say" if names else "this model has none"
        raise UsageError(f"trainer.{key}: there is no '{pattern}' here to train; {shown}.")
