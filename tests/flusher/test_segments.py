from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flusher import segments
from flusher.segments import (
    ENTRY_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Contents,
    Entry,
    entry_header,
    parse,
    summarize,
)
from shared.records import Rules
from tests.support.segments import (
    ENTRIES,
    FLOOR,
    ends_of,
    entry_bytes,
    file_size_limit,
    filled,
    recovered,
    segment_bytes,
    segment_header,
)


@given(st.binary(max_size=300), st.integers(1, 2000), st.integers(0, 2**32 - 1))
def test_the_crc_is_the_same_with_and_without_isal(piece: bytes, times: int, start: int) -> None:
    data = piece * times
    assert segments.crc32(data, start) == zlib.crc32(data, start)
    assert segments.crc32(memoryview(data)[1:], start) == zlib.crc32(memoryview(data)[1:], start)


def test_without_isal_the_journal_works_as_well() -> None:
    code = "import sys, zlib; sys.modules['isal'] = None; import flusher.segments as s; print(s.crc32 is zlib.crc32)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n"


def check_every_byte_is_accounted_for(contents: Contents) -> None:
    entries = sum(ENTRY_HEADER_BYTES + len(entry.rules) + len(entry.body) for entry in contents.entries)
    header = 0 if contents.version is None else SEGMENT_HEADER_BYTES
    assert header + entries + contents.damaged_bytes == contents.size


def test_the_bytes_on_the_disk_are_those_of_the_grammar(tmp_path: Path) -> None:
    assert filled(tmp_path).read_bytes() == segment_bytes(ENTRIES)


def test_every_field_holds_its_largest_value(tmp_path: Path) -> None:
    largest = Entry(255, 2**32 - 1, 2**64 - 1, b"x", b"r" * 255)

    assert segments.read(filled(tmp_path, [largest])).entries == [largest]


V1_SEGMENT = bytes.fromhex(
    "50534aff 01 00 0000 00401e18240a0600 313019d7"
    " ffa7 01 02 01000000 01401e18240a0600 0e000000 55481895 7b227461736b73223a5b7b7d5d7d"
)


def test_a_segment_of_version_1_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(V1_SEGMENT)

    contents = segments.read(path)

    assert contents.entries == [Entry(2, 1, FLOOR + 1, b'{"tasks":[{}]}', Rules(unknown_fields="ignore").encode())]
    assert (contents.version, contents.floor, contents.damage) == (1, FLOOR, [])
    assert summarize(path).records == {2: 1}


def test_an_entry_without_a_body_is_refused_since_zeros_would_read_as_one() -> None:
    with pytest.raises(AssertionError):
        entry_header(Entry(1, 1, 1, b""))


@pytest.mark.parametrize("cut", range(len(segment_bytes(ENTRIES)) + 1))
def test_a_segment_cut_anywhere_keeps_every_whole_entry_before_the_cut(cut: int) -> None:
    contents = parse(segment_bytes(ENTRIES)[:cut])

    whole = [entry for entry, end in zip(ENTRIES, ends_of(ENTRIES), strict=True) if end <= cut]
    assert contents.entries == whole
    assert (contents.version is None) == (cut < SEGMENT_HEADER_BYTES)
    check_every_byte_is_accounted_for(contents)
    assert contents.torn == contents.damaged_bytes


@pytest.mark.parametrize("behind", [b"\0", bytes(4096)])
def test_zeros_behind_the_last_entry_are_a_torn_tail(behind: bytes) -> None:
    contents = parse(segment_bytes(ENTRIES) + behind)
    assert (contents.entries, contents.torn) == (ENTRIES, len(behind))


@pytest.mark.parametrize(
    "damaged",
    [
        segment_bytes(ENTRIES)[:-1] + b"x",
        segment_bytes(ENTRIES) + b"rubbish of any length",
        segment_bytes(ENTRIES)[:-5] + entry_bytes(ENTRIES[0]),
        segment_bytes(ENTRIES) + b"\xff\xa7" + bytes(40),
        segment_bytes(ENTRIES) + b"\xff\xa7\x02" + b"\xff" * 40,
        b"x" + segment_bytes([])[1:],
        segment_header(version=9) + bytes(30),
    ],
    ids=["last byte", "rubbish", "inside", "no length", "impossible length", "header", "another version"],
)
def test_what_no_append_that_was_cut_off_leaves_behind_is_damage(damaged: bytes) -> None:
    contents = parse(damaged)
    assert contents.damaged_bytes > 0
    assert contents.torn == 0


