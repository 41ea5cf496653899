"""The Pipeline interface: one task, from what a person gives to what a person wants.

A pipeline talks to a `Session` and a `Processor` in numpy alone, so that the same code serves
torch, ONNX Runtime and whatever engine a plugin brings.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from cambrian.data import Arrays, Processor
from cambrian.progress import Progress, untold
from cambrian.runtime import Array, Session
from cambrian.workload import Sizes, Workload

if TYPE_CHECKING:
    from cambrian.scores import Scores


class Pipeline(ABC):
    """One task on any engine. `options` is a frozen dataclass of what a call may vary.

    inputless: a call without inputs makes something, as many as its options say.
    suffixes: how names of files end that `encode` can fill; empty where it fills any.
    tolerated: by how much each figure that tells the task's quality (of `score`, or "loss") may
        change where weights are rounded; the sign says which way is worse.
    progress: is told how far long work is; by default nobody's.
    """

    options: ClassVar[type[Any]]
    inputless: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = ()
    tolerated: ClassVar[Mapping[str, float]] = MappingProxyType({})
    progress: Progress = staticmethod(untold)

    def __init__(
        self, session: Session, processor: Processor, config: Any, defaults: Any | None = None
    ) -> None:
        """`config` is the architecture's config, `defaults` the options unless a call differs."""
        self.session = session
        self.processor = processor
        self.config = config
        self.defaults = self.options() if defaults is None else defaults

    @classmethod
    def default_options(cls, config: Any) -> Any:
        """The options that suit a model of this config; saved as generation_config.json."""
        return cls.options()

    @classmethod
    def default_sizes(cls, config: Any) -> Sizes:
        """How much work a benchmark gives a model of this config, unless it is told otherwise."""
        return Sizes()

    @abstractmethod
    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """One result (JSON-ready) for each input."""

    def show(self, result: Any) -> str:
        """A result as a person reads it; by default as JSON."""
        return json.dumps(result, ensure_ascii=False)

    def stream(self, item: Any, **options: Any) -> Iterator[str]:
        """What `show` makes of one input's result, in pieces as they come; by default in one."""
        yield self.show(self([item], **options)[0])

    def encode(self, results: Sequence[Any], suffix: str) -> bytes:
        """Results as the content of a file: JSON lines for .json and .jsonl, else what `show`
        makes of each. A pipeline may know more suffixes."""
        lines = suffix in (".json", ".jsonl")
        shown = [json.dumps(r, ensure_ascii=False) if lines else self.show(r) for r in results]
        return ("\n".join(shown) + "\n").encode()

    def score(self, examples: Sequence[tuple[Any, Any]], **options: Any) -> Scores | None:
        """Figures over held-out (input, expected) pairs; None where the task has none."""
        return None

    def likelihood(self, batch: Arrays) -> tuple[float, int] | None:
        """Of a held-out batch, as the architecture's data has it: the negative log-likelihood of
        its labels in nats, summed, and their number; None where the task has none."""
        return None

    def preview(self) -> bytes | None:
        """A picture, as PNG, of what the model can do by now; None where there is none to see.
        Training keeps one beside each evaluation."""
        return None

    def workload(self, sizes: Any) -> Workload | None:
        """What a benchmark times, of these sizes (as `default_sizes` has them); None if nothing.

        UsageError for sizes that the model has no room for.
        """
        return None

    @abstractmethod
    def probe(self) -> Mapping[str, Array]:
        """A small deterministic job whose integer results must be equal on every engine."""
