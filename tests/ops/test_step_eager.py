# SPDX-License-Identifier: Apache-2.0
"""EagerStep: a recording runs as the same calls made by hand would, step after step."""

import pytest
import torch

from pagedserve import ops
from pagedserve.errors import BackendUnavailable, InvalidInput
from pagedserve.ops import EagerStep, KVLayer, StepLimits, Weight

LIMITS = StepLimits(max_tokens=8, max_seqs=3, max_pages=4, max_rows=3)
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDE, VOCAB, PAGE = 32, 4, 2, 8, 48, 50, 4


class Tiny:
    """A one-layer model with everything a recording can hold."""

    def __init__(self):
        random = torch.Generator().manual_seed(0)

        def weight(out_features, in_features):
            return Weight.from_dense(torch.randn(out_features, in_features, generator=random) / in_features**0.5)

        self.embedding, self.head = weight(VOCAB, HIDDEN), weight(VOCAB, HIDDEN)
        self.qkv, self.output = weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN), weight(HIDDEN, HEADS * HEAD_DIM)
        self.bias = torch.randn((HEADS + 2 * KV_HEADS) * HEAD_DIM, generator=random)
        self.gate_up, self.down = weight(2 * WIDE, HIDDEN), weight(HIDDEN, WIDE)
        self.norms = torch.rand(4, HIDDEN, generator=random) + 0.5
        self.qk_norm = torch.rand(HEAD_DIM, generator=random) + 0.5
        self.sinks = torch.randn(HEADS, generator=random)
        self.table = ops.rope_table(HEAD_DIM, 64)

    def record(self, step, layer):
        qkv_width, q_width = self.bias.numel(), HEADS * HEAD_DIM
        x, delta, normed, qkv, attended, gate_up, gated = (
            step.buffer(width) for width in (HIDDEN, HIDDEN, HIDDEN, qkv_width, q_width, 2 * WIDE, WIDE)
        )
        last, logits = step.buffer(HIDDEN, per="row"), step.buffer(VOCAB, per="row")
        q, k, v = (qkv.columns(*ends) for ends in ((0, q_width), (q_width, q_width + 16), (q_width + 16, qkv_width)))
        step.embed(self.embedding, out=x, scale=2.0)
        step.rms_norm(x, self.norms[0], eps=1e-6, out=normed)
        step.linear(normed, self.qkv, out=qkv, bias=self.bias)
        step.rms_norm(q, self.qk_norm, eps=1e-6, out=q, head_dim=HEAD_DIM)
        step.rope(q, self.table, head_dim=HEAD_DIM)
        step.rope(k, self.table, head_dim=HEAD_DIM, interleaved=True)
        step.append_kv(k, v, layer)
        step.attention(q, layer, out=attended, scale=0.4, window=6, soft_cap=20.0, sinks=self.sinks)
        step.linear(attended, self.output, out=delta)
        step.rms_norm(delta, self.norms[1], eps=1e-6, out=normed, residual=x)
        step.linear(normed, self.gate_up, out=gate_up)
        step.gelu_mul(gate_up, out=gated)
        step.silu_mul(gate_up, out=gated)
        step.linear(gated, self.down, out=delta)
        step.rms_norm(delta, self.norms[2], eps=1e-6, out=x, accumulate=True)
        step.rms_norm(x, self.norms[3], eps=1e-6, out=normed)
        step.take_rows(normed, out=last)
        step.linear(last, self.head, out=logits)
        step.linear(last, self.head, out=logits, accumulate=True)
        step.soft_cap(logits, 15.0)
        return step.build(logits)

    def by_hand(self, tokens, positions, k_cache, v_cache):
        """Logits of every token of one sequence, in torch, over all its keys so far; grows the caches."""
        rms = torch.nn.functional.rms_norm
        x = self.embedding.dense()[tokens] * 2
        qkv = rms(x, (HIDDEN,), self.norms[0], 1e-6) @ self.qkv.dense().T + self.bias
        q, k, v = qkv.split((HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM), dim=1)
        q, k, v = (part.unflatten(1, (-1, HEAD_DIM)).contiguous() for part in (q, k, v))
        q = rms(q, (HEAD_DIM,), self.qk_norm, 1e-6)
        q = ops.rope(q, positions, self.table, backend="reference")
        k = ops.rope(k, positions, self.table, interleaved=True, backend="reference")
        k_cache.append(k)
        v_cache.append(v)
        keys, values = torch.cat(k_cache), torch.cat(v_cache)
        logits = torch.einsum("qhd,khd->hqk", q, keys.repeat_interleave(HEADS // KV_HEADS, 1)) * 0.4
        logits = 20 * torch.tanh(logits / 20)
        key = torch.arange(len(keys))
        visible = (key <= positions[:, None]) & (key > positions[:, None] - 6)
        logits = logits.masked_fill(~visible, -torch.inf)
        sink = self.sinks[:, None, None].expand(-1, len(tokens), 1)
        weights = torch.cat((logits, sink), 2).softmax(2)[..., :-1]
        o = torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(HEADS // KV_HEADS, 1)).flatten(1)
        x = x + o @ self.output.dense().T
        gate, up = (rms(x, (HIDDEN,), self.norms[1], 1e-6) @ self.gate_up.dense().T).chunk(2, 1)
        delta = (torch.nn.functional.silu(gate) * up) @ self.down.dense().T
        x = x + rms(delta, (HIDDEN,), self.norms[2], 1e-6)
        logits = 2 * (rms(x, (HIDDEN,), self.norms[3], 1e-6) @ self.head.dense().T)
        return 15 * torch.tanh(logits / 15)


def fill(inputs, rows, pages):
    """rows: (batch row, tokens, first position) in row order; returns the counts of the run."""
    token = 0
    inputs.q_starts.zero_()
    ends = []
    for row, tokens, position in rows:
        count = len(tokens)
        inputs.token_ids[token : token + count] = torch.tensor(tokens, dtype=torch.int32)
        positions = torch.arange(position, position + count)
        inputs.positions[token : token + count] = positions.int()
        own = torch.tensor(pages[row])
        inputs.slot_mapping[token : token + count] = own[positions // PAGE] * PAGE + positions % PAGE
        inputs.kv_lens[row] = position + count
        inputs.page_table[row, : len(own)] = own.int()
        inputs.q_starts[row + 1 :] += count
        token += count
        ends.append(token - 1)
    inputs.logit_rows[: len(ends)] = torch.tensor(ends, dtype=torch.int32)
    return token, max(row for row, _, _ in rows) + 1, len(ends)


@pytest.mark.parametrize("backend", ["reference", "cpu", "auto"])
def test_steps_are_the_model_by_hand(backend):
    """A prompt in two chunks, another joining, then decodes with a row left out."""
    model = Tiny()
    pools = torch.full((2, 9, PAGE, KV_HEADS, HEAD_DIM), torch.nan)
    step = model.record(ops.step_builder(backend, LIMITS), KVLayer(pools[0], pools[1]))
    pages = {0: [3, 7, 1], 2: [8, 0, 5]}
    caches = {row: ([], []) for row in pages}
    steps = [
        [(0, [4, 9, 2, 30, 7], 0)],
        [(0, [11, 12], 5), (2, [1, 2, 3, 4], 0)],
        [(0, [49], 7), (2, [0], 4)],
        [(2, [17], 5)],
    ]
    for rows in steps:
        logits = step.run(*fill(step.inputs, rows, pages))
        assert logits.shape == (len(rows), VOCAB)
        for got, (row, tokens, position) in zip(logits, rows, strict=True):
            positions = torch.arange(position, position + len(tokens), dtype=torch.int32)
            want = model.by_hand(tokens, positions, *caches[row])[-1]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_auto_records_on_the_cpu_and_other_names_run_eagerly():
    assert type(ops.step_builder("auto", LIMITS)).__name__ == "CpuStep"
    assert type(ops.step_builder("cpu", LIMITS)).__name__ == "CpuStep"
    assert isinstance(ops.step_builder("reference", LIMITS), EagerStep)


def test_a_backend_that_does_not_exist_is_refused():
    with pytest.raises(InvalidInput, match=r"'abacus'; choose from auto, .*reference"):
        ops.step_builder("abacus", LIMITS)


@pytest.mark.parametrize(
    "act, word",
    [
        (lambda step: StepLimits(0, 1, 1, 1), "max_tokens is 0"),
        (lambda step: step.buffer(0), "width=0"),
        (lambda step: step.buffer(4, per="layer"), "'layer'"),
        (lambda step: step.buffer(4).columns(2, 5), "columns"),
        (lambda step: step.build(step.buffer(4)), "per token"),
        (lambda step: step.run(1, 1, 1), "not built"),
        (lambda step: step.build(step.buffer(4, per="row")).run(9, 1, 1), "num_tokens is 9"),
        (lambda step: step.build(step.buffer(4, per="row")).run(1, 4, 1), "num_seqs is 4"),
        (lambda step: step.build(step.buffer(4, per="row")).run(1, 1, -1), "num_rows is -1"),
    ],
)
def test_bad_recordings_are_refused(act, word):
    with pytest.raises(InvalidInput, match=word):
        act(EagerStep("reference", LIMITS))


def test_every_backend_error_reaches_the_caller():
    step = EagerStep("cpu", LIMITS)
    x = step.buffer(8)
    step.rms_norm(x, torch.ones(8, dtype=torch.float64), eps=1e-6, out=x)
    with pytest.raises((InvalidInput, BackendUnavailable), match="float64"):
        step.build(step.buffer(4, per="row")).run(1, 1, 1)
