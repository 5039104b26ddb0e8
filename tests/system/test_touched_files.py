"""Every file under the state directory, but for the segments: somebody removes, empties or replaces it while we run.

What becomes of a touched segment is tested in tests/flusher/test_touched_files.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path) -> None:
    if path.is_dir():
        for inside in path.iterdir():
            remove(inside)
    elif path.is_file():
        os.truncate(path, 0)


def replace(path: Path) -> None:
    """A file by a directory, and the other way round."""
    was_directory = path.is_dir()
    remove(path)
    path.touch() if was_directory else path.mkdir()


def ours(service: Service) -> list[Path]:
    kept = (service.journal, service.log)
    return [
        path
        for path in sorted(service.directory.rglob("*"))
        if path not in kept and service.journal not in path.parents and path.suffix not in (".stderr", ".stdout")
    ]


@pytest.mark.parametrize("touch", [remove, empty, replace])
def test_no_file_of_ours_is_needed_to_go_on(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, touch: Callable[[Path], None]
) -> None:
    service = start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=0.2)
    wait_until(lambda: service.get("/health").json["status"] == "healthy")
    wait_until(lambda: any((service.directory / "history").glob("*")), what="the dashboard records")
    names = [path.relative_to(service.directory) for path in ours(service)]
    assert len(names) > 4
    for number, name in enumerate(names):
        path = service.directory / name
        if not os.path.lexists(path):
            continue  # its directory was touched before
        touch(path)
        assert service.post(f"{TASKS}?ack=committed", {"tasks": [task(f"t{number}")]}).status == 200, name
        assert service.get("/metrics").status == 200, name
        assert service.get("/dashboard/history").status == 200, name
        wait_until(lambda: service.get("/ready").status == 200, what=f"ready without {name}")
    assert service.flush().status == 200
    health = service.get("/health").json
    assert health["status"] == "healthy", health
    assert "Traceback" not in service.log.read_text(), service.log.read_text()
