# SPDX-License-Identifier: Apache-2.0
"""Runs emulated launchers: here, or in a child process where a sanitizer watches."""

import contextlib
import contextvars
import ctypes
import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pagedserve.emulate import build, remote, structs
from pagedserve.emulate.reports import Finding
from pagedserve.errors import InvalidInput, KernelFault

SCHEDULES = ("in-order", "reversed", "random")
COUNTERS = [
    "launches",
    "blocks",
    "switches",
    "barriers",
    "collectives",
    "matrix_products",
    "matrix_loads",
    "matrix_load_wavefronts",
    "matrix_load_wavefronts_ideal",
    "async_copies",
    "async_copy_bytes",
    "atomics",
]


class Config(ctypes.Structure):
    """csrc/target/emu_machine.h, Config."""

    _fields_ = (
        ("schedule", ctypes.c_int32),
        ("resident_blocks", ctypes.c_int32),
        ("eager_copies", ctypes.c_int32),
        ("poison", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
    )


class Counters(ctypes.Structure):
    """csrc/target/emu_machine.h, Counters."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in COUNTERS)


@dataclass(frozen=True)
class Run:
    """How launches are run.

    Attributes:
        build: "plain"; "bounds", under AddressSanitizer and UBSan; or "races", under ThreadSanitizer.
        schedule: of threads and blocks: "in-order", "reversed" or "random".
        seed: of a random schedule.
        resident_blocks: blocks that run at once.
        eager_copies: async copies land when they are issued, not when they are waited for.
        poison: the byte that shared memory holds at first; 0xFF makes floats NaN.
        timeout_s: after which a child process is ended, which a hang would otherwise hold up.
    """

    build: str = "plain"
    schedule: str = "in-order"
    seed: int = 1
    resident_blocks: int = 4
    eager_copies: bool = False
    poison: int = 0xFF
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        if self.build not in build.BUILDS:
            raise InvalidInput(f"build is {self.build!r}; choose from {', '.join(build.BUILDS)}")
        if self.schedule not in SCHEDULES:
            raise InvalidInput(f"schedule is {self.schedule!r}; choose from {', '.join(SCHEDULES)}")
        if self.resident_blocks < 1 or not 0 <= self.poison <= 255:
            raise InvalidInput("resident_blocks is at least 1, and poison a byte")

    def config(self) -> Config:
        """As the library reads it."""
        schedule = SCHEDULES.index(self.schedule)
        return Config(schedule, self.resident_blocks, int(self.eager_copies), self.poison, self.seed)


@dataclass
class Session:
    """What holds for every launch made inside `session`, and what they left behind.

    Attributes:
        sources: launch files by op, in place of csrc/launch/<op>.cu.
        ptx: "sm_80" or "sm_90a": kernels are translated from the PTX that nvcc makes for it; "": compiled from source.
        counters: what all launches did, added up.
        findings: what a sanitizer reported.
    """

    run: Run = field(default_factory=Run)
    sources: Mapping[str, Path] = field(default_factory=dict)
    defines: tuple[str, ...] = ()
    ptx: str = ""
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    findings: list[Finding] = field(default_factory=list)

    def add(self, counters: Mapping[str, int]) -> None:
        for name, count in counters.items():
            self.counters[name] += count


_SESSION: contextvars.ContextVar[Session | None] = contextvars.ContextVar("session", default=None)


@contextlib.contextmanager
def session(
    run: Run | None = None, *, sources: Mapping[str, Path] | None = None, defines: Sequence[str] = (), ptx: str = ""
) -> Iterator[Session]:
    """Everything launched inside runs so, from these sources, compiled with these macros defined."""
    made = Session(run or Run(), dict(sources or {}), tuple(defines), ptx)
    token = _SESSION.set(made)
    try:
        yield made
    finally:
        _SESSION.reset(token)


def current() -> Session:
    """The innermost session, or one that holds for nothing else."""
    return _SESSION.get() or Session()


class _Loaded:
    """A library that keeps its threads' stacks from launch to launch, until nobody holds this."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        self.functions.pagedserve_emulator_error.restype = ctypes.c_char_p
        self.functions.pagedserve_emulator_error_kind.restype = ctypes.c_char_p
        weakref.finalize(self, self.functions.pagedserve_emulator_give_back).atexit = False


# A stack is two mappings, of which a process has 65,530: dozens of libraries that keep thousands each leave none.
_load = functools.lru_cache(maxsize=4)(_Loaded)


@dataclass(frozen=True)
class Library:
    """The launchers of one launch file.

    Attributes:
        source: the .cu.
        header: where its params structs are declared.
    """

    source: Path
    defines: tuple[str, ...] = ()
    header: Path = build.CSRC / "params.h"

    def path(self, build_name: str = "plain") -> Path:
        """The shared library, compiled if need be."""
        return build.compile_library(self.source, build_name, self.defines)

    def run(self, launcher: str, struct: str, fields: Mapping[str, object]) -> None:
        """Calls `extern "C" int launcher(const struct*, void* stream)`, as the current session says.

        Args:
            fields: of the struct, by name. Pointers take CPU tensors or None; structs take mappings; others are zero.

        Raises:
            KernelFault: the kernel did what it may not do; in a sanitised build, for the first of the findings.
            BackendUnavailable: there is no compiler, or the source does not compile.

        Cost: a compilation for each state of the sources; then about 35 ns for each switch between threads.
        """
        structs_by_name = structs.header(self.header).structs
        if struct not in structs_by_name:
            raise InvalidInput(f"{self.header} has no struct {struct!r}; it has {', '.join(structs_by_name)}")
        self.call(launcher, structs.fill(structs_by_name[struct], fields), list(structs.tensors_of(fields)))

    def call(self, launcher: str, params: ctypes.Structure, tensors: Sequence[structs.Addressed]) -> None:
        """`run` with the struct filled. `tensors`: all that its pointers lead to."""
        here = current()
        if not here.ptx:
            self._call(here, self.path(here.run.build), launcher, params, tensors)
            return
        from pagedserve.emulate import ptx_route

        while True:  # until every kernel that the launcher launches is translated
            kernels = ptx_route.known_kernels(self.source, here.ptx)
            try:
                path = ptx_route.compile_library(self.source, here.ptx, here.run.build, kernels, self.defines)
                return self._call(here, path, launcher, params, tensors)
            except KernelFault as fault:
                ptx_route.learn(self.source, here.ptx, kernels, fault)

    def _call(
        self, here: Session, path: Path, launcher: str, params: ctypes.Structure, tensors: Sequence[structs.Addressed]
    ) -> None:
        if here.run.build == "plain":
            counters = _call_here(path, launcher, params, here.run)
            here.add(counters)
            return
        outcome = remote.call(path, launcher, params, tensors, here.run)
        here.add(outcome.counters)
        here.findings += outcome.findings
        if outcome.findings:
            raise KernelFault(str(outcome.findings[0]), kind=outcome.findings[0].kind)


def _call_here(path: Path, launcher: str, params: ctypes.Structure, run: Run) -> dict[str, int]:
    loaded = _load(path)  # held until what it says is read
    functions = loaded.functions
    if not hasattr(functions, launcher):
        raise InvalidInput(f'{path.name} has no extern "C" launcher {launcher!r}')
    functions.pagedserve_emulator_configure(ctypes.byref(run.config()))
    result = getattr(functions, launcher)(ctypes.byref(params), None)
    text, kind = functions.pagedserve_emulator_error().decode(), functions.pagedserve_emulator_error_kind().decode()
    if text:
        raise KernelFault(text, kind=kind)
    if result:
        raise KernelFault(f"{launcher} returned {result}, and no kernel said why", kind="launch")
    counters = Counters()
    functions.pagedserve_emulator_counters(ctypes.byref(counters))
    return {name: getattr(counters, name) for name in COUNTERS}


def library(op: str) -> Library:
    """The launchers of csrc/launch/<op>.cu, or of what the current session has in its place."""
    here = current()
    source = here.sources.get(op) or build.launch_file(op)
    return Library(source, here.defines, _header_beside(source))


def _header_beside(source: Path) -> Path:
    """params.h of the tree that a launch file stands in; a changed copy of the tree may have changed structs."""
    beside = source.resolve().parent.parent / "params.h"
    return beside if beside.is_file() else build.CSRC / "params.h"
