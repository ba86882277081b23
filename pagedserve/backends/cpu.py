# SPDX-License-Identifier: Apache-2.0
"""The CPU backend: hands checked tensors to the kernels of pagedserve._C as params structs.

Each Python thread has a team of its own, so calls from several threads run beside each other.
"""

import threading

from torch import Tensor

from pagedserve import _C, settings


class _Teams(threading.local):
    """The team of this Python thread; made anew where PAGEDSERVE_THREADS has changed."""

    team: _C.Team | None = None

    def get(self) -> _C.Team:
        wanted = settings.num_threads()
        if self.team is None or self.team.num_threads != wanted:
            self.team = _C.Team(wanted)
        return self.team


TEAMS = _Teams()


def copy_pages(src: Tensor, dst: Tensor, src_pages: Tensor, dst_pages: Tensor) -> None:
    item = src.element_size()
    page_numel = src[0].numel() if len(src) else 0
    params = _C.CopyPagesParams(
        src=src.data_ptr(),
        dst=dst.data_ptr(),
        src_pages=src_pages.data_ptr(),
        dst_pages=dst_pages.data_ptr(),
        num_copies=len(src_pages),
        page_bytes=page_numel * item,
        src_page_stride_bytes=src.stride(0) * item,
        dst_page_stride_bytes=dst.stride(0) * item,
    )
    _C.copy_pages(params, TEAMS.get())
