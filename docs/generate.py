"""Writes the generated pages of the reference: python docs/generate.py [--check]."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

from conformance import conformance
from file_fields import file_fields
from pictures import architecture
from public_names import public_names

from cambrian import config, hookspecs
from cambrian.data.config import ClassData, ImageData, MaskedData, PairData, TagData, TextData
from cambrian.generation.config import GenerationConfig
from cambrian_bert.config import BertConfig, RobertaConfig
from cambrian_cnn.config import CNNConfig
from cambrian_gan.config import DCGANConfig, GANConfig, ResNetGANConfig
from cambrian_gan.pipeline import GANOptions
from cambrian_gpt.config import GPTConfig
from cambrian_t5.config import T5Config, T5Data
from cambrian_vae.config import ConvVAEConfig, VAEConfig
from cambrian_vae.kl_config import AutoencoderKLConfig
from cambrian_vae.kl_pipeline import KLOptions
from cambrian_vae.pipeline import VAEOptions

REFERENCE = Path(__file__).parent / "reference"
VERBS = (
    "list",
    "info",
    "train",
    "eval",
    "export",
    "verify",
    "run",
    "bench",
    "pull",
    "lock",
    "push",
    "cache",
    "cache verify",
    "cache prune",
    "new plugin",
    "plugins",
    "env",
)
SECTIONS = {
    "[model] of the architecture gpt": GPTConfig,
    "[model] of bert, bert-classifier, bert-tagger and bert-embedder": BertConfig,
    "[model] of roberta, roberta-classifier, roberta-tagger and roberta-embedder": RobertaConfig,
    "[model] of the architecture t5": T5Config,
    "[model] of gan": GANConfig,
    "[model] of dcgan": DCGANConfig,
    "[model] of resnet-gan": ResNetGANConfig,
    "[model] of vae": VAEConfig,
    "[model] of conv-vae": ConvVAEConfig,
    "[model] of autoencoder-kl": AutoencoderKLConfig,
    "[model] of cnn": CNNConfig,
    "[train]": config.TrainConfig,
    "[optimizer]": config.OptimizerConfig,
    "[data] of gpt": TextData,
    "[data] of bert and roberta": MaskedData,
    "[data] of bert-classifier and roberta-classifier": ClassData,
    "[data] of bert-tagger and roberta-tagger": TagData,
    "[data] of bert-embedder and roberta-embedder": PairData,
    "[data] of t5": T5Data,
    "[data] of gan, vae and cnn and their kin": ImageData,
    "Options of a GAN (cambrian run --set, eval --option)": GANOptions,
    "Options of a VAE": VAEOptions,
    "Options of autoencoder-kl": KLOptions,
    "Options of text generation (cambrian run --set)": GenerationConfig,
}


def commands() -> str:
    """Every command's help, as it prints."""
    parts = ["# Command line\n"]
    for words in ((), *(verb.split() for verb in VERBS)):
        done = subprocess.run(
            [sys.executable, "-m", "cambrian", "--no-plugins", *words, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={"COLUMNS": "90", "PATH": ""},
        )
        title = " ".join(("cambrian", *words))
        text = "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
        parts.append(f"## {title}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def settings() -> str:
    """Every settings class: what its docstring says, and its defaults."""
    parts = ["# Settings\n"]
    for title, kind in SECTIONS.items():
        fields = [f"{f.name} = {shown(f)}" for f in dataclasses.fields(kind)]
        parts.append(f"## {title}\n")
        inherited = [inspect.cleandoc(base.__doc__ or "") for base in kind.__mro__[1:-1]]
        text = "\n\n".join([inspect.cleandoc(kind.__doc__ or ""), *inherited])
        parts.append(f"```text\n{text}\n```\n")
        parts.append("Defaults:\n\n```toml\n" + "\n".join(fields) + "\n```\n")
    return "\n".join(parts)


def shown(field: dataclasses.Field[Any]) -> str:
    """A default in TOML, where TOML has it."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        inside = ", ".join(f'{key} = "{item}"' for key, item in field.default_factory().items())
        return f"{{{inside}}}"
    if value is None:
        return '""  # not set'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value)).replace("'", '"')
    return f'"{value}"' if isinstance(value, str) else repr(value)


def hooks() -> str:
    """Every hook with its signature."""
    parts = ["# Hooks\n", inspect.cleandoc(hookspecs.__doc__ or "") + "\n"]
    for name, function in vars(hookspecs).items():
        if name.startswith("register_"):
            signature = str(inspect.signature(function)).replace("'", "")
            parts.append(f"## {name}\n\n    {name}{signature}\n\n{inspect.getdoc(function)}\n")
    return "\n".join(parts)


PAGES = {
    "cli.md": commands,
    "settings.md": settings,
    "hooks.md": hooks,
    "python.md": public_names,
    "fields.md": file_fields,
    "conformance.md": conformance,
    "../explanation/pictures/architecture.svg": architecture,
}


def main() -> None:
    """Write the pages, or say which are not current."""
    stale: list[str] = []
    for name, make in PAGES.items():
        text, file = make().rstrip() + "\n", REFERENCE / name
        if "--check" not in sys.argv:
            file.write_text(text, "utf-8")
        elif not file.is_file() or file.read_text("utf-8") != text:
            stale.append(name)
    if stale:
        raise SystemExit(f"not current: {', '.join(stale)}; run python docs/generate.py")


if __name__ == "__main__":
    main()
