"""`status` and `flush`: how a node is, and writing now what waits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click
from rich.text import Text

from ctl.node import Node, all_nodes, node_of, url_option
from ctl.output import (
    ExitStatus,
    Stop,
    age,
    console,
    emit,
    finish,
    json_option,
    pairs,
    plural,
    printable,
    size,
    styled,
)


@click.command()
@url_option
@json_option
def status(url: str | None, as_json: bool) -> None:
    """How the node is, once.

    Exit status: 0 healthy and no dead letters, 1 something is wrong, 2 nobody answers or lets us in.
    """
    node = node_of(url)
    health, stats = node.health(), node.stats()
    if as_json:
        emit({"url": node.url, "problems": problems(health, stats), "health": health, "stats": stats})
    else:
        console().print(pairs(summary(node, health, stats)))
    finish(ExitStatus.WRONG if problems(health, stats) else ExitStatus.ALL_RIGHT)


def problems(health: dict[str, Any], stats: dict[str, Any] | None) -> list[str]:
    """What a person must look at, a sentence each."""
    found = []
    if health["status"] != "healthy":
        found.append(f"{health['status']}: {health['reason'] or 'no reason is given'}")
    if stats is not None and stats["dead_letters"]["count"]:
        found.append(f"{plural(stats['dead_letters']['count'], 'dead letter')}: deadletters list shows them")
    if stats is not None and stats["damage"]["segments_set_aside"]:
        kept = plural(stats["damage"]["segments_set_aside"], "damaged segment")
        found.append(f"{kept} kept: journal inspect shows them, and removing the files ends this")
    return found


def summary(node: Node, health: dict[str, Any], stats: dict[str, Any] | None) -> list[tuple[str, str | Text]]:
    """Names and values, the most urgent first."""
    rows: list[tuple[str, str | Text]] = [
        ("service", Text.assemble(styled(health["status"]), f" at {node.url}, version {health['version']}")),
    ]
    if health["reason"]:
        rows.append(("reason", printable(health["reason"]) + (f", since {health['since']}" if health["since"] else "")))
    if stats is None:
        return rows
    rows.append(("flusher", f"up {age(stats['performance']['uptime_seconds'])}"))
    rows += [("database", styled(stats["state"]["database"].replace("_", " "))), *backlog(stats), *lifetime(stats)]
    return rows


def backlog(stats: dict[str, Any]) -> list[tuple[str, str | Text]]:
    buffer, risk = stats["buffer"], stats["at_risk"]
    where = f"{size(buffer['journal_bytes'])} in {plural(buffer['journal_segments'], 'segment')}"
    waiting = f"{plural(buffer['total_count'], 'record')}, {where}, {buffer['usage_percent']} % of the journal"
    if buffer["total_count"]:
        waiting += f", oldest {age(risk['oldest_uncommitted_seconds'])}"
    unsynced = risk["unsynced_records"]
    return [
        ("backlog", waiting),
        ("at risk", f"{plural(unsynced, 'record')} not yet on the disk" if unsynced else "nothing but the disk itself"),
    ]


def lifetime(stats: dict[str, Any]) -> list[tuple[str, str | Text]]:
    flushes, performance, coalescing = stats["flush_info"], stats["performance"], stats["coalescing"]
    accepted = stats["accepted"]
    by_kind = ", ".join(f"{name} {count:,}" for name, count in accepted.items())
    done = (
        f"{plural(coalescing['rows_written'], 'row')} of {plural(coalescing['records_in'], 'record')},"
        f" {coalescing['ratio']:.2f} rows a record"
    )
    pace = (
        f"{performance['total_flush_count']:,}, {performance['average_batch_size']:,.0f} records"
        f" and {flushes['average_flush_duration_ms']:.1f} ms each"
    )
    letters: str | Text = "none"
    if stats["dead_letters"]["count"]:
        last = stats["dead_letters"]["last_error"]
        letters = Text(f"{stats['dead_letters']['count']:,}", style="bold red")
        letters.append(f", the last: {printable(last)}" if last else "", style="default")
    rows: list[tuple[str, str | Text]] = [
        ("accepted", f"{plural(sum(accepted.values()), 'record')} ({by_kind})"),
        ("written", done),
        ("flushes", pace),
        ("dead letters", letters),
    ]
    if stats["rejected"]:
        rows.append(("refused", refused(stats["rejected"])))
    if stats["state"]["last_error"]:
        rows.append(("last error", printable(stats["state"]["last_error"])))
    return rows


def refused(rejected: dict[str, int]) -> str:
    """Records refused since ingest started, the most frequent reasons first."""
    reasons = sorted(rejected.items(), key=lambda one: -one[1])
    return f"{plural(sum(rejected.values()), 'record')}: " + ", ".join(f"{name} {count:,}" for name, count in reasons)


@click.command()
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0, 60), default=10, show_default=True, help="Seconds it may take."
)
@click.option("--all-nodes", "everywhere", is_flag=True, help="Every node of cluster.nodes, side by side.")
@url_option
@json_option
def flush(timeout_s: float, everywhere: bool, url: str | None, as_json: bool) -> None:
    """Writes everything accepted so far.

    Exit status: 0 all was written, 1 some of it still waits, 2 nobody answers or lets us in; with --all-nodes the worst
    of all nodes.
    """
    if everywhere:
        if url:
            raise click.UsageError("--url names one node, --all-nodes all of cluster.nodes")
        flush_all(all_nodes(), timeout_s, as_json)
    node = node_of(url)
    written, document = node.flush(timeout_s)
    if as_json:
        emit(document)
    else:
        console().print(flushed(written, document))
    finish(ExitStatus.ALL_RIGHT if written else ExitStatus.WRONG)


def flushed(written: bool, document: dict[str, Any]) -> str:
    """The service's answer to a flush, in words."""
    if not written:
        return printable(document["detail"])
    rows = ", ".join(
        f"{name.removesuffix('_written')} {count:,}" for name, count in document.items() if name.endswith("_written")
    )
    return (
        f"written: {rows}; coalesced {document['coalesced']:,}, dead letters {document['dead_lettered']:,},"
        f" {document['duration_ms']:.1f} ms"
    )


def flush_all(nodes: list[Node], timeout_s: float, as_json: bool) -> None:
    """Ends the command."""

    def ask(node: Node) -> tuple[ExitStatus, dict[str, Any]]:
        try:
            written, document = node.flush(timeout_s)
        except Stop as error:
            return ExitStatus.NOT_REACHED, {"detail": error.message}
        return ExitStatus.ALL_RIGHT if written else ExitStatus.WRONG, document

    with ThreadPoolExecutor(len(nodes)) as pool:
        answers = list(pool.map(ask, nodes))
    if as_json:
        emit({"nodes": [{"url": node.url, **document} for node, (_, document) in zip(nodes, answers, strict=True)]})
    else:
        rows = [
            (node.url, flushed(status is ExitStatus.ALL_RIGHT, document))
            for node, (status, document) in zip(nodes, answers, strict=True)
        ]
        console().print(pairs(rows))
    finish(max(status for status, _ in answers))
