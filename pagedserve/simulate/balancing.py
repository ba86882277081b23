# SPDX-License-Identifier: Apache-2.0
"""Which replica a request goes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

from pagedserve.errors import InvalidInput
from pagedserve.simulate.workload import Request


class Seen(Protocol):
    """What a balancer sees of a replica."""

    number: int
    backlog_tokens: int


class Balancer(Protocol):
    """Chooses; may remember."""

    def choose(self, replicas: Sequence[Seen], request: Request) -> int:
        """The place in replicas, which is not empty."""


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, replicas: Sequence[Seen], request: Request) -> int:
        self._turn += 1
        return (self._turn - 1) % len(replicas)


class LeastBacklog:
    """Where the fewest tokens are left to compute; of equals, the first."""

    def choose(self, replicas: Sequence[Seen], request: Request) -> int:
        return min(range(len(replicas)), key=lambda place: replicas[place].backlog_tokens)


class PrefixAffinity:
    """Prompts that begin alike go to the same replica while that is not much behind the least loaded one.

    The replica is chosen by rendezvous hashing (Thaler and Ravishankar 1998): when one comes or goes, only the
    prompts that it takes or had move.

    Args:
        prefix_tokens: how many of a prompt's first tokens count.
        slack_tokens: by so many tokens of backlog its own replica may be behind.
    """

    def __init__(self, prefix_tokens: int = 512, slack_tokens: int = 16384) -> None:
        self._prefix_tokens = prefix_tokens
        self._slack_tokens = slack_tokens

    def choose(self, replicas: Sequence[Seen], request: Request) -> int:
        # Hashes of ints and of tuples of ints do not depend on Python's hash seed.
        prefix = hash(tuple(islice(request.prompt, self._prefix_tokens)))
        least = min(range(len(replicas)), key=lambda place: replicas[place].backlog_tokens)
        own = max(range(len(replicas)), key=lambda place: _mix(prefix, replicas[place].number))
        behind = replicas[own].backlog_tokens - replicas[least].backlog_tokens
        return own if behind <= self._slack_tokens else least


def _mix(prefix: int, number: int) -> int:
    """64 bits that look random in both (the finaliser of splitmix64)."""
    x = (prefix * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


BALANCERS: dict[str, Callable[[], Balancer]] = {
    "round-robin": RoundRobin,
    "least-backlog": LeastBacklog,
    "prefix-affinity": PrefixAffinity,
}


def find_balancer(name: str) -> Balancer:
    """By name; InvalidInput lists those there are."""
    if name not in BALANCERS:
        raise InvalidInput(f"balancer {name!r}; supported: {', '.join(BALANCERS)}")
    return BALANCERS[name]()
