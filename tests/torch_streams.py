"""Pickles of tensors put together by hand, and files of torch's older form around them."""

from __future__ import annotations

import pickle
import struct

from cambrian.torch_pickle import MAGIC

KEYS = b"\x80\x02]U\x010a."


def rebuilt(
    numbers: bytes = b"K\x06",
    offset: bytes = b"K\x00",
    shape: bytes = b"K\x02K\x03\x86",
    strides: bytes = b"K\x03K\x01\x86",
) -> bytes:
    """A pickle's instructions for a tensor, as torch 0.3 had them under Python 2."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + numbers + b"NtQ"
    return b"ctorch._utils\n_rebuild_tensor\n(" + storage + offset + shape + strides + b"tR"


def stream(
    program: bytes, keys: bytes = KEYS, numbers: bytes = bytes(24), little: bool = True
) -> bytes:
    """A file of the older form around a pickle that may hold a storage of six numbers."""
    machine = {"protocol_version": 1001, "little_endian": little, "type_sizes": {}}
    head = b"".join(pickle.dumps(part, 2) for part in (MAGIC, 1001, machine))
    return head + program + keys + struct.pack("<q", 6) + numbers
