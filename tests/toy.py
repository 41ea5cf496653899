"""A torch-free processor and pipeline for the toy model: what runs on any engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from cambrian.data import Processor
from cambrian.errors import NotFound
from cambrian.pipeline import Pipeline
from cambrian.runtime import Array


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    vocab_size: int = 19
    n_embd: int = 16
    n_head: int = 2
    n_positions: int = 32


class ToyProcessor(Processor):
    @classmethod
    def load(cls, folder: Path) -> Self:
        if not (folder / "toy.json").is_file():
            raise NotFound(f"{folder} has no toy.json.")
        return cls()

    def save(self, folder: Path) -> None:
        (folder / "toy.json").write_text(json.dumps({"toy": True}))


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    max_new_tokens: int = 6


class ToyPipeline(Pipeline):
    options: ClassVar[type[Any]] = ToyOptions

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        return [self.greedy([list(item)])[0].tolist() for item in inputs]

    def probe(self) -> Mapping[str, Array]:
        return {"tokens": self.greedy([[1, 2, 3, 4], [5, 6, 7, 8]])}

    def greedy(self, prompts: list[list[int]]) -> Array:
        ids = np.array(prompts, np.int64)
        state, out = None, []
        for past in range(self.defaults.max_new_tokens):
            given = decoder_inputs(ids, 0 if past == 0 else len(prompts[0]) + past - 1)
            outputs, state = self.session.run("decoder", given, state)
            ids = outputs["logits"][:, -1].argmax(-1)[:, None].astype(np.int64)
            out.append(ids)
        return np.concatenate(out, 1)


def decoder_inputs(ids: Array, past: int, padding: Sequence[int] = ()) -> dict[str, Array]:
    """What the decoder takes for `ids` after `past` tokens; row i starts with padding[i] pads."""
    batch, sequence = ids.shape
    mask = np.ones((batch, past + sequence), np.int64)
    for row, pads in enumerate(padding):
        mask[row, :pads] = 0
    position = np.maximum(mask.cumsum(-1) - 1, 0)[:, past:]
    return {"input_ids": ids, "attention_mask": mask, "position_ids": position}
