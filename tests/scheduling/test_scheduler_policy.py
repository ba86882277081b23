# SPDX-License-Identifier: Apache-2.0
"""Each choice of the scheduler, alone; its config; and what it refuses at the door."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from pagedserve.errors import InvalidInput
from pagedserve.scheduling import policy
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import Arrive
from pagedserve.scheduling.request import Sequence, read_prompt

CONFIG = SchedulerConfig(num_pages=10, page_size=4, max_seqs=4, max_step_tokens=16, max_model_len=60)


def running(order: int, num_computed: int, priority: int = 0, preemptions: int = 0, hit: int = 0) -> Sequence:
    event = Arrive(0.0, f"r{order}", [1] * 50, 10, priority=priority)
    seq = Sequence(event, [1] * 50, order, 0.0)
    seq.computed, seq.preemptions, seq.prefix_hit_tokens = num_computed, preemptions, hit
    return seq


def test_a_level_of_priority_is_worth_seconds_of_waiting() -> None:
    early, later, urgent = (policy.waiting_key(t, p, 10.0) for t, p in ((0.0, 0), (3.0, 0), (8.0, 1)))
    assert urgent < early < later
    assert policy.waiting_key(11.0, 1, 10.0) > early, "who waited more than 10 s is ahead of a level more"


def test_the_watermark_holds_only_beside_others() -> None:
    config = dataclasses.replace(CONFIG, watermark=0.25)
    assert policy.watermark_pages(config, 10, num_running=1) == 2
    assert policy.watermark_pages(config, 10, num_running=0) == 0


def test_never_fits_says_which_limit() -> None:
    assert policy.never_fits(30, 11, CONFIG, 10) is None, "the 41st token is never computed"
    assert "need 11 pages of 4 tokens; the whole pool has 10" in (policy.never_fits(30, 12, CONFIG, 10) or "")
    assert "61, over max_model_len 60" in (policy.never_fits(60, 1, CONFIG, 10) or "")


def test_computing_again_costs_more_with_more_context() -> None:
    assert policy.recompute_cost(0, 100, 1000) == pytest.approx(105.0)
    assert policy.recompute_cost(1000, 1100, 1000) == pytest.approx(205.0)
    whole = policy.recompute_cost(0, 70, 50)
    assert whole == pytest.approx(policy.recompute_cost(0, 30, 50) + policy.recompute_cost(30, 70, 50))


def test_the_victim_is_the_cheapest_to_compute_again() -> None:
    seqs = [running(0, 5), running(1, 30), running(2, 20), running(3, 25)]
    assert policy.choose_victim(seqs, None, 1000).order == 2
    assert policy.choose_victim([*seqs[:2], running(2, 45, hit=40), seqs[3]], None, 1000).order == 2


def test_the_oldest_is_never_the_victim() -> None:
    assert policy.choose_victim([running(7, 1), running(3, 0), running(5, 40)], None, 1000).order == 7
    assert policy.choose_victim([running(3, 0, priority=-5), running(5, 40, priority=9)], None, 1000).order == 5


def test_the_victim_has_the_lowest_priority() -> None:
    assert policy.choose_victim([running(0, 1), running(1, 1, priority=1), running(2, 40)], None, 1000).order == 2


def test_not_the_same_victim_twice_in_a_row_while_there_is_another() -> None:
    seqs = [running(0, 5), running(1, 10), running(2, 40)]
    assert policy.choose_victim(seqs, seqs[1], 1000) is seqs[2]
    assert policy.choose_victim(seqs[:2], seqs[1], 1000) is seqs[1]


def test_past_preemptions_make_dearer_and_the_youngest_goes_among_equals() -> None:
    seqs = [running(0, 5), running(1, 10, preemptions=2), running(2, 25), running(3, 25)]
    assert policy.choose_victim(seqs, None, 10**9).order == 3


def test_swaps_where_that_is_cheaper_and_fits() -> None:
    config = dataclasses.replace(CONFIG, swap_page_tokens=1.0)
    assert policy.prefers_swap(running(0, 40), config, 10)
    assert not policy.prefers_swap(running(0, 40), config, 9), "10 pages do not fit in 9"
    assert not policy.prefers_swap(running(0, 40, hit=30), config, 10), "most of it is found again"
    assert not policy.prefers_swap(running(0, 0), config, 10)
    assert not policy.prefers_swap(running(0, 40), dataclasses.replace(config, swap_page_tokens=4.0), 10)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_pages", 0, "num_pages must be an int of at least 1; got 0"),
        ("page_size", 1.5, "page_size must be an int"),
        ("max_seqs", -1, "max_seqs"),
        ("max_step_tokens", 3, r"max_step_tokens must be an int of at least 4 \(max_seqs\); got 3"),
        ("max_model_len", None, "max_model_len"),
        ("watermark", 1.0, "watermark must be a share of the pool"),
        ("watermark", math.nan, "watermark"),
        ("num_host_pages", -1, "num_host_pages"),
        ("max_queue", -1, "max_queue"),
        ("priority_s", math.inf, "priority_s must be a finite number"),
        ("swap_page_tokens", -1.0, "swap_page_tokens"),
        ("attention_parity_tokens", 0, "attention_parity_tokens"),
        ("graph_buckets", (4, 2), "rising order"),
        ("graph_buckets", (0, 2), "rising order"),
        ("tpot_target_s", math.nan, "tpot_target_s must be seconds above 0, or None"),
        ("tpot_target_s", -1.0, "tpot_target_s"),
        ("tenants", {"a": 0.0}, "tenants must be names with finite weights above 0"),
    ],
)
def test_config_names_the_field_that_is_wrong(field: str, value: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("id", "", "id must be a string of at least one character"),
        ("id", 7, "id must be a string"),
        ("t", math.nan, "t must be a finite time"),
        ("prompt", [], "prompt must be at least one token id"),
        ("prompt", [1, -1], r"got \[1, -1\]"),
        ("prompt", [1 << 64], "prompt must be"),
        ("prompt", "text", "prompt must be"),
        ("prompt", [1.5], "prompt must be"),
        ("prompt", None, "prompt must be"),
        ("max_tokens", 0, "max_tokens must be an int of at least 1; got 0"),
        ("max_tokens", 2.0, "max_tokens"),
        ("max_tokens", True, "max_tokens"),
        ("min_tokens", -1, "min_tokens must be an int from 0 to max_tokens"),
        ("min_tokens", 9, "min_tokens"),
        ("priority", 0.5, "priority"),
        ("priority", 10**9, "priority"),
        ("stop_token_ids", [1], "stop_token_ids must be a frozenset"),
        ("tenant", None, "tenant"),
        ("cache_salt", 1, "cache_salt"),
        ("after", 3, "after"),
        ("ttft_deadline_s", math.nan, "ttft_deadline_s must be a number of seconds above 0"),
        ("ttft_deadline_s", 0.0, "ttft_deadline_s"),
        ("tpot_target_s", -1.0, "tpot_target_s"),
        ("deadline_s", math.inf, "deadline_s"),
        ("deadline_s", "soon", "deadline_s"),
    ],
)
def test_arrivals_are_refused_by_the_name_of_the_field(field: str, value: object, wanted: str) -> None:
    event = dataclasses.replace(Arrive(0.0, "a", [1, 2], 8), **{field: value})
    with pytest.raises(InvalidInput, match=wanted):
        read_prompt(event)


def test_prompts_of_numpy_ints_are_read() -> None:
    event = Arrive(0.0, "a", np.arange(3, dtype=np.int32), 8)
    prompt = read_prompt(event)
    assert prompt.tolist() == [0, 1, 2]
    assert {type(token) for token in prompt} == {int}
