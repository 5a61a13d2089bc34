"""What a context has counted, as Prometheus reads it: of one process, and of several that share a folder."""

from __future__ import annotations

import json
import os
import time

import pytest
from conftest import Recorder, echo, wait_until
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

import gowsev
from gowsev.channels import Channels
from gowsev.channels.channels import Status
from gowsev.prometheus import Metrics
from gowsev.version import build
from gowsev.wire import frames


def samples(metrics):
    """The values, by name and labels."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}


def test_all_counters_of_a_context_and_its_channels_are_there(serve):
    server = serve(Recorder(echo))
    metrics = Metrics(server.context, Channels(server.context))
    client = server.client()
    client.send_binary(b"hello")
    assert client.read_frame()[1] == b"hello"
    going, http = server.client(), server.client(handshake=False)
    going.send_close(4000)
    http.send(b"nonsense\r\n")
    assert http.read_to_end().startswith(b"HTTP/1.1 400 ")
    wait_until(lambda: server.context.Stats().closed)
    values = samples(metrics)
    assert values["gowsev_refusals_total", ("reason", "http")] == 1
    assert values["gowsev_closed_by_code_total", ("code", "4000")] == 1
    assert values["gowsev_connections",] == values["gowsev_messages_received_total",] == 1
    assert values["gowsev_channels_up",] == 1
    assert values["process_resident_memory_bytes",] > 0
    (key,) = (key for key in values if key[0] == "gowsev_build_info")
    assert {("version", gowsev.__version__), ("build", build())} < set(key[1:])
    names = {key[0].removesuffix("_total") for key in values}
    trips = {"round_trips", "round_trip_seconds", "round_trips_within"}  # which make one histogram
    assert {f"gowsev_{name}" for name in set(gowsev.Stats.__dataclass_fields__) - trips} <= names
    assert {f"gowsev_round_trip_seconds_{part}" for part in ("count", "sum", "bucket")} <= names
    assert {f"gowsev_channels_{name}" for name in set(Status.__dataclass_fields__) - {"since", "reason"}} <= names
    wait_until(lambda: samples(metrics)["gowsev_loop_delay_seconds_count",] > 0)


def test_round_trips_are_a_histogram(serve):
    server = serve()
    metrics = Metrics(server.context)
    name = "gowsev_round_trip_seconds"

    def buckets():
        found = {dict(key[1:])["le"]: value for key, value in samples(metrics).items() if key[0] == f"{name}_bucket"}
        return {float(bound): value for bound, value in found.items()}

    assert set(buckets().values()) == {0}
    client = server.client()
    for _ in range(3):
        wait_until(lambda: server.context.Conns())
        server.context.Ping(1)
        client.send_frame(frames.PONG, client.read_frame()[1])
        wait_until(lambda: server.context.Conn(1).round_trip is not None)
    wait_until(lambda: server.context.Stats().round_trips == 3)
    stats = server.context.Stats()
    assert buckets() == stats.round_trips_within | {float("inf"): 3}
    values = samples(metrics)
    assert values[f"{name}_count",] == 3
    assert values[f"{name}_sum",] == stats.round_trip_seconds > 0
    # As wide as the loop's delay, which it is read beside.
    delays = {dict(key[1:])["le"] for key in values if key[0] == "gowsev_loop_delay_seconds_bucket"}
    assert delays < {dict(key[1:])["le"] for key in values if key[0] == f"{name}_bucket"}


def test_a_program_may_have_metrics_of_its_own(serve):
    registry = CollectorRegistry()
    mine = Counter("mine", "Of the program's own.", registry=registry)
    metrics = Metrics(serve().context, registry=registry)
    assert metrics.registry is registry
    mine.inc()
    values = samples(metrics)
    assert values["mine_total",] == 1
    assert not any(key[0].startswith(("process_", "gowsev_channels")) for key in values)
    with pytest.raises(ValueError, match="gowsev"):
        Metrics(serve().context, registry=registry)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_it_is_a_page(serve, method):
    metrics = Metrics(serve().context)
    answers = []
    body = metrics({"REQUEST_METHOD": method}, lambda status, headers: answers.append((status, dict(headers))))
    ((status, headers),) = answers
    assert status == "200 OK"
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert int(headers["Content-Length"]) > 1000
    assert (body == []) == (method == "HEAD")


def test_processes_with_a_common_folder_answer_for_each_other(serve, tmp_path):
    one, two = (Metrics(serve().context, folder=tmp_path, worker=name) for name in ("1", "2"))
    other = serve()
    unnamed = Metrics(other.context, folder=str(tmp_path))
    client = other.client()
    wait_until(lambda: other.context.Ping(1) is None)
    client.send_frame(frames.PONG, client.read_frame()[1])
    wait_until(lambda: samples(one).get(("gowsev_round_trip_seconds_count", ("worker", str(os.getpid())))) == 1)
    wait_until(lambda: samples(one).get(("gowsev_connections", ("worker", str(os.getpid())))) == 1)
    for metrics in (one, two, unnamed):
        values = samples(metrics)
        assert {key[1][1] for key in values if key[0] == "gowsev_connections"} == {"1", "2", str(os.getpid())}
        assert values["gowsev_connections", ("worker", "1")] == 0
        assert ("gowsev_loop_delay_seconds_bucket", ("le", "+Inf"), ("worker", "2")) in values
        trips = {key[1][1]: value for key, value in values.items() if key[0] == "gowsev_round_trip_seconds_count"}
        assert trips == {"1": 0, "2": 0, str(os.getpid()): 1}
    # One that has died, and one that goes just now.
    (tmp_path / "3.json").write_text((tmp_path / "2.json").read_text())
    os.utime(tmp_path / "3.json", (time.time() - 60, time.time() - 60))
    (tmp_path / "4.json").symlink_to(tmp_path / "gone")
    assert not any(("worker", name) in key for key in samples(one) for name in "34")


def test_a_folder_that_is_gone_is_said_once_and_left_at_that(serve, tmp_path, caplog):
    folder = tmp_path / "folder"
    server = serve()
    metrics = Metrics(server.context, folder=folder, worker="1")
    wait_until(lambda: samples(metrics)["gowsev_loop_delay_seconds_count", ("worker", "1")] >= 2)
    said = [record for record in caplog.records if "cannot leave the metrics" in record.getMessage()]
    assert len(said) == 1
    folder.mkdir()
    wait_until(lambda: (folder / "1.json").exists())
    assert json.loads((folder / "1.json").read_text())
