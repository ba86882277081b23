# SPDX-License-Identifier: Apache-2.0
"""Recorded steps on the CPU against the same calls one by one."""

import pytest
import torch
from torch import Tensor

from pagedserve import ops
from pagedserve.backends.cpu_step import CpuStep
from pagedserve.errors import InvalidInput
from pagedserve.ops import Buffer, EagerStep, KVLayer, StepInputs, StepLimits, Weight

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCAB = 96, 3, 1, 32, 160, 100
Q, KV = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
LAYERS, PAGE_SIZE, NUM_PAGES = 2, 4, 24
LIMITS = StepLimits(max_tokens=24, max_seqs=4, max_pages=5, max_rows=6)
FORMATS = ("f32", "bf16", "q8", "q4")


def cpu_step(limits: StepLimits = LIMITS) -> CpuStep:
    return CpuStep(limits, StepInputs(limits), Buffer)


class Model:
    """Two layers with everything a family may ask for: QK-norm, biases, a residual norm, soft cap, windows."""

    def __init__(self, format: str) -> None:
        generator = torch.Generator().manual_seed(3)

        def weight(out_features: int, in_features: int) -> Weight:
            dense = torch.randn(out_features, in_features, generator=generator) / in_features**0.5
            return Weight.from_dense(dense, format)

        self.embedding = weight(VOCAB, HIDDEN)
        self.layers = [
            {
                "qkv": weight(Q + 2 * KV, HIDDEN),
                "o": weight(HIDDEN, Q),
                "gate_up": weight(2 * INTERMEDIATE, HIDDEN),
                "down": weight(HIDDEN, INTERMEDIATE),
            }
            for _ in range(LAYERS)
        ]
        self.norm, self.head_norm = (torch.rand(n, generator=generator) + 0.5 for n in (HIDDEN, HEAD_DIM))
        self.bias = torch.randn(Q + 2 * KV, generator=generator)
        self.cos_sin = ops.rope_table(HEAD_DIM, 20, theta=100.0)

    def pages(self) -> list[KVLayer]:
        shape = (NUM_PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM)
        return [KVLayer(torch.full(shape, float("nan")), torch.full(shape, float("nan"))) for _ in range(LAYERS)]

    def record(self, step, pages: list[KVLayer]):
        x, h, normed = step.buffer(HIDDEN), step.buffer(HIDDEN), step.buffer(HIDDEN)
        qkv, attended = step.buffer(Q + 2 * KV), step.buffer(Q)
        gate_up, activated = step.buffer(2 * INTERMEDIATE), step.buffer(INTERMEDIATE)
        q, k, v = qkv.columns(0, Q), qkv.columns(Q, Q + KV), qkv.columns(Q + KV, Q + 2 * KV)
        step.embed(self.embedding, out=x, scale=3.0)
        for index, (layer, kv) in enumerate(zip(self.layers, pages, strict=True)):
            step.rms_norm(x, self.norm, eps=1e-5, out=normed)
            step.linear(normed, layer["qkv"], out=qkv, bias=self.bias)
            step.rms_norm(q, self.head_norm, eps=1e-5, out=q, head_dim=HEAD_DIM)
            step.rope(qkv.columns(0, Q + KV), self.cos_sin, head_dim=HEAD_DIM)
            step.append_kv(k, v, kv)
            step.attention(q, kv, out=attended, scale=0.2, window=6 * index, soft_cap=20.0)
            step.linear(attended, layer["o"], out=h)
            step.rms_norm(h, self.norm, eps=1e-5, out=normed, residual=x)
            step.linear(normed, layer["gate_up"], out=gate_up)
            (step.gelu_mul if index else step.silu_mul)(gate_up, out=activated)
            step.linear(activated, layer["down"], out=x, accumulate=True)
        last, final, logits = step.buffer(HIDDEN, "row"), step.buffer(HIDDEN, "row"), step.buffer(VOCAB, "row")
        step.take_rows(x, out=last)
        step.rms_norm(last, self.norm, eps=1e-5, out=final)
        step.linear(final, self.embedding, out=logits)
        step.soft_cap(logits, 30.0)
        return step.build(logits)


