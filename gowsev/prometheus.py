"""What a context has counted, for Prometheus: the page behind `/metrics`.

    metrics = Metrics(context, channels)      # a WSGI application, to be called by the program's own for that path

It has the counters of `Context.Stats` and `Channels.Status`, the loop's delay, the process (memory, processor time,
open files), and the versions; and the program's own metrics that are in the same registry.

Where several processes share a port, Prometheus asks any of them. With a common folder, each leaves what it has there
every second, and whichever is asked answers for all, with a label `worker`.

The only importer of prometheus_client, which is an extra; no other module imports this one.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gowsev.version import __version__, build

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment

    from gowsev.channels import Channels
    from gowsev.context import Context
    from gowsev.stats import Stats

__all__ = ["Metrics"]

logger = logging.getLogger("gowsev")

#: Seconds between two looks at how late the loop is, and between two times at which a process leaves what it has.
_INTERVAL = 1.0
#: Seconds after which a process that has left nothing counts as dead.
_DEAD = 10.0
#: Upper bounds of the histogram of the loop's delay, in seconds.
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Fields of `Stats`, and of `Status`, and what they are; the first group of each only grows.
_COUNTERS = {
    "accepted": "Connections that clients opened.",
    "added": "Connections that AddConn brought.",
    "closed": "Connections that have ended.",
    "rejected": "Upgrade requests that were refused.",
    "messages_received": "Messages read from connections.",
    "messages_sent": "Messages that writes have taken; one to many counts once for each.",
    "bytes_received": "Bytes read from sockets since their handshakes.",
    "bytes_sent": "Bytes that the kernel has taken since the handshakes.",
    "refused_writes": "Writes refused because too much already waited for a slow peer.",
    "callback_errors": "Callbacks that raised.",
}
_GAUGES = {
    "connections": "Connections open now.",
    "queued_events": "Events that wait for the loop.",
    "outbox_bytes": "Bytes that wait for peers.",
}
#: Fields of `Stats` that are counters of several kinds, what these are, and what tells them apart.
_KINDS = {
    "refusals": ("Clients that were not let in.", "reason"),
    "closed_by_code": ("Connections that have ended, by the code of their close frame.", "code"),
}
_CHANNEL_COUNTERS = {
    "refused": "Publishes and subscriptions that were refused or failed.",
    "gaps": "Gaps that were told.",
    "missed": "Messages that these had, as far as anybody can tell.",
}
_CHANNEL_GAUGES = {
    "up": "1 if messages are stored and received, 0 if not.",
    "lag": "Messages that were received, and that the loop has not delivered yet.",
    "in_flight": "Publishes that wait to be stored.",
    "in_flight_bytes": "How long these are, and what they cost besides.",
    "channels": "Channels that are followed.",
}


def _families(prefix: str, counted: object, counters: dict[str, str], gauges: dict[str, str]) -> Iterator[Metric]:
    for name, text in counters.items():
        yield CounterMetricFamily(f"{prefix}_{name}", text, value=getattr(counted, name))
    for name, text in gauges.items():
        yield GaugeMetricFamily(f"{prefix}_{name}", text, value=float(getattr(counted, name)))


def _round_trips(stats: Stats) -> Metric:
    buckets = [(str(bound), float(number)) for bound, number in stats.round_trips_within.items()]
    return HistogramMetricFamily(
        "gowsev_round_trip_seconds",
        "From a ping to its pong.",
        buckets=[*buckets, ("+Inf", float(stats.round_trips))],
        sum_value=stats.round_trip_seconds,
    )


class _Collector(Collector):
    """What prometheus_client asks for the values."""

    def __init__(self, context: Context, channels: Channels | None) -> None:
        self._context = context
        self._channels = channels
        self._build = build()

    def collect(self) -> Iterable[Metric]:
        stats = self._context.Stats()
        yield from _families("gowsev", stats, _COUNTERS, _GAUGES)
        for name, (text, label) in _KINDS.items():
            family = CounterMetricFamily(f"gowsev_{name}", text, labels=[label])
            for kind, number in sorted(getattr(stats, name).items()):
                family.add_metric([str(kind)], number)
            yield family
        yield _round_trips(stats)
        if self._channels is not None:
            yield from _families("gowsev_channels", self._channels.Status(), _CHANNEL_COUNTERS, _CHANNEL_GAUGES)
        info = GaugeMetricFamily("gowsev_build_info", "Versions.", labels=["version", "build", "python"])
        info.add_metric([__version__, self._build, platform.python_version()], 1.0)
        yield info


class _Merged:
    """The metrics of several processes, each with a label for its own."""

    def __init__(self, workers: dict[str, list[Any]]) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for worker, families in sorted(self._workers.items()):
            for name, text, kind, samples in families:
                metric = merged.setdefault(name, Metric(name, text, kind))
                for sample, labels, value in samples:
                    metric.add_sample(sample, {**labels, "worker": worker}, value)
        return merged.values()


class Metrics:
    """The page behind `/metrics`: a WSGI application. Belongs to the thread of the context, whose loop must run.

    Args:
        context: whose counters.
        channels: whose state; `None` if there are none.
        registry: a `prometheus_client.CollectorRegistry` with metrics of the program's own; by default a new one, with
            those of the process.
        folder: where processes that share a port leave what they have, once a second; `None` if there is only one.
        worker: this process's name among them: its label, and the name of its file; by default its number.

    Raises:
        ValueError: the registry has such metrics already.
    """

    def __init__(
        self,
        context: Context,
        channels: Channels | None = None,
        *,
        registry: CollectorRegistry | None = None,
        folder: str | os.PathLike[str] | None = None,
        worker: str | None = None,
    ) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        """Where a program registers its own metrics."""
        if registry is None:
            ProcessCollector(registry=self.registry)
        self.registry.register(_Collector(context, channels))
        text = "How late the loop did what it was asked to do at a time."
        self._delay = Histogram("gowsev_loop_delay_seconds", text, buckets=_BOUNDS, registry=self.registry)
        self._folder = None if folder is None else Path(folder)
        self._worker = str(os.getpid()) if worker is None else worker
        self._failed = False
        self._tick(context, None)

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format: this process's, or those of all that share the folder."""
        if self._folder is None:
            return generate_latest(self.registry)
        workers = self._left(self._folder) | {self._worker: self._own()}
        return generate_latest(_Merged(workers))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        """Answer a request."""
        body = self.render()
        start_response("200 OK", [("Content-Type", _TYPE), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _tick(self, context: Context, due: float | None) -> None:
        if due is not None:
            self._delay.observe(max(0.0, time.monotonic() - due))
        if self._folder is not None:
            self._leave(self._folder)
        context.AfterFunc(_INTERVAL, self._tick, time.monotonic() + _INTERVAL)

    def _own(self) -> list[Any]:
        """Return this process's metrics as plain data."""
        return [
            [
                family.name,
                family.documentation,
                family.type,
                [[one.name, one.labels, one.value] for one in family.samples],
            ]
            for family in self.registry.collect()
        ]

    def _leave(self, folder: Path) -> None:
        """Write this process's metrics into its file, whole or not at all."""
        new = folder / f"{self._worker}.new"
        try:
            new.write_text(json.dumps(self._own()))
            new.replace(folder / f"{self._worker}.json")
            self._failed = False
        except OSError as error:  # the disk is full, or the folder was cleared: the program itself goes on
            if not self._failed:
                self._failed = True
                logger.warning("cannot leave the metrics in %s: %s", folder, error)

    def _left(self, folder: Path) -> dict[str, list[Any]]:
        """Return what the others have left, but for those that are dead."""
        workers = {}
        for path in folder.glob("*.json"):
            try:
                if time.time() - path.stat().st_mtime < _DEAD:
                    workers[path.stem] = json.loads(path.read_text())
            except FileNotFoundError:  # removed since the folder was listed: its process has ended
                logger.debug("%s is gone", path)
        return workers
