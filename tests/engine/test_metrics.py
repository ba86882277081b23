# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics: names that dashboards read, counts that add up, and what is still owed."""

from __future__ import annotations

import sys
import threading

import pytest

from pagedserve.engine.exposition import Histogram
from pagedserve.engine.metrics import EngineMetrics
from pagedserve.engine.sampling import SamplingParams
from pagedserve.errors import InvalidInput
from tests.engine.engine_fakes import FakeLLM, FakeRunner

LONG = 1000.0


def watched(runner=None, **changes):
    metrics = EngineMetrics("tiny")
    llm = FakeLLM(runner, observer=metrics, **changes)
    metrics.attach(llm)
    return llm, metrics


def values(metrics):
    """name and labels -> value, of everything a scrape would read."""
    parser = pytest.importorskip("prometheus_client.parser")
    found = {}
    for family in parser.text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "model_name"))
            found[(sample.name, *labels)] = sample.value
    return found


def test_every_name_that_dashboards_read_is_there():
    llm, metrics = watched()
    with llm:
        llm.generate(["hello there", "and more"], SamplingParams(max_tokens=6))
        names = {key[0] for key in values(metrics)}
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "num_requests_waiting_by_reason",
        "kv_cache_usage_perc",
        "num_preemptions_total",
        "request_queue_time_seconds_bucket",
        "time_to_first_token_seconds_sum",
        "inter_token_latency_seconds_count",
        "request_time_per_output_token_seconds_bucket",
        "e2e_request_latency_seconds_bucket",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "iteration_tokens_total_bucket",
    ):
        assert f"vllm:{name}" in names
    own = ("recompute_tax", "seconds_to_drain", "seconds_to_first_tokens", "retry_places_total")
    own += ("ttft_prediction_error", "step_prediction_error", "ttft_actual_over_predicted_count")
    assert {f"pagedserve:{name}" for name in own} <= names


def test_counts_add_up():
    llm, metrics = watched(FakeRunner(step_s=0.002))
    with llm:
        outputs = llm.generate(["hello there", "and more", "x"], SamplingParams(max_tokens=6, n=2))
        llm.close(drain=True)
        found = values(metrics)
    tokens = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
    assert found["vllm:generation_tokens_total",] == tokens == 36
    assert found["vllm:time_to_first_token_seconds_count",] == 6
    assert found["vllm:inter_token_latency_seconds_count",] == tokens - 6
    assert found["vllm:e2e_request_latency_seconds_count",] == 6
    assert found["pagedserve:requests_total", ("end", "answered")] == 6
    # The gaps between all tokens are the time from first tokens to last ones.
    total = sum(c.metrics.finish_s - c.metrics.first_token_s for output in outputs for c in output.outputs)
    assert found["vllm:inter_token_latency_seconds_sum",] == pytest.approx(total)
    assert found["vllm:iteration_tokens_total_sum",] >= tokens
    assert found["pagedserve:seconds_to_drain",] == 0.0


def test_who_waits_is_counted_by_what_it_waits_for():
    go = threading.Event()
    llm, metrics = watched(FakeRunner(before_step=lambda plan: go.wait(5)), max_seqs=1, max_step_tokens=32)
    with llm:
        streams = [llm.stream(text, SamplingParams(max_tokens=2, n=n)) for text, n in (("abc", 1), ("de", 3))]
        while llm.stats().running + llm.stats().waiting < 4:
            pass
        found = values(metrics)
        go.set()
        for stream in streams:
            for _ in stream:
                pass
    assert found["vllm:num_requests_waiting",] == 3
    assert found["vllm:num_requests_waiting_by_reason", ("reason", "capacity")] == 1
    assert found["vllm:num_requests_waiting_by_reason", ("reason", "deferred")] == 2


def test_promises_kept_and_broken():
    llm, metrics = watched(FakeRunner(step_s=0.01))
    with llm:
        llm.generate("abc", SamplingParams(max_tokens=4, ttft_deadline_s=LONG, tpot_target_s=1e-6))
        llm.generate("abc", SamplingParams(max_tokens=4, deadline_s=LONG))
        found = values(metrics)
    assert found["pagedserve:promises_total", ("outcome", "kept"), ("promise", "ttft")] == 1
    assert found["pagedserve:promises_total", ("outcome", "broken"), ("promise", "tpot")] == 1
    assert found["pagedserve:promises_total", ("outcome", "kept"), ("promise", "total")] == 1


def test_predictions_are_held_against_what_came():
    llm, metrics = watched(FakeRunner(step_s=0.005))
    with llm:
        # The scheduler makes no promise before it has measured a few steps.
        llm.generate("abc", SamplingParams(max_tokens=20))
        llm.generate(["abc", "def"], SamplingParams(max_tokens=2, ttft_deadline_s=LONG))
        llm.generate("abc", SamplingParams(max_tokens=2))
        found = values(metrics)
    assert found["pagedserve:predicted_ttft_seconds_count",] == 2
    assert found["pagedserve:predicted_ttft_seconds_sum",] > 0.005
    assert found["pagedserve:ttft_actual_over_predicted_count",] == 2


def test_a_refusal_is_counted_by_reason_and_breaks_what_was_promised():
    llm, metrics = watched(num_pages=4)
    with llm:
        (output,) = llm.generate(["x" * 20], SamplingParams(max_tokens=4, ttft_deadline_s=1.0))
        assert output.error is not None
        found = values(metrics)
    assert found["vllm:admission_rejections_total", ("reason", "never_fits")] == 1
    assert found["pagedserve:promises_total", ("outcome", "broken"), ("promise", "ttft")] == 1
    assert found["pagedserve:requests_total", ("end", "rejected")] == 1


def test_seconds_to_drain_falls_as_work_is_done():
    go = threading.Event()
    llm, metrics = watched(
        FakeRunner(before_step=lambda plan: go.wait(5) if llm.stats().steps > 3 else None, step_s=0.005)
    )
    with llm:
        stream = llm.stream("a prompt of some length", SamplingParams(max_tokens=100))
        next(stream)
        while llm.stats().steps <= 3:
            pass
        early = metrics.seconds_to_drain
        go.set()
        for _ in stream:
            pass
        llm.close(drain=True)
    assert early > 0.02  # 97 tokens are left; 26 were computed in four steps of 5 ms at least
    assert metrics.seconds_to_drain == 0.0


def test_aborted_requests_owe_nothing():
    llm, metrics = watched(FakeRunner(step_s=0.001))
    with llm:
        for _ in range(5):
            stream = llm.stream("abc", SamplingParams(max_tokens=200))
            next(stream)
            stream.close()
        llm.close()
        assert metrics.seconds_to_drain == 0.0
        assert values(metrics)["pagedserve:requests_total", ("end", "answered")] <= 5


def test_histograms_count_as_prometheus_does():
    histogram = Histogram([1.0, 2.0])
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert histogram.total == 12.0


def test_without_prometheus_it_records_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    llm, metrics = watched()
    with llm:
        llm.generate("abc", SamplingParams(max_tokens=3))
        assert metrics.ended_requests["answered"] == 1
        with pytest.raises(InvalidInput, match=r"pagedserve\[metrics\]"):
            metrics.exposition()
