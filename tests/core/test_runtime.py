"""What every engine must do alike, on torch and on ONNX Runtime; and the checks of a call."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import toy
import toy_model
from cambrian.artifact import Artifact, Port, Signature, resolve_shape, terms
from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian.runtime import Session
from cambrian.runtime.binding import bind
from cambrian.runtime.torch import TorchSession
from cambrian_onnx import register_exporters
from cambrian_onnx.runtime import OnnxRuntime

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Session]:
    folder = tmp_path_factory.mktemp("exported") / "toy"
    toy_model.export(folder)
    fused = next(spec for spec in register_exporters() if spec.name == "onnx-ort")
    artifact = toy_model.export(folder.with_name("fused"), exporter=fused)
    assert artifact.manifest.graphs["decoder"].length == "past_length"
    return {
        "torch": TorchSession(toy_model.build()),
        "onnxruntime": OnnxRuntime().open(folder, "cpu"),
        "onnxruntime, in place": OnnxRuntime().open(artifact.path, "cpu"),
    }


@pytest.fixture(params=["torch", "onnxruntime", "onnxruntime, in place"])
def session(sessions: dict[str, Session], request: pytest.FixtureRequest) -> Session:
    return sessions[request.param]


def run(session: Session, ids: np.ndarray, past: int = 0, state=None, padding=()):
    return session.run("decoder", toy.decoder_inputs(ids, past, padding), state)


def test_cached_calls_equal_one_long_call(session: Session) -> None:
    whole, _ = run(session, IDS)
    first, state = run(session, IDS[:, :3])
    second, state = run(session, IDS[:, 3:4], 3, state)
    third, _ = run(session, IDS[:, 4:], 4, state)
    pieces = [outputs["logits"] for outputs in (first, second, third)]
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole["logits"], atol=2e-6)


def test_state_can_be_used_twice(session: Session) -> None:
    _, state = run(session, IDS[:, :3])
    once, _ = run(session, IDS[:, 3:], 3, state)
    again, _ = run(session, IDS[:, 3:], 3, state)
    np.testing.assert_array_equal(once["logits"], again["logits"])


def test_left_padding_changes_nothing(session: Session) -> None:
    plain, _ = run(session, IDS)
    padded, _ = run(session, np.pad(IDS, ((0, 0), (2, 0))), padding=(2, 2))
    np.testing.assert_allclose(padded["logits"][:, 2:], plain["logits"], atol=2e-6)


def test_state_is_kept_out_of_the_outputs(session: Session) -> None:
    outputs, state = run(session, IDS)
    assert set(outputs) == {"logits"}
    assert set(state) == {"past_key_values.0.key", "past_key_values.0.value"}


def test_new_state_keeps_what_a_call_does_not_renew(session: Session) -> None:
    _, state = run(session, IDS)
    noise = {"noise": np.zeros((1, 8), np.float32), "label": np.zeros(1, np.int64)}
    _, kept = session.run("generator", noise, state)
    assert kept.keys() == state.keys()


def test_rows_of_a_state_are_taken_in_any_order_and_number(session: Session) -> None:
    ids = np.concatenate([IDS, IDS[:, ::-1]])
    _, state = run(session, ids[:, :3])
    rows = np.array([2, 0, 2, 3, 1, 2])
    chosen = session.take(state, rows)
    assert chosen.keys() == state.keys()
    after, _ = run(session, ids[rows, 3:], 3, chosen)
    expected, _ = run(session, ids[rows])
    np.testing.assert_allclose(after["logits"], expected["logits"][:, 3:], atol=2e-6)
    whole, _ = run(session, ids[:, 3:], 3, state)  # the old state is as it was
    np.testing.assert_allclose(whole["logits"], run(session, ids)[0]["logits"][:, 3:], atol=2e-6)


def test_rows_may_be_none_of_a_part_of_a_state(session: Session) -> None:
    _, state = run(session, IDS)
    assert session.take({}, np.array([1, 0])) == {}
    some = session.take({"past_key_values.0.key": state["past_key_values.0.key"]}, np.array([1]))
    assert some.keys() == {"past_key_values.0.key"}


@pytest.mark.parametrize("rows", [[0, 2], [-1], [[0]], [0.0]])
def test_rows_that_are_not_there_are_named(session: Session, rows: list) -> None:
    _, state = run(session, IDS)
    with pytest.raises(CambrianError, match=r"Rows .* (but the batch has 2|int64 list)"):
        session.take(state, np.array(rows))


def test_state_may_be_given_as_input(session: Session) -> None:
    empty = np.zeros((2, 2, 0, 8), np.float32)
    given = toy.decoder_inputs(IDS, 0) | {"past_key_values.0.key": empty}
    outputs, _ = session.run("decoder", given)
    np.testing.assert_array_equal(outputs["logits"], run(session, IDS)[0]["logits"])


def test_read_only_and_reversed_arrays_are_taken(session: Session) -> None:
    ids = IDS[:, ::-1]
    ids.setflags(write=False)
    np.testing.assert_array_equal(
        run(session, ids)[0]["logits"], run(session, ids.copy())[0]["logits"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_id": IDS}, "has no input 'input_id'. Did you mean 'input_ids'?"),
        ({"input_ids": IDS.astype(np.int32)}, "'input_ids' must be int64, not int32"),
        ({"position_ids": None}, "input 'position_ids' is missing"),
        ({"input_ids": IDS[0]}, r"must have 2 dimensions \(batch, sequence\), not 1"),
        ({"position_ids": IDS[:1]}, "'batch' is 2 in 'input_ids' but 1 in 'position_ids'"),
        (
            {"attention_mask": np.ones((2, 7), np.int64)},
            r"'attention_mask' must have shape \(2, 5\) \(batch, past \+ sequence\), not \(2, 7\)",
        ),
    ],
)
def test_wrong_calls_are_named(session: Session, change: dict, message: str) -> None:
    inputs = {**toy.decoder_inputs(IDS, 0), **change}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    with pytest.raises(CambrianError, match=message):
        session.run("decoder", inputs)


def test_unknown_graph_is_named(session: Session) -> None:
    with pytest.raises(CambrianError, match=r"no graph 'decode'.*Did you mean 'decoder'\?"):
        session.run("decode", {})


def test_torch_refuses_a_model_in_training_mode() -> None:
    with pytest.raises(CambrianError, match="eval mode"):
        TorchSession(toy_model.build().train())


def test_torch_refuses_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match="cuda"):
        TorchSession(toy_model.build(), "cuda")


def test_torch_gives_bfloat16_as_float32() -> None:
    class Half(torch.nn.Module):
        def forward(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(value.bfloat16() for value in decoder(**inputs))

    model = toy_model.build()
    session = TorchSession(model)
    decoder = session.graphs["decoder"].module
    exact = run(session, IDS)[0]["logits"]
    session._modules["decoder"] = Half()
    rounded = run(session, IDS)[0]["logits"]
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(
        rounded, torch.from_numpy(exact).bfloat16().float().numpy(), strict=True
    )


def test_unfixed_dimensions_are_empty() -> None:
    shape = ("batch", 4, "past", "past + 2")
    assert resolve_shape(shape, {"batch": 3}) == (3, 4, 0, 2)


def test_dimensions_are_sums_of_multiples() -> None:
    assert terms(8) == ((8, ""),)
    assert terms("8*height + past+ 2") == ((8, "height"), (1, "past"), (2, ""))
    sizes = {"height": 3, "past": 5}
    assert resolve_shape((7, "8*height", "2 * past + height + 4"), sizes) == (7, 24, 17)
    for strange in ("height*8", "-1", -1, "", "2*3", "a-b", "a+", "8*", "\u00b2", "9" * 19):
        with pytest.raises(ValueError, match="is no dimension"):
            Port("x", "float32", ("batch", strange))


PICTURES = Signature(
    inputs=(
        Port("pixels", "float32", ("batch", "8*height", "8*width")),
        Port("latents", "float32", ("batch", "height", "2*width + 1")),
    ),
    outputs=(),
    state={"next": "latents"},
)


def bound(pixels: tuple[int, ...], latents: tuple[int, ...] | None = None):
    shapes = {"pixels": pixels} | ({"latents": latents} if latents else {})
    inputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return bind("encoder", PICTURES, inputs, {})


def test_a_multiple_fixes_the_name_in_it() -> None:
    assert bound((2, 24, 16)) == {"batch": 2, "height": 3, "width": 2}
    assert bound((2, 0, 8)) == {"batch": 2, "height": 0, "width": 1}
    assert bound((2, 24, 16), (2, 3, 5)) == bound((2, 24, 16))


@pytest.mark.parametrize(
    ("pixels", "latents", "message"),
    [
        (
            (2, 24, 13),
            None,
            r"encoder: input 'pixels' must have shape \(batch, 8\*height, 8\*width\), "
            "but 13 is no multiple of 8.",
        ),
        ((2, 24, 16), (2, 4, 5), "'height' is 3 in 'pixels' but 4 in 'latents'"),
        ((2, 24, 16), (2, 3, 4), r"'latents' must have shape \(2, 3, 5\) \(batch, height, 2\*w"),
    ],
)
def test_multiples_that_do_not_come_out_are_named(pixels, latents, message: str) -> None:
    with pytest.raises(CambrianError, match=message):
        bound(pixels, latents)


def test_a_manifest_of_strange_dimensions_is_broken(tmp_path: Path) -> None:
    toy_model.export(tmp_path / "toy")
    file = tmp_path / "toy" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text())).replace("past + seq", "past ** seq"))
    with pytest.raises(BrokenFile, match=r"malformed \('past \*\* sequence' is no dimension"):
        Artifact.open(tmp_path / "toy")
