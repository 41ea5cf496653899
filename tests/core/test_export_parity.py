"""The rule by which an export passes: what it lets through and what it must not."""

from __future__ import annotations

import numpy as np
import pytest

from cambrian.errors import UsageError
from cambrian.exporting import parity
from cambrian.exporting.parity import Result, compare, compare_probes, tolerance_for, verdict

LIMIT = 1e-4


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 5, 11)).astype(np.float32)


def passes(result: Result) -> bool:
    return result.badness <= 1


def test_equal_arrays_pass(logits: np.ndarray) -> None:
    result = compare("logits", logits, logits.copy(), LIMIT)
    assert passes(result)
    assert (result.max_abs_diff, result.relative_rms, result.argmax_agreement) == (0, 0, 1)


@pytest.mark.parametrize(("share", "passed"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("chunk", [7, 10**6])
def test_one_element_decides(
    logits: np.ndarray, share: float, passed: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "CHUNK", chunk)
    allowed = LIMIT * np.abs(logits).max()
    wrong = logits.copy()
    lowest = np.unravel_index(logits.argmin(), logits.shape)
    wrong[lowest] -= share * allowed
    result = compare("logits", logits, wrong, LIMIT)
    assert passes(result) is passed
    assert result.allowed == pytest.approx(allowed)
    assert result.max_abs_diff == pytest.approx(share * allowed, rel=1e-2)
    rms = np.linalg.norm((wrong - logits).ravel()) / np.linalg.norm(logits.ravel())
    assert result.relative_rms == pytest.approx(rms, rel=1e-3)


def test_small_references_are_held_to_the_limit_itself() -> None:
    reference = np.full((2, 2), 1e-3, np.float32)
    assert passes(compare("x", reference, reference + np.float32(0.9 * LIMIT), LIMIT))
    assert not passes(compare("x", reference, reference + np.float32(1.2 * LIMIT), LIMIT))


def test_a_tie_may_fall_either_way() -> None:
    reference = np.array([[1.0, 1.0 - 1e-6, 0.0]], np.float32)
    result = compare("x", reference, reference[:, [1, 0, 2]].copy(), LIMIT)
    assert passes(result)
    assert result.argmax_agreement == 0


@pytest.mark.parametrize("limit", [0.0, LIMIT])
def test_where_nothing_is_allowed_a_difference_fails(limit: float, logits: np.ndarray) -> None:
    assert passes(compare("x", logits, logits.copy(), limit))
    assert not passes(compare("x", logits, logits * np.float32(1.01), limit))


def test_numbers_of_another_kind_fail(logits: np.ndarray) -> None:
    whole = np.rint(logits)
    result = compare("x", whole, whole.astype(np.int64), LIMIT)
    assert not passes(result)
    assert "holds int64, not float32" in result.problem
    assert not passes(compare("x", whole.astype(np.int64), whole, LIMIT))


def test_another_choice_beyond_the_tolerance_fails() -> None:
    # Each logit moves by less than is allowed, but together they turn the choice around.
    reference = np.array([[1.0, 1.0 - 1.5 * LIMIT, 0.0]], np.float32)
    wrong = reference + np.array([[-0.9 * LIMIT, 0.9 * LIMIT, 0.0]], np.float32)
    result = compare("x", reference, wrong, LIMIT)
    assert not passes(result)
    assert "the largest element is another in 1 of 1 rows" in str(result)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(1, 2, 3), (0, 0, 5)])
def test_nothing_but_finite_numbers(
    logits: np.ndarray, value: float, place: tuple[int, int, int]
) -> None:
    logits[0, 0, 5] = 9.0  # the largest of its row, where NaN would change no choice
    broken = logits.copy()
    broken[place] = value
    assert not passes(compare("x", logits, broken, LIMIT))
    assert "the model itself" in compare("x", broken, logits, LIMIT).problem


def test_shapes_and_integers_must_be_equal(logits: np.ndarray) -> None:
    assert "has shape" in compare("x", logits, logits[:1], LIMIT).problem
    tokens = np.arange(6)
    assert passes(compare("x", tokens, tokens.copy(), LIMIT))
    assert compare("x", tokens, tokens[::-1], LIMIT).problem == "6 of 6 integers differ"


def test_empty_and_scalar_outputs() -> None:
    assert passes(compare("x", np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32), LIMIT))
    one = np.array(1.0, np.float32)
    assert passes(compare("x", one, one, LIMIT))
    assert not passes(compare("x", one, one + 1, LIMIT))


def test_probes_must_be_equal() -> None:
    want = {"tokens": np.array([1, 2, 3])}
    assert passes(compare_probes(want, {"tokens": np.array([1, 2, 3])}))
    assert not passes(compare_probes(want, {"tokens": np.array([1, 2, 4])}))
    assert not passes(compare_probes(want, {}))


def test_the_verdict_names_the_worst_case() -> None:
    fine = Result(name="fine", max_abs_diff=1e-6, allowed=1e-4)
    bad = Result(name="bad", max_abs_diff=2e-4, allowed=1e-4)
    worse = Result(name="worse", max_abs_diff=3e-3, allowed=1e-4)
    assert verdict([fine], None, "float32") == ""
    expected = "'worse': differs by 0.003, allowed 0.0001"
    assert verdict([fine, worse, bad], fine, "float32") == expected
    assert "no case" in verdict([], None, "float32")


def test_the_probe_decides_at_float32() -> None:
    fine = Result(name="fine")
    probe = Result(name="probe", problem="tokens 1 of 9 integers differ")
    assert verdict([fine], probe, "float32") == "'probe': tokens 1 of 9 integers differ"
    assert verdict([fine], probe, "float16") == ""


@pytest.mark.parametrize("given", [0.0, -1e-3, 1.0, float("nan")])
def test_senseless_tolerances_are_refused(given: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        tolerance_for("float32", given)


def test_unknown_precisions_are_refused() -> None:
    with pytest.raises(UsageError, match="float8"):
        tolerance_for("float8")
