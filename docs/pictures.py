"""The picture of the architecture, as SVG: what becomes of a model, and what plugins provide."""

from __future__ import annotations

from html import escape

INK, LINE, PAPER, FOLDER, CORE, PLUGIN = (
    "#1f2933",
    "#7b8794",
    "#ffffff",
    "#fdf6e3",
    "#e3eefb",
    "#e6f4ea",
)
WIDTH, HEIGHT = 860, 404
FOLDERS = (  # where each begins, its title, and what is in it
    (20, "raw data", "text, pairs, pictures"),
    (270, "checkpoint", "config, safetensors"),
    (520, "artifact", "graphs, receipt"),
)
VERBS = ((190, "train", "resume, eval"), (440, "export", "proof"), (690, "run", "verify, bench"))
HOOKS = (  # what plugins register, the built-in ones, and what says how
    ("models", "GPT, BERT, T5", "GAN, VAE, CNN", "updates(), graphs()"),
    ("trainers", "loop", "", "fit()"),
    ("exporters", "onnx, onnx-ort", "triton", "export()"),
    ("engines", "torch", "ONNX Runtime", "Session.run()"),
    ("entries", "registry.toml", "", "names, hashes"),
    ("commands", "verbs of", "your own", "typer"),
)


def text(x: float, y: float, words: str, size: int = 13, bold: bool = False) -> str:
    """Words in the middle of x."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}"{weight} text-anchor="middle" '
        f'fill="{INK}">{escape(words)}</text>'
    )


def box(x: float, y: float, size: tuple[float, float], fill: str, lines: tuple[str, ...]) -> str:
    """A box of this width and height, with a title and lines below it."""
    (width, height), middle = size, x + size[0] / 2
    parts = [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
        f'fill="{fill}" stroke="{LINE}"/>'
    ]
    for row, line in enumerate(lines):
        parts.append(text(middle, y + 22 + 18 * row, line, 13 if row else 14, bold=not row))
    return "".join(parts)


def arrow(x: float, y: float, to_x: float, to_y: float, both: bool = False) -> str:
    """A line with a head at its end, perhaps at both."""
    start = ' marker-start="url(#head)"' if both else ""
    return (
        f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{LINE}" '
        f'stroke-width="1.5" marker-end="url(#head)"{start}/>'
    )


def architecture() -> str:
    """The picture."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" role="img">',
        "<title>From raw data to an artifact; core acts, plugins describe</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{LINE}"/>'
        "</marker></defs>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{PAPER}"/>',
    ]
    for x, title, what in FOLDERS:
        parts.append(box(x, 84, (170, 52), FOLDER, (title, what)))
    for x, verb, more in VERBS:
        parts += [arrow(x + 2, 110, x + 78, 110), text(x + 40, 102, verb, 14, bold=True)]
        parts.append(text(x + 40, 128, more, 11))
    parts.append(box(770, 84, (70, 52), FOLDER, ("result",)))
    parts.append(box(395, 12, (170, 30), FOLDER, ("Hugging Face Hub",)))
    parts += [arrow(355, 82, 430, 44, both=True), arrow(605, 82, 530, 44, both=True)]
    parts.append(text(480, 66, "pull, lock, push", 12, bold=True))
    core = "finds, trains, saves, exports, proves, runs; knows no family, format or engine"
    parts.append(box(20, 176, (820, 52), CORE, ("core acts", core)))
    parts.append(arrow(WIDTH / 2, 174, WIDTH / 2, 142))
    for row, (hook, *rest) in enumerate(HOOKS):
        x = 20 + 138.4 * row
        parts.append(box(x, 268, (128, 92), PLUGIN, (hook, *rest[:2])))
        parts += [text(x + 64, 348, rest[2], 11), arrow(x + 64, 266, x + 64, 232)]
    words = (
        "plugins describe: the built-in ones by the same six hooks as yours, torch imported last"
    )
    parts += [text(WIDTH / 2, 386, words, 13, bold=True), "</svg>"]
    return "\n".join(parts)
