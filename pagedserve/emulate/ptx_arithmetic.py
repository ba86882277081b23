# SPDX-License-Identifier: Apache-2.0
"""PTX arithmetic, comparison, conversion and data movement between registers, as C++ expressions."""

from __future__ import annotations

from pagedserve.emulate.ptx_case import CPP_TYPE, OTHER_TYPES, Case, Handler
from pagedserve.emulate.ptx_parse import TYPE_BYTES

# base -> C++ function, types of its operands ("t": the instruction's own), type of the result, known modifiers.
# A function of ptx_runtime.h is overloaded or templated over the operand types.
ROUNDED = "rn ftz sat"
SIMPLE: dict[str, tuple[str, str, str, str]] = {
    "add": ("add", "t t", "t", ROUNDED),
    "sub": ("sub", "t t", "t", ROUNDED),
    "fma": ("fma", "t t t", "t", f"{ROUNDED} relu"),
    "min": ("min", "t t", "t", "ftz NaN relu"),
    "max": ("max", "t t", "t", "ftz NaN relu"),
    "neg": ("neg", "t", "t", "ftz"),
    "abs": ("abs", "t", "t", "ftz"),
    "not": ("bit_not", "t", "t", ""),
    "cnot": ("zero_to_one", "t", "t", ""),
    "and": ("bit_and", "t t", "t", ""),
    "or": ("bit_or", "t t", "t", ""),
    "xor": ("bit_xor", "t t", "t", ""),
    "div": ("div", "t t", "t", "rn approx full ftz"),
    "rem": ("rem", "t t", "t", ""),
    "sqrt": ("sqrt", "t", "t", "rn approx ftz"),
    "rsqrt": ("rsqrt", "t", "t", "approx ftz"),
    "rcp": ("rcp", "t", "t", "rn approx ftz"),
    "ex2": ("exp2", "t", "t", "approx ftz"),
    "lg2": ("log2", "t", "t", "approx ftz"),
    "sin": ("sin", "t", "t", "approx ftz"),
    "cos": ("cos", "t", "t", "approx ftz"),
    "tanh": ("tanh", "t", "t", "approx"),
    "copysign": ("copysign", "t t", "t", ""),
    "shl": ("shift_left", "t u32", "t", ""),
    "shr": ("shift_right", "t u32", "t", ""),
    "popc": ("population", "t", "u32", ""),
    "clz": ("leading_zeros", "t", "u32", ""),
    "brev": ("reversed_bits", "t", "t", ""),
    "bfe": ("field_extract", "t u32 u32", "t", ""),
    "bfi": ("field_insert", "t t u32 u32", "t", ""),
    "sad": ("sum_abs_diff", "t t t", "t", ""),
    "lop3": ("logic3", "b32 b32 b32 u32", "b32", ""),
    "prmt": ("permute_bytes", "b32 b32 u32", "b32", ""),
}
COMPARE = {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
    "lo": "less", "ls": "less_equal", "hi": "greater", "hs": "greater_equal",
    "equ": "equal_or_nan", "neu": "not_equal_or_nan", "ltu": "less_or_nan", "leu": "less_equal_or_nan",
    "gtu": "greater_or_nan", "geu": "greater_equal_or_nan", "num": "both_numbers", "nan": "any_nan",
}  # fmt: skip
COMBINE = {"and": "&", "or": "|", "xor": "^"}
ROUND_TO_WHOLE = {"rni": "nearest", "rzi": "to_zero", "rmi": "down", "rpi": "up"}


def finished(case: Case, expression: str) -> str:
    """The expression with what .ftz, .sat and .relu do to a result."""
    if case.has("ftz") and case.type == "f32":
        expression = f"ptx::flush({expression})"
    if case.has("sat") and case.type[0] in "fb":
        expression = f"ptx::saturate({expression})"
    elif case.has("sat"):
        raise case.fail("a saturating integer is not known to the translator")
    if case.has("relu"):
        expression = f"ptx::relu({expression})"
    return expression


def operand(case: Case, index: int, type: str) -> str:
    text = case.read(index, type)
    return f"ptx::flush({text})" if type == "f32" and case.has("ftz") else text


def simple(case: Case) -> str:
    function, sources, result, words = SIMPLE[case.base]
    case.allow(words)
    if not case.type:
        raise case.fail("an instruction without a type")
    types = [case.type if each == "t" else each for each in sources.split()]
    if len(case.operands) != len(types) + 1:
        raise case.fail(f"{case.base} takes {len(types) + 1} operands")
    values = ", ".join(operand(case, index + 1, type) for index, type in enumerate(types))
    name = f"{function}_nan" if case.has("NaN") else function
    cast = CPP_TYPE[case.type if result == "t" else result]
    return case.write(0, finished(case, f"({cast})ptx::{name}({values})"))


