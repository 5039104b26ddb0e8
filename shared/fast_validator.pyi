class FastValidator:
    def __init__(
        self,
        name: str,
        fields: tuple[tuple[str, str, bool, float, float, tuple[str, ...]], ...],
        keep_unknown: bool,
    ) -> None: ...
    def count(self, body: bytes | memoryview, latest_s: int, latest_local_s: int, /) -> int: ...

def children(
    text: bytes | memoryview, start: int, end: int, most: int, /
) -> tuple[int, list[tuple[bytes | None, int, int, int, int, bool]]]: ...
