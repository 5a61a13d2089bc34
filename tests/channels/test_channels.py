"""What a program sees of channels: the same in one process's memory and over Redis."""

from __future__ import annotations

import sys

import pytest
from conftest import Recorder, in_real_thread, wait_until

import gowsev
from gowsev.channels import (
    Channels,
    ChannelsAway,
    Limits,
    Publication,
    Subscription,
    TooManyChannels,
)


def test_what_is_published_reaches_subscribers_of_all_processes_in_one_order(nodes):
    one, two = nodes(), nodes()
    ann, bob, eve = one.join(), two.join(), two.join("other")
    published = [f"{who} {i}" for i in range(100) for who in ("one", "two")]
    for message in published:
        assert (one if message.startswith("one") else two).channels.Publish("news", message) is None
    wait_until(lambda: len(one.messages(ann)) == len(two.messages(bob)) == 200)
    assert one.messages(ann) == two.messages(bob)
    assert sorted(one.messages(ann)) == sorted(published)
    for who in ("one", "two"):
        assert [m for m in one.messages(ann) if m.startswith(who)] == [m for m in published if m.startswith(who)]
    assert not two.messages(eve)


@pytest.mark.parametrize("message", ["", "grüße\n\x00", b"", b"\x00\xff\r\n", "x" * 300_000, b"y" * 300_000])
def test_messages_arrive_as_they_were(nodes, message):
    node = nodes()
    id = node.join("zürich {1}")
    position = node.publish(message, "zürich {1}")
    node.wait_for(id, message)
    assert node.delivered[id] == [Publication("zürich {1}", message, position)]


def test_by_default_a_publication_is_sent_to_the_connections(nodes):
    from gowsev.channels import deliver

    node = nodes(deliver=deliver)
    node.join()
    node.publish("text")
    node.publish(b"binary")
    assert [node.client.receive(), node.client.receive()] == ["text", b"binary"]


def test_a_channel_of_any_bytes(nodes):
    node = nodes()
    name = b"\xff\x00}".decode("utf-8", "surrogateescape")
    id = node.join(name)
    node.publish("here", name)
    node.wait_for(id, "here")


def test_unsubscribed_at_once(nodes):
    node = nodes()
    ann, bob = node.join(), node.join()
    node.publish("one")
    node.wait_for(ann, "one")
    node.channels.Unsubscribe(ann, "news")
    node.channels.Unsubscribe(ann, "news")
    node.channels.Unsubscribe(999, "nowhere")
    node.publish("two")
    node.wait_for(bob, "one", "two")
    node.wait_for(ann, "one")
    node.channels.Unsubscribe(bob, "news")
    assert node.channels.Status().channels == 0


def test_a_connection_that_ends_is_unsubscribed(nodes):
    node = nodes()
    node.join("news")
    node.join("more", member="ann")
    assert node.channels.Status().channels == 2
    node.client.close()
    wait_until(lambda: node.channels.Status().channels == 1)
    assert wait_until(lambda: node.members("more") == {})


def test_whoever_unsubscribes_before_it_has_joined_gets_no_answer(nodes):
    node = nodes()
    id = node.connect()
    answers = []
    node.channels.Subscribe(id, "news", done=lambda context, answer: answers.append(answer))
    node.channels.Unsubscribe(id, "news")
    other = node.join()
    node.publish("x")
    node.wait_for(other, "x")
    assert not answers
    assert id not in node.delivered


# -- coming back -------------------------------------------------------------------------------------------------------


def test_who_comes_back_gets_what_it_missed(nodes):
    one, two = nodes(), nodes()
    start = one.publish("0")
    for i in range(1, 6):
        last = one.publish(str(i))
    id = two.connect()
    assert two.subscribe(id, after=start) == Subscription("news", last, True)
    assert two.messages(id) == ["1", "2", "3", "4", "5"]
    one.publish("6")
    two.wait_for(id, "1", "2", "3", "4", "5", "6")
    # And twice in a row, without a message between.
    for node in (one, two, one):
        id = node.connect()
        position = node.subscribe(id, after=last)
        assert position.recovered
        assert node.messages(id) == ["6"]
        again = node.connect()
        assert node.subscribe(again, after=position.position) == position
        assert node.messages(again) == []


def test_who_comes_back_to_a_channel_where_nothing_was_published(nodes):
    node = nodes()
    position = node.subscribe(node.connect(), "silent").position
    again = node.subscribe(node.connect(), "silent", after=position)
    assert again == Subscription("silent", position, True)
    node.publish("first", "silent")
    id = node.connect()
    assert node.subscribe(id, "silent", after=position).recovered
    assert node.messages(id) == ["first"]


