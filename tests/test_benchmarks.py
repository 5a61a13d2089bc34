"""The comparison with the peers: medians, tables and documents, and a driver that notices whatever a server gets wrong.

Nothing here asserts how fast anything is.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import channel_servers
import compare
import driver
import launch
import medians
import picture
import pytest
import raw_client
import report
import run as command
import run_channels
import run_relay
import wire
from conftest import PATIENCE, Recorder, echo, in_thread, wait_until
from import_graph import circles, imports
from redis_server import needs_redis
from scenarios import GROWTH, SCENARIOS, Scenario

from gowsev.version import build

ROOT = Path(__file__).resolve().parent.parent


# -- the modules -------------------------------------------------------------------------------------------------------


def test_no_two_modules_import_each_other():
    sources = {path.stem: path.read_text("utf-8") for path in (ROOT / "benchmarks").rglob("*.py")}
    graph = {module: imports(source, for_types=True) & set(sources) for module, source in sources.items()}
    assert {"launch", "scenarios"} <= graph["compare"]
    assert "arguments" in graph["gowsev_server"], "seen in the folder of the servers too"
    assert circles(graph) == set()


# -- the driver's side of the wire -------------------------------------------------------------------------------------

MESSAGES = wire.messages(4, 30)


def stream_of(*pieces):
    """A server's bytes: an index stands for a message, bytes for themselves."""
    frames = [wire.frame(MESSAGES[piece], masked=False) if isinstance(piece, int) else piece for piece in pieces]
    return b"".join(frames)


PING = wire.frame(b"there?", wire.PING, masked=False)


@pytest.mark.parametrize("step", [1, 2, 3, 31, 32, 33, 1000])
def test_replies_are_counted_however_they_are_cut(step):
    pongs = []
    reader = wire.Replies(MESSAGES).reader(1, pongs.append, True)
    stream = stream_of(1, 2, PING, 3, 0, 1, PING, PING, 2, 3)
    taken = [reader.take(memoryview(stream)[i : i + step]) for i in range(0, len(stream), step)]
    assert sum(taken) == 7
    assert pongs == [b"there?"] * 3


@pytest.mark.parametrize("step", [1, 2, 3, 31, 1000])
@pytest.mark.parametrize("alone", [True, False])
def test_compressed_replies_are_counted_however_they_are_cut(step, alone):
    pongs = []
    reader = wire.CompressedReplies(MESSAGES).reader(0, pongs.append, alone)
    context = zlib.compressobj(wbits=-15)
    stream = PING
    for message in MESSAGES * 2:
        whole = context.compress(message) + context.flush(zlib.Z_SYNC_FLUSH)
        payload = wire.compress(message) if alone else whole[:-4]
        stream += wire.frame(payload, wire.BINARY | wire.COMPRESSED, masked=False)
    stream += stream_of(0)  # one that is not compressed is allowed
    taken = [reader.take(memoryview(stream)[i : i + step]) for i in range(0, len(stream), step)]
    assert sum(taken) == 9
    assert pongs == [b"there?"]


def test_ping_in_the_segment_of_the_handshake_is_answered():
    """A server that pings often may have sent one before the driver looks at its answer."""
    server, client = socket.socketpair()
    with server, client:
        for end in (server, client):
            end.settimeout(PATIENCE)
        head = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: %b\r\n\r\n" % wire.ACCEPT
        server.sendall(head + wire.frame(b"there?", wire.PING, masked=False))
        raw_client.Connection(client, wire.Replies(MESSAGES), 0, deflate=False)
        assert server.recv(100)[0] == wire.PONG


@pytest.mark.parametrize("replies", [wire.Replies, wire.CompressedReplies])
@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param((0, 2), id="one is lost"),
        pytest.param((1, 0), id="out of order"),
        pytest.param((0, 0), id="doubled"),
        pytest.param((stream_of(0)[:-1] + b"?",), id="changed"),
        pytest.param((wire.frame(MESSAGES[0] + b"?", masked=False),), id="too long"),
        pytest.param((wire.frame(MESSAGES[0], 0x81, masked=False),), id="text"),
        pytest.param((wire.frame(b"", wire.CLOSE, masked=False),), id="a close"),
    ],
)
def test_wrong_reply_is_an_error(replies, pieces):
    reader = replies(MESSAGES).reader(0, None, True)
    with pytest.raises(wire.WireError):
        reader.take(stream_of(*pieces))


