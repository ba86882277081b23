# SPDX-License-Identifier: Apache-2.0
"""Reads PTX: entries with their parameters, variables, registers, labels and instructions, each with its line."""

from __future__ import annotations

import bisect
import re
from collections import ChainMap
from collections.abc import Collection, Iterator, MutableMapping
from dataclasses import dataclass, field

from pagedserve.errors import InvalidInput

TYPE_BYTES = {
    "pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2,
    "b32": 4, "u32": 4, "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4,
    "b64": 8, "u64": 8, "s64": 8, "f64": 8, "b128": 16,
}  # fmt: skip
SPACES = ("global", "shared", "local", "const", "param")


class PtxError(InvalidInput):
    """PTX that the translator cannot read or does not know; the message names the line."""


@dataclass(frozen=True)
class Symbol:
    """What a name stands for.

    Attributes:
        kind: "register", "label", "targets" (of an indexed branch), or a state space.
        cpp: the name in C++.
        type: element type of a register, parameter or variable.
        num_bytes: of a parameter or variable; None where the launch decides (dynamic shared memory).
        align: in bytes.
        init: a variable's first bytes; the rest is zero.
        labels: of "targets".
    """

    kind: str
    cpp: str
    type: str = ""
    num_bytes: int | None = 0
    align: int = 1
    init: bytes = b""
    labels: tuple[str, ...] = ()


Names = MutableMapping[str, Symbol]


@dataclass(frozen=True)
class Instruction:
    """`@!%p1 add.s32 %r1, %r2, 3;` is guard "%p1", negated, opcode "add.s32", operands ("%r1", "%r2", "3")."""

    line: int
    guard: str
    negated: bool
    opcode: str
    operands: tuple[str, ...]
    names: Names


@dataclass(frozen=True)
class LabelMark:
    line: int
    cpp: str


@dataclass
class Entry:
    """One kernel."""

    name: str
    line: int
    params: list[Symbol] = field(default_factory=list)
    registers: list[Symbol] = field(default_factory=list)
    variables: list[Symbol] = field(default_factory=list)  # shared and local ones of its own
    body: list[Instruction | LabelMark] = field(default_factory=list)


@dataclass
class Module:
    target: str
    entries: list[Entry]
    variables: list[Symbol]  # global, const and shared ones outside of kernels


def parse(text: str, only: Collection[str] | None = None) -> Module:
    """Reads a PTX module.

    Args:
        only: the entries to read; the others are passed over.

    Raises:
        PtxError: a construct that is not PTX as nvcc and Triton write it; the message names the line.
    """
    return _Parser(text, only).module()


