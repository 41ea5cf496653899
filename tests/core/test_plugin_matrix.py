"""Good and bad third-party plugins, installed for real, all at once, under the real command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HEAD = """
from dataclasses import dataclass
from cambrian import Entry, ModelSpec, Recipe, Ref, hookimpl

@dataclass(frozen=True)
class Config:
    width: int = 8

def spec(name, **changes):
    ref = Ref("nowhere:Nothing")
    fields = dict(name=name, task="toy", summary="a toy", config=Config, model=ref,
                  processor=ref, data=ref, pipeline=ref, recipe=Recipe())
    return ModelSpec(**{**fields, **changes})
"""

MODELS = HEAD + "\n@hookimpl\ndef register_models():\n    return "


@dataclass(frozen=True)
class Case:
    """A distribution with one plugin, and what its row must say."""

    name: str  # of the distribution; the entry point's and the module's unless given
    source: str
    status: str
    reason: str = "^$"
    remedy: str = "cambrian plugins disable|^$"
    point: str = ""
    target: str = ""
    notes: str = ""
    files: dict[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")


CASES = [
    Case(
        "good",
        MODELS
        + """[spec("good-model")]

@hookimpl
def register_entries():
    from pathlib import Path
    return [Entry(name="good-entry", architecture="good-model", config={"width": 16}),
            Path(__file__).with_name("good.toml")]

@hookimpl
def register_commands(app):
    @app.command()
    def good_command(word: str):
        "Say a word back."
        print("good says", word)
