# SPDX-License-Identifier: Apache-2.0
"""The CUDA backend: hands checked tensors to the launchers of pagedserve._cuda, in torch's current stream."""

import torch
from torch import Tensor

from pagedserve import _C
from pagedserve.backends.cuda_ops import CudaOps
from pagedserve.backends.params import Fields, struct
from pagedserve.errors import BackendUnavailable
from pagedserve.specs.plan_layout import BLOCKS_PER_MULTIPROCESSOR, MAX_BLOCKS

try:
    from pagedserve import _cuda
except ImportError as error:
    raise BackendUnavailable(
        f"CUDA kernels are not in this build of pagedserve ({error}): build it where nvcc is, with PAGEDSERVE_CUDA=1"
    ) from None


def _launch(launcher: str, name: str, fields: Fields, where: Tensor) -> None:
    with torch.cuda.device(where.device):
        stream = torch.cuda.current_stream().cuda_stream
        getattr(_cuda, launcher)(struct(getattr(_C, name), fields), stream)


def _default_blocks(where: Tensor) -> int:
    count = torch.cuda.get_device_properties(where.device).multi_processor_count
    return min(BLOCKS_PER_MULTIPROCESSOR * count, MAX_BLOCKS)


OPS = CudaOps(_launch, _default_blocks)
plan_decode, append_kv, copy_pages = OPS.plan_decode, OPS.append_kv, OPS.copy_pages
paged_decode, merge_states = OPS.paged_decode, OPS.merge_states