def test_a_length_in_its_higher_bytes_that_the_disk_has_spoilt_is_damage() -> None:
    data = bytearray(segment_bytes(ENTRIES[:1]))
    data[SEGMENT_HEADER_BYTES + 19] = 0x80  # 2 GiB are no entry's
    assert parse(bytes(data)).torn == 0


@pytest.mark.parametrize("size", range(SEGMENT_HEADER_BYTES, len(segment_bytes(ENTRIES)) + 1))
def test_read_up_to_a_size_sees_nothing_behind_it_and_misses_what_is_not_there(tmp_path: Path, size: int) -> None:
    whole = segment_bytes(ENTRIES)
    path = tmp_path / "segment"
    path.write_bytes(whole)
    assert segments.read(path, size).entries == parse(whole[:size]).entries
    path.write_bytes(whole[:size])
    short = segments.read(path, len(whole))
    assert short.entries == parse(whole[:size]).entries
    assert short.damaged_bytes == len(whole) - size + parse(whole[:size]).damaged_bytes
    assert short.torn == 0


@pytest.mark.parametrize("position", range(len(segment_bytes(ENTRIES))))
def test_a_changed_byte_costs_no_entry_but_its_own(position: int) -> None:
    intact = segment_bytes(ENTRIES)
    ends = ends_of(ENTRIES)
    damaged_one = next(
        (number for number, end in enumerate(ends) if SEGMENT_HEADER_BYTES <= position < end),
        None,
    )
    for value in range(256):
        if value == intact[position]:
            continue
        data = bytearray(intact)
        data[position] = value

        contents = parse(bytes(data))

        assert contents.entries == [entry for number, entry in enumerate(ENTRIES) if number != damaged_one]
        assert contents.damaged_bytes > 0
        check_every_byte_is_accounted_for(contents)


def test_several_damaged_entries_are_told_apart_from_the_intact_ones_between_them() -> None:
    data = bytearray(segment_bytes(ENTRIES))
    ends = ends_of(ENTRIES)
    data[ends[0] - 1] ^= 1
    data[ends[2] - 1] ^= 1

    contents = parse(bytes(data))

    assert contents.entries == [ENTRIES[1], ENTRIES[3]]
    assert [(part.offset, part.length) for part in contents.damage] == [
        (SEGMENT_HEADER_BYTES, ends[0] - SEGMENT_HEADER_BYTES),
        (ends[1], ends[2] - ends[1]),
    ]


@pytest.mark.parametrize("start", range(0, len(segment_bytes(ENTRIES)), 7))
@pytest.mark.parametrize("length", [1, 16, 64])
def test_zeroed_pages_cost_only_the_entries_they_touch(start: int, length: int) -> None:
    intact = segment_bytes(ENTRIES)
    data = intact[:start] + bytes(length) + intact[start + length :]
    data = data[: len(intact)]
    ends = ends_of(ENTRIES)
    starts = [SEGMENT_HEADER_BYTES, *ends[:-1]]

    untouched = [
        entry for entry, begin, end in zip(ENTRIES, starts, ends, strict=True) if data[begin:end] == intact[begin:end]
    ]
    assert parse(data).entries == untouched


def test_a_length_that_reaches_beyond_the_following_entries_does_not_hide_them() -> None:
    head = bytearray(entry_bytes(ENTRIES[0]))
    struct.pack_into("<I", head, 16, len(ENTRIES[0].body) + ENTRY_HEADER_BYTES + len(ENTRIES[1].body))

    contents = parse(segment_header() + bytes(head) + entry_bytes(ENTRIES[1]) + entry_bytes(ENTRIES[2]))

    assert contents.entries == ENTRIES[1:3]


