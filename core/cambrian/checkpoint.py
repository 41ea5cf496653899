"""A model as a folder, in the layout of the Hugging Face Hub.

    config.json   model.safetensors   processor files   generation_config.json   README.md

The weights go by another name where the spec says so. A folder made elsewhere opens as well as our
own: the architecture is told by our own mark in config.json or, without it, by the class and the
`model_type` that the specs declare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from cambrian.errors import BrokenFile, CambrianError, NotFound, UsageError, listed, nearest
from cambrian.files import read_json, sha256, write_json, write_with
from cambrian.specs import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from cambrian.data import Processor
    from cambrian.model import Model

CONFIG = "config.json"
GENERATION = "generation_config.json"
ARCHITECTURES = "architectures"  # transformers' key of a model's class, which holds a list


@dataclass(frozen=True)
class Kept:
    """What a model took over from another's weights: how many tensors; its own that were not
    among them and so are fresh; and the other's that it has no use for."""

    kept: int
    fresh: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder, opened: its description, not its weights."""

    path: Path
    spec: ModelSpec
    config: Any
    description: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path, specs: Iterable[ModelSpec]) -> Checkpoint:
        """Read config.json and find the architecture among `specs`."""
        file = path / CONFIG
        if not file.is_file():
            raise NotFound(f"{path} is not a model's folder: it has no {CONFIG}.")
        description = read_json(file)
        spec = recognise(description, specs, file)
        return cls(path, spec, read_config(description, spec, file), description)

    def model(self) -> Model:
        """Build the module in float32 on the CPU, load the weights, set it to eval mode."""
        import torch

        tensors = self.tensors(self.spec, self.config)
        require_size(self.spec, self.config, tensors, self.path)
        with torch.random.fork_rng(devices=[]):
            model = self.spec.model.load()(self.config)
        load_tensors(model, tensors, self.path)
        return model.eval()

    def tensors(self, spec: ModelSpec, config: Any) -> dict[str, Tensor]:
        """The weights under the names of `spec`'s module, which may be another than the own."""
        tensors = read_tensors(self.path, self.spec.weights_file)
        return tensors if spec.weights is None else spec.weights.load().load(tensors, config)

    def processor(self) -> Processor:
        """Load the processor's files."""
        return self.spec.processor.load().load(self.path)

    def generation(self) -> Mapping[str, Any]:
        """generation_config.json, or nothing."""
        file = self.path / GENERATION
        return read_json(file) if file.is_file() else {}

    def weights_sha256(self) -> str:
        """The sha256 of the weights' file, or of the shards' index."""
        file = self.path / self.spec.weights_file
        return sha256(file if file.is_file() else index_of(file))


def index_of(file: Path) -> Path:
    """Where the index of weights lies that `file` would hold, were they not in shards."""
    return file.with_name(f"{file.name}.index.json")


def recognise(description: Mapping[str, Any], specs: Iterable[ModelSpec], file: Path) -> ModelSpec:
    """Find the architecture that a config.json speaks of."""
    specs = list(specs)
    mark = description.get("cambrian")
    if isinstance(mark, Mapping):
        name = str(cast(Mapping[str, Any], mark).get("architecture"))
        for spec in specs:
            if spec.name == name:
                return spec
        raise NotFound(
            f"{file} needs the architecture '{name}', which no plugin provides."
            f"{nearest(name, [spec.name for spec in specs])} See `cambrian plugins`."
        )
    for spec in specs:
        named = description.get(spec.class_key)
        classes: list[Any] = named if isinstance(named, list) else [named]
        if spec.model_class is not None and spec.model_class in classes:
            return spec
    kind = description.get("model_type")
    for spec in specs:
        if spec.model_type is not None and spec.model_type == kind:
            return spec
    keys = ("model_type", *sorted({spec.class_key for spec in specs}))
    key = next((key for key in keys if key in description), "model_type")
    raise NotFound(
        f"{file} has {key} {description.get(key)!r}, which no plugin provides. See `cambrian list`."
    )


def read_config(description: Mapping[str, Any], spec: ModelSpec, file: Path) -> Any:
    """Take the architecture's fields from config.json; what it does not know is left out."""
    known = {f.name for f in dataclasses.fields(spec.config)}
    values = {key: value for key, value in description.items() if key in known}
    try:
        return msgspec.convert(values, spec.config)
    except (msgspec.ValidationError, ValueError) as error:
        raise BrokenFile(f"{file} does not describe a {spec.name} model: {error}.") from error


def describe(spec: ModelSpec, config: Any, version: str) -> dict[str, Any]:
    """What config.json says of a model."""
    head: dict[str, Any] = {}
    listed_class = spec.class_key == ARCHITECTURES
    if spec.model_class is not None:
        head[spec.class_key] = [spec.model_class] if listed_class else spec.model_class
    if spec.model_type is not None:
        head["model_type"] = spec.model_type
    if listed_class:
        head["dtype"] = "float32"  # transformers' too; diffusers does not open what has it
    mark = {"architecture": spec.name, "version": version}
    return {**head, **msgspec.to_builtins(config), "cambrian": mark}


