"""How far counted work is: who is told what, and what a person sees of it."""

from __future__ import annotations

import pytest

from cambrian.cli import progress
from cambrian.cli.progress import Counted, Downloads
from cambrian.progress import told, untold


def test_each_is_told_before_it_comes_and_all_in_the_end() -> None:
    events: list[object] = []
    for thing in told("abc", "letters", lambda *event: events.append(event)):
        events.append(thing)
    assert events == [
        ("letters", 0, 3), "a", ("letters", 1, 3), "b", ("letters", 2, 3), "c", ("letters", 3, 3),
    ]  # fmt: skip
    assert [*told([1, 2], "numbers", untold)] == [1, 2]


def test_a_line_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Downloads() as downloads, Counted(downloads) as counted:
        for done in range(3):
            counted.report("batches", done, 3)
        assert capsys.readouterr() == ("", "")
        monkeypatch.setattr(progress, "QUIET_SECONDS", 0)
        counted.report("batches\x1b[2J", 3, 3)
        assert capsys.readouterr() == ("", "batches [2J: 3 of 3\n")


def test_a_bar_on_a_terminal_takes_the_place_of_the_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Downloads() as downloads, Counted(downloads) as counted:
        assert not counted.bar.live.is_started
        counted.report("[/x] batches\x1b]0;x\x07", 1, 4)
        assert counted.bar.live.is_started and not downloads.bar.live.is_started
        counted.report("pictures", 2, 4)
    said = capsys.readouterr().err
    assert not counted.bar.live.is_started
    assert "[/x] batches ]0;x" in said and "2/4" in said and "\x1b]" not in said


def test_work_that_is_called_as_the_last_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when as many pictures are made as there are real ones."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Downloads() as downloads, Counted(downloads) as counted:
        for done in range(5):
            counted.report("pictures", done, 4)
        [task] = counted.bar.tasks
        assert task.finished
        for done in range(3):
            counted.report("pictures", done, 4)
        assert not task.finished and task.time_remaining != 0


def test_nothing_is_drawn_where_nothing_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with Downloads() as downloads, Counted(downloads):
        pass
    assert capsys.readouterr() == ("", "")
