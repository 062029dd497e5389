"""Settings of vLLM V1 that the committed recordings do not vary: priority, long-prefill threshold, chunking off.

The cases by hand say what a rule is; the twin, a plain re-implementation of the recording's rules on lists, says that
they hold together.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SETTINGS = {
    "block_size": 4,
    "num_blocks": 1001,
    "max_num_batched_tokens": 32,
    "max_num_seqs": 8,
    "step_time_ns": {"base": 1000, "per_scheduled_token": 10, "per_context_token": 1},
}


def row(number: int, prompt: int, output: int, priority: int = 0, arrival: int = 0) -> dict[str, Any]:
    made = {"id": number, "arrival_us": arrival, "prompt_tokens": prompt, "output_tokens": output}
    return made | {"priority": priority}


@pytest.fixture
def steps(replay):
    """steps(rows, **settings): scheduled tokens and preempted requests, step by step."""

    def of(rows, **changed):
        run = replay(SETTINGS | changed, rows, leap=False)
        return [(step["s"], [victim for victim, _ in step["pre"]]) for step in run.steps]

    return of


# by hand


def test_the_line_is_in_order_of_priority_then_arrival_then_id(steps):
    rows = [row(0, 32, 1, 5), row(1, 32, 1, 7, 1), row(2, 32, 1, 7), row(3, 32, 1, 1, 1), row(4, 32, 1, 7)]
    assert [s[0][0] for s, _ in steps(rows, policy="priority")] == [0, 3, 2, 4, 1]  # 3 and 1 come during the first
    assert [s[0][0] for s, _ in steps(rows)] == [0, 2, 4, 1, 3]


def test_the_victim_is_the_last_admitted_or_that_of_the_largest_priority(steps):
    # Three of 8 tokens, 2 blocks each, in 8 blocks: in the second step each needs a third, and one is short.
    rows = [row(0, 8, 8, 2), row(1, 8, 8, 9), row(2, 8, 8, 4)]
    by_arrival, by_priority = steps(rows, num_blocks=9), steps(rows, num_blocks=9, policy="priority")
    assert by_arrival[0] == ([[0, 8], [1, 8], [2, 8]], [])
    assert by_priority[0] == ([[0, 8], [2, 8], [1, 8]], [])
    assert by_arrival[1] == ([[0, 1], [1, 1]], [2])
    assert by_priority[1] == ([[0, 1], [2, 1]], [1])


def test_among_equal_priorities_the_latest_arrival_is_the_victim(steps):
    rows = [row(0, 8, 8, 3, arrival=0), row(1, 8, 8, 1, arrival=1), row(2, 8, 8, 3, arrival=1)]
    made = steps(rows, num_blocks=9, policy="priority")
    assert next(victims for _, victims in made if victims) == [2]


def test_a_victim_that_was_scheduled_gives_its_tokens_back(steps):
    # 0 decodes; 1 and 2 are computed in chunks of at most 6, of what is left of 9. In the fourth step 1 needs two
    # blocks and one of the 7 is free: 0 goes, its token too, so that 2 gets 3 tokens where it got 2.
    rows = [row(0, 4, 20, 9), row(1, 24, 2, 1, arrival=1), row(2, 24, 2, 2, arrival=1)]
    few = {"num_blocks": 8, "max_num_batched_tokens": 9, "long_prefill_token_threshold": 6}
    made = steps(rows, policy="priority", scheduler_reserve_full_isl=False, **few)
    chunks = ([[0, 1], [1, 6], [2, 2]], [])
    assert made[:4] == [([[0, 4]], []), chunks, chunks, ([[1, 6], [2, 3]], [0])]


def test_a_decode_that_preempts_itself_lets_the_next_go_on(steps):
    rows = [row(0, 8, 8, 9), row(1, 8, 8, 1, arrival=1), row(2, 8, 4, 2, arrival=1)]
    made = steps(rows, num_blocks=9, policy="priority", scheduler_reserve_full_isl=False)
    first = next(step for step in made if step[1])
    assert first[1] == [0]
    assert [request for request, _ in first[0]] == [1, 2]


def test_the_threshold_cuts_every_prompt_unless_it_is_alone(steps):
    limit = {"long_prefill_token_threshold": 10}
    assert steps([row(0, 30, 1)], **limit) == [([[0, 30]], [])]
    both = steps([row(0, 30, 1), row(1, 14, 1)], **limit)
    assert both == [([[0, 10], [1, 10]], []), ([[0, 10], [1, 4]], []), ([[0, 10]], [])]
    # alone again for the last 30 of its tokens
    assert steps([row(0, 40, 1), row(1, 9, 1)], **limit) == [([[0, 10], [1, 9]], []), ([[0, 30]], [])]
    # who waits for a seat counts as there
    waits = steps([row(0, 20, 1), row(1, 12, 1)], max_num_seqs=1, **limit)
    assert waits == [([[0, 10]], []), ([[0, 10]], []), ([[1, 12]], [])]


def test_without_chunks_a_prompt_waits_for_a_budget_that_holds_it(steps):
    rows = [row(0, 20, 3), row(1, 14, 1), row(2, 5, 1)]
    whole = steps(rows, enable_chunked_prefill=False)
    assert whole == [([[0, 20]], []), ([[0, 1], [1, 14], [2, 5]], []), ([[0, 1]], [])]
    assert steps(rows)[0] == ([[0, 20], [1, 12]], [])


def test_without_chunks_the_threshold_still_cuts(steps):
    # vLLM compares what the threshold leaves of the prompt with the budget, not the prompt
    rows = [row(0, 20, 2), row(1, 20, 1)]
    made = steps(rows, enable_chunked_prefill=False, long_prefill_token_threshold=16, max_num_batched_tokens=24)
    assert made == [([[0, 16]], []), ([[0, 4], [1, 16]], []), ([[0, 1], [1, 4]], [])]


# the twin


@dataclass
class Row:
    id: int
    arrival: int  # ns
    known: int
    left: int
    priority: int
    computed: int = 0
    blocks: int = 0

    @property
    def rank(self):
        return self.priority, self.arrival


class Twin:
    """The recording's rules 1 to 7, written down once more: lists, every block counted, nothing leapt."""

    def __init__(self, config, rows):
        self.config, self.block = config, config["block_size"]
        self.free = config["num_blocks"] - 1
        self.rows = [Row(r["id"], r["arrival_us"] * 1000, r["prompt_tokens"], r["output_tokens"], r["priority"])
                     for r in rows]  # fmt: skip
        self.waiting, self.running = [], []
        self.finished: dict[int, int] = {}

    def take(self, request, upto, spare=0):
        blocks = ceil(upto / self.block) - request.blocks
        if blocks + spare > self.free:
            return False
        request.blocks += blocks
        self.free -= blocks
        return True

    def drop(self, request):
        self.running.remove(request)
        self.free += request.blocks
        request.blocks = 0

    def step(self):
        config, ranked = self.config, self.config["policy"] == "priority"
        threshold = config["long_prefill_token_threshold"] or 10**9
        if len(self.running) + len(self.waiting) <= 1:
            threshold = 10**9
        budget, granted, gone = config["max_num_batched_tokens"], {}, []
        index = 0
        while index < len(self.running) and budget:
            request = self.running[index]
            wanted = min(request.known - request.computed, threshold, budget)
            while not self.take(request, request.computed + wanted):
                victim = max(self.running, key=lambda r: r.rank) if ranked else self.running[-1]
                index -= self.running.index(victim) < index
                budget += granted.pop(victim.id, 0)
                self.drop(victim)
                gone.append([victim.id, victim.computed])
                victim.computed = 0
                self.waiting.insert(0, victim)
                if victim is request:
                    break
            else:
                granted[request.id] = wanted
                budget -= wanted
                index += 1
        while not gone and budget and self.waiting and len(self.running) < config["max_num_seqs"]:
            self.sort(ranked)
            request = self.waiting[0]
            wanted = min(request.known, threshold)
            if not config["enable_chunked_prefill"] and wanted > budget:
                break
            wanted = min(wanted, budget)
            spare = int(config["watermark"] * config["num_blocks"]) if self.running else 0
            whole = ceil(request.known / self.block) + spare > self.free
            if (config["scheduler_reserve_full_isl"] and whole) or not self.take(request, wanted, spare):
                break
            self.running.append(self.waiting.pop(0))
            granted[request.id] = wanted
            budget -= wanted
        return granted, gone

    def sort(self, ranked):
        if ranked:
            self.waiting.sort(key=lambda r: (*r.rank, r.id))

    def run(self):
        now, coming, made = 0, sorted(self.rows, key=lambda r: (r.arrival, r.id)), []
        cost = self.config["step_time_ns"]
        while coming or self.waiting or self.running:
            if not self.waiting and not self.running:
                now = max(now, coming[0].arrival)
            while coming and coming[0].arrival <= now:
                self.waiting.append(coming.pop(0))
            granted, gone = self.step()
            context = sum(r.computed for r in self.running if r.id in granted)
            scheduled = [[r.id, granted[r.id]] for r in self.running if r.id in granted]
            state = {"nr": len(self.running), "nw": len(self.waiting), "free": self.free, "t_ns": now}
            made.append({"s": scheduled, "pre": gone} | state)
            tokens = sum(granted.values())
            now += cost["base"] + cost["per_scheduled_token"] * tokens + cost["per_context_token"] * context
            for request in [r for r in self.running if r.id in granted]:
                self.sample(request, granted[request.id], now)
        return made

    def sample(self, request, tokens, now):
        request.computed += tokens
        if request.computed == request.known:
            request.known += 1
            request.left -= 1
            if not request.left:
                self.drop(request)
                self.finished[request.id] = now


