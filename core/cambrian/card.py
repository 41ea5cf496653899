"""Model cards: README.md in the Hub's form (YAML header, Markdown), from what was recorded.

A card ends with a seal, the sha256 of what stands before it: so a card that a person edited is
told from one that may be written anew. Names and paths come from outside: none of them can end a
header, a table or a block of code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from cambrian.specs import ModelSpec

CARD = "README.md"
SEAL = "<!-- Written by Cambrian, which replaces it unless it was edited: sha256 {} -->\n"
SPECIAL = re.compile(r"([\\`*_\[\]<>|~$!&#])")
# The Hub's names of licences; it refuses any other. Source: huggingface/hub-docs,
# docs/hub/repositories-licenses.md at 242f4a1.
LICENSES = (
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m "
    "bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause "
    "bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 "
    "epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl "
    "gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 "
    "lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa "
    "odbl odc-by ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 other pddl "
    "postgresql unknown unlicense wtfpl zlib"
)
# Of the Hub's own names of tasks, those that models here may have; others are left unsaid. Source:
# huggingface/huggingface.js, packages/tasks/src/pipelines.ts at fe42e68.
TASKS = (
    "text-generation fill-mask text-classification token-classification sentence-similarity "
    "feature-extraction image-classification unconditional-image-generation summarization "
    "translation"
)
BROADER = {"text2text-generation": "text-generation"}  # a kind of the other, on the Hub
Header = Mapping[str, Any]


def sealed(text: str) -> str:
    """The card with its seal."""
    return text + SEAL.format(hashlib.sha256(text.encode()).hexdigest())


def is_sealed(card: str) -> bool:
    """Whether a card is as Cambrian wrote it."""
    text, start, _ = card.rpartition(SEAL.partition("{")[0])
    return bool(start) and sealed(text) == card


def header(
    task: str, tags: Sequence[str], license: str = "", more: Header | None = None
) -> list[str]:
    """The YAML header of a card. `license` is a name of the Hub's or of SPDX, or any other."""
    fields: dict[str, Any] = {"library_name": "cambrian"}
    if (tag := BROADER.get(task, task)) in TASKS.split():
        fields["pipeline_tag"] = tag
    fields["tags"] = list(tags)
    if license.lower() in LICENSES.split():
        fields["license"] = license.lower()
    elif license:
        fields |= {"license": "other", "license_name": license}
    return ["---", *yaml({**fields, **(more or {})}), "---", ""]


def yaml(value: Any, indent: str = "") -> list[str]:
    """Mappings and lists as lines of YAML; texts are quoted unless they are plain words."""
    lines: list[str] = []
    if isinstance(value, Mapping):
        pairs = [(f"{scalar(key)}:", item) for key, item in cast(Header, value).items()]
    else:
        pairs = [("-", item) for item in cast(Sequence[Any], value)]
    for mark, item in pairs:
        if isinstance(item, Mapping | list):
            inner = yaml(item, indent + "  ")
            if mark == "-":  # the first line of what is listed stands behind its dash
                inner[0] = f"{indent}- {inner[0].lstrip()}"
                lines += inner
            else:
                lines += [f"{indent}{mark}", *inner]
        else:
            lines.append(f"{indent}{mark} {scalar(item)}")
    return lines


def scalar(value: Any) -> str:
    """A number or a text; JSON's quotes are YAML's, too."""
    if isinstance(value, float):
        text = f"{value:.6g}"
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    if isinstance(value, int):
        return str(value)
    text = line(str(value))
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", text)
    if plain and text.lower() not in ("y", "n", "yes", "no", "on", "off", "true", "false", "null"):
        return text
    return json.dumps(text, ensure_ascii=False)


def line(text: str) -> str:
    """One line without control characters."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def quoted(text: str) -> str:
    """One line of text that Markdown takes for nothing else."""
    return SPECIAL.sub(r"\\\1", line(text))


def block(text: str, language: str = "") -> list[str]:
    """Text as a block of code that it cannot end."""
    runs = [len(run) for run in re.findall(r"`+", text)]
    fence = "`" * max(3, max(runs, default=0) + 1)
    return [fence + language, text.rstrip("\n"), fence, ""]


def checkpoint_card(
    spec: ModelSpec,
    name: str,
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
    command: str,
    *,
    address: str = "FOLDER",
    license: str = "",
    more: Header | None = None,
    settings: str = "",
    pictures: Sequence[str] = (),
) -> str:
    """README.md of a trained model.

    `address` is where it can be had; `more` goes into the YAML header; `settings` is the recipe in
    TOML, or empty where the folder holds it itself; `pictures` are files beside the card.
    """
    short = line(address).rpartition("/")[2]
    use = [f"cambrian run {line(address)}", f"cambrian export {line(address)} {short}-onnx"]
    recipe = (
        ["The settings, as `recipe.toml`:", "", *block(settings, "toml")]
        if settings
        else ["All settings are in `train/recipe.toml`, all figures in `train/metrics.jsonl`."]
    )
    lines = [
        *header(spec.task, [spec.name], license, more),
        f"# {quoted(name)}",
        "",
        f"A {quoted(spec.name)} model ({quoted(spec.summary)}), trained from the data below with "
        "Cambrian.",
        "",
        *[part for file in pictures for part in (f"![{file}]({file})", "")],
        "## Use",
        "",
        *block("\n".join(use)),
        "## Data",
        "",
        *table(data),
        "",
        "## Result",
        "",
        *table(metrics),
        "",
        "## How it was made",
        "",
        *block(line(command)),
        *recipe,
    ]
    return sealed("\n".join(lines).rstrip("\n") + "\n")


def table(facts: Mapping[str, Any]) -> list[str]:
    """Facts as rows of a Markdown table; what is empty is left out."""
    rows = [
        f"| {quoted(key.replace('_', ' '))} | {quoted(show(value))} |"
        for key, value in facts.items()
        if value not in ([], (), {}, "", None)
    ]
    return ["| | |", "| --- | --- |", *rows]


def show(value: Any) -> str:
    """A figure, or a few of them, as a person reads it."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        parts = [f"{key} {show(item)}" for key, item in cast(Header, value).items()]
        return ", ".join(parts)
    if isinstance(value, list | tuple):
        items = cast(Sequence[Any], value)
        more = f" and {len(items) - 20} more" if len(items) > 20 else ""
        return ", ".join(show(item) for item in items[:20]) + more
    return str(value)
