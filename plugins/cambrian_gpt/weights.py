"""GPT-2 checkpoints: the reference's tensors to ours and back.

Theirs are [in, out] where a linear layer's are [out, in] (transformers' Conv1D), may lack the
prefix "transformer." (openai-community/gpt2) and may hold the causal masks as buffers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cambrian.errors import BrokenFile
from cambrian_gpt.config import GPTConfig

PREFIX = "transformer."
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"
MASKS = re.compile(r"(^|\.)attn\.(bias|masked_bias)$")  # anchored: not "attn.c_attn.bias"
CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")


class GPTWeights:
    """The Weights interface for GPT-2."""

    def load(self, tensors: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
        """The module's names and orientation; BrokenFile for a name held twice, or an output
        layer that the config ties but that is another than the embedding. The tensors may be on
        the meta device."""
        found = _named(tensors)
        _tie(found, config)
        return {name: _transposed(name, tensor) for name, tensor in found.items()}

    def save(self, tensors: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
        """The reference's names and orientation; the output layer only where it is untied."""
        return {
            name: _transposed(name, tensor).contiguous()
            for name, tensor in tensors.items()
            if name != HEAD or not config.tie_word_embeddings
        }


WEIGHTS = GPTWeights()


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor under its full name, without the buffers."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if MASKS.search(name):
            continue
        full = name if name.startswith((PREFIX, "lm_head.")) else PREFIX + name
        if full in found:
            raise BrokenFile(f"The weights hold '{full}' twice, with and without '{PREFIX}'.")
        found[full] = tensor
    return found


def _tie(found: dict[str, Tensor], config: GPTConfig) -> None:
    """An output layer that the file leaves out is the embedding; one that differs from it cannot
    be shared with it (the rule of transformers' `tie_weights`: the tensors decide)."""
    if EMBEDDING not in found:
        return
    head = found.setdefault(HEAD, found[EMBEDDING])
    if config.tie_word_embeddings and not torch.equal(head, found[EMBEDDING]):
        raise BrokenFile(
            f"The weights hold a '{HEAD}' that differs from '{EMBEDDING}', but the config ties "
            'the two; set "tie_word_embeddings": false in config.json.'
        )


def _transposed(name: str, tensor: Tensor) -> Tensor:
    return tensor.t() if CONV1D.search(name) and tensor.ndim == 2 else tensor
