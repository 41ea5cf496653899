"""AutoencoderKL checkpoints: diffusers' tensors to ours, which have the same names, and back.

Files from before the library's attention was one class for all models (sd-vae-ft-mse, the VAE of
Stable Diffusion 1) call its layers otherwise, and may have them as convolutions of 1 by 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cambrian.errors import BrokenFile

OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
ATTENTION = re.compile(
    r"(?P<block>.*mid_block\.attentions\.\d+\.)"
    r"(?P<layer>query|key|value|proj_attn|to_q|to_k|to_v|to_out\.0)\.(?P<kind>weight|bias)"
)


class AutoencoderKLWeights:
    """The Weights interface of AutoencoderKL."""

    def load(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """The module's names; BrokenFile where one parameter comes under two names."""
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            own, matrix = name, tensor
            if match := ATTENTION.fullmatch(name):
                layer = OLD.get(match["layer"], match["layer"])
                own = f"{match['block']}{layer}.{match['kind']}"
                matrix = flattened(tensor)
            if own in found:
                raise BrokenFile(
                    f"The weights hold '{own}' twice, by this name and by an older one; download "
                    "the file again, or remove one of the two."
                )
            found[own] = matrix
        return found

    def save(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """The reference's names, which are the module's."""
        return dict(tensors)


def flattened(tensor: Tensor) -> Tensor:
    """The matrix (out, in) of a convolution (out, in, 1, 1); anything else as it is."""
    return tensor[:, :, 0, 0] if tensor.shape[2:] == (1, 1) else tensor


WEIGHTS = AutoencoderKLWeights()
