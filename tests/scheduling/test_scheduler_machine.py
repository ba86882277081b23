# SPDX-License-Identifier: Apache-2.0
"""Random events and faults: no page leaked, no request lost or answered twice, no livelock, replay identical."""

from __future__ import annotations

import copy

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduler_audit import audit

from pagedserve.eventlog.codec import Session, encode, encode_header, read_log
from pagedserve.eventlog.replay import compare, replay
from pagedserve.eventlog.watched import Record, WatchedScheduler
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepPrices
from pagedserve.scheduling.events import (
    Abort,
    Admit,
    Arrive,
    Decision,
    Drain,
    Event,
    Expire,
    Finish,
    Preempt,
    Reject,
    Resize,
    StepDone,
    StepFailed,
    StepPlan,
)
from tests.scheduling.symbolic_runner import SymbolicRunner, sum_sampler

VOCAB_SIZE = 3
SAMPLE = sum_sampler(VOCAB_SIZE)

tokens = st.integers(0, VOCAB_SIZE - 1)
prompts = st.one_of(
    st.lists(tokens, max_size=24),
    st.builds(lambda n, tail: [1] * n + tail, st.integers(0, 20), st.lists(tokens, min_size=1, max_size=3)),
)
ids = st.integers(0, 9).map(lambda i: f"r{i}")
deadlines = st.one_of(st.none(), st.floats(0.5, 8.0))

configs = st.builds(
    SchedulerConfig,
    num_pages=st.integers(6, 24),
    page_size=st.sampled_from([1, 3, 4]),
    max_seqs=st.integers(1, 6),
    max_step_tokens=st.integers(6, 20),
    max_model_len=st.just(48),
    watermark=st.sampled_from([0.0, 0.1, 0.4]),
    prefix_cache=st.sampled_from([True, True, True, False]),
    num_host_pages=st.sampled_from([0, 6, 20]),
    max_queue=st.sampled_from([None, 8]),
    swap_page_tokens=st.sampled_from([0.0, 0.5, 4.0]),
    attention_parity_tokens=st.sampled_from([8, 30_000]),
    graph_buckets=st.sampled_from([(), (1, 4)]),
    tpot_target_s=st.sampled_from([None, None, 0.01]),
    tenants=st.sampled_from([{}, {}, {"": 1.0, "small": 4.0}]),
    prices=st.sampled_from([StepPrices(), StepPrices(token_ms=400.0, uncertainty=0.05)]),
)


