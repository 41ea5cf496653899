"""ViT's checkpoints. The module's names are the reference's own; what is left to do is to take the
encoder out of models without a classifier, such as those that fine-tuning begins with."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from cambrian_vit.config import ViTConfig

BARE = re.compile(r"^(embeddings|encoder|layernorm|pooler)\.")
OTHERS = re.compile(r"^(vit\.pooler|vit\.embeddings\.mask_token|decoder\.)")


class ViTWeights:
    """The Weights interface."""

    def load(self, tensors: Mapping[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
        """The module's names: the bare encoder's get their prefix, other heads are left out."""
        named = {BARE.sub(r"vit.\g<0>", name): tensor for name, tensor in tensors.items()}
        return {name: tensor for name, tensor in named.items() if not OTHERS.match(name)}

    def save(self, tensors: Mapping[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
        """The reference's names, which are the module's."""
        return dict(tensors)


WEIGHTS = ViTWeights()
