"""A Ceph object gateway of one node in memory: a production S3 server, started and stopped by the tests.

Monitor, manager, one object daemon and the gateway run in the foreground as children of this process, on free
ports of the loopback interface, with all their files in one folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .servers import Server, free_port, wait_until_ready

PROGRAMS = (
    "radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-authtool", "monmaptool",
)  # fmt: skip
STEP_SECONDS = 60
STORE_BYTES = 4 << 30
ACCESS_KEY, SECRET_KEY = "testkey", "testsecret"

CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
ms bind ipv6 = false
ms bind msgr1 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/log/$name.log
pid file =
crash dir = {folder}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 2000
mon data avail crit = 1
mon data avail warn = 2
[mon]
mon data = {folder}/mon
[mgr]
mgr data = {folder}/mgr
mgr initial modules =
[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = {store_bytes}
osd memory target = 939524096
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}{secure}
rgw thread pool size = 32
rgw dns name = localhost
rgw gc obj min wait = 1
rgw gc processor period = 2
rgw enable usage log = false
rgw enable ops log = false
"""

CAPABILITIES = {
    "client.admin": ["mon", "allow *", "osd", "allow *", "mgr", "allow *"],
    "osd.0": ["mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd"],
    "mgr.x": ["mon", "allow profile mgr", "osd", "allow *"],
    "client.rgw": ["mon", "allow rw", "osd", "allow rwx", "mgr", "allow rw"],
}


def missing_programs() -> list[str]:
    """Programs that this needs and the machine lacks."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@dataclass(frozen=True)
class CephServer(Server):
    """Also knows the administrator's command."""

    folder: Path = Path()
    secure_endpoint: str = ""
    """The same over TLS, if there is a certificate."""

    def admin(self, *arguments: str) -> None:
        """Run radosgw-admin."""
        _run(self.folder, "radosgw-admin", "--name", "client.rgw", *arguments)


def _run(folder: Path, *command: str) -> None:
    environment = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=STEP_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")


class _Cluster:
    def __init__(self, folder: Path, certificate: Path | None, key: Path | None) -> None:
        self.folder = folder
        self.port, self.secure_port = free_port(), free_port()
        self._secure = (
            f" ssl_endpoint=127.0.0.1:{self.secure_port} ssl_certificate={certificate} ssl_private_key={key}"
            if certificate
            else ""
        )
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._environment = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf")}
        self._monitor_port = free_port()
        self._cluster_id = str(uuid.uuid4())

    def start(self) -> None:
        for name in ("mon", "mgr", "osd", "log"):
            (self.folder / name).mkdir()
        (self.folder / "ceph.conf").write_text(
            CONFIGURATION.format(
                fsid=self._cluster_id,
                folder=self.folder,
                mon_port=self._monitor_port,
                port=self.port,
                secure=self._secure,
                store_bytes=STORE_BYTES,
            )
        )
        self._start_monitor()
        self._start_object_daemon()
        self._daemon("ceph-mgr", "--id", "x")
        self._daemon("radosgw", "--name", "client.rgw")
        log = self.folder / "log" / "client.rgw.log"
        log.touch()
        wait_until_ready(f"http://127.0.0.1:{self.port}", self._daemons[-1], log)
        self._do(
            "radosgw-admin", "--name", "client.rgw", "user", "create", "--uid=test", "--display-name=test",
            f"--access-key={ACCESS_KEY}", f"--secret={SECRET_KEY}",
        )  # fmt: skip

    def stop(self) -> None:
        """Nothing is kept: kill the daemons, last one first."""
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()

    def _start_monitor(self) -> None:
        keyring = str(self.folder / "keyring")
        self._do("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        for name, capabilities in CAPABILITIES.items():
            pairs = [part for start in range(0, len(capabilities), 2) for part in ("--cap", *capabilities[start:][:2])]
            self._do("ceph-authtool", keyring, "--gen-key", "-n", name, *pairs)
        monitor_map = str(self.folder / "monmap")
        address = f"[v2:127.0.0.1:{self._monitor_port}]"
        self._do("monmaptool", "--create", "--fsid", self._cluster_id, "--addv", "a", address, monitor_map)
        self._do("ceph-mon", "--id", "a", "--mkfs", "--monmap", monitor_map, "--keyring", keyring)
        self._daemon("ceph-mon", "--id", "a")

    def _start_object_daemon(self) -> None:
        identity = str(uuid.uuid4())
        self._do("ceph", "--connect-timeout", "30", "osd", "new", identity)
        self._do("ceph", "--connect-timeout", "30", "auth", "import", "-i", str(self.folder / "keyring"))
        self._do("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", identity)
        self._daemon("ceph-osd", "--id", "0")

    def _do(self, *command: str) -> None:
        _run(self.folder, *command)

    def _daemon(self, *command: str) -> None:
        log = self.folder / "log" / f"{command[0]}.out"
        with log.open("wb") as output:
            self._daemons.append(
                subprocess.Popen([*command, "--foreground"], env=self._environment, stdout=output, stderr=output)
            )


@contextlib.contextmanager
def ceph_server(folder: Path, certificate: Path | None = None, key: Path | None = None) -> Iterator[CephServer]:
    """A running gateway with one user; its release predates today's default checksums. With a certificate also TLS."""
    cluster = _Cluster(folder, certificate, key)
    try:
        cluster.start()
        yield CephServer(
            f"http://127.0.0.1:{cluster.port}", ACCESS_KEY, SECRET_KEY,
            (("request_checksum_calculation", "when_required"), ("response_checksum_validation", "when_required")),
            folder, f"https://127.0.0.1:{cluster.secure_port}" if certificate else "",
        )  # fmt: skip
    finally:
        cluster.stop()
