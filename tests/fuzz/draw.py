"""Bytes of a fuzzer -> values, so that its mutations move through well-formed documents and not only through JSON.

A byte chooses, further bytes are the material. When they run out everything is 0, so every input makes a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from shared.records import KINDS, Kind
from tests.fuzz.values import LISTS

T = TypeVar("T")

HOSTILE_TEXTS = (
    *LISTS["texts"],
    *(character * count for character, count in (("A", 36), ("🙂", 36), ("B", 64), ("🙂", 255), ("'", 512))),
    *(character * count for character, count in (("\\", 65535), ("🙂", 65535), ("C", 65536))),
)
NUMBERS = (*LISTS["numbers"], "9" * 400)
TIMES = LISTS["times"]
PLAIN: dict[str, Any] = {
    "session_id": "s",
    "task_id": "t",
    "batch_id": "b",
    "filename": "f.xlsx",
    "file_path": "/f.xlsx",
    "llm_provider": "openai",
    "sheet_name": "UI",
    "column_name": "C",
    "row_index": 7,
    "source_text": "Start",
    "status": "pending",
}


class Draw:
    """Reads a fuzzer's bytes from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        value = self._data[self._at] if self._at < len(self._data) else 0
        self._at += 1
        return value

    def integer(self, size: int) -> int:
        return int.from_bytes(self.bytes(size).ljust(size, b"\0"), "little")

    def bytes(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def rest(self) -> bytes:
        taken, self._at = self._data[self._at :], len(self._data)
        return taken

    def choose(self, choices: Sequence[T]) -> T:
        return choices[self.byte() % len(choices)]

    def text(self) -> str:
        """A hostile one, or one made of the fuzzer's bytes; never a lone surrogate, which JSON cannot carry."""
        size = self.byte()
        if size < 128:
            return HOSTILE_TEXTS[size % len(HOSTILE_TEXTS)]
        return self.bytes(size - 128).decode("utf-8", "replace")

    def value(self, depth: int = 0) -> Any:  # noqa: PLR0911 -- one a type
        """Anything that JSON can say."""
        how = self.byte() % 9
        if how == 0:
            return None
        if how == 1:
            return self.choose((True, False))
        if how == 2:
            return self.choose(NUMBERS)
        if how == 3:
            return self.integer(8) - 2**63
        if how == 4:
            return self.choose(TIMES)
        if how in (5, 6) or depth > 4:
            return self.text()
        if how == 7:
            return [self.value(depth + 1) for _ in range(self.byte() % 4)]
        return {self.text(): self.value(depth + 1) for _ in range(self.byte() % 4)}

    def object(self) -> Any:
        """An object for a JSON column, nested around the limit of 20 now and then."""
        value: Any = self.value()
        for _ in range(self.choose((0, 0, 1, 17, 18, 19, 20, 21, 40))):
            value = {"n": value} if self.byte() % 2 else [value]
        return value if isinstance(value, dict) else {self.text(): value}

    def record(self, kind: Kind) -> Any:
        """A record that is valid in most of its fields: one that is refused at once teaches nothing."""
        record: dict[str, Any] = {}
        for field in msgspec.structs.fields(kind.record):
            how = self.byte() % 16
            if how == 15:
                record[field.name] = self.value()
            elif how > (9 if field.required else 5):
                record[field.name] = self.fitting(kind, field.name)
            elif field.required:
                record[field.name] = PLAIN[field.name]
        if not self.byte() % 8:
            record[self.choose(("extra", "created_at", "colour", "日本", self.text()))] = self.value()
        return record

    def fitting(self, kind: Kind, name: str) -> Any:  # noqa: PLR0911 -- one a type
        """A value of the field's type, which may still be out of its range."""
        if name == "status":
            return self.choose(("pending", "processing", "completed", "failed", "cancelled", "skipped", "done", ""))
        if name in kind.fields_of(msgspec.inspect.RawType):
            return self.object()
        if name in kind.fields_of(msgspec.inspect.DateTimeType):
            return self.choose(TIMES if self.byte() % 2 else TIMES[:4])
        if name in kind.fields_of(msgspec.inspect.FloatType):
            return self.choose(NUMBERS) if self.byte() % 4 == 3 else self.integer(2) / 65535
        if name in kind.fields_of(msgspec.inspect.IntType):
            return self.choose(NUMBERS) if self.byte() % 2 else self.integer(4) % 2**31
        if name in kind.as_text and self.byte() % 2:
            return self.object()
        return self.text()

    def body(self) -> tuple[Kind, bytes]:
        """A kind and a request's body for it: the fuzzer's own bytes, or a document."""
        how = self.byte()
        kind = KINDS[how % len(KINDS)]
        if how >= 192:
            return kind, self.rest()
        records = [self.record(kind) for _ in range(1 + self.byte() % 3)]
        return kind, msgspec.json.encode({kind.name: records})
