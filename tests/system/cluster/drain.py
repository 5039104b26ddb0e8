"""One node after the other is stopped as systemd does it and started again, while requests go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.support.service import wait_until
from tests.system.chaos.load import Load
from tests.system.cluster.nodes import Balancer, Node


async def restart(nodes: Sequence[Node], balancer: Balancer, load: Load) -> dict[str, Any]:
    """Returns: what of the requests sent meanwhile was not simply accepted, which should be nothing."""
    figures = load.figures
    before = (figures.requests, figures.refused.total(), figures.unanswered, figures.wrong.total())
    for node in nodes:
        await asyncio.to_thread(wait_until, balancer.all_up, 30, "all nodes are up")
        await asyncio.to_thread(node.stop)
        await asyncio.to_thread(node.start)
        await asyncio.to_thread(node.wait_ready)  # HAProxy may not have noticed its end
        await asyncio.to_thread(wait_until, balancer.all_up, 30, f"{node.name} is back")
    after = (figures.requests, figures.refused.total(), figures.unanswered, figures.wrong.total())
    sent, refused, unanswered, wrong = (now - then for now, then in zip(after, before, strict=True))
    return {"restarts": len(nodes), "requests": sent, "refused": refused, "unanswered": unanswered, "wrong": wrong}
