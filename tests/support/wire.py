"""Reads frames as the processes do."""

from __future__ import annotations

import msgspec

from shared.wire import Inbox, Message, Submit


def read(inbox: Inbox, data: bytes) -> list[Message]:
    """The messages that are complete with this data. Bodies are copied, since the inbox reuses its memory."""
    messages: list[Message] = []
    while True:
        room = inbox.room()
        assert len(room) > 0
        size = min(len(room), len(data))
        room[:size] = data[:size]
        messages += [
            msgspec.structs.replace(message, body=bytes(message.body)) if isinstance(message, Submit) else message
            for message in inbox.received(size)
        ]
        data = data[size:]
        if not data:
            return messages
