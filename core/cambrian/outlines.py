"""Modules and tensors without numbers, on the meta device: what may be made of them, and compared.

Nothing here imports torch before it is called.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from threading import get_ident
from typing import Any

from cambrian.errors import BrokenFile


@contextmanager
def at_most(count: int, where: str) -> Generator[None]:
    """BrokenFile as soon as more parameters than `count` are made: a number in config.json can ask
    for more layers than fit into memory, and building them takes hours before that."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    made, thread = 0, get_ident()

    def made_one(module: Any, name: str, parameter: Any) -> None:
        nonlocal made
        made += get_ident() == thread
        if made > count:
            raise BrokenFile(
                f"{where} describes a model of more than {count:,} tensors, far more than its "
                "weights have; they are of another model, or config.json is damaged."
            )

    hook = register_module_parameter_registration_hook(made_one)
    try:
        yield
    finally:
        hook.remove()


def equal_by_shape() -> AbstractContextManager[Any]:
    """Let `torch.equal` compare shapes, since tensors on the meta device have nothing else: what
    ties two names may compare them."""
    import torch
    from torch.overrides import TorchFunctionMode

    class ByShape(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if func in (torch.equal, torch.Tensor.equal):
                return args[0].shape == args[1].shape
            return func(*args, **(kwargs or {}))

    return ByShape()