def test_a_segment_of_another_version_is_left_whole_for_a_version_that_reads_it() -> None:
    data = segment_header(version=3) + b"".join(map(entry_bytes, ENTRIES))

    contents = parse(data)

    assert contents.version == 3
    assert contents.entries == []
    assert contents.damaged_bytes == len(data) - SEGMENT_HEADER_BYTES


def test_an_entry_of_another_version_does_not_hide_its_neighbours() -> None:
    data = segment_header() + entry_bytes(ENTRIES[0]) + entry_bytes(ENTRIES[1], version=3) + entry_bytes(ENTRIES[2])

    contents = parse(data)

    assert contents.entries == [ENTRIES[0], ENTRIES[2]]
    assert contents.damaged_bytes == len(entry_bytes(ENTRIES[1]))


@given(st.binary(max_size=200))
def test_parse_fails_on_no_input(data: bytes) -> None:
    check_every_byte_is_accounted_for(parse(data))


@given(
    st.lists(
        st.one_of(
            st.sampled_from(ENTRIES),
            st.binary(min_size=1, max_size=40).filter(lambda noise: b"\xff" not in noise),
        ),
        max_size=12,
    )
)
def test_every_intact_entry_is_found_among_any_noise(parts: list[Entry | bytes]) -> None:
    data = segment_header() + b"".join(part if isinstance(part, bytes) else entry_bytes(part) for part in parts)

    contents = parse(data)

    assert contents.entries == [part for part in parts if isinstance(part, Entry)]
    check_every_byte_is_accounted_for(contents)


def test_set_aside_keeps_the_bytes_under_a_name_that_no_start_picks_up(tmp_path: Path) -> None:
    path = filled(tmp_path)
    data = path.read_bytes()

    kept = segments.set_aside(path)

    assert not path.exists()
    assert kept.read_bytes() == data
    assert list(recovered(tmp_path)) == []


def test_rewrite_puts_the_same_bytes_on_new_pages_under_the_old_name(tmp_path: Path) -> None:
    path = filled(tmp_path)
    before, data = path.stat().st_ino, path.read_bytes()

    segments.rewrite(path, path.stat().st_size)

    assert path.stat().st_ino != before
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_pages_are_on_the_disk_before_they_take_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path)
    before = path.stat()
    events: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        fsync(fd)
        synced = os.fstat(fd)
        is_copy = synced.st_size == before.st_size and synced.st_ino != before.st_ino
        events.append(("copy" if is_copy else "directory", path.stat().st_ino == before.st_ino))

    monkeypatch.setattr(os, "fsync", watched)
    segments.rewrite(path, path.stat().st_size)

    # (what was synced, whether the name still belonged to the old pages)
    assert events == [("copy", True), ("directory", False)]


def test_rewrite_of_a_segment_that_has_been_written_to_the_database_does_nothing(tmp_path: Path) -> None:
    segments.rewrite(tmp_path / f"{1:020}.segment", 20)

    assert list(tmp_path.iterdir()) == []


def test_rewrite_on_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = filled(tmp_path)
    before, data = path.stat().st_ino, path.read_bytes()

    with file_size_limit(len(data) - 1), pytest.raises(OSError, match="No space"):
        segments.rewrite(path, path.stat().st_size)

    assert (path.stat().st_ino, path.read_bytes()) == (before, data)
    assert list(tmp_path.iterdir()) == [path]


def test_summarize_counts_by_the_headers_alone(tmp_path: Path) -> None:
    found = summarize(filled(tmp_path))

    assert found.records == {1: 1001, 2: 4}
    assert found.first_arrival == FLOOR + 1


def test_summarize_fails_on_no_cut_and_on_no_changed_byte(tmp_path: Path) -> None:
    intact = segment_bytes(ENTRIES)
    path = tmp_path / "segment"
    for cut in range(len(intact)):
        path.write_bytes(intact[:cut])
        whole = [entry for entry, end in zip(ENTRIES, ends_of(ENTRIES), strict=True) if end <= cut]
        assert sum(summarize(path).records.values()) == sum(entry.count for entry in whole)
    for position in range(len(intact)):
        data = bytearray(intact)
        data[position] ^= 0xFF
        path.write_bytes(data)
        summarize(path)
