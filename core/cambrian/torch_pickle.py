"""The few instructions of pickle that describe tensors, carried out by a machine of our own.

torch.save writes weights as a pickle, which is a program: run by Python's `pickle` it can import
and call anything. Here nothing is imported and nothing is called. A name ("torch._utils
_rebuild_tensor_v2") is a `Global`, allowed if it is in a short list, and "calling" one only notes
down a `TensorView`. What a file can make of this is plain values, and no more of them than the
program has steps. The format: CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple, cast

STEPS = 5_000_000  # a tensor takes about 40 of them
STORAGES = {  # torch's name of a storage's type: the safetensors format's name
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
}
TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
PARAMETERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
)
DICTIONARY, SIZE = "collections.OrderedDict", "torch.Size"
BYTE, WORD, LONG, LENGTH = Struct("<B"), Struct("<H"), Struct("<i"), Struct("<I")
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before torch 1.6


class Refused(ValueError):
    """Why a pickle is not taken, as the end of a sentence."""


class Global(NamedTuple):
    """A name that the pickle refers to, not the thing itself."""

    name: str


class Storage(NamedTuple):
    """Numbers that tensors look at: the key they are stored by, and how many there are."""

    key: str
    dtype: str
    size: int


class TensorView(NamedTuple):
    """A tensor: where in a storage it begins, its shape and its strides, all in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Pickled(NamedTuple):
    """A pickle's value, where the pickle ends, and every storage it refers to, by key."""

    value: Any
    end: int
    storages: Mapping[str, Storage]


class Table(dict[Any, Any]):
    """An OrderedDict of the pickle's; the attributes it may have (a state dict's versions of
    modules) are dropped."""


class _Machine:
    """A pickle being read: its stack, its memo, and where in `data` it is."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.left = STEPS

    def run(self) -> Any:
        """The value that the program ends with."""
        while True:
            self.spend(1)
            code = self.take(1)[0]
            if code == pickle.STOP[0]:
                return self.stack.pop()
            if (act := INSTRUCTIONS.get(code)) is None:
                raise Refused(
                    f"its pickle has the instruction {_name_of(code)}, which weights lack"
                )
            act(self)

    def spend(self, steps: int) -> None:
        """Count steps: no instruction may cost much more than the bytes it is written in."""
        self.left -= steps
        if self.left < 0:
            raise Refused(f"its pickle has more than {STEPS:,} steps")

    def take(self, count: int) -> bytes:
        """The next bytes of the program."""
        if count < 0 or count > len(self.data) - self.position:
            raise Refused("its pickle ends too early; download it again")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, form: Struct) -> Any:
        """The next number of the program."""
        return form.unpack(self.take(form.size))[0]

    def line(self) -> str:
        """The rest of the program's line."""
        end = self.data.find(b"\n", self.position, self.position + 1000)
        line = self.take(end - self.position if end >= 0 else -1)
        self.position += 1
        return line.decode()

    def marked(self) -> list[Any]:
        """What lies above the last mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items


def read_pickle(data: bytes, position: int = 0) -> Pickled:
    """Run the pickle that begins at `position`.

    Refused for anything but plain values, dictionaries, lists and tuples of them and of tensors.
    """
    machine = _Machine(data, position)
    try:
        return Pickled(machine.run(), machine.position, machine.storages)
    except Refused:
        raise
    except (IndexError, KeyError, TypeError, ValueError, StructError) as error:
        raise Refused("its pickle is damaged; download it again") from error


def _name_of(code: int) -> str:
    import pickletools

    names = (known.name for known in pickletools.opcodes if ord(known.code) == code)
    return next(names, f"0x{code:02x}")


def _skip(count: int) -> Callable[[_Machine], None]:
    def act(m: _Machine) -> None:
        m.take(count)

    return act


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(value)


def _new(kind: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(kind())


def _number(form: Struct) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(m.number(form))


def _text(form: Struct) -> Callable[[_Machine], None]:
    """Python 2's strings are bytes; all that weights have are names, which are ASCII."""
    return lambda m: m.stack.append(m.take(m.number(form)).decode("utf-8", "surrogatepass"))


