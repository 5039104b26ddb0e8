"""`top`: `status` live, with the rates between two samples and their last minute as bars."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Group
from rich.live import Live
from rich.text import Text

import shared.rates
from ctl.node import Node, NotReached, node_of, url_option
from ctl.output import ExitStatus, console, emit, finish, json_option, pairs, table
from ctl.status import problems, summary
from shared.rates import Rates

T = TypeVar("T")
HISTORY = 60
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Sample:
    """A node at one moment. `at`: monotonic seconds; `stats`: None if its flusher did not answer."""

    at: float
    health: dict[str, Any]
    stats: dict[str, Any] | None

    @property
    def problems(self) -> list[str]:
        return problems(self.health, self.stats)


def rates(before: Sample, after: Sample) -> Rates | None:
    """None if a sample has no figures."""
    if before.stats is None or after.stats is None:
        return None
    return shared.rates.rates(before.stats, after.stats, after.at - before.at)


def spark(values: Sequence[float]) -> str:
    """A line of bars from zero to the highest."""
    highest = max(values, default=0)
    if not highest:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(int(value / highest * len(_BARS)), len(_BARS) - 1)] for value in values)


@dataclass(frozen=True, slots=True)
class History:
    """The last minute."""

    accepted: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    rows: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    waiting: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def add(self, rates: Rates | None, stats: dict[str, Any] | None) -> None:
        if rates is not None:
            self.accepted.append(sum(rates.accepted_per_s.values()))
            self.rows.append(sum(rates.rows_per_s.values()))
        if stats is not None:
            self.waiting.append(stats["buffer"]["total_count"])


def frame(node: Node, sample: Sample, rates: Rates | None, history: History) -> Group:
    """One screen."""
    said = pairs(summary(node, sample.health, sample.stats, sample.problems))
    return Group(said) if sample.stats is None else Group(flow(sample.stats, rates, history), Text(), said)


def flow(stats: dict[str, Any], rates: Rates | None, history: History) -> Text:
    """Records in, rows out, backlog: by kind, in total, and over the last minute."""
    kinds = list(stats["accepted"])

    def row(name: str, values: dict[str, float] | None, past: Sequence[float]) -> list[str | Text]:
        figures = ["-"] * (len(kinds) + 1)
        if values is not None:
            figures = [f"{values[kind]:,.0f}" for kind in kinds] + [f"{sum(values.values()):,.0f}"]
        return [name, *(f"{figure:>10}" for figure in figures), Text(spark(past), "cyan")]

    rows = [
        row("accepted/s", rates.accepted_per_s if rates else None, history.accepted),
        row("rows/s", rates.rows_per_s if rates else None, history.rows),
        row("backlog", {kind: stats["buffer"][f"{kind}_count"] for kind in kinds}, history.waiting),
    ]
    made = table(" ", *kinds, "all", "last minute", rows=rows, right=(*kinds, "all"))
    made.no_wrap, made.overflow = True, "crop"
    return made


class CtrlC:
    """Ctrl-C interrupts waits only, and is remembered otherwise. So it is never lost (Python drops an exception that a
    signal raises inside a finalizer), and never cuts a drawing in two, which would spoil the screen."""

    def __init__(self) -> None:
        self._pressed = False
        self._raises = False
        signal.signal(signal.SIGINT, self._note)

    def _note(self, *_: Any) -> None:
        self._pressed = True
        if self._raises:
            raise KeyboardInterrupt

    def ends(self, call: Callable[..., T], *arguments: Any) -> T:
        """Makes the call. Raises: KeyboardInterrupt."""
        self._raises = True
        try:
            if self._pressed:
                raise KeyboardInterrupt
            return call(*arguments)
        finally:
            self._raises = False


def waited(seconds: float) -> bool:
    """Waits without a keyboard. Returns: False."""
    time.sleep(seconds)
    return False


@contextmanager
def quit_key() -> Iterator[Callable[[float], bool]]:
    """Yields a function that waits that many seconds or until q is pressed, and returns whether it was."""
    if not sys.stdin.isatty():
        yield waited
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([terminal], [], [], left)[0]:
                typed = os.read(terminal, 64)
                if not typed or b"q" in typed.lower():
                    return True
        return False

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@click.command()
@click.option(
    "--interval", "interval_s", type=click.FloatRange(0.1, 3600), default=1, show_default=True, help="Seconds."
)
@click.option("--once", is_flag=True, help="One look, over one interval, then end.")
@url_option
@json_option
def top(interval_s: float, once: bool, url: str | None, as_json: bool) -> None:
    """The node live; q or Ctrl-C ends. Through a pipe, or as JSON, one look an interval.

    Exit status: 0, with --once that of status; 2 no answer or no access at the first look.
    """
    ctrl_c = CtrlC()
    node, history = node_of(url), History()
    ask, sleep = partial(ctrl_c.ends, look, node), partial(ctrl_c.ends, waited, interval_s)
    try:
        first = ask()
        if once:
            sleep()
            after = ask()
            show(node, first, after, history, as_json=as_json)
            finish(ExitStatus.WRONG if after.problems else ExitStatus.ALL_RIGHT)
        elif as_json or not console().is_terminal:
            for before, after in pairs_of(ask, first, sleep):
                show(node, before, after, history, as_json=as_json)
        else:
            history.add(None, first.stats)
            screen = Live(frame(node, first, None, history), screen=True, auto_refresh=False)
            with quit_key() as pressed, screen:
                for before, after in pairs_of(ask, first, partial(ctrl_c.ends, pressed, interval_s)):
                    current = rates(before, after)
                    history.add(current, after.stats)
                    screen.update(frame(node, after, current, history), refresh=True)
    except KeyboardInterrupt:
        pass  # the way to end it


def look(node: Node) -> Sample:
    """Raises: NotReached, Stop."""
    health, stats = node.health(), node.stats()
    return Sample(time.monotonic(), health, stats)


def pairs_of(ask: Callable[[], Sample], first: Sample, wait: Callable[[], bool]) -> Iterator[tuple[Sample, Sample]]:
    """Yields each sample with its predecessor until wait() returns True. A failed look is shown as a problem."""
    before = first
    while not wait():
        try:
            after = ask()
        except NotReached as error:
            gone = {"status": "unreachable", "reason": error.message, "since": None, "version": "unknown"}
            yield before, Sample(time.monotonic(), gone, None)
            continue
        yield before, after
        if after.stats is not None:
            before = after


def show(node: Node, before: Sample, after: Sample, history: History, *, as_json: bool) -> None:
    current = rates(before, after)
    history.add(current, after.stats)
    if as_json:
        rise = msgspec.to_builtins(current)
        emit({"url": node.url, "rates": rise, "problems": after.problems, "health": after.health, "stats": after.stats})
    else:
        console().print(frame(node, after, current, history))
