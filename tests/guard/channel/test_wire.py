"""JSON lines over a socket: whole messages, whatever the pieces; never an exception for what a peer does."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from batchcal.guard.channel.wire import LINE_LIMIT, Channel, Message


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


Pair = tuple[Channel, socket.socket]


def test_a_message_arrives_as_it_was_sent(pair: Pair) -> None:
    channel, theirs = pair
    peer = Channel(theirs)
    message: Message = {"text": "zwei\nZeilen", "number": 1.5, "list": [1, None, {"deep": True}]}
    assert peer.send(message)
    assert channel.wait() == message


def test_message_fragments_are_joined_and_messages_are_split(pair: Pair) -> None:
    channel, theirs = pair
    theirs.sendall(b'{"a"')
    assert channel.read() == []
    theirs.sendall(b': 1}\n{"b": 2}\n{"c"')
    assert channel.read() == [{"a": 1}, {"b": 2}]
    theirs.sendall(b": 3}\n")
    assert channel.read() == [{"c": 3}]


def test_lines_that_are_not_messages_are_ignored(pair: Pair) -> None:
    channel, theirs = pair
    theirs.sendall(b'not json\n[1, 2]\n\n\xff\xfe\n{"a": 1}\n')
    assert channel.read() == [{"a": 1}]


def test_a_line_above_the_length_limit_closes_the_channel(pair: Pair) -> None:
    channel, theirs = pair
    theirs.setblocking(False)
    sent = 0
    while not channel.closed:
        sent += theirs.send(b"x" * 60_000)
        channel.read()
        assert sent <= 2 * LINE_LIMIT
    assert sent > LINE_LIMIT


def test_a_closed_peer_closes_the_channel(pair: Pair) -> None:
    channel, theirs = pair
    theirs.close()
    assert channel.wait() is None
    assert channel.closed
    assert not channel.send({"anybody": "there"})


def test_a_connection_reset_closes_the_channel(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    def reset(connection: socket.socket, size: int, count: int) -> None:
        raise ConnectionResetError

    channel, _ = pair
    monkeypatch.setattr(socket, "recv_fds", reset)
    assert channel.read() == []
    assert channel.closed


def test_reading_blocks_only_in_blocking_mode(pair: Pair) -> None:
    channel, theirs = pair
    channel.set_blocking(False, 0)
    assert channel.read() == []
    channel.set_blocking(True, 0.02)
    with pytest.raises(TimeoutError):
        channel.read()
    theirs.sendall(b'{"a": 1}\n')
    assert channel.read() == [{"a": 1}]
    assert not channel.closed


def test_file_descriptors_are_sent_with_their_message(pair: Pair) -> None:
    channel, theirs = pair
    first, second = os.pipe()
    try:
        assert Channel(theirs).send({"here": 2}, (first, second))
        assert channel.wait() == {"here": 2}
        taken = channel.take_descriptors(1) + channel.take_descriptors(5)
        assert len(taken) == 2
        assert all(os.fstat(ours).st_ino == os.fstat(sent).st_ino for ours, sent in zip(taken, (first, second), strict=True))
        for descriptor in taken:
            os.close(descriptor)
    finally:
        os.close(first)
        os.close(second)


def test_a_channel_has_a_file_descriptor(pair: Pair) -> None:
    assert pair[0].fileno() > 2


def test_messages_that_arrive_together_are_buffered(pair: Pair) -> None:
    channel, theirs = pair
    theirs.sendall(b'{"first": 1}\n{"second": 2}\n{"third": 3}\n')
    assert channel.wait() == {"first": 1}
    assert channel.pending
    assert channel.read() == [{"second": 2}, {"third": 3}]
    assert not channel.pending


def test_a_buffered_message_is_returned_after_the_peer_closes(pair: Pair) -> None:
    channel, theirs = pair
    theirs.sendall(b'{"first": 1}\n{"second": 2}\n')
    theirs.close()
    assert [channel.wait(), channel.wait(), channel.wait()] == [{"first": 1}, {"second": 2}, None]
