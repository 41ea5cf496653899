"""Which files of a folder are the model, checked before any is sent; and its model card.

What may go is what the folder's own description names: config.json, the processor's files, the
weights and their index, the files of an export's manifest, the card and what it shows. The rest
stays, and the plan says why. Links are not followed.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cambrian
from cambrian.artifact import MANIFEST, Artifact
from cambrian.card import CARD, checkpoint_card, is_sealed
from cambrian.checkpoint import (
    CONFIG,
    GENERATION,
    Checkpoint,
    find_weights,
    index_of,
    read_config,
    shards,
)
from cambrian.errors import BrokenFile, UsageError
from cambrian.files import read_json
from cambrian.hub.listing import BESIDE, INDEX
from cambrian.hub.location import Location, parse_uri
from cambrian.hub.push import Order, Pushed, Upload
from cambrian.hub.push import push as send
from cambrian.registry import Registry, load_registry, model_folder
from cambrian.run_record import RunRecord, model_index, without_folders
from cambrian.torch_files import torch_name
from cambrian.weight_files import header

TRAIN = "train"
PREVIEW = "preview.png"
CURVE = "loss.svg"
CARD_LIMIT = 1 << 20  # bytes
TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
TEXTS = (".json", ".jsonl", ".md", ".svg", ".toml", ".txt")
STATE_FILES = ("run.json", "recipe.toml", "data.json", "metrics.jsonl", CURVE)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would be pushed: the files, why others stay (by name), and what to know besides.

    `replaced` are names by which a repository tells what the model is; they go if they are not
    among the files, since the model of before would be taken for this one.
    """

    location: Location
    files: tuple[Upload, ...]
    left: Mapping[str, str]
    notes: tuple[str, ...]
    replaced: frozenset[str] = frozenset()


def plan(
    folder: str | Path,
    address: str,
    *,
    revision: str | None = None,
    license: str = "",
    with_training_state: bool = False,
) -> Plan:
    """Check a checkpoint or an exported folder, and say what of it would go to hf://owner/repo.

    Asks no network. Raises UsageError for a folder that Cambrian did not make, a link among its
    files, a token in one and a wrong address; BrokenFile for one that is damaged.
    """
    location = parse_uri(address)
    if revision is not None:
        location = parse_uri(f"hf://{location.repo}@{revision}")
    folder = model_folder(Path(folder).expanduser())
    registry = load_registry()
    packing = Packing(folder, location, license, registry)
    if (folder / MANIFEST).is_symlink() or (folder / MANIFEST).is_file():
        packing.take_artifact()
    else:
        packing.take_checkpoint()
    if with_training_state:
        packing.take_training_state()
    left = dict(leftovers(folder, packing.files.keys()))
    files = tuple(packing.files[name] for name in sorted(packing.files))
    refuse_tokens(files)
    return Plan(
        location=location,
        files=files,
        left=left,
        notes=tuple(packing.notes),
        replaced=telling_names(registry),
    )


def telling_names(registry: Registry) -> frozenset[str]:
    """The names by which a repository tells which model it holds, whatever the architecture."""
    ours = {spec.weights_file for spec in registry.models.values()}
    weights = ours | {torch_name(name) for name in ours}
    return frozenset({*BESIDE, *weights, *(name + INDEX for name in weights)})


def refuse_tokens(files: Iterable[Upload]) -> None:
    """UsageError for a text among the files in which a token of the Hub stands."""
    for file in files:
        if PurePosixPath(file.name).suffix not in TEXTS:
            continue
        text = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
        if TOKEN.search(text):
            raise UsageError(
                f"{file.name} holds what looks like a token of the Hub (hf_...); take it out. If "
                "it has been anywhere public, revoke it."
            )


