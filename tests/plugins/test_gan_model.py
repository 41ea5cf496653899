"""Adversarial models: who moves whom, how often, by which rate; classes; and the deployed graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.config import OptimizerConfig, update
from cambrian.data import Prepared
from cambrian.data.config import ImageData
from cambrian.data.image_sources import Images
from cambrian.data.images import ImageBatches, ImageProcessor
from cambrian.errors import UsageError
from cambrian.model import Batch
from cambrian.registry import load_registry
from cambrian.runtime.torch import TorchSession
from cambrian.testing import example
from cambrian.training import Job
from cambrian.training.loop import LoopTrainer
from cambrian.training.optimizers import Player
from cambrian_gan.config import DCGANConfig, GANConfig, Penalty, ResNetGANConfig
from cambrian_gan.losses import discriminator_loss, generator_loss
from cambrian_gan.model import DCGAN, GAN, ResNetGAN
from fitting import recipe

SMALL: dict[str, Any] = {"image_size": (8, 8), "hidden_sizes": (6, 5), "latent_size": 4}
KINDS = [(GAN, GANConfig), (DCGAN, DCGANConfig), (ResNetGAN, ResNetGANConfig)]
CLASSES: dict[str, Any] = {"id2label": {"0": "zero", "1": "one", "2": "two"}, "conditional": True}


def built(number: int = 0, **changes: Any) -> GAN:
    kind, config = KINDS[number]
    torch.manual_seed(0)
    return kind(config(**{**SMALL, **changes}))


def batch(count: int = 6, channels: int = 1, labels: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(count, channels, 8, 8, generator=generator) * 2 - 1
    return {"pixel_values": pixels} | ({"labels": torch.arange(count) % 3} if labels else {})


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# -- updates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["none", "wgan", "r1", "r1r2"])
@pytest.mark.parametrize("number", range(3))
def test_each_update_has_a_gradient_for_all_of_its_module_alone(
    number: int, penalty: Penalty
) -> None:
    model = built(number, gradient_penalty=penalty).train()
    for mine, other in (("discriminator", "generator"), ("generator", "discriminator")):
        model.zero_grad(set_to_none=True)
        [turn] = [turn for turn in model.updates() if turn.name == mine]
        assert turn.module is getattr(model, mine)
        for parameter in getattr(model, other).parameters():
            parameter.requires_grad_(False)
        losses = turn.loss(batch())
        losses["loss"].backward()
        assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
        for parameter in getattr(model, other).parameters():
            assert parameter.grad is None
            parameter.requires_grad_(True)
        norms = {n: p.grad for n, p in getattr(model, mine).named_parameters()}
        assert all(grad is not None and grad.isfinite().all() for grad in norms.values()), norms


def test_the_generator_moves_every_few_steps_and_the_rates_differ() -> None:
    turns = built(discriminator_steps=5, discriminator_lr=4e-4).updates()
    assert [(turn.name, turn.every) for turn in turns] == [("generator", 5), ("discriminator", 1)]
    players = [Player(turn, OptimizerConfig(lr=1e-4, warmup_steps=0)) for turn in turns]
    assert [player.config.lr for player in players] == [1e-4, 4e-4]
    same = [Player(turn, OptimizerConfig(lr=1e-4)) for turn in built().updates()]
    assert [player.config.lr for player in same] == [1e-4, 1e-4]


def trained(folder: Path, steps: int, **changes: Any) -> dict[str, Tensor]:
    """The weights after so many steps of a real run at a constant rate."""
    model, processor = built(**changes), ImageProcessor(image_size=(8, 8), num_channels=1)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), np.uint8)
    rows = ImageBatches(Images(pixels, None), processor, ImageData(), 4, 0)
    job = Job(
        model=model,
        data=Prepared(processor=processor, config=model.config, train=rows, validation=None),
        recipe=recipe({"steps": steps, "batch_size": 4}, schedule="constant", warmup_steps=0),
        folder=folder,
        publish=lambda _: None,
        report=lambda _: None,
        stop=lambda: False,
    )
    assert LoopTrainer().fit(job).step == steps
    return state(model)


def test_training_moves_the_generator_in_its_own_steps_alone(tmp_path: Path) -> None:
    after = {
        steps: trained(tmp_path / str(steps), steps, discriminator_steps=4) for steps in (1, 4, 5)
    }

    def moved(part: str, first: int, last: int) -> bool:
        return any(
            not torch.equal(value, after[last][name])
            for name, value in after[first].items()
            if name.startswith(part)
        )

    assert moved("discriminator", 1, 4) and moved("discriminator", 4, 5)
    assert not moved("generator", 1, 4) and moved("generator", 4, 5)


# -- losses -----------------------------------------------------------------------------------


def test_the_losses_are_of_generated_pictures_and_the_batch() -> None:
    """Of the plain pair in evaluation mode, by hand."""
    for kind in ("minimax", "hinge", "relativistic"):
        model, given = built(loss=kind).eval(), batch()
        torch.manual_seed(7)
        found = model.discriminator_loss(given)
        torch.manual_seed(7)
        fake = model.generator(torch.randn(6, 4))
        logits = model.discriminator(given["pixel_values"]), model.discriminator(fake)
        torch.testing.assert_close(found["loss"], discriminator_loss(kind, *logits))
        torch.testing.assert_close(found["real_logit"], logits[0].mean())
        torch.testing.assert_close(found["fake_logit"], logits[1].mean())
        torch.manual_seed(7)
        torch.testing.assert_close(
            model.generator_loss(given)["loss"], generator_loss(kind, *logits)
        )


def test_the_discriminator_learns_from_the_pictures_that_the_generator_was_judged_by() -> None:
    model, given = built(loss="wasserstein", gradient_penalty="r1").eval(), batch()
    judged = -model.generator_loss(given)["loss"]
    torch.testing.assert_close(model.discriminator_loss(given)["fake_logit"], judged)
    assert given.keys() == batch().keys()  # used up: where no generator moves, new ones are made
    fresh = model.discriminator_loss(given)["fake_logit"]
    assert abs(fresh - judged) > 1e-6


def test_penalties_are_weighed_and_added() -> None:
    given = batch()
    for penalty in ("wgan", "r1", "r1r2"):
        sizes: list[float] = []
        for weight in (0.0, 10.0):
            model = built(loss="wasserstein", gradient_penalty=penalty, penalty_weight=weight)
            torch.manual_seed(7)
            losses = {k: v.detach() for k, v in model.eval().discriminator_loss(given).items()}
            plain = losses["fake_logit"] - losses["real_logit"]
            torch.testing.assert_close(losses["loss"], plain + weight * losses["penalty"])
            sizes.append(float(losses["penalty"]))
        assert sizes[0] == sizes[1] > 0


def test_r2_is_r1_of_the_generated_pictures() -> None:
    given = batch()
    found: list[Tensor] = []
    for penalty in ("r1", "r1r2"):
        torch.manual_seed(7)
        found += [built(gradient_penalty=penalty).eval().discriminator_loss(given)["penalty"]]
        torch.manual_seed(7)
    model = built(gradient_penalty="r1").eval()
    torch.manual_seed(7)
    made = {"pixel_values": model.make(given).detach()}
    second = model.discriminator_loss(made)["penalty"]
    torch.testing.assert_close(found[1], found[0] + second)


# -- config -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (GANConfig, {"loss": "wasserstein"}, "needs a gradient_penalty, for instance wgan"),
        (GANConfig, {"penalty_weight": -1.0}, "cannot be negative"),
        (GANConfig, {"discriminator_steps": 0}, "at least 1"),
        (GANConfig, {"hidden_sizes": ()}, "not empty"),
        (GANConfig, {"num_channels": 2}, "grey"),
        (GANConfig, {"id2label": {"1": "one"}}, "0 to n - 1"),
        (DCGANConfig, {"image_size": (30, 28)}, "multiples of 4"),
    ],
)
def test_what_makes_no_model_is_refused(config: Any, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**change)
    with pytest.raises(UsageError, match=message):
        update(config(), change, "model")


def test_batch_norms_make_way_for_a_penalty() -> None:
    def norms(penalty: Penalty) -> int:
        model = built(1, hidden_sizes=(6, 5), gradient_penalty=penalty)
        return sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.discriminator.modules())

    assert norms("none") == 1 and norms("wgan") == norms("r1") == 0


def test_examples_are_what_the_registry_has() -> None:
    for (kind, config), name in zip(KINDS, ("gan", "dcgan", "resnet-gan"), strict=True):
        spec = load_registry().models[name]
        assert spec.config is config and spec.model.load() is kind
        assert isinstance(example(spec)[0], config)


# -- classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(3))
def test_a_class_changes_the_picture(number: int) -> None:
    model = built(number, **CLASSES).eval()
    latents = torch.randn(1, 4).repeat(3, 1)
    made = model.generator(latents, torch.arange(3))
    assert made.shape == (3, 1, 8, 8) and made.abs().max() <= 1
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (made[one] - made[other]).abs().max() > 1e-4
    again = model.generator(latents[:2], torch.tensor([2, 0]))
    torch.testing.assert_close(again, made[[2, 0]])


@pytest.mark.parametrize("number", range(3))
def test_at_first_the_noise_says_more_than_the_class(number: int) -> None:
    """A class as loud as the noise drowned it out in training: one picture of each class."""
    model = built(number, **CLASSES, latent_size=64, hidden_sizes=(32, 16)).train()
    made = model.generator(torch.randn(120, 64), torch.arange(120) % 3).detach().reshape(40, 3, -1)
    within, between = made.var(0).mean(), made.mean(0).var(0).mean()
    # The means of 40 pictures differ by a fortieth of the variance even where no class counts.
    assert between - within / 40 < within / 10
    vectors = model.generator.get_parameter("classes.weight")
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3), rtol=0, atol=0.3)


def test_a_class_counts_by_projection() -> None:
    """Logits are those without classes and the product of features and the class's vector."""
    model, given = built(**CLASSES).eval(), batch(labels=True)
    judge, pixels, labels = model.discriminator, given["pixel_values"], given["labels"]
    features = judge.features(pixels)
    last = [judge.get_parameter(f"logit.{name}") for name in ("weight", "bias")]
    plain = F.linear(features, *last)[:, 0]
    assert judge.classes is not None
    torch.testing.assert_close(judge(pixels, labels), plain)  # at first no class counts
    torch.nn.init.normal_(judge.classes.weight)
    vectors = judge.classes.weight[labels]
    want = plain + torch.stack([f @ v for f, v in zip(features, vectors, strict=True)])
    torch.testing.assert_close(judge(pixels, labels), want)
    assert (judge(pixels, labels) - judge(pixels, (labels + 1) % 3)).abs().min() > 1e-4


def test_training_uses_the_classes_of_the_batch() -> None:
    model, given = built(**CLASSES).train(), batch(labels=True)
    for turn in model.updates():
        model.zero_grad(set_to_none=True)
        turn.loss(given)["loss"].backward()
        classes = turn.module.get_parameter("classes.weight").grad
        assert classes is not None and (classes.abs().sum(1) > 0).all()


# -- deployed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [{}, CLASSES], ids=["plain", "classes"])
@pytest.mark.parametrize("number", range(3))
def test_the_graph_is_the_generator(number: int, classes: dict[str, Any]) -> None:
    model = built(number, **classes).eval()
    session = TorchSession(model, "cpu")
    latents = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    inputs = model.inputs(latents)
    assert inputs.keys() == {port.name for port in session.signatures["generator"].inputs}
    found: Any = session.run("generator", inputs)[0]["pixel_values"]
    labels = torch.from_numpy(inputs["labels"]) if classes else None
    with torch.no_grad():
        want = model.generator(torch.from_numpy(latents), labels)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)
    assert len(model.graphs()) == 1
