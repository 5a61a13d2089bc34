"""`python -m gowsev`: what it tells, and what it measures."""

import platform
import re
import subprocess
import sys
from importlib.metadata import version

import gevent
import gevent.event
import pytest
from conftest import PATIENCE, Recorder, in_thread, wait_until

import gowsev
from gowsev import bench
from gowsev.__main__ import main, processor
from gowsev.version import COMPILED, build, is_compiled

ECHO = bench.Scenario("echo", 2, 1)


# -- which build it is -------------------------------------------------------------------------------------------


def test_the_build_is_that_of_the_modules():
    files = [sys.modules[module].__file__ for module in COMPILED]
    assert [not file.endswith(".py") for file in files] == [is_compiled(module) for module in COMPILED]
    assert build() == ("pure" if files[0].endswith(".py") else "compiled")


def test_a_build_is_mixed_where_only_some_modules_are_compiled(monkeypatch):
    # Of a module of the standard library the one who builds Python decides where it lies.
    monkeypatch.setattr("gowsev.version.COMPILED", ("greenlet._greenlet", "json"))
    assert build() == "mixed"


def test_no_module_is_compiled_that_is_not_there():
    assert not is_compiled("gowsev.nowhere")


def test_the_command_tells_what_runs_here(capsys):
    main([])
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"gowsev {gowsev.__version__}, {build()}"
    text = "\n".join(rest)
    assert f"gevent {version('gevent')}, greenlet {version('greenlet')}" in text
    assert f"websockets {version('websockets')}, " in text
    assert f"CPython {platform.python_version()}" in text
    assert ("wire.protocol" in text) == is_compiled("gowsev.wire.protocol")
    assert re.search(r"^Linux \S+ on .+", rest[-1])


def test_the_command_is_one_for_the_shell():
    done = subprocess.run(
        [sys.executable, "-m", "gowsev"], capture_output=True, text=True, timeout=PATIENCE * 4, check=True
    )
    assert done.stdout.startswith(f"gowsev {gowsev.__version__}, ")


def test_the_processor_is_named_as_far_as_the_system_tells(tmp_path):
    told = tmp_path / "cpuinfo"
    assert processor(told) == platform.machine()
    told.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert processor(told) == platform.machine()
    told.write_text("processor\t: 0\nmodel name\t: A Fast One\n\nprocessor\t: 1\nmodel name\t: A Fast One\n")
    assert processor(told) == "A Fast One"


@pytest.mark.parametrize("seconds", ["0", "-1", "601", "nan", "soon"])
def test_the_time_to_measure_is_bounded(seconds, capsys):
    with pytest.raises(SystemExit) as left:
        main(["--bench", seconds])
    assert left.value.code == 2
    assert "--bench" in capsys.readouterr().err


# -- what a message costs ----------------------------------------------------------------------------------------


def test_the_command_measures(capsys):
    in_thread(main, ["--bench", "0.5"])
    figures = re.findall(r"^(.+?) +([0-9.]+) us .+?, +([0-9,]+) messages/s$", capsys.readouterr().out, re.MULTILINE)
    assert [title.partition(",")[0] for title, _, _ in figures] == [
        "echo", "echo", "broadcast to 100", "broadcast to 100",
    ]  # fmt: skip
    assert all(float(cost) > 0 and int(rate.replace(",", "")) > 0 for _, cost, rate in figures)


def test_a_server_that_does_not_start_is_told(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(ConnectionError, match="has not started"):
        list(bench.measure(0.1))


def test_the_server_echoes_and_broadcasts_until_it_shall_end():
    told, over = gevent.event.AsyncResult(), gevent.event.Event()
    server = gevent.spawn(bench.serve, told.set, over.wait)
    url = f"ws://127.0.0.1:{told.get(timeout=PATIENCE)}"
    with gowsev.Dial(url) as one, gowsev.Dial(url) as other, gowsev.Dial(url) as asking:
        one.WriteMessage(gowsev.BinaryMessage, b"back")
        assert one.ReadMessage() == (gowsev.BinaryMessage, b"back")
        other.WriteMessage(gowsev.BinaryMessage, b"back too")
        assert other.ReadMessage() == (gowsev.BinaryMessage, b"back too")
        asking.WriteMessage(gowsev.TextMessage, "?")
        assert float(asking.ReadMessage()[1]) > 0
        one.WriteMessage(gowsev.BinaryMessage, b"to all of you")
        assert [conn.ReadMessage()[1] for conn in (one, other)] == [b"to all of you"] * 2
    over.set()
    server.join(timeout=PATIENCE)
    assert server.successful()


class Clock(Recorder):
    """Answers what the server is asked for its processor time, and nothing else."""

    def TextReceived(self, context, id, text):
        context.WriteText(id, "0.0")


def test_a_server_that_does_not_answer_is_given_up(serve):
    server = serve(Clock())
    with pytest.raises(TimeoutError, match=r"no message for 0\.2 s"):
        in_thread(bench.run, ECHO, server.port, 0.1, 0.2)
    wait_until(lambda: len(server.handler.closed) == 3)


def close(context, id, message):
    context.Close(id)


def test_a_server_that_breaks_off_is_told(serve):
    server = serve(Clock(close), close_timeout=0.2)  # by which it closes a connection that does not answer
    with pytest.raises(ConnectionError, match="closed a connection"):
        in_thread(bench.run, ECHO, server.port, 30)