def write_inputs(inputs: StepInputs, starts: list[int], lens: list[int], seed: int = 0) -> tuple[int, int, int]:
    """Rows whose new tokens, before which q_starts stand, end at lens; returns a run's counts."""
    generator = torch.Generator().manual_seed(seed)
    num_seqs, num_tokens = len(lens), starts[-1]
    inputs.q_starts[: num_seqs + 1] = torch.tensor(starts, dtype=torch.int32)
    inputs.kv_lens[:num_seqs] = torch.tensor(lens, dtype=torch.int32)
    inputs.page_table.fill_(-7)
    inputs.token_ids[:num_tokens] = torch.randint(0, VOCAB, (num_tokens,), generator=generator, dtype=torch.int32)
    rows = []
    for seq, length in enumerate(lens):
        pages = torch.arange(-(-length // PAGE_SIZE)) * 4 + seq  # 4 sequences' pages alternate
        inputs.page_table[seq, : len(pages)] = pages.to(torch.int32)
        begin, end = starts[seq], starts[seq + 1]
        positions = torch.arange(length - (end - begin), length)
        inputs.positions[begin:end] = positions.to(torch.int32)
        inputs.slot_mapping[begin:end] = pages[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
        rows += [end - 1] if end > begin else []
    inputs.logit_rows[: len(rows)] = torch.tensor(rows, dtype=torch.int32)
    return num_tokens, num_seqs, len(rows)


def steps_of(model: Model, *steps) -> list:
    return [model.record(step, model.pages()) for step in steps]


# A prompt of each length, a prompt's second part beside decodes, decodes alone, a row that sits out.
RUNS = (([0, 9, 10, 15], [9, 1, 5]), ([0, 6, 7, 8], [15, 2, 6]), ([0, 1, 2, 3], [16, 3, 7]), ([0, 1, 1, 2], [17, 3, 8]))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_recorded_and_eager_steps_agree_to_the_bit(format, num_threads, monkeypatch):
    monkeypatch.setenv("PAGEDSERVE_THREADS", str(num_threads))
    recorded, eager = steps_of(Model(format), cpu_step(), EagerStep("cpu", LIMITS))
    for starts, lens in RUNS:
        counts = write_inputs(recorded.inputs, starts, lens)
        write_inputs(eager.inputs, starts, lens)
        got, want = recorded.run(*counts), eager.run(*counts)
        assert got.shape == (counts[2], VOCAB)
        assert torch.isfinite(got).all()
        assert torch.equal(got, want)


@pytest.mark.parametrize("format", FORMATS)
def test_recorded_steps_follow_the_definition(format):
    recorded, eager = steps_of(Model(format), cpu_step(), EagerStep("reference", LIMITS))
    for starts, lens in RUNS:
        counts = write_inputs(recorded.inputs, starts, lens)
        write_inputs(eager.inputs, starts, lens)
        # A code of an activation may round the other way and move everything behind it.
        tolerance = 3e-5 if format in ("f32", "bf16") else 0.1
        torch.testing.assert_close(recorded.run(*counts), eager.run(*counts), rtol=0, atol=tolerance)


@pytest.mark.parametrize("format", ["bf16", "q4"])
def test_logits_of_a_sequence_depend_on_it_alone(format):
    """A sequence in one prompt chunk, in two, and beside others."""
    model = Model(format)
    whole, parts, beside = steps_of(model, cpu_step(), cpu_step(), cpu_step())
    want = whole.run(*write_inputs(whole.inputs, [0, 9], [9])).clone()
    ids = whole.inputs.token_ids[:9].clone()

    def run(step, starts: list[int], lens: list[int], tokens: Tensor) -> Tensor:
        counts = write_inputs(step.inputs, starts, lens, seed=5)
        step.inputs.token_ids[: len(tokens)] = tokens
        return step.run(*counts)

    run(parts, [0, 4], [4], ids[:4])
    assert torch.equal(run(parts, [0, 5], [9], ids[4:]), want)
    assert torch.equal(run(beside, [0, 9, 16, 17], [9, 7, 1], ids)[:1], want)


def test_no_rows_and_no_tokens_run():
    (step,) = steps_of(Model("q4"), cpu_step())
    num_tokens, num_seqs, _ = write_inputs(step.inputs, [0, 3], [3])
    assert step.run(num_tokens, num_seqs, 0).shape == (0, VOCAB)
    assert step.run(0, 0, 0).shape == (0, VOCAB)


def test_rows_of_unused_tokens_are_left_alone():
    step = cpu_step()
    x = step.buffer(HIDDEN)
    step.embed(Model("q8").embedding, out=x)
    rows = step.buffer(HIDDEN, "row")
    step.take_rows(x, out=rows)
    built = step.build(rows)
    x.tensor.fill_(7.0)
    built.run(*write_inputs(built.inputs, [0, 3], [3]))
    assert (x.tensor[3:] == 7).all()
    assert not (x.tensor[:3] == 7).any()


def test_quantised_activations_are_made_once_and_never_stale():
    """x read twice, then through a wider and a narrower view, then after each kind of write."""
    weights = {width: Weight.from_dense(torch.randn(64, width), "q4") for width in (32, 64)}
    norm = torch.rand(64) + 0.5

    def record(step):
        x, y, rows = step.buffer(64), step.buffer(64), step.buffer(64, "row")
        step.embed(table, out=x)
        step.linear(x, weights[64], out=y)
        step.linear(x, weights[64], out=y, accumulate=True)
        step.linear(x.columns(32, 64), weights[32], out=y, accumulate=True)
        step.linear(y.columns(0, 32), weights[32], out=x.columns(0, 64))
        step.linear(x.columns(0, 32), weights[32], out=y, accumulate=True)
        step.rms_norm(y, norm, eps=1e-5, out=x)
        step.linear(x, weights[64], out=y)
        step.soft_cap(x, 2.0)
        step.linear(x, weights[64], out=y, accumulate=True)
        step.rms_norm(x, norm[:32], eps=1e-5, out=x, head_dim=32)
        step.linear(x, weights[64], out=y, accumulate=True)
        step.rms_norm(y, norm, eps=1e-5, out=x, accumulate=True)
        step.linear(x, weights[64], out=y)
        step.rms_norm(y, norm, eps=1e-5, out=y, residual=x)
        step.linear(x, weights[64], out=y, accumulate=True)
        step.take_rows(y, out=rows)
        return step.build(rows)

    table = Weight.from_dense(torch.randn(VOCAB, 64), "f32")
    recorded, eager = record(cpu_step()), record(EagerStep("cpu", LIMITS))
    counts = write_inputs(recorded.inputs, [0, 7], [7])
    write_inputs(eager.inputs, [0, 7], [7])
    assert torch.equal(recorded.run(*counts), eager.run(*counts))
    recorded.start_profile()
    recorded.run(*counts)
    calls = {name: times for name, times, _ in recorded.profile()}
    assert calls["quantize_rows"] == 7  # x, its columns, y's columns, x's; after soft_cap, per head, as a residual


def test_profile_names_every_op():
    (step,) = steps_of(Model("q4"), cpu_step())
    counts = write_inputs(step.inputs, [0, 3], [3])
    step.run(*counts)
    step.start_profile()
    for _ in range(2):
        step.run(*counts)
    timings = {name: (calls, ns) for name, calls, ns in step.profile()}
    assert timings["attention"][0] == timings["append_kv"][0] == 2 * LAYERS
    assert timings[f"linear q4 {HIDDEN}x{INTERMEDIATE}"][0] == 2 * LAYERS
    assert timings["rms_norm"][0] == 2 * (3 * LAYERS + 1)
    assert all(ns > 0 for _, ns in timings.values())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda i: i.token_ids.fill_(VOCAB), r"token_ids\[0\] is 100.*vocab_size 100"),
        (lambda i: i.token_ids.fill_(-1), r"token_ids\[0\] is -1"),
        (lambda i: i.positions.fill_(20), r"positions\[0\] is 20.*max_position 20"),
        (lambda i: i.slot_mapping.fill_(NUM_PAGES * PAGE_SIZE), r"slot_mapping\[0\] is 96"),
        (lambda i: i.q_starts.copy_(torch.tensor([0, 3, 2, 4, 4])), "never fall"),
        (lambda i: i.q_starts.fill_(5), "q_starts goes from 5"),
        (lambda i: i.kv_lens.fill_(21), r"kv_lens\[0\] is 21.*5 pages of 4"),
        (lambda i: i.page_table.fill_(NUM_PAGES), r"page_table\[0\]\[0\] is 24.*num_pages 24"),
        (lambda i: i.page_table.fill_(-1), r"page_table\[0\]\[0\] is -1"),
        (lambda i: i.logit_rows.fill_(4), r"logit_rows\[0\] is 4"),
    ],
)
def test_inputs_that_point_outside_are_refused(change, words):
    (step,) = steps_of(Model("f32"), cpu_step())
    counts = write_inputs(step.inputs, [0, 3, 4], [3, 1])
    before = step.run(*counts).clone()
    change(step.inputs)
    with pytest.raises(InvalidInput, match=words):
        step.run(*counts)
    assert torch.equal(step._logits[:2], before)


