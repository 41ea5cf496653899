"""A model as a folder, in the layout of the Hugging Face Hub.

    config.json   model.safetensors   processor files   generation_config.json   README.md

The weights go by another name where the spec says so, may be in shards that an index names, and
may be what torch.save wrote (pytorch_model.bin) where there is no safetensors file; that is
converted once, into the user's cache. They are untrusted: names, shapes and number types in their
headers are compared with the architecture before memory is taken for any of them.

A folder made elsewhere opens as well as our own: the architecture is told by our own mark in
config.json or, without it, by the class and the `model_type` that the specs declare.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from cambrian.errors import BrokenFile, CambrianError, NotFound, UsageError, listed, nearest
from cambrian.files import read_json, sha256, write_json, write_with
from cambrian.outlines import at_most, equal_by_shape
from cambrian.specs import ModelSpec
from cambrian.torch_files import converted, torch_name
from cambrian.weight_files import DTYPES, Header, header

if TYPE_CHECKING:
    from torch import Tensor

    from cambrian.data import Processor
    from cambrian.model import Model

CONFIG = "config.json"
GENERATION = "generation_config.json"
LONGEST_NAME = 80  # characters of a name that is of no use, in a message
MARGIN = 1000  # parameters that a model may have beyond those that its weights explain
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

        files = shards(self.path, self.spec.weights_file)
        require_match(self.spec, self.config, read_outlines(files), self.path)
        tensors = renamed(self.spec, self.config, read_tensors(files))
        with torch.random.fork_rng(devices=[]):
            model = self.spec.model.load()(self.config)
        load_tensors(model, tensors, self.path)
        return model.eval()

    def tensors(self, spec: ModelSpec, config: Any) -> dict[str, Tensor]:
        """The weights under the names of `spec`'s module, which may be another than the own."""
        files = shards(self.path, self.spec.weights_file)
        return renamed(spec, config, read_tensors(files))

    def processor(self) -> Processor:
        """Load the processor's files."""
        return self.spec.processor.load().load(self.path)

    def generation(self) -> Mapping[str, Any]:
        """generation_config.json, or nothing."""
        file = self.path / GENERATION
        return read_json(file) if file.is_file() else {}

    def weights_sha256(self) -> str:
        """The sha256 of the weights' file as it lies in the folder; of shards, that of all their
        hashes, line by line in the order of their names, as sha256sum writes them."""
        found = find_weights(self.path, self.spec.weights_file)
        if found.suffix != ".json":
            return sha256(found)
        lines = [f"{sha256(file)}  {file.name}\n" for file in sorted(read_index(found))]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class Shard(NamedTuple):
    """One of the files that hold a model's weights: as it lies in the folder, as a safetensors
    file (the same, or converted from it), and the header of that, checked."""

    source: Path
    file: Path
    header: Header


def index_of(file: Path) -> Path:
    """Where the index of weights lies that `file` would hold, were they not in shards."""
    return file.with_name(f"{file.name}.index.json")


def find_weights(folder: Path, weights_file: str) -> Path:
    """The weights' file or its shards' index; what torch.save wrote only if there is no other.

    NotFound if the folder has none of them.
    """
    ours, theirs = folder / weights_file, folder / torch_name(weights_file)
    for file in (ours, index_of(ours), theirs, index_of(theirs)):
        if file.is_file():
            return file
    raise NotFound(
        f"{folder} holds no weights: neither {ours.name} nor {index_of(ours).name}, and no "
        f"{theirs.name}."
    )


