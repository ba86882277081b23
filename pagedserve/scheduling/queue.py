# SPDX-License-Identifier: Apache-2.0
"""Sequences in order, and the queue that is fair between tenants."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping

from pagedserve.scheduling.request import Sequence


class SequenceHeap:
    """Sequences by (key, order), smallest first; an entry is void once belongs(seq, key) no longer holds."""

    def __init__(self, belongs: Callable[[Sequence, float], bool]) -> None:
        self._belongs = belongs
        self._heap: list[tuple[float, int, Sequence]] = []
        self._compact_at = 64

    def push(self, key: float, seq: Sequence) -> None:
        """O(log n)."""
        heapq.heappush(self._heap, (key, seq.order, seq))
        if len(self._heap) > self._compact_at:
            self._heap = [entry for entry in self._heap if self._belongs(entry[2], entry[0])]
            heapq.heapify(self._heap)
            self._compact_at = 64 + 2 * len(self._heap)

    def head(self) -> Sequence | None:
        """The first; None where there is none."""
        while self._heap and not self._belongs(self._heap[0][2], self._heap[0][0]):
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None


class Tenant:
    """Whoever shares the engine: what waits for it, and what it was served, in tokens over its weight."""

    def __init__(self, number: int, weight: float) -> None:
        self.number, self.weight, self.served, self.num_waiting = number, weight, 0.0, 0
        self.tokens = Counter[int]()  # that wait to be computed, by priority
        self.queue = SequenceHeap(lambda seq, key: seq.waits)


class FairQueue:
    """Who goes next: of the tenant that was served least, the first by policy.waiting_key.

    Virtual token counters (Sheng et al. 2024): a tenant pays for what it starts. Whoever comes back after a while
    begins where the last one started stood (start-time fair queueing): nobody saves up and nobody is starved.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.num = self.num_tokens = self.num_tenants = self._num_seen = 0  # num sequences wait
        self._weights = weights
        self._tenants: dict[str, Tenant] = {}
        self._heap: list[tuple[float, int, Tenant]] = []  # by served; void where that has changed
        self._virtual, self._forget_at = 0.0, 64

    def add(self, seq: Sequence, num_tokens: int) -> None:
        """seq waits, num_tokens to be computed before its next is sampled."""
        tenant = seq.tenant = self._tenant(seq.arrival.tenant)
        if not tenant.num_waiting:
            self.num_tenants += 1
            tenant.served = max(tenant.served, self._virtual)
            heapq.heappush(self._heap, (tenant.served, tenant.number, tenant))
        seq.waits, seq.waiting_tokens = True, num_tokens
        self._count(seq, tenant, 1)
        tenant.queue.push(seq.key, seq)

    def remove(self, seq: Sequence) -> None:
        """seq does not wait any more; nothing where it did not."""
        if seq.waits and seq.tenant is not None:
            seq.waits = False
            self._count(seq, seq.tenant, -1)
            self.num_tenants -= not seq.tenant.num_waiting

    def head(self) -> Sequence | None:
        """Who goes next; None where nobody waits."""
        while self._heap:
            served, _, tenant = self._heap[0]
            if served == tenant.served and (seq := tenant.queue.head()) is not None:
                return seq
            heapq.heappop(self._heap)
        return None

    def charge(self, seq: Sequence, num_tokens: float) -> None:
        """Its tenant pays for so many tokens, or is paid back. At its start, before `remove`; or at its end."""
        tenant = seq.tenant
        if tenant is not None:
            self._virtual = max(self._virtual, tenant.served) if seq.waits else self._virtual
            tenant.served += num_tokens / tenant.weight
            if tenant.num_waiting:
                heapq.heappush(self._heap, (tenant.served, tenant.number, tenant))

    def ahead(self, name: str, priority: int, num_tokens: int) -> int:
        """Tokens that go before a newcomer of num_tokens: its tenant's own, and of each other one as many at most."""
        tenant = self._tenants.get(name)
        tokens = tenant.tokens if tenant is not None else Counter[int]()
        own, before = tokens.total(), sum(count for level, count in tokens.items() if level >= priority)
        rivals = self.num_tenants - (tenant is not None and tenant.num_waiting > 0)
        return before + min(self.num_tokens - own, rivals * (before + num_tokens))

    def _tenant(self, name: str) -> Tenant:
        if name not in self._tenants:
            if len(self._tenants) >= self._forget_at:  # those who would begin at the same place again
                self._tenants = {n: t for n, t in self._tenants.items() if t.num_waiting or t.served > self._virtual}
                self._forget_at = 64 + 2 * len(self._tenants)
            self._tenants[name] = Tenant(self._num_seen, self._weights.get(name, 1.0))
            self._num_seen += 1
        return self._tenants[name]

    def _count(self, seq: Sequence, tenant: Tenant, sign: int) -> None:
        tenant.num_waiting += sign
        self.num += sign
        tenant.tokens[seq.arrival.priority] += sign * seq.waiting_tokens
        self.num_tokens += sign * seq.waiting_tokens
