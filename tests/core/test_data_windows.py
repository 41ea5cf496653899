"""Windows: pure functions of the batch's number that cover every token."""

from __future__ import annotations

import numpy as np
import pytest

from cambrian.data.windows import Windows
from cambrian.errors import UsageError

SHAPES = [(2, 1), (3, 1), (5, 4), (9, 4), (10, 4), (11, 4), (12, 4), (13, 4), (257, 16), (1000, 7)]


def stream(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint16)  # each token tells its own position


def labels_of_epoch(windows: Windows, epoch: int) -> list[int]:
    """With batches of one row, an epoch is as many batches as a pass has."""
    per_epoch = len(windows)
    batches = (windows.batch(epoch * per_epoch + i) for i in range(per_epoch))
    return [int(label) for batch in batches for label in batch["labels"].ravel()]


@pytest.mark.parametrize(("count", "length"), SHAPES)
def test_in_order_every_target_token_is_met_exactly_once(count: int, length: int) -> None:
    windows = Windows(stream(count), length=length, batch_size=3, seed=0, shuffle=False)
    labels = np.concatenate([windows.batch(i)["labels"].ravel() for i in range(len(windows))])
    assert labels[labels != -100].tolist() == list(range(1, count))
    assert (labels == -100).sum() < length  # only the last window is filled up


@pytest.mark.parametrize(("count", "length"), SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_shuffled_every_target_token_is_met_in_every_epoch(
    count: int, length: int, seed: int
) -> None:
    windows = Windows(stream(count), length=length, batch_size=1, seed=seed)
    for epoch in range(4):
        labels = labels_of_epoch(windows, epoch)
        assert set(labels) == set(range(1, count))
        assert len(labels) - (count - 1) <= 3 * length / 2  # twice only at the two ends


@pytest.mark.parametrize("shuffle", [True, False])
def test_labels_are_the_inputs_one_token_on(shuffle: bool) -> None:
    windows = Windows(stream(1000), length=16, batch_size=4, seed=1, shuffle=shuffle)
    for i in range(len(windows)):
        batch = windows.batch(i)
        assert batch["input_ids"].dtype == batch["labels"].dtype == np.int64
        real = batch["labels"] != -100
        np.testing.assert_array_equal(batch["labels"][real], batch["input_ids"][real] + 1)


def test_the_mean_weighted_by_labels_is_the_mean_over_tokens() -> None:
    losses = np.random.default_rng(0).random(1000)
    windows = Windows(stream(1000), length=48, batch_size=5, seed=0, shuffle=False)
    means, weights = [], []
    for i in range(len(windows)):
        labels = windows.batch(i)["labels"]
        means.append(losses[labels[labels != -100]].mean())
        weights.append((labels != -100).sum())
    assert np.average(means, weights=weights) == pytest.approx(losses[1:].mean(), rel=1e-12)


def test_a_batch_depends_on_its_number_and_the_seed_alone() -> None:
    def make(seed: int) -> Windows:
        return Windows(stream(500), length=8, batch_size=7, seed=seed)

    walked = make(3)
    uninterrupted = [walked.batch(i) for i in range(40)]  # over four epochs
    for i in [39, 0, 17, 8, 9, 8]:
        for resumed in (make(3), walked):
            for name in ("input_ids", "labels"):
                np.testing.assert_array_equal(resumed.batch(i)[name], uninterrupted[i][name])
    assert not np.array_equal(make(4).batch(0)["input_ids"], uninterrupted[0]["input_ids"])


@pytest.mark.parametrize("count", [1000, 961])  # 961: windows that fit exactly, too, are shifted
def test_epochs_differ_in_order_and_offset(count: int) -> None:
    windows = Windows(stream(count), length=16, batch_size=1, seed=0)
    starts = []
    for epoch in range(6):
        first = epoch * len(windows)
        rows = [windows.batch(first + i)["input_ids"][0, 0] for i in range(len(windows))]
        starts.append([int(start) for start in rows])
    orders = {tuple(epoch) for epoch in starts}
    offsets = {sorted(epoch)[1] % 16 for epoch in starts}
    assert len(orders) == 6
    assert len(offsets) > 2


def test_batches_reach_into_the_next_epoch_and_are_always_full() -> None:
    windows = Windows(stream(100), length=10, batch_size=7, seed=0)
    assert all(windows.batch(i)["input_ids"].shape == (7, 10) for i in range(12))


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_corpus_smaller_than_a_batch_works(shuffle: bool) -> None:
    windows = Windows(stream(6), length=5, batch_size=64, seed=0, shuffle=shuffle)
    assert len(windows) == 1
    batch = windows.batch(0)
    assert batch["input_ids"].shape == ((64, 5) if shuffle else (1, 5))
    np.testing.assert_array_equal(batch["labels"][0], [1, 2, 3, 4, 5])


def test_in_order_numbers_past_one_pass_begin_again() -> None:
    windows = Windows(stream(50), length=8, batch_size=2, seed=0, shuffle=False)
    again = windows.batch(len(windows) + 1)
    np.testing.assert_array_equal(again["labels"], windows.batch(1)["labels"])


def test_too_few_tokens_say_how_many_and_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"16 tokens.*window of 16 needs 17.*shorter context"):
        Windows(stream(16), length=16, batch_size=1, seed=0)
    with pytest.raises(UsageError, match=r"1 tokens"):
        Windows(stream(1), length=16, batch_size=1, seed=0, shuffle=False)
    Windows(stream(16), length=16, batch_size=1, seed=0, shuffle=False)
    with pytest.raises(UsageError, match="at least 1"):
        Windows(stream(16), length=4, batch_size=0, seed=0)


def test_reading_a_file_leaves_no_pages_mapped(tmp_path) -> None:
    """What was read through the mapping is handed back, and read again rightly."""
    file = tmp_path / "tokens"
    stream(60000).tofile(file)
    mapped = np.memmap(file, np.uint16, "r")
    windows = Windows(mapped, length=32, batch_size=4, seed=0)
    plain = Windows(stream(60000), length=32, batch_size=4, seed=0)
    for i in range(0, 200, 7):  # among them batches after which pages are released
        np.testing.assert_array_equal(windows.batch(i)["labels"], plain.batch(i)["labels"])
    changed = np.memmap(file, np.uint16, "c")
    changed[:] = 7
    Windows(changed, length=32, batch_size=4, seed=0).batch(0)
    assert (changed == 7).all()  # a private copy may not be dropped
