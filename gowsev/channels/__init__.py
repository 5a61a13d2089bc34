"""Publish and subscribe over any number of processes.

    from gowsev.channels import Channels

    channels = Channels(context)                                # this process alone
    channels = Channels(context, "redis://localhost:6379/0")    # all that name the same Redis

A handler subscribes its connections and publishes; whatever is published reaches every subscriber, in one order.
"""

from typing import TYPE_CHECKING, Any

from gowsev.channels.channels import Channels, Status, deliver
from gowsev.channels.errors import ChannelsAway, ChannelsError, Refused, TooManyChannels, TooMuchInFlight
from gowsev.channels.limits import Limits
from gowsev.channels.publication import Gap, Publication, Subscription

if TYPE_CHECKING:
    from gowsev.channels.remote import Remote

__all__ = [
    "Channels",
    "ChannelsAway",
    "ChannelsError",
    "Gap",
    "Limits",
    "Publication",
    "Refused",
    "Remote",
    "Status",
    "Subscription",
    "TooManyChannels",
    "TooMuchInFlight",
    "deliver",
]


def __getattr__(name: str) -> Any:
    # It needs the package `redis`, which a program without Redis need not have.
    if name == "Remote":
        from gowsev.channels.remote import Remote

        return Remote
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
