"""Mutated bodies: that every way of reading agrees on them, and that none costs more time than its size allows.

`python -m tests.fuzz.bodies [--bodies N] [--seconds N] [--seed N] [--cost | --counted] [--sanitize]` makes them from
random numbers, faster than an engine does. --cost climbs: what took longest is mutated on. --counted looks closely only
at bodies that the validator in C++ counts, since all others take the slow path anyway: ten times as many a second.
--sanitize builds that validator for AddressSanitizer and UndefinedBehaviorSanitizer. The first finding is printed, and
ends it.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tests.fuzz.values import LISTS

if TYPE_CHECKING:
    from shared.records import Kind

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
MOST_S = {MIB: 0.020, 10 * MIB: 0.100}
"""How long a body up to a size may keep the loop (CONTRACT 6)."""
_VALUES = """
0 -0 1 1.0 1.5 1e2 1E+2 10e-1 2147483647 2147483648 2147483647.4 -1 -0.4 18446744073709551615
18446744073709551616 01 -9223372036854775808 -9223372036854775809 1e15 1e400 1e-400 0.00005 0.99995 1.00004
1.00005 0.12345678901234567890123 00 1. .5 +1 0x1 NaN -Infinity true false null [] {} [[]] [1,] {"a":1,"a":2}
{"a":{"b":[1,2,{}]}} {"a":18446744073709551616} 'a' "" "a" "10" "_7_" "+3" "1e3" "1_0" "0.5" "1e999" "nan"
"pending" "skipped" "done" "\\n" "\\/" "\\x" "\\u4f60" "\\ud83d" "\\ud83d\\ude42" "12 "你好" "😀😀😀"
"2026-11-23T10:15:30Z" "2026-11-23T10:20:29.9999999" "2026-11-23T18:20:30+08:00"
"2026-11-23T14:18:03+04:02:33" "2026-11-23" "2026-02-30T00:00:00Z" "2018-11-04T00:30:00"
"0999-12-31T23:59:59Z" "1000-01-01T00:00:00+00:01" "9999-12-31T23:59:59" "2026-11-23_10:15:30"
"2026-11-23T10:15" "2026-11-23T24:00:00Z"
"""
VALUES = [value.replace("_", " ").encode() for value in _VALUES.split()] + [b'"\xff"', b'"\xed\xa0\x80"', b'"\x00"']
NAMES = LISTS["names"]
PIECES = [*(piece.encode("latin-1") for piece in LISTS["pieces"]), b"[" * 21]
PATTERNS = [pattern.encode("latin-1") for pattern in LISTS["patterns"]]


class Mutator:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        from tests.support.service import session, task  # noqa: PLC0415 -- after the sanitized module

        metadata = {"a": [1, {"b": None}], "é": "\U0001f642"}
        times = {"updated_at": "2026-11-23T10:15:30.5+08:00", "start_time": "2026-11-23 10:15:30", "end_time": None}
        self._records: dict[str, list[Any]] = {
            "tasks": [
                task(),
                task(confidence=0.5, duration_ms=7, metadata=metadata, **times),
                task(colour="red", x=[1]),
            ],
            "sessions": [session(), session(metadata=metadata, game_info={}, total_tasks=3), session(extra={"a": 1})],
        }

    def body(self) -> tuple[Kind, bytes]:
        """One or two records, some of their members replaced, some bytes of the whole."""
        from shared.records import KINDS  # noqa: PLC0415 -- after the sanitized module

        chance = self._chance
        kind = chance.choice(KINDS)
        records = [self._record(chance.choice(self._records[kind.name])) for _ in range(chance.randint(1, 2))]
        body = b'{"%b":[%b]}' % (kind.name.encode(), b",".join(records))
        for _ in range(chance.choice((0, 0, 0, 1, 2))):
            at = chance.randrange(len(body) + 1)
            body = body[:at] + chance.choice((b"", *PIECES, *VALUES)) + body[at + chance.randrange(4) :]
        return kind, body

    def _record(self, record: dict[str, Any]) -> bytes:
        import orjson  # noqa: PLC0415

        chance = self._chance
        members = [(name.encode(), orjson.dumps(value)) for name, value in record.items()]
        for _ in range(chance.randrange(4)):
            value = chance.choice(VALUES)
            if chance.randrange(2):
                number = chance.randrange(len(members))
                members[number] = (members[number][0], value)
            else:
                members.insert(chance.randrange(len(members) + 1), (chance.choice(NAMES).encode(), value))
        return b"{" + b",".join(b'"%b":%b' % member for member in members) + b"}"


def agreement(kind: Kind, body: bytes, policy: int = 0) -> bool:
    """Returns: whether the body is valid; then all ways of reading agree. Args: policy: one of targets.POLICIES."""
    from tests.fuzz.targets import POLICIES, accepted  # noqa: PLC0415

    return bool(accepted(kind, body, POLICIES[policy]))


def counted(kind: Kind, body: bytes, policy: int = 0) -> bool:
    """Returns: whether the validator in C++ counts the body; then the slow path takes it, and so does the writer."""
    from shared.bodies import decode  # noqa: PLC0415
    from tests.fuzz.targets import POLICIES  # noqa: PLC0415
    from tests.support.bodies import NOW, validator  # noqa: PLC0415

    rules = POLICIES[policy]
    key = kind.name, policy
    looks = _validators.get(key) or _validators.setdefault(key, validator(kind, rules))
    number = looks.count(body, NOW.timestamp())
    if number:
        assert _result(looks.validate(body, NOW.timestamp())) == number
        assert len(decode(kind, memoryview(body), rules.rules.encode())) == number
    return number > 0


def _result(steps: Iterator[None]) -> int:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return int(end.value)


_validators: dict[tuple[str, int], Any] = {}
Recipe = list[tuple[int, bytes, int]]


def costly(recipe: Recipe, size: int) -> bytes:
    """A body of about this size. Recipe: places in a record, what is repeated there, and its share of the size."""
    frames = (
        b'"metadata":{"a":[%b]},',
        b'"x":[%b],',
        b'"source_text":"%b",',
        b'"confidence":%b,',
        b"%b",
        b'"updated_at":"%b",',
    )
    total = sum(share for _, _, share in recipe) or 1
    body = b""
    for place, pattern, share in recipe:
        repeated = pattern * (size * share // total // max(1, len(pattern)))
        if place % 8 < len(frames):
            body += frames[place % 8] % repeated.removesuffix(b",")
        else:
            body += b'"row_index":"1"},' + repeated + b"{"
    return b'{"tasks":[{' + body + b'"status":"pending"}]}'


def cost_s(body: bytes) -> float:
    """The longest time between two turns of the loop, of this thread's own."""
    from shared.bodies import InvalidBody  # noqa: PLC0415
    from shared.records import TASKS  # noqa: PLC0415
    from shared.validation import InvalidRecord  # noqa: PLC0415
    from tests.support.bodies import NOW, POLICY, validator  # noqa: PLC0415

    began = time.thread_time()
    validator(TASKS, POLICY).count(body, NOW.timestamp())
    longest = 0.0
    with suppress(InvalidBody, InvalidRecord):
        for _ in validator(TASKS, POLICY).validate(body, NOW.timestamp()):
            longest = max(longest, time.thread_time() - began)
            began = time.thread_time()
    return max(longest, time.thread_time() - began)


