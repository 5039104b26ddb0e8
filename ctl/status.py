"""`status` and `flush`: the state of a node; writing all waiting records now."""

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
    moment,
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
    """The state of the node.

    Exit status: 0 all right, 1 something is wrong, 2 no answer or no access.
    """
    node = node_of(url)
    health, stats = node.health(), node.stats()
    wrong = problems(health, stats)
    if as_json:
        emit({"url": node.url, "problems": wrong, "health": health, "stats": stats})
    else:
        console().print(pairs(summary(node, health, stats, wrong)))
    finish(ExitStatus.WRONG if wrong else ExitStatus.ALL_RIGHT)


def problems(health: dict[str, Any], stats: dict[str, Any] | None) -> list[str]:
    """What a person must look at: a sentence each."""
    found = []
    if health["status"] != "healthy":
        since = f", since {moment(health['since'])}" if health["since"] else ""
        found.append(f"{health['reason'] or 'no reason is given'}{since}")
    if stats is None:
        return found
    state, flushes, waits_s = stats["state"], stats["flush_info"], stats["at_risk"]["oldest_uncommitted_seconds"]
    failed = (state["last_error_at"] or "") > (flushes["last_flush_time"] or "")
    failed &= state["last_error"] != stats["dead_letters"]["last_error"]  # that write went well otherwise
    if failed and health["status"] == "healthy" and stats["buffer"]["total_count"]:
        found.append(f"the last write failed, {moment(state['last_error_at'])}: {state['last_error']}")
    if waits_s > 2 * flushes["flush_interval_seconds"]:
        interval = f"{flushes['flush_interval_seconds']:g} s (buffer.flush_interval)"
        found.append(f"the oldest record waits for {age(waits_s)}, longer than twice {interval}")
    if stats["dead_letters"]["count"]:
        found.append(f"{plural(stats['dead_letters']['count'], 'dead letter')}: deadletters list shows them")
    if stats["damage"]["segments_set_aside"]:
        kept = plural(stats["damage"]["segments_set_aside"], "damaged segment")
        found.append(f"{kept} kept: journal inspect shows them, and removing the files ends this")
    return found


def summary(
    node: Node, health: dict[str, Any], stats: dict[str, Any] | None, wrong: list[str]
) -> list[tuple[str, str | Text]]:
    """Names and values, the most urgent first."""
    rows: list[tuple[str, str | Text]] = [
        ("service", Text.assemble(styled(health["status"]), f" at {node.url}, version {health['version']}")),
        *(("problem", Text(printable(text), "yellow")) for text in wrong),
    ]
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
    return [
        ("backlog", waiting),
        ("at risk", f"{plural(risk['unsynced_records'], 'record')} that a power cut would lose"),
    ]


def lifetime(stats: dict[str, Any]) -> list[tuple[str, str | Text]]:
    """Since the flusher started."""
    flushes, performance, coalescing = stats["flush_info"], stats["performance"], stats["coalescing"]
    accepted, letters, state = stats["accepted"], stats["dead_letters"], stats["state"]
    by_kind = ", ".join(f"{name} {count:,}" for name, count in accepted.items())
    written = (
        f"{plural(coalescing['rows_written'], 'row')} of {plural(coalescing['records_in'], 'record')},"
        f" {coalescing['ratio']:.2f} rows a record"
    )
    pace = (
        f"{performance['total_flush_count']:,}, {performance['average_batch_size']:,.0f} records"
        f" and {flushes['average_flush_duration_ms']:.1f} ms each, the last {moment(flushes['last_flush_time'])}"
    )
    refused = Text(f"{letters['count']:,}", "bold red") if letters["count"] else Text("none")
    if letters["count"] and letters["last_error"]:
        refused.append(f", the last {moment(letters['last_at'])}: {printable(letters['last_error'])}", "default")
    last_error = (
        f"{moment(state['last_error_at'])}: {printable(state['last_error'])}" if state["last_error"] else "none"
    )
    rows: list[tuple[str, str | Text]] = [
        (
            "accepted",
            f"{plural(sum(accepted.values()), 'record')} ({by_kind})" if any(accepted.values()) else "none yet",
        ),
        ("written", written if coalescing["records_in"] else "none yet"),
        ("flushes", pace if performance["total_flush_count"] else "none yet"),
        ("dead letters", refused),
    ]
    if stats["rejected"]:
        rows.append(("refused", refusals(stats["rejected"])))
    return [*rows, ("last error", last_error)]


def refusals(rejected: dict[str, int]) -> str:
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

    Exit status: 0 all was written, 1 some of it still waits, 2 no answer or no access; with --all-nodes the worst
    of all nodes.
    """
    if everywhere and url:
        raise click.UsageError("--url names one node, --all-nodes all of cluster.nodes")
    if everywhere:
        flush_all(all_nodes(), timeout_s, as_json)
    written, document = node_of(url).flush(timeout_s)
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
        said = [flushed(status is ExitStatus.ALL_RIGHT, document) for status, document in answers]
        console().print(pairs(zip([node.url for node in nodes], said, strict=True)))
    finish(max(status for status, _ in answers))
