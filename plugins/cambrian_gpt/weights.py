"""GPT-2 checkpoints: the reference's tensors to ours and back.

Theirs are [in, out] where a linear layer's are [out, in] (transformers' Conv1D), may lack the
prefix "transformer." (openai-community/gpt2) and may hold the causal masks as buffers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from cambrian.errors import BrokenFile
from cambrian_gpt.config import GPTConfig
from cambrian_gpt.model import GPT

PREFIX = "transformer."
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"
MASKS = re.compile(r"(^|\.)attn\.(bias|masked_bias)$")  # anchored: not "attn.c_attn.bias"
CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")


class GPTWeights:
    """The Weights interface for GPT-2."""

    def load(self, tensors: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
        """The module's state dict; BrokenFile unless the file holds exactly this model."""
        found = _named(tensors)
        _tie(found, config)
        with torch.device("meta"):
            expected = GPT(config).state_dict()
        _refuse("lacks", expected.keys() - found.keys())
        _refuse("holds, beside the model's,", found.keys() - expected.keys())
        result = {name: _transposed(name, found[name]) for name in expected}
        _refuse(
            "does not fit its config in the shape of",
            (
                f"{name} {list(found[name].shape)}"
                for name in expected
                if result[name].shape != expected[name].shape
            ),
        )
        return result

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


def _refuse(what: str, names: Iterable[str]) -> None:
    """BrokenFile if there are any `names`, with the first three of them."""
    if listed := sorted(names):
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        raise BrokenFile(
            f"The file of weights {what} {', '.join(listed[:3])}{more}; it is of another "
            "architecture or damaged: check config.json or download it again."
        )
