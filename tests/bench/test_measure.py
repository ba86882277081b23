# SPDX-License-Identifier: Apache-2.0
"""Statistics, rotation, roofs, signatures, figures of a run, and the command line, on tiny inputs."""

import csv
import json

import pytest
import torch

from bench import metrics, report, roofline
from bench.__main__ import main, parser
from bench.cases import FAMILIES, GRIDS, cases_of
from bench.cases.attention import AttentionShape
from bench.ops import best_read, under_roof
from bench.prompts import Prompts
from bench.timing import Rotation, alternate, percentile, summarise
from bench.workload import Record, Request, drive
from pagedserve import ops
from pagedserve.specs import SPECS


def test_percentiles_stand_between_neighbours():
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 4.0], 0.75) == 3.0
    timing = summarise([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (timing.median_s, timing.min_s, timing.num_calls) == (3.0, 1.0, 5)
    assert timing.spread == pytest.approx((4.6 - 1.4) / 3)
    with pytest.raises(ValueError, match="no call"):
        summarise([])


def test_inputs_rotate_through_more_than_the_cache():
    made = iter(range(100))
    rotation = Rotation(lambda: next(made), nbytes=300, cold_bytes=1000)
    assert [rotation.next() for _ in range(6)] == [0, 1, 2, 3, 0, 1]
    assert Rotation(lambda: 0, nbytes=10**12).is_cold
    assert not Rotation(lambda: 0, nbytes=8, cold_bytes=0).is_cold


def test_variants_take_turns():
    order = []
    timings = alternate({name: lambda name=name: order.append(name) for name in "ab"}, budget_s=0.0, min_calls=3)
    assert order == ["a"] * 2 + ["b"] * 2 + ["a", "b"] * 3
    assert timings["a"].num_calls == timings["b"].num_calls == 3


def test_a_roof_gives_floors_and_bounds():
    roof = roofline.Roof(1, read_bytes_per_s=10.0, copy_bytes_per_s=8.0, flops_per_s={"float32": 100.0})
    assert roof.floor_s(20, 50) == 2.0
    assert roof.bound(20, 50) == "memory"
    assert roof.floor_s(20, 500) == 5.0
    assert roof.bound(20, 500) == "compute"
    quieter = roofline.Roof(1, read_bytes_per_s=12.0, copy_bytes_per_s=7.0, flops_per_s={"float32": 90.0})
    assert roof.best(quieter) == roofline.Roof(1, 12.0, 8.0, {"float32": 100.0})
    assert quieter.with_read(11.0) == quieter
    assert quieter.with_read(13.0).read_bytes_per_s == 13.0
    readings = [{"best_read_GB_per_s": 2e-9, "read_bytes": 64}, {"best_read_GB_per_s": 3e-9, "read_bytes": 16}]
    assert best_read(readings, 64) == pytest.approx(2.0)
    assert best_read(readings, 65) == 0.0
    row = {"bytes": 20, "flops": 50, "rate": "float32", "min_us": 4e6, "us": 8e6, "read_GB_per_s": 5e-9}
    assert under_roof(row, roof)["roof_percent"] == pytest.approx(50)
    assert under_roof(row, roof)["bound"] == "memory"
    assert under_roof(row, roof)["read_percent"] == pytest.approx(50)
    assert under_roof(row | {"flops": 500}, roof)["read_percent"] is None


def test_roofs_are_measured_and_torch_keeps_its_threads():
    before = torch.get_num_threads()
    roof = roofline.measure(1, budget_s=0.01, num_bytes=1 << 16, edge=32)
    assert torch.get_num_threads() == before
    assert min(roof.read_bytes_per_s, roof.copy_bytes_per_s, *roof.flops_per_s.values()) > 0
    assert set(roof.flops_per_s) == set(roofline.RATES)
    assert "read" in roofline.describe(roof)


def test_every_row_is_signed_and_saved_as_it_comes(tmp_path):
    signature = report.sign(2, "python -m bench ops")
    sheet = report.Sheet("ops", signature, tmp_path / "new")
    assert sheet.files == []
    rows = [{"us": 1.5, "case": "a"}, {"us": 2.0, "case": "b", "command": "its own", "error": "none"}]
    for count, row in enumerate(rows, 1):
        sheet.add(row)
        lines, table = sheet.files
        assert [json.loads(line) for line in lines.read_text().splitlines()] == sheet.rows
        with table.open() as file:
            assert [row["case"] for row in csv.DictReader(file)] == ["a", "b"][:count]
    assert [row["command"] for row in sheet.rows] == ["python -m bench ops", "its own"]
    for row in sheet.rows:
        assert set(report.SIGNATURE) <= set(row)
        assert row["threads"] == 2
        assert row["torch"].startswith("2.")
    assert len(list((tmp_path / "new").iterdir())) == 2
    with pytest.raises(ValueError, match="lacks commit"):
        report.signed(rows, {name: 0 for name in report.SIGNATURE if name != "commit"})


def test_numbers_are_shown_to_three_digits():
    shown = [report.text_of(value) for value in (None, 0.012345, 12.345, 1234.5, "text", 7)]
    assert shown == ["-", "0.0123", "12.3", "1,234", "text", "7"]


def test_a_plot_is_saved(tmp_path):
    groups = {"one": {"ours": 80.0}, "two": {"ours": 60.0, "torch": 30.0}}
    path = report.plot_bars(groups, tmp_path / "new" / "plot.png", title="t", y_label="%", roof=100.0)
    assert path.stat().st_size > 1000


def test_a_legend_hides_no_bar():
    engines = [f"an engine with a long name {i} 1.2.3" for i in range(7)]
    groups = {f"workload {i}": {name: 100.0 + place for place, name in enumerate(engines)} for i in range(5)}
    figure = report.draw_bars(groups, title="t", y_label="tokens / s")
    figure.canvas.draw()
    legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert legend.y1 <= axes.y0
    assert 0 <= legend.x0 <= legend.x1 <= figure.bbox.x1


def test_figures_follow_their_definitions():
    # Two users: first tokens at 1 and 2 s, then a token each second.
    first = Record(10, 0.0, 0, [1.0 + i for i in range(10)], [7] * 10)
    second = Record(30, 0.5, 1, [2.0 + i for i in range(10)], [7] * 10)
    figures = metrics.figures([first, second], closed=True)
    assert figures["prompt_tok_per_s"] == 20.0  # 40 tokens in 2 s
    assert figures["decode_tok_per_s"] == 2.0  # tokens at 3, 3, 4, 4, ... in (2, 10]
    assert figures["decode_context"] == pytest.approx((12 + 19) / 4 + (31 + 38) / 4)  # of 2nd .. 9th and 1st .. 8th
    assert figures["output_tok_per_s"] == pytest.approx(20 / 11)
    assert figures["ttft_p50_ms"] == pytest.approx(1250)
    assert figures["tpot_p50_ms"] == pytest.approx(1000)
    assert "prompt_tok_per_s" not in metrics.figures([first, second], closed=False)
    alone = metrics.figures([Record(5, 0.0, 0, [1.0], [7])], closed=True)
    assert alone["tpot_p50_ms"] is None
    assert alone["decode_tok_per_s"] is None
    late = Record(30, 0.5, 1, [4.0 + i for i in range(10)], [7] * 10)  # six steps together are too few
    assert metrics.figures([first, late], closed=True)["decode_tok_per_s"] is None


class Batch:
    """Runs whoever waits to the end at once, a second a token, on a clock of its own."""

    version = precision = "none"

    def __init__(self):
        self.time_s = 0.0
        self.waiting = []

    def now(self):
        return self.time_s

    def add(self, request, prompt, max_tokens):
        self.waiting.append((request, max_tokens))

    def step(self, emit, timeout_s):
        batch, self.waiting = self.waiting, []
        for number in range(max(max_tokens for _, max_tokens in batch)):
            self.time_s += 1
            for request, max_tokens in batch:
                if number < max_tokens:
                    emit(request, [number])


def test_users_wait_for_their_answers_and_the_clock_does_not():
    engine = Batch()
    users = [Request((1,), 2, user=0), Request((1,), 2, user=1), Request((1,), 3, user=0)]
    clocked = [Request((1,), 1, arrival_s=1.5)]
    records = drive(engine, users + clocked, engine.now)
    assert records[0].token_s == [1.0, 2.0]
    assert records[2].arrival_s == 2.0
    assert records[2].token_s == [3.0, 4.0, 5.0]
    assert records[3].arrival_s == 1.5  # when it was due, although the engine was busy until 2
    assert records[3].token_s == [3.0]


def test_prompts_never_begin_alike():
    prompts = Prompts(range(50))
    pieces = [prompts.deal(20) for _ in range(12)]
    assert all(len(piece) == 20 for piece in pieces)
    assert len({piece[0] for piece in pieces}) == 12
    with pytest.raises(ValueError, match="no more prompts of 51"):
        prompts.deal(51)


def test_every_op_of_the_specs_has_cases():
    assert set(FAMILIES) == set(SPECS)
    for op in FAMILIES:
        for grid in GRIDS:
            names = [case.name for case in cases_of(op, grid)]
            assert len(set(names)) == len(names) > 0


WRITTEN_IN_PLACE = {"append_kv": ("k_pages", "v_pages"), "copy_pages": ("dst",), "rope": ("x",), "soft_cap": ("x",)}
WRITTEN_IN_PLACE |= {"rope_append_kv": ("q", "k_pages", "v_pages")}
WRITTEN_IN_PLACE |= {"plan_decode": ()}  # torch has none to agree with


@pytest.mark.parametrize("op", FAMILIES)
def test_cases_run_and_torch_agrees(op):
    for case in cases_of(op, "quick"):
        torch.manual_seed(0)
        inputs = case.make()
        if "out" in inputs:
            inputs["out"].fill_(torch.nan)
        for_torch = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
        if op == "copy_pages":
            for_torch["src"] = for_torch["dst"]
        ours = getattr(ops, op)(**inputs, backend="reference")
        theirs = case.torch(case.prepare(for_torch))
        if op in WRITTEN_IN_PLACE:
            for name in WRITTEN_IN_PLACE[op]:
                assert_near(for_torch[name], inputs[name])
        elif op == "sample":
            assert theirs[0].shape == (2, 1)
            assert theirs[0][:, 0].tolist() == ours.tokens.tolist() or not case.name.endswith("greedy")
        elif op in ("paged_decode", "paged_prefill"):
            assert_near(theirs.transpose(1, 2).flatten(0, 1), ours)
        else:
            assert_near(theirs, ours[0] if isinstance(ours, tuple) else ours)


def assert_near(ours, theirs):
    """Within bfloat16's rounding of the largest value: torch's way may use bfloat16 where ours does not."""
    difference = (ours.double() - theirs.double()).abs().max()
    assert difference <= 0.05 * max(1.0, float(theirs.double().abs().max()))


def test_shapes_are_read_and_refused():
    shape = AttentionShape.parse("2x40+8-h4/2-d16-p4-bf16")
    assert (shape.num_seqs, shape.kv_len, shape.q_len, shape.head_dim, shape.kv) == (2, 40, 8, 16, "bf16")
    assert cases_of("paged_decode", "1x64-h4/2-d16-p4-f32")[0].name == "1x64-h4/2-d16-p4-f32"
    with pytest.raises(ValueError, match="is no attention shape; write"):
        AttentionShape.parse("32x4096")
    with pytest.raises(ValueError, match="do not fit"):
        AttentionShape.parse("1x4+8-h4/2-d16-p4-f32")
    with pytest.raises(ValueError, match="there is no op"):
        cases_of("nothing", "quick")
    with pytest.raises(ValueError, match="rope has no grid"):
        cases_of("rope", "32x4096-h32/8-d128-p16-bf16")


def test_the_command_line_times_an_op(capsys, monkeypatch):
    monkeypatch.setenv("PAGEDSERVE_THREADS", "1")
    words = ["ops", "silu_mul", "--backend", "reference", "--grid", "quick", "--budget-s", "0.01"]
    words += ["--threads", "1", "--no-save"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "silu_mul" in printed
    assert "% of roof: " in printed


def test_the_command_line_refuses_what_it_does_not_know(capsys):
    assert main(["ops", "nothing", "--no-save"]) == 2
    assert "there is no op 'nothing'" in capsys.readouterr().out
    assert main(["ops", "silu_mul", "--backend", "nobody", "--no-save"]) == 2
    printed = capsys.readouterr().out
    assert "there is no such backend" in printed
    assert "roof" not in printed
    assert main(["serve", "--workload", "closed:x", "--no-save"]) == 2
    assert "is no workload" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parser().parse_args(["train"])
