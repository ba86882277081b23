# SPDX-License-Identifier: Apache-2.0
"""python -m tests.wrong [NAME ...]: what checks say of wrong kernels; of all, or of those whose names hold NAME."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from pagedserve.errors import KernelFault
from tests.wrong.checks import CHECKS
from tests.wrong.mutants import MUTANTS, Mutant
from tests.wrong.trees import session_of


def said_of(mutant: Mutant) -> str | None:
    """What the mutant's check says of it; None where it finds nothing."""
    with session_of(mutant.check, mutant):
        try:
            CHECKS[mutant.check].body()
        except (AssertionError, KernelFault) as error:
            return str(error).splitlines()[0]
    return None


def main(words: Sequence[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    if not chosen:
        print(f"no wrong kernel has {' or '.join(words)} in its name; there are:", file=sys.stderr)
        print("\n".join(mutant.name for mutant in MUTANTS), file=sys.stderr)
        return 2
    missed = 0
    for mutant in chosen:
        said = said_of(mutant)
        missed += said is None
        print(f"{mutant.name}\n    {mutant.check}: {said or 'FINDS NOTHING'}")
        print(f"    any call: --change {shlex.join((mutant.file, mutant.old, mutant.new))}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} rejected")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
