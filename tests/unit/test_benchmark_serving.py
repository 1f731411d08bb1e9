"""``benchmarks/serving.py`` without a server."""

import asyncio
import sys
from types import SimpleNamespace

import pytest

from benchmarks import serving


def streaming(*chunks):
    """A client to whom each chunk brings so many tokens."""

    async def stream():
        for ids in chunks:
            choice = SimpleNamespace(model_extra={"token_ids": ids})
            yield SimpleNamespace(choices=[choice])
        yield SimpleNamespace(choices=[])

    async def create(**body):
        assert body["extra_body"] == {"ignore_eos": True, "return_token_ids": True}
        return stream()

    return SimpleNamespace(completions=SimpleNamespace(create=create))


def test_a_chunk_may_have_several_tokens():
    answer = asyncio.run(serving.ask(streaming([1], [2, 3, 4], None, [5]), "m", 4, 9))
    assert answer.counts == [1, 3, 0, 1, 0]
    answer.times = [1.0, 2.0, 2.5, 3.0, 3.0]
    assert answer.between == 0.5
    assert serving.Answer([1.0], [4]).between is None
    with pytest.raises(SystemExit, match="gave no token ids"):
        asyncio.run(serving.ask(streaming(None), "m", 4, 9))


def test_medians_of_what_all_rounds_have():
    rounds = [{"a": 1.0, "b": 2.0}, {"a": 3.0}, {"a": 8.0}]
    assert serving.medians(rounds) == {"a": 3.0}


def test_a_users_flags_of_the_server_count(monkeypatch, tmp_path):
    class StartedError(Exception):
        pass

    def server(model, flags, built_in):
        raise StartedError(flags)

    monkeypatch.setattr(serving, "server", server)
    words = ["--model", "m", "--users", "1", "8", "--", "--max-batch-size", "2"]
    monkeypatch.setattr(sys, "argv", ["serving", *words])
    with pytest.raises(StartedError) as start:
        serving.main()
    (flags,) = start.value.args
    # click takes the last one.
    assert flags == [
        *("--max-length", "384", "--max-batch-size", "8"),
        *("--max-batch-size", "2"),
    ]