def without_comments(text: str) -> str:
    """The text with every comment blank, line ends kept."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group(0)) if match.group(0)[0] == "/" else match.group(0)

    return re.sub(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', blank, text, flags=re.S)


def cpp_name(name: str) -> str:
    """A PTX name as a C++ identifier."""
    plain = re.sub(r"\W", "_", name.lstrip("%"))
    return plain if re.match(r"[A-Za-z_]", plain) else f"n{plain}"


def split_operands(text: str) -> tuple[str, ...]:
    """Operands, parted by the commas outside of braces, brackets and parentheses."""
    parts, depth, begin = [], 0, 0
    for place, char in enumerate(text):
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            parts.append(text[begin:place].strip())
            begin = place + 1
    last = text[begin:].strip()
    return (*parts, last) if last or parts else ()


class _Parser:
    LABEL = re.compile(r"\s*([A-Za-z_$%][\w$]*)\s*:(?!:)")
    LINE_DIRECTIVE = re.compile(r"\s*(\.(?:loc|file|version|target|address_size|alias)\b[^\n]*)")
    VARIABLE = re.compile(
        r"(?P<space>\.global|\.const|\.shared|\.local|\.param)\s*(?P<rest>.*?)\.(?P<type>[busf]\d+|pred|f16x2|b128)\s+"
        r"(?:\.ptr\s+(?:\.\w+\s+)??\.align\s+\d+\s+)?"  # what a pointer parameter points to
        r"(?P<name>[\w$%.]+)\s*(?P<array>(?:\[\s*\d*\s*\])*)\s*(?:=\s*(?P<init>.*))?",
        re.S,
    )

    def __init__(self, text: str, only: Collection[str] | None) -> None:
        self.only = only
        self.text = without_comments(text)
        self.place = 0
        self.line_ends = [match.start() for match in re.finditer("\n", self.text)]
        self.globals: Names = {}
        self.target = ""
        self.scopes = 0

    def fail(self, why: str, place: int | None = None) -> PtxError:
        return PtxError(f"PTX line {self.line(place)}: {why}")

    def line(self, place: int | None = None) -> int:
        return bisect.bisect_left(self.line_ends, self.place if place is None else place) + 1

    def skip_space(self) -> bool:
        """Whether anything is left."""
        while self.place < len(self.text) and self.text[self.place].isspace():
            self.place += 1
        return self.place < len(self.text)

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.place)
        if match:
            self.place = match.end()
        return match

    def until(self, stop: str) -> str:
        """The text before the next `stop` outside of quotes, which is passed over."""
        end, quoted = self.place, False
        while end < len(self.text) and (quoted or self.text[end] != stop):
            quoted ^= self.text[end] == '"'
            end += 1
        if end == len(self.text):
            raise self.fail(f"no {stop!r} before the end of the text")
        text, self.place = self.text[self.place : end], end + 1
        return text.strip()

    def module(self) -> Module:
        entries = []
        while self.skip_space():
            start = self.place
            directive = self.take(self.LINE_DIRECTIVE)
            if directive:
                words = directive.group(1).split()
                self.target = words[1].rstrip(",") if words[0] == ".target" else self.target
                continue
            head = re.compile(r"[^;{(=]*").match(self.text, self.place)
            words = head.group(0).split() if head else []
            if ".entry" in words:
                name = words[words.index(".entry") + 1]
                if self.only is None or name in self.only:
                    entries.append(self.entry())
                else:
                    self.skip_block()
            elif ".func" in words:
                self.function(start)
            elif ".section" in words:
                self.until("}")
            elif ".pragma" in words:
                self.until(";")
            else:
                symbol = self.variable(self.until(";"), start, self.globals, "")
                self.globals[symbol[0]] = symbol[1]
        own = [symbol for symbol in self.globals.values() if symbol.kind in SPACES]
        return Module(self.target, entries, own)

    def skip_block(self) -> None:
        """Passes over everything to the brace that closes the next block."""
        depth = 0
        for match in re.compile(r'"(?:\\.|[^"\\])*"|[{}]').finditer(self.text, self.place):
            depth += (match.group(0) == "{") - (match.group(0) == "}")
            if match.group(0) == "}" and depth == 0:
                self.place = match.end()
                return
        raise self.fail("no closing brace")

    def function(self, start: int) -> None:
        """A declaration is passed over: a call says whether it is known. A body is refused."""
        semicolon, brace = self.text.find(";", self.place), self.text.find("{", self.place)
        if brace != -1 and (brace < semicolon or semicolon == -1):
            raise self.fail(
                "a device function that was not inlined; translate kernels that are compiled with -O3", start
            )
        self.until(";")

    def variable(self, text: str, place: int, names: Names, prefix: str) -> tuple[str, Symbol]:
        match = self.VARIABLE.search(text)
        if match is None:
            raise self.fail(f"not a declaration that is known: {' '.join(text.split())[:80]!r}", place)
        align = re.search(r"\.align\s+(\d+)", match["rest"])
        element = TYPE_BYTES[match["type"]]
        sizes = re.findall(r"\[\s*(\d*)\s*\]", match["array"])
        init = self.init(match["init"], element, place) if match["init"] else b""
        num_bytes: int | None = element
        if sizes and "" in sizes:
            num_bytes = len(init) or None
        else:
            for size in sizes:
                num_bytes = (num_bytes or 0) * int(size)
        name = match["name"]
        cpp = prefix + cpp_name(name)
        kind = match["space"][1:]
        return name, Symbol(kind, cpp, match["type"], num_bytes, int(align[1]) if align else element, init)

    def init(self, text: str, element: int, place: int) -> bytes:
        values = re.findall(r"[^\s{},]+", text)
        try:
            numbers = [int(value.rstrip("U"), 0) for value in values]
        except ValueError:
            raise self.fail(f"an initial value that is not a whole number: {text[:60]!r}", place) from None
        return b"".join((number % (1 << 8 * element)).to_bytes(element, "little") for number in numbers)

    def entry(self) -> Entry:
        start = self.place
        head = self.take(re.compile(r"[^(;{]*?\.entry\s+([\w$]+)\s*"))
        if head is None:
            raise self.fail("an entry without a name", start)
        entry = Entry(head.group(1), self.line(start))
        names: Names = {}
        if self.text[self.place] == "(":
            self.place += 1
            for text in split_operands(self.until(")")):
                name, symbol = self.variable(text, start, names, "param_")
                names[name] = symbol
                entry.params.append(symbol)
        self.until("{")  # performance directives: .maxntid and the like
        self.block(entry, ChainMap(names, self.globals), "")
        return entry

    def block(self, entry: Entry, names: ChainMap[str, Symbol], prefix: str) -> None:
        """Statements up to the brace that closes this block. Labels are seen in all of it."""
        names = names.new_child()
        for label in self.labels_ahead():
            names[label] = Symbol("label", f"L_{prefix}{cpp_name(label)}")
        while self.skip_space():
            start = self.place
            if self.text[start] == "}":
                self.place += 1
                return
            if self.text[start] == "{":
                self.place += 1
                self.scopes += 1
                self.block(entry, names, f"s{self.scopes}_")
                continue
            if self.take(self.LINE_DIRECTIVE):
                continue
            label = self.take(self.LABEL)
            if label:
                self.skip_space()
                if self.text.startswith(".branchtargets", self.place):
                    targets = split_operands(self.until(";").removeprefix(".branchtargets"))
                    names[label[1]] = Symbol("targets", "", labels=targets)
                else:
                    entry.body.append(LabelMark(self.line(start), names[label[1]].cpp))
                continue
            self.statement(self.until(";"), start, entry, names, prefix)
        raise self.fail(f"{entry.name} has no closing brace")

    def labels_ahead(self) -> Iterator[str]:
        """Labels of the block that begins here, without those of blocks inside."""
        depth, place = 0, self.place
        token = re.compile(r'"(?:\\.|[^"\\])*"|[{};]|(?<![\w$%.])[A-Za-z_$][\w$]*\s*:(?!:)')
        while match := token.search(self.text, place):
            place = match.end()
            text = match.group(0)
            depth += (text == "{") - (text == "}")
            if depth < 0:
                return
            if text[-1] == ":" and depth == 0:
                yield text[:-1].strip()

    def statement(self, text: str, start: int, entry: Entry, names: ChainMap[str, Symbol], prefix: str) -> None:
        if not text or text.startswith(".pragma"):
            return
        if text.startswith(".reg"):
            for name, symbol in self.registers(text, start, prefix):
                names[name] = symbol
                entry.registers.append(symbol)
        elif text.startswith("."):
            name, symbol = self.variable(text, start, names, f"v_{prefix}")
            names[name] = symbol
            entry.variables.append(symbol)
        else:
            match = re.fullmatch(r"(?:@(!?)\s*([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", text, re.S)
            if match is None:
                raise self.fail(f"not an instruction: {' '.join(text.split())[:80]!r}", start)
            negated, guard, opcode, rest = match.groups()
            operands = tuple(" ".join(operand.split()) for operand in split_operands(rest))
            instruction = Instruction(self.line(start), guard or "", negated == "!", opcode, operands, names)
            entry.body.append(instruction)

    def registers(self, text: str, start: int, prefix: str) -> Iterator[tuple[str, Symbol]]:
        match = re.fullmatch(r"\.reg\s+(?:\.v\d\s+)?\.(\w+)\s+(.*)", text, re.S)
        if match is None or match[1] not in TYPE_BYTES:
            raise self.fail(f"registers of a type that is not known: {text[:60]!r}", start)
        for name in split_operands(match[2]):
            many = re.fullmatch(r"([\w$%]+)<(\d+)>", name)
            names = [f"{many[1]}{index}" for index in range(int(many[2]))] if many else [name]
            for each in names:
                yield each, Symbol("register", f"{prefix}{cpp_name(each)}", match[1], TYPE_BYTES[match[1]])
