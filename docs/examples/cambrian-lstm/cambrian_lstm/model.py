"""An embedding, a layer of LSTM and a head. B batch, S new tokens, H hidden, V vocabulary."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cambrian import Case, Graph, Model, Port, Signature, Update
from cambrian.data import IGNORED
from cambrian.layers import cross_entropy
from cambrian.model import Batch, Losses
from cambrian_lstm import LSTMConfig


class LSTM(Model):
    """A language model whose past is two vectors, however long it was."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        # Without biases a step that reads zeros leaves a state of zeros as it is: that is all that
        # padding before a text needs.
        self.lstm = nn.LSTM(config.embedding_size, config.hidden_size, bias=False, batch_first=True)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (B, S), the mask of all tokens so far (on the left, 0 for padding) and the two
        vectors of the state (B, H), to logits (B, S, V) and the state after the last token."""
        given = attention_mask[:, -input_ids.shape[1] :, None]
        x, (hidden, cell) = self.lstm(self.embedding(input_ids) * given, (hidden[None], cell[None]))
        return self.lm_head(x), hidden[0], cell[0]

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of "labels" (B, S), the next tokens of "input_ids"."""
        x, _ = self.lstm(self.embedding(batch["input_ids"]))
        return {"loss": cross_entropy(self.lm_head(x).flatten(0, 1), batch["labels"].flatten())}

    def updates(self) -> Sequence[Update]:
        return [Update(name="lstm", module=self, loss=self.loss)]

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        return {**self.loss(batch), "count": (batch["labels"] != IGNORED).sum()}

    def derive(self, means: Mapping[str, float]) -> Mapping[str, float]:
        return {"perplexity": math.exp(min(means["loss"], 700))}

    def graphs(self) -> Sequence[Graph]:
        dtype, state = str(self.lm_head.weight.dtype).removeprefix("torch."), ("hidden", "cell")
        shape = ("batch", self.config.hidden_size)
        signature = Signature(
            inputs=(
                Port("input_ids", "int64", ("batch", "sequence")),
                Port("attention_mask", "int64", ("batch", "total")),
                *(Port(name, dtype, shape) for name in state),
            ),
            outputs=(
                Port("logits", dtype, ("batch", "sequence", self.config.vocab_size)),
                *(Port(f"next_{name}", dtype, shape) for name in state),
            ),
            state={f"next_{name}": name for name in state},
        )
        return [Graph(name="decoder", module=self, signature=signature, last={"logits": 1})]

    def cases(self) -> Iterator[Case]:
        """Batches of 1, 2 and 5; short and long; padded or not; cold, and after other tokens."""
        for batch, lengths in itertools.product((1, 2, 5), ((1,), (17,), (5, 1), (5, 130))):
            for padding in {0, (batch > 1) * (lengths[0] - 1)}:
                ids = np.random.default_rng(0).integers(
                    self.config.vocab_size, size=(batch, sum(lengths))
                )
                starts = np.linspace(0, padding, batch).astype(np.int64)[:, None]
                mask = (np.arange(ids.shape[1]) >= starts).astype(np.int64)
                calls = [
                    {"input_ids": ids[:, end - length : end], "attention_mask": mask[:, :end]}
                    for length, end in zip(lengths, itertools.accumulate(lengths), strict=True)
                ]
                name = f"batch={batch} lengths={lengths}" + " padded" * (padding > 0)
                yield Case(name, tuple(("decoder", call) for call in calls))
