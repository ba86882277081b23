# SPDX-License-Identifier: Apache-2.0
"""The checks of one call: right, the same in every order, nothing read before it is there, in bounds, free of races."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pagedserve.emulate.library import Run, Session, session
from pagedserve.errors import KernelFault
from pagedserve.ops.agreement import Results, as_bytes, copied, disagreement, results

BACKEND = "cuda-emulated"
Runs = Callable[[int], Iterator[Run]]


@dataclass(frozen=True)
class Check:
    """One question to a call.

    Attributes:
        asks: what is right where it passes.
        runs: of a seed. Each must give the bits of a plain run in order.
        wrong: what it means where bits differ; None: results are judged by the reference instead.
    """

    name: str
    asks: str
    runs: Runs
    wrong: str | None


CHECKS = (
    Check("result", "within the error budget of the float64 reference", lambda seed: iter([Run()]), None),
    Check(
        "order",
        "the same bits in every order of threads and blocks",
        lambda seed: iter([Run(schedule="reversed"), *(Run(schedule="random", seed=seed + i) for i in range(3))]),
        "the result depends on the order in which threads run: a barrier or a wait is missing",
    ),
    Check(
        "copies",
        "the same bits whenever async copies land",
        lambda seed: iter([Run(eager_copies=True)]),
        "the result depends on when async copies land: a wait is missing or too late",
    ),
    Check(
        "poison",
        "the same bits whatever shared memory held before",
        lambda seed: iter([Run(poison=0x00), Run(poison=0x3C)]),
        "the result depends on shared memory that no thread wrote",
    ),
    Check(
        "bounds",
        "no access outside of any tensor or array, no undefined arithmetic",
        lambda seed: iter([Run(build="bounds")]),
        "the result is another under AddressSanitizer",
    ),
    Check(
        "races",
        "every two accesses to one place ordered, if one of them writes",
        lambda seed: iter([Run(build="races", schedule="random", seed=seed)]),
        "the result is another under ThreadSanitizer",
    ),
)
NAMES = tuple(check.name for check in CHECKS)


@dataclass
class Verdict:
    """What came of one check.

    Attributes:
        problems: "kind: sentence" each; empty where it passed.
        counters: of the last run.
    """

    check: Check
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    counters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A call to be checked.

    Attributes:
        arguments: of `getattr(pagedserve.ops, op)`, on the CPU; never changed.
        sources, defines, ptx: see `pagedserve.emulate.session`.
    """

    op: str
    arguments: Mapping[str, Any]
    sources: Mapping[str, Path] = field(default_factory=dict)
    defines: tuple[str, ...] = ()
    ptx: str = ""

    def results(self, run: Run) -> tuple[Results, Session]:
        """Of one run.

        Raises:
            KernelFault: the kernel did what it may not do.
        """
        with session(run, sources=self.sources, defines=self.defines, ptx=self.ptx) as made:
            return results(self.op, copied(dict(self.arguments)), BACKEND), made


def differing(got: Results, plain: Results) -> str | None:
    """The first result whose bits differ."""
    names = (name for name in plain if not torch.equal(as_bytes(got[name]), as_bytes(plain[name])))
    return next(names, None)


def judge(subject: Subject, check: Check, seed: int, plain: Results | None) -> Verdict:
    """Runs one check. plain: what a plain run in order gave; None where that failed."""
    verdict = Verdict(check)
    begin = time.perf_counter()
    for run in check.runs(seed):
        try:
            got, made = subject.results(run)
        except KernelFault as fault:
            verdict.problems.append(f"{fault.kind}: {fault}".replace(f"{fault.kind}: {fault.kind}:", f"{fault.kind}:"))
            break
        verdict.counters = made.counters
        if check.wrong is None:
            wrong = disagreement(subject.op, dict(subject.arguments), got)
            verdict.problems += [f"wrong-result: {wrong}"] if wrong else []
        elif plain is not None and (name := differing(got, plain)):
            verdict.problems.append(f"{check.name}: {name} differs: {check.wrong}")
            break
    verdict.seconds = time.perf_counter() - begin
    return verdict


def judge_all(subject: Subject, names: Sequence[str] = NAMES, seed: int = 1) -> Iterator[Verdict]:
    """The checks of these names, one after the other."""
    plain: Results | None = None
    if any(check.wrong for check in CHECKS if check.name in names):
        try:
            plain, _ = subject.results(Run())
        except KernelFault:
            plain = None  # each check says what it finds
    for check in CHECKS:
        if check.name in names:
            yield judge(subject, check, seed, plain)
