"""What the relay counts besides what the library does, for /metrics; and what it adds to the health page.

Counting takes no package; the page takes `prometheus-client`, by way of `gowsev.prometheus`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gowsev
from gowsev.channels import ChannelsAway, TooManyChannels, TooMuchInFlight

if TYPE_CHECKING:
    from node import Node

    from gowsev.prometheus import Metrics

#: What clients are told.
AWAY = "the backplane is away"
REFUSED = "the backplane refused it"
#: Why commands and connections are refused. Each is on the page from the start: an increase is seen only from a value.
REASONS = (
    "away", "backplane", "channels", "connection", "in_flight", "invalid",
    "name", "perhaps", "rate", "stopping", "token", "unsubscribed",
)  # fmt: skip


class Refusal(NamedTuple):
    """Why a command was not carried out."""

    reason: str
    """One of `REASONS`, by which they are counted."""
    text: str
    certain: bool = True


def refusal_of(error: Exception) -> Refusal:
    """Return why a command was not carried out, as clients are told it; what Redis said is for the log."""
    if isinstance(error, ChannelsAway):
        return Refusal("away", AWAY) if error.certain else Refusal("perhaps", "the backplane went away", certain=False)
    if isinstance(error, TooManyChannels):
        return Refusal("channels", f"at most {error.limit} channels for each client")
    if isinstance(error, TooMuchInFlight):
        return Refusal("in_flight", "too many commands wait for the backplane")
    return Refusal("backplane", REFUSED, getattr(error, "certain", True))


@dataclass
class Counters:
    """What a node counts itself."""

    publishes: int = 0
    deliveries: int = 0
    drops: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    """By reason."""

    def refuse(self, reason: str) -> None:
        """Count a command, or a connection, that was refused."""
        self.refusals[reason] += 1


def health_of(node: Node, context: gowsev.Context, worker: int) -> gowsev.Health:
    """The page for load balancers and supervisors."""

    def own() -> dict[str, object]:
        refused = node.counters.refusals.total()
        return {"ready": not node.stopping, "stopping": node.stopping, "refused": refused, "worker": worker}

    return gowsev.Health(context, node.channels, own=own)


def metrics_of(node: Node, context: gowsev.Context, worker: int, folder: Path | None) -> Metrics | None:
    """The page for Prometheus; `None` without the package that it needs."""
    try:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        from gowsev.prometheus import Metrics
    except ImportError:
        return None

    class Own:
        """What prometheus_client asks for the relay's own values."""

        def collect(self) -> Iterable[Any]:
            counters = node.counters
            for name, text in (
                ("publishes", "Publishes that were answered as stored."),
                ("deliveries", "Messages of channels written to subscribers."),
                ("drops", "Messages of channels that a subscriber could not take."),
            ):
                yield CounterMetricFamily(f"relay_{name}", text, value=getattr(counters, name))
            refusals = CounterMetricFamily("relay_refusals", "Commands and connections refused.", labels=["reason"])
            waiting = GaugeMetricFamily("relay_waiting", "What waits for clients' turns.", labels=["kind"])
            refused = dict.fromkeys(REASONS, 0) | counters.refusals
            for family, numbers in ((refusals, refused), (waiting, node.waiting())):
                for kind, number in sorted(numbers.items()):
                    family.add_metric([kind], number)
                yield family
            subscriptions = sum(map(len, node.channels_of.values()))
            yield GaugeMetricFamily("relay_subscriptions", "Subscriptions of all clients.", value=subscriptions)

    metrics = Metrics(context, node.channels, folder=folder, worker=str(worker))
    metrics.registry.register(Own())
    return metrics
