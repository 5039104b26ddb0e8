"""The queue of one kind: pure data, so every order and interruption can be tried."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import persistence_client as module
from client.persistence_client import _Queue, _Waiting

T0 = datetime(2026, 11, 23, tzinfo=timezone.utc)


def waiting(key: str, second: int = 0, queued_at: float = 0.0, body: bytes = b"{}") -> _Waiting:
    return _Waiting(key, T0 + timedelta(seconds=second), body, queued_at)


def make() -> _Queue:
    return _Queue("tasks", ("session_id", "task_id"))


def states(batch: list[_Waiting]) -> list[tuple[object, int]]:
    return [(one.key, (one.updated_at - T0).seconds) for one in batch]


def test_of_two_states_of_a_key_the_later_one_waits_whichever_came_first() -> None:
    for seconds in ((1, 2), (2, 1)):
        queue = make()
        for second in seconds:
            queue.put(waiting("a", second))
        assert states(queue.take()) == [("a", 2)]
        assert queue.coalesced == 1


def test_on_a_tie_the_later_call_wins() -> None:
    queue = make()
    queue.put(waiting("a", body=b"first"))
    queue.put(waiting("a", body=b"second"))
    assert [one.body for one in queue.take()] == [b"second"]


def test_what_could_not_be_sent_gives_way_to_a_state_that_came_in_the_meantime() -> None:
    queue = make()
    for key in "abc":
        queue.put(waiting(key, 5))
    batch = queue.take()
    queue.put(waiting("a", 6))  # later
    queue.put(waiting("b", 4))  # earlier: came out of order
    queue.put(waiting("c", 5, body=b"tie"))  # the later call
    queue.settle(batch)
    again = queue.take()
    assert dict(states(again)) == {"a": 6, "b": 5, "c": 5}
    assert [one.body for one in again if one.key == "c"] == [b"tie"]
    assert queue.coalesced == 3


def test_what_could_not_be_sent_is_sent_before_what_came_later() -> None:
    queue = make()
    for key in "ab":
        queue.put(waiting(key))
    batch = queue.take()
    queue.put(waiting("c"))
    queue.settle(batch)
    assert [one.key for one in queue.take()] == ["a", "b", "c"]


def test_a_batch_has_at_most_100_records_and_a_megabyte() -> None:
    queue = make()
    for number in range(150):
        queue.put(waiting(str(number)))
    assert len(queue.take()) == 100
    queue.settle(())
    assert len(queue.take()) == 50

    queue = make()
    for number in range(10):
        queue.put(waiting(str(number), body=b"x" * (module.BATCH_BYTES // 2)))
    assert len(queue.take()) == 2


def test_a_batch_is_due_by_number_by_bytes_and_by_age() -> None:
    queue = make()
    assert not queue.due(1e9)
    queue.put(waiting("0", queued_at=10.0))
    assert not queue.due(10.9)
    assert queue.due(11.0)
    for number in range(98):
        queue.put(waiting(str(number + 1), queued_at=10.0))
    assert not queue.due(10.0)
    queue.put(waiting("99", queued_at=10.0))
    assert queue.due(10.0)

    queue = make()
    queue.put(waiting("0", queued_at=10.0, body=b"x" * module.BATCH_BYTES))
    assert queue.due(10.0)


def test_newer_states_do_not_make_their_key_wait_longer() -> None:
    queue = make()
    for tenth in range(10):
        queue.put(waiting("a", tenth, queued_at=10.0 + tenth / 10))
        queue.put(waiting(f"b{tenth}", queued_at=10.0 + tenth / 10))
    assert queue.oldest_at() == 10.0
    assert queue.due(11.0)
    batch = queue.take()
    assert states(batch)[0] == ("a", 9)
    queue.put(waiting("a", 10, queued_at=11.5))
    queue.put(waiting("b0", 11, queued_at=11.6))
    queue.settle(batch)  # it was not taken
    assert queue.oldest_at() == 10.0
    assert [key for key, _ in states(queue.take())] == ["a", *(f"b{tenth}" for tenth in range(10))]
    queue.settle(())
    assert queue.oldest_at() == float("inf")


def test_what_is_set_back_is_sent_after_all_others_and_still_counts_as_the_oldest() -> None:
    queue = make()
    queue.size = 2
    for at, key in enumerate("abcd"):
        queue.put(waiting(key, queued_at=float(at)))
    queue.settle(queue.take(), at_end=True)
    assert queue.oldest_at() == 0.0
    assert [one.key for one in queue.take()] == ["c", "d"]
    queue.put(waiting("a", 1, queued_at=9.0))
    queue.settle(())
    assert states(queue.take()) == [("a", 1), ("b", 0)]
    assert queue.oldest_at() == 0.0
    queue.settle(())
    assert queue.oldest_at() == float("inf")


def test_beyond_its_bounds_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORDS", 3)
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    queue = make()
    for key in "abcd":
        queue.put(waiting(key, body=b"x" * 10))
    assert list(queue.trouble.values()) == [(1, "dropped: the queue is full")]
    queue.put(waiting("e", body=b"x" * 85))
    assert [one.key for one in queue.take()] == ["d", "e"]
    assert queue.dropped == 3


def test_replacing_states_needs_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORDS", 2)
    monkeypatch.setattr(module, "MAX_BYTES", 20)
    queue = make()
    for second in range(50):
        queue.put(waiting("a", second, body=b"x" * 10))
        queue.put(waiting("b", second, body=b"x" * 10))
    assert queue.dropped == 0
    assert len(queue.take()) == 2


def test_warnings_are_one_a_kind_and_few() -> None:
    queue = make()
    for index in range(3):
        queue.drop(1, f"tasks[{index}].cost: complex cannot be sent")
    assert list(queue.trouble.values()) == [(3, "dropped: tasks[0].cost: complex cannot be sent")]
    for number in range(100):
        queue.drop(1, f"field{number}")
    assert len(queue.trouble) == module._MAX_WARNINGS + 1
    assert sum(count for count, _ in queue.trouble.values()) == queue.dropped == 103


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.sampled_from("abc"), st.integers(0, 5)),
            st.tuples(st.just("send"), st.integers(0, 3), st.sampled_from(["taken", "left", "set back"])),
        )
    )
)
def test_whatever_happens_the_latest_state_of_every_key_is_sent_and_every_record_is_counted(steps: list) -> None:
    """ "send" begins a batch; it ends, taken by the service or not, only after some of the steps that follow."""
    queue = make()
    latest: dict[object, int] = {}
    stored: dict[object, int] = {}
    given_records = sent = 0
    under_way: list[_Waiting] = []
    ends_in, outcome = 0, "taken"

    def end() -> None:
        nonlocal under_way, sent
        if outcome == "taken":
            sent += len(under_way)
            for key, second in states(under_way):
                stored[key] = max(stored.get(key, -1), second)
        queue.settle(() if outcome == "taken" else under_way, at_end=outcome == "set back")
        under_way = []

    for step in steps:
        if step[0] == "put":
            _, key, second = step
            queue.put(waiting(key, second, float(given_records)))
            given_records += 1
            latest[key] = max(latest.get(key, -1), second)
        elif not under_way:
            _, ends_in, outcome = step
            under_way = list(queue.take())
        if under_way:
            ends_in -= 1
            if ends_in < 0:
                end()
        assert given_records == sent + queue.coalesced + len(queue)
    outcome = "taken"
    end()
    under_way = list(queue.take())
    end()
    assert stored == latest
    assert given_records == sent + queue.coalesced
    assert queue._bytes == 0
    assert queue.dropped == 0
