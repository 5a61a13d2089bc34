"""`Stats`: plain counters, all of them 0 to begin with."""

import dataclasses
import re
from pathlib import Path

import pytest

from gowsev.stats import Stats

ROOT = Path(__file__).resolve().parent.parent


def test_counters_begin_at_zero():
    assert [value for value in dataclasses.asdict(Stats()).values() if value] == []
    assert list(dataclasses.asdict(Stats())) == [
        "connections",
        "accepted",
        "added",
        "closed",
        "rejected",
        "messages_received",
        "messages_sent",
        "bytes_received",
        "bytes_sent",
        "refused_writes",
        "callback_errors",
        "queued_events",
        "outbox_bytes",
        "round_trips",
        "round_trip_seconds",
        "round_trips_within",
        "refusals",
        "closed_by_code",
    ]


def test_a_misspelt_counter_is_an_error():
    with pytest.raises(AttributeError):
        Stats().message_sent = 1


def test_a_snapshot_does_not_go_on_counting():
    counting = Stats(refusals={"http": 1}, round_trips_within={0.1: 1})
    snapshot = dataclasses.replace(counting)
    counting.refusals["http"] += 1
    counting.closed_by_code[1000] = 1
    counting.round_trips_within[0.1] += 1
    assert (snapshot.refusals, snapshot.closed_by_code) == ({"http": 1}, {})
    assert snapshot.round_trips_within == {0.1: 1}


def test_snapshots_compare_by_value():
    assert Stats(accepted=2) == Stats(accepted=2) != Stats(accepted=3)


def test_each_reason_of_a_refusal_is_listed():
    source = "".join(path.read_text() for path in (ROOT / "gowsev" / "opening").glob("*.py"))
    reasons = set(re.findall(r'(?:option=|reason=|\.refused\()"(\w+)"', source)) | {"handshake"}
    assert len(reasons) > 8
    stats = (ROOT / "gowsev" / "stats.py").read_text().split("refusals: ")[1].split("closed_by_code: ")[0]
    monitoring = (ROOT / "docs" / "monitoring.md").read_text().split("| `refusals`")[1].split("\n")[0]
    for text in (stats, monitoring):
        assert {reason for reason in reasons if f"`{reason}`" not in text} == set()
