# SPDX-License-Identifier: Apache-2.0
"""Hands a launch to a child process that a sanitizer watches, and takes its tensors back.

The child has no torch: the parent ships the params struct and the bytes of every storage that its pointers lead to.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedserve.emulate import build, reports, structs
from pagedserve.emulate.reports import Finding
from pagedserve.errors import InvalidInput

if TYPE_CHECKING:
    from pagedserve.emulate.library import Run

CHILD = Path(__file__).with_name("child.py")
# The first report of memory out of bounds ends the child; races are all collected.
OPTIONS = {
    "bounds": {
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:exitcode=97",
        "UBSAN_OPTIONS": "print_stacktrace=0",
    },
    "races": {"TSAN_OPTIONS": "report_thread_leaks=0:exitcode=0:history_size=4:ignore_noninstrumented_modules=1"},
}


@dataclass
class Outcome:
    """What a child left: findings, and counters where it came to an end."""

    findings: list[Finding]
    counters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """Memory that tensors share."""

    begin: int
    size: int


def storages_of(tensors: Sequence[Any]) -> list[Storage]:
    """The distinct storages of some tensors."""
    storages = {(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()) for tensor in tensors}
    return [Storage(begin, size) for begin, size in sorted(storages) if size]


def pointers_into(params: ctypes.Structure, storages: Sequence[Storage]) -> list[tuple[int, int, int, str]]:
    """(offset in the struct, number of the storage, bytes inside it, name) of every pointer that is not null."""
    found = []
    for offset, name in structs.pointers(type(params)):
        address = ctypes.c_uint64.from_buffer(params, offset).value
        if not address:
            continue
        numbers = [i for i, one in enumerate(storages) if one.begin <= address < one.begin + one.size]
        if not numbers:
            raise InvalidInput(
                f"{type(params).__name__}.{name} leads to none of the tensors given; a checked run needs every tensor "
                "that a kernel may touch"
            )
        found.append((offset, numbers[0], address - storages[numbers[0]].begin, name))
    return found


def call(library: Path, launcher: str, params: ctypes.Structure, tensors: Sequence[Any], run: Run) -> Outcome:
    """Runs a launcher in a child under run.build's sanitizer; the tensors then hold what it wrote."""
    from pagedserve.emulate.library import COUNTERS

    storages = storages_of(tensors)
    request = {
        "library": str(library),
        "launcher": launcher,
        "params_bytes": ctypes.sizeof(params),
        "config": bytes(run.config()).hex(),
        "counters": COUNTERS,
        "buffers": [storage.size for storage in storages],
        "pointers": pointers_into(params, storages),
    }
    with tempfile.TemporaryDirectory(prefix="pagedserve-emulate-") as folder:
        path = Path(folder) / "request"
        with path.open("wb") as file:
            file.write(json.dumps(request).encode() + b"\n" + bytes(params))
            begin = file.tell()
            for storage in storages:
                file.write(ctypes.string_at(storage.begin, storage.size))
        done = _run_child(path, run)
        if done is None:
            text = f"{launcher} had not ended after {run.timeout_s:g} s: a loop without end, or too large a shape"
            return Outcome([Finding("timeout", text)])
        outcome = _outcome(done, run.build, launcher)
        with path.open("rb") as file:
            file.seek(begin)
            for storage in storages:
                ctypes.memmove(storage.begin, file.read(storage.size), storage.size)
    return outcome


def _run_child(path: Path, run: Run) -> subprocess.CompletedProcess[str] | None:
    """None if it ran out of time."""
    command = [sys.executable, "-I", "-S", str(CHILD), str(path)]
    # ThreadSanitizer's shadow wants memory where it has always been.
    if shutil.which("setarch"):
        command = ["setarch", os.uname().machine, "-R", *command]
    environment = {**os.environ, "LD_PRELOAD": str(build.runtime(run.build)), **OPTIONS[run.build]}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=run.timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _outcome(done: subprocess.CompletedProcess[str], build_name: str, launcher: str) -> Outcome:
    findings = reports.parse(done.stderr)
    last = done.stdout.strip().splitlines()[-1:]
    if last and last[0].startswith("{"):
        answer = json.loads(last[0])
        if answer["error"]:
            findings.insert(0, Finding(answer["kind"], answer["error"]))
        elif answer["result"]:
            findings.insert(0, Finding("launch", f"{launcher} returned {answer['result']}, and no kernel said why"))
        return Outcome(findings, answer["counters"])
    if not findings:
        tail = "\n".join(done.stderr.strip().splitlines()[-12:])
        findings = [
            Finding("crash", f"{launcher} ended its process with {done.returncode} under {build_name}:\n{tail}")
        ]
    return Outcome(findings)
