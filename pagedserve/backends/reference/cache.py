# SPDX-License-Identifier: Apache-2.0
"""Writing and moving pages, the definition."""

import torch
from torch import Tensor

LARGEST_CODE = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes like x and a scale per row of the last axis: value = code * scale, scale = amax / 127 or amax / 448."""
    largest = LARGEST_CODE[dtype]
    x = x.to(torch.float32)
    scale = x.abs().amax(dim=-1) / largest
    scale = torch.where(scale == 0, 1.0, scale)
    codes = (x / scale[..., None]).clamp(-largest, largest)
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), scale  # both round to nearest even


def _append(x: Tensor, pages: Tensor, scales: Tensor | None, slots: Tensor, taken: Tensor) -> None:
    page, row = slots // pages.shape[1], slots % pages.shape[1]
    x = x[taken]
    if scales is None:
        pages[page, row] = x.to(pages.dtype)
        return
    pages[page, row], scales[page, row] = quantise(x, pages.dtype)


def append_kv(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slot_mapping: Tensor,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
) -> None:
    """Token t goes to page slot / page_size, row slot % page_size; a negative slot is skipped."""
    taken = slot_mapping >= 0
    slots = slot_mapping[taken]
    _append(k, k_pages, k_scales, slots, taken)
    _append(v, v_pages, v_scales, slots, taken)


def copy_pages(src: Tensor, dst: Tensor, src_pages: Tensor, dst_pages: Tensor) -> None:
    """dst[dst_pages[i]] = src[src_pages[i]], one after the other: a page may be written, then read."""
    for source, target in zip(src_pages.tolist(), dst_pages.tolist(), strict=True):
        dst[target].copy_(src[source])
