"""The toy model: one attention layer with cached keys and values, and a stateless generator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import toy
from cambrian.artifact import Artifact, Port, Signature
from cambrian.config import Recipe
from cambrian.exporting.flow import export_model
from cambrian.model import Case, Graph, Model, Update
from cambrian.specs import ModelSpec, Ref
from cambrian_onnx import register_exporters, register_runtimes


class Decoder(nn.Module):
    def __init__(self, config: toy.ToyConfig) -> None:
        super().__init__()
        width = config.n_embd
        self.heads = config.n_head
        self.wte = nn.Embedding(config.vocab_size, width)
        self.wpe = nn.Embedding(config.n_positions, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def mask(self, attention_mask: Tensor, sequence: int, past: int) -> Tensor:
        """Boolean (batch, 1, sequence, past + sequence): who may be seen by whom.

        A padded query sees itself, so that its row has a defined softmax.
        """
        key = torch.arange(past + sequence)
        query = key[past:, None]
        causal = (key <= query) & (attention_mask[:, None] > 0)
        return (causal | (key == query))[:, None]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **past: Tensor
    ) -> tuple[Tensor, ...]:
        batch, sequence = input_ids.shape
        old_key, old_value = past["past_key_values.0.key"], past["past_key_values.0.value"]
        x = self.wte(input_ids) + self.wpe(position_ids)
        parts = self.qkv(x).view(batch, sequence, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mask = self.mask(attention_mask, sequence, old_key.shape[2])
        seen, key, value, _ = torch.onnx.ops.attention(
            parts[0], parts[1], parts[2], mask, old_key, old_value, scale=1 / math.sqrt(8)
        )
        x = x + self.out(seen.transpose(1, 2).reshape(batch, sequence, -1))
        return F.linear(self.norm(x), self.wte.weight), key, value


class Generator(nn.Module):
    """Noise and a class to a small picture."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(3, 8)
        self.project = nn.Linear(8, 32)
        self.up = nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, noise: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        x = self.project(noise + self.label(label)).relu().view(-1, 8, 2, 2)
        picture = self.up(x).tanh()
        return picture, picture.flatten(1).argmax(-1)


DECODER = Signature(
    inputs=(
        Port("input_ids", "int64", ("batch", "sequence")),
        Port("attention_mask", "int64", ("batch", "past + sequence")),
        Port("position_ids", "int64", ("batch", "sequence")),
        Port("past_key_values.0.key", "float32", ("batch", 2, "past", 8)),
        Port("past_key_values.0.value", "float32", ("batch", 2, "past", 8)),
    ),
    outputs=(
        Port("logits", "float32", ("batch", "sequence", 19)),
        Port("present.0.key", "float32", ("batch", 2, "past + sequence", 8)),
        Port("present.0.value", "float32", ("batch", 2, "past + sequence", 8)),
    ),
    state={
        "present.0.key": "past_key_values.0.key",
        "present.0.value": "past_key_values.0.value",
    },
)
GENERATOR = Signature(
    inputs=(Port("noise", "float32", ("batch", 8)), Port("label", "int64", ("batch",))),
    outputs=(
        Port("picture", "float32", ("batch", 3, 4, 4)),
        Port("brightest", "int64", ("batch",)),
    ),
)


class Toy(Model):
    def __init__(self, config: toy.ToyConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)
        self.generator = Generator()

    def updates(self) -> Sequence[Update]:
        return ()

    def graphs(self) -> Sequence[Graph]:
        return (
            Graph(name="decoder", module=self.decoder, signature=DECODER),
            Graph(name="generator", module=self.generator, signature=GENERATOR),
        )

    def cases(self) -> Iterable[Case]:
        random = np.random.default_rng(0)

        def tokens(batch: int, length: int) -> np.ndarray:
            return random.integers(0, 19, (batch, length))

        def call(ids: np.ndarray, past: int = 0, padding: Sequence[int] = ()):
            return "decoder", toy.decoder_inputs(ids, past, padding)

        yield Case("one token", (call(tokens(1, 1)),))
        yield Case("batch 3, length 7", (call(tokens(3, 7)),))
        first, then = tokens(2, 5), tokens(2, 1)
        yield Case("cached", (call(first), call(then, 5), call(tokens(2, 3), 6)))
        pads = (0, 2)
        yield Case("left padding", (call(first, 0, pads), call(then, 5, pads)))
        yield Case("longest", (call(tokens(1, 31)), call(tokens(1, 1), 31)))
        noise = random.standard_normal((5, 8)).astype(np.float32)
        labels = np.array([0, 1, 2, 0, 1])
        yield Case("pictures", (("generator", {"noise": noise, "label": labels}),))


def build(seed: int = 0) -> Toy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Toy(toy.ToyConfig()).eval()


SPEC = ModelSpec(
    name="toy",
    task="toy-generation",
    summary="A model to test exports with.",
    config=toy.ToyConfig,
    model=Ref("toy_model:Toy"),
    processor=Ref("toy:ToyProcessor"),
    data=Ref("toy:nothing"),
    pipeline=Ref("toy:ToyPipeline"),
    recipe=Recipe(),
)


def export(out: Path, model: Toy | None = None, **changes: Any) -> Artifact:
    """Export the toy as the command line would; `changes` replace what `export_model` is given."""
    given: dict[str, Any] = {
        "config": toy.ToyConfig(),
        "exporter": register_exporters()[0],
        "runtime": register_runtimes()[0],
        "config_files": {"config.json": b'{"model_type": "toy"}\n'},
        "weights_sha256": "0" * 64,
    }
    return export_model(model or build(), SPEC, toy.ToyProcessor(), out, **(given | changes))