def find_bit(case: Case) -> str:
    case.allow("shiftamt")
    return case.write(0, f"ptx::{'shift_to_top' if case.has('shiftamt') else 'highest_bit'}({case.read(1)})")


def multiply(case: Case) -> str:
    """mul and mad: .lo, .hi and .wide of whole numbers, or floating point."""
    case.allow(f"lo hi wide {ROUNDED}")
    type = case.type
    factors = f"{operand(case, 1, type)}, {operand(case, 2, type)}"
    if type.startswith(("f", "bf")):
        text = f"ptx::mul({factors})" if case.base == "mul" else f"ptx::fma({factors}, {operand(case, 3, type)})"
        return case.write(0, finished(case, text))
    part = case.one_of("lo hi wide")
    wide = f"{type[0]}{2 * int(type[1:])}" if part == "wide" else type
    text = f"ptx::mul_{part}<{CPP_TYPE[type]}>({factors})"
    if case.base == "mad":
        text = f"ptx::add({text}, {case.read(3, wide)})"
    return case.write(0, f"({CPP_TYPE[wide]}){text}")


def dot(case: Case) -> str:
    """dp4a: four products of bytes, added to a 32-bit sum."""
    case.allow("")
    signs = ", ".join("true" if type == "s32" else "false" for type in case.types)
    total = "s32" if "s32" in case.types else "u32"
    values = f"{case.read(1, 'b32')}, {case.read(2, 'b32')}, {case.read(3, 'b32')}"
    return case.write(0, f"({CPP_TYPE[total]})ptx::dot4<{signs}>({values})")


def funnel(case: Case) -> str:
    case.allow("l r wrap clamp")
    values = ", ".join((case.read(1, "b32"), case.read(2, "b32"), case.read(3, "u32")))
    name = "left" if case.has("l") else "right"
    return case.write(0, f"ptx::funnel_{name}<{'true' if case.has('wrap') else 'false'}>({values})")


def comparison(case: Case, index: int) -> str:
    """`compare(a, b)`, and what a boolean operator makes of it with a predicate."""
    word = next((word for word in case.words if word in COMPARE), None)
    if word is None:
        raise case.fail("a comparison that is not known")
    text = f"ptx::{COMPARE[word]}({operand(case, index, case.type)}, {operand(case, index + 1, case.type)})"
    for name, symbol in COMBINE.items():
        if case.has(name):
            text = f"({text} {symbol} {case.read(index + 2, 'pred')})"
    return text


def setp(case: Case) -> str:
    case.allow(f"{' '.join(COMPARE)} {' '.join(COMBINE)} ftz")
    if case.type.endswith("x2"):
        raise case.fail("a packed comparison is not known to the translator")
    targets = case.operands[0].split("|")
    text = case.write(targets[0], comparison(case, 1))
    if len(targets) == 1:
        return text
    if any(case.has(name) for name in COMBINE):
        raise case.fail("a combined comparison into two predicates is not known to the translator")
    return f"{case.write(targets[1], f'!{comparison(case, 1)}')} {text}"


def set_to(case: Case) -> str:
    """set: all ones or 1.0 where the comparison holds."""
    case.allow(f"{' '.join(COMPARE)} {' '.join(COMBINE)} ftz")
    target = case.types[0]
    if len(case.types) != 2 or target not in ("u32", "s32", "f32"):
        raise case.fail("this type of set is not known to the translator")
    yes, no = ("1.0f", "0.0f") if target == "f32" else ("0xffffffffu", "0u")
    return case.write(0, f"{comparison(case, 1)} ? {yes} : {no}")


def selp(case: Case) -> str:
    case.allow("")
    return case.write(0, f"{case.read(3, 'pred')} ? {case.read(1)} : {case.read(2)}")


def slct(case: Case) -> str:
    case.allow("ftz")
    type = case.types[0]
    return case.write(0, f"{case.read(3, case.types[1])} >= 0 ? {case.read(1, type)} : {case.read(2, type)}")


def testp(case: Case) -> str:
    kind = case.one_of("finite infinite number notanumber normal subnormal")
    return case.write(0, f"ptx::is_{kind}({case.read(1)})")


