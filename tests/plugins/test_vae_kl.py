"""AutoencoderKL against diffusers: numbers, files in both directions, names, tiles, exports."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cambrian.artifact import resolve_shape
from cambrian.checkpoint import Checkpoint, describe, save_weights
from cambrian.config import Recipe
from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian.exporting.parity import compare
from cambrian.exporting.tracing import example
from cambrian.files import write_json
from cambrian.runtime.torch import TorchSession
from cambrian.specs import ModelSpec, Ref
from cambrian_onnx.exporter import OnnxExporter
from cambrian_vae.kl_config import AutoencoderKLConfig
from cambrian_vae.kl_model import AutoencoderKL
from cambrian_vae.kl_weights import WEIGHTS
from cambrian_vae.tiling import tiled_decode, tiled_encode

SPEC = ModelSpec(
    name="autoencoder-kl",
    task="image-reconstruction",
    summary="autoencoder",
    config=AutoencoderKLConfig,
    model=Ref("cambrian_vae.kl_model:AutoencoderKL"),
    processor=Ref("unused:Processor"),
    data=Ref("unused:prepare"),
    pipeline=Ref("unused:Pipeline"),
    recipe=Recipe(),
    weights=Ref("cambrian_vae.kl_weights:WEIGHTS"),
    model_class="AutoencoderKL",
    class_key="_class_name",
    weights_file="diffusion_pytorch_model.safetensors",
)
OWN = {"kl_weight", "likelihood"}  # fields that the reference does not have


def config(*channels: int, **changes: Any) -> AutoencoderKLConfig:
    count = len(channels)
    values = {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
        "norm_num_groups": 3,
    }
    return AutoencoderKLConfig(**{**values, **changes})


CONFIGS = {
    "one block": config(9, sample_size=16),
    "two blocks, no attention": config(6, 9, mid_block_add_attention=False, layers_per_block=2),
    "three blocks, no quant convs": config(
        9, 9, 15, use_quant_conv=False, use_post_quant_conv=False, latent_channels=5
    ),
    "greys, one quant conv": config(
        3, 15, in_channels=1, out_channels=1, use_post_quant_conv=False, shift_factor=0.1
    ),
    "all": config(15, 6, 9, layers_per_block=2, latents_mean=(0.1,) * 4, latents_std=(2.0,) * 4),
}
SD_VAE = config(
    128, 256, 512, 512, layers_per_block=2, norm_num_groups=32, sample_size=256
)  # of stabilityai/sd-vae-ft-mse


def shuffled(model: Any, seed: int = 0) -> Any:
    """Every parameter random, so that none can stand in for another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            wide = parameter[0].numel() if parameter.ndim > 1 else 9
            parameter.copy_(noise / wide**0.5 + (name.endswith("weight") and parameter.ndim == 1))
    return model.eval()


def reference(settings: AutoencoderKLConfig) -> Any:
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return diffusers.AutoencoderKL(**{k: v for k, v in values.items() if k not in OWN})


def pictures(settings: AutoencoderKLConfig, rows: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.rand(rows, settings.in_channels, height, width, generator=generator) * 2 - 1


def assert_near(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@torch.no_grad()
def assert_same_model(ours: AutoencoderKL, theirs: Any) -> None:
    scale = ours.config.downsampling
    for rows, height, width in ((1, 4, 4), (2, 5, 3), (3, 1, 7)):
        pixels = pictures(ours.config, rows, height * scale, width * scale)
        mean, logvar = ours.encode(pixels)
        expected = theirs.encode(pixels).latent_dist
        assert mean.shape == (rows, ours.config.latent_channels, height, width)
        assert_near(mean, expected.mean)
        assert_near(logvar, expected.logvar)
        assert_near(ours.decode(mean), theirs.decode(mean).sample)


@pytest.mark.parametrize("name", CONFIGS)
def test_their_folder_opens_here(name: str, tmp_path: Path) -> None:
    theirs = shuffled(reference(CONFIGS[name]))
    theirs.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path, [SPEC])
    assert checkpoint.config == CONFIGS[name]
    assert_same_model(checkpoint.model(), theirs)


@pytest.mark.parametrize("name", CONFIGS)
def test_our_folder_opens_there(name: str, tmp_path: Path) -> None:
    settings = CONFIGS[name]
    ours = shuffled(AutoencoderKL(settings))
    write_json(tmp_path / "config.json", describe(SPEC, settings, "0"))
    save_weights(tmp_path, SPEC, settings, ours)
    theirs, report = diffusers.AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_same_model(ours, theirs.eval())
    theirs.save_pretrained(tmp_path / "theirs")
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert Checkpoint.open(tmp_path, [SPEC]).config == settings
    assert written["_class_name"] == "AutoencoderKL"
    assert written["block_out_channels"] == list(settings.block_out_channels)
    saved, expected = (load_file(f / SPEC.weights_file) for f in (tmp_path, tmp_path / "theirs"))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], expected[key]) for key in saved)


