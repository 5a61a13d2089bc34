"""What is measured: each scenario as the driver's command, and which of its figures counts.

The figure of most is the server's processor time a message, in microseconds: less is better, everywhere.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    title: str
    driver: str  # its arguments
    figure: str = "us"
    unit: str = "µs"
    server: tuple[str, ...] = ()  # arguments besides the port and the mode
    tls: bool = False
    seconds: float | None = None  # where how long does not depend on the wish for exactness
    rounds: int | None = None  # at most
    files: int = 1_000  # that the driver and the server have open

    @property
    def mode(self):
        return "relay" if self.driver.startswith("fanout") else "echo"


#: What a server that can ping is told in `memory_idle`; the connections are held for more than twice that.
PING = 2.0
#: A fan-out to 10,000 takes 50 ms and more, and the first ones twice that with every server: the kernel finds the
#: memory for each socket.
MANY = {"seconds": 2.0, "files": 10_200}
WRITES = {"server": ("--write-each",)}
DEFLATE = {"server": ("--deflate",)}

SCENARIOS = {
    "echo": Scenario("echo, 100 connections, 1 in flight", "echo --connections 100"),
    "echo_pipelined": Scenario("echo, 50 connections, 16 in flight", "echo --connections 50 --depth 16"),
    "fanout_1": Scenario("fan-out to 200, 1 publish in flight", "fanout --connections 200"),
    "fanout_8": Scenario("fan-out to 200, 8 in flight", "fanout --connections 200 --depth 8"),
    "fanout_write_1": Scenario("fan-out to 200 by Write, 1 in flight", "fanout --connections 200", **WRITES),
    "fanout_write_8": Scenario("fan-out to 200 by Write, 8 in flight", "fanout --connections 200 --depth 8", **WRITES),
    "echo_64k": Scenario("echo of 64 KiB, 4 connections", "echo --connections 4 --size 65536"),
    "churn": Scenario("connect, upgrade, close", "churn --connections 20"),
    "memory_open": Scenario(
        "memory, connection just opened", "memory --connections 4000", "kb", "KB", seconds=0.2, rounds=2, files=4_200
    ),
    "memory_idle": Scenario(
        "memory, connection long idle",
        "memory --connections 4000",
        "kb",
        "KB",
        server=("--ping", str(PING)),
        seconds=2 * PING + 1,
        rounds=2,
        files=4_200,
    ),
    "latency": Scenario("latency of a lone message, p50", "echo --connections 1", "p50_us"),
    "latency_loaded": Scenario("latency at 10,000 messages/s, p99", "echo --connections 100 --rate 10000", "p99_us"),
    "echo_10k": Scenario("echo, 10,000 connections, 1 in flight", "echo --connections 10000", **MANY),
    "fanout_10k": Scenario("fan-out to 10,000, 1 publish in flight", "fanout --connections 10000", **MANY),
    "echo_1m": Scenario("echo of 1 MiB", "echo --connections 1 --size 1048576"),
    "echo_16m": Scenario("echo of 16 MiB", "echo --connections 1 --size 16777216"),
    "echo_tls": Scenario("echo over TLS, 100 connections", "echo --connections 100", tls=True),
    "echo_deflate": Scenario(
        "echo of 2 KB of JSON, compressed", "echo --connections 100 --size 2048 --deflate", **DEFLATE
    ),
    "fanout_deflate": Scenario(
        "fan-out of 2 KB of JSON to 200, compressed", "fanout --connections 200 --size 2048 --deflate", **DEFLATE
    ),
    "memory_deflate": Scenario(
        "memory, compressed connection",
        "memory --connections 2000 --size 2048 --deflate",
        "kb",
        "KB",
        seconds=0.2,
        rounds=2,
        files=2_200,
        **DEFLATE,
    ),
}

#: As the work grows: the large scenario, the small one, by how much the work of one message is more, and what it is.
GROWTH = (
    ("echo_10k", "echo", 1, "a message at 10,000 connections, against 100"),
    ("fanout_10k", "fanout_1", 1, "a delivery to 10,000, against 200"),
    ("echo_16m", "echo_1m", 16, "a MiB of a 16 MiB message, against 1 MiB"),
)
