"""Batches of unequal rows: what each epoch holds, and that a number alone decides over a batch."""

from __future__ import annotations

import numpy as np
import pytest

from cambrian.data.rows import POOL, Ids, Ragged, RowBatches, padded
from cambrian.errors import UsageError

LENGTHS = np.random.default_rng(0).integers(1, 60, size=2003)


def batches(shuffle: bool = True, seed: int = 0, size: int = 16) -> RowBatches:
    def collate(rows: Ids, generator: np.random.Generator) -> dict[str, Ids]:
        return {"rows": rows, "drawn": generator.integers(1 << 30, size=4)}

    return RowBatches(LENGTHS, collate, batch_size=size, seed=seed, shuffle=shuffle)


def epoch(source: RowBatches, number: int) -> list[Ids]:
    count = len(source)
    return [np.asarray(source.batch(number * count + i)["rows"]) for i in range(count)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_once_an_epoch(shuffle: bool) -> None:
    for number in (0, 1, 5):
        rows = np.concatenate(epoch(batches(shuffle), number))
        assert sorted(rows) == list(range(len(LENGTHS)))


def test_a_number_decides_whatever_was_asked_before() -> None:
    source = batches()
    wanted = [source.batch(i) for i in (3, 500, 4, 0)]
    for index, want in zip((0, 4, 500, 3), reversed(wanted), strict=True):
        for found in (source.batch(index), batches().batch(index)):
            assert np.array_equal(found["rows"], want["rows"])
            assert np.array_equal(found["drawn"], want["drawn"])


def test_epochs_and_seeds_differ() -> None:
    first, second, other = epoch(batches(), 0), epoch(batches(), 1), epoch(batches(seed=1), 0)
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    assert not np.array_equal(np.concatenate(first), np.concatenate(other))
    drawn = {tuple(batches().batch(i)["drawn"]) for i in range(200)}
    assert len(drawn) == 200


def test_rows_of_a_batch_are_alike_in_length() -> None:
    def padding(found: list[Ids]) -> float:
        return sum(float(len(r) * LENGTHS[r].max() - LENGTHS[r].sum()) for r in found)

    assert padding(epoch(batches(), 0)) < 0.1 * padding(epoch(batches(shuffle=False), 0))


def test_long_and_short_batches_are_mixed() -> None:
    means = np.array([LENGTHS[rows].mean() for rows in epoch(batches(), 0)[:POOL]])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_unshuffled_rows_come_in_order_with_the_same_draws() -> None:
    source = batches(shuffle=False, size=1000)
    assert [len(rows) for rows in epoch(source, 0)] == [1000, 1000, 3]
    assert np.array_equal(np.concatenate(epoch(source, 0)), np.arange(2003))
    assert np.array_equal(source.batch(1)["drawn"], source.batch(1 + len(source))["drawn"])


def test_ragged_rows() -> None:
    rows = Ragged([[1, 2, 3], [], [4]])
    assert [list(row) for row in rows] == [[1, 2, 3], [], [4]]
    assert list(rows.lengths) == [3, 0, 1]
    assert padded([rows[2], rows[0]], -1).tolist() == [[4, -1, -1], [1, 2, 3]]
    assert padded([rows[1]], 9).tolist() == [[9]]


def test_nothing_to_make_batches_of() -> None:
    for lengths, size in (([], 4), ([1], 0)):
        with pytest.raises(UsageError):
            RowBatches(np.array(lengths), lambda rows, generator: {}, batch_size=size, seed=0)
