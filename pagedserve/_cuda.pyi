# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels. Nothing here checks its arguments: call pagedserve.ops.

Each function puts an op's kernels into a stream, given by its address, and raises RuntimeError with what the CUDA
runtime says where that fails.
"""

from pagedserve._C import AppendKvParams, CopyPagesParams, PlanDecodeParams

architectures: str
toolkit: str

def append_kv(params: AppendKvParams, stream: int) -> None: ...
def copy_pages(params: CopyPagesParams, stream: int) -> None: ...
def plan_decode(params: PlanDecodeParams, stream: int) -> None: ...
