"""What is measured of channels: each scenario as the driver's command, who takes part, and which figures count."""

from dataclasses import dataclass

ALL = ("gowsev", "socketio", "python_socketio", "channels_pubsub", "channels_core")
GOWSEV = ("gowsev",)


@dataclass(frozen=True)
class ChannelScenario:
    title: str
    driver: str  # its arguments
    figures: tuple[str, ...]
    peers: tuple[str, ...] = ALL
    rounds: int | None = None  # at most


COSTS = ("publish_us", "redis_us")
FANOUT = "publish --subscribers 200 --depth 8"
PUBLISH = "publish --publishers 1 --depth 16"
#: Publishers of both, or all, processes; enough of them to keep one Redis busy.
RATE = "publish --channels 100 --connections 20 --publishers 4 --depth 16"

SCENARIOS = {
    "fanout": ChannelScenario("fan-out to 200, 8 in flight", f"{FANOUT} --connections 100", ("delivery_us",)),
    "fanout_1": ChannelScenario(
        "the same, one process",
        f"{FANOUT} --connections 200 --processes 1",
        ("delivery_us",),
        ("gowsev", "gowsev_memory"),
    ),
    "channels_10": ChannelScenario(
        "10 channels, 16 in flight", f"{PUBLISH} --channels 10 --connections 5", COSTS, GOWSEV
    ),
    "channels_1000": ChannelScenario("1,000 channels", f"{PUBLISH} --channels 1000", COSTS),
    "channels_10000": ChannelScenario("10,000 channels", f"{PUBLISH} --channels 10000", COSTS, rounds=2),
    "channels_50000": ChannelScenario("50,000 channels", f"{PUBLISH} --channels 50000", COSTS, GOWSEV, 2),
    "durable": ChannelScenario(
        "1,000 channels, Redis with `appendfsync always`", f"{PUBLISH} --channels 1000 --durable", COSTS, GOWSEV, 3
    ),
    **{
        f"rate_{processes}": ChannelScenario(
            f"publishes a second, {processes} {'processes' if processes > 1 else 'process'}, 64 in flight",
            f"{RATE} --processes {processes}",
            ("per_second", *COSTS),
            GOWSEV,
            3,
        )
        for processes in (1, 2, 4)
    },
    "kill": ChannelScenario(
        "Redis killed for 1 s", "kill --durable", ("lost", "acknowledged", "refused", "unanswered", "doubled"), rounds=2
    ),
    "back": ChannelScenario(
        "back after 2 s on the other process, twice", "back --durable --messages 20", ("first", "second"), rounds=1
    ),
    "order": ChannelScenario(
        "orders of 8 subscribers", "order --durable --messages 400", ("orders", "missing"), rounds=2
    ),
}
