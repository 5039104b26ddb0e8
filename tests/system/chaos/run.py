"""Which fault comes when, from a seed: pure. And how a run of them goes on, whatever they are done to.

A fault counts once it has hit something: where its target is not there at the moment (the flusher is just starting,
the database is away) it waits for it; one that waits too long is given up and another is drawn. Faults overlap.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from scripts.servers import FAULTS

Deck = dict[str, tuple[int, float, float]]
"""By kind of fault: how many in a full deck, shortest and longest duration in seconds."""
_WAIT_FOR_TARGET_S = 10.0
_LOOK_AGAIN_S = 0.05
_YOUNG_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Fault:
    """`at` seconds after the start; `choice` in 0..1 picks one of several targets."""

    at: float
    kind: str
    duration_s: float
    choice: float

    def index(self, count: int) -> int:
        """The choice among `count` nodes; not the digits that choose among processes."""
        return int(self.choice * 1000) % count


def schedule(seed: int, per_second: float, kinds: Deck) -> Iterator[Fault]:
    """Faults without end. Dealt from a shuffled deck, so that a full one has every kind in its share."""
    random = Random(seed)
    at = 0.0
    while True:
        deck = [kind for kind, (share, _, _) in kinds.items() for _ in range(share)]
        random.shuffle(deck)
        for kind in deck:
            at += random.expovariate(per_second)
            _, shortest_s, longest_s = kinds[kind]
            yield Fault(at, kind, random.uniform(shortest_s, longest_s), random.random())


class TargetMissing(Exception):
    """There is nothing at the moment that this fault could hit."""


_MET = (TargetMissing, AssertionError, *FAULTS)
"""What an action may meet: the run goes on, and ends with its comparison."""


class FaultRun:
    """`do` does a fault and notes its hit, or raises one of _MET."""

    def __init__(self, log: Path) -> None:
        self.hits: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.broken: list[str] = []
        """What an action met that no fault explains: the run goes on, and its verdict is bad."""
        self._hit: set[Fault] = set()
        self._log = log.open("w")

    async def do(self, fault: Fault) -> None:
        raise NotImplementedError

    async def run(self, count: int, faults: Iterator[Fault]) -> None:
        """Until `count` have hit, or most of many more have missed."""
        started_at = time.monotonic()
        for _ in range(5):
            tasks = []
            for _ in range(count - self.hits.total()):
                fault = next(faults)
                await asyncio.sleep(started_at + fault.at - time.monotonic())
                tasks.append(asyncio.get_running_loop().create_task(self._attempt(fault)))
            if not tasks:
                break
            await asyncio.gather(*tasks)
            # Faults that take the place of missed ones come at the pace of the others.
            started_at = time.monotonic() - fault.at
        self._log.close()

    async def _attempt(self, fault: Fault) -> None:
        give_up_at = time.monotonic() + _WAIT_FOR_TARGET_S
        while True:
            try:
                await self.do(fault)
                return
            except Exception as error:  # noqa: BLE001 -- whatever the harness meets, the run ends with a verdict
                if not isinstance(error, _MET):
                    self.broken.append(f"{fault.kind}: {error!r}")
                if fault in self._hit or not isinstance(error, _MET) or time.monotonic() > give_up_at:
                    self.note(fault, f"given up: {error!r}")
                    if fault not in self._hit:
                        self.missed[fault.kind] += 1
                    return
            await asyncio.sleep(_LOOK_AGAIN_S)

    def hit(self, fault: Fault, what: object = "") -> None:
        self.hits[fault.kind] += 1
        self._hit.add(fault)
        self.note(fault, f"{what} for {fault.duration_s:.3f} s" if fault.duration_s else str(what))

    def note(self, fault: Fault, what: str) -> None:
        self._log.write(f"{time.time():.6f} {fault.kind}: {what}\n")
        self._log.flush()

    async def send_signal(self, fault: Fault, number: signal.Signals, find: Callable[[bool], list[int]]) -> int:
        # One in five may hit a program while it starts; if all did, supervisord would wait longer before every next
        # start, and the faults would find nothing that works.
        pids = await asyncio.to_thread(find, fault.choice < _YOUNG_SHARE)
        if not pids:
            raise TargetMissing(fault.kind)
        pid = pids[int(fault.choice * len(pids))]
        os.kill(pid, number)  # gone meanwhile: an OSError, and so a target that is missing
        self.hit(fault, f"process {pid}")
        return pid

    async def stop_for_a_while(self, fault: Fault, find: Callable[[bool], list[int]]) -> None:
        pid = await self.send_signal(fault, signal.SIGSTOP, find)
        try:
            await asyncio.sleep(fault.duration_s)
        finally:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass  # killed in its sleep
