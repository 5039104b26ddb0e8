"""A way to the database that fails as networks do: in the middle of it, in a chosen phase, until it is mended."""

from __future__ import annotations

import itertools
import socket
import struct
import threading

PHASES = ("connect", "handshake", "statement", "commit")
FAULTS = ("silent", "a byte a second", "reset in mid-packet")
_MARKS = {"statement": b"INSERT INTO", "commit": b"COMMIT"}
_RESET = struct.pack("ii", 1, 0)


class BadNetwork:
    """Listens on 127.0.0.1 and passes everything on, to a server's Unix socket. break_() and mend() at any time."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._fault: tuple[str, str] | None = None
        self._mended = threading.Event()
        self.hit = threading.Event()
        """Some connection has met the fault."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def break_(self, phase: str, fault: str) -> None:
        self._mended.clear()
        self.hit.clear()
        self._fault = phase, fault

    def mend(self) -> None:
        self._fault = None
        self._mended.set()

    def close(self) -> None:
        self.mend()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            _Way(self, client, server)

    def _meets(self, phase: str) -> str | None:
        fault = self._fault
        if fault is None or fault[0] != phase:
            return None
        self.hit.set()
        return fault[1]


class _Way:
    def __init__(self, network: BadNetwork, client: socket.socket, server: socket.socket) -> None:
        self._network = network
        self._client, self._server = client, server
        self._fault = network._meets("connect")
        for pump in (self._upwards, self._downwards):
            threading.Thread(target=pump, daemon=True).start()

    def _upwards(self) -> None:
        for number in itertools.count():
            data = self._read(self._client)
            if number == 0:
                self._fault = self._fault or self._network._meets("handshake")
            for phase, mark in _MARKS.items():
                if mark in data.upper():
                    self._fault = self._fault or self._network._meets(phase)
            if not data or not self._write(self._server, data):
                break
        self._end()

    def _downwards(self) -> None:
        while True:
            data = self._read(self._server)
            mended = self._network._mended
            if self._fault == "silent":
                mended.wait()
            elif self._fault == "reset in mid-packet":
                self._write(self._client, data[: len(data) // 2])
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                break
            elif self._fault:
                while data and not mended.is_set():
                    if not self._write(self._client, data[:1]):
                        break
                    data = data[1:]
                    mended.wait(1)
            if mended.is_set():
                self._fault = None
            if not data or not self._write(self._client, data):
                break
        self._end()

    def _end(self) -> None:
        for one in (self._client, self._server):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    @staticmethod
    def _read(source: socket.socket) -> bytes:
        try:
            return source.recv(65536)
        except OSError:
            return b""

    @staticmethod
    def _write(target: socket.socket, data: bytes) -> bool:
        try:
            target.sendall(data)
        except OSError:
            return False
        return True
