# SPDX-License-Identifier: Apache-2.0
"""What a scrape reads, as data: a metric's kind, name, text, and where its value is from.

Those that dashboards already read have vLLM's names; those that only this engine has begin with pagedserve.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# Of an engine's stats().
GAUGES: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
    ("vllm:num_requests_running", "Requests that have a row of the batch.", lambda now: now.running),
    ("vllm:num_requests_waiting", "Requests that wait for one.", lambda now: now.waiting),
    ("vllm:kv_cache_usage_perc", "Share of pages in use; 1 is all.", lambda now: now.pages_in_use / now.num_pages),
    (
        "pagedserve:recompute_tax",
        "Tokens computed again, of all prompt tokens computed.",
        lambda now: now.recomputed_tokens / max(1, now.prompt_tokens),
    ),
    ("pagedserve:ttft_prediction_error", "Of recent first tokens, relative.", lambda now: now.ttft_error),
    ("pagedserve:step_prediction_error", "Of recent steps, relative.", lambda now: now.step_error),
    (
        "pagedserve:seconds_to_first_tokens",
        "Until everybody who waits has a first token, predicted.",
        lambda now: now.drain_s,
    ),
)
COUNTERS: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
    ("vllm:num_preemptions", "Requests that gave up their pages.", lambda now: now.preemptions),
    ("vllm:prefix_cache_queries", "Prompt tokens looked for.", lambda now: now.prefix_query_tokens),
    ("vllm:prefix_cache_hits", "Prompt tokens found computed.", lambda now: now.prefix_hit_tokens),
    ("vllm:prompt_tokens", "Prompt tokens computed.", lambda now: now.prompt_tokens),
    ("vllm:generation_tokens", "Tokens sampled.", lambda now: now.output_tokens),
    ("pagedserve:recomputed_tokens", "Tokens computed again after a preemption.", lambda now: now.recomputed_tokens),
    ("pagedserve:failed_steps", "Steps that failed as a whole.", lambda now: now.failed_steps),
)
WAITING_BY_REASON = "Requests that wait, for a row and pages (capacity) or for the prompt of another (deferred)."
RETRY_PLACES = "Places of those who came back when they were told to: kept, and given away."

Labels = tuple[str, ...]


class Histogram:
    """Counts of values by upper bound, the last without one."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """O(log bounds)."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, int]]:
        """(upper bound, how many are at most that), as Prometheus counts."""
        running, pairs = 0, []
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            running += count
            pairs.append(("+Inf" if bound == math.inf else f"{float(bound)!r}", running))
        return pairs


class Families:
    """Makes metric families of one model. core: prometheus_client.core."""

    def __init__(self, core: Any, model_name: str) -> None:
        self._core = core
        self._name = model_name

    def gauge(self, name: str, text: str, value: float) -> Any:
        return self.labelled(name, text, (), {(): value})

    def labelled(self, name: str, text: str, labels: Labels, values: Mapping[Labels, float]) -> Any:
        """A gauge with a value for each set of labels."""
        return self._filled(self._core.GaugeMetricFamily, name, text, labels, values)

    def counter(self, name: str, text: str, labels: Labels, values: Mapping[Labels, float]) -> Any:
        return self._filled(self._core.CounterMetricFamily, name, text, labels, values)

    def histogram(self, name: str, text: str, values: Histogram) -> Any:
        family = self._core.HistogramMetricFamily(name, text, labels=["model_name"])
        family.add_metric([self._name], buckets=values.cumulative(), sum_value=values.total)
        return family

    def of_engine(self, now: Any) -> Iterator[Any]:
        """All of an engine's stats()."""
        for name, text, value in GAUGES:
            yield self.gauge(name, text, value(now))
        for name, text, value in COUNTERS:
            yield self.counter(name, text, (), {(): value(now)})
        reasons = {("capacity",): now.waiting - now.blocked, ("deferred",): now.blocked}
        yield self.labelled("vllm:num_requests_waiting_by_reason", WAITING_BY_REASON, ("reason",), reasons)
        back = {("kept",): now.places_kept, ("broken",): now.places_claimed - now.places_kept}
        yield self.counter("pagedserve:retry_places", RETRY_PLACES, ("outcome",), back)

    def _filled(self, kind: Any, name: str, text: str, labels: Labels, values: Mapping[Labels, float]) -> Any:
        family = kind(name, text, labels=["model_name", *labels])
        for key, value in sorted(values.items()):
            family.add_metric([self._name, *key], value)
        return family