class SchedulerMachine(RuleBasedStateMachine):
    """What can happen to a scheduler, in any order, with the symbolic runner behind it."""

    @initialize(config=configs)
    def start(self, config: SchedulerConfig) -> None:
        self.config = config
        self.log: list[tuple[Record, list[Decision]]] = []
        self.plans: list[StepPlan] = []
        self.scheduler = WatchedScheduler(config, lambda record, made: self.log.append((record, list(made))))
        self.runner = SymbolicRunner(self.scheduler, SAMPLE)
        self.t = 0.0
        self.open: set[str] = set()
        self.flight: StepPlan | None = None
        self.num_pages = config.num_pages
        self.pool = config.num_pages
        self.draining = False

    # Events

    def send(self, event: Event) -> list[Decision]:
        made = self.scheduler.apply(event)
        for decision in made:
            if isinstance(decision, Admit):
                assert decision.id not in self.open
                self.open.add(decision.id)
            elif isinstance(decision, Preempt):
                assert decision.id in self.open
            elif isinstance(decision, (Finish, Expire)):
                assert decision.id in self.open, f"{decision.id} was answered twice, or never admitted"
                self.open.discard(decision.id)
            else:
                assert isinstance(decision, Reject)
                assert isinstance(event, Arrive)
        return made

    @rule(
        id=ids,
        prompt=prompts,
        max_tokens=st.integers(0, 12),
        stops=st.frozensets(tokens, max_size=1),
        min_tokens=st.integers(0, 2),
        priority=st.integers(-1, 2),
        ttft=deadlines,
        deadline=deadlines,
        after=st.one_of(st.none(), ids),
        salt=st.sampled_from(["", "", "", "x"]),
        tenant=st.sampled_from(["", "", "big", "small"]),
        tpot=st.sampled_from([None, None, 1e-6, 0.5]),
        age=st.sampled_from([0.0, 0.0, 0.25]),
    )
    def arrive(
        self, id, prompt, max_tokens, stops, min_tokens, priority, ttft, deadline, after, salt, tenant, tpot, age
    ) -> None:
        was_open = id in self.open
        made = self.send(
            Arrive(
                self.t - age,
                id,
                prompt,
                max_tokens,
                stop_token_ids=stops,
                min_tokens=min_tokens,
                priority=priority,
                ttft_deadline_s=ttft,
                deadline_s=deadline,
                after=after,
                cache_salt=salt,
                tenant=tenant,
                tpot_target_s=tpot,
            )
        )
        answer = made[0]
        assert answer.id == id
        valid = bool(prompt) and max_tokens >= max(1, min_tokens) and not was_open
        if not valid:
            assert isinstance(answer, Reject)
            assert answer.reason == "invalid"
        elif self.draining:
            assert isinstance(answer, Reject)
            assert answer.reason == "draining"
        elif self.config.tenants and tenant == "big":
            assert isinstance(answer, Reject)
            assert answer.reason == "invalid"
        elif isinstance(answer, Reject):
            assert answer.reason in ("never_fits", "queue_full", "deadline")
            assert answer.retry_after_s is None or answer.retry_after_s >= 0
            assert answer.hold_s is None or answer.retry_after_s is not None

    @rule(id=ids)
    def abort(self, id: str) -> None:
        was_open = id in self.open
        made = self.send(Abort(self.t, id))
        aborted = [decision.id for decision in made if isinstance(decision, Finish) and decision.reason == "abort"]
        assert aborted == ([id] if was_open else [])

    @rule(seconds=st.floats(0.0, 3.0))
    def time_passes(self, seconds: float) -> None:
        self.t += seconds

    @rule(num_pages=st.integers(4, 24))
    def resize(self, num_pages: int) -> None:
        self.pool = num_pages
        self.send(Resize(self.t, num_pages))
        if self.flight is None:
            self.landed()

    @precondition(lambda self: not self.draining and len(self.plans) > 6)
    @rule()
    def drain(self) -> None:
        self.draining = True
        self.send(Drain(self.t))

    @precondition(lambda self: self.flight is None)
    @rule()
    def plan(self) -> None:
        plan = self.scheduler.plan(self.t)
        if plan is None:
            self.send(Abort(self.t, ""))  # of nobody: those whose deadline passed expire
            assert not self.open, "requests are left, but there is nothing to do"
            return
        assert plan.shape.num_tokens > 0
        assert plan.shape.num_tokens <= self.config.max_step_tokens
        self.plans.append(copy.deepcopy(plan))
        self.flight = plan
        self.computed = self.runner.compute(plan)

    @precondition(lambda self: self.flight is not None)
    @rule(unlucky=st.one_of(st.none(), st.none(), st.integers(0, 5)), ms=st.floats(0.0, 2000.0))
    def step_done(self, unlucky: int | None, ms: float) -> None:
        sampled, failed = self.computed
        assert not failed
        self.t += ms / 1e3
        members = list(self.flight.decode_ids) + [chunk.id for chunk in self.flight.chunks]
        failed = [] if unlucky is None else [members[unlucky % len(members)]]
        self.finish_flight(StepDone(self.t, self.flight.step, sampled, failed, ms))

    @precondition(lambda self: self.flight is not None)
    @rule()
    def step_failed(self) -> None:
        self.finish_flight(StepFailed(self.t, self.flight.step))

    @precondition(lambda self: self.flight is None)
    @rule(count=st.integers(1, 6))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.plan()
            if self.flight is not None:
                self.finish_flight(StepDone(self.t, self.flight.step, self.computed[0]))

    def finish_flight(self, event: StepDone | StepFailed) -> None:
        self.flight = None
        self.send(event)
        self.landed()

    def landed(self) -> None:
        for seq in map(self.scheduler.sequence, self.open):
            if seq.row >= 0:
                assert len(seq.pages) == -(-len(seq.tokens) // self.config.page_size)
            if len(seq.tokens) > seq.num_prompt:
                assert seq.tokens[-1] == SAMPLE(seq.tokens[:-1]), "a token of another sequence"
        self.num_pages = self.pool
        self.runner.lose_pages_from(self.num_pages)

    # What always holds

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        audit(self.scheduler)
        stats = self.scheduler.stats()
        assert stats.waiting + stats.running == len(self.open)
        assert stats.running <= self.config.max_seqs
        assert stats.pages_used + stats.pages_cached + stats.pages_free == stats.pages_total == self.num_pages
        assert stats.prefix_hit_tokens <= stats.prefix_query_tokens
        assert 0 <= stats.places_kept <= stats.places_claimed
        assert 0 <= stats.blocked <= stats.waiting
        decodes = self.scheduler._decodes
        assert decodes.context == sum(len(seq.tokens) for seq in decodes.seqs)
        queue = self.scheduler._queue
        assert queue.num <= stats.waiting
        assert (queue.num_tokens == 0) or queue.num
        if not self.open:
            assert queue.num == queue.num_tokens == queue.num_tenants == 0
            assert stats.pages_used == 0
            assert stats.host_pages_used == 0

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        left = sum(self.scheduler.sequence(id).max_len for id in self.open)
        for _ in range(20 + 4 * left):
            if not self.open:
                break
            if self.flight is None:
                self.plan()
            if self.flight is not None:
                self.finish_flight(StepDone(self.t, self.flight.step, self.computed[0]))
        assert not self.open, "requests never ended"
        self.books_balance()
        self.check_replay()

    def check_replay(self) -> None:
        lines = [encode_header(self.config) + "\n"] + [encode(record, made) + "\n" for record, made in self.log]
        config, decoded = read_log(lines)
        assert config == self.config
        plans = iter(self.plans)
        records = list(decoded)
        for (_, made), (again, plan) in zip(records, replay(config, (record for record, _ in records)), strict=True):
            assert again == made
            if plan is not None:
                assert as_lists(plan) == as_lists(next(plans))
        assert compare(Session(config, records)).differences == []
        assert next(plans, None) is None


def as_lists(plan: StepPlan) -> StepPlan:
    plan = copy.deepcopy(plan)
    plan.decode_rows, plan.decode_ids = list(plan.decode_rows), list(plan.decode_ids)
    return plan


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
