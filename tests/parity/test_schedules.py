"""A request's greedy answer does not depend on what it is served with.

MAX's own pipeline and scheduler, in this process, on schedules drawn at random:
when each request comes, how many run together, in what chunks prompts are read,
whether prefixes are reused, how many tokens are drafted for it, and how much room
the KV cache has, down to so little that requests are preempted. Each must answer
as it did alone and without drafts, to the last bit of its log-probabilities.
"""

import dataclasses
import os
import queue
from collections import Counter
from dataclasses import dataclass, field
from unittest.mock import Mock

import numpy as np
import pytest
from max.nn.kv_cache import MultiKVCacheParams
from max.pipelines import PIPELINE_REGISTRY
from max.pipelines.context import SamplingParams, TextContext, TokenBuffer
from max.pipelines.kv_cache import kv_cache_memory_size, load_kv_manager
from max.pipelines.modeling.types import RequestID
from max.serve.scheduler.config import TokenGenerationSchedulerConfig
from max.serve.scheduler.text_generation_scheduler import TokenGenerationScheduler

from max_mistral.kv_room import for_planning, with_room
from max_mistral.lookup import pipeline as lookup
from max_mistral.lookup.drafts import Draft
from max_mistral.lookup.follower import Follower
from max_mistral.lookup.odds import MOST
from tests.reference import CASES
from workbench.checkpoints import CONFIGS
from workbench.runner import make_pipeline_config

# Of each model; more as a check of one's own.
SCHEDULES = int(os.environ.get("MAX_MISTRAL_SCHEDULES", "6"))
MOST_REQUESTS = 8
LARGEST_CHUNK = 8192
# For one request: any more are preempted.
LITTLE_ROOM = 1
# Tokens in a page of the KV cache: MAX has no smaller ones.
PAGE = 128
VOCABULARY = 320
# More than any schedule takes.
MOST_STEPS = 2000


GREEDY = (("top_k", 1),)


@dataclass(frozen=True)
class Request:
    """A prompt, and how many tokens it is answered with."""

    prompt: tuple[int, ...]
    answer: int
    sampling: tuple[tuple[str, float], ...] = GREEDY
    """Of ``SamplingParams``."""


@dataclass(frozen=True)
class Arrival:
    """When a request comes, and when its client leaves: steps of the scheduler."""

    request: Request
    step: int
    leaves: int | None = None


@dataclass(frozen=True)
class Schedule:
    """Requests, and what they are served with."""

    arrivals: tuple[Arrival, ...]
    together: int = 1
    """Most requests in a step."""
    chunk: int = LARGEST_CHUNK
    """Most tokens of prompts in a step."""
    mixed: bool = False
    """Whether a step may have both prompts and answers."""
    prefixes: bool = False
    """Whether prefixes are reused."""
    room: float = MOST_REQUESTS
    """How many requests of the greatest length the KV cache holds."""
    drafts: int = 0
    """Most tokens drafted for a request in a step."""


@dataclass
class Answer:
    """Tokens, and the log-probabilities of the likeliest ones at each."""

    tokens: list[int] = field(default_factory=list)
    scores: list[dict[int, float]] = field(default_factory=list)