def mov(case: Case) -> str:
    """mov between registers, and between a register and a vector that makes it up."""
    case.allow("")
    targets, sources = case.vector(0), case.vector(1)
    if len(targets) == len(sources) == 1:
        return case.write(0, case.read(1))
    parts = max(len(targets), len(sources))
    part = f"b{8 * TYPE_BYTES[case.type] // parts}"
    if len(targets) == 1:
        return case.write(0, f"ptx::join<{CPP_TYPE[case.type]}, {CPP_TYPE[part]}>({case.array(1, part)})")
    whole = f"const {CPP_TYPE[case.type]} whole = {case.read(1)};"
    writes = (case.write(each, f"ptx::part<{CPP_TYPE[part]}>(whole, {index})") for index, each in enumerate(targets))
    return f"{whole} {' '.join(writes)}"


def cvt(case: Case) -> str:
    """cvt: every pair of types that nvcc and Triton use; packed ones name two sources, the high one first."""
    case.allow(f"rn rz rna rm rp {' '.join(ROUND_TO_WHOLE)} ftz sat satfinite relu")
    if len(case.types) != 2:
        raise case.fail("a conversion between other than two types")
    target, source = case.types
    if "rm" in case.words or "rp" in case.words:
        raise case.fail("rounding up or down is not known to the translator")
    relu = case.has("relu")
    if target.endswith("x2") and source == "f32":
        values = [f"ptx::relu({case.read(index, 'f32')})" if relu else case.read(index, "f32") for index in (2, 1)]
        zero = ", ptx::kToZero" if case.has("rz") else ""
        if target in OTHER_TYPES:
            kind = target.removesuffix("x2")
            return case.write(0, f"ptx::pack_{kind}({values[0]}, {values[1]})")
        return case.write(0, f"ptx::pack<{CPP_TYPE[target[:-2]]}>({values[0]}, {values[1]}{zero})")
    if target.endswith("x2") or source.endswith("x2"):
        return packed(case, target, source)
    if target == "tf32":
        return case.write(0, f"ptx::to_tf32({case.read(1, 'f32')})")
    text = operand(case, 1, source)
    whole = next((name for word, name in ROUND_TO_WHOLE.items() if case.has(word)), None)
    if whole:
        text = f"ptx::whole_{whole}({text})"
    if relu:
        text = f"ptx::relu({text})"
    mode = ", ptx::kToZero" if case.has("rz") and target in ("f16", "bf16", "f32") else ""
    function = "clamp_to" if case.has("sat") and target[0] in "us" else "convert"
    text = f"ptx::{function}<{CPP_TYPE[target]}>({text}{mode})"
    if case.has("sat") and target[0] not in "us":
        text = f"ptx::saturate({text})"
    elif case.has("satfinite"):
        raise case.fail("satfinite to this type is not known to the translator")
    if case.has("ftz") and target == "f32":
        text = f"ptx::flush({text})"
    return case.write(0, text)


def packed(case: Case, target: str, source: str) -> str:
    """e4m3x2 and e5m2x2 to and from f16x2."""
    if target == "f16x2" and source in ("e4m3x2", "e5m2x2"):
        return case.write(0, f"ptx::unpack_{source[:-2]}({case.read(1, 'b16')})")
    if source == "f16x2" and target in ("e4m3x2", "e5m2x2"):
        pair = case.read(1, "f16x2")
        return case.write(0, f"ptx::pack_{target[:-2]}((float){pair}.low, (float){pair}.high)")
    raise case.fail(f"conversion from {source} to {target} is not known to the translator")


def cvta(case: Case) -> str:
    """Generic addresses, which are pointers, to and from those of a space; shared ones count from the window."""
    case.allow("to global shared shared::cta local const param")
    if case.space() != "shared":
        return case.write(0, case.read(1))
    if case.has("to"):
        return case.write(0, f"(uint64_t)ptx::offset_of(ptx::pointer({case.read(1, 'u64')}, 0))")
    return case.write(0, f"(uint64_t)(uintptr_t)ptx::shared_pointer((uint32_t){case.read(1, 'u64')}, 0)")


def isspacep(case: Case) -> str:
    space = case.one_of("shared shared::cta shared::cluster global local const")
    inside = f"ptx::in_shared(ptx::pointer({case.read(1, 'u64')}, 0))"
    if space in ("local", "const"):
        raise case.fail("isspacep of this space is not known to the translator")
    return case.write(0, f"!{inside}" if space == "global" else inside)


HANDLERS: dict[str, Handler] = dict.fromkeys(SIMPLE, simple) | {
    "mul": multiply,
    "mad": multiply,
    "bfind": find_bit,
    "dp4a": dot,
    "shf": funnel,
    "setp": setp,
    "set": set_to,
    "selp": selp,
    "slct": slct,
    "testp": testp,
    "mov": mov,
    "cvt": cvt,
    "cvta": cvta,
    "isspacep": isspacep,
}
