# SPDX-License-Identifier: Apache-2.0
"""`python -m bench gpu` end to end on the CPU: parts in order, each in its time, rows as they come, resumed."""

import argparse
import json
import re
import shutil
import sys

import pytest
import torch
from rich.console import Console

from bench import gpu, report
from bench.gpu import intrinsics
from bench.gpu.parts import PARTS, Part
from bench.gpu.place import Place, verdict


def arguments(**changes) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    gpu.add_arguments(parser)
    args = parser.parse_args(["--dry-run"])
    for name, value in changes.items():
        setattr(args, name, value)
    return args


def test_words_are_numbered_as_the_kernel_numbers_them():
    text = intrinsics.SOURCE.read_text()
    numbers = {int(word) for word in re.findall(r"which == (\d+)", text)}
    assert numbers == set(range(len(intrinsics.WORDS)))


def test_differences_are_seen():
    exact = intrinsics.Word("w")
    one, two = torch.zeros(4, dtype=torch.int32), torch.tensor([0, 1, 0, 0], dtype=torch.int32)
    assert intrinsics.differences(exact, one, one)[0] == 0
    assert intrinsics.differences(exact, one, two)[0] == 1
    close = intrinsics.Word("w", result="float32", tolerance=1e-3)
    a = torch.tensor([1.0, float("nan"), float("inf"), 0.0]).view(torch.int32)
    b = torch.tensor([1.0005, float("nan"), float("inf"), 0.0]).view(torch.int32)
    c = torch.tensor([1.01, 0.0, float("inf"), float("nan")]).view(torch.int32)
    assert intrinsics.differences(close, a, b)[0] == 0
    assert intrinsics.differences(close, c, a)[0] == 3


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_every_word_means_the_same_in_ptx():
    """Each word of csrc/target from the source and from what nvcc emitted, on the same bits."""
    rows = list(intrinsics.rows(Place(is_dry=True), set()))
    assert len(rows) == len(intrinsics.WORDS)
    assert [row["case"] for row in rows if not row["passes"]] == []


def test_a_dry_run_goes_through_the_parts_and_resumes(tmp_path, capsys):
    file = tmp_path / "gpu.jsonl"
    console = Console(width=200)
    names = "correctness,roofs,grid,soak,constants,sanitizer"
    assert gpu.run(arguments(only=names, resume=file, budget_s=240.0), console) == 0, capsys.readouterr().out
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["part"] for row in rows} == set(names.split(","))
    assert set(report.SIGNATURE) <= set(rows[0])
    assert all(row["gpu"] == "none" and row["backend"] == "cuda-emulated" for row in rows)
    assert gpu.run(arguments(only=names, resume=file, budget_s=240.0), console) == 0
    assert len(file.read_text().splitlines()) == len(rows)  # all of it was there
    assert file.with_suffix(".csv").exists()


def test_a_row_that_was_cut_off_is_done_again(tmp_path):
    file = tmp_path / "gpu.jsonl"
    sheet = report.Sheet.resumed(file, report.sign(1, "x"))
    sheet.add({"part": "roofs", "case": "a"})
    with file.open("a") as out:
        out.write('{"part": "roofs", "ca')
    again = report.Sheet.resumed(file, report.sign(1, "x"))
    assert [row["case"] for row in again.rows] == ["a"]
    again.add({"part": "roofs", "case": "b"})
    assert [json.loads(line)["case"] for line in file.read_text().splitlines()] == ["a", "b"]


def test_a_part_that_hangs_is_ended():
    assert gpu.watched([sys.executable, "-c", "import time; time.sleep(60)"], 0.5) == "cut off"
    assert gpu.watched([sys.executable, "-c", "raise SystemExit(3)"], 20) == "failed"
    assert gpu.watched([sys.executable, "-c", ""], 20) == "done"


def test_what_ends_a_part_stands_in_its_rows(tmp_path):
    def broken(place, done):
        yield verdict("first", None)
        raise RuntimeError("the device is gone")

    part = Part("broken", 1, "", broken)
    with pytest.raises(RuntimeError):
        gpu.run_part(part, Place(is_dry=True), tmp_path / "rows.jsonl")
    rows = report.Sheet.resumed(tmp_path / "rows.jsonl").rows
    assert [(row["case"], row["passes"], row["why"]) for row in rows] == [
        ("first", True, ""),
        ("the part itself", False, "the device is gone"),
    ]


def test_without_a_device_or_such_a_part_it_says_so(capsys):
    console = Console(width=200)
    if not torch.cuda.is_available():
        assert gpu.run(arguments(dry_run=False), console) == 2
        assert "--dry-run" in capsys.readouterr().out
    assert gpu.run(arguments(only="nothing"), console) == 2
    assert PARTS[0].name in capsys.readouterr().out
