# SPDX-License-Identifier: Apache-2.0
"""The launches of sampling."""

from __future__ import annotations

import torch

from pagedserve.backends.operands import Sample
from pagedserve.backends.triton.kernels.sample import count_history_kernel, sample_kernel
from pagedserve.backends.triton.launch import Launch
from pagedserve.backends.triton.sizes import ceil_div, power_of_two
from pagedserve.backends.triton.target import Target
from pagedserve.specs import sampling

ROW_PARAMS = tuple(entry.name for entry in sampling.ROW_PARAMS)
HISTORY_BLOCK = 256  # tokens of a row's history that one program counts


def sample(target: Target, call: Sample) -> list[Launch]:
    logits, history = call.logits, call.history
    num_rows, vocab_size = logits.shape
    config = target.config("sample", vocab_size=vocab_size)
    launches, seen = [], None
    if len(history):
        seen = logits.new_zeros((num_rows, vocab_size), dtype=torch.int32)
        # Which row has how much is on the device: as many programs a row as if it had all.
        grid = (ceil_div(len(history), HISTORY_BLOCK), num_rows)
        arguments = {
            "history": history,
            "history_starts": call.history_starts,
            "output_starts": call.output_starts,
            "seen": seen,
            "vocab_size": vocab_size,
        }
        launches.append(Launch(count_history_kernel, grid, arguments, {"BLOCK": HISTORY_BLOCK}, num_warps=4))
    arguments = {
        "logits": logits,
        **{name: getattr(call, name) for name in ROW_PARAMS},
        "seen": seen,
        "scores": torch.empty((num_rows, vocab_size), dtype=torch.float32, device=logits.device),
        "tokens": call.tokens,
        "logprobs": call.logprobs,
        "top_tokens": call.top_tokens,
        "top_logprobs": call.top_logprobs,
        "logits_stride": logits.stride(0),
        "vocab_size": vocab_size,
        "num_top": call.top_tokens.shape[1],
    }
    block = min(power_of_two(vocab_size, 16), config["block"])
    launches.append(
        Launch.configured(
            sample_kernel,
            (num_rows,),
            arguments,
            {"BLOCK": block},
            config,
        )
    )
    return launches