def test_logvar_is_clamped_as_theirs() -> None:
    settings = CONFIGS["one block"]
    theirs, ours = shuffled(reference(settings)), AutoencoderKL(settings).eval()
    with torch.no_grad():
        theirs.quant_conv.weight.mul_(300)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        pixels = pictures(settings, 2, 8, 8)
        logvar = ours.encode(pixels)[1]
        assert_near(logvar, theirs.encode(pixels).latent_dist.logvar)
    assert (logvar.min(), logvar.max()) == (-30, 20)


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_names(tensors: Mapping[str, Tensor], convolved: bool) -> dict[str, Tensor]:
    found = dict(tensors)
    for name in tensors:
        for layer in (layer for layer in OLD if f".{layer}." in name):
            tensor = found.pop(name)
            wide = convolved and tensor.ndim == 2
            found[name.replace(layer, OLD[layer])] = tensor[..., None, None] if wide else tensor
    return found


@pytest.mark.parametrize("convolved", [False, True])
def test_old_names_of_the_attention_are_known(convolved: bool, tmp_path: Path) -> None:
    theirs = shuffled(reference(CONFIGS["all"]))
    theirs.save_pretrained(tmp_path)
    file = tmp_path / SPEC.weights_file
    tensors = old_names(load_file(file), convolved)
    assert sum("proj_attn" in name for name in tensors) == 4
    save_file(tensors, file)
    checkpoint = Checkpoint.open(tmp_path, [SPEC])
    assert_same_model(checkpoint.model(), theirs)
    twice = "decoder.mid_block.attentions.0.to_out.0.bias"
    save_file({**tensors, twice: torch.zeros(9)}, file)
    with pytest.raises(BrokenFile, match=f"hold '{twice}' twice, by this name and by an older"):
        checkpoint.model()


def test_names_and_shapes_of_stable_diffusion() -> None:
    with torch.device("meta"):
        ours, theirs = AutoencoderKL(SD_VAE), reference(SD_VAE)
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert sum(map(math.prod, shapes.values())) == 83_653_863
    assert WEIGHTS.load(old_names(ours.state_dict(), True), SD_VAE).keys() == shapes.keys()


def test_the_loss_is_the_evidence_bound() -> None:
    settings = dataclasses.replace(CONFIGS["all"], kl_weight=0.25)
    theirs, ours = shuffled(reference(settings)), AutoencoderKL(settings)
    ours.load_state_dict(theirs.state_dict())
    pixels = pictures(settings, 3, 8, 12)
    [update] = ours.updates()
    torch.manual_seed(7)
    losses = update.loss({"pixel_values": pixels})
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())
    found = {name: loss.item() for name, loss in losses.items()}
    torch.manual_seed(7)
    with torch.no_grad():
        posterior = theirs.encode(pixels).latent_dist
        picture = theirs.decode(posterior.mean + posterior.std * torch.randn(3, 4, 2, 3)).sample
    likelihood = torch.distributions.Normal(picture, 1.0).log_prob(pixels).sum((1, 2, 3))
    constant = 3 * 8 * 12 / 2 * math.log(2 * math.pi)
    assert found["recon"] == pytest.approx(-likelihood.mean().item() - constant, rel=1e-4)
    assert found["kl"] == pytest.approx(posterior.kl().mean().item(), rel=1e-5)
    assert found["loss"] == pytest.approx(found["recon"] + found["kl"] / 4, rel=1e-6)


def test_evaluation_draws_the_same_noise_every_time() -> None:
    ours = shuffled(AutoencoderKL(CONFIGS["one block"]))
    batch = {"pixel_values": pictures(ours.config, 2, 8, 8)}
    before = torch.random.get_rng_state()
    first, second = ours.evaluate(batch), ours.evaluate(batch)
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)
    assert ours.loss(batch)["recon"] != first["recon"]


