# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on CPU tensors: the launch files of csrc/launch under the emulator, as its current session says."""

from torch import Tensor

from pagedserve import emulate
from pagedserve.backends.cuda_ops import CudaOps
from pagedserve.backends.params import Fields
from pagedserve.emulate import build
from pagedserve.specs.plan_layout import DEFAULT_BLOCKS

# Refused here, by name, rather than at a launch: these raise BackendUnavailable.
build.compiler()
build.launch_file("plan_decode")


def _launch(launcher: str, name: str, fields: Fields, where: Tensor) -> None:
    emulate.library(launcher).run(f"pagedserve_{launcher}", name, fields)


OPS = CudaOps(_launch, lambda where: DEFAULT_BLOCKS)
plan_decode, append_kv, copy_pages = OPS.plan_decode, OPS.append_kv, OPS.copy_pages
paged_decode, merge_states = OPS.paged_decode, OPS.merge_states