@pytest.mark.parametrize("after", ["", "x", "a.b.c", "epoch.1.id", "e.99999999999999999999.i", "\ud800", "é.1.x"])
def test_a_position_that_means_nothing(nodes, after):
    node = nodes()
    node.publish("old")
    id = node.connect()
    subscription = node.subscribe(id, after=after)
    assert (subscription.recovered, subscription.error) == (False, None)
    node.publish("new")
    node.wait_for(id, "new")


def test_history_that_was_trimmed_is_not_recovered(nodes):
    node = nodes(limits=Limits(history_messages=3))
    first, second = node.publish("1"), node.publish("2")
    for message in "345":
        node.publish(message)
    id = node.connect()
    assert not node.subscribe(id, after=first).recovered
    assert node.messages(id) == ["3", "4", "5"]
    id = node.connect()
    assert node.subscribe(id, after=second).recovered
    assert node.messages(id) == ["3", "4", "5"]


def test_history_is_bounded_in_bytes(nodes):
    node = nodes(limits=Limits(history_bytes=1000))
    start = node.publish("0")
    for message in "abc":
        node.publish(message * 450)
    id = node.connect()
    assert not node.subscribe(id, after=start).recovered
    assert node.messages(id) == ["b" * 450, "c" * 450]
    node.publish("d" * 2000)  # longer than all that is kept
    id = node.connect()
    assert not node.subscribe(id, after=start).recovered
    assert node.messages(id) == ["d" * 2000]


def test_history_expires(nodes):
    node = nodes(limits=Limits(history_seconds=1))
    start = node.publish("0")
    node.publish("1")
    id = node.join("news", after=start)
    node.wait_for(id, "1")

    def expired():
        return not node.subscribe(node.connect(), after=start).recovered

    wait_until(expired)
    last = node.publish("2")
    node.wait_for(id, "1", "2")
    assert node.subscribe(node.connect(), after=last).recovered
    assert node.channels.Status().gaps == 0


def test_many_come_back_at_once(nodes):
    one, two = nodes(), nodes()
    start = one.publish("0")
    for i in range(20):
        one.publish(str(i))
    ids = [two.connect() for _ in range(50)]
    answers = []
    for id in ids:
        two.channels.Subscribe(id, "news", start, done=lambda context, answer: answers.append(answer))
    for i in range(20, 40):
        one.channels.Publish("news", str(i))
    wait_until(lambda: len(answers) == 50 and all(len(two.messages(id)) == 40 for id in ids))
    assert all(answer.recovered for answer in answers)
    assert all(two.messages(id) == [str(i) for i in range(40)] for id in ids)


def test_to_subscribe_again_changes_nothing(nodes):
    node = nodes()
    id = node.connect()
    answers = []
    for _ in range(2):
        node.channels.Subscribe(id, "news", done=lambda context, answer: answers.append(answer))
    wait_until(lambda: len(answers) == 2)
    assert answers[0] == answers[1]
    position = node.publish("x")
    node.wait_for(id, "x")
    node.channels.Subscribe(id, "news")
    assert node.subscribe(id) == Subscription("news", position, False)
    assert node.subscribe(id, after=position) == Subscription("news", position, True)
    assert node.subscribe(id, after=answers[0].position) == Subscription("news", position, False)
    node.wait_for(id, "x")


# -- who is there ------------------------------------------------------------------------------------------------------


def test_members(nodes):
    one, two = nodes(), nodes()
    ann = one.join(member="ann")
    one.join(member="ann")
    two.join(member="bob é")
    two.join()
    two.join("other", member="eve")
    wait_until(lambda: one.members() == two.members() == {"ann": 2, "bob é": 1})
    one.channels.Unsubscribe(ann, "news")
    wait_until(lambda: one.members() == two.members() == {"ann": 1, "bob é": 1})
    assert one.members("nobody") == {}


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_channels_of_a_connection_are_bounded(nodes):
    node = nodes(limits=Limits(channels=2))
    id = node.connect()
    for name in "ab":
        assert node.subscribe(id, name).error is None
    error = node.subscribe(id, "c").error
    assert isinstance(error, TooManyChannels)
    assert str(error) == "at most 2 channels a connection"
    assert node.channels.Status().refused == 1
    node.channels.Unsubscribe(id, "a")
    assert node.subscribe(id, "c").error is None


def test_an_id_that_is_none(nodes, caplog):
    node = nodes()
    assert isinstance(node.subscribe(12345).error, gowsev.IdNotFound)
    node.channels.Subscribe(12345, "news")
    wait_until(lambda: node.channels.Status().refused == 2)
    assert "connection 12345 has not joined channel 'news': " in caplog.text


