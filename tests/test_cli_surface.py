"""The command line as its users meet it: verbs, options, exit codes, streams."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from cambrian.cli.commands import VERBS, load_verb

# What scripts rely on. Adding to it is a decision, taking from it breaks somebody's script.
OPTIONS = {
    "list": "--json",
    "info": "--json",
    "train": "--base --config --data --force --json --out --resume --set --trainer --validation",
    "eval": "--data --device --json --option --picture --set",
    "export": "--data --force --format --json --limit --precision --provider",
    "verify": "--golden --json --provider",
    "run": "--count --device --input --json --out --provider --runtime --seed --set",
    "bench": "--data --device --json --only --picture --rounds --set",
    "pull": "--dry-run --json --locked --revision --verify",
    "lock": "--check --json --upgrade",
    "push": "--dry-run --json --license --message --private --pull-request --revision "
    "--with-training-state",
    "cache": "--json",
    "new": "",
    "plugins": "--json",
    "env": "--json",
}


def cambrian(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("cambrian")
    return subprocess.run(
        [str(program), *arguments],
        env={**os.environ, "XDG_CONFIG_HOME": os.devnull, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", VERBS)
def test_verb(name: str) -> None:
    command: Any = load_verb(name)
    long = {option for p in command.params for option in p.opts if option.startswith("--")}
    assert long == set(OPTIONS[name].split())
    assert command.help.splitlines()[0] == VERBS[name].help
    assert re.search(rf"^  .*\bcambrian {name}\b", command.help, re.M), "no example"


def test_help_names_every_verb() -> None:
    done = cambrian("--help")
    assert done.returncode == 0
    for name, verb in VERBS.items():
        assert re.search(rf"^  {name} +{verb.help.split()[0]} ", done.stdout, re.M)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert cambrian("-h").stdout == done.stdout


def test_version() -> None:
    import cambrian as package

    assert cambrian("--version").stdout == f"cambrian {package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lst"], "error: There is no command 'lst'. Did you mean 'list'?"),
        (["xyzzy"], "error: There is no command 'xyzzy'. See `cambrian --help`."),
        (["info", "gpt22"], "error: There is no model or folder 'gpt22'. Did you mean 'gpt2'?"),
        (["info", "openai-community/gpt2"], "write hf://openai-community/gpt2 for"),
        (["info"], "Missing argument"),
        (["list", "--jsn"], "No such option"),
        (["--no-plugin", "list"], "No such option"),
        (["plugins", "disable", "bultin"], "error: No plugin 'bultin' is installed. Did you mean"),
        (["plugins", "enable", "builtin"], "error: 'builtin' is not disabled."),
        (["plugins", "lst"], "No such command"),
    ],
)
def test_wrong_requests_are_exit_2(arguments: list[str], words: str) -> None:
    done = cambrian(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stderr.startswith("error: ") or done.stderr.count("\n") == 1


def test_broken_files_are_exit_1(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    done = cambrian("info", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/manifest.json is malformed")


COMMAND = """
import sys, typer
from cambrian.cli import app, commands
own = commands.new_app()
@own.command("go")
def go(): {body}
commands.plugin_commands().found["go"] = typer.main.get_command(own)
app(["go"], prog_name="cambrian")
"""


def test_unexpected_exceptions_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    code = COMMAND.format(body="raise RuntimeError('two\\nlines')")
    done = python(code)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("internal error: RuntimeError: two lines")
    assert "CAMBRIAN_TRACEBACK=1" in done.stderr
    assert "`cambrian env`" in done.stderr
    assert done.stderr.count("\n") == 1
    monkeypatch.setenv("CAMBRIAN_TRACEBACK", "1")
    assert "Traceback" in python(code).stderr


def test_interrupt_is_one_line_and_130() -> None:
    # A shell that runs the tests in the background has its children ignore the signal.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = heard + COMMAND.format(body="print('up', flush=True); __import__('time').sleep(60)")
    running = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "up\n"
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert (running.returncode, errors) == (130, "interrupted\n")


def test_a_closed_pipe_is_quiet() -> None:
    program = Path(sys.executable).with_name("cambrian")
    for body in ([str(program), "list"], [sys.executable, "-c", COMMAND.format(
        body="print('x' * 10**6)"
    )]):  # fmt: skip
        running = subprocess.Popen(body, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        errors = running.stderr.read()
        running.stderr.close()
        assert (running.wait(timeout=30), errors) == (1, "")


def test_inputs_go_by_the_line(tmp_path: Path) -> None:
    from cambrian.cli.run import read_inputs

    file = tmp_path / "in.txt"
    file.write_bytes("a\u2028b\r\n\nc\x0cd\n".encode())
    assert read_inputs(None, file) == ["a\u2028b", "", "c\x0cd"]


def test_where_results_go_is_seen_to_first(tmp_path: Path) -> None:
    from cambrian.cli.run import require_place

    file = tmp_path / "file"
    file.touch()
    require_place(file)
    require_place(tmp_path / "new" / "folder" / "out.json")
    assert [*tmp_path.iterdir()] == [file]
    for out, reason in ((file / "out.json", "Not a directory"), (tmp_path, "is a folder")):
        done = cambrian("run", "no-such-model", "text", "-o", str(out))
        assert (done.returncode, done.stdout) == (2, "")
        assert str(out) in done.stderr and reason in done.stderr
        assert "no-such-model" not in done.stderr


def test_a_parameter_is_no_option_of_a_task() -> None:
    done = cambrian("eval", "gpt2", "--option", "device=cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --option device is no option of a task")


@pytest.mark.parametrize("arguments", [["list"], ["info", "gpt2"], ["plugins"], ["env"]])
def test_json(arguments: list[str]) -> None:
    done = cambrian(*arguments, "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    assert isinstance(json.loads(done.stdout), dict)


def test_list_patterns() -> None:
    def names(*pattern: str) -> list[str]:
        return [
            row["name"] for row in json.loads(cambrian("list", *pattern, "--json").stdout)["models"]
        ]

    every = names()
    assert {"gpt2", "gpt-char", "distilgpt2", "gpt"} <= set(every)
    assert len(every) == len(set(every))
    assert set(names("gpt2*")) == {n for n in every if n.startswith("gpt2")}
    assert set(names("GPT2")) == {n for n in every if "gpt2" in n}
    assert names("nothing-like-it") == []
    done = cambrian("list", "nothing-like-it")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing-like-it" in done.stderr


def test_list_fits_a_terminal_of_80_columns() -> None:
    ours, theirs = pty.openpty()
    program = Path(sys.executable).with_name("cambrian")
    running = subprocess.Popen(
        [str(program), "list"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "80", "TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not shown.endswith(b"\n") and running.poll() is not None:
            break
    os.close(ours)
    assert running.stderr is not None
    running.stderr.close()
    assert running.wait(timeout=30) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    assert lines[0].split() == ["NAME", "ARCH", "TASK", "ORIGIN", "SUMMARY"]
    assert any(line.startswith("gpt2-medium ") for line in lines)
    assert max(map(len, lines)) <= 80


def test_info_says_what_differs_from_the_defaults() -> None:
    shown = cambrian("info", "gpt2-medium").stdout
    assert re.search(r"^  n_embd +1024 \*$", shown, re.M)
    assert re.search(r"^  vocab_size +50257$", shown, re.M)
    facts = json.loads(cambrian("info", "gpt2-medium", "--json").stdout)
    assert facts["config"]["n_inner"] is None
    assert facts["differs"] == {"n_embd": 1024, "n_layer": 24, "n_head": 16}
    assert facts["recipe"]["train"]["steps"] > 0


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("loop", {"trainer": "loop", "settings": {}, "recipe": {}}),
        ("onnx-ort", {"exporter": "onnx-ort", "format": "onnx-ort"}),
        ("onnxruntime", {"runtime": "onnxruntime", "formats": ["onnx-ort", "onnx", "triton"]}),
    ],
)
def test_info_of_tools(name: str, facts: dict[str, Any]) -> None:
    found = json.loads(cambrian("info", name, "--json").stdout)
    assert found.items() >= facts.items()
    assert found["summary"] and found["provided by"] and ":" in found["code"]


def test_info_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert json.loads(cambrian("info", str(tmp_path), "--json").stdout)["config"] == {
        "model_type": "gpt2"
    }
    assert "PSF-2.0" in cambrian("info", "python-reference").stdout
    done = cambrian("info", "hf://a/b")  # the tests run with HF_HUB_OFFLINE
    assert (done.returncode, "hf://a/b@main is not in the cache" in done.stderr) == (1, True)
    assert "text-generation" in cambrian("info", "gpt").stdout


def test_preferences_keep_what_else_they_hold(tmp_path: Path) -> None:
    file = tmp_path / "cambrian" / "config.toml"
    file.parent.mkdir()
    file.write_text('theme = "dark"\n')
    assert cambrian("plugins", "disable", "onnx", XDG_CONFIG_HOME=str(tmp_path)).returncode == 0
    assert 'theme = "dark"' in file.read_text()
    rows = json.loads(cambrian("plugins", "--json", XDG_CONFIG_HOME=str(tmp_path)).stdout)
    assert {r["name"]: r["status"] for r in rows["plugins"]}["onnx"] == "blocked"
    file.write_text("[[")
    broken = cambrian("plugins", "disable", "gpt", XDG_CONFIG_HOME=str(tmp_path))
    assert broken.returncode == 1
    assert file.read_text() == "[["
    listing = cambrian("list", XDG_CONFIG_HOME=str(tmp_path))
    assert listing.returncode == 0
    assert "config.toml is not valid TOML" in listing.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("cambrian tr", {"train"}),
        ("cambrian info gpt2-", {"gpt2-medium", "gpt2-large", "gpt2-xl"}),
        ("cambrian plugins disable bui", {"builtin"}),
        ("cambrian info python-r", {"python-reference"}),
    ],
)
def test_completion(words: str, found: set[str]) -> None:
    done = cambrian(
        _CAMBRIAN_COMPLETE="complete_bash",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split()) - 1),
    )
    assert set(done.stdout.split()) == found


def test_env_tells_versions() -> None:
    facts = json.loads(cambrian("env", "--json", CAMBRIAN_DISABLE_PLUGINS="x").stdout)
    assert facts["typer"] == typer.__version__
    assert facts["python"].startswith("3.")
    assert facts["cores"] >= 1
    assert facts["CAMBRIAN_DISABLE_PLUGINS"] == "x"
