"""Settings of the CNN family. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field


def default_labels() -> dict[str, str]:
    """The classes of a config that names none."""
    return {"0": "LABEL_0", "1": "LABEL_1"}


@dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """A convolutional classifier in the manner of LeNet (LeCun et al. 1998).

    image_size: height and width of what it sees. hidden_sizes: channels of its stages, each of two
    convolutions and a halving. feature_size: of the layer before the classes, which also serves
    as a description of a picture. id2label: the classes' names by number.

    Raises ValueError where values cannot make a model.
    """

    image_size: tuple[int, int] = (28, 28)
    num_channels: int = 1
    hidden_sizes: tuple[int, ...] = (32, 64)
    feature_size: int = 128
    dropout: float = 0.2
    id2label: dict[str, str] = field(default_factory=default_labels, metadata={"of_data": True})

    def __post_init__(self) -> None:
        for name in ("num_channels", "feature_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is 1 (grey) or 3 (colour), not {self.num_channels}")
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes must be positive, not {self.hidden_sizes}")
        if min(self.image_size) < 2 ** len(self.hidden_sizes):
            raise ValueError(
                f"image_size {self.image_size} is too small to be halved "
                f"{len(self.hidden_sizes)} times"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if set(self.id2label) != {str(i) for i in range(len(self.id2label))}:
            raise ValueError("id2label must name the classes 0 to n - 1")
