"""Bytes of a fuzzer -> values, so that its mutations move through well-formed documents and not only through JSON.

A byte chooses, further bytes are the material. When they run out everything is 0, so every input makes a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from shared.records import KINDS, Kind

T = TypeVar("T")

HOSTILE_TEXTS = (
    "",
    "x",
    "' OR '1'='1",
    "'; DROP TABLE translation_tasks; -- ",
    '"); SELECT SLEEP(9) #',
    "\\",
    "\\'",
    "\\\\' , (",
    "%s %d %(x)s {0} ${x}",
    "\x00",
    "\x1a\n\r\t\b\x7f",
    "/* */ */ /*! 1 */",
    "`ai_terminal`.`x`",
    "0x41",
    "NULL",
    "เริ่มเกม 你好 \U0001f642\U0001f1f9\U0001f1ed",
    "\u202e\u0000\ufeff\ufffe\uffff\U0010ffff",
    "e\u0301 é ß ẞ ı İ",
    "trailing space ",
    "A" * 36,
    "🙂" * 36,
    "B" * 64,
    "🙂" * 255,
    "'" * 512,
    "\\" * 65535,
    "🙂" * 65535,
    "C" * 65536,
)
NUMBERS = (
    0,
    1,
    -1,
    2147483647,
    2147483648,
    -2147483649,
    2**63,
    2**64,
    0.0,
    -0.0,
    1.0,
    0.1234,
    0.98765,
    0.00005,
    0.99995,
    1.00005,
    1e-320,
    5e-324,
    2147483647.0,
    1e15,
    1e308,
    "0.4321",
    "10",
    " 7 ",
    "+7",
    "-0",
    "10.0",
    "1e3",
    ".5",
    "0x10",
    "1_000",
    "٣",
    "9" * 400,
    "1e400",
    "nan",
    "Infinity",
)
TIMES = (
    "2026-11-23T10:15:30Z",
    "2026-11-23T10:15:30.123456+14:00",
    "2026-11-23T10:15:30.1234567-23:59",
    "2026-11-23 10:15:30",
    "2026-11-23T10:15",
    "2026-11-23",
    "20261123T101530Z",
    "2026-W48-1",
    "2026-11-23T24:00:00Z",
    "2026-11-23T23:59:60Z",
    "2026-02-30T00:00:00Z",
    "1000-01-01T00:00:00Z",
    "0999-12-31T23:59:59.999999Z",
    "1000-01-01T00:00:00+00:01",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59.9999999Z",
    "9999-12-31T23:59:59-00:01",
    "1970-01-01T00:00:00Z",
    "2026-11-23T10:20:30Z",
    "2026-11-23T10:20:31Z",
    "-2026-11-23T10:15:30Z",
    "2026-11-23T10:15:30,5Z",
    1764000000,
    1764000000.5,
)
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
