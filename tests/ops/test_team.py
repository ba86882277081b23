# SPDX-License-Identifier: Apache-2.0
"""Whether a team runs together or on one thread for a while, results are the same."""

import subprocess
import sys
from contextlib import contextmanager

import torch

from pagedserve import _C, ops
from pagedserve.backends import cpu_params as params_of
from pagedserve.backends.cpu_step import CpuStep
from pagedserve.ops import Buffer, StepInputs, StepLimits, Weight

BUSY = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


@contextmanager
def rivals(count=4):
    """So many programs that want a processor."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for rival in running:
            rival.kill()
            rival.wait()


def test_one_thread_never_counts_as_kept_from_running():
    assert _C.Team(1).alone
    assert not _C.Team(2).alone


def test_results_do_not_depend_on_who_was_kept_from_running():
    x, weight = torch.randn(300, 512), torch.randn(512)
    expected = ops.rms_norm(x, weight, backend="cpu")
    team = _C.Team(2)
    with rivals():
        for _ in range(50):
            out = torch.empty_like(x)
            heads = x[:, None], out[:, None]
            _C.rms_norm(params_of.rms_norm(heads[0], weight, None, heads[1], 1e-6, False), team, _C.detect_isa())
            assert torch.equal(out, expected)


def test_a_step_that_goes_on_together_gives_what_it_gives_alone(monkeypatch):
    """Of many ops: under rivals it begins on one thread, and the team comes in behind any of them."""
    monkeypatch.setenv("PAGEDSERVE_THREADS", "2")
    size, tokens = 512, 32
    limits = StepLimits(max_tokens=tokens, max_seqs=1, max_pages=1, max_rows=1)
    step = CpuStep(limits, StepInputs(limits), Buffer)
    generator = torch.Generator().manual_seed(5)
    matrices = [torch.randn(size, size, generator=generator) / size**0.5 for _ in range(8)]
    weights = [Weight.from_dense(matrix, "q8") for matrix in matrices]
    x, normed, row = step.buffer(size), step.buffer(size), step.buffer(size, "row")
    step.embed(weights[0], out=x)
    for weight in weights[1:]:
        step.rms_norm(x, torch.ones(size), eps=1e-5, out=normed)
        step.linear(normed, weight, out=x, accumulate=True)
    step.take_rows(x, out=row)
    built = step.build(row)
    built.inputs.q_starts[:2] = torch.tensor([0, tokens], dtype=torch.int32)
    built.inputs.kv_lens[0] = tokens
    built.inputs.token_ids[:tokens] = torch.arange(tokens, dtype=torch.int32)
    built.inputs.logit_rows[0] = tokens - 1
    expected = built.run(tokens, 1, 1).clone()
    assert torch.isfinite(expected).all()
    with rivals():
        for _ in range(100):
            assert torch.equal(built.run(tokens, 1, 1), expected)
