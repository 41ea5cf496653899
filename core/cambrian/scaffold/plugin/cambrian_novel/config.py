"""Settings of the model and of its data. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NovelConfig:
    """A multilayer perceptron.

    num_features: numbers of a point. num_labels: classes. Both come from the data.

    Raises ValueError where values cannot make a model.
    """

    num_features: int = 2
    num_labels: int = 2
    hidden_size: int = 64
    num_hidden_layers: int = 2

    def __post_init__(self) -> None:
        for name in ("num_features", "num_labels", "hidden_size", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class PointData:
    """source, validation: files of points, one a line, numbers and then the number of its class,
    between commas; without a source, two spirals.
    validation_fraction: how much is held out where no validation is given.
    """

    source: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    validation_fraction: float = 0.2
