"""Names from every level, what overrides what, and faults that cost no more than they must."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cambrian.config import Recipe, TrainConfig
from cambrian.discovery import Candidate
from cambrian.errors import BrokenFile, CambrianError, NotFound, UsageError
from cambrian.hookspecs import hookimpl
from cambrian.plugins import Plugins
from cambrian.registry import Registry, load_registry, shipped_file
from cambrian.registry_file import line_of, read_registry_file
from cambrian.specs import DatasetEntry, Entry, Golden, ModelSpec, Ref


@dataclass(frozen=True)
class Config:
    n_layer: int = 2
    names: tuple[str, ...] = field(default=())


def spec(name: str, config: type[Any] = Config, **changes: Any) -> ModelSpec:
    ref: Ref[Any] = Ref("nowhere:Nothing")
    fields = {"task": "toy", "summary": "a toy", "recipe": Recipe(train=TrainConfig(steps=7))}
    refs = {"model": ref, "processor": ref, "data": ref, "pipeline": ref}
    return ModelSpec(name=name, config=config, **{**fields, **refs, **changes})


def plugins(monkeypatch: pytest.MonkeyPatch, **contributions: list[Any]) -> Plugins:
    """Plugins by name, each with models, entries, data sets and paths."""
    candidates = []
    for name, items in contributions.items():
        models = [item for item in items if isinstance(item, ModelSpec)]
        others = [item for item in items if not isinstance(item, ModelSpec)]
        module = SimpleNamespace(
            register_models=hookimpl(lambda models=models: models),
            register_entries=hookimpl(lambda others=others: others),
        )
        monkeypatch.setitem(__import__("sys").modules, f"plugin_{name}", module)
        candidates.append(
            Candidate(name=name, target=f"plugin_{name}", distribution=f"{name}-dist", version="1")
        )
    return Plugins(candidates, {})


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    return plugins(monkeypatch, toy=[spec("toy"), Entry(name="toy-big", architecture="toy")])


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_levels_override_and_are_remembered(tmp_path: Path, toy: Plugins) -> None:
    user = write(tmp_path / "u.toml", '[models.toy-big]\narchitecture = "toy"\nsummary = "user"\n')
    project = write(tmp_path / "p.toml", '[models.toy-big]\narchitecture="toy"\nsummary="mine"\n')
    files = [("user", user), ("project", project), ("absent", tmp_path / "absent.toml")]
    registry = Registry(toy, files)
    assert registry.entries["toy-big"].summary == "mine"
    assert registry.entries["toy-big"].origin == "project"
    labels = [origin.label for origin in registry.origins("model", "toy-big")]
    assert labels == ["project", "user", "toy"]
    assert registry.problems == ()
    assert Registry(toy, files[:1]).entries["toy-big"].summary == "user"


def test_a_plugin_overrides_the_shipped_file(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = plugins(monkeypatch, p=[spec("gpt"), Entry(name="gpt2", architecture="gpt")])
    registry = Registry(mine, [])
    assert registry.entries["gpt2"].origin == "p"
    assert [o.label for o in registry.origins("model", "gpt2")] == ["p", "cambrian"]


def test_equals_clash_and_a_stronger_level_settles_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = Entry(name="x", architecture="toy")
    both = plugins(monkeypatch, a=[spec("toy"), item], b=[item], c=[item])
    registry = Registry(both, [])
    assert "x" not in registry.entries
    with pytest.raises(UsageError, match=r"'x' is registered by a \(a-dist 1\) and by [bc] "):
        registry.resolve("x")
    assert {p.name for p in registry.problems} == {"a", "b", "c"}
    user = write(tmp_path / "u.toml", '[models.x]\narchitecture = "toy"\n')
    assert Registry(both, [("user", user)]).resolve("x").entry is not None


def test_an_entry_named_like_another_architecture_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = [spec("toy"), spec("other"), Entry(name="toy", architecture="other")]
    registry = Registry(plugins(monkeypatch, a=ours), [])
    with pytest.raises(UsageError, match=r"both an architecture .* and a model of .*'other'"):
        registry.resolve("toy")
    assert [p.name for p in registry.problems] == ["toy"]
    own = Entry(name="toy", architecture="toy", summary="with weights")
    resolved = Registry(plugins(monkeypatch, a=[spec("toy"), own]), []).resolve("toy")
    assert resolved.spec is not None
    assert resolved.entry is not None


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[models.x]\narchitecture = "toy"\n\nsumary = "a"\n', 4, "Did you mean 'summary'"),
        ('[models.x]\narchitecture = "toy"\nlicense = 3\n', 3, "license.*expected `str`.*got 3"),
        ('[models.x]\nsummary = "a"\n', 1, "lacks architecture"),
        ('[models.x]\narchitecture="toy"\nweights = "gpt2"\n', 3, "'gpt2' is not hf://owner"),
        ('[models.x]\narchitecture="toy"\nfiles = {"a.bin" = "abc"}\n', 3, "64 hex digits"),
        (
            f'[models.x]\narchitecture="toy"\n[models.x.files]\n"../a" = "{"0" * 64}"\n',
            4,
            "plain file",
        ),
        ('[models.x]\narchitecture="toy"\nrecipe.trainn = {steps = 1}\n', 3, "mean 'train'"),
        ('[models.x]\narchitecture="toy"\n[models.x.recipe]\ntrain = 3\n', 3, "recipe"),
        ('[models."a/b"]\narchitecture = "toy"\n', 1, "'a/b' is no name"),
        ("[models]\nx = 3\n", 2, r"write \[models.NAME\]"),
        ("models = 3\n", 1, r"write \[models.NAME\]"),
        ("# a\n\n[model.x]\n", 3, "unknown section 'model'. Did you mean 'models'"),
        ('[datasets.x]\nkind = "text"\n', 1, "lacks source"),
        ('[datasets.x]\nkind = "text"\nsource = [\n  "a",\n  3,\n]\n', 3, "source"),
    ],
)
def test_one_sentence_with_file_line_and_nearest_key(
    tmp_path: Path, toy: Plugins, text: str, line: int, words: str
) -> None:
    text += '[datasets.fine]\nkind = "text"\nsource = "f.txt"\n'
    file = write(tmp_path / "f.toml", text)
    items, faults = read_registry_file(file, "user")
    assert [item.name for item in items] == ["fine"]
    assert len(faults) == 1
    reason = faults[0].reason
    assert reason.startswith(f"{file}, line {line}: "), reason
    assert re.search(words, reason), reason
    assert "\n" not in reason
    registry = Registry(toy, [("user", file)])
    assert [p.origin for p in registry.problems] == ["user"]
    assert "fine" in registry.datasets
    assert registry.resolve("toy").spec is not None  # the fault costs its own name only


GOLDEN = {
    "inputs.model.input_ids": "[1, 2]",
    "ids": "[7, 3]",
    "values": "[2.5, 1]",
    "source": '"transformers"',
}


def with_golden(**changes: str) -> str:
    """An entry with golden values, some of their lines changed, or left out where empty."""
    lines = [f"{key} = {value}" for key, value in {**GOLDEN, **changes}.items() if value]
    head = '[models.x]\narchitecture = "toy"\nweights = "hf://a/b"\n[models.x.golden]\n'
    return head + "\n".join(lines) + "\n"


def test_golden_values_are_read(tmp_path: Path) -> None:
    text = with_golden(position="-2", tolerance="1e-3", output='"logits"')
    (entry,), faults = read_registry_file(write(tmp_path / "f.toml", text), "user")
    assert faults == []
    assert isinstance(entry, Entry)
    assert entry.golden == Golden(
        inputs={"model": {"input_ids": (1, 2)}},
        ids=(7, 3),
        values=(2.5, 1.0),
        source="transformers",
        output="logits",
        position=-2,
        tolerance=1e-3,
    )


@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        ({"id": "[1]"}, 9, r"unknown key 'id'. Did you mean 'ids'\?"),
        ({"values": ""}, 4, "golden lacks values"),
        ({"source": ""}, 4, "golden lacks source"),
        ({"ids": "[7, true]"}, 6, "ids: expected `int`, got `bool`"),
        ({"ids": f"[{'7, ' * 5000}true]"}, 6, r"ids: expected .*, got \[7, 7, .*\.\.\."),
        ({"ids": "[7, 3.0]"}, 6, "ids: expected `int`, got `float`"),
        ({"values": '"2.5"'}, 7, "values: expected `array`, got `str`"),
        ({"inputs.model.input_ids": '["a"]'}, 5, "inputs: expected `int | float`, got `str`"),
        ({"inputs.model.input_ids": "3"}, 5, "inputs: expected `array`, got `int`"),
        ({"inputs.model.input_ids": "", "inputs": "{model = {}}"}, 4, "for each graph at least"),
        ({"inputs.model.input_ids": "", "inputs": "{}"}, 4, "for each graph at least one"),
        ({"inputs.more": "{}"}, 4, "for each graph at least one"),
        ({"inputs.model.input_ids": "[]"}, 4, "an input has from 1 to 1024 numbers"),
        ({"inputs.model.input_ids": str([1] * 1025)}, 4, "an input has from 1 to 1024 numbers"),
        ({f"inputs.more.i{i}": "[1]" for i in range(32)}, 4, "in all up to 32"),
        ({"inputs.model.input_ids": "[0x7fffffffffffffffffff]"}, 4, "not below 2147483648"),
        ({"inputs.model.input_ids": "[inf]"}, 4, "not below 2147483648"),
        ({"values": "[nan, nan]"}, 4, "a number is none, or not below 2147483648"),
        ({"values": f"[2.5, 0x{'f' * 5000}]"}, 7, "values: number out of range.*too long"),
        ({"ids": "[7, 3, 1]"}, 4, "ids and values are equally many, from 1 to 100"),
        ({"ids": "[]", "values": "[]"}, 4, "ids and values are equally many, from 1 to 100"),
        ({"ids": str([*range(101)]), "values": str([1] * 101)}, 4, "many, from 1 to 100"),
        ({"ids": "[7, -1]"}, 4, "ids are indices, each given once"),
        ({"ids": "[7, 7]"}, 4, "ids are indices, each given once"),
        ({"values": "[1, 2.5]"}, 4, "the largest first"),
        ({"tolerance": "0"}, 4, "tolerance lies between 0 and 1"),
        ({"tolerance": "nan"}, 4, "tolerance lies between 0 and 1"),
        ({"source": '"a\\u001b[2J"'}, 4, "source is one line"),
        ({"source": '""'}, 4, "source is one line"),
    ],
)
def test_wrong_golden_values_are_one_sentence(
    tmp_path: Path, changes: dict[str, str], line: int, words: str
) -> None:
    file = write(tmp_path / "f.toml", with_golden(**changes))
    items, (fault,) = read_registry_file(file, "user")
    assert items == []
    assert fault.reason.startswith(f"{file}, line {line}: "), fault.reason
    assert re.search(words, fault.reason), fault.reason
    assert "\n" not in fault.reason
    assert len(fault.reason) < 600


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (with_golden().replace("[models.x.golden]", "[[models.x.golden]]"), "golden is one table"),
        (with_golden().replace('weights = "hf://a/b"\n', ""), "golden is of weights, which"),
    ],
)
def test_golden_values_are_one_table_of_weights(tmp_path: Path, text: str, words: str) -> None:
    items, (fault,) = read_registry_file(write(tmp_path / "f.toml", text), "user")
    assert items == []
    assert words in fault.reason


def test_a_faulty_override_is_an_error_when_used(tmp_path: Path, toy: Plugins) -> None:
    file = write(tmp_path / "f.toml", '[models.toy-big]\narchitecture = "toy"\nbad = 1\n')
    registry = Registry(toy, [("user", file)])
    assert "toy-big" not in registry.entries
    with pytest.raises(BrokenFile, match="line 3: unknown key 'bad'"):
        registry.resolve("toy-big")


def test_a_file_that_is_no_toml(tmp_path: Path, toy: Plugins) -> None:
    file = write(tmp_path / "f.toml", "[models.x]\narchitecture = = 3\n")
    registry = Registry(toy, [("user", file)])
    assert "line 2" in registry.problems[0].reason
    with pytest.raises(BrokenFile, match="not valid TOML"):
        registry.resolve("toy-big")
    (tmp_path / "config.json").write_text("{}")
    assert registry.resolve(str(tmp_path)).folder == tmp_path  # needs no registry


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = [", b"x" * (1 << 20) + b"y"])
def test_unreadable_files(tmp_path: Path, toy: Plugins, content: bytes) -> None:
    file = tmp_path / "f.toml"
    file.write_bytes(content)
    assert len(Registry(toy, [("user", file)]).problems) == 1
    assert len(Registry(toy, [("user", tmp_path)]).problems) == 1  # a folder


def test_a_plugins_file_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = write(tmp_path / "bad.toml", "[[[")
    good = write(tmp_path / "good.toml", '[models.g]\narchitecture = "toy"\nweights = ""\n')
    registry = Registry(plugins(monkeypatch, a=[spec("toy"), bad, good, tmp_path / "no.toml"]), [])
    assert registry.entries["g"].origin == "a"
    (row,) = registry.plugins.rows
    assert row.status == "broken"
    assert "bad.toml is not valid TOML" in row.reason
    assert "no.toml" in row.reason


def test_a_plugins_golden_values_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: Any = {"ids": [1]}
    item = Entry(name="x", architecture="toy", weights="hf://a/b", golden=wrong)
    registry = Registry(plugins(monkeypatch, a=[spec("toy"), item]), [])
    assert "x" not in registry.entries
    assert "golden is a dict, which does not fit Golden" in registry.plugins.rows[0].reason


def test_a_broken_preferences_file_is_a_row(tmp_path: Path, toy: Plugins) -> None:
    (tmp_path / "xdg" / "cambrian").mkdir(parents=True)
    write(tmp_path / "xdg" / "cambrian" / "config.toml", "[plugins]\ndisabled = 3\n")
    (problem,) = Registry(toy, []).problems
    assert "disabled = [" in problem.reason


def test_line_of_agrees_with_the_text() -> None:
    text = shipped_file().read_text()
    lines = text.splitlines()
    for path, start in [
        (["models", "gpt2", "weights"], 'weights = "hf://openai-community/gpt2@'),
        (["models", "gpt-char"], "[models.gpt-char]"),
        (["datasets", "python-reference", "license"], 'license = "PSF'),
    ]:
        assert lines[line_of(text, path) - 1].startswith(start)


class TestResolve:
    def test_names(self, toy: Plugins) -> None:
        registry = Registry(toy, [])
        architecture = registry.resolve("toy")
        assert architecture.spec is registry.models["toy"]
        assert architecture.entry is architecture.folder is architecture.uri is None
        named = registry.resolve("toy-big")
        assert named.spec is architecture.spec
        assert named.entry is registry.entries["toy-big"]
        assert named.uri is None

    def test_weights_are_the_address(self, tmp_path: Path, toy: Plugins) -> None:
        text = '[models.w]\narchitecture = "toy"\nweights = "hf://a/b@main"\n'
        registry = Registry(toy, [("user", write(tmp_path / "f.toml", text))])
        assert registry.resolve("w").uri == "hf://a/b@main"

    @pytest.mark.parametrize("uri", ["hf://a/b", "hf://a.b/c-d@607a30d", "hf://a/b@refs/pr/1"])
    def test_addresses(self, toy: Plugins, uri: str) -> None:
        assert Registry(toy, []).resolve(uri) == (None, None, None, uri)

    @pytest.mark.parametrize("uri", ["hf://a", "hf://a/b/c", "hf://a/b@", "hf:///b", "hf://a/../b"])
    def test_bad_addresses(self, toy: Plugins, uri: str) -> None:
        with pytest.raises(UsageError, match="hf://owner/repo@revision"):
            Registry(toy, []).resolve(uri)

    def test_folders(self, tmp_path: Path, toy: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
        registry = Registry(toy, [])
        monkeypatch.chdir(tmp_path)
        for name, mark in [("toy", "config.json"), ("owner", "manifest.json")]:
            Path(name).mkdir()
            (Path(name) / mark).write_text("{}")
        (tmp_path / "owner" / "repo").mkdir()
        (tmp_path / "owner" / "repo" / "config.json").write_text("{}")
        assert registry.resolve("./toy").folder == Path("toy")
        assert registry.resolve("toy").folder is None  # the registered name wins
        assert registry.resolve("owner").folder == Path("owner")
        assert registry.resolve("owner/repo").folder == Path("owner/repo")
        assert registry.resolve(str(tmp_path / "owner")).folder == tmp_path / "owner"
        with pytest.raises(UsageError, match="is a file; name the folder"):
            registry.resolve("./toy/config.json")
        with pytest.raises(NotFound, match="not a model's folder"):
            registry.resolve(".")
        with pytest.raises(NotFound, match="no folder nowhere"):
            registry.resolve("./nowhere")

    def test_bare_repository_gets_both_spellings(self, toy: Plugins) -> None:
        with pytest.raises(UsageError) as caught:
            Registry(toy, []).resolve("openai-community/gpt2")
        assert "hf://openai-community/gpt2 " in str(caught.value)
        assert " ./openai-community/gpt2 " in str(caught.value)

    @pytest.mark.parametrize("target", ["", "toy-bg", "a b", "a/b/c", "\x00"])
    def test_misses(self, toy: Plugins, target: str) -> None:
        with pytest.raises(NotFound, match="`cambrian list`") as caught:
            Registry(toy, []).resolve(target)
        assert ("'toy-big'" in str(caught.value)) == (target == "toy-bg")

    def test_a_missing_architecture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        registry = Registry(plugins(monkeypatch, a=[Entry(name="e", architecture="gone")]), [])
        assert registry.unavailable(registry.entries["e"])
        with pytest.raises(NotFound, match="no plugin provides its architecture 'gone'"):
            registry.resolve("e")


class TestSettings:
    def test_differences_are_laid_over_the_defaults(self, tmp_path: Path, toy: Plugins) -> None:
        text = (
            '[models.x]\narchitecture = "toy"\nconfig = {n_layer = 5}\n'
            "recipe.train = {batch_size = 3}\n"
        )
        registry = Registry(toy, [("user", write(tmp_path / "f.toml", text))])
        config, recipe = registry.settings(registry.resolve("x"))
        assert config == Config(n_layer=5)
        assert (recipe.train.steps, recipe.train.batch_size) == (7, 3)
        assert registry.settings(registry.resolve("toy")) == (
            Config(),
            registry.models["toy"].recipe,
        )

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            ({"config": {"n_layr": 5}}, r"\[models.x\].*unknown key 'n_layr'. Did you mean 'n_l"),
            ({"config": {"n_layer": "5"}}, "n_layer: expected `int`"),
            ({"recipe": {"data": {"a": 1}}}, "no settings for data"),
        ],
    )
    def test_mistakes(
        self, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any], words: str
    ) -> None:
        item = Entry(name="x", architecture="toy", **entry)
        registry = Registry(plugins(monkeypatch, a=[spec("toy"), item]), [])
        with pytest.raises(UsageError, match=words):
            registry.settings(registry.resolve("x"))

    def test_a_plugin_whose_defaults_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        @dataclass(frozen=True)
        class Needs:
            width: int

        registry = Registry(plugins(monkeypatch, a=[spec("toy", Needs)]), [])
        with pytest.raises(CambrianError, match=r"'toy'.*width.*plugin is at fault"):
            registry.settings(registry.resolve("toy"))


def test_pick(toy: Plugins) -> None:
    registry = Registry(toy, [])
    assert registry.pick("architecture", "toy").name == "toy"
    assert isinstance(registry.pick("data set", "python-reference"), DatasetEntry)
    with pytest.raises(NotFound, match=r"no architecture 'tooy'\. Did you mean 'toy'\?"):
        registry.pick("architecture", "tooy")
    with pytest.raises(NotFound, match=r"no trainer 'x'\. There are: none"):
        registry.pick("trainer", "x")


class TestShipped:
    def test_every_entry_makes_settings(self) -> None:
        registry = load_registry()
        shipped, faults = read_registry_file(shipped_file(), "cambrian")
        assert faults == []
        for entry in shipped:
            if isinstance(entry, Entry):
                config, recipe = registry.settings(registry.resolve(entry.name))
                for key, value in entry.config.items():
                    held = getattr(config, key)
                    assert held == msgspec.convert(value, type(held))
                assert recipe.train.steps > 0

    @pytest.mark.parametrize(
        ("name", "millions"),
        [("gpt2", 124.4), ("gpt2-medium", 354.8), ("gpt2-large", 774.0), ("gpt2-xl", 1557.6),
         ("distilgpt2", 81.9)],
    )  # fmt: skip
    def test_sizes(self, name: str, millions: float) -> None:
        """Parameters by the formula of the GPT-2 architecture, against the published counts."""
        registry = load_registry()
        c, _ = registry.settings(registry.resolve(name))
        block = 12 * c.n_embd**2 + 13 * c.n_embd
        count = (c.vocab_size + c.n_positions + 2) * c.n_embd + c.n_layer * block
        assert count / 1e6 == pytest.approx(millions, abs=0.1)

    def test_data_sets_are_there(self) -> None:
        source = load_registry().datasets["python-reference"].source
        assert source == ("python:pydoc_data.topics:topics",)
        from pydoc_data.topics import topics

        assert sum(map(len, topics.values())) > 400_000

    def test_cached(self, tmp_path: Path) -> None:
        assert load_registry(tmp_path) is load_registry(tmp_path)
        assert load_registry(tmp_path) is not load_registry(tmp_path.parent)

    def test_a_broken_one_is_an_error(
        self, tmp_path: Path, toy: Plugins, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for text in ("[[", "[models.x]\nsummary = 3\n"):
            file = write(tmp_path / "registry.toml", text)
            monkeypatch.setattr("cambrian.registry.shipped_file", lambda file=file: file)
            with pytest.raises(BrokenFile, match=r"registry\.toml"):
                Registry(toy, [])


def test_rows_are_json(toy: Plugins) -> None:
    rows = json.loads(json.dumps([row._asdict() for row in toy.rows]))
    assert [row["name"] for row in rows] == [row.name for row in toy.rows]


def test_a_projects_file_names_no_code(tmp_path: Path) -> None:
    """A folder may be a stranger's; one's own file, and a plugin's, may name code."""
    table = '[datasets.made]\nkind = "text"\nsource = "python:os:abort"\n'
    (tmp_path / "cambrian.toml").write_text(table + '[datasets.other]\nkind="text"\nsource="a"\n')
    (tmp_path / "own.toml").write_text(table)
    registry = Registry(Plugins([], {}), [("project", tmp_path / "cambrian.toml")])
    with pytest.raises(
        BrokenFile, match=r"is code \(python:os:abort\), which a project's file may"
    ):
        registry.pick("data set", "made")
    assert registry.pick("data set", "other").source == ("a",)
    assert [fault.name for fault in registry.faults] == ["made"]
    mine = Registry(Plugins([], {}), [("user", tmp_path / "own.toml")])
    assert mine.pick("data set", "made").source == ("python:os:abort",)
