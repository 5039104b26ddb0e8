"""`top`: a node live. Two samples of its counters make the rates; nothing is kept but the last minute of them."""

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
from datetime import datetime, timezone
from functools import partial
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

import shared.rates
from ctl.node import Node, NotReached, node_of, url_option
from ctl.output import console, emit, json_option, pairs, plural, printable, styled
from ctl.status import backlog
from shared.rates import Rates

T = TypeVar("T")
HISTORY = 60
ERRORS_SHOWN = 5
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Sample:
    """What the node said. `at` in monotonic seconds; `stats` is None where its flusher did not answer."""

    at: float
    health: dict[str, Any]
    stats: dict[str, Any] | None


def rates(before: Sample, after: Sample) -> Rates | None:
    """None where a sample has no figures."""
    if before.stats is None or after.stats is None:
        return None
    return shared.rates.rates(before.stats, after.stats, after.at - before.at)


def spark(values: Sequence[float]) -> str:
    """A line of bars from zero to the highest."""
    highest = max(values, default=0)
    if not highest:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(int(value / highest * len(_BARS)), len(_BARS) - 1)] for value in values)


@dataclass(slots=True)
class History:
    """The last minute, and the errors that were seen while we looked."""

    accepted: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    rows: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    waiting: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    flush_ms: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    errors: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=ERRORS_SHOWN))

    def add(self, rates: Rates | None, stats: dict[str, Any] | None) -> None:
        if rates is not None:
            self.accepted.append(sum(rates.accepted_per_s.values()))
            self.rows.append(sum(rates.rows_per_s.values()))
            self.flush_ms.append(rates.flush_ms or 0.0)
        if stats is not None:
            self.waiting.append(stats["buffer"]["total_count"])
            for error in (stats["state"]["last_error"], stats["dead_letters"]["last_error"]):
                if error:
                    self.error(error)

    def error(self, text: str) -> None:
        if text not in (seen for _, seen in self.errors):
            self.errors.append((datetime.now(timezone.utc).strftime("%H:%M:%SZ"), text))


def frame(node: Node, sample: Sample, rates: Rates | None, history: History) -> Group:
    """One screen."""
    health, stats = sample.health, sample.stats
    head = Text.assemble(("Persistence Service ", "bold"), health["version"], f"  {node.url}  ")
    head.append(styled(health["status"]))
    parts: list[Any] = [head]
    if health["reason"]:
        parts.append(Text(printable(health["reason"]), style="yellow"))
    if stats is not None:
        parts += [Text(), _flow(stats, rates, history), Text(), pairs(_state(stats, rates))]
    if history.errors:
        parts += [Text(), Text("last errors seen", style="bold")]
        parts += [Text(f"{at}  {printable(error)}") for at, error in history.errors]
    return Group(*parts)


def _flow(stats: dict[str, Any], rates: Rates | None, history: History) -> Table:
    """What comes in, what goes out, what waits: by kind, in all, and over the last minute."""
    kinds = list(stats["accepted"])
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("")
    for name in (*kinds, "all"):
        made.add_column(name, justify="right", min_width=10)
    made.add_column("last minute", no_wrap=True, overflow="crop")

    def row(name: str, values: dict[str, float] | None, past: Sequence[float]) -> None:
        figures = ["-"] * (len(kinds) + 1) if values is None else []
        if values is not None:
            figures = [f"{values[kind]:,.0f}" for kind in kinds] + [f"{sum(values.values()):,.0f}"]
        made.add_row(name, *figures, Text(spark(past), style="cyan"))

    row("accepted/s", rates.accepted_per_s if rates else None, history.accepted)
    row("rows/s", rates.rows_per_s if rates else None, history.rows)
    row("backlog", {kind: stats["buffer"][f"{kind}_count"] for kind in kinds}, history.waiting)
    return made


def _state(stats: dict[str, Any], rates: Rates | None) -> list[tuple[str, str | Text]]:
    flushes = "none since the last look"
    coalescing = f"{stats['coalescing']['ratio']:.2f} rows a record since the start"
    if rates is not None and rates.flush_ms is not None:
        flushes = f"{rates.flushes_per_s:.1f}/s, {rates.flush_ms:.1f} ms, {rates.records_per_flush:,.0f} records each"
    if rates is not None and rates.rows_per_record is not None:
        coalescing = f"{rates.rows_per_record:.2f} rows a record now, {coalescing}"
    letters = stats["dead_letters"]["count"]
    state = Text.assemble(
        styled(stats["state"]["database"].replace("_", " ")), f", {plural(stats['performance']['writers'], 'writer')}"
    )
    if stats["state"]["longest_write_seconds"] >= 1:
        state.append(f", a write under way for {stats['state']['longest_write_seconds']:.0f} s")
    return [
        *backlog(stats),
        ("flushes", flushes),
        ("coalescing", coalescing),
        ("database", state),
        ("dead letters", Text(f"{letters:,}", style="bold red" if letters else "")),
    ]


class CtrlC:
    """Ctrl-C ends what waits, and is remembered meanwhile: it is never lost (Python drops an exception that a signal
    raises in a callback of its own), and never cuts a drawing in two, which would leave the screen as it is."""

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
    """Waits where no key can be pressed."""
    time.sleep(seconds)
    return False


@contextmanager
def quit_key() -> Iterator[Callable[[float], bool]]:
    """Yields a function that waits so many seconds, or until q is pressed, and says whether it was."""
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

    Exit status: 0; 2 nobody answers or lets us in at the first look.
    """
    ctrl_c = CtrlC()
    node = node_of(url)
    ask = partial(ctrl_c.ends, look, node)
    try:
        first = ask()
        if once:
            ctrl_c.ends(waited, interval_s)
            show(node, first, ask(), History(), as_json=as_json)
        elif as_json or not console().is_terminal:
            history = History()
            for before, after in pairs_of(ask, first, partial(ctrl_c.ends, waited, interval_s), history):
                show(node, before, after, history, as_json=as_json)
        else:
            history = History()
            history.add(None, first.stats)
            screen = Live(frame(node, first, None, history), screen=True, auto_refresh=False)
            with quit_key() as pressed, screen:
                for before, after in pairs_of(ask, first, partial(ctrl_c.ends, pressed, interval_s), history):
                    current = rates(before, after)
                    history.add(current, after.stats)
                    screen.update(frame(node, after, current, history), refresh=True)
    except KeyboardInterrupt:
        pass  # the way to end it


def look(node: Node) -> Sample:
    """Raises: NotReached, Stop."""
    health, stats = node.health(), node.stats()
    return Sample(time.monotonic(), health, stats)


def pairs_of(
    ask: Callable[[], Sample], first: Sample, wait: Callable[[], bool], history: History
) -> Iterator[tuple[Sample, Sample]]:
    """Each sample with the one before it, until wait() says that it is enough. One that fails is an error shown."""
    before = first
    while not wait():
        try:
            after = ask()
        except NotReached as error:
            history.error(error.message)
            gone = {"status": "unreachable", "reason": error.message, "version": before.health["version"]}
            yield before, Sample(time.monotonic(), gone, None)
            continue
        yield before, after
        if after.stats is not None:
            before = after


def show(node: Node, before: Sample, after: Sample, history: History, *, as_json: bool) -> None:
    current = rates(before, after)
    history.add(current, after.stats)
    if as_json:
        emit({"url": node.url, "rates": msgspec.to_builtins(current), "health": after.health, "stats": after.stats})
    else:
        console().print(frame(node, after, current, history))
