# SPDX-License-Identifier: Apache-2.0
"""PTX to C++ on the emulator's runtime: a kernel becomes a function, an instruction a statement."""

from __future__ import annotations

from pathlib import Path

from pagedserve.emulate import ptx_arithmetic, ptx_hopper, ptx_memory, ptx_warp
from pagedserve.emulate.ptx_case import Case, Handler, storage
from pagedserve.emulate.ptx_parse import Entry, Instruction, Module, PtxError, Symbol, parse

HANDLERS: dict[str, Handler] = ptx_arithmetic.HANDLERS | ptx_memory.HANDLERS | ptx_warp.HANDLERS | ptx_hopper.HANDLERS
POISON = {"bool": "false", "uint8_t": "0xa5", "uint16_t": "0xffff", "uint32_t": "0xffffffffu"}
RUNTIME = Path(__file__).resolve().parents[2] / "csrc" / "target" / "ptx_runtime.h"


def translate(text: str, *, name: str = "kernel.ptx") -> str:
    """C++ that runs the PTX on the emulator: one statement for one instruction, on a #line of its own.

    Args:
        text: a module as nvcc -ptx or Triton's asm["ptx"] gives it.
        name: of the file that errors and sanitizers shall name.

    Raises:
        PtxError: an instruction that is not known, with its line.
    """
    return translate_module(parse(text), name)


def translate_module(module: Module, name: str) -> str:
    parts = [f'#include "{RUNTIME}"\n', "namespace ptx = pagedserve::ptx;\n", "namespace {\n"]
    parts += [static_variable(symbol) for symbol in module.variables if symbol.kind in ("global", "const")]
    shared = [symbol for symbol in module.variables if symbol.kind == "shared"]
    parts += [function(entry, shared, name) for entry in module.entries]
    parts += [
        f"const uint32_t {cpp_function(entry)}_bytes[] = {{{parameter_bytes(entry)}}};\n" for entry in module.entries
    ]
    parts.append("}  // namespace\n")
    table = (
        "".join(f"    {{{table_row(entry)}}},\n" for entry in module.entries) + "    {nullptr, nullptr, 0, nullptr},\n"
    )
    parts.append(f"const ptx::Kernel ptx::kKernels[] = {{\n{table}}};\n")
    parts.append(f"const int ptx::kNumKernels = {len(module.entries)};\n")
    return "".join(parts)


def cpp_function(entry: Entry) -> str:
    return f"kernel_{entry.name.replace('$', '_')}"


def parameter_bytes(entry: Entry) -> str:
    return ", ".join(str(symbol.num_bytes) for symbol in entry.params) or "0"


def table_row(entry: Entry) -> str:
    function = cpp_function(entry)
    return f'"{entry.name}", {function}, {len(entry.params)}, {function}_bytes'


def static_variable(symbol: Symbol) -> str:
    values = ", ".join(str(byte) for byte in symbol.init)
    size = symbol.num_bytes or 1
    return f"alignas({symbol.align}) unsigned char {symbol.cpp}[{size}] = {{{values}}};\n"


def function(entry: Entry, module_shared: list[Symbol], name: str) -> str:
    """One kernel: what it names, then a statement per instruction."""
    used: dict[str, Symbol] = {}
    statements = []
    for item in entry.body:
        if isinstance(item, Instruction):
            statements.append(f'#line {item.line} "{name}"\n{statement(item, used)}\n')
        else:
            statements.append(f"{item.cpp}:;\n")
    head = [f"void {cpp_function(entry)}(const void* const* arguments) {{\n"]
    for index, symbol in enumerate(entry.params):
        head.append(f"  const char* const {symbol.cpp} = (const char*)arguments[{index}];\n")
    if not entry.params:
        head.append("  (void)arguments;\n")
    for symbol in used.values():
        kind = storage(symbol)
        head.append(f"  {kind} {symbol.cpp} = {POISON.get(kind, '~0ull')};\n")
    head += [shared_variable(symbol, f"{entry.name}/{index}") for index, symbol in enumerate(module_shared)]
    head += [own_variable(symbol, entry) for symbol in entry.variables]
    return "".join([*head, *statements, "}\n"])


def shared_variable(symbol: Symbol, key: str) -> str:
    if symbol.num_bytes is None:
        return f"  char* const {symbol.cpp} = ptx::dynamic_shared();\n"
    return (
        f"  static const char key_{symbol.cpp} = 0;\n"
        f"  char* const {symbol.cpp} = ptx::static_shared(&key_{symbol.cpp}, {symbol.num_bytes}, {symbol.align});\n"
    )


def own_variable(symbol: Symbol, entry: Entry) -> str:
    if symbol.kind == "shared":
        return shared_variable(symbol, entry.name)
    size = symbol.num_bytes or 1
    return (
        f"  alignas({symbol.align}) unsigned char {symbol.cpp}[{size}];\n"
        f"  memset({symbol.cpp}, 0xff, sizeof {symbol.cpp});\n"
    )


def statement(instruction: Instruction, used: dict[str, Symbol]) -> str:
    """One instruction as one C++ block, behind its guard.

    Raises:
        PtxError: the opcode or one of its modifiers is not known.
    """
    case = Case(instruction, used)
    handler = find(instruction.opcode)
    if handler is None:
        raise PtxError(
            f"PTX line {instruction.line}: {instruction.opcode} is not known to the translator; "
            f"an instruction is added in pagedserve/emulate/ptx_*.py with its meaning in csrc/target/ptx_*.h"
        )
    body = handler(case)
    if not instruction.guard:
        return f"{{ {body} }}"
    guard = case.read(instruction.guard, "pred")
    return f"if ({'!' if instruction.negated else ''}{guard}) {{ {body} }}"


def find(opcode: str) -> Handler | None:
    """The handler of the longest run of words that begins the opcode and has one."""
    words = opcode.split(".")
    for count in range(len(words), 0, -1):
        handler = HANDLERS.get(".".join(words[:count]))
        if handler is not None:
            return handler
    return None
