# SPDX-License-Identifier: Apache-2.0
"""Load on an engine, driven inside the engine's own process: fixed users, or arrivals by the clock.

Only the standard library is used here: peers run this in environments of their own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

Emit = Callable[[int, Sequence[int]], None]


class Engine(Protocol):
    """What an adapter of bench.peers makes of a library.

    Attributes:
        version: of the library.
        precision: of weights and arithmetic, in words.
    """

    version: str
    precision: str

    def add(self, request: int, prompt: Sequence[int], max_tokens: int) -> None:
        """Take a request: greedy, exactly max_tokens tokens, no end-of-text token ends it."""

    def step(self, emit: Emit, timeout_s: float | None) -> None:
        """Work until at least one token is out or timeout_s passed; emit(request, tokens) as each comes out."""

    def logits(self, token_ids: Sequence[int]) -> Any:
        """[len(token_ids), vocab_size] float32 numpy array: the scores of each next token. None: not exposed."""


@dataclass(frozen=True)
class Request:
    """One request of a workload.

    Attributes:
        arrival_s: seconds from the start, where the clock decides; None: when the user's last one is over.
        user: who sends it, where users do.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    arrival_s: float | None = None
    user: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Request:
        return Request(**{**fields, "prompt": tuple(fields["prompt"])})


@dataclass
class Record:
    """What became of a request: seconds from the start of the run.

    Attributes:
        arrival_s: when it was due, not when the engine looked at it.
        token_s: when each output token was out.
        tokens: their ids.
    """

    num_prompt_tokens: int
    arrival_s: float
    user: int = 0
    token_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def drive(engine: Engine, requests: Sequence[Request], now: Callable[[], float] = time.perf_counter) -> list[Record]:
    """Runs a workload to its end.

    Requests with an arrival are sent when it is due; the others when their user's last one is over, in order.

    Returns:
        One Record per request, in the order of requests.
    """
    start = now()
    records: dict[int, Record] = {}
    clocked = deque(sorted((i for i, r in enumerate(requests) if r.arrival_s is not None), key=_arrival_of(requests)))
    of_user: dict[int, deque[int]] = {}
    for index, request in enumerate(requests):
        if request.arrival_s is None:
            of_user.setdefault(request.user, deque()).append(index)

    def send(index: int, arrival_s: float) -> None:
        request = requests[index]
        records[index] = Record(len(request.prompt), arrival_s, request.user)
        engine.add(index, request.prompt, request.max_tokens)

    finished: list[int] = []

    def emit(index: int, tokens: Sequence[int]) -> None:
        record = records[index]
        record.token_s += [now() - start] * len(tokens)
        record.tokens += tokens
        if len(record.tokens) >= requests[index].max_tokens:
            finished.append(index)

    running = 0
    for waiting in of_user.values():
        send(waiting.popleft(), 0.0)
        running += 1
    while running or clocked:
        elapsed = now() - start
        while clocked and requests[clocked[0]].arrival_s <= elapsed:
            index = clocked.popleft()
            send(index, requests[index].arrival_s)
            running += 1
        until_next_s = max(0.0, requests[clocked[0]].arrival_s - elapsed) if clocked else None
        if not running:
            time.sleep(until_next_s or 0.0)
            continue
        engine.step(emit, until_next_s)
        for index in finished:
            running -= 1
            waiting = of_user.get(requests[index].user) if requests[index].arrival_s is None else None
            if waiting:
                send(waiting.popleft(), records[index].token_s[-1])
                running += 1
        finished.clear()
    return [records[index] for index in range(len(requests))]


def _arrival_of(requests: Sequence[Request]) -> Callable[[int], float]:
    return lambda index: requests[index].arrival_s or 0.0
