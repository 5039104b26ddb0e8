"""Session and Task, their limits, and KINDS: everything else about a kind of record follows from its row there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

UTC = timezone.utc
T = TypeVar("T")

Count = Annotated[int, Meta(ge=0, le=2147483647)]
Status = Annotated[str, Meta(min_length=1, max_length=32)]
"""`records.session_statuses` and `records.task_statuses` list the allowed ones."""
Key36 = Annotated[str, Meta(min_length=1, max_length=36)]
Key64 = Annotated[str, Meta(min_length=1, max_length=64)]
Str50 = Annotated[str, Meta(max_length=50)]
Str64 = Annotated[str, Meta(max_length=64)]
Str255 = Annotated[str, Meta(max_length=255)]
Str512 = Annotated[str, Meta(max_length=512)]
Text = Annotated[str, Meta(max_length=65535)]
if TYPE_CHECKING:
    Object: TypeAlias = msgspec.Raw | None
else:
    Object = msgspec.Raw
"""An object as its JSON text. msgspec reads null as one too, and does not support a union with it."""


class Session(msgspec.Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True):
    extra: ClassVar[Object] = None
    session_id: Key36
    filename: Str255
    file_path: Str512 = ""
    status: Status
    llm_provider: Str50 = ""
    game_info: Object = None
    metadata: Object = None
    total_tasks: Count = 0
    completed_tasks: Count = 0
    failed_tasks: Count = 0
    processing_tasks: Count = 0
    updated_at: datetime | None = None


class Task(msgspec.Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True):
    extra: ClassVar[Object] = None
    task_id: Key64
    batch_id: Str64 = ""
    session_id: Key36
    sheet_name: Str255 = ""
    column_name: Str255 = ""
    row_index: Count = 0
    source_text: Text
    status: Status
    target_text: Text | None = None
    context: Text | None = None
    error_message: Text | None = None
    confidence: Annotated[float, Meta(ge=0, le=1)] | None = None
    retry_count: Count = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    duration_ms: Count | None = None
    metadata: Object = None
    updated_at: datetime | None = None


Record: TypeAlias = Session | Task


def types_of_field(field: msgspec.structs.FieldInfo) -> tuple[msgspec.inspect.Type, ...]:
    """Those that its values may have, null among them."""
    info = msgspec.inspect.type_info(field.type)
    return info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)


class Kind(msgspec.Struct, frozen=True):
    """One kind of record. `code` stands in frames and in the journal and never changes its meaning; `key` names the
    fields of the primary key, in its order; `rounded` integers that may be sent with a fraction, `as_text` texts that
    may be sent as an object."""

    code: int
    name: str
    record: type[Record]
    key: tuple[str, ...]
    table: str
    rounded: tuple[str, ...] = ()
    as_text: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return f"/api/v1/persistence/{self.name}/batch"

    @property
    def statuses_setting(self) -> str:
        return f"records.{self.name.removesuffix('s')}_statuses"

    def key_of(self, record: Record) -> tuple[str, ...]:
        return tuple(getattr(record, name) for name in self.key)

    def fields_of(self, *types: type) -> tuple[str, ...]:
        """Names of the fields whose type, null aside, is one of msgspec's `types`."""
        return tuple(name for name, infos in self._types() if any(isinstance(info, types) for info in infos))

    def types_of(self, sort: type[T]) -> list[T]:
        """Every type of that sort, with its limits, that a field has."""
        return [info for _, infos in self._types() for info in infos if isinstance(info, sort)]

    def _types(self) -> Iterator[tuple[str, tuple[msgspec.inspect.Type, ...]]]:
        for field in msgspec.structs.fields(self.record):
            yield field.name, types_of_field(field)


SESSIONS = Kind(1, "sessions", Session, ("session_id",), "translation_sessions")
TASKS = Kind(2, "tasks", Task, ("session_id", "task_id"), "translation_tasks", ("duration_ms",), ("context",))
KINDS: tuple[Kind, ...] = (SESSIONS, TASKS)
"""In the order in which a transaction writes them."""
KIND_OF_CODE = {kind.code: kind for kind in KINDS}


class Rules(msgspec.Struct, frozen=True):
    """What decides what a body means besides its bytes. They go with it into the journal and into dead letters.

        rules := nothing (the defaults) | flags:u8 time_zone:u8[]

    `time_zone` is that of times without an offset. Flag 1: unknown fields are ignored.
    """

    time_zone: str = "UTC"
    unknown_fields: Literal["keep", "ignore"] = "keep"

    def encode(self) -> bytes:
        if self == Rules():
            return b""
        return bytes([self.unknown_fields == "ignore"]) + self.time_zone.encode()

    @staticmethod
    @lru_cache(maxsize=64)
    def decode(data: bytes) -> Rules:
        """Raises: ValueError. Whether there is such a time zone, clock.time_zone() says."""
        if not data:
            return Rules()
        return Rules(data[1:].decode(), "ignore" if data[0] & 1 else "keep")


V1_RULES = Rules(unknown_fields="ignore").encode()
"""The rules of bodies that version 1 accepted."""


def utc(time: datetime) -> datetime:
    """A time as the naive UTC that a DATETIME column holds; one without an offset is UTC already."""
    if time.tzinfo is None:
        return time
    if time.tzinfo is not UTC:
        time = time.astimezone(UTC)
    return time.replace(tzinfo=None)