def save_description(
    folder: Path, spec: ModelSpec, config: Any, processor: Processor, version: str
) -> None:
    """Write everything but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, describe(spec, config, version))
    processor.save(folder)


def save_weights(folder: Path, spec: ModelSpec, config: Any, model: Model) -> None:
    """Write the weights under the reference's names; equal weights give equal bytes."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    if spec.weights is not None:
        tensors = spec.weights.load().save(tensors, config)
    tensors = drop_aliases(tensors)
    target = folder / spec.weights_file
    try:
        write_with(target, lambda file: save_file(tensors, file, metadata={"format": "pt"}))
    except (OSError, SafetensorError) as error:  # the latter for a full disk, too
        raise CambrianError(
            f"Cannot write {target} ({error}); what was there is intact."
        ) from error


def drop_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep each shared tensor under its first name; make all contiguous."""
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        kept[name] = tensor.contiguous()
    return kept


def read_tensors(folder: Path, weights_file: str) -> dict[str, Tensor]:
    """Read the weights' file, or the shards that its index names."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = shards(folder, weights_file)
    tensors: dict[str, Tensor] = {}
    for file, names in files.items():
        try:
            held = load_file(file)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise BrokenFile(f"{file} is not a readable safetensors file ({error}).") from error
        if names is not None and (lost := names - held.keys()):
            raise BrokenFile(f"{file} lacks '{min(lost)}', which its index says it holds.")
        tensors |= held
    return {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in tensors.items()}


def shards(folder: Path, weights_file: str) -> dict[Path, set[str] | None]:
    """The files that hold the weights, each with the tensors it must hold (None: any)."""
    whole = folder / weights_file
    if whole.is_file():
        return {whole: None}
    index = index_of(whole)
    if not index.is_file():
        raise NotFound(f"{folder} holds no weights: neither {whole.name} nor {index.name}.")
    table = read_json(index, limit=64 << 20).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise BrokenFile(f"{index} has no weight_map.")
    files: dict[Path, set[str] | None] = {}
    for tensor, name in cast(dict[str, Any], table).items():
        if not isinstance(name, str) or Path(name).name != name or name.startswith("."):
            raise BrokenFile(f"{index} names the file {name!r}; only plain file names are allowed.")
        held = files.setdefault(folder / name, set())
        assert held is not None
        held.add(tensor)
    for file in files:
        if not file.is_file():
            raise BrokenFile(f"{index} names {file.name}, which is missing. Download it again.")
    return files


def require_size(spec: ModelSpec, config: Any, tensors: Mapping[str, Tensor], path: Path) -> None:
    """BrokenFile for a config that would have far more numbers than the weights hold (tied ones
    are held once): asked before any memory is taken for them."""
    import torch

    held = sum(tensor.numel() for tensor in tensors.values())
    try:
        with torch.device("meta"):
            wanted = sum(p.numel() for p in spec.model.load()(config).parameters())
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0]
        raise BrokenFile(f"{path / CONFIG} describes no model that can be: {reason}") from error
    if wanted > 2 * held + 1_000_000:
        raise BrokenFile(
            f"{path} describes a model of {wanted:,} numbers, but its weights hold {held:,}; the "
            "weights are of another model, or config.json is damaged."
        )


def keep_fitting(model: Model, tensors: Mapping[str, Tensor], path: Path) -> Kept:
    """Fill the module with what fits it by name and shape; the rest stays as it was made.

    UsageError if nothing fits.
    """
    own = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in tensors.items()
        if name in own and own[name].shape == tensor.shape
    }
    if not fitting:
        raise UsageError(
            f"Nothing in {path} fits this architecture; begin with a model of the same family."
        )
    model.load_state_dict(fitting, strict=False)
    filled = {own[name].data_ptr() for name in fitting}
    return Kept(
        kept=len(fitting),
        fresh=tuple(name for name, tensor in own.items() if tensor.data_ptr() not in filled),
        left=tuple(sorted(tensors.keys() - fitting.keys())),
    )


def load_tensors(model: Model, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill the module; BrokenFile unless every parameter is there once, in its shape.

    A parameter known by several names (tied) is found under any of them.
    """
    own = model.state_dict()
    if unknown := sorted(tensors.keys() - own.keys()):
        raise BrokenFile(
            f"{path} holds {listed(unknown)}, which this architecture does not have: the weights "
            "are of another one, or damaged; check config.json or download them again."
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise BrokenFile(
                f"{path}: '{name}' has shape {tuple(tensor.shape)}, but the config makes it "
                f"{tuple(own[name].shape)}."
            )
    found = {own[name].data_ptr() for name in tensors}
    if missing := [n for n in own if n not in tensors and own[n].data_ptr() not in found]:
        raise BrokenFile(
            f"{path} lacks {listed(missing)}: the weights are of another architecture, or damaged; "
            "check config.json or download them again."
        )
    model.load_state_dict(dict(tensors), strict=False)
