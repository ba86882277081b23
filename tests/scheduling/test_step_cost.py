# SPDX-License-Identifier: Apache-2.0
"""The cost model: finds the prices of machines it knows nothing of, stays with them, and says how wrong it was."""

from __future__ import annotations

import math
import random

import pytest

from pagedserve.scheduling.cost import CostModel, StepPrices, StepShape

LAWS = {
    "processor": StepPrices(5, 0.45, 3e-4, 2e-4, 0.1, 0.3),
    "accelerator": StepPrices(6, 0.02, 3e-6, 1e-6, 0.01, 1),
    "very slow": StepPrices(200, 30, 0.01, 0.01, 2, 5),
}


def shapes(count: int, seed: int = 1) -> list[StepShape]:
    """As a server has them: decodes that go on, now and then with a chunk."""
    rng, made, num_seqs, context = random.Random(seed), list[StepShape](), 0, 0
    for _ in range(count):
        if rng.random() < 0.1:
            num_seqs = rng.randint(0, 64)
            context = num_seqs * rng.randint(10, 800)
        context += num_seqs
        shape = StepShape(num_seqs, num_seqs, context, 0)
        if num_seqs == 0 or rng.random() < 0.3:
            shape = shape.plus(rng.choice([0, 0, 128]), rng.randint(8, 512))
        made.append(shape)
    return made


def wrongness(model: CostModel, law: StepPrices, some: list[StepShape]) -> float:
    return sum(abs(model.ms(shape) / law.ms(shape) - 1) for shape in some) / len(some)


def test_the_formula_by_hand() -> None:
    prices = StepPrices(8.0, 0.5, 0.01, 0.001, 0.1, 1.0)
    assert prices.ms(StepShape(4, 4, 100, 0)) == pytest.approx(8.0 + 1.0 + 0.4 + 1.0)
    chunk = StepShape(4, 4, 100, 0).plus(10, 20)
    assert chunk == StepShape(24, 5, 100, 20 * 10 + 210)
    assert prices.ms(chunk) == pytest.approx(12.0 + 1.0 + 0.41 + 0.5 + 1.0)


@pytest.mark.parametrize("name", LAWS)
def test_prices_are_found_on_unknown_machines(name: str) -> None:
    law, model, rng = LAWS[name], CostModel(StepPrices()), random.Random(2)
    for shape in shapes(400):
        noise = rng.uniform(0.95, 1.05) * (10 if rng.random() < 0.02 else 1)
        model.learn(shape, law.ms(shape) * noise)
    assert wrongness(model, law, shapes(200, seed=7)) < 0.06
    assert 0.01 < model.error < 0.2
    assert abs(model.bias) < 0.15


def test_a_machine_that_changes_is_followed() -> None:
    law, model = LAWS["processor"], CostModel(StepPrices())
    for shape in shapes(300):
        model.learn(shape, law.ms(shape))
    for shape in shapes(300, seed=3):
        model.learn(shape, 2.5 * law.ms(shape))
    assert wrongness(model, law, shapes(100, seed=8)) == pytest.approx(1.5, abs=0.2)
    assert model.error < 0.1


def test_hours_of_the_same_step_forget_nothing() -> None:
    law, model = LAWS["processor"], CostModel(StepPrices())
    for shape in shapes(300):
        model.learn(shape, law.ms(shape))
    for _ in range(5000):
        model.learn(StepShape(8, 8, 4000, 0), law.ms(StepShape(8, 8, 4000, 0)))
    assert wrongness(model, law, shapes(100, seed=8)) < 0.1


def test_measured_prices_are_trusted_more_than_guessed_ones() -> None:
    law = LAWS["processor"]
    sure, unsure = (CostModel(StepPrices(5, 0.45, 3e-4, 2e-4, 0.1, 0.3, share)) for share in (0.05, 1.0))
    shape = StepShape(1, 1, 10, 0)
    for model in (sure, unsure):
        model.learn(shape, 3 * law.ms(shape))
    assert sure.ms(shape) < 1.6 * law.ms(shape) < 2.5 * law.ms(shape) < unsure.ms(shape)
    assert sure.is_known
    assert not unsure.is_known


@pytest.mark.parametrize("ms", [0.0, -1.0, math.nan, math.inf])
def test_times_that_cannot_be_teach_nothing(ms: float) -> None:
    model = CostModel(StepPrices())
    model.learn(StepShape(1, 1, 1, 0), ms)
    assert (model.num_measured, model.prices.token_ms) == (0, 0.5)


def test_the_most_within_a_limit() -> None:
    model, empty = CostModel(StepPrices(8.0, 0.5, 0.0, 0.001, 0.0, 0.0)), StepShape(0, 0, 0, 0)
    for limit_ms in (0.1, 8.0, 9.0, 20.0, 1e6, math.inf):
        most = model.most_within(limit_ms, 100, lambda n: empty.plus(50, n))
        fits = [n for n in range(1, 101) if model.ms(empty.plus(50, n)) <= limit_ms]
        assert most == max(fits, default=0)
    assert model.most_within(math.inf, -3, lambda n: empty) == 0
