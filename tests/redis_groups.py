"""Several Redis servers that belong together: a master with a replica and a sentinel, and a cluster."""

from __future__ import annotations

import subprocess

import redis
from conftest import wait_until
from redis.crc import key_slot
from redis_server import SERVER, RedisServer, free_port

LAST_SLOT = 16383


class Watched:
    """A master, a replica, and a sentinel, for which a server that is silent for half a second is dead."""

    def __init__(self, folder):
        self.master = RedisServer(folder / "master", "--repl-diskless-sync-delay", "0")
        self.replica = RedisServer(folder / "replica", "--replicaof", "127.0.0.1", str(self.master.port))
        wait_until(lambda: "master_link_status:up" in self.replica.cli("info", "replication"))
        (folder / "sentinel").mkdir()
        self.port = free_port()
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {folder}/sentinel"]
        lines += [f"sentinel monitor main 127.0.0.1 {self.master.port} 1"]
        lines += ["sentinel down-after-milliseconds main 500", "sentinel failover-timeout main 2000"]
        configuration = folder / "sentinel" / "conf"
        configuration.write_text("\n".join(lines) + "\n")
        with (folder / "sentinel" / "log").open("ab") as log:
            command = [SERVER, str(configuration), "--sentinel"]
            self.sentinel = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.url = f"redis+sentinel://127.0.0.1:{self.port}/main"
        with redis.Redis(port=self.port) as client:
            wait_until(lambda: self._is_watched(client))

    def _is_watched(self, client):
        try:
            return any(one["role-reported"] == "slave" for one in client.sentinel_slaves("main"))
        except redis.ConnectionError:  # not yet
            return False

    def wait_until_replicated(self):
        """Wait until the replica has all that the master has."""
        with self.master.client() as client:
            wait_until(lambda: client.wait(1, 100) == 1)

    def end(self):
        self.sentinel.kill()
        self.sentinel.wait()
        for server in (self.master, self.replica):
            server.thaw()
            server.kill()


class Cluster:
    """Three masters with a third of the slots each, and a replica of the first; a second of silence counts as dead."""

    def __init__(self, folder):
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
        options += ["--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0"]
        self.servers = []
        for number in range(4):
            bus = free_port()
            self.servers.append(RedisServer(folder / f"member{number}", *options, "--cluster-port", str(bus)))
            self.servers[-1].bus = bus
        *self.masters, self.replica = self.servers
        for number, master in enumerate(self.masters):
            first, after = (number * (LAST_SLOT + 1) // 3, (number + 1) * (LAST_SLOT + 1) // 3)
            master.cli("cluster", "addslotsrange", str(first), str(after - 1))
            master.cli("cluster", "set-config-epoch", str(number + 1))
        for server in self.servers[1:]:
            server.cli("cluster", "meet", "127.0.0.1", str(self.masters[0].port), str(self.masters[0].bus))
        wait_until(lambda: all(self._knows_all(server) for server in self.servers))
        wait_until(lambda: self.replica.cli("cluster", "replicate", self.masters[0].cli("cluster", "myid")) == "OK")
        wait_until(lambda: "master_link_status:up" in self.replica.cli("info", "replication"))
        wait_until(lambda: all(f":{self.replica.port}@" in s.cli("cluster", "nodes") for s in self.servers))
        wait_until(lambda: all("slave " in s.cli("cluster", "nodes") for s in self.servers))
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.masters[:2])

    def _knows_all(self, server):
        information = server.cli("cluster", "info")
        return "cluster_known_nodes:4" in information and "cluster_state:ok" in information

    def channel_of(self, number, skip=0):
        """The name of a channel that a master has; with `skip`, of another."""
        for i in range(1000):
            if key_slot(f"{{gowsev:c{i}}}".encode()) * 3 // (LAST_SLOT + 1) == number:
                if not skip:
                    return f"c{i}"
                skip -= 1
        raise AssertionError("there is one among a thousand")

    def move(self, channel, source, target):
        """Let another master have the slot of a channel, as `redis-cli --cluster reshard` does it."""
        tag = f"{{gowsev:{channel}}}"
        slot = str(key_slot(tag.encode()))
        ids = {server: server.cli("cluster", "myid") for server in (source, target)}
        target.cli("cluster", "setslot", slot, "importing", ids[source])
        source.cli("cluster", "setslot", slot, "migrating", ids[target])
        while keys := source.cli("cluster", "getkeysinslot", slot, "100").split("\n"):
            if keys == [""]:
                break
            source.cli("migrate", "127.0.0.1", str(target.port), "", "0", "5000", "keys", *keys)
        for server in (target, source):
            assert server.cli("cluster", "setslot", slot, "node", ids[target]) == "OK"

    def end(self):
        for server in self.servers:
            server.thaw()
            server.kill()
