"""T5 checkpoints: the reference's names are ours; what differs is which tensors a file holds.

It may repeat the token embedding under the encoder's and the decoder's name, or hold it there only
(google/madlad400), and the first t5 files have a cross-attention bias that nothing reads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cambrian.errors import BrokenFile
from cambrian_t5.config import T5Config

HEAD, EMBEDDING = "lm_head.weight", "shared.weight"
COPIES = ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight")
STRAY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


class T5Weights:
    """The Weights interface for T5."""

    def load(self, tensors: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
        """The module's own names; BrokenFile where two names of one tensor disagree. The tensors
        may be on the meta device."""
        found = {name: tensor for name, tensor in tensors.items() if name != STRAY}
        for name in COPIES:
            if name in found:
                copy = found.pop(name)
                if not torch.equal(found.setdefault(EMBEDDING, copy), copy):
                    raise BrokenFile(
                        f"The weights hold a '{name}' that differs from '{EMBEDDING}', but T5 has "
                        "one embedding for both; the file is of another architecture."
                    )
        if EMBEDDING in found:
            head = found.setdefault(HEAD, found[EMBEDDING])
            if config.tie_word_embeddings and not torch.equal(head, found[EMBEDDING]):
                raise BrokenFile(
                    f"The weights hold a '{HEAD}' that differs from '{EMBEDDING}', but the config "
                    'ties the two; set "tie_word_embeddings": false in config.json.'
                )
        return found

    def save(self, tensors: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
        """The reference's names; the output layer only where it is untied."""
        return {
            name: tensor.contiguous()
            for name, tensor in tensors.items()
            if name != HEAD or not config.tie_word_embeddings
        }


WEIGHTS = T5Weights()
