# SPDX-License-Identifier: Apache-2.0
"""doctor and explain: what they find, and what they say when something is missing."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from pagedserve.cli import machine, main
from pagedserve.models import load
from pagedserve.specs import SPECS


@pytest.fixture
def model_present(monkeypatch, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x" * 2048)
    monkeypatch.setattr(load, "find_model", lambda name: path)
    return path


def test_doctor_reports_every_part(model_present, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for title in ("Packages", "Processor", "CPU kernels", "GPU", "Backends", "Demo model", "Verdict"):
        assert f"\n{title}\n" in out
    assert f"{machine.instruction_set():12} can run here, and is used" in out
    assert f"{machine.processor().num_available} available" in out
    assert f"reference          runs {len(SPECS)} of {len(SPECS)} ops" in out
    assert "2.00 KiB" in out or "2 KiB" in out
    assert out.endswith("pagedserve demo can run here\n")


@pytest.mark.parametrize("sees", [False, True])
def test_doctor_says_which_backends_want_a_gpu(model_present, monkeypatch, capsys, sees):
    monkeypatch.setattr("torch.cuda.is_available", lambda: sees)
    main(["doctor"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    if machine.extension("_cuda")[0] is None:
        assert "not in this build" in lines["cuda"]
    else:
        assert ("ops run on a GPU, and torch sees none" in lines["cuda"]) is not sees
    assert "GPU" not in lines["cuda-emulated"]


def test_doctor_without_the_model_or_the_extension(monkeypatch, capsys):
    monkeypatch.setattr(
        load, "PACKAGED", {"smollm2-135m-instruct": load.PackagedModel("no_such_package", "f", "do so")}
    )
    monkeypatch.setattr(machine, "extension", lambda name="_C": (None, f"no module named {name}"))
    monkeypatch.setitem(sys.modules, "pagedserve.backends.cpu", None)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "not there (no module named _C)" in out
    assert "missing: the compiled kernels" in out
    assert "missing: smollm2-135m-instruct is in the package no_such_package, which is not installed: do so" in out
    assert "cpu                cannot:" in out
    assert out.endswith("pagedserve demo cannot run here\n")


def test_doctor_without_packages(monkeypatch, model_present, capsys):
    monkeypatch.setattr(machine, "version_of", lambda package: None)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "missing: torch: pip install torch" in out
    assert "none without torch" in out


def test_doctor_reports_a_refused_setting(monkeypatch, model_present, capsys):
    monkeypatch.setenv("PAGEDSERVE_THREADS", "many")
    assert main(["doctor"]) == 1
    assert "missing: PAGEDSERVE_THREADS is 'many'; give a whole number from 1 to 1024" in capsys.readouterr().out


def test_doctor_tells_whether_cuda_kernels_are_built(monkeypatch, model_present, capsys):
    found = machine.extension
    built = (SimpleNamespace(architectures="80 90a", toolkit="13.0.88"), "/lib/_cuda.so")
    for answer, line in (
        (built, "CUDA kernels for 80 90a, of toolkit 13.0.88: /lib/_cuda.so"),
        ((None, "no module"), "CUDA kernels are not built: PAGEDSERVE_CUDA=1 and nvcc build them (no module)"),
    ):
        monkeypatch.setattr(machine, "extension", lambda name="_C", a=answer: a if name == "_cuda" else found(name))
        assert main(["doctor"]) == 0
        assert line in capsys.readouterr().out


def test_doctor_lists_gpus_as_their_driver_does(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-40GB, 40960 MiB, 535.104.05, 8.0'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine.gpus() == [machine.Gpu("NVIDIA A100-SXM4-40GB", "40960 MiB", "535.104.05", "8.0")]
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert machine.gpus() == []


@pytest.mark.parametrize("op", sorted(SPECS))
def test_explain_every_op(op, capsys):
    assert main(["explain", op]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{op}: {SPECS[op].formula}")
    assert "reference: can run it" in out
    assert "flops a byte" in out


def flops_of(capsys, *argv: str) -> int:
    assert main(["explain", *argv]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if " flops, " in line)
    return int(line.split()[0].replace(",", ""))


def test_explain_counts_the_call_that_is_described(capsys):
    shape = ("--shape", "num_seqs=3", "kv_len=100", "num_q_heads=4", "num_kv_heads=2")
    assert flops_of(capsys, "paged_decode", *shape, "head_dim=64") == 4 * 3 * 100 * 4 * 64
    # Queries of one sequence see 97, 98, 99 and 100 keys.
    assert flops_of(capsys, "paged_decode", *shape, "head_dim=64", "q_len=4") == 4 * 3 * (97 + 98 + 99 + 100) * 4 * 64
    assert flops_of(capsys, "linear", "--shape", "num_tokens=5", "in_features=64", "out_features=7") == 2 * 5 * 64 * 7


@pytest.mark.parametrize(
    "shape",
    [
        ["k_pages=int8"],
        ["k_pages=float8_e4m3fn", "q=float16"],
        ["k_pages=int4"],
        ["q_len=3", "tree_mask=yes", "sinks=yes", "window=64", "soft_cap=30"],
        ["page_size=1", "kv_len=0"],
        ["num_seqs=0"],
    ],
)
def test_explain_takes_what_attention_takes(shape, capsys):
    assert main(["explain", "paged_decode", "--shape", *shape]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in shape)
