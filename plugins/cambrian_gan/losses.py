"""What generator and discriminator play for, and the penalties that keep the play stable.

real and fake are the discriminator's logits (B,) of real and of generated pictures.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian_gan.config import LossName

Discriminate = Callable[[Tensor], Tensor]


def discriminator_loss(kind: LossName, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises."""
    if kind == "hinge":  # Lim, Ye 2017, "Geometric GAN", equation 12
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "wasserstein":  # Arjovsky et al. 2017, equation 3
        return fake.mean() - real.mean()
    if kind == "relativistic":  # Jolicoeur-Martineau 2019; Huang et al. 2024, equation 2
        return F.softplus(fake - real).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()  # Goodfellow et al. 2014, equation 1


def generator_loss(kind: LossName, real: Tensor, fake: Tensor) -> Tensor:
    """What the generator minimises; `real` counts in the relativistic loss alone."""
    if kind == "minimax":  # log (1 - D), Goodfellow et al. 2014, equation 1
        return -F.softplus(fake).mean()
    if kind in ("hinge", "wasserstein"):
        return -fake.mean()
    if kind == "relativistic":
        return F.softplus(real - fake).mean()
    return F.softplus(-fake).mean()  # -log D, Goodfellow et al. 2014, section 3


def squared_gradient(logits: Tensor, pictures: Tensor) -> Tensor:
    """|d logits / d pictures|^2 of each picture, (B,), in float32; it can be differentiated."""
    [gradient] = torch.autograd.grad(logits.sum(), pictures, create_graph=True)
    return gradient.float().square().flatten(1).sum(1)


def wgan_penalty(discriminate: Discriminate, real: Tensor, fake: Tensor) -> Tensor:
    """mean (|gradient| - 1)^2 at random places between real and generated pictures.

    Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", equation 3.
    """
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    mixed = (share * real + (1 - share) * fake).detach().requires_grad_()
    norm = (squared_gradient(discriminate(mixed), mixed) + 1e-12).sqrt()
    return (norm - 1).square().mean()


def zero_centred_penalty(logits: Tensor, pictures: Tensor) -> Tensor:
    """mean |gradient|^2 / 2 at the pictures: R1 of real ones, R2 of generated ones.

    Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", equation 9.
    """
    return 0.5 * squared_gradient(logits, pictures).mean()