class Server:
    """A pipeline, and a new KV cache and scheduler for each schedule.

    Attributes:
        happened: How often requests were preempted, prefixes reused and evicted,
            pages given back that a window left behind, and drafts right and wrong.
    """

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.longest = pipeline._pipeline_model.max_seq_len
        self.happened = Counter()
        commit = pipeline._commit

        def counted(batch, drafts, *args):
            found = commit(batch, drafts, *args)
            counts = pipeline.batch_spec_decode_metrics()
            self.happened["right"] += counts.draft_tokens_accepted
            wrong = counts.draft_tokens_generated - counts.draft_tokens_accepted
            self.happened["wrong"] += wrong
            return found

        pipeline._commit = counted

    def kv_manager(self, schedule):
        params = with_prefixes(
            self.pipeline._pipeline_model.kv_params, schedule.prefixes
        )
        planned = for_planning(params, LARGEST_CHUNK)
        one = kv_cache_memory_size(planned, 1 << 30, 1, self.longest, False, "")
        memory = int(schedule.room * one)
        return load_kv_manager(
            with_room(params, memory, self.longest, LARGEST_CHUNK),
            max_batch_size=MOST_REQUESTS,
            max_seq_len=self.longest,
            session=self.pipeline.session,
            available_cache_memory=memory,
            is_di_enabled=False,
            model_name="",
            max_num_input_tokens=LARGEST_CHUNK,
        )

    def run(self, schedule):
        """Serves a schedule; returns the answers in the order of its arrivals."""
        manager = self.pipeline._kv_manager = self.kv_manager(schedule)
        requests, responses, cancels = (queue.SimpleQueue() for _ in range(3))
        scheduler = TokenGenerationScheduler(
            TokenGenerationSchedulerConfig(
                max_batch_size=schedule.together,
                target_tokens_per_batch_ce=max(schedule.chunk, schedule.together),
                max_seq_len=self.longest,
                enable_in_flight_batching=schedule.mixed,
            ),
            self.pipeline,
            request_queue=requests,
            response_queue=responses,
            cancel_queue=cancels,
            kv_cache=manager,
        )
        # It logs, and takes the KV cache's counts away.
        scheduler.scheduler_logger = Mock()
        contexts = [self.context(arrival.request) for arrival in schedule.arrivals]
        answers = {context.request_id: Answer() for context in contexts}
        waiting = set(answers)
        cached = set()
        for step in range(MOST_STEPS):
            for arrival, context in zip(schedule.arrivals, contexts, strict=True):
                if arrival.step == step:
                    requests.put(context)
                if arrival.leaves == step and context.request_id in waiting:
                    cancels.put([context.request_id])
                    waiting.remove(context.request_id)
            scheduler.run_iteration()
            while not responses.empty():
                for request_id, response in responses.get().items():
                    if response.result is not None:
                        add(answers[request_id], response.result)
                    if response.is_done:
                        waiting.discard(request_id)
            cached |= self.watch(manager, contexts)
            if not waiting and step >= max(a.step for a in schedule.arrivals):
                break
        assert not waiting, f"{len(waiting)} requests were not answered"
        self.happened["preempted"] += scheduler.batch_constructor.total_preemption_count
        self.happened["reused"] += manager.metrics.cache_tokens
        self.happened["evicted"] += len(cached - self.cached(manager))
        return list(answers.values())

    def context(self, request):
        return TextContext(
            request_id=RequestID(),
            max_length=len(request.prompt) + request.answer,
            tokens=TokenBuffer(np.array(request.prompt, np.int64)),
            sampling_params=SamplingParams(**dict(request.sampling), ignore_eos=True),
            log_probabilities=3,
        )

    def cached(self, manager):
        return {
            (leaf, key)
            for pool in next(iter(manager.groups.values())).pools
            for leaf, blocks in pool.prefix_caches.items()
            for key in blocks
        }

    def watch(self, manager, contexts):
        for context in contexts:
            if manager.contains(context):
                for pages in manager.get_req_blocks_per_leaf(context).values():
                    self.happened["left behind"] += pages.count(0)
        return self.cached(manager)


class Drafts:
    """In place of what lookup finds and decides: of each request's own answer, as
    many of its next tokens as a schedule has, here and there with a wrong one."""

    def __init__(self, monkeypatch):
        self.rng = np.random.default_rng(11)
        self.texts, self.most = [], 0
        monkeypatch.setattr(Follower, "propose", lambda _, *text: self.propose(*text))
        monkeypatch.setattr(lookup, "how_many", self.how_many)

    def propose(self, text, room):
        size = min(room, int(self.rng.integers(self.most + 1)))
        for known in self.texts:
            if size > 0 and np.array_equal(known[: len(text)], text):
                tokens = known[len(text) : len(text) + size].copy()
                wrong = self.rng.random(len(tokens)) < 0.1
                tokens[wrong] = self.rng.integers(3, VOCABULARY, wrong.sum())
                return Draft(tokens.tolist(), 2)
        return Draft([], 2)

    def how_many(self, candidates, cost):
        return [candidate.tokens for candidate in candidates]


def with_prefixes(params, on):
    """Returns the parameters of KV caches, with prefixes reused or not."""
    changed = {"enable_prefix_caching": on}
    if isinstance(params, MultiKVCacheParams):
        changed["children"] = {
            name: with_prefixes(child, on) for name, child in params.children.items()
        }
    return dataclasses.replace(params, **changed)


def add(answer, output):
    answer.tokens += output.tokens
    for scores in output.log_probabilities or []:
        answer.scores += scores.top_log_probabilities