def push(
    planned: Plan,
    *,
    private: bool = False,
    pull_request: bool = False,
    message: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Pushed:
    """Send what was planned, in one commit. Raises as `cambrian.hub.push.push`."""
    order = Order(
        location=planned.location,
        message=f"Push with Cambrian {cambrian.__version__}" if message is None else message,
        replaced=planned.replaced,
        private=private,
        pull_request=pull_request,
    )
    return send(order, planned.files, report)


class Packing:
    """Collects the files of one folder, by their names in the repository."""

    def __init__(self, folder: Path, location: Location, license: str, registry: Registry) -> None:
        self.folder = folder
        self.location = location
        self.license = license
        self.registry = registry
        self.files: dict[str, Upload] = {}
        self.notes: list[str] = []

    @property
    def address(self) -> str:
        """Where it can be had afterwards."""
        return f"hf://{self.location.repo}"

    @property
    def name(self) -> str:
        """What the repository is called."""
        return self.location.repo.partition("/")[2]

    def take(self, name: str, source: str | None = None) -> None:
        """Add a file of the folder; UsageError for a link or a hidden name."""
        path = require_plain(self.folder, source or name)
        self.files[name] = Upload(name, path, path.stat().st_size)
        if name == MANIFEST or (name in BESIDE and name.endswith(CONFIG)):
            local: list[str] = []
            without_folders(read_json(path), local)
            self.note_private(name, [place for place in local if "/" in place[1:]])

    def note_private(self, name: str, places: Sequence[str]) -> None:
        """Say that a file names what may be nobody else's business, if it does."""
        if places:
            self.notes.append(
                f"{name} names paths of this machine or addresses with a key, {places[0]} for one, "
                "for all to read"
            )

    def take_artifact(self) -> None:
        """An exported folder: every file against its hash in the manifest."""
        require_plain(self.folder, MANIFEST)
        artifact = Artifact.open(self.folder)
        manifest = artifact.manifest
        for name in manifest.files:
            self.take(name)
        artifact.check()
        if not manifest.receipt.get("passed"):
            raise BrokenFile(
                f"{self.folder / MANIFEST} has no receipt of an export that equals its model. "
                "Export the model again."
            )
        spec = self.registry.pick("architecture", manifest.architecture)
        read_config(read_json(self.folder / CONFIG), spec, self.folder / CONFIG)
        self.take(MANIFEST)

        from cambrian.exporting.card import card

        self.take_card(
            lambda: card(
                manifest, spec.summary, self.name, address=self.address, license=self.license
            )
        )

    def take_checkpoint(self) -> None:
        """A checkpoint: its description, its processor's files and its weights."""
        require_plain(self.folder, CONFIG)
        checkpoint = Checkpoint.open(self.folder, self.registry.models.values())
        if "cambrian" not in checkpoint.description:
            raise UsageError(
                f"{self.folder} was not made by Cambrian; push it with what made it, for example "
                f"`hf upload {self.location.repo} {self.folder}`."
            )
        self.take(CONFIG)
        names = processor_files(checkpoint)
        if (self.folder / GENERATION).exists() or (self.folder / GENERATION).is_symlink():
            names.add(GENERATION)
        for name in sorted(names):
            self.take(name)
        self.take_weights(checkpoint)
        record = self.run_record()
        if record is None:
            self.notes.append(f"{TRAIN}/ holds no record of a run, so the card says little")
        self.take_card(lambda: self.card(checkpoint, record))
        self.take_pictures()

    def take_weights(self, checkpoint: Checkpoint) -> None:
        """The weights' files, the headers of which must fit them, and their index."""
        file = self.folder / checkpoint.spec.weights_file
        found = find_weights(self.folder, file.name)
        if found.name.startswith(torch_name(file.name)):
            raise UsageError(
                f"{found} is in torch's own format, which is not pushed; load the model and save "
                "it anew, or push a folder with safetensors."
            )
        if not (file.is_symlink() or file.is_file()):
            require_plain(self.folder, index_of(file).name)
            self.take(index_of(file).name)
        for shard in shards(self.folder, file.name):
            self.take(shard.source.name)

    def run_record(self) -> RunRecord | None:
        """What train/ says; links in it are not followed."""
        for name in (*STATE_FILES, "."):
            if (self.folder / TRAIN / name).is_symlink() or (self.folder / TRAIN).is_symlink():
                raise link(f"{TRAIN}/{name}")
        record = RunRecord.read(self.folder / TRAIN)
        if record is not None and record.steps < record.planned:
            self.notes.append(f"the run took {record.steps} of {record.planned} steps")
        return record

    def take_card(self, write: Callable[[], str]) -> None:
        """The card: a person's as it is, else a new one."""
        path = self.folder / CARD
        if path.is_symlink() or path.exists():
            require_plain(self.folder, CARD)
            if path.stat().st_size > CARD_LIMIT:
                raise BrokenFile(f"{path} has more than {CARD_LIMIT} bytes; no card is so long.")
            try:
                text = path.read_text("utf-8")
            except UnicodeDecodeError as error:
                raise BrokenFile(f"{path} is not UTF-8 ({error}); write it anew.") from error
            if not is_sealed(text):
                self.take(CARD)
                lost = ", and --license does not reach it" if self.license else ""
                self.notes.append(
                    f"{CARD} is not as Cambrian wrote it, so it goes as it is{lost}; delete it to "
                    "have one written"
                )
                return
        data = write().encode()
        self.files[CARD] = Upload(CARD, data, len(data))
        if b"\nlicense: " not in data:
            self.notes.append("no licence is stated; give one with --license")

    def card(self, checkpoint: Checkpoint, record: RunRecord | None) -> str:
        """A checkpoint's card from the run's record."""
        spec, more = checkpoint.spec, {}
        if record is None:
            command, settings = "cambrian train NAME -o FOLDER", ""
            record = RunRecord.empty()
        else:
            command, settings = record.command(), record.settings
            base = record.base_model(self.registry)
            more = {"base_model": base} if base else {}
            more |= model_index(self.name, spec.task, record)
            entry = record.origin(self.registry)
            if not self.license and entry is not None:
                self.license = entry.license
        return checkpoint_card(
            spec,
            self.name,
            record.data,
            record.metrics,
            command,
            address=self.address,
            license=self.license,
            more=more,
            settings=settings,
            pictures=[name for name, _ in self.pictures()],
        )

    def pictures(self) -> list[tuple[str, str]]:
        """Pictures that a card may show: (name in the repository, name in the folder)."""
        known = [(PREVIEW, PREVIEW), (CURVE, f"{TRAIN}/{CURVE}")]
        return [(name, place) for name, place in known if (self.folder / place).is_file()]

    def take_pictures(self) -> None:
        """Those that the card that goes does show."""
        upload = self.files[CARD]
        source = upload.source
        shown = source if isinstance(source, bytes) else source.read_bytes()
        for name, place in self.pictures():
            if f"]({name})".encode() in shown:
                self.take(name, place)

    def take_training_state(self) -> None:
        """The run's record and its last state, with which it can be gone on with."""
        record = self.run_record()
        if record is None:
            raise UsageError(f"{self.folder} has no training state; leave --with-training-state.")
        from cambrian.training.state import saved_states

        train = self.folder / TRAIN
        wanted = [train / name for name in STATE_FILES if (train / name).is_file()]
        for state in saved_states(train)[-1:]:
            wanted += sorted(p for p in state.iterdir() if p.suffix in (".json", ".safetensors"))
        for path in wanted:
            self.take(path.relative_to(self.folder).as_posix())
            if path.suffix == ".safetensors":
                header(path)
        self.note_private(f"{TRAIN}/", record.local)


def processor_files(checkpoint: Checkpoint) -> set[str]:
    """The names that the processor gives its files: read from the folder, written to another."""
    with tempfile.TemporaryDirectory(prefix="cambrian-push-") as scratch:
        checkpoint.processor().save(Path(scratch))
        return {p.relative_to(scratch).as_posix() for p in Path(scratch).rglob("*") if p.is_file()}


def require_plain(folder: Path, name: str) -> Path:
    """The path of a file below the folder; UsageError for a link, a hidden file or none at all."""
    path = folder
    for part in PurePosixPath(name).parts:
        path /= part
        if part.startswith("."):
            raise UsageError(f"'{name}' is hidden, and hidden files are not pushed; rename it.")
        if path.is_symlink():
            raise link(name)
    if not path.is_file():
        raise BrokenFile(f"{path} is missing or no file; the folder is incomplete.")
    return path


def link(name: str) -> UsageError:
    """What to say of a symbolic link."""
    return UsageError(
        f"'{name}' is a link, and links are not followed: they may lead out of the folder. Put the "
        "file itself in its place."
    )


def leftovers(folder: Path, planned: Iterable[str], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Names below the folder that are not planned, each with the reason; of folders nothing of
    which is planned only the name."""
    names = set(planned)
    for path in sorted((folder / prefix).iterdir()):
        name = f"{prefix}{path.name}"
        if name in names:
            continue
        inside = any(known.startswith(f"{name}/") for known in names)
        if path.is_dir() and not path.is_symlink() and inside:
            yield from leftovers(folder, names, f"{name}/")
        else:
            shown = f"{name}/" if path.is_dir() else name
            yield shown, why(path, name)


def why(path: Path, name: str) -> str:
    """The reason for which a file stays."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink():
        return "a link"
    if name in (PREVIEW, f"{TRAIN}/{CURVE}"):
        return "the card does not show it"
    if name == TRAIN:
        return "the training's state; --with-training-state sends it"
    return "no part of the model"
