# SPDX-License-Identifier: Apache-2.0
"""The loop both faces share: commands in, scheduler, steps, outputs out.

One thread loops: it feeds the scheduler and computes steps. While a step is computed, a second thread turns
the tokens of the step before into text, finds stop strings and sends deltas. What that thread ends (a stop
string, a failure of one request's own) reaches the scheduler before the step after, as an Abort: a request
may be computed one token too far, and that token is dropped.

    take outputs(n - 1) | aborts, arrivals | plan(n + 1) | give outputs(n) | compute(n + 1) ...
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol

from pagedserve.engine.helper_thread import HelperThread
from pagedserve.engine.observer import Observer, Unobserved
from pagedserve.engine.requests import CompletionState, Request, StepTokens
from pagedserve.errors import EngineClosed, InvalidInput, PagedServeError, RequestRejected, StepError
from pagedserve.scheduling import events as ev

# How long a loop with requests, but with nothing that can be computed, waits before it looks at deadlines again.
STARVED_WAIT_S = 0.02


class Runner(Protocol):
    """Computes steps. Called from the loop's thread alone."""

    def add(self, completion: CompletionState) -> None: ...

    def forget(self, id: str) -> None: ...

    def prepare(self, plan: ev.StepPlan) -> None: ...

    def run(self, plan: ev.StepPlan) -> StepTokens: ...


class Scheduler(Protocol):
    """What the loop needs of scheduling.Scheduler."""

    def apply(self, event: ev.Event) -> Sequence[ev.Decision]: ...

    def plan(self, t: float) -> ev.StepPlan | None: ...


@dataclass(slots=True)
class _Abort:
    request: Request


@dataclass(slots=True)
class _Close:
    drain: bool