def recognise(description: Mapping[str, Any], specs: Iterable[ModelSpec], file: Path) -> ModelSpec:
    """Find the architecture that a config.json speaks of."""
    specs = list(specs)
    mark = description.get("cambrian")
    if isinstance(mark, Mapping):
        name = str(cast(Mapping[str, Any], mark).get("architecture"))[:LONGEST_NAME]
        for spec in specs:
            if spec.name == name:
                return spec
        raise NotFound(
            f"{file} needs the architecture {name!r}, which no plugin provides."
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
        f"{file} has {key} {repr(description.get(key))[:LONGEST_NAME]}, which no plugin provides. "
        "If it is one of `cambrian list` all the same, say so in cambrian.toml: [models.NAME] with "
        'architecture = "..." and weights = "hf://owner/repo".'
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


def shards(folder: Path, weights_file: str) -> list[Shard]:
    """The files that hold the weights; what torch.save wrote is converted.

    NotFound if there are none, BrokenFile for an index or a file that is damaged.
    """
    found = find_weights(folder, weights_file)
    files = read_index(found) if found.suffix == ".json" else {found: set[str]()}
    for file in files:
        if not file.is_file():
            raise BrokenFile(f"{found} names {file.name}, which is missing. Download it again.")
    return [open_shard(file, names) for file, names in files.items()]


def open_shard(source: Path, names: set[str]) -> Shard:
    """Read a file's header; BrokenFile if it is damaged or lacks one of the tensors `names`."""
    file = converted(source) if source.suffix == ".bin" else source
    found = header(file)
    if lost := names - found.tensors.keys():
        raise BrokenFile(f"{source} lacks '{min(lost)}', which its index says it holds.")
    return Shard(source, file, found)


def read_index(index: Path) -> dict[Path, set[str]]:
    """The files beside an index that it names, with the tensors that each must hold."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise BrokenFile(f"{index} has no weight_map.")
    kind = Path(index.name.removesuffix(".index.json")).suffix
    files: dict[Path, set[str]] = {}
    for tensor, name in cast(dict[str, Any], table).items():
        if not isinstance(name, str) or Path(name).name != name or name.startswith("."):
            raise BrokenFile(f"{index} names the file {name!r}; only plain file names are allowed.")
        if Path(name).suffix != kind:
            raise BrokenFile(f"{index} names the file {name!r}, which is no {kind} file.")
        files.setdefault(index.with_name(name), set()).add(tensor)
    return files


def read_outlines(files: Iterable[Shard]) -> dict[str, Tensor]:
    """The weights without their numbers, on the meta device, as the files' headers have them."""
    import torch

    outlines: dict[str, Tensor] = {}
    for shard in files:
        for name, info in shard.header.tensors.items():
            dtype = getattr(torch, DTYPES[info.dtype][0])
            outlines[name] = torch.empty(info.shape, dtype=dtype, device="meta")
    return outlines


def read_tensors(files: Iterable[Shard]) -> dict[str, Tensor]:
    """The weights, all numbers that are no whole ones in float32."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for shard in files:
        try:
            tensors |= load_file(shard.file)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise BrokenFile(
                f"{shard.source} is not a readable safetensors file ({error})."
            ) from error
    return {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in tensors.items()}


def renamed(spec: ModelSpec, config: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under the names of the module."""
    return tensors if spec.weights is None else spec.weights.load().load(tensors, config)


def require_match(spec: ModelSpec, config: Any, outlines: dict[str, Tensor], path: Path) -> None:
    """BrokenFile unless weights like these fit the module that the config describes; neither is
    given memory. A family whose names need numbers to be told is asked again when they are there.
    """
    import torch

    try:
        with torch.device("meta"), at_most(MARGIN + 8 * len(outlines), str(path)):
            model = spec.model.load()(config)
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0]
        raise BrokenFile(f"{path / CONFIG} describes no model that can be: {reason}") from error
    wanted = sum(parameter.numel() for parameter in model.parameters())
    held = sum(tensor.numel() for tensor in outlines.values())
    if wanted > 2 * held + 1_000_000:  # tied ones are held once
        raise BrokenFile(
            f"{path} describes a model of {wanted:,} numbers, but its weights hold {held:,}; the "
            "weights are of another model, or config.json is damaged."
        )
    try:
        with equal_by_shape():
            named = renamed(spec, config, outlines)
    except (RuntimeError, TypeError):
        return
    require_fit(model, named, path)


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
    require_fit(model, tensors, path)
    model.load_state_dict(dict(tensors), strict=False)


def require_fit(model: Model, tensors: Mapping[str, Tensor], path: Path) -> None:
    """BrokenFile unless the tensors are those of the module, by name, shape and kind of number."""
    own: dict[str, Tensor] = model.state_dict(keep_vars=True)  # tied ones are one object then
    if unknown := sorted(tensors.keys() - own.keys()):
        raise BrokenFile(
            f"{path} holds {listed(unknown)}, which this architecture does not have: the weights "
            "are of another one, or damaged; check config.json or download them again."
        )
    if wrong := [n for n, tensor in tensors.items() if tensor.shape != own[n].shape]:
        shapes = [f"'{n}' {tuple(tensors[n].shape)} for {tuple(own[n].shape)}" for n in wrong]
        raise BrokenFile(
            f"{path} has weights of another shape than the config makes: {listed(shapes)}; check "
            "config.json or download them again."
        )
    floats = [n for n in tensors if own[n].is_floating_point()]
    if whole := [n for n in floats if not tensors[n].is_floating_point()]:
        types = [f"'{n}' ({str(tensors[n].dtype).removeprefix('torch.')})" for n in whole]
        raise BrokenFile(
            f"{path} holds {listed(types)} where real numbers belong: the weights are quantised, "
            "or of another architecture."
        )
    found = {id(own[name]) for name in tensors}
    if missing := [name for name, tensor in own.items() if id(tensor) not in found]:
        raise BrokenFile(
            f"{path} lacks {listed(missing)}: the weights are of another architecture, or damaged; "
            "check config.json or download them again."
        )
