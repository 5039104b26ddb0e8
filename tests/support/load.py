"""Clients that go on posting while a test breaks something, and remember what they were promised."""

from __future__ import annotations

import http.client
import itertools
import threading
from types import TracebackType

from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Answer, Service, task, wait_until


class Load:
    """`clients` threads post batches of new tasks until stop(), each request on a connection of its own or, with
    `keep_alive`, each client on one that it keeps for as long as it is let.

    Use as a context manager. `acknowledged` holds the ids of tasks that were answered 202, `refused` every other
    answer, `failures` requests without an answer; the clients go on after either.
    """

    def __init__(
        self, service: Service, *, clients: int = 3, batch: int = 5, pause_s: float = 0.01, keep_alive: bool = False
    ) -> None:
        self._service = service
        self._batch = batch
        self._pause_s = pause_s
        self._keep_alive = keep_alive
        self._stopped = threading.Event()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._post, daemon=True) for _ in range(clients)]
        self.acknowledged: set[str] = set()
        self.refused: list[Answer] = []
        self.failures: list[Exception] = []
        self.posts = 0

    def __enter__(self) -> Load:  # noqa: PYI034 -- Self came with Python 3.11
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Returns when every request under way has its answer."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request has no answer after 60 s"

    def go_on(self, batches: int = 20, timeout_s: float = 30.0) -> None:
        """Waits until that many more batches are acknowledged."""
        wanted = len(self.acknowledged) + batches * self._batch
        wait_until(lambda: len(self.acknowledged) >= wanted, timeout_s, f"{batches} more batches are acknowledged")

    def _post(self) -> None:
        connection = self._service.connect()
        while not self._stopped.is_set():
            ids = [f"load-{next(self._numbers)}" for _ in range(self._batch)]
            self.posts += 1
            try:
                answer = self._service.post(TASKS, {"tasks": [task(one) for one in ids]}, connection=connection)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(error)
                connection.close()
            else:
                if answer.status == 202:
                    self.acknowledged.update(ids)
                else:
                    self.refused.append(answer)
            if not self._keep_alive:
                connection.close()
            self._stopped.wait(self._pause_s)
        connection.close()


def task_ids(mariadb: MariaDB, database: str) -> set[str]:
    return {task_id for (task_id,) in mariadb.execute("SELECT task_id FROM translation_tasks", (), database)}
