"""OpenStack Swift with its s3api, from PyPI, in an environment of its own."""

from __future__ import annotations

import base64
import os
import pwd
from pathlib import Path
from typing import ClassVar

from engines._ports import is_open
from engines.s3 import S3Server

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-swift"
ACCOUNT, USER = "test", "tests"
KINDS = ("account", "container", "object")

CONSTRAINTS = """\
[swift-hash]
swift_hash_path_prefix = keynet
swift_hash_path_suffix = tests
[storage-policy:0]
name = default
default = yes
"""

DEFAULTS = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {directory}
devices = {directory}/devices
mount_check = false
workers = 0
log_level = WARNING
log_address = /nonexistent
fallocate_reserve = 0
"""

STORAGE = """\
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY = """\
[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats s3api tempauth copy slo dlo versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
node_timeout = 60
conn_timeout = 5
recoverable_node_timeout = 60
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = {region}
s3_acl = false
allow_no_owner = true
[filter:tempauth]
use = egg:swift#tempauth
user64_{account}_{name} = {secret} .admin .reseller_admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
rate_limit_under_size = 0
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
"""

# swift-ring-builder does the same in three steps, three times.
RINGS = """\
import sys
from swift.common.ring import RingBuilder
for told in sys.argv[1:]:
    kind, port = told.split("=")
    builder = RingBuilder(4, 1, 0)
    builder.add_dev(dict(region=1, zone=1, ip="127.0.0.1", port=int(port), device="d1", weight=1))
    builder.rebalance()
    builder.get_ring().save(kind + ".ring.gz")
"""


class Swift(S3Server):
    """Swift's four servers, without memcached, rsync or replication."""

    NAME: ClassVar[str] = "Swift"
    PORT_COUNT: ClassVar[int] = 1 + len(KINDS)

    access_key = f"{ACCOUNT}:{USER}"
    secret_key = "keynet-tests-swift-secret"  # noqa: S105 - of this server, which ends with the tests

    @classmethod
    def is_installed(cls) -> str | None:
        return None if _program("swift-proxy-server").exists() else f"no swift in {ENVIRONMENT.name}"

    def _prepare(self) -> None:
        (self.directory / "devices" / "d1").mkdir(parents=True)
        (self.directory / "swift.conf").write_text(CONSTRAINTS, encoding="ascii")
        for kind, port in self._storage_ports().items():
            self._write(kind, port, STORAGE.format(kind=kind))
        self._make_rings()
        coded = {"account": _coded(ACCOUNT), "name": _coded(USER)}
        self._write("proxy", self.port, PROXY.format(**coded, secret=self.secret_key, region=self.region))

    def _launch(self) -> None:
        for kind in (*KINDS, "proxy"):
            configuration = str(self.directory / f"{kind}-server.conf")
            self._run(kind, [str(_program(f"swift-{kind}-server")), configuration, "-v"])
        ports = (self.port, *self._storage_ports().values())
        self._await(lambda: all(is_open(port) for port in ports) and self._answers())

    def _storage_ports(self) -> dict[str, int]:
        return {kind: self.port + number for number, kind in enumerate(KINDS, 1)}

    def _write(self, kind: str, port: int, text: str) -> None:
        defaults = DEFAULTS.format(port=port, directory=self.directory, user=pwd.getpwuid(os.getuid()).pw_name)
        (self.directory / f"{kind}-server.conf").write_text(defaults + text, encoding="ascii")

    def _make_rings(self) -> None:
        """Write where each kind of thing is kept: on one device, once."""
        told = [f"{kind}={port}" for kind, port in self._storage_ports().items()]
        self._call([str(_program("python")), "-c", RINGS, *told])

    def _environ(self) -> dict[str, str]:
        return super()._environ() | {"PYTHONWARNINGS": "ignore"}


def _program(name: str) -> Path:
    return ENVIRONMENT / "bin" / name


def _coded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