def draw_requests(rng, longest):
    """Prompts that fill a page of the KV cache, or nearly; some begin alike."""
    trunks = rng.integers(3, VOCABULARY, (2, longest))
    requests = []
    for length in (1, 100, 110, 120, PAGE - 1, PAGE, PAGE + 1, 200, 300, 550):
        answer = int(rng.choice([1, 30, 35, 40]))
        if length + answer <= longest:
            prompt = trunks[rng.integers(2)].copy()
            own = rng.choice([0, PAGE, length, length])
            prompt[own:] = rng.integers(3, VOCABULARY, longest - own)
            prompt = tuple(map(int, prompt[:length]))
            requests.append(Request(prompt, answer, draw_sampling(rng)))
    return requests


def draw_sampling(rng):
    """Greedy, or by chance: of all tokens or of the likeliest ones."""
    if rng.random() < 0.5:
        return GREEDY
    chance = {"temperature": 0.8, "seed": int(rng.integers(2**32))}
    chance |= {"top_k": int(rng.choice([-1, 40])), "top_p": float(rng.choice([1, 0.9]))}
    return tuple(chance.items())


def draw_schedule(rng, requests):
    arrivals = []
    for i in rng.integers(len(requests), size=rng.integers(4, MOST_REQUESTS + 1)):
        step = int(rng.choice([0, 0, 0, rng.integers(40)]))
        leaves = step + int(rng.integers(1, 30)) if rng.random() < 0.1 else None
        arrivals.append(Arrival(requests[i], step, leaves))
    return Schedule(
        tuple(arrivals),
        together=int(rng.integers(1, MOST_REQUESTS + 1)),
        chunk=int(rng.choice([7, 50, PAGE, 300, LARGEST_CHUNK])),
        mixed=bool(rng.random() < 0.5),
        prefixes=bool(rng.random() < 0.7),
        room=float(rng.choice([LITTLE_ROOM, 1.5, 2, MOST_REQUESTS])),
        drafts=int(rng.choice([0, 3, MOST])),
    )


def crowd(requests, prefixes):
    """Answers that all need a second page, where there is not one for each."""
    growing = [r for r in requests if len(r.prompt) < PAGE < len(r.prompt) + r.answer]
    arrivals = [Arrival(growing[i % len(growing)], 0) for i in range(MOST_REQUESTS)]
    together = {"together": MOST_REQUESTS, "room": LITTLE_ROOM, "drafts": 3}
    return Schedule(tuple(arrivals), prefixes=prefixes, **together)


def again(requests):
    """Long prompts that come twice, and have more pages than there are."""
    long = [request for request in requests if len(request.prompt) > PAGE]
    arrivals = [Arrival(request, 0) for request in [*long, *long]]
    return Schedule(tuple(arrivals), prefixes=True, room=2)


# Full attention; and windows on three of four layers, whose pages are given back.
# The first graph is that of other tests: MAX compiles each once.
@pytest.mark.parametrize(
    ("name", "echo", "dtype"),
    [("mha_tied", False, "float32"), ("ministral", True, "float8_e4m3fn")],
)
def test_a_request_is_answered_as_alone(checkpoints, monkeypatch, name, echo, dtype):
    drafts = Drafts(monkeypatch)
    config = make_pipeline_config(
        checkpoints[name],
        max_length=CASES[name].max_length,
        max_batch_size=MOST_REQUESTS,
        enable_echo=echo,
        kv_cache_format=dtype,
    )
    server = Server(PIPELINE_REGISTRY.retrieve_factory(config).factory())
    rng = np.random.default_rng(5)
    requests = draw_requests(rng, server.longest)
    alone = {}
    for request in requests:
        (answer,) = server.run(Schedule((Arrival(request, 0),)))
        assert len(answer.tokens) == len(answer.scores) == request.answer
        alone[request] = answer
        drafts.texts.append(np.array([*request.prompt, *answer.tokens], np.int64))
    assert not server.happened["preempted"] + server.happened["reused"]

    schedules = [crowd(requests, prefixes) for prefixes in (False, True)]
    schedules.append(again(requests))
    schedules += [draw_schedule(rng, requests) for _ in range(SCHEDULES)]
    for number, schedule in enumerate(schedules):
        drafts.most = schedule.drafts
        answers = server.run(schedule)
        for arrival, answer in zip(schedule.arrivals, answers, strict=True):
            want = alone[arrival.request]
            # A client that left has the beginning.
            end = None if arrival.leaves is None else len(answer.tokens)
            assert answer.tokens == want.tokens[:end], (number, arrival, schedule)
            assert answer.scores == want.scores[:end], (number, arrival, schedule)

    windows = bool(CONFIGS[name]["sliding_window"])
    happened = ["right", "wrong"]
    happened += ["preempted", "reused", "left behind" if windows else "evicted"]
    assert all(server.happened[what] for what in happened), server.happened