@pytest.mark.parametrize(
    ("head", "deflate"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", False),
        (b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: wrong\r\n\r\n", False),
        (b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: %b\r\n\r\n" % wire.ACCEPT, True),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: %b\r\n"
            b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=9\r\n\r\n" % wire.ACCEPT,
            True,
        ),
    ],
)
def test_response_that_is_not_the_one_wanted_is_an_error(head, deflate):
    with pytest.raises(wire.WireError):
        wire.check_response(head, deflate)


# -- the driver against servers that err -------------------------------------------------------------------------------


def drive(server, *words, stall=PATIENCE, seconds=0.05):
    """Run the driver as the comparison does, in a process of its own, which no patching has reached.

    Args:
        server: of this process.
        words: the driver's arguments.
        stall: the seconds without progress after which it gives up.
        seconds: how long it measures.
    """
    program = f"import driver, sys; driver.STALL = {stall}; sys.exit(driver.main())"
    words = [*words, "--port", str(server.port), "--pid", str(os.getpid()), "--seconds", str(seconds)]
    command = [sys.executable, "-c", program, *words]
    done = in_thread(
        lambda: subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, timeout=PATIENCE * 2, check=False)
    )
    assert done.stderr == b""
    return json.loads(done.stdout)


def sometimes(fault):
    """A handler that echoes, but for every tenth message of a connection, with which it does as `fault` says."""
    seen = {}

    def answer(context, id, message):
        seen[id] = seen.get(id, 0) + 1
        if seen[id] % 10 == 0:
            fault(context, id, message)
        else:
            context.Write(id, message)

    return Recorder(answer)


def changed(context, id, message):
    context.Write(id, message[:-1] + b"?")


def cut(context, id, message):
    context.Write(id, message[:-1])


def doubled(context, id, message):
    context.Write(id, message)
    context.Write(id, message)


def as_text(context, id, message):
    context.WriteText(id, message.decode())


def lost(context, id, message):
    pass


def closed(context, id, message):
    context.Close(id)


FAULTS = [(changed, "wrong at"), (cut, "wrong at"), (doubled, "wrong at|too much"), (as_text, "wrong at")]
FAULTS += [(lost, "wrong at|lost"), (closed, "the server closed")]


@pytest.mark.parametrize(("fault", "said"), FAULTS)
@pytest.mark.parametrize("depth", ["1", "4"])
def test_driver_reports_what_a_server_gets_wrong(serve, fault, said, depth):
    server = serve(sometimes(fault))
    # The fault ends it: time enough for ten messages, however busy the machine is.
    figures = drive(server, "echo", "--connections", "3", "--depth", depth, stall=1.0, seconds=PATIENCE)
    assert re.search(f"^WireError: .*({said})", figures["error"])


def test_driver_reports_what_is_lost_at_a_fixed_rate(serve):
    figures = drive(serve(Recorder()), "echo", "--connections", "3", "--rate", "200", "--size", "100000", stall=0.5)
    assert figures["error"].startswith("WireError: lost: ")


def test_driver_reports_deliveries_that_are_lost(serve):
    subscribers = []

    def relay(context, id, message):
        context.Write(id, b"OK")
        if message.startswith(b"subscribe:"):
            subscribers.append(id)
        else:
            for subscriber in subscribers[1:]:
                context.Write(subscriber, message.removeprefix(b"publish:bench:"))

    figures = drive(serve(Recorder(relay)), "fanout", "--connections", "3", stall=1.0)
    assert figures["error"].startswith("WireError: lost: 1 replies")