def drawn_rows(draw):
    rows = []
    for number in range(draw(st.integers(1, 25))):
        prompt, output = draw(st.integers(1, 60)), draw(st.integers(1, 30))
        rows.append(row(number, prompt, output, draw(st.integers(0, 3)), draw(st.integers(0, 40))))
    return rows


@settings(max_examples=300)
@given(data=st.data())
def test_any_settings_schedule_as_the_rules_say(data, replay):
    config = SETTINGS | {
        "num_blocks": data.draw(st.sampled_from([25, 30, 45, 1001])),
        "max_num_seqs": data.draw(st.sampled_from([2, 5, 64])),
        "policy": data.draw(st.sampled_from(["fcfs", "priority"])),
        "enable_chunked_prefill": data.draw(st.booleans()),
        "long_prefill_token_threshold": data.draw(st.sampled_from([0, 1, 7, 16, 500])),
        "scheduler_reserve_full_isl": data.draw(st.booleans()),
        "watermark": data.draw(st.sampled_from([0.0, 0.05])),
    }
    # vLLM refuses to start without chunks unless the budget holds the longest request
    budget = st.sampled_from([8, 20, 64, 100] if config["enable_chunked_prefill"] else [90, 128])
    config["max_num_batched_tokens"] = data.draw(budget)
    rows = drawn_rows(data.draw)
    twin = Twin(config, rows)
    expected = twin.run()
    stepped = replay(config, rows, leap=False)
    for mine, theirs in zip(stepped.steps, expected, strict=True):
        assert {key: mine[key] for key in theirs} == theirs
    leapt = replay(config, rows, leap=True)
    for run in (stepped, leapt):
        assert {request.id: request.finished for request in run.requests} == twin.finished


# beyond the recordings


def test_without_chunks_a_request_longer_than_the_budget_is_refused(make_pool, drive):
    # vLLM starts without chunked prefill only if max_model_len <= max_num_batched_tokens
    pool = make_pool(scheduler="vllm_v1", limits={"token_budget": 512, "chunked": False})
    run = drive(pool, [(0.0, 400, 112), (0.0, 400, 113)])
    assert run.requests[0].finished > 0
    assert run.requests[1].refused == "513 tokens, without chunked prefill the engine takes at most token_budget, 512"