def _tuple(count: int) -> Callable[[_Machine], None]:
    def act(m: _Machine) -> None:
        items = tuple(m.stack.pop() for _ in range(count))
        m.stack.append(items[::-1])

    return act


def _marked_tuple(m: _Machine) -> None:
    items = m.marked()
    m.stack.append(tuple(items))


def _get(form: Struct) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(m.memo[m.number(form)])


def _put(form: Struct) -> Callable[[_Machine], None]:
    def act(m: _Machine) -> None:
        m.memo[m.number(form)] = m.stack[-1]

    return act


def _memoize(m: _Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


def _mark(m: _Machine) -> None:
    m.outer.append(m.stack)
    m.stack = []


def _long(m: _Machine) -> None:
    m.stack.append(int.from_bytes(m.take(m.number(BYTE)), "little", signed=True))


def _extend(m: _Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if type(target) is not list:
        raise Refused("its pickle is damaged: it appends to what is no list")
    cast(list[Any], target).extend(items)


def _set_items(m: _Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if not isinstance(target, dict):
        raise Refused("its pickle is damaged: it sets items of what is no dictionary")
    _fill(cast(dict[Any, Any], target), zip(items[::2], items[1::2], strict=True))


def _fill(target: dict[Any, Any], pairs: Any) -> None:
    for key, value in pairs:
        if not isinstance(key, str | int | float | None):  # hashing a tuple can take for ever
            raise Refused(f"it holds a dictionary with a key of type {type(key).__name__}")
        target[key] = value


def _append(m: _Machine) -> None:
    item = m.stack.pop()
    _extend(m, [item])


def _set_item(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    _set_items(m, [key, value])


def _line_global(m: _Machine) -> None:
    module, name = m.line(), m.line()
    m.stack.append(_allowed(module, name))


def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise Refused("its pickle is damaged: a name that is no string")
    m.stack.append(_allowed(module, name))


def _allowed(module: str, name: str) -> Global:
    """The name, if weights have use for it; otherwise Refused tells what the file holds."""
    full = f"{module}.{name}"
    if full in (DICTIONARY, SIZE, *TENSORS, *PARAMETERS):
        return Global(full)
    if module in ("torch", "torch.cuda") and name in STORAGES:
        return Global(name)
    shown = ascii(full[:80])[1:-1]
    if module == "numpy" or module.startswith("numpy."):
        raise Refused(f"it holds an array of numpy ({shown}); save tensors alone")
    if module.startswith("torch.nn.modules"):
        raise Refused(f"it holds a whole module ({shown}); save its state_dict instead")
    if module.startswith("__torch__"):
        raise Refused(f"it is a program of TorchScript ({shown}); save a state_dict instead")
    if module.startswith("torch"):
        raise Refused(
            f"it needs {shown}, but only dense tensors of real numbers are read; save such ones"
        )
    if name[:1].isupper():
        raise Refused(f"it holds an object of the class {shown}; save a state_dict instead")
    raise Refused(f"it calls {shown}, which weights have no use for; it may be an attack")


def _reduce(m: _Machine) -> None:
    arguments, function = m.stack.pop(), m.stack.pop()
    if not isinstance(function, Global) or type(arguments) is not tuple:
        raise Refused("its pickle is damaged: it calls what is no function")
    given = cast(tuple[Any, ...], arguments)
    if len(given) > 8:  # a tuple once made can be given a million times
        raise Refused("its pickle is damaged: a call with too many arguments")
    called = _table(m, *given) if function.name == DICTIONARY else _called(function.name, given)
    m.stack.append(called)


def _table(m: _Machine, pairs: Any = ()) -> Table:
    """An OrderedDict, of pairs where Python 2 wrote it."""
    if not isinstance(pairs, list | tuple):
        raise Refused("its pickle is damaged: a dictionary of no pairs")
    m.spend(len(cast(list[Any], pairs)))
    table = Table()
    _fill(table, pairs)
    return table


def _called(name: str, arguments: tuple[Any, ...]) -> Any:
    """What a call stands for: a shape or a tensor."""
    if name == SIZE:
        return _sizes(*arguments)
    if name in PARAMETERS:
        if not isinstance(arguments[0], TensorView):
            raise Refused("its pickle is damaged: a parameter that is no tensor")
        return arguments[0]
    if name not in TENSORS:
        raise Refused("its pickle is damaged: it calls what is no function")
    storage, offset, shape, strides, *_ = arguments
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise Refused("its pickle is damaged: a tensor without a place")
    if len(arguments) == 7 and arguments[6]:
        raise Refused("it holds a tensor that is conjugated or negated when it is read")
    return TensorView(storage, offset, _sizes(shape), _sizes(strides))


def _sizes(value: Any) -> tuple[int, ...]:
    """A shape, or strides; Refused for anything but a few numbers that 64 bits hold."""
    if not isinstance(value, list | tuple) or len(cast(list[Any], value)) > 64:
        raise Refused("its pickle is damaged: a tensor whose shape or strides are none")
    items = tuple(cast(list[Any], value))
    if not all(type(item) is int and 0 <= item < 1 << 63 for item in items):
        raise Refused("its pickle is damaged: a tensor whose shape or strides are none")
    return items


def _persistent(m: _Machine) -> None:
    """A storage: ("storage", its type, its key, a device, how many numbers[, None])."""
    found = m.stack.pop()
    if type(found) is not tuple or len(cast(tuple[Any, ...], found)) not in (5, 6):
        raise Refused("its pickle is damaged: it refers to what is no storage of tensors")
    what, kind, key, _, size, *view = cast(tuple[Any, ...], found)
    if what != "storage" or not isinstance(kind, Global) or kind.name not in STORAGES or any(view):
        raise Refused("it holds a storage of a kind that is not read")
    if type(key) is not str or type(size) is not int or not 0 <= size < 1 << 60:
        raise Refused("its pickle is damaged: a storage without key or size")
    storage = Storage(key, STORAGES[kind.name], size)
    if m.storages.setdefault(key, storage) != storage:
        raise Refused("one of its storages has two types or sizes")
    m.stack.append(storage)


def _build(m: _Machine) -> None:
    m.stack.pop()
    if not isinstance(m.stack[-1], Table):
        raise Refused("its pickle is damaged: it changes what has no attributes")


_ALL: tuple[tuple[bytes, Callable[[_Machine], None]], ...] = (
    (pickle.PROTO, _skip(1)),
    (pickle.FRAME, _skip(8)),  # a hint for readers of slow files
    (pickle.NONE, _constant(None)),
    (pickle.NEWTRUE, _constant(True)),
    (pickle.NEWFALSE, _constant(False)),
    (pickle.EMPTY_TUPLE, _constant(())),
    (pickle.EMPTY_LIST, _new(list)),
    (pickle.EMPTY_DICT, _new(dict)),
    (pickle.BININT, _number(LONG)),
    (pickle.BININT1, _number(BYTE)),
    (pickle.BININT2, _number(WORD)),
    (pickle.BINFLOAT, _number(Struct(">d"))),
    (pickle.LONG1, _long),
    (pickle.BINUNICODE, _text(LENGTH)),
    (pickle.SHORT_BINUNICODE, _text(BYTE)),
    (pickle.BINSTRING, _text(LENGTH)),
    (pickle.SHORT_BINSTRING, _text(BYTE)),
    (pickle.MARK, _mark),
    (pickle.TUPLE, _marked_tuple),
    (pickle.TUPLE1, _tuple(1)),
    (pickle.TUPLE2, _tuple(2)),
    (pickle.TUPLE3, _tuple(3)),
    (pickle.APPEND, _append),
    (pickle.APPENDS, lambda m: _extend(m, m.marked())),
    (pickle.SETITEM, _set_item),
    (pickle.SETITEMS, lambda m: _set_items(m, m.marked())),
    (pickle.BINGET, _get(BYTE)),
    (pickle.LONG_BINGET, _get(LENGTH)),
    (pickle.BINPUT, _put(BYTE)),
    (pickle.LONG_BINPUT, _put(LENGTH)),
    (pickle.MEMOIZE, _memoize),
    (pickle.GLOBAL, _line_global),
    (pickle.STACK_GLOBAL, _stack_global),
    (pickle.REDUCE, _reduce),
    (pickle.BUILD, _build),
    (pickle.BINPERSID, _persistent),
)
INSTRUCTIONS: Mapping[int, Callable[[_Machine], None]] = {code[0]: act for code, act in _ALL}
