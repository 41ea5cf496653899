"""Settings of generative adversarial networks. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

LossName = Literal["minimax", "non-saturating", "hinge", "wasserstein", "relativistic"]
Penalty = Literal["none", "wgan", "r1", "r1r2"]
Augmentation = Literal["brightness", "translation", "cutout"]


@dataclass(frozen=True, kw_only=True)
class GANConfig:
    """The fully connected pair of Goodfellow et al. (2014).

    image_size: height and width; pixels are in [-1, 1].
    latent_size: how many numbers of noise a picture is made from.
    hidden_sizes: of the generator's layers, from the noise on; the discriminator has them in
        reverse.
    loss: what the two play for, see `losses`.
    gradient_penalty, penalty_weight: on the discriminator, see `losses`; the paper of "wgan" gives
        it a weight of 10.
    discriminator_steps: steps of the discriminator for each of the generator.
    discriminator_lr: its learning rate where that is another than the generator's (Heusel et al.
        2017); 0 for the same.
    augment: differentiable augmentation of all that the discriminator sees, for small sets of
        pictures (Zhao et al. 2020).
    conditional: pictures of a class that is asked for; id2label then has the classes' names.

    Raises ValueError where values cannot make a model.
    """

    image_size: tuple[int, int] = (28, 28)
    num_channels: int = 1
    latent_size: int = 100
    hidden_sizes: tuple[int, ...] = (256, 512, 1024)
    loss: LossName = "non-saturating"
    gradient_penalty: Penalty = "none"
    penalty_weight: float = 1.0
    discriminator_steps: int = 1
    discriminator_lr: float = 0.0
    augment: tuple[Augmentation, ...] = ()
    conditional: bool = False
    id2label: dict[str, str] = field(default_factory=dict[str, str], metadata={"of_data": True})

    def __post_init__(self) -> None:
        for name in ("latent_size", "discriminator_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is 1 (grey) or 3 (colour), not {self.num_channels}")
        if min(self.image_size) < 1 or not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ValueError("image_size and hidden_sizes must be positive, and not empty")
        if self.penalty_weight < 0 or self.discriminator_lr < 0:
            raise ValueError("penalty_weight and discriminator_lr cannot be negative")
        if self.loss == "wasserstein" and self.gradient_penalty == "none":
            raise ValueError(
                "loss=wasserstein needs a gradient_penalty, for instance wgan; without one nothing "
                "bounds the discriminator"
            )
        if set(self.id2label) != {str(i) for i in range(len(self.id2label))}:
            raise ValueError("id2label must name the classes 0 to n - 1")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a picture: channels, height, width."""
        return (self.num_channels, *self.image_size)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' names, in order; none of an unconditional model."""
        return tuple(self.id2label[str(i)] for i in range(len(self.id2label)))


@dataclass(frozen=True, kw_only=True)
class DCGANConfig(GANConfig):
    """The convolutional pair of Radford et al. (2016).

    hidden_sizes: channels of the generator's maps, from the smallest on; each is doubled in size
        on the way to the next, and at last to the picture.
    """

    hidden_sizes: tuple[int, ...] = (128, 64)
    loss: LossName = "hinge"

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = 2 ** len(self.hidden_sizes)
        if any(side % factor for side in self.image_size):
            raise ValueError(
                f"image_size {self.image_size} must be multiples of {factor}, for each of "
                f"{len(self.hidden_sizes)} stages doubles it (28, 32 and 64 pixels suit 2, 3 and 4)"
            )

    @property
    def smallest(self) -> tuple[int, int, int]:
        """Of the generator's first map: channels, height, width."""
        height, width = (side // 2 ** len(self.hidden_sizes) for side in self.image_size)
        return self.hidden_sizes[0], height, width


@dataclass(frozen=True, kw_only=True)
class ResNetGANConfig(DCGANConfig):
    """A residual pair (Miyato et al. 2018, appendix; without norms, Huang et al. 2024).

    spectral_norm: divides the weights of the discriminator's layers, though not of its class
        embedding, by their largest singular value.
    batch_norm: in the generator.
    """

    spectral_norm: bool = True
    batch_norm: bool = True