def test_driver_sees_that_a_server_is_what_it_should_be(serve):
    figures = drive(serve(Recorder(echo)), "echo", "--connections", "3", "--depth", "2")
    assert figures["us"] > 0
    assert 0 < figures["p50_us"] <= figures["p99_us"]


# -- the driver against the server of the comparison -------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return launch.make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.mark.parametrize(
    ("figure", "scenario"),
    [
        ("us", Scenario("echo", "echo --connections 20")),
        ("us", Scenario("in flight", "echo --connections 5 --depth 16")),
        ("us", Scenario("long", "echo --connections 2 --size 300000")),
        ("p99_us", Scenario("paced", "echo --connections 5 --rate 200")),
        ("us", Scenario("TLS", "echo --connections 5", tls=True)),
        ("us", Scenario("compressed", "echo --connections 5 --size 500 --deflate", server=("--deflate",))),
        ("per_second", Scenario("fan-out", "fanout --connections 20 --depth 4")),
        ("per_second", Scenario("by Write", "fanout --connections 20 --depth 4", server=("--write-each",))),
        ("us", Scenario("compressed", "fanout --connections 5 --size 500 --deflate", server=("--deflate",))),
        ("us", Scenario("churn", "churn --connections 5")),
    ],
    ids=lambda value: value.driver if isinstance(value, Scenario) else "",
)
def test_driver_measures_gowsev(files, figure, scenario):
    figures = launch.measure(launch.PEERS["gowsev"], scenario, 0.1, files)
    assert figures.get(figure, 0) > 0, figures


def test_memory_is_measured_and_pings_are_answered(files):
    scenario = Scenario("memory", "memory --connections 100", server=("--ping", "0.2"), seconds=1.0)
    figures = launch.measure(launch.PEERS["gowsev"], scenario, 0.1, files)
    assert set(figures) == {"kb"}, figures