""",
        "ok",
        files={"good.toml": '[datasets.good-data]\nkind = "text"\nsource = "x.txt"\n'},
    ),
    Case("needs", "import not_installed_anywhere.deep", "broken", "'not_installed_anywhere",
         "^pip install not_installed_anywhere$"),
    Case("mismatch", "from json import no_such_name", "broken", "cannot import name 'no_such_name'",
         "pip install --upgrade mismatch"),
    Case("syntax", "x = 1\ndef :\n", "broken", r"syntax error in .*syntax\.py, line 2"),
    Case("raises", "raise ValueError('boom')", "broken", r"ValueError at import: boom .*:1\)"),
    Case("exits", "import sys\nsys.exit(3)", "broken", r"exits at import \(status 3, exits\.py:2"),
    Case("dies", "class Die(BaseException): pass\nraise Die('no')", "broken", "Die at import: no"),
    Case("interrupts", "class Stop(KeyboardInterrupt): pass\nraise Stop", "broken", "Stop at"),
    Case("recursion", "def f(): return f()\nf()", "broken", "RecursionError at import"),
    Case(
        "prints",
        'print("NOISE at import")\n' + MODELS + 'print("NOISE in hook") or [spec("prints-model")]',
        "ok",
        notes="prints at import: NOISE at import.*prints in register_models: NOISE in hook",
    ),
    Case("warns", "import warnings\nwarnings.warn('old', DeprecationWarning)\n" + MODELS + "[]",
         "ok", notes="warns at import: old"),
    Case(
        "swaps",
        "import io, sys\nsys.stdout = io.StringIO()\nsys.stderr = None\n" + MODELS + "[]",
        "ok",
        notes=r"replaced sys.stdout at import \(undone\)",
    ),
    Case("hookraises", MODELS + "1 / 0", "broken", "ZeroDivisionError in register_models"),
    Case("hookexits", MODELS + "exit(2)", "broken", "exits in register_models"),
    Case("misspelt", HEAD + "\n@hookimpl\ndef register_model():\n    return []", "broken",
         "'register_model' is no hook.*Did you mean 'register_models'"),
    Case("arguments", HEAD + "\n@hookimpl\ndef register_models(registry):\n    return []", "broken",
         "register_models takes no arguments, but this one asks for registry"),
    Case("unmarked", "def register_models():\n    return []", "broken",
         "register_models is not marked", "Write @cambrian.hookimpl above def register_models"),
    Case("wrapper", HEAD + "\n@hookimpl(wrapper=True)\ndef register_models():\n    yield", "broken",
         "hook wrapper"),
    Case("number", MODELS + "3", "broken", "register_models: returns an int, not a list of ModelS"),
    Case("none", MODELS + "None", "broken", "register_models: returns None"),
    Case("dicts", MODELS + "[{}]", "broken", "item 1 is a dict, not ModelSpec"),
    Case("onewrong", MODELS + "[spec('lost-model'), 'x']", "broken", "item 2 is a str"),
    Case("unfit", MODELS + "[spec('unfit-model', summary=None)]", "broken", "summary is None"),
    Case("slash", MODELS + "[spec('a/b')]", "broken", "'a/b' is no name"),
    Case("twice", MODELS + "[spec('same'), spec('same')]", "broken", "names 'same' twice"),
    Case("empty", "", "broken", "registers nothing", "Hooks are register_models"),
    Case("generator", MODELS + "(spec(n) for n in ['generated'])", "ok"),
    Case("absent", MODELS + "[]", "broken", "its module 'not_shipped' does not exist",
         "--force-reinstall absent", target="not_shipped"),
    Case("attribute", MODELS + "[]", "broken", "its module 'attribute' has no attribute 'plugin'",
         target="attribute:plugin"),
    Case("nothing", "plugin = None", "broken", "'nothing:plugin' is None", target="nothing:plugin"),
    Case("twin-a", MODELS + "[spec('twin-a-model')]", "ok", point="twin"),
    Case("twin-b", MODELS + "[spec('twin-b-model')]", "clash",
         r"twin \(twin-a 1.0\) has the same name", "disable twin-a.*disable twin-b", point="twin"),
    Case("claim-a", MODELS + "[spec('claimed'), spec('claim-a-own')]", "clash",
         r"'claimed' is also registered by claim-b \(claim-b 1.0\)", "disable claim-a.*claim-b"),
    Case("claim-b", MODELS + "[spec('claimed')]", "clash",
         r"'claimed' is also registered by claim-a \(claim-a 1.0\)", "disable claim-a.*claim-b"),
    Case("shadows", HEAD + "\n@hookimpl\ndef register_commands(app):\n"
         "    app.command('list')(lambda: print('SHADOW'))\n", "clash",
         "its command 'list' would hide Cambrian's own"),
    Case("badcommand", HEAD + "\n@hookimpl\ndef register_commands(app):\n"
         "    @app.command()\n    def half(x: int): ...\n    raise OSError('no')\n", "broken",
         "OSError in register_commands: no"),
    Case("say-a", HEAD + "\n@hookimpl\ndef register_commands(app):\n"
         "    app.command('say')(lambda: print('a'))\n", "clash", "'say' is also .* say-b"),
    Case("say-b", HEAD + "\n@hookimpl\ndef register_commands(app):\n"
         "    app.command('say')(lambda: print('b'))\n", "clash", "'say' is also .* say-a"),
    Case(
        "badtoml",
        HEAD + "\n@hookimpl\ndef register_entries():\n    from pathlib import Path\n"
        "    return [Path(__file__).with_name('bad.toml')]",
        "broken",
        r"bad\.toml, line 3: unknown key 'sumary'\. Did you mean 'summary'",
        files={"bad.toml": '[models.bad]\narchitecture = "gpt"\nsumary = "x"\n'},
    ),
    Case("escape", MODELS + "[spec('escape-model', summary='red \\x1b[31m\\nNEWLINE')]", "ok"),
    Case("metaless", MODELS + "[spec('metaless-model')]", "ok"),
    Case("garbled", MODELS + "[]", "broken", "entry points of garbled cannot be read",
         "--force-reinstall garbled"),
    Case("override", HEAD + "\n@hookimpl\ndef register_entries():\n"
         "    return [Entry(name='gpt2', architecture='gpt', summary='OVERRIDDEN')]", "ok"),
]  # fmt: skip


def wheel(case: Case, folder: Path) -> Path:
    """Write a wheel: a zip of the module and its description."""
    path = folder / f"{case.module}-1.0-py3-none-any.whl"
    info = f"{case.module}-1.0.dist-info"
    point, target = case.point or case.name, case.target or case.module
    members = {
        f"{case.module}.py": case.source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {case.name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[cambrian]\n{point} = {target}\n",
        **case.files,
    }
    record = "".join(f"{name},,\n" for name in [*members, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**members, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


class Installation:
    """A virtual environment with every case installed, beside the packages of this one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config"
        venv.create(root / "env", with_pip=False)
        self.python = root / "env" / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = root / "env" / "lib" / version / "site-packages"
        here = sysconfig.get_paths()["purelib"]
        (site / "zz_test_environment.pth").write_text(f"import site; site.addsitedir({here!r})\n")
        wheels = [str(wheel(case, root)) for case in CASES]
        install = [sys.executable, "-m", "pip", "--python", str(self.python), "install"]
        subprocess.run(
            [*install, "--quiet", "--no-deps", "--no-index", "--no-compile", *wheels],
            check=True,
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )
        (site / "metaless-1.0.dist-info" / "METADATA").unlink()
        (site / "garbled-1.0.dist-info" / "entry_points.txt").write_bytes(b"[cambrian]\n\xff=\xfe")

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the real `cambrian` command."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CAMBRIAN_")}
        script = Path(sys.executable).with_name("cambrian")
        return subprocess.run(
            [str(self.python), str(script), *arguments],
            cwd=self.root,
            env={**environment, "XDG_CONFIG_HOME": str(self.config), **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def json(self, *arguments: str, **variables: str) -> Any:
        """Run a command that must succeed, and parse its standard output."""
        done = self.run(*arguments, "--json", **variables)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("matrix"))


@pytest.fixture(scope="module")
def rows(installed: Installation) -> dict[str, dict[str, Any]]:
    return {row["distribution"]: row for row in installed.json("plugins")["plugins"]}


@pytest.fixture(scope="module")
def listing(installed: Installation) -> Any:
    return installed.json("list")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_row(case: Case, rows: dict[str, dict[str, Any]]) -> None:
    row = rows[case.name]
    assert row["status"] == case.status, row
    assert re.search(case.reason, row["reason"]), row["reason"]
    assert re.search(case.remedy, row["remedy"]), row["remedy"]
    assert re.search(case.notes, "; ".join(row["notes"])), row["notes"]
    assert bool(row["reason"]) == bool(row["remedy"]) == (case.status != "ok")


def test_order_is_own_first_then_by_distribution(installed: Installation) -> None:
    found = [row["distribution"] for row in installed.json("plugins")["plugins"]]
    third_party = [name for name in found if name != "cambrian"]
    assert found[: len(found) - len(third_party)] == ["cambrian"] * found.count("cambrian")
    assert third_party == sorted(case.name for case in CASES)


@pytest.mark.parametrize("arguments", [["list"], ["plugins"], ["--help"], ["list", "toy*"]])
def test_looking_never_fails(installed: Installation, arguments: list[str]) -> None:
    done = installed.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "NOISE" not in done.stdout.replace("prints at import: NOISE at import", "").replace(
        "prints in register_models: NOISE in hook", ""
    )
    assert "\x1b" not in done.stdout


def test_good_ones_still_work(installed: Installation, listing: Any) -> None:
    models = {row["name"]: row for row in listing["models"]}
    for name in ("good-model", "good-entry", "generated", "prints-model", "twin-a-model",
                 "claim-a-own", "metaless-model", "escape-model", "gpt-char"):  # fmt: skip
        assert models[name]["unavailable"] == ""
    assert not {"lost-model", "twin-b-model", "claimed", "unfit-model", "bad"} & models.keys()
    assert "good-data" in {row["name"] for row in listing["datasets"]}
    assert installed.json("info", "good-entry")["config"] == {"width": 16}


def test_every_fault_is_listed(listing: Any) -> None:
    told = {row["origin"] for row in listing["problems"]}
    unasked = {"shadows", "badcommand", "say-a", "say-b"}  # `list` asks for no commands
    assert told == {case.name for case in CASES if case.status != "ok"} - unasked


def test_a_name_claimed_twice_is_refused_to_both(installed: Installation) -> None:
    done = installed.run("info", "claimed")
    assert done.returncode == 2
    assert done.stdout == ""
    for part in ("claim-a (claim-a 1.0)", "claim-b (claim-b 1.0)", "plugins disable claim-b"):
        assert part in done.stderr
    assert installed.json("info", "claimed", CAMBRIAN_DISABLE_PLUGINS="claim-b")["task"] == "toy"


def test_commands(installed: Installation) -> None:
    assert installed.run("good-command", "hello").stdout == "good says hello\n"
    assert "good-command" in (shown := installed.run("--help").stdout)
    assert "half" not in shown
    assert "SHADOW" not in installed.run("list").stdout
    clash = installed.run("say")
    assert clash.returncode == 2
    assert "say-a" in clash.stderr
    assert "say-b" in clash.stderr


def test_an_override_shows_both_origins(installed: Installation) -> None:
    facts = installed.json("info", "gpt2")
    assert facts["summary"] == "OVERRIDDEN"
    first, second = facts["declared in"]
    assert "override 1.0" in first
    assert second.endswith("registry.toml")


def test_blocking(installed: Installation, rows: dict[str, Any]) -> None:
    for found in (
        installed.json("--no-plugins", "plugins")["plugins"],
        installed.json("plugins", CAMBRIAN_DISABLE_PLUGINS="*")["plugins"],
    ):
        states = {(row["distribution"] == "cambrian", row["status"]) for row in found}
        assert states == {(True, "ok"), (False, "blocked")}
    quiet = installed.json("list", CAMBRIAN_DISABLE_PLUGINS="*")
    assert quiet["problems"] == []
    assert "gpt-char" in {row["name"] for row in quiet["models"]}
    some = installed.json("plugins", CAMBRIAN_DISABLE_PLUGINS="Good, twin_a")["plugins"]
    states = {row["distribution"]: row["status"] for row in some}
    assert states["good"] == states["twin-a"] == "blocked"
    assert states["twin-b"] == "ok"  # its name is free now
    assert installed.run("plugins", CAMBRIAN_DISABLE_PLUGINS="cambrian,*").returncode == 0


def test_disable_and_enable(installed: Installation) -> None:
    """With everything broken, and a broken plugin named."""
    assert installed.run("plugins", "disable", "exits").returncode == 0
    row = next(r for r in installed.json("plugins")["plugins"] if r["name"] == "exits")
    assert row["status"] == "blocked"
    assert "config.toml" in row["reason"]
    assert row["remedy"] == "cambrian plugins enable exits"
    again = installed.run("plugins", "disable", "exitz")
    assert again.returncode == 2
    assert "Did you mean 'exits'?" in again.stderr
    assert installed.run("plugins", "enable", "exits").returncode == 0
    row = next(r for r in installed.json("plugins")["plugins"] if r["name"] == "exits")
    assert row["status"] == "broken"


def test_disable_imports_no_plugin(installed: Installation) -> None:
    code = (
        "import sys; sys.argv = ['cambrian', 'plugins', 'disable', 'good']\n"
        "from cambrian.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'good', 'cambrian_gpt', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [str(installed.python), "-c", code],
        env={**os.environ, "XDG_CONFIG_HOME": str(installed.root / "elsewhere")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_traceback_on_request(installed: Installation) -> None:
    done = installed.run("list", CAMBRIAN_TRACEBACK="1")
    assert done.returncode == 0
    assert "ValueError: boom" in done.stderr
