# SPDX-License-Identifier: Apache-2.0
"""A loaded model becomes a runner on a pool of pages, and a scheduler that knows both."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import torch

from pagedserve import ops
from pagedserve.cache import KVPool, PageLayout
from pagedserve.engine.limits import choose_limits
from pagedserve.engine.runner import ModelRunner
from pagedserve.errors import InvalidInput
from pagedserve.eventlog.watched import watched
from pagedserve.eventlog.writer import EventLog
from pagedserve.models import LoadedModel, ModelConfig
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.scheduler import Scheduler

KV_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "int4": torch.uint8,
}


def check_choices(*, backend: str, kv_dtype: str, prefix_cache: bool) -> None:
    """Refuses what cannot be whatever the model, before one is loaded.

    Raises:
        InvalidInput: there is no such backend or dtype, the backend cannot run a model, or prefix_cache is no bool.
    """
    ops.check_step_backend(backend)
    if kv_dtype not in ("auto", *KV_DTYPES):
        raise InvalidInput(f"kv_dtype is {kv_dtype!r}; supported: auto, {', '.join(KV_DTYPES)}")
    if not isinstance(prefix_cache, bool):
        raise InvalidInput(f"prefix_cache is {prefix_cache!r}; give True or False")


def build_parts(
    loaded: LoadedModel,
    *,
    backend: str,
    kv_dtype: str,
    page_size: int,
    num_pages: int | None,
    memory_bytes: int | None,
    max_seqs: int,
    max_step_tokens: int,
    max_model_len: int | None,
    prefix_cache: bool,
    num_host_pages: int,
    max_queue: int | None,
    tpot_target_s: float | None,
    tenants: Mapping[str, float] | None,
    event_log: str | PathLike[str] | None,
) -> tuple[ModelRunner, Scheduler, EventLog | None]:
    """The runner, the scheduler, and the scheduler's log where one is wanted. Arguments and errors: as Face."""
    if kv_dtype == "auto":
        kv_dtype = "float32" if {weight.format for weight in loaded.model.weights.matrices()} == {"f32"} else "bfloat16"
    model = loaded.config
    shape = (model.num_layers, model.num_kv_heads, model.head_dim)
    limits = choose_limits(
        model,
        lambda size: PageLayout(*shape, size, KV_DTYPES[kv_dtype]).page_bytes,
        page_size=page_size,
        num_pages=num_pages,
        memory_bytes=memory_bytes,
        num_host_pages=num_host_pages,
        max_seqs=max_seqs,
        max_step_tokens=max_step_tokens,
        max_model_len=max_model_len,
    )
    pool = KVPool(
        *shape,
        num_pages=limits.num_pages,
        page_size=limits.page_size,
        dtype=KV_DTYPES[kv_dtype],
        num_host_pages=limits.num_host_pages,
    )
    builder = ops.step_builder(
        backend,
        ops.StepLimits(
            max_tokens=limits.max_step_tokens,
            max_seqs=limits.max_seqs,
            max_pages=limits.max_pages,
            max_rows=limits.max_seqs,
        ),
    )
    step = loaded.model.build(builder, pool.layers())
    runner = ModelRunner(step, pool, max_len=limits.max_model_len, backend=backend)
    config = SchedulerConfig(
        num_pages=limits.num_pages,
        page_size=limits.page_size,
        max_seqs=limits.max_seqs,
        max_step_tokens=limits.max_step_tokens,
        max_model_len=limits.max_model_len,
        prefix_cache=prefix_cache,
        num_host_pages=limits.num_host_pages,
        max_queue=max_queue,
        tpot_target_s=tpot_target_s,
        tenants=tenants if tenants is not None else {},
        attention_parity_tokens=attention_parity_tokens(model),
    )
    log = None if event_log is None else EventLog(event_log, config)
    return runner, watched(config, log), log


def attention_parity_tokens(model: ModelConfig) -> int:
    """The context at which attending costs a token as much as all its matrices: weights / (2 * layers * q_size)."""
    of_layer = model.hidden_size * (2 * model.q_size + 2 * model.kv_size + 3 * model.intermediate_size)
    return max(1, of_layer // (2 * model.q_size))