def too_costly(recipe: Recipe) -> tuple[float, str]:
    """Returns: the share of its limit that the recipe takes, and what is wrong if that is over 1."""
    worst = 0.0
    for size, most_s in MOST_S.items():
        body = costly(recipe, size - 1000)
        share = cost_s(body) / most_s
        if share > 1:
            share = min(share, *(cost_s(body) / most_s for _ in range(4)))  # another program may have had the caches
        worst = max(worst, share)
    return worst, f"{recipe}: {worst:.2f} of the limit" if worst > 1 else ""


def climb(chance: random.Random, go_on: Callable[[], bool]) -> int:
    best: Recipe = [(0, b"[],", 1)]
    best_share, tried = 0.0, 0
    while go_on():
        recipe = list(best)
        for _ in range(chance.randint(1, 3)):
            part = (
                chance.randrange(8),
                b"".join(chance.choices(PATTERNS, k=chance.randint(1, 3))),
                chance.randint(1, 9),
            )
            at = chance.randrange(len(recipe) + 1)
            recipe[at : at + chance.randrange(2)] = [part]
        share, wrong = too_costly(recipe[:6])
        tried += 1
        if wrong:
            sys.exit(wrong)
        if share > best_share:
            best, best_share = recipe[:6], share
            print(f"{best_share:.2f} of the limit: {best}", flush=True)
    return tried


def mutate(
    chance: random.Random, go_on: Callable[[], bool], agree: Callable[[Kind, bytes, int], bool] = agreement
) -> int:
    mutator = Mutator(chance)
    tried = valid = 0
    while go_on():
        kind, body = mutator.body()
        try:
            valid += agree(kind, body, chance.choice((0, 0, 1, 2)))
        except Exception:
            print(f"found: {kind.name} {body!r}", flush=True)
            raise
        tried += 1
    print(f"{valid:,} of them were valid")
    return tried


def sanitized() -> ModuleType:
    """fast_validator.cpp, built with both sanitizers, in the place of the installed one."""
    directory = tempfile.mkdtemp(prefix="sanitized-")
    built = Path(directory, "fast_validator.so")
    include = sysconfig.get_paths()["include"]
    flags = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source = str(ROOT / "shared" / "fast_validator.cpp")
    subprocess.run(["g++", *flags, f"-I{include}", source, "-o", str(built), "-lsimdjson"], check=True)
    spec = spec_from_loader("shared.fast_validator", ExtensionFileLoader("shared.fast_validator", str(built)))
    assert spec is not None
    module = sys.modules["shared.fast_validator"] = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.bodies", description=__doc__)
    parser.add_argument("--bodies", type=int, default=sys.maxsize)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--cost", dest="way", action="store_const", const=climb, default=mutate)
    way.add_argument("--counted", dest="way", action="store_const", const=partial(mutate, agree=counted))
    parser.add_argument("--sanitize", action="store_true")
    options = parser.parse_args(arguments)
    if options.sanitize:
        if "LD_PRELOAD" not in os.environ:
            library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
            environ = {**os.environ, "LD_PRELOAD": library.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
            os.execve(sys.executable, [sys.executable, "-m", "tests.fuzz.bodies", *sys.argv[1:]], environ)
        os.environ.pop("LD_PRELOAD")
        sanitized()
    left = options.bodies
    give_up_at = time.monotonic() + options.seconds

    def go_on() -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and time.monotonic() < give_up_at

    tried = options.way(random.Random(options.seed), go_on)
    print(f"{tried:,} bodies, seed {options.seed}: nothing found")
    print(f"stat::number_of_executed_units: {tried}", file=sys.stderr)


if __name__ == "__main__":
    main()
