"""What every plugin must keep as a guest: its row is clean, and looking at it costs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from cambrian.discovery import OWN, normal, supported
from cambrian.plugins import Plugin
from cambrian.testing.commands import cambrian, run

PluginCheck = Callable[[Plugin, Path], None]
HEAVY = {
    "PIL", "diffusers", "huggingface_hub", "jax", "matplotlib", "numpy", "onnx", "onnxruntime",
    "onnxscript", "openvino", "pandas", "safetensors", "scipy", "sklearn", "tensorflow",
    "tokenizers", "torch", "transformers",
}  # fmt: skip
MOST_MODULES = 50  # of others, that a plugin may import to say what it registers

LOOK = """
import json, sys
from cambrian.discovery import discover
from cambrian.plugins import Plugins
import cambrian.registry
found = [c for c in discover() if (c.name, c.distribution) == {plugin!r}]
before = {{*sys.modules}}
plugins = Plugins(found, {{}})
for hook in cambrian.registry.HOOK_OF.values():
    plugins.provided(hook)
plugins.provided("register_entries")
own = {{c.target.partition(":")[0].strip().partition(".")[0] for c in found}}
new = {{*sys.modules}} - before
print(json.dumps(sorted(name for name in new if name.partition(".")[0] not in own)))
"""


def check_row_is_clean(plugin: Plugin, folder: Path) -> None:
    """`cambrian plugins` calls it "ok" and has no note: no failing import or hook, no name that
    another has too, no print, warning or replaced stream."""
    rows: list[Any] = json.loads(cambrian(folder, "plugins", "--json"))["plugins"]
    mine = [
        row for row in rows
        if (row["name"], row["distribution"]) == (plugin.name, plugin.distribution)
    ]  # fmt: skip
    assert mine, f"`cambrian plugins` does not show {plugin.label}"
    for row in mine:
        assert row["status"] == "ok", f"{row['status']}: {row['reason']}. {row['remedy']}"
        assert not row["notes"], "; ".join(row["notes"])
        assert row["registers"], "it registers nothing"


def check_looking_is_light(plugin: Plugin, folder: Path) -> None:
    """To be listed it imports nothing heavy (torch, numpy, ...) and few modules of others."""
    done = run(folder, "-c", LOOK.format(plugin=(plugin.name, plugin.distribution)))
    assert done.returncode == 0, " ".join(done.stderr.split())[-500:]
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    heavy = sorted(HEAVY & {*loaded})
    assert not heavy, f"to be listed it imports {', '.join(heavy)}; import that where it is used"
    assert len(loaded) <= MOST_MODULES, (
        f"to be listed it imports {len(loaded)} modules, more than {MOST_MODULES}: "
        f"{', '.join(loaded[:5])}, ..."
    )


def check_it_states_what_it_supports(plugin: Plugin, folder: Path) -> None:
    """Its distribution requires cambrian, with a range of versions."""
    if normal(plugin.distribution) == OWN:
        return
    wanted = [line.replace(" ", "") for line in metadata.requires(plugin.distribution) or []]
    ours = [line for line in wanted if re.match(rf"{OWN}([^\w-]|$)", line, re.IGNORECASE)]
    assert ours, 'its pyproject.toml has no dependency on cambrian; write "cambrian>=0.1,<0.2"'
    supports = supported(metadata.distribution(plugin.distribution))
    assert supports or any(line.startswith(f"{OWN}@") for line in ours), (
        'it depends on any cambrian; say which it was made for: "cambrian>=0.1,<0.2"'
    )


PLUGIN_CHECKS: tuple[PluginCheck, ...] = (
    check_row_is_clean,
    check_looking_is_light,
    check_it_states_what_it_supports,
)
