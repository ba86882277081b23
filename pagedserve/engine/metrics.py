# SPDX-License-Identifier: Apache-2.0
"""An engine's counters for Prometheus.

    metrics = EngineMetrics()
    llm = LLM("smollm2-135m-instruct", observer=metrics)
    metrics.attach(llm)
    prometheus_client.REGISTRY.register(metrics)      # or: metrics.exposition(), the text that a scrape reads

Names are in exposition.py. Recording costs no package: prometheus_client is imported when the numbers are asked for.
"""

from __future__ import annotations

import importlib
import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from pagedserve.engine.exposition import Families, Histogram
from pagedserve.engine.requests import CompletionState, Request
from pagedserve.errors import InvalidInput, PagedServeError, RequestRejected

FIRST_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160),
)
BETWEEN_BUCKETS_S = (
    *(0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
)
WHOLE_BUCKETS_S = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
STEP_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
RATIO_BUCKETS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
DRAIN_WINDOW_S = 30.0  # of steps; what was so long ago counts a third


class Observed(Protocol):
    """An engine whose stats() are read at each scrape; LLM and AsyncEngine are."""

    def stats(self) -> Any: ...


class EngineMetrics:
    """Records what an engine does. Give it to one engine as its observer, then attach that engine.

    Args:
        model_name: the label of every metric.

    Cost: about a microsecond for each token sampled.
    """

    def __init__(self, model_name: str = "") -> None:
        self.model_name = model_name
        self.ttft, self.queue = Histogram(FIRST_BUCKETS_S), Histogram(FIRST_BUCKETS_S)
        self.between, self.tpot = Histogram(BETWEEN_BUCKETS_S), Histogram(BETWEEN_BUCKETS_S)
        self.whole, self.step_tokens = Histogram(WHOLE_BUCKETS_S), Histogram(STEP_BUCKETS)
        self.predicted, self.ratio = Histogram(FIRST_BUCKETS_S), Histogram(RATIO_BUCKETS)
        self.rejections, self.promises = Counter[str](), Counter[tuple[str, str]]()
        self.ended_requests = Counter[str]()
        self._engine: Observed | None = None
        self._lock = threading.Lock()  # the loop's thread, the outputs' thread and whoever scrapes
        self._last_s: dict[CompletionState, float] = {}
        self._predicted_s: dict[CompletionState, float] = {}
        self._owed: dict[Request, int] = {}  # tokens that each request may still need: its prompt, and max_tokens
        self._owed_tokens = 0
        self._drained_tokens = self._drained_s = 0.0

    def attach(self, engine: Observed) -> None:
        """Read this engine's stats() from now on."""
        self._engine = engine

    # From the engine's threads

    def arrived(self, request: Request) -> None:
        """A request reached the scheduler's door."""
        tokens = len(request.prompt_token_ids) + request.params.n * request.max_tokens
        with self._lock:
            self._owed[request] = tokens
            self._owed_tokens += tokens

    def admitted(self, completion: CompletionState, ttft_s: float | None) -> None:
        """The scheduler took it, and predicts its first token."""
        if ttft_s is not None:
            with self._lock:
                self._predicted_s[completion] = ttft_s

    def stepped(self, num_tokens: int, seconds: float) -> None:
        """A step was computed."""
        with self._lock:
            self.step_tokens.observe(num_tokens)
            keep = math.exp(-seconds / DRAIN_WINDOW_S)
            self._drained_tokens = keep * self._drained_tokens + num_tokens
            self._drained_s = keep * self._drained_s + seconds

    def sampled(self, completions: Iterable[CompletionState], t: float) -> None:
        """Each of these got a token at t."""
        with self._lock:
            last_s = self._last_s
            for completion in completions:
                before = last_s.get(completion)
                last_s[completion] = t
                if before is not None:
                    self.between.observe(t - before)
                    continue
                came_s, scheduled_s = completion.request.arrival_s, completion.metrics.scheduled_s
                self.ttft.observe(t - came_s)
                predicted_s = self._predicted_s.pop(completion, 0.0)
                if predicted_s > 0:
                    self.predicted.observe(predicted_s)
                    self.ratio.observe((t - came_s) / predicted_s)
                if scheduled_s is not None:
                    self.queue.observe(scheduled_s - came_s)
                if completion.index == 0:
                    self._pay(completion.request, len(completion.request.prompt_token_ids))

    def ended(self, request: Request, error: PagedServeError | None) -> None:
        """A request is over."""
        with self._lock:
            self._pay(request, self._owed.pop(request, 0), forget=True)
            if isinstance(error, RequestRejected):
                self.rejections[error.reason] += 1
            for completion in request.completions:
                self._last_s.pop(completion, None)
                self._predicted_s.pop(completion, None)
                if error is None:
                    self._answered(completion)
            if error is not None:
                self.ended_requests["rejected" if isinstance(error, RequestRejected) else "error"] += 1
                for promise, asked in _promises(request).items():
                    self.promises[promise, "broken"] += asked is not None

    def _answered(self, completion: CompletionState) -> None:
        metrics = completion.metrics
        if metrics.first_token_s is None or metrics.finish_s is None:
            self.ended_requests["abort"] += 1
            return
        self.ended_requests["answered"] += 1
        total_s, ttft_s = metrics.finish_s - metrics.arrival_s, metrics.first_token_s - metrics.arrival_s
        gaps = metrics.num_output_tokens - 1
        tpot_s = (metrics.finish_s - metrics.first_token_s) / gaps if gaps > 0 else None
        self.whole.observe(total_s)
        if tpot_s is not None:
            self.tpot.observe(tpot_s)
        actual = {"ttft": ttft_s, "tpot": tpot_s, "total": total_s}
        for promise, asked_s in _promises(completion.request).items():
            took_s = actual[promise]
            if asked_s is not None and took_s is not None:
                self.promises[promise, "kept" if took_s <= asked_s else "broken"] += 1

    def _pay(self, request: Request, tokens: int, *, forget: bool = False) -> None:
        """So many of the tokens that a request owed are no longer owed."""
        if forget or request in self._owed:
            self._owed_tokens -= tokens
        if not forget and request in self._owed:
            self._owed[request] -= tokens

    # From any thread

    @property
    def seconds_to_drain(self) -> float:
        """How long those who are here would take, all at their longest, at the measured rate; 0 before any step."""
        with self._lock:
            return self._owed_tokens * self._drained_s / self._drained_tokens if self._drained_tokens else 0.0

    def exposition(self) -> bytes:
        """The text that a scrape reads. InvalidInput where prometheus_client is not installed."""
        client = _client("prometheus_client")
        registry = client.CollectorRegistry()
        registry.register(self)
        text: bytes = client.generate_latest(registry)
        return text

    def collect(self) -> Iterator[Any]:
        """Metric families, as a prometheus_client registry asks for them."""
        families = Families(_client("prometheus_client.core"), self.model_name)
        seconds_to_drain = self.seconds_to_drain
        with self._lock:
            recorded = list(self._recorded(families))
        yield from recorded
        text = "Time to serve all who are here at the measured rate."
        yield families.gauge("pagedserve:seconds_to_drain", text, seconds_to_drain)
        if self._engine is not None:
            yield from families.of_engine(self._engine.stats())

    def _recorded(self, families: Families) -> Iterator[Any]:
        histograms = {
            "vllm:time_to_first_token_seconds": ("Arrival to first token.", self.ttft),
            "pagedserve:predicted_ttft_seconds": ("Of the same, what was predicted at arrival.", self.predicted),
            "pagedserve:ttft_actual_over_predicted": ("First tokens: actual over predicted.", self.ratio),
            "vllm:request_queue_time_seconds": ("Arrival to first step.", self.queue),
            "vllm:inter_token_latency_seconds": ("Gaps between tokens.", self.between),
            "vllm:request_time_per_output_token_seconds": ("Mean gap of a request.", self.tpot),
            "vllm:e2e_request_latency_seconds": ("Arrival to last token.", self.whole),
            "vllm:iteration_tokens_total": ("Tokens of a step.", self.step_tokens),
        }
        for name, (text, values) in histograms.items():
            yield families.histogram(name, text, values)
        refused = {(reason,): count for reason, count in self.rejections.items()}
        yield families.counter("vllm:admission_rejections", "Requests refused, by reason.", ("reason",), refused)
        ended = {(how,): count for how, count in self.ended_requests.items()}
        yield families.counter("pagedserve:requests", "Requests that are over, by how they ended.", ("end",), ended)
        kept = {key: count for key, count in self.promises.items() if count}
        text = "Promises kept and broken; a refusal breaks them."
        yield families.counter("pagedserve:promises", text, ("promise", "outcome"), kept)


def _promises(request: Request) -> dict[str, float | None]:
    params = request.params
    return {"ttft": params.ttft_deadline_s, "tpot": params.tpot_target_s, "total": params.deadline_s}


def _client(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidInput(
            "metrics are given out through prometheus-client: pip install 'pagedserve[metrics]'"
        ) from error
