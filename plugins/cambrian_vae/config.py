"""Settings of variational autoencoders. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Likelihood = Literal["bernoulli", "gaussian", "logistic"]


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The fully connected VAE of Kingma and Welling (2014).

    image_size: height and width; pixels are in [0, 1].
    hidden_sizes: of the encoder's layers, from the picture on; the decoder has them in reverse.
    latent_size: how many latents a picture has.
    likelihood: of a pixel given its latents: "bernoulli" for black and white (greys are taken as
        probabilities); "gaussian" and "logistic" (Kingma et al. 2016, discretised to 256 levels)
        have one scale, which is learnt.
    kl_weight: above 1 for latents that stand for one thing each (beta-VAE, Higgins et al. 2017).
    importance_samples: of the bound that is maximised; above 1 it is tighter (IWAE, Burda et al.
        2016) and kl_weight must be 1.
    evaluation_samples: with so many samples an evaluation also estimates log p(x); 0 for not.

    Raises ValueError where values cannot make a model.
    """

    image_size: tuple[int, int] = (28, 28)
    num_channels: int = 1
    hidden_sizes: tuple[int, ...] = (200, 200)
    latent_size: int = 50
    likelihood: Likelihood = "bernoulli"
    kl_weight: float = 1.0
    importance_samples: int = 1
    evaluation_samples: int = 0

    def __post_init__(self) -> None:
        for name in ("latent_size", "importance_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is 1 (grey) or 3 (colour), not {self.num_channels}")
        if min(self.image_size) < 1 or not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ValueError("image_size and hidden_sizes must be positive, and not empty")
        if not self.kl_weight > 0 or self.evaluation_samples < 0:
            raise ValueError("kl_weight must be positive and evaluation_samples not negative")
        if self.importance_samples > 1 and self.kl_weight != 1:
            raise ValueError("kl_weight must be 1 where importance_samples is more than 1")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a picture: channels, height, width."""
        return (self.num_channels, *self.image_size)


@dataclass(frozen=True, kw_only=True)
class ConvVAEConfig(VAEConfig):
    """A convolutional VAE: hidden_sizes are the channels of stages, each half the size of the one
    before; feature_size is that of the layer between them and the latents."""

    hidden_sizes: tuple[int, ...] = (32, 64)
    feature_size: int = 256
    latent_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = 2 ** len(self.hidden_sizes)
        if any(side % factor for side in self.image_size):
            raise ValueError(
                f"image_size {self.image_size} must be multiples of {factor}, for each of "
                f"{len(self.hidden_sizes)} stages halves it"
            )
        if self.feature_size < 1:
            raise ValueError(f"feature_size must be at least 1, not {self.feature_size}")
