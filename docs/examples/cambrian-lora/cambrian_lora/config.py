"""Settings of LoRA."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The run's section [trainer].

    rank, alpha: a matrix W acts as W + BA * alpha / rank, where BA has this rank.
    targets: name patterns of the linear layers to adapt. A layer that shares its matrix with
        something else, such as an output layer with the embedding, is left as it is.
    whole: name patterns of parameters to train as they are, beside those that begin fresh (the
        head of a new classifier).

    Raises ValueError where values cannot make an adapter.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("*",)
    whole: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < float("inf"):
            raise ValueError("rank is at least 1, and alpha is positive")
