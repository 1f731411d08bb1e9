"""``benchmarks/serving_stream.py`` and its users, with a server without a model."""

import asyncio
import threading

import h11
import pytest

from benchmarks import serving_stream, serving_users
from benchmarks.serving_stream import Answer, Raw, ServingError
from tests.unit.fake_server import DONE, event, serving, taken_port


def answer_of(server):
    raw = asyncio.run(serving_stream.stream(server.completions, b"{}"))
    return serving_stream.read(raw)


def test_a_token_is_stamped_when_it_comes(monkeypatch):
    """Not when the answer is read: the second is sent after the first was noted."""
    noted = threading.Event()
    note = serving_stream.Notes.data_received

    def then_tell(self, data):
        note(self, data)
        if b"token_ids" in data:
            noted.set()

    monkeypatch.setattr(serving_stream.Notes, "data_received", then_tell)
    wait = [lambda: noted.wait(60)]
    with serving([1], *wait, [2, 3, 4], [], [5], DONE) as server:
        answer = answer_of(server)
        first_sent, second_sent, *_ = server.sent
    assert answer.counts == [1, 3, 1]
    assert answer.asked < first_sent < answer.times[0] < second_sent < answer.times[1]
    assert answer.times == sorted(answer.times)


def test_the_time_between_tokens_is_of_those_after_the_first_event():
    assert Answer(1.0, [2.0, 3.0, 4.0], [1, 3, 1]).between == 0.5
    assert Answer(1.0, [2.0, 3.0, 4.0], [1, 3, 1]).first == 1.0
    assert Answer(1.0, [2.0], [4]).between is None
    # Events that came in one piece.
    assert Answer(1.0, [2.0, 2.0], [1, 1]).between is None


def recorded(pieces):
    """An answer whose pieces came at 0, 1, 2, ..."""
    http = h11.Connection(h11.CLIENT)
    headers = [("Host", "here"), ("Connection", "close")]
    http.send(h11.Request(method="GET", target="/", headers=headers))
    http.send(h11.EndOfMessage())
    return Raw(http, -1.0, [(float(i), piece) for i, piece in enumerate(pieces)])


def test_pieces_may_begin_and_end_anywhere():
    body = event([1]) + b": a comment\n" + event([2, 3]) + DONE
    split = 30  # within the first event
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for part in (body[:split], body[split:]):
        whole += b"%x\r\n%b\r\n" % (len(part), part)
    whole += b"0\r\n\r\n"
    answer = serving_stream.read(recorded(whole[i : i + 1] for i in range(len(whole))))
    assert answer.counts == [1, 2]
    first, second = (int(when) for when in answer.times)
    # With the line's last byte, and not before.
    assert whole[:first].endswith(b"}]}")
    assert whole[:second].endswith(b"[2, 3]}]}")
    assert serving_stream.read(recorded([whole])).times == [0.0, 0.0]


@pytest.mark.parametrize(
    ("parts", "status", "said"),
    [
        ([b'{"message": "too long"}'], 400, "answered 400, not 200, .*too long"),
        (
            [[1], b'data: {"error": {"message": "out of memory"}}\n\n', DONE],
            200,
            "mory",
        ),
        ([[1], [2]], 200, r"ended without data: \[DONE\]"),
        ([b'data: {"choices": [{"text": "a"}]}\n\n', DONE], 200, "gave no token ids"),
        ([b'data: {"choices": []}\n\n', DONE], 200, "gave no token ids"),
    ],
)
def test_what_cannot_be_measured_is_said(parts, status, said):
    with serving(*parts, status=status) as server, pytest.raises(ServingError) as error:
        answer_of(server)
    error.match(said)


def test_an_answer_that_is_cut_off():
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3f\r\ndata: "
    for pieces in ([whole], []):
        with pytest.raises(ServingError, match="broke off an answer"):
            serving_stream.read(recorded(pieces))


def test_no_server():
    with (
        taken_port() as port,
        pytest.raises(ServingError, match="takes no connections any more"),
    ):
        asyncio.run(serving_stream.stream(f"http://127.0.0.1:{port}/v1", b"{}"))


def test_an_answer_without_end(monkeypatch):
    monkeypatch.setattr(serving_stream, "SECONDS", 0.1)
    ended = threading.Event()
    with serving([1], ended.wait) as server:
        with pytest.raises(
            ServingError, match=r"not ended after 0.1 s.*--answer-tokens"
        ):
            answer_of(server)
        ended.set()


def test_users_of_several_processes_ask_at_once():
    # None is answered before all have asked.
    together = threading.Barrier(3)
    request = {"model": "m", "max_tokens": 2}
    with (
        serving(lambda: together.wait(60), [1], [2], DONE) as server,
        serving_users.crowd(3, processes=2) as crowd,
    ):
        assert len(crowd.members) == 2
        answers = crowd.ask(server.completions, request, prompt=5)
        answers += crowd.ask(server.completions, request, prompt=5)
    assert [answer.counts for answer in answers] == [[1, 1]] * 6
    assert all(answer.asked < answer.times[0] for answer in answers)
    prompts = {tuple(body.pop("prompt")) for body in server.bodies}
    assert len(prompts) == 6
    assert {len(prompt) for prompt in prompts} == {5}
    assert server.bodies == [request] * 6
    assert all(member.poll() is not None for member in crowd.members)


def test_an_error_of_a_process_is_said():
    with serving(b"no", status=503) as server, serving_users.crowd(1) as crowd:
        with pytest.raises(ServingError, match="answered 503, not 200, and says: no"):
            crowd.ask(server.completions, {}, prompt=1)
        crowd.members[0].kill()
        crowd.members[0].wait()
        with pytest.raises(ServingError, match="process of the users ended"):
            serving_users.hear(crowd.members[0])
