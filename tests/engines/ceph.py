"""Ceph's RADOS gateway over one monitor and one OSD, from Debian's packages."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, ClassVar

from engines._engine import missing_programs
from engines._ports import is_open
from engines.s3 import S3Server

if TYPE_CHECKING:
    from collections.abc import Sequence

# The first port is S3's, the second the monitor's, the others the OSD's: it binds four, and after a kill four others.
MONITOR, OSD_FIRST, OSD_LAST = 1, 2, 17

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor}]
mon initial members = a
# No public bind addr: with it the monitor forgets its port and every client hangs.
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
ms bind ipv4 = true
ms bind msgr1 = false
ms bind port min = {osd_first}
ms bind port max = {osd_last}
auth cluster required = none
auth service required = none
auth client required = none
# Without keys there is nothing to encrypt with, and the gateway would ask for encryption for ever.
ms mon client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
run dir = {directory}
admin socket = {directory}/$name.asok
pid file = {directory}/$name.pid
log file = {directory}/$name.log
mon cluster log file = {directory}/cluster.log
mon data avail warn = 2
mon data avail crit = 1
mon tick interval = 1
mon client hunt interval = 0.3
mon client hunt interval backoff = 1.0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 2000
paxos propose interval = 0.05
paxos min wait = 0.01
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd crush update on start = false
osd objectstore = bluestore
osd data = {directory}/osd
osd memory target = 1073741824
osd op num shards = 2
# After a kill, the gateway that is gone watches its objects for this long, and the first bucket waits for it.
osd client watch timeout = 3
# The gateway may start before the OSD, and then asks again only after these.
objecter tick interval = 0.5
objecter timeout = 1
bluestore block create = true
bluestore block size = {block_bytes}
bluestore fsck on mount = false
rgw thread pool size = 64
rgw run sync thread = false
rgw enable usage log = false
rgw enable quota threads = false
rgw override bucket index max shards = 1
rgw dynamic resharding = false
debug none = 0
[mon.a]
mon data = {directory}/mon
[client.rgw.a]
rgw data = {directory}/rgw
# Without tcp_nodelay each small answer takes 40 ms.
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
"""

# A sparse file: what is not written takes no space.
BLOCK_BYTES = 20 * 2**30


class Ceph(S3Server):
    """A Ceph cluster of three processes, on loopback and without keys, that speaks S3."""

    NAME: ClassVar[str] = "Ceph"
    PORT_COUNT: ClassVar[int] = 1 + OSD_LAST

    access_key = "KEYNETTESTS"
    secret_key = "keynet-tests-ceph-secret"  # noqa: S105 - of this cluster, which ends with the tests

    @classmethod
    def is_installed(cls) -> str | None:
        return missing_programs("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")

    def _prepare(self) -> None:
        monitor, fsid, osd = self.port + MONITOR, str(uuid.uuid4()), str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (self.directory / name).mkdir()
        text = CONFIGURATION.format(
            directory=self.directory,
            fsid=fsid,
            port=self.port,
            monitor=monitor,
            osd_first=self.port + OSD_FIRST,
            osd_last=self.port + OSD_LAST,
            block_bytes=BLOCK_BYTES,
        )
        (self.directory / "ceph.conf").write_text(text, encoding="utf-8")
        monmap = str(self.directory / "monmap")
        self._call(["monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{monitor}]", "--fsid", fsid, monmap])
        self._call(self._ceph("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap))
        self._launch_monitor()
        self._tell(f"osd new {osd}", "osd crush add osd.0 1.0 root=default host=h")
        self._call(self._ceph("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd))
        self._launch_osd()
        user = ["--uid=tests", "--display-name=tests", f"--access-key={self.access_key}"]
        self._call(self._ceph("radosgw-admin", "user", "create", *user, f"--secret-key={self.secret_key}"))

    def _launch(self) -> None:
        if not self._daemons:
            self._launch_monitor()
            self._launch_osd()
        self._run("rgw", self._ceph("radosgw", "-n", "client.rgw.a", "-f"))
        self._await(lambda: is_open(self.port) and self._answers())

    def _launch_monitor(self) -> None:
        self._run("mon", self._ceph("ceph-mon", "-i", "a", "-f"))
        self._await(lambda: is_open(self.port + MONITOR))

    def _launch_osd(self) -> None:
        self._run("osd", self._ceph("ceph-osd", "-i", "0", "-f"))

    def _tell(self, *commands: str) -> None:
        """Give commands to the monitor; one run of `ceph` takes them all, for starting it is what takes time."""
        self._call(self._ceph("ceph", "--connect-timeout", "20"), text="\n".join(commands) + "\n")

    def _ceph(self, program: str, *arguments: str) -> Sequence[str]:
        return [program, "--conf", str(self.directory / "ceph.conf"), *arguments]

    def _environ(self) -> dict[str, str]:
        return super()._environ() | {"PYTHONWARNINGS": "ignore"}
