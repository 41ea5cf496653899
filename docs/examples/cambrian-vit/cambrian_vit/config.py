"""Settings of a vision transformer, under the names that its checkpoints use. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


def two_labels() -> dict[str, str]:
    """The classes of a config that names none, as the reference has them."""
    return {"0": "LABEL_0", "1": "LABEL_1"}


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """config.json of ViT (Dosovitskiy et al. 2020); the defaults are ViT-B/16, 86 M parameters.

    image_size: of the square that it sees. patch_size: of the squares that this is cut into.
    qkv_bias: whether queries, keys and values have biases.
    id2label: the classes' names by number, "0" to "n - 1".
    problem_type: one class of several is the only one there is.

    Raises ValueError where values cannot make a model.
    """

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Literal["gelu"] = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    id2label: dict[str, str] = field(default_factory=two_labels, metadata={"of_data": True})
    problem_type: Literal["single_label_classification"] | None = None

    def __post_init__(self) -> None:
        for name in (
            "image_size",
            "patch_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for whole, part in (
            ("image_size", "patch_size"),
            ("hidden_size", "num_attention_heads"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole} {getattr(self, whole)} is not a multiple of {part} "
                    f"{getattr(self, part)}"
                )
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is 1 (grey) or 3 (colour), not {self.num_channels}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in ("layer_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if len(self.id2label) < 2 or set(self.id2label) != {*map(str, range(len(self.id2label)))}:
            raise ValueError("id2label must name the classes 0 to n - 1, two or more")