@dataclass(slots=True)
class _Outputs:
    """What one turn of the loop has for callers."""

    t: float = 0.0
    completions: Sequence[CompletionState] = ()  # that sampled, beside step's tokens
    step: StepTokens | None = None
    ends: list[tuple[CompletionState, ev.Finish | ev.Reject | ev.Expire]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.step is not None or bool(self.ends)


@dataclass(slots=True)
class LoopCounters:
    """What the loop has done so far.

    Attributes:
        steps, failed_steps: steps computed, and steps that failed as a whole.
        prompt_tokens: prompt tokens computed (again after a preemption, too).
        output_tokens: tokens sampled.
        step_s: seconds inside the runner.
    """

    steps: int = 0
    failed_steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    step_s: float = 0.0


class EngineCore:
    """Runs requests until closed.

    Args:
        scheduler: pure; only the loop's thread touches it.
        runner: likewise.
        clock: seconds; every time of events and metrics comes from it.
        on_end: called in the loop's thread as its last act.
        observer: told of what happens.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_end: Callable[[], object] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.clock = clock
        self.counters = LoopCounters()
        self._scheduler = scheduler
        self._runner = runner
        self._on_end = on_end
        self._observer = observer or Unobserved()
        self._commands: SimpleQueue[Request | _Abort | _Close] = SimpleQueue()
        self._lock = threading.Lock()  # guards _requests and _closed
        self._requests: dict[str, Request] = {}
        self._closed: EngineClosed | None = None
        self._completions: dict[str, CompletionState] = {}  # the scheduler's; the loop's thread only
        self._decodes: tuple[object, object, list[CompletionState]] = (None, None, [])
        self._closing = False
        self._pending = _Outputs()
        self._helper: HelperThread[_Outputs, list[CompletionState]] = HelperThread(self._handle, "pagedserve-outputs")
        self._thread = threading.Thread(target=self._loop, name="pagedserve-steps", daemon=True)
        self._thread.start()

    # Any thread

    def submit(self, request: Request) -> None:
        """Queue a request; what becomes of it goes to its channel, from the engine's threads.

        Raises:
            EngineClosed: the engine was closed, or died, or belongs to another process.
            InvalidInput: a request of this id is in the engine.
        """
        if self._closed is None and not self._thread.is_alive():  # no thread outlives a fork
            raise EngineClosed("the engine was made before this process forked, and runs in the other; make a new one")
        with self._lock:
            if self._closed is not None:
                raise EngineClosed(str(self._closed)) from self._closed.__cause__
            if request.id in self._requests:
                raise InvalidInput(f"a request of id {request.id!r} is still in the engine; give another id, or None")
            self._requests[request.id] = request
            self._commands.put(request)

    def abort(self, id: str) -> bool:
        """Stop a request; its channel ends with finish_reason "abort". False where there is none of this id."""
        with self._lock:
            request = self._requests.get(id)
        return request is not None and self.cancel(request)

    def cancel(self, request: Request) -> bool:
        """As abort, of this very request: its id may have become another's. False where it is over."""
        if request.open == 0:
            return False
        self._commands.put(_Abort(request))
        return True

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests, end those there are (drain: finish them), and end the threads. Twice is harmless."""
        with self._lock:
            if self._closed is None:
                self._closed = EngineClosed("the engine was closed; make a new one")
            if self._thread.is_alive():
                self._commands.put(_Close(drain))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # The loop's thread

    def _loop(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._die(error)
        finally:
            self._helper.stop()
            if self._on_end is not None:
                self._on_end()

    def _serve(self) -> None:
        busy = False
        while True:
            for completion in self._helper.take() or ():
                self._abort(completion)
            self._take_commands(wait=not busy)
            plan = self._scheduler.plan(self.clock())
            gives = bool(self._pending)
            if gives:
                self._pending.t = self._pending.t or self.clock()
                self._helper.give(self._pending)
                self._pending = _Outputs()
            if plan is not None:
                self._compute(plan)
            busy = gives or plan is not None
            if self._closing and not busy and not self._completions:
                return

    def _take_commands(self, *, wait: bool) -> None:
        commands = self._commands
        if wait:
            try:
                self._obey(commands.get(timeout=STARVED_WAIT_S if self._completions else None))
            except Empty:
                self._decide(self._scheduler.apply(ev.Abort(self.clock(), "")))  # of nobody: deadlines pass
                return
        while not commands.empty():
            self._obey(commands.get())

    def _obey(self, command: Request | _Abort | _Close) -> None:
        if isinstance(command, Request):
            self._arrive(command)
        elif isinstance(command, _Abort):
            for completion in command.request.completions:
                self._abort(completion)
        else:
            self._closing = True
            self._decide(self._scheduler.apply(ev.Drain(self.clock())))
            if not command.drain:
                for completion in list(self._completions.values()):
                    self._abort(completion)

    def _arrive(self, request: Request) -> None:
        params = request.params
        self._observer.arrived(request)
        for completion in request.completions:
            if completion.index and request.id not in self._completions:
                return  # the first was refused, and the whole request with it
            self._completions[completion.id] = completion
            self._runner.add(completion)
            arrival = ev.Arrive(
                request.arrival_s,
                completion.id,
                request.prompt_token_ids,
                request.max_tokens,
                stop_token_ids=request.stop_token_ids,
                min_tokens=min(params.min_tokens, request.max_tokens),
                tenant=params.tenant,
                priority=params.priority,
                ttft_deadline_s=params.ttft_deadline_s,
                tpot_target_s=params.tpot_target_s,
                deadline_s=params.deadline_s,
                after=request.id if completion.index else None,
                cache_salt=params.cache_salt,
            )
            self._decide(self._scheduler.apply(arrival))

    def _abort(self, completion: CompletionState) -> None:
        if self._completions.get(completion.id) is completion:
            self._decide(self._scheduler.apply(ev.Abort(self.clock(), completion.id)))

    def _decide(self, decisions: Iterable[ev.Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, (ev.Finish, ev.Reject, ev.Expire)):
                completion = self._completions.pop(decision.id)
                self._runner.forget(decision.id)
                self._pending.ends.append((completion, decision))
            elif isinstance(decision, ev.Admit):
                self._observer.admitted(self._completions[decision.id], decision.ttft_s)
            elif isinstance(decision, ev.Preempt):
                self._completions[decision.id].metrics.preemptions += 1

    def _compute(self, plan: ev.StepPlan) -> None:
        sampling = self._participants(plan)
        self._runner.prepare(plan)
        start = self.clock()
        try:
            step = self._runner.run(plan)
        except Exception as error:
            self.counters.failed_steps += 1
            message = f"{type(error).__name__}: {error}"
            self._decide(self._scheduler.apply(ev.StepFailed(self.clock(), plan.step, message)))
            return
        end = self.clock()
        self.counters.steps += 1
        self.counters.step_s += end - start
        self.counters.output_tokens += len(step.tokens)
        self._observer.stepped(plan.shape.num_tokens, end - start)
        self._pending.t, self._pending.completions, self._pending.step = end, sampling, step
        self._decide(
            self._scheduler.apply(ev.StepDone(end, plan.step, step.tokens, step.failed, round(1e3 * (end - start), 3)))
        )

    def _participants(self, plan: ev.StepPlan) -> Sequence[CompletionState]:
        """Those that sample, in the order of the step's tokens. Also notes who is computed for the first time."""
        rows, ids, decodes = self._decodes
        if rows is not plan.decode_rows or ids is not plan.decode_ids:
            decodes = [self._completions[id] for id in plan.decode_ids]
            self._decodes = (plan.decode_rows, plan.decode_ids, decodes)
            for completion in decodes:
                if completion.metrics.scheduled_s is None:
                    self._first_step(completion, len(completion.request.prompt_token_ids) - 1)
        if not plan.chunks:
            return decodes
        sampling = list(decodes)
        for chunk in plan.chunks:
            completion = self._completions[chunk.id]
            if completion.metrics.scheduled_s is None:
                self._first_step(completion, chunk.start)
            self.counters.prompt_tokens += chunk.num_tokens
            if chunk.samples:
                sampling.append(completion)
        return sampling

    def _first_step(self, completion: CompletionState, prefix_hit_tokens: int) -> None:
        completion.metrics.scheduled_s = self.clock()
        completion.metrics.prefix_hit_tokens = prefix_hit_tokens

    def _die(self, error: BaseException) -> None:
        """Tell everybody who waits, and everybody who comes."""
        with contextlib.suppress(BaseException):  # nothing may keep the callers from hearing
            self._helper.take()
        closed = EngineClosed(f"the engine died of {type(error).__name__}: {error}; make a new one")
        closed.__cause__ = error
        with self._lock:
            self._closed = closed
            requests = list(self._requests.values())
            self._requests.clear()
        for request in requests:
            with contextlib.suppress(Exception):
                request.channel.fail(closed)

    # The helper's thread

    def _handle(self, outputs: _Outputs) -> list[CompletionState]:
        """Send everything out. Returns the completions that ended here: the scheduler may not know yet."""
        ended: list[CompletionState] = []
        reasons = {completion: end.reason for completion, end in outputs.ends if isinstance(end, ev.Finish)}
        if outputs.step is not None:
            failed = frozenset(outputs.step.failed)
            self._observer.sampled((c for c in outputs.completions if not c.ended and c.id not in failed), outputs.t)
            for i, completion in enumerate(outputs.completions):
                if completion.ended or completion.id in failed:
                    continue
                try:
                    num_top = completion.request.params.logprobs
                    logprob = None if num_top is None else outputs.step.logprob(i, num_top)
                    reason = reasons.get(completion)
                    if reason == "stop":
                        completion.push_last(outputs.step.tokens[i], outputs.t, logprob)
                    else:
                        completion.push(outputs.step.tokens[i], outputs.t, logprob, last=reason == "length")
                except Exception as error:
                    ended += [completion, *self._fail(completion.request, _output_error(error))]
                else:
                    if completion.ended:
                        ended.append(completion)
                        self._release(completion.request)
        for completion, end in outputs.ends:
            if not completion.ended:
                ended += self._end(completion, end, outputs.t)
        return ended

    def _end(
        self, completion: CompletionState, end: ev.Finish | ev.Reject | ev.Expire, t: float
    ) -> list[CompletionState]:
        request = completion.request
        if isinstance(end, ev.Reject):
            again = {"retry_after_s": end.retry_after_s, "hold_s": end.hold_s}
            return self._fail(request, RequestRejected(end.message, reason=end.reason, **again))
        if isinstance(end, ev.Expire):
            message = "the request's deadline can no longer be met; give it more time, or retry later"
            return self._fail(request, RequestRejected(message, reason="deadline", retry_after_s=end.retry_after_s))
        if end.reason == "error":
            return self._fail(request, StepError(f"the model could not compute this request: {end.message}"))
        try:
            completion.finish(end.reason, t)
        except Exception as error:
            return self._fail(request, _output_error(error))
        self._release(request)
        return []

    def _fail(self, request: Request, error: PagedServeError) -> list[CompletionState]:
        """End all of a request, and nothing else."""
        rest = [completion for completion in request.completions if not completion.ended]
        for completion in rest:
            completion.ended = True
        request.open = 0
        self._release(request, error)
        with contextlib.suppress(Exception):  # the channel may be what failed
            request.channel.fail(error)
        return rest

    def _release(self, request: Request, error: PagedServeError | None = None) -> None:
        if request.open == 0:
            with self._lock:
                known = self._requests.pop(request.id, None)
            if known is request:
                self._observer.ended(request, error)


def _output_error(error: Exception) -> StepError:
    failure = StepError(f"the request's output could not be made: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
