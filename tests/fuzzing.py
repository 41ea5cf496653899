"""Mutations of files from elsewhere, and the process that reads them within hard limits.

    python tests/fuzzing.py KIND CASES SEED FOLDER

reads CASES files of a KIND, each a mutation of a good one, and prints what came of it as JSON. A
case that computes for more than 2 s ends the process by a signal, even inside of a library written
in Rust; memory has a limit that the system holds. The last case lies in FOLDER.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import signal
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

import fuzzing_seeds
from cambrian.errors import CambrianError

SECONDS = 2.0  # of computing, for one case
MEMORY = 500 << 20  # bytes, beyond what reading good files takes
LONGEST = 2000  # letters of a sentence
# What is put in: numbers that are no sizes, other types, what escapes, what nests.
PIECES = (
    b"null", b"-1", b"1e999", b"99999999999999999999", b'"../../x"', b"[[[[[[[[", b'{"a":', b"\x00",
    b"\xff\xfe", b"true", b'""', b"\n", b"=", b"'''", b"[models.a]\n", b'"\\ud800"', b"1" * 5000,
    b"NaN", b"[" * 3000, b"a." * 3000, b'{"a":' * 3000, "\U0001f600\u0301".encode(), b" " * 70,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 1000, 2**31, 2**32 - 1, 2**63, 10**30, 0.5, 1e308, float("nan"),
    "", "x", "x y", "\n", "\x7f", "\ud800", "\U0001f600", "../x", "[UNK]", "a" * 3000, "(a+)+$",
    "((a{999}){999}){999}", [], {}, [0], ["a", "b"], {"a": 1}, [[0, 1]], {"type": "x"},
)  # fmt: skip


class Place(NamedTuple):
    """Where a value is: in which list or dictionary, under which key."""

    inside: Any
    key: Any


def mutated(name: str, data: bytes, chance: random.Random) -> bytes:
    """The content of a file of this name, changed: as what it says, or as bytes."""
    change = next((c for ending, c in CHANGES.items() if name.endswith(ending)), None)
    if change is not None and chance.random() < 0.7:
        try:
            return change(data, chance)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, AttributeError):
            pass
    return changed_bytes(data, chance)


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut, doubled, or replaced by a piece."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(out) + 1)
        end = min(len(out), at + chance.choice((0, 1, 2, 8, 40)))
        how = chance.randrange(4)
        if how == 0:
            out[at:end] = bytes(chance.randrange(256) for _ in range(end - at))
        elif how == 1:
            out[at:end] = chance.choice(PIECES)
        elif how == 2:
            out[at:at] = out[at:end]
        else:
            del out[at:end]
    return bytes(out)


def changed_tree(tree: Any, chance: random.Random) -> Any:
    """A few values of nested lists and dictionaries replaced, removed, doubled or renamed."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(places_in(tree))
        if not places:
            return chance.choice(VALUES)
        inside, key = chance.choice(places)
        other = chance.choice(places)
        how = chance.randrange(6)
        if how <= 1:
            inside[key] = chance.choice(VALUES)
        elif how == 2:
            inside[key] = copy.deepcopy(other.inside[other.key])
        elif how == 3:
            del inside[key]
        elif how == 4:
            inside[key] = chance.choice(([inside[key]], {"a": inside[key]}))
        elif isinstance(inside, dict):
            inside[str(chance.choice((other.key, *VALUES[15:27])))] = inside.pop(key)
        else:
            inside[key:key] = [copy.deepcopy(inside[key])] * chance.choice((1, 70))
    return tree


def places_in(tree: Any) -> Iterator[Place]:
    """Every place of a tree, those of its branches after its own."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield Place(tree, key)
        if isinstance(value, dict | list):
            yield from places_in(value)


def changed_json(data: bytes, chance: random.Random) -> bytes:
    return json.dumps(changed_tree(json.loads(data), chance)).encode()


def changed_toml(data: bytes, chance: random.Random) -> bytes:
    tree = changed_tree(tomllib.loads(data.decode()), chance)
    return tomli_w.dumps(tree).encode("utf-8", "surrogatepass")


def changed_header(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file with another header around the same numbers."""
    size = int.from_bytes(data[:8], "little")
    header = changed_json(data[8 : 8 + size], chance)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def changed_lines(data: bytes, chance: random.Random) -> bytes:
    lines = data.split(b"\n")
    for _ in range(chance.randint(1, 3)):
        at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
        how = chance.randrange(4)
        if how == 0:
            lines[at] = lines[other]
        elif how == 1:
            lines[at] += chance.choice((b" ", b"  ", b"\r", b"\t", *PIECES))
        elif how == 2:
            lines[at] = chance.choice(PIECES)
        elif len(lines) > 1:
            del lines[at]
    return b"\n".join(lines)


def changed_message(data: bytes, chance: random.Random) -> bytes:
    """A protobuf message with fields replaced, removed or doubled, here or a level down."""
    from cambrian.data.vocabularies import _wire  # pyright: ignore[reportPrivateUsage]

    fields: list[tuple[int, int | bytes]] = list(_wire(data))
    at = chance.randrange(len(fields))
    number, value = fields[at]
    how = chance.randrange(5)
    if how <= 1 and isinstance(value, bytes) and value:
        fields[at] = (number, mutated(".model", value, chance))
    elif how == 2:
        fields[at] = (number, chance.choice((0, 1, 2, 3, 2**31, 2**64 - 1, b"", *PIECES)))
    elif how == 3:
        fields[at] = (chance.choice((0, 1, 2, 3, 4, 5, 35, 2**28)), value)
    else:
        fields[at : at + 1] = [fields[at]] * chance.choice((0, 2, 70))
    return b"".join(fuzzing_seeds.field(number, value) for number, value in fields)


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": changed_json,
    ".toml": changed_toml,
    ".lock": changed_toml,
    ".safetensors": changed_header,
    ".txt": changed_lines,
    ".codes": changed_lines,
    ".model": changed_message,
}


def memory(what: str) -> int:
    """A figure of this process's memory in bytes, as Linux tells it: "VmSize", "VmHWM"."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(what))


def run(kind: str, cases: int, seed: int, folder: Path) -> dict[str, Any]:
    """Read `cases` mutations; what came of them."""
    kinds = fuzzing_seeds.KINDS[kind]
    seeds, read = kinds.seeds(), kinds.read
    for files in seeds:
        write(files, folder)
        read(folder)
    before, limit = memory("VmHWM"), memory("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    chance, refused = random.Random(f"{kind} {seed}"), 0
    for number in range(cases):
        files = dict(chance.choice(seeds))
        name = chance.choice([name for name in files if name not in kinds.whole])
        files[name] = mutated(name, files[name], chance)
        write(files, folder)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # unhandled, its signal ends the process
        try:
            read(folder)
        except CambrianError as error:
            refused += 1
            if not str(error):
                return {"fault": f"case {number}: {str(error)[:5000]}"}
        except BaseException:  # panics of Rust are no Exceptions
            return {"fault": f"case {number}: {traceback.format_exc()}"}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return {"cases": cases, "refused": refused, "grown": memory("VmHWM") - before}


def write(files: dict[str, bytes], folder: Path) -> None:
    """Put the files into the folder, and nothing else."""
    for path in folder.iterdir():
        if path.name not in files and path.is_file():
            path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    kind, cases, seed, folder = sys.argv[1:]
    print(json.dumps(run(kind, int(cases), int(seed), Path(folder))))
