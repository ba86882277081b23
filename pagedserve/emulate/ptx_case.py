# SPDX-License-Identifier: Apache-2.0
"""One PTX instruction on its way to C++: its modifiers, its operands as C++ expressions, its place in the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pagedserve.emulate.ptx_parse import TYPE_BYTES, Instruction, PtxError, Symbol, split_operands

CPP_TYPE = {
    "pred": "bool", "b8": "uint8_t", "u8": "uint8_t", "s8": "int8_t", "b16": "uint16_t", "u16": "uint16_t",
    "s16": "int16_t", "b32": "uint32_t", "u32": "uint32_t", "s32": "int32_t", "b64": "uint64_t", "u64": "uint64_t",
    "s64": "int64_t", "f32": "float", "f64": "double", "f16": "ptx::F16", "bf16": "ptx::BF16",
    "f16x2": "ptx::Pair<ptx::F16>", "bf16x2": "ptx::Pair<ptx::BF16>", "b128": "ptx::U128",
}  # fmt: skip
STORAGE = {"pred": "bool", 1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t", 16: "ptx::U128"}
# Packed and odd types that only conversions and matrix products name.
OTHER_TYPES = ("e4m3", "e5m2", "e4m3x2", "e5m2x2", "tf32", "ue8m0x2", "s4", "u4", "b1")
AXES = {"tid": "thread", "ntid": "threads", "ctaid": "block", "nctaid": "blocks"}
SPECIAL = {f"%{name}.{axis}": f"ptx::{cpp}().{axis}" for name, cpp in AXES.items() for axis in "xyz"} | {
    "%laneid": "ptx::lane()",
    "%warpid": "ptx::warp()",
    "%lanemask_eq": "(1u << ptx::lane())",
    "%lanemask_lt": "((1u << ptx::lane()) - 1)",
    "%lanemask_le": "((2u << ptx::lane()) - 1)",
    "%lanemask_gt": "~((2u << ptx::lane()) - 1)",
    "%lanemask_ge": "~((1u << ptx::lane()) - 1)",
    "%cluster_ctarank": "0u",
    "%cluster_nctarank": "1u",
    "%dynamic_smem_size": "ptx::dynamic_shared_bytes()",
    "WARP_SZ": "32u",
}
Handler = Callable[["Case"], str]


class Case:
    """An instruction being translated.

    Attributes:
        base: the opcode's first word; `words` are the others, without types.
        types: the type words, in order.
        type: the last of them, which is the operands' own; "" where there is none.
    """

    def __init__(self, instruction: Instruction, used: dict[str, Symbol]) -> None:
        self.instruction = instruction
        self.base, *rest = instruction.opcode.split(".")
        self.types = [word for word in rest if word in CPP_TYPE or word in OTHER_TYPES]
        self.words = [word for word in rest if word not in self.types]
        self.type = self.types[-1] if self.types else ""
        self.operands = instruction.operands
        self.used = used

    def fail(self, why: str) -> PtxError:
        return PtxError(
            f"PTX line {self.instruction.line}: {why}: {self.instruction.opcode} {', '.join(self.operands)}"
        )

    def allow(self, words: str) -> None:
        """Refuses modifiers beyond these, so that none is overlooked."""
        strange = [word for word in self.words if word not in words.split()]
        if strange:
            raise self.fail(f"{self.base} with .{', .'.join(strange)} is not known to the translator")

    def has(self, word: str) -> bool:
        return word in self.words

    def one_of(self, words: str) -> str:
        """The one of these words that the opcode has."""
        found = [word for word in self.words if word in words.split()]
        if len(found) != 1:
            raise self.fail(f"{self.base} needs one of .{', .'.join(words.split())}")
        return found[0]

    def symbol(self, name: str) -> Symbol:
        symbol = self.instruction.names.get(name)
        if symbol is None:
            raise self.fail(f"nothing is named {name!r}")
        if symbol.kind == "register":
            self.used[symbol.cpp] = symbol
        return symbol

    def read(self, operand: int | str, type: str | None = None) -> str:
        """An operand (by place or as text) as a C++ expression of `type`, by default the instruction's own."""
        text = self.operands[operand] if isinstance(operand, int) else operand
        type = type or self.type
        if text.startswith("!"):
            return f"!{self.read(text[1:], 'pred')}"
        if text in SPECIAL:
            return f"({CPP_TYPE[type]}){SPECIAL[text]}"
        number = self.number(text, type)
        if number is not None:
            return number
        match = re.fullmatch(r"([\w$%.]+)\s*(?:\+\s*(-?\w+))?", text)
        if match is None:
            raise self.fail(f"operand {text!r} is not understood")
        symbol = self.symbol(match[1])
        if symbol.kind == "register":
            if match[2]:
                raise self.fail(f"a sum {text!r} outside of an address")
            return self.register(symbol, type)
        if symbol.kind in ("label", "targets"):
            raise self.fail(f"{text!r} is a label")
        place = f"ptx::offset_of({symbol.cpp})" if symbol.kind == "shared" else f"(uint64_t)(uintptr_t){symbol.cpp}"
        return f"({CPP_TYPE[type]})({place} + {match[2] or 0})"

    def register(self, symbol: Symbol, type: str) -> str:
        if type == "pred" or CPP_TYPE[type] == storage(symbol):
            return symbol.cpp
        return f"ptx::as<{CPP_TYPE[type]}>({symbol.cpp})"

    def number(self, text: str, type: str) -> str | None:
        """A literal as C++, or None where the text is none."""
        if re.fullmatch(r"0[fF][0-9A-Fa-f]{8}", text):
            return f"ptx::as<{CPP_TYPE[type]}>(0x{text[2:]}u)"
        if re.fullmatch(r"0[dD][0-9A-Fa-f]{16}", text):
            wide = f"ptx::as<double>(0x{text[2:]}ull)"
            return wide if TYPE_BYTES[type] == 8 else f"ptx::as<{CPP_TYPE[type]}>((float){wide})"
        if not re.fullmatch(r"-?(0[xX][0-9A-Fa-f]+|0[bB][01]+|\d+)U?", text):
            return None
        text = text.rstrip("U")
        value = int(text, 8) if re.fullmatch(r"-?0[0-7]+", text) else int(text, 0)
        if type == "pred":
            return "true" if value else "false"
        size = TYPE_BYTES[type]
        return f"ptx::as<{CPP_TYPE[type]}>(0x{value % (1 << 8 * size):x}{'ull' if size == 8 else 'u'})"

    def write(self, operand: int | str, expression: str) -> str:
        """A statement that puts the expression into a register; its C++ type says how it is extended."""
        text = self.operands[operand] if isinstance(operand, int) else operand
        if text == "_":
            return f"(void)({expression});"
        symbol = self.symbol(text)
        if symbol.kind != "register":
            raise self.fail(f"{text!r} is not a register")
        return f"ptx::set({symbol.cpp}, {expression});"

    def vector(self, operand: int) -> tuple[str, ...]:
        """The members of `{a, b}`, or the operand itself."""
        text = self.operands[operand]
        return split_operands(text[1:-1]) if text.startswith("{") else (text,)

    def array(self, operand: int, type: str) -> str:
        """A vector operand's members, as a brace list of one type."""
        return "{" + ", ".join(self.read(member, type) for member in self.vector(operand)) + "}"

    def space(self, spaces: Sequence[str] = ("global", "shared", "local", "const", "param")) -> str:
        """The state space of a memory instruction; "generic" where it names none."""
        found = [word.partition("::")[0] for word in self.words if word.partition("::")[0] in spaces]
        return found[0] if found else "generic"

    def address(self, operand: int, space: str) -> str:
        """`[base + offset]` as a C++ pointer to bytes."""
        text = self.operands[operand]
        match = re.fullmatch(r"\[\s*([\w$%.]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
        if match is None:
            raise self.fail(f"address {text!r} is not understood")
        base, offset = match[1], int(match[2] or "0", 0)
        if re.fullmatch(r"-?\w+", base) and self.number(base, "u64"):
            pointer = f"ptx::pointer({self.number(base, 'u64')}, {offset})"
        else:
            symbol = self.symbol(base)
            if symbol.kind == "register":
                narrow = space == "shared"
                value = self.register(symbol, "u32" if narrow else "u64")
                pointer = f"ptx::shared_pointer({value}, {offset})" if narrow else f"ptx::pointer({value}, {offset})"
            elif symbol.kind == "shared":
                pointer = f"ptx::shared_pointer(ptx::offset_of({symbol.cpp}), {offset})"
            else:
                pointer = f"((char*){symbol.cpp} + {offset})"
        return pointer


def storage(symbol: Symbol) -> str:
    """The C++ type that holds a register's bits."""
    return STORAGE["pred"] if symbol.type == "pred" else STORAGE[TYPE_BYTES[symbol.type]]
