"""What a relay counts, as Prometheus reads it on /metrics, and what its health page says.

A process counts for itself. Where several share a port, any of them may be asked: so each leaves a snapshot of its
counters in a common directory every second, and whoever is asked answers for all, one label `worker` for each.

Rendering takes the package `prometheus-client`; counting doesn't.
"""

from __future__ import annotations

import json
import logging
import os
import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gowsev

if TYPE_CHECKING:
    from node import Node

logger = logging.getLogger("relay")

#: Seconds between two looks at how late the loop is, and between two snapshots.
INTERVAL = 1.0
#: Upper bounds of the histogram of the loop's delay, in seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

#: (name, what it is) of what only grows, and of what goes up and down.
COUNTERS = {
    "connections_accepted": "Connections that clients opened.",
    "connections_closed": "Connections that have ended.",
    "connections_rejected": "Requests for a WebSocket that were refused.",
    "messages_received": "Messages read from clients.",
    "messages_sent": "Messages written to clients, answers included.",
    "bytes_received": "Bytes read from WebSockets.",
    "bytes_sent": "Bytes that the kernel has taken for WebSockets.",
    "publishes": "Publishes that were answered with OK.",
    "errors": "Commands that were answered with an error.",
    "deliveries": "Messages of channels written to subscribers.",
    "drops": "Messages of channels that a subscriber could not take.",
    "slow_consumers": "Connections closed because they read too slowly.",
    "callback_errors": "Errors of the relay itself; the log has them.",
    "refused": "Publishes and subscriptions that channels have refused, or that have failed.",
    "gaps": "Gaps in channels: their subscribers were told that messages are lost.",
    "missed": "Messages that these had, as far as anybody can tell.",
}
GAUGES = {
    "connections": "Connections open now.",
    "channels": "Channels with a subscriber in this process.",
    "subscriptions": "Subscriptions of all clients.",
    "queued_events": "Events that wait for the loop.",
    "outbox_bytes": "Bytes that wait for clients to read.",
    "backplane_up": "1 if the backplane can be reached, 0 if not.",
    "in_flight": "Publishes that wait to be stored.",
    "lag": "Messages that were received from channels, and that the loop has not delivered.",
}


@dataclass
class Counters:
    """What a node counts itself; the rest is in `gowsev.Stats`."""

    publishes: int = 0
    errors: int = 0
    deliveries: int = 0
    drops: int = 0


@dataclass
class LoopDelay:
    """How late the loop calls what it was asked to call at a certain time: a histogram."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def note(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Metrics:
    """The counters of one process, and those that its siblings have left.

    Args:
        node: whose.
        worker: its number among those that share a port.
        folder: where they leave their snapshots; `None` if there is only one.
    """

    def __init__(self, node: Node, worker: int = 1, folder: Path | None = None) -> None:
        self._node = node
        self._worker = worker
        self._folder = folder
        self._delay = LoopDelay()
        self._started = time.time()

    def start(self, context: gowsev.Context) -> None:
        """Look at the loop every second from now on."""
        self._context = context
        self._tick(context, None)

    def _tick(self, context: gowsev.Context, due: float | None) -> None:
        now = time.monotonic()
        if due is not None:
            self._delay.note(max(0.0, now - due))
        if self._folder is not None:
            leave(self._folder, self._worker, self.snapshot())
        context.AfterFunc(INTERVAL, self._tick, time.monotonic() + INTERVAL)

    def snapshot(self) -> dict[str, Any]:
        """All counters of this process, as plain data."""
        node, stats, status = self._node, self._context.Stats(), self._node.channels.Status()
        values = {
            "connections": stats.connections,
            "connections_accepted": stats.accepted,
            "connections_closed": stats.closed,
            "connections_rejected": stats.rejected,
            "messages_received": stats.messages_received,
            "messages_sent": stats.messages_sent,
            "bytes_received": stats.bytes_received,
            "bytes_sent": stats.bytes_sent,
            "slow_consumers": stats.refused_writes,  # the first refusal closes, and later ones are for the closing
            "callback_errors": stats.callback_errors,
            "queued_events": stats.queued_events,
            "outbox_bytes": stats.outbox_bytes,
            "channels": len(node.ids_of),
            "subscriptions": sum(map(len, node.channels_of.values())),
            **vars(node.counters),
            **{name: getattr(status, name) for name in ("refused", "gaps", "missed", "in_flight", "lag")},
            "loop_delay": vars(self._delay),
        }
        if node.joined:
            values["backplane_up"] = int(status.up)
        return values

    def health(self) -> dict[str, Any]:
        """What the health page says; `status` is "ok" or "degraded".

        States and counts only: anyone may read it. Why the backplane is away, and where it is, is in the log.
        """
        up = self._node.channels.Status().up
        state = "none" if not self._node.joined else "up" if up else "away"
        return {
            "status": "degraded" if state == "away" else "ok",
            "backplane": state,
            "connections": self._context.Stats().connections,
            "worker": self._worker,
            "uptime_seconds": round(time.time() - self._started, 1),
        }

    def render(self) -> bytes:
        """The counters of all workers in Prometheus's text format.

        Raises:
            ImportError: the package `prometheus-client` is not installed.
        """
        snapshots = {self._worker: self.snapshot()}
        if self._folder is not None:
            snapshots = left(self._folder) | snapshots
        return render(snapshots)


def leave(folder: Path, worker: int, snapshot: dict[str, Any]) -> None:
    """Write a worker's snapshot, whole or not at all."""
    path = folder / f"{worker}.json"
    new = path.with_suffix(".new")
    try:
        new.write_text(json.dumps(snapshot))
        os.replace(new, path)
    except OSError as error:  # the disk is full, or somebody has cleared /tmp: the relay itself goes on
        logger.warning("Cannot leave the counters in %s: %s", path, error)


def left(folder: Path) -> dict[int, dict[str, Any]]:
    """The snapshots that the workers have left."""
    snapshots = {}
    for path in folder.glob("*.json"):
        try:
            snapshots[int(path.stem)] = json.loads(path.read_text())
        except FileNotFoundError:  # its worker has just died
            continue
    return snapshots


def render(snapshots: dict[int, dict[str, Any]]) -> bytes:
    """Snapshots, by worker, in Prometheus's text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(snapshots))
    return generate_latest(registry)


class _Collector:
    """What `prometheus_client` asks for the values."""

    def __init__(self, snapshots: dict[int, dict[str, Any]]) -> None:
        self._snapshots = sorted(snapshots.items())

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for kind, described in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for name, text in described.items():
                family = kind(f"relay_{name}", text, labels=["worker"])
                for worker, snapshot in self._snapshots:
                    if name in snapshot:
                        family.add_metric([str(worker)], snapshot[name])
                if family.samples:
                    yield family
        delays = HistogramMetricFamily(
            "relay_loop_delay_seconds", "How late the loop does what it was asked to do at a time.", labels=["worker"]
        )
        for worker, snapshot in self._snapshots:
            delay, so_far, buckets = snapshot["loop_delay"], 0, []
            for bound, count in zip([*BOUNDS, "+Inf"], delay["counts"], strict=True):
                so_far += count
                buckets.append((str(bound), so_far))
            delays.add_metric([str(worker)], buckets, delay["total"])
        yield delays
