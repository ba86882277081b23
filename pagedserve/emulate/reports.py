# SPDX-License-Identifier: Apache-2.0
"""Reads what AddressSanitizer, UBSan and ThreadSanitizer print, and says it in a kernel's words."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Frames of the emulator and of the standard library are not where a kernel went wrong.
FRAME = re.compile(r"^\s+#\d+ (?P<function>.+?) (?P<file>/[^\s:]+):(?P<line>\d+)", re.MULTILINE)
INNER = ("/target/emu", "/target/ptx", "/target/convert.h", "/usr/", "libsanitizer", "sysdeps")
THREAD = re.compile(r"Thread (T\d+) '([^']*)'")
ACCESS = re.compile(
    r"^\s+(?P<kind>(?:Previous )?(?:atomic )?(?:[Rr]ead|[Ww]rite)) of size (?P<size>\d+) at (?P<address>0x[0-9a-f]+) "
    r"by (?P<thread>main thread|thread T\d+)",
    re.MULTILINE,
)
RACE = re.compile(r"WARNING: ThreadSanitizer: data race.*?(?:^=+$|\Z)", re.DOTALL | re.MULTILINE)
ADDRESS = re.compile(r"ERROR: AddressSanitizer: (?P<kind>[\w-]+)(?P<body>.*?)(?:SUMMARY|\Z)", re.DOTALL)
BUFFER = re.compile(r"^pagedserve buffer (\S+) (0x[0-9a-f]+)$", re.MULTILINE)
BEYOND = re.compile(
    r"is located (?P<distance>\d+) bytes (?P<side>to the \w+ of|before|after|inside of) (?:a )?(?P<bytes>\d+)-byte "
    r"region \[(?P<begin>0x[0-9a-f]+)"
)
CONTEXT = re.compile(r"^pagedserve: (.*)$", re.MULTILINE)
UNDEFINED = re.compile(r"^(?P<file>[^\s:]+):(?P<line>\d+):\d+: runtime error: (?P<text>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: "race", "out-of-bounds", "undefined", or an emulator's kind such as "deadlock".
        text: what, where and by whom.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def place(stack: str) -> str:
    """The innermost line of a stack that is the kernel's own."""
    frames = [(match["file"], match["line"]) for match in FRAME.finditer(stack)]
    for file, line in frames:
        if not any(part in file for part in INNER):
            return f"{Path(file).name}:{line}"
    return f"{Path(frames[0][0]).name}:{frames[0][1]}" if frames else "an unknown place"


def parse(stderr: str) -> list[Finding]:
    """Every report, once for each pair of lines."""
    found = [*_bounds(stderr), *_undefined(stderr), *_races(stderr)]
    return list({finding.text.split(" by ")[0]: finding for finding in reversed(found)}.values())[::-1]


def _bounds(stderr: str) -> Iterator[Finding]:
    for report in ADDRESS.finditer(stderr):
        body = report["body"]
        access = re.search(r"(READ|WRITE) of size (\d+)", body)
        verb = {"READ": "reads", "WRITE": "writes"}[access[1]] if access else "touches"
        size = f" {access[2]} bytes" if access else ""
        context = CONTEXT.search(stderr)
        who = f"{context[1]}, " if context else ""
        beyond = BEYOND.search(body)
        if report["kind"] == "use-after-poison":
            where = "outside the block's shared memory"
        elif beyond:
            side = {"to the right of": "past the end", "after": "past the end"}.get(beyond["side"], "before the start")
            names = [name for name, begin in BUFFER.findall(stderr) if int(begin, 16) == int(beyond["begin"], 16)]
            buffer = " and ".join(names) or "a buffer"
            where = f"{beyond['distance']} bytes {side} of {buffer}, which has {beyond['bytes']} bytes"
        else:
            where = f"outside any array ({report['kind']})"
        yield Finding("out-of-bounds", f"{who}{place(body)}: {verb}{size} {where}")


def _undefined(stderr: str) -> Iterator[Finding]:
    for report in UNDEFINED.finditer(stderr):
        context = CONTEXT.search(stderr)
        who = f"{context[1]}, " if context else ""
        yield Finding("undefined", f"{who}{Path(report['file']).name}:{report['line']}: {report['text']}")


def _races(stderr: str) -> Iterator[Finding]:
    for report in RACE.finditer(stderr):
        names = dict(THREAD.findall(report[0]))
        accesses = list(ACCESS.finditer(report[0]))
        if len(accesses) < 2:
            continue
        sides = []
        for access, following in zip(accesses, [*accesses[1:], None], strict=True):
            stack = report[0][access.end() : following.start() if following else None].split("\n\n")[0]
            kind = access["kind"].replace("Previous ", "").lower()
            thread = access["thread"].removeprefix("thread ")
            sides.append((kind, place(stack), names.get(thread, thread)))
        (kind, line, who), (other_kind, other_line, other_who) = sides[:2]
        yield Finding(
            "race",
            f"{kind} at {line} and {other_kind} at {other_line}, unordered by any barrier, fence or atomic; "
            f"by {who} and by {other_who}",
        )
