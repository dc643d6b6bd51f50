"""The systemd unit under a real systemd: PID 1 of namespaces of its own, in the tree that the image's steps have made.

Shows what no reading of the unit can: that the service works inside its sandbox (system calls, memory that cannot
be made executable, no device, no other account), that its credential arrives, and that it is stopped and left down.
It must not know how the tree was made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from cdc.demo.cluster import Cluster
from cdc.demo.processes import children, free_port
from tests.deploy.files import DEPLOY
from tests.deploy.tree import Tree
from tests.running import wait_until

__all__ = ["try_unit"]

# A chroot may not make user namespaces, which PrivateUsers= asks for: so the tree becomes the root itself. The console
# is the terminal that script(1) has made; systemd logs to nothing else this early.
BOOT = """
set -e
root=$1
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc; mount -t sysfs -o ro sysfs sys; mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --bind proc/sys proc/sys; mount -o remount,bind,ro proc/sys
mount -t tmpfs -o mode=0755 tmpfs run; mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=0755 tmpfs dev; mkdir dev/shm; mount -t tmpfs -o mode=1777 tmpfs dev/shm
mkdir dev/pts dev/mqueue dev/hugepages
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts; ln -s pts/ptmx dev/ptmx
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
touch dev/console; mount --bind "$(tty)" dev/console
ln -s /proc/self/fd dev/fd
mkdir -p old; pivot_root . old
/bin/umount -l /old
/bin/mount --make-rshared / # as outside of containers; or no credential would reach the unit
exec /usr/bin/env -i container=walsignal PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd \
    --system --log-target=console --show-status=no --unit=walsignal.service
"""
NAMESPACES = ("--mount", "--pid", "--cgroup", "--uts", "--ipc")
DROP_IN = """
[Service]
Environment=CDC_HTTP_PORT={port}
StandardOutput=append:/var/log/walsignal.out
StandardError=append:/var/log/walsignal.out
"""  # there is no journal in so small a system


class System:
    """A systemd and what runs under it."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.output = tree.path("/var/log/walsignal.out")
        boot = tree.root.parent / "boot.sh"
        boot.write_text(BOOT)
        command = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--propagation", "private"]
        words = " ".join([*command, "bash", str(boot), str(tree.root)])
        self.process = subprocess.Popen(
            ["script", "--quiet", "--flush", "--command", words, tree.root.parent / "console.log"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    @property
    def init(self) -> int:
        """PID 1 of its namespace, as we see it: script -> sh -> unshare -> systemd."""
        pid = self.process.pid
        while found := children(pid):
            pid = found[0]
            if "systemd" in Path(f"/proc/{pid}/comm").read_text():
                break
        return pid

    def systemctl(self, *words: str) -> str:
        """systemctl inside; its output, whatever the exit code."""
        inside = ["nsenter", f"--target={self.init}", *NAMESPACES, "systemctl", *words]
        result = subprocess.run(inside, check=False, capture_output=True, text=True, timeout=90)
        return result.stdout.strip()

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.systemctl("show", "--value", f"--property={name}", "walsignal.service")

    def end(self) -> None:
        """Nothing of it stays."""
        self.process.kill()
        self.process.wait()


def try_unit(image: Tree, folder: Path, events: str) -> None:
    """Install the unit as docs/deploying.md says; run, reload, stop, and start it with a wrong configuration."""
    tree = Tree(folder, image.root)
    with Cluster() as cluster:
        _install(tree, cluster)
        with cluster.connect() as connection:
            connection.execute((DEPLOY / "example/sql/20-example.sql").read_bytes())
        system = System(tree)
        try:
            _try(system, cluster, events)
        except AssertionError as error:
            output = system.output.read_text() if system.output.exists() else "(no output)"
            console = (tree.root.parent / "console.log").read_text(errors="replace")
            raise AssertionError(f"{error}\n{output[-1500:]}\n{console[-1500:]}") from None
        finally:
            system.end()


def _install(tree: Tree, cluster: Cluster) -> None:
    subprocess.run(
        tree.command(
            ["/bin/sh", "-c", "apt-get update -qq && apt-get install -qq --no-install-recommends systemd >/dev/null"],
            folder="/",
        ),
        check=True,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
    )
    shutil.rmtree(tree.path("/var/lib/walsignal"))  # the unit's StateDirectory makes it
    subprocess.run(tree.command(["/bin/sh", "-c", "userdel walsignal"], folder="/"), check=True, env=_PATH)
    put = {
        "/usr/lib/sysusers.d/walsignal.conf": (DEPLOY / "systemd/walsignal.sysusers.conf").read_text(),
        "/etc/systemd/system/walsignal.service": (DEPLOY / "systemd/walsignal.service").read_text(),
        "/etc/systemd/system/walsignal.service.d/check.conf": DROP_IN.format(port=free_port()),
        "/etc/walsignal/cdc.toml": (DEPLOY / "example/cdc.toml").read_text(),
        "/etc/walsignal/secrets/dsn": cluster.dsn(tcp=True),
    }
    for path, text in put.items():
        tree.path(path).parent.mkdir(parents=True, exist_ok=True)
        tree.path(path).write_text(text)
    subprocess.run(tree.command(["systemd-sysusers"], folder="/"), check=True, env=_PATH)
    tree.path("/etc/walsignal/secrets").chmod(0o700)  # root's alone: the credential is handed over by systemd


_PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def _try(system: System, cluster: Cluster, events: str) -> None:
    def said(text: str) -> bool:
        return system.output.exists() and text in system.output.read_text()

    wait_until(lambda: said('"streaming"'), 60, "it does not stream under systemd")
    assert system.show("ActiveState") == "active"
    with cluster.connect() as connection:
        connection.execute("INSERT INTO public.users (name, email) VALUES (%s, 'x@example.org')", [events])
    wait_until(lambda: said(events), 60, "the event does not arrive")
    state = system.tree.path("/var/lib/walsignal")
    assert (state.stat().st_mode & 0o777, state.stat().st_uid != 0) == (0o700, True)
    assert [file.stat().st_mode & 0o077 for file in state.iterdir()] == [0] * len(os.listdir(state))  # noqa: PTH208
    system.systemctl("reload", "walsignal.service")
    wait_until(lambda: said('"reload_'), 30, "a reload does not reach it")
    assert system.show("ActiveState") == "active", "a reload ends it"
    system.systemctl("stop", "walsignal.service")
    assert (system.show("Result"), system.show("ExecMainStatus")) == ("success", "0")
    system.tree.path("/etc/walsignal/cdc.toml").write_text("[source]\n")
    system.systemctl("start", "walsignal.service")
    wait_until(lambda: system.show("ActiveState") == "failed", 30, "a wrong configuration does not end it")
    ended = {name: system.show(name) for name in ("ExecMainStatus", "NRestarts")}
    assert ended == {"ExecMainStatus": "2", "NRestarts": "0"}, json.dumps(ended)
    print("systemd: streams in its sandbox, reloads, stops with exit 0, stays down when misconfigured", flush=True)