def test_a_server_has_the_installed_package_unless_a_tree_is_given(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    said = tmp_path / "said"
    program = (
        "import os, socket, sys, time; open(sys.argv[3], 'w').write(os.environ.get('PYTHONPATH', 'none')); "
        "held = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"
    )
    peer = launch.Peer("says where from", (sys.executable, "-c", program))
    for tree, expected in ((None, "none"), (tmp_path, str(tmp_path))):
        with launch.serving(peer, arguments=(str(said),), tree=tree):
            assert said.read_text() == expected


def test_server_that_does_not_start_is_unavailable():
    peer = launch.Peer("nobody", (sys.executable, "-c", "raise SystemExit('there is no such library')"))
    with pytest.raises(launch.Unavailable, match="there is no such library"):
        launch.prepare(peer)
    with pytest.raises(launch.Unavailable, match="there is no such-command here"):
        launch.run(["such-command"])


def test_preparation_that_does_not_end_leaves_the_peer_out(monkeypatch):
    monkeypatch.setattr(launch, "PREPARATION", 0.1)
    with pytest.raises(launch.Unavailable, match=r"sleep did not end within 0\.1 s"):
        launch.run(["sleep", "600"])


def of_this_mark(mark):
    """The processes that have this in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes())
        except OSError:
            pass  # it has just ended
    return [cmdline for cmdline in found if cmdline]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_when_it_is_ended(how, tmp_path):
    mark = f"GOWSEV_MARK={tmp_path}"
    program = (
        "import run, launch, scenarios, signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1));"
        "launch.measure(launch.PEERS['gowsev'], scenarios.Scenario('', 'echo', seconds=60.0), 0, (None, None, None))"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), "GOWSEV_MARK": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environ, stderr=subprocess.DEVNULL)
    try:
        # Itself, a server and a driver.
        wait_until(lambda: len(of_this_mark(mark.encode())) == 3)
        wait_until(lambda: any(b"driver.py" in cmdline for cmdline in of_this_mark(mark.encode())))
        process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE / 3)
        process.send_signal(how)  # if it came just before a system call, Python has not noticed it yet
        assert process.wait(PATIENCE) != 0
        wait_until(lambda: not of_this_mark(mark.encode()))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_start_is_not_lost(how):
    """Python lets nothing out of what it calls behind a fork."""
    program = (
        "import launch, os, signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1));"
        f"os.register_at_fork(after_in_parent=lambda: signal.raise_signal({how:d}));"
        "launch.start(['sleep', '60']).wait()"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == (1 if how == signal.SIGTERM else -how)
    assert "ignored" not in done.stderr


# -- arguments and order -----------------------------------------------------------------------------------------------


def test_arguments_have_defaults():
    arguments = command.parse([])
    assert (arguments.rounds, arguments.seconds, arguments.update, arguments.against) == (5, 1.0, False, None)
    assert command.parse(["--quick"]).rounds == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["--seconds", "0"], "--seconds must be above 0 and at most 60, not 0"),
        (["--seconds", "nan"], "not nan"),
        (["--scenario", "nosuch"], "nosuch"),
        (["--peer", "nosuch"], "nosuch"),
        (["--against", "v1", "--update"], "--against compares gowsev with itself"),
    ],
)
def test_bad_argument_is_named(capsys, words, said):
    with pytest.raises(SystemExit):
        command.parse(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--connections", "0"], "--connections must be at least 1, not 0"),
        (["--depth", "-1"], "--depth must be at least 1, not -1"),
        (["--size", "7"], "--size must be at least 8, not 7"),
        (["--rate", "0"], "--rate must be above 0"),
    ],
)
def test_bad_argument_of_the_driver_is_named(capsys, words, said):
    with pytest.raises(SystemExit):
        driver.parse(["echo", "--port", "1", "--pid", "1", *words])
    assert said in capsys.readouterr().err


def test_rounds_alternate_between_peers():
    assert command.plan(["echo"], ["gowsev", "picows"], 2) == [("echo", "gowsev"), ("echo", "picows")] * 2


def test_peers_are_left_out_where_they_cannot_join():
    joining = {name: {peer for _, peer in command.plan([name], launch.PEERS, 1)} for name in SCENARIOS}
    assert all("gowsev" in peers for peers in joining.values())
    assert "floor" in joining["fanout_1"]
    assert "floor" not in joining["churn"]
    assert "gorilla" not in joining["echo_tls"]
    assert joining["fanout_write_1"] == {"gowsev", "gowsev_pure"}
    assert joining["echo_deflate"] == {"gowsev", "gowsev_pure", "aiohttp", "websockets", "ws"}


def test_scenarios_that_take_long_have_fewer_rounds():
    assert len(command.plan(["memory_idle"], ["gowsev"], 5)) == SCENARIOS["memory_idle"].rounds


def test_scenarios_are_commands_of_the_driver():
    for scenario in SCENARIOS.values():
        arguments = driver.parse([*scenario.driver.split(), "--port", "1", "--pid", "1"])
        assert scenario.figure in {"memory": ("kb",), "churn": ("us",)}.get(arguments.kind, ("us", "p50_us", "p99_us"))


def test_the_pure_build_takes_part_beside_the_compiled_one_only():
    if build() == "compiled":
        launch.check_pure()
        return
    with pytest.raises(launch.Unavailable, match=f"the installed gowsev is {build()}, and that of this tree"):
        launch.check_pure()


# -- medians and tables ------------------------------------------------------------------------------------------------


def test_median_of_each_figure():
    samples = [{"us": 3.0, "busy": 0.5}, {"us": 1.0, "busy": 0.7}, {"us": 9.0, "busy": 0.6}]
    expected = {"us": 3.0, "busy": 0.6, "median": 3.0, "least": 1.0, "most": 9.0, "runs": 3}
    assert medians.summarize(samples, "us") == expected
    with pytest.raises(ValueError, match="no runs"):
        medians.summarize([], "us")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (0.5, "0.50"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (99.94, "99.9"),
        (99.96, "100"),
        (12345.6, "12,346"),
    ],
)
def test_figures_have_three_digits(value, written):
    assert medians.figure(value) == written


def results_of(figures):
    """Results with these medians."""
    made = {
        name: {peer: {"median": value, "p50_us": value, "p99_us": value * 2} for peer, value in peers.items()}
        for name, peers in figures.items()
    }
    return {"figures": made}


def test_table_has_gowsev_in_bold_and_dashes_where_nothing_was_measured():
    results = results_of({"echo": {"gowsev": 8.0, "picows": 6.0}, "echo_tls": {"gowsev": 12.0}})
    assert report.of_scenarios(results, {"echo": "echo", "echo_tls": "TLS", "churn": "churn"}).splitlines() == [
        "| | echo | TLS |",
        "|---|---:|---:|",
        "| **gowsev** | **8.00** | **12.0** |",
        "| picows on uvloop | 6.00 | – |",
    ]
    assert report.of_scenarios(results, {"churn": "churn"}) == ""


def test_growth_is_a_ratio_in_proportion_to_the_work():
    results = results_of({"echo_16m": {"gowsev": 3200.0}, "echo_1m": {"gowsev": 100.0}, "echo": {"gowsev": 1.0}})
    assert report.of_growth(results).splitlines()[2:] == ["| **gowsev** | **2.00** |"]
    assert {name for large, small, *_ in GROWTH for name in (large, small)} <= set(SCENARIOS)


def test_latency_table_has_both_percentiles():
    table = report.of_latency(results_of({"latency": {"gowsev": 30.0}}))
    assert table.splitlines()[0] == "| | lone message, p50 | lone message, p99 |"
    assert table.splitlines()[2] == "| **gowsev** | **30.0** | **60.0** |"


def test_replacing_between_markers():
    text = "before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n"
    once = report.replace(text, "x", "new \\1")
    assert once == "before\n<!-- x: begin -->\nnew \\1\n<!-- x: end -->\nafter\n"
    assert report.replace(once, "x", "new \\1") == once


@pytest.mark.parametrize("text", ["", "<!-- x: end --><!-- x: begin -->", "<!-- x: begin --><!-- x: end -->" * 2])
def test_missing_or_doubled_markers_are_an_error(text):
    with pytest.raises(ValueError, match="must stand in the document once"):
        report.replace(text, "x", "new")


@pytest.mark.parametrize("name", report.DOCUMENTS)
def test_figures_of_the_documents_are_those_measured(name):
    results = json.loads((ROOT / "docs" / "performance.json").read_text("utf-8"))
    text = (ROOT / name).read_text("utf-8")
    assert report.replace(text, "benchmarks", report.DOCUMENTS[name](results)) == text


def test_machine_is_described():
    assert f"{os.cpu_count()} cores" in report.machine()
    assert any(version.startswith("gowsev ") for version in report.versions(()))


def test_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    results = results_of({"echo": {"gowsev": 1.0, "picows": 100.0}, "churn": {"gowsev": 3.0}})
    picture.draw({**results, "date": "2026-01-01", "machine": "one"}, tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text("utf-8")


# -- against another commit --------------------------------------------------------------------------------------------


def test_ratio_is_that_of_the_medians():
    pairs = [({"us": 1.0}, {"us": 2.0}), ({"us": 3.0}, {"us": 2.0}), ({"us": 2.0}, {"us": 4.0})]
    assert compare.ratios(pairs, "us") == (1.0, 0.5, 1.5)


def test_servers_import_the_tree_that_is_measured(tmp_path):
    compare.check_tree(ROOT)
    with pytest.raises(launch.Unavailable, match="gowsev would come from"):
        compare.check_tree(tmp_path)


@pytest.mark.parametrize("name", ["echo", "fanout_write_8"])
def test_other_tree_gives_the_package_and_not_the_server(files, tmp_path, name):
    # It has neither benchmarks nor scenarios, as a commit from before them.
    (tmp_path / "gowsev.py").write_text("raise SystemExit('the gowsev of that tree')")
    with pytest.raises(launch.Unavailable, match="the gowsev of that tree"):
        launch.measure(launch.PEERS["gowsev"], SCENARIOS[name], 0.1, files, tmp_path)


def test_commit_that_does_not_exist_is_named(capsys):
    arguments = argparse.Namespace(against="no-such-commit", scenario=None, rounds=1, seconds=0.1)
    assert compare.against(arguments)
    assert "cannot compare: " in capsys.readouterr().out


# -- channels beside their peers ---------------------------------------------------------------------------------------

SMALL = "publish --channels 20 --connections 4 --subscribers 3 --publishers 2 --depth 4"


def drive_channels(server, words, *more):
    """Run the driver of channels with small counts; return its figures."""
    command = [*words.split(), "--peer", server, "--seconds", "0.1", *more]
    return in_thread(lambda: launch.figures_of("channel_driver", command, PATIENCE * 3))


def check_costs(figures):
    assert figures.get("delivery_us", 0) > 0, figures
    assert figures["per_second"] > 0
    assert figures["lost"] == 0


@needs_redis
def test_channels_over_redis_are_measured():
    figures = drive_channels("gowsev", SMALL, "--processes", "2")
    check_costs(figures)
    assert figures["redis_us"] > 0
    assert figures["both_us"] == pytest.approx(figures["publish_us"] + figures["redis_us"])
    assert figures["disorder"] == 0


@needs_redis
def test_what_is_lost_when_redis_is_killed_is_counted():
    kill = drive_channels("gowsev", "kill --durable --messages 100")
    assert kill["acknowledged"] + kill["refused"] == 100, kill
    assert kill["acknowledged"] > 0
    assert (kill["lost"], kill["unanswered"], kill["doubled"]) == (0, 0, 0)


@needs_redis
def test_what_a_client_that_comes_back_gets_is_counted():
    assert drive_channels("gowsev", "back --messages 5 --away 0.1") == {"first": 1.0, "second": 1.0, "doubled": 0}


@needs_redis
def test_orders_are_counted():
    assert drive_channels("gowsev", "order --messages 100") == {"orders": 1, "missing": 0, "doubled": 0}


@pytest.mark.parametrize(
    ("server", "package"),
    [
        ("socketio", None),
        ("python_socketio", "socketio"),
        ("channels_pubsub", "channels_redis"),
        ("channels_core", "channels_redis"),
    ],
)
@needs_redis
def test_peers_of_channels_are_measured(server, package):
    if package is not None:
        pytest.importorskip(package)
    elif not (channel_servers.PACKAGES / "node_modules" / "socket.io").is_dir():
        pytest.skip("needs socket.io, which the comparison installs")
    check_costs(drive_channels(server, SMALL))


#: A server that acknowledges all, and swaps what the first subscriber gets, and loses some of it.
ERRING = """
import json, sys, gowsev

class Erring(gowsev.Handler):
    subscribers, held, number = [], [], 0

    def TextReceived(self, context, id, text):
        words = json.loads(text)
        if "subscribe" in words:
            self.subscribers.append(id)
            context.WriteText(id, json.dumps({"subscribed": words["subscribe"]}))
            return
        context.WriteText(id, json.dumps({"published": words["number"]}))
        for subscriber in self.subscribers[1:]:
            context.WriteText(subscriber, json.dumps({"text": words["text"]}))
        self.number += 1
        if self.number % 10:
            self.held.append(words["text"])
        while len(self.held) > 2:
            context.WriteText(self.subscribers[0], json.dumps({"text": self.held.pop()}))

context = gowsev.MakeContext(Erring())
context.ListenAndServe(f"127.0.0.1:{sys.argv[1]}")
context.EventLoop()
"""


def test_driver_notices_what_is_lost_and_out_of_order():
    program = (
        "import channel_driver, channel_servers, sys;"
        f"command = (sys.executable, '-c', {ERRING!r});"
        "peer = channel_servers.ChannelPeer('erring', command, redis=False);"
        "channel_servers.CHANNEL_PEERS['erring'] = peer;"
        "sys.exit(channel_driver.main())"
    )
    words = [sys.executable, "-c", program, "order", "--peer", "erring", "--processes", "1", "--messages", "100"]
    done = in_thread(
        lambda: subprocess.run(words, cwd=ROOT / "benchmarks", capture_output=True, timeout=PATIENCE * 2, check=False)
    )
    assert done.stderr == b""
    # Every tenth of 100 is lost to one of four, and two are held back at the end.
    assert json.loads(done.stdout) == {"orders": 2, "missing": 12, "doubled": 0}


def test_runs_of_channels_alternate_and_are_fewer_where_they_take_long():
    runs = run_channels.plan(["fanout", "channels_10"], ["gowsev", "socketio", "channels_core"], 2)
    assert runs == [
        *(("fanout", server) for server in ("gowsev", "socketio", "channels_core", "gowsev", "socketio")),
        *[("channels_10", "gowsev")] * 2,
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["--seconds", "61"], "--seconds must be above 0 and at most 60, not 61"),
        (["--server", "nosuch"], "nosuch"),
        (["--scenario", "echo"], "echo"),
    ],
)
def test_bad_argument_of_the_comparison_of_channels_is_named(capsys, words, said):
    with pytest.raises(SystemExit):
        command.main(["--channels", *words])
    assert said in capsys.readouterr().err


def test_comparison_of_channels_prints_a_table_and_writes_json(tmp_path, capsys):
    words = ["--scenario", "fanout_1", "--server", "gowsev_memory", "--quick", "--json", str(tmp_path / "all.json")]
    assert command.main(["--channels", *words]) is False
    written = json.loads((tmp_path / "all.json").read_text("utf-8"))
    found = written["figures"]["fanout_1"]["gowsev_memory"]
    assert found["runs"] == 1
    assert f"| gowsev in memory | {medians.figure(found['delivery_us'])} |" in capsys.readouterr().out


def test_figures_of_channels_are_put_into_the_document(tmp_path):
    kill = {"lost": 0, "acknowledged": 1300, "least": 0, "most": 1}
    results = {
        **report.make_results(command.parse([]), ["gowsev 1"]),
        "figures": {
            "kill": {"socketio": kill},
            "back": {"socketio": {"first": 1.0, "second": 0.25}, "channels_core": {"first": 0.0, "second": 0.0}},
            "rate_4": {"gowsev": {"per_second": 1234.5}},
        },
    }
    (tmp_path / "one.json").write_text(json.dumps({**results, "figures": {}}), "utf-8")
    (tmp_path / "two.json").write_text(json.dumps(results), "utf-8")
    lines = run_channels.summary(run_channels.read([tmp_path / "two.json", tmp_path / "one.json"])).splitlines()
    assert "| socket.io (node), streams adapter, recovery | – | – | – | 0 to 1 of 1,300 | all; 25% | – |" in lines
    assert "| Django Channels, channels_redis.core | – | – | – | – | nothing; nothing | – |" in lines
    assert "| publishes a second, 4 processes, all on one core with Redis | 1,234 |" in lines
    text = (ROOT / "docs" / "scaling-out.md").read_text("utf-8")
    assert "| 1,234 |" in report.replace(text, "channels", "\n".join(lines))


# -- the relay ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
@needs_redis
def test_the_relay_is_loaded_in_memory_and_in_several_processes(capsys):
    words = ["--processes", "1", "2", "--subscribers", "20", "--deliveries", "5000"]
    assert command.main(["--relay", *words]) == 0
    heads, _, *rows = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    assert [row[:4] for row in rows] == [["20", "1", "no", "250"], ["20", "1", "yes", "250"], ["20", "2", "yes", "250"]]
    assert all(len(row) == len(heads) for row in rows)
    assert all(float(row[heads.index("CPU of the relays a delivery (µs)")]) > 0 for row in rows)


def test_a_run_of_the_relay_that_comes_to_nothing_is_said_in_the_table(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")  # so that there is no Redis
    assert run_relay.main(["--processes", "2", "--subscribers", "20"]) == 1
    assert "| 20 | 2 | yes | there is no redis-server here |" in capsys.readouterr().out