@pytest.mark.parametrize("counts", [(25, 1, 1), (1, 5, 1), (1, 1, 7), (-1, 1, 1)])
def test_counts_beyond_the_limits_are_refused(counts):
    (step,) = steps_of(Model("f32"), cpu_step())
    with pytest.raises(InvalidInput, match="recorded for at most"):
        step.run(*counts)


def test_mistakes_are_found_while_recording():
    model, step = Model("q4"), cpu_step()
    x, narrow, rows = step.buffer(HIDDEN), step.buffer(32), step.buffer(HIDDEN, "row")
    (layer, _) = model.pages()
    for mistake, words in (
        (lambda: step.buffer(8, "page"), "'token' or 'row'"),
        (lambda: step.embed(model.embedding, out=narrow), "32.*in_features 96"),
        (lambda: step.rms_norm(x, model.norm, eps=1e-5, out=narrow), "out's width is 32, x's 96"),
        (lambda: step.rms_norm(x, model.norm[:90], eps=1e-5, out=x), "float32 tensor of 96"),
        (lambda: step.rms_norm(x, model.head_norm[:20], eps=1e-5, out=x, head_dim=20), "multiple of head_dim 20"),
        (lambda: step.linear(narrow, model.layers[0]["o"], out=x), "in_features 96"),
        (lambda: step.linear(x, model.layers[0]["o"], out=rows), "per row; give one per token"),
        (lambda: step.linear(x, model.layers[0]["o"], out=x, bias=model.bias), "bias"),
        (lambda: step.rope(x, model.cos_sin, head_dim=16), "rotary_dim"),
        (lambda: step.append_kv(x, x, layer), "k's width is 96"),
        (lambda: step.attention(narrow.columns(0, 16), layer, out=narrow, scale=1.0), "multiple of head_dim 32"),
        (lambda: step.attention(x, layer._replace(v=layer.v[:, :3]), out=x, scale=1.0), "v pages"),
        (lambda: step.attention(x, layer._replace(k=layer.k.to(torch.int8)), out=x, scale=1.0), "without scales"),
        (lambda: step.silu_mul(x, out=narrow), "twice out's 64"),
        (lambda: step.take_rows(rows, out=rows), "per row"),
        (lambda: step.soft_cap(x, 0.0), "above 0"),
        (lambda: step.build(x), "per token"),
    ):
        with pytest.raises(InvalidInput, match=words):
            mistake()
