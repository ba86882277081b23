# SPDX-License-Identifier: Apache-2.0
"""Whether a team runs together or on one thread for a while, results are the same."""

import subprocess
import sys

import torch

from pagedserve import _C, ops
from pagedserve.backends import cpu_params as params_of

BUSY = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


def test_one_thread_never_counts_as_kept_from_running():
    assert _C.Team(1).alone
    assert not _C.Team(2).alone


def test_results_do_not_depend_on_who_was_kept_from_running():
    x, weight = torch.randn(300, 512), torch.randn(512)
    expected = ops.rms_norm(x, weight, backend="cpu")
    team = _C.Team(2)
    rivals = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(4)]
    try:
        for _ in range(50):
            out = torch.empty_like(x)
            heads = x[:, None], out[:, None]
            _C.rms_norm(params_of.rms_norm(heads[0], weight, None, heads[1], 1e-6, False), team, _C.detect_isa())
            assert torch.equal(out, expected)
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()