def test_without_done(nodes):
    node = nodes()
    id = node.connect()
    node.channels.Subscribe(id, "news")
    node.subscribe(id, "other")
    wait_until(lambda: node.subscribe(id).error is None)
    assert node.channels.Publish("news", "x") is None
    node.wait_for(id, "x")


# -- other threads -----------------------------------------------------------------------------------------------------


def test_publish_from_another_thread(nodes):
    node = nodes()
    id = node.join()
    done = []

    def publish():
        return [node.channels.Publish("news", str(i), lambda context, *answer: done.append(answer)) for i in range(50)]

    assert in_real_thread(publish) == [None] * 50
    wait_until(lambda: len(done) == 50)
    assert [error for _, error in done] == [None] * 50
    node.wait_for(id, *map(str, range(50)))


def test_only_publish_may_be_called_from_another_thread(nodes):
    node = nodes()
    id = node.connect()

    def calls():
        for call in (
            lambda: node.channels.Subscribe(id, "news"),
            lambda: node.channels.Unsubscribe(id, "news"),
            lambda: node.channels.Members("news", print),
        ):
            with pytest.raises(RuntimeError, match="only Publish"):
                call()
        return True

    assert in_real_thread(calls)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_after_the_context_has_ended(nodes):
    node = nodes()
    id = node.join()
    node.context.Shutdown(0)
    wait_until(lambda: node.server.loop.ready())
    error = node.channels.Publish("news", "late")
    assert isinstance(error, ChannelsAway)
    assert error.certain
    assert isinstance(in_real_thread(node.channels.Publish, "news", "late"), ChannelsAway)
    node.channels.Subscribe(id, "news")
    node.channels.Members("news", print)
    status = node.channels.Status()
    assert not status.up
    assert status.reason == "the context has been shut down"
    assert status.in_flight == status.channels == 0


# -- refused at the call -----------------------------------------------------------------------------------------------


@pytest.fixture
def channels():
    return Channels(gowsev.MakeContext(Recorder()))


@pytest.mark.parametrize(
    ("channel", "error", "text"),
    [
        ("", ValueError, "channel must have 1 to 200 bytes in UTF-8, not 0: ''"),
        ("é" * 101, ValueError, "not 202"),
        (b"news", TypeError, "channel must be str, not b'news'"),
        (None, TypeError, "not None"),
        ("\ud800", ValueError, "channel must be text"),
    ],
)
def test_a_wrong_channel(channels, channel, error, text):
    for call in (
        lambda: channels.Publish(channel, ""),
        lambda: channels.Subscribe(1, channel),
        lambda: channels.Members(channel, print),
    ):
        with pytest.raises(error, match=text):
            call()


@pytest.mark.parametrize("message", [None, 1, ["x"]])
def test_a_wrong_message(channels, message):
    with pytest.raises(TypeError, match="message must be str or bytes, not"):
        channels.Publish("news", message)


def test_other_wrong_arguments(channels):
    with pytest.raises(UnicodeEncodeError):
        channels.Publish("news", "\ud800")
    with pytest.raises(TypeError, match="after must be a position"):
        channels.Subscribe(1, "news", 7)
    with pytest.raises(ValueError, match="member must have 1 to 200 bytes"):
        channels.Subscribe(1, "news", member="")
    for call in (
        lambda: channels.Publish("news", "x", 1),
        lambda: channels.Subscribe(1, "news", done=1),
        lambda: channels.Members("news", None),
    ):
        with pytest.raises(TypeError, match="done must be callable"):
            call()
    context = gowsev.MakeContext(Recorder())
    with pytest.raises(TypeError, match="deliver must be callable, not 1"):
        Channels(context, deliver=1)
    with pytest.raises(TypeError, match="limits must be"):
        Channels(context, limits=1)


def test_bytes_of_any_kind(channels):
    for message in (bytearray(b"x"), memoryview(b"x")):
        assert channels.Publish("news", message) is None


def test_in_a_forked_child_of_a_driven_loop_there_are_no_channels():
    context = gowsev.MakeContext(gowsev.Handler())
    context.SetTimeout(0)
    context.EventLoopIteration()
    channels = Channels(context)
    context.disown()  # as it is called in a child
    assert isinstance(channels.Publish("news", "x"), ChannelsAway)


def test_without_the_package_redis_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gowsev.channels.redis", None)  # which cannot be imported without it
    with pytest.raises(ModuleNotFoundError, match="the Python package redis, which is the extra 'redis'"):
        Channels(gowsev.MakeContext(Recorder()), "redis://localhost:6379/0")
