"""Hosts of a trial cluster: network namespaces with an address each, or, without the rights, loopback addresses.

In namespaces every host hangs by a veth link on the bridge of a namespace of its own, the hub, where whoever wants to
reach them runs (join, or `ip netns exec`). All addresses exist only inside; nothing of the machine's own network is
touched, so clusters side by side use the same ones.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HUB = 254
"""The last byte of the hub's address."""
_NOBODY = "02:00:00:00:00:01"
"""A hardware address that nobody has: what is sent there is gone, without a word."""


@dataclass(frozen=True, slots=True)
class Network:
    """`hosts`: name -> last byte of its address. `name`: of the hub's namespace; empty: loopback addresses."""

    name: str
    prefix: str
    hosts: dict[str, int]

    def address(self, host: str) -> str:
        return f"{self.prefix}.{self.hosts.get(host, HUB)}"

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """The command, run where this host is; an unknown host is the hub."""
        return ["ip", "netns", "exec", self._namespace(host), *command] if self.name else list(command)

    def up(self) -> None:
        """Raises: OSError."""
        if not self.name:
            return
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")
        _ip("-n", self.name, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.name, "addr", "add", f"{self.address('')}/24", "dev", "bridge")
        _ip("-n", self.name, "link", "set", "bridge", "up")
        for host in self.hosts:
            namespace = self._namespace(host)
            _ip("netns", "add", namespace)
            _ip(
                "-n", self.name, "link", "add", "name", host, "type", "veth", "peer", "name", "eth0", "netns", namespace
            )
            _ip("-n", self.name, "link", "set", host, "master", "bridge", "up")
            _ip("-n", namespace, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", namespace, "link", "set", "eth0", "up")

    def down(self) -> None:
        """Takes away what there is of it, links included."""
        if self.name:
            for namespace in (*map(self._namespace, self.hosts), self.name):
                subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)

    def cut(self, host: str) -> None:
        """From now on nothing comes out of or in to this host. Raises: OSError."""
        _ip("-n", self.name, "link", "set", host, "down")

    def heal(self, host: str) -> None:
        _ip("-n", self.name, "link", "set", host, "up")

    def cut_between(self, host: str, other: str) -> None:
        """What `host` sends to `other` is lost; both reach everybody else. Raises: OSError."""
        target = (self.address(other), "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
        _ip("-n", self._namespace(host), "neigh", "replace", *target)

    def heal_between(self, host: str, other: str) -> None:
        _ip("-n", self._namespace(host), "neigh", "del", self.address(other), "dev", "eth0")

    def join(self) -> None:
        """Moves the calling thread, and those that it starts later, into the hub. Raises: OSError."""
        if not self.name:
            return
        with Path("/run/netns", self.name).open() as namespace:
            clone_newnet = 0x40000000
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), clone_newnet):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), namespace.name)

    def _namespace(self, host: str) -> str:
        return f"{self.name}-{host}" if host in self.hosts else self.name


def network_of(directory: Path, hosts: dict[str, int]) -> Network:
    """Of a cluster in this directory: its name follows from the directory's, which two clusters never share."""
    digest = hashlib.sha256(os.fsencode(directory)).digest()
    name = f"ps-{digest[:4].hex()}" if _may_make_namespaces() else ""
    # Loopback addresses are the machine's, so clusters side by side each have a part of 127.0.0.0/8 to themselves.
    prefix = "10.77.0" if name else f"127.{1 + digest[4] % 254}.{digest[5]}"
    return Network(name, prefix, hosts)


def _may_make_namespaces() -> bool:
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    probe = f"ps-probe-{os.getpid()}"
    try:
        _ip("netns", "add", probe)
        _ip("-n", probe, "link", "add", "bridge", "type", "bridge")
        _ip("-n", probe, "link", "add", "probe0", "type", "veth", "peer", "name", "probe1")
    except OSError:
        return False
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return True


def _ip(*arguments: str) -> None:
    """Raises: OSError, with what ip says."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