def test_what_cannot_be_learnt_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="in_channels is 1 and out_channels 3; set both"):
        AutoencoderKL(config(9, in_channels=1)).updates()
    model = AutoencoderKL(config(9, 9))
    with pytest.raises(UsageError, match=r"8 by 9 pixels do not fit .* multiples of 2"):
        model.loss({"pixel_values": pictures(model.config, 1, 8, 9)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")}, "'AttnDown.*only"),
        ({"up_block_types": ("UpDecoderBlock2D",)}, "has 1 entries, but block_out_channels has 2"),
        ({"block_out_channels": (9, 10)}, "multiples of norm_num_groups 3, not 10"),
        ({"block_out_channels": (9, 0)}, "multiples of norm_num_groups 3, not 0"),
        ({"block_out_channels": ()}, "1 to 10 blocks, not 0"),
        ({"block_out_channels": (9,) * 11}, "1 to 10 blocks, not 11"),
        ({"latent_channels": 0}, "latent_channels must be at least 1, not 0"),
        ({"latents_mean": (0.0,) * 3}, "latents_mean must have a number for each of the 4"),
        ({"kl_weight": math.nan}, "kl_weight must be 0 or more, not nan"),
        ({"act_fn": "gelu"}, "act_fn 'gelu' is not supported, only silu"),
    ],
)
def test_what_cannot_be_built_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        config(9, 9, **changes)
    written = describe(SPEC, config(9, 9), "0") | changes
    (tmp_path / "config.json").write_text(json.dumps(written).replace("NaN", "-1"))
    with pytest.raises(BrokenFile, match="does not describe a autoencoder-kl model") as caught:
        Checkpoint.open(tmp_path, [SPEC])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("height", "width"), [(40, 28), (16, 52), (12, 20), (36, 36), (16, 16)])
@torch.no_grad()
def test_tiles_are_blended_as_theirs(height: int, width: int) -> None:
    settings = dataclasses.replace(CONFIGS["two blocks, no attention"], sample_size=16)
    theirs, ours = shuffled(reference(settings)), AutoencoderKL(settings).eval()
    ours.load_state_dict(theirs.state_dict())
    theirs.enable_tiling()
    pixels = pictures(settings, 2, height, width)
    latents = torch.randn(2, 4, height // 2, width // 2, generator=torch.Generator().manual_seed(0))

    def moments(tile: Any) -> Any:
        return torch.cat(ours.encode(torch.from_numpy(tile)), dim=1).numpy()

    def decode(tile: Any) -> Any:
        return ours.decode(torch.from_numpy(tile)).numpy()

    given = pixels.numpy().copy()
    encoded = tiled_encode(moments, given, tile=16)
    assert_near(encoded, theirs.encode(pixels).latent_dist.parameters, 1e-4)
    decoded = tiled_decode(decode, latents.numpy(), tile=8)
    assert_near(decoded, theirs.decode(latents).sample, 1e-4)
    assert np.array_equal(given, pixels.numpy())
    if max(height, width) > 16:
        assert np.abs(decoded - decode(latents.numpy())).max() > 1e-3  # tiles it really were


def test_tiles_that_do_not_meet_are_refused() -> None:
    whole = pictures(SD_VAE, 1, 40, 36).numpy()
    whole.setflags(write=False)

    def halve(tile: Any) -> Any:
        return tile[:, :, ::2, ::2]

    for overlap in (0.5, 0.25, 0.0):  # where tiles agree, they come together to the whole
        assert_near(tiled_encode(halve, whole, 8, overlap), halve(whole), 1e-6)
    with pytest.raises(UsageError, match=r"tile of 4 that overlaps by 0.25 .* do not meet"):
        tiled_encode(halve, whole, 4, 0.25)
    for tile, overlap in ((8, 1.0), (8, -0.5), (1, 0.5), (0, 0.0)):
        with pytest.raises(UsageError, match=f"A tile of {tile} cannot overlap by {overlap}"):
            tiled_encode(halve, whole, tile, overlap)


def test_exported_graphs_give_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = shuffled(AutoencoderKL(CONFIGS["all"]))
    session = TorchSession(model)
    files = OnnxExporter().export(model, tmp_path, precision="float32")
    [traced] = example(files["encoder"].signature)
    assert traced.shape == resolve_shape(
        ("batch", 3, "4*height", "4*width"), {"batch": 2, "height": 3, "width": 5}
    )
    engines = {
        name: onnxruntime.InferenceSession(tmp_path / graph.file) for name, graph in files.items()
    }
    assert engines["encoder"].get_inputs()[0].shape == ["batch", 3, "4*height", "4*width"]
    cases = list(model.cases())
    assert len({case.name for case in cases}) == 4
    for case in cases:
        for graph, inputs in case.calls:
            expected, _ = session.run(graph, inputs)
            found = engines[graph].run(list(expected), dict(inputs))
            for (name, want), got in zip(expected.items(), found, strict=True):
                result = compare(name, want, got, 1e-5)
                assert result.badness <= 1, f"{case.name}: {result}"
    with pytest.raises(CambrianError, match="but 10 is no multiple of 4"):
        session.run("encoder", {"pixel_values": np.zeros((1, 3, 8, 10), np.float32)})
