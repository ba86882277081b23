# SPDX-License-Identifier: Apache-2.0
"""Costs fitted to a log: a known cost is found again, and predicts what it was not fitted to."""

from __future__ import annotations

import random

import pytest
from sim_parts import config

from pagedserve.errors import InvalidInput
from pagedserve.eventlog.codec import encode, encode_header
from pagedserve.scheduling.cost import StepShape
from pagedserve.simulate import workload as w
from pagedserve.simulate.calibrate import MeasuredStep, fit, machine_from_log, read_steps
from pagedserve.simulate.cluster import Cluster, simulate
from pagedserve.simulate.cost import StepCurve

OWN = {"context_ms": 2e-4, "pair_ms": 3e-4, "seq_ms": 0.1, "settle_ms": 1.5, "change_ms": 0.4}
TRUE = StepCurve([(1, 4), (8, 5), (64, 18), (512, 150)], **OWN)
CONFIG = config(max_seqs=32, max_step_tokens=256)


class Noisy(StepCurve):
    """TRUE, and chance: some percent up or down, and now and then another program's turn."""

    def __init__(self, sigma: float, hiccups: float, seed: int = 1) -> None:
        super().__init__(TRUE.knots, **OWN)
        self._sigma, self._hiccups, self._clock = sigma, hiccups, random.Random(seed)

    def ms(self, shape: StepShape) -> float:
        factor = self._clock.lognormvariate(0.0, self._sigma)
        return super().ms(shape) * (20 * factor if self._clock.random() < self._hiccups else factor)


def stream(seed, rate=12.0, prompt=150, output=30, seconds=25):
    profile = w.steady(rate, seconds)
    return w.requests(profile.arrivals(seed), w.lognormal(prompt, 0.7, 800), w.lognormal(output, 0.6, 200), seed=seed)


def log_of(path, cost, seed=1):
    with open(path, "w", encoding="utf-8") as file:
        file.write(encode_header(CONFIG) + "\n")
        cluster = Cluster(CONFIG, cost, on_event=lambda record, made: file.write(encode(record, made) + "\n"))
        return cluster.run(stream(seed))


def test_a_known_cost_is_found_again(tmp_path):
    log_of(tmp_path / "log", TRUE)
    found_config, steps = read_steps(tmp_path / "log")
    assert found_config == CONFIG
    fitted = fit(steps)
    assert fitted.median_error < 0.01
    assert abs(fitted.total_error) < 1e-6
    for shape in (StepShape(1, 1, 200, 0), StepShape(32, 32, 8000, 0), StepShape(256, 1, 0, 256 * 128)):
        assert fitted.cost.ms(shape) == pytest.approx(TRUE.ms(shape), rel=0.06)
    assert fitted.cost.settle_ms == pytest.approx(TRUE.settle_ms, rel=0.15)
    assert fitted.cost.change_ms == pytest.approx(TRUE.change_ms, rel=0.15)


def test_what_stands_beside_a_prompt_has_prices_of_its_own(tmp_path):
    own = {"context_ms": 1e-3, "mixed_context_ms": 2e-4, "pair_ms": 3e-4, "mixed_seq_ms": 0.3}
    true = StepCurve(TRUE.knots, **own)
    log_of(tmp_path / "log", true)
    cost = fit(read_steps(tmp_path / "log")[1]).cost
    for shape in (StepShape(16, 16, 5000, 0), StepShape(256, 1, 0, 256 * 128), StepShape(256, 24, 5000, 233 * 117)):
        assert cost.ms(shape) == pytest.approx(true.ms(shape), rel=0.04)
    assert cost.context_ms == pytest.approx(1e-3, rel=0.1)
    # Contexts come with sequences, so what 200 keys and their sequence cost is known better than each.
    assert cost.mixed_seq_ms + 200 * cost.mixed_context_ms == pytest.approx(0.34, rel=0.1)


@pytest.mark.parametrize("sigma, hiccups", [(0.0, 0.0), (0.1, 0.0), (0.1, 0.01)])
def test_what_it_was_not_fitted_to_is_predicted(tmp_path, sigma, hiccups):
    """The bars of a simulator: whole answers to 5 %, the tail of first tokens to 10 %."""
    log_of(tmp_path / "log", Noisy(sigma, hiccups))
    cost = fit(read_steps(tmp_path / "log")[1]).cost
    others = {"more, shorter": (14.0, 80, 40), "fewer, longer": (6.0, 280, 20)}
    for seed, shape in enumerate(others.values(), start=5):
        real = simulate(CONFIG, TRUE, stream(seed, *shape)).summary()
        guess = simulate(CONFIG, cost, stream(seed, *shape)).summary()
        assert guess.total_s.p50 == pytest.approx(real.total_s.p50, rel=0.05)
        assert guess.ttft_s.p99 == pytest.approx(real.ttft_s.p99, rel=0.10)


def test_a_price_is_the_mean_of_what_steps_took_not_what_most_of_them_did():
    clock = random.Random(4)
    shapes = [StepShape(n, n, 100 * n, 0) for n in (1, 4, 8) for _ in range(1000)] + [StepShape(256, 1, 0, 5000)] * 300
    scatter = {1: 0.5, 4: 0.5, 8: 0.5, 256: 0.05}
    steps = []
    for shape in shapes:
        ms = TRUE.ms(shape) * clock.lognormvariate(0.0, scatter[shape.num_tokens])
        steps.append(MeasuredStep(0.0, shape, ms, ms))
    cost = fit(steps).cost
    for tokens in scatter:
        these = [step for step in steps if step.shape.num_tokens == tokens]
        mean = sum(step.period_ms for step in these) / len(these)
        assert cost.ms(these[0].shape) == pytest.approx(mean, rel=0.04)


def test_a_machine_from_a_log_says_that_it_was_measured(tmp_path):
    log_of(tmp_path / "log", TRUE)
    machine = machine_from_log(tmp_path / "log")
    assert {constant.kind for constant in machine.constants} == {"measured"}
    assert (machine.num_pages, machine.page_size) == (CONFIG.num_pages, CONFIG.page_size)


def test_too_few_steps_and_no_log_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="too few"):
        fit([])
    (tmp_path / "log").write_text("hello\n")
    with pytest.raises(InvalidInput):
        read_steps(tmp_path / "log")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_steps(tmp_path / "none")
