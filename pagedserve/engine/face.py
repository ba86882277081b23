# SPDX-License-Identifier: Apache-2.0
"""What LLM and AsyncEngine share: a model, its pages, a scheduler and a loop, put together."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from os import PathLike, fspath
from typing import NamedTuple, cast

from pagedserve.engine.core import EngineCore
from pagedserve.engine.door import Conversation, Door, Prompt
from pagedserve.engine.observer import Observer
from pagedserve.engine.parts import build_parts, check_choices
from pagedserve.errors import InvalidInput
from pagedserve.models import Detokenizer, LoadedModel, load_model
from pagedserve.scheduling.scheduler import Scheduler


class EngineStats(NamedTuple):
    """A snapshot.

    Attributes:
        running, waiting: completions that have a row of the batch, and that have none yet; blocked: those of the latter
            that wait for another's prompt.
        num_pages, pages_in_use, pages_cached: of the pool; held by completions, and kept for whoever begins the same.
        prefix_query_tokens, prefix_hit_tokens: prompt tokens that came, and those of them that were there.
        preemptions, swaps, recomputed_tokens: how often pages were given up, how often to host memory instead of
            dropped, and tokens computed again.
        steps, failed_steps: computed, and failed as a whole.
        prompt_tokens, output_tokens: computed and sampled.
        step_s: seconds in which the model ran.
        rejected, expired: completions refused at the door, and dropped before their prompt was computed.
        promises_kept, promises_broken: of those admitted with a deadline.
        places_claimed, places_kept: by who was sent away and came back in time, and of these who was admitted.
        ttft_error, step_error: of first tokens and of steps as predicted, relative, recent ones.
        drain_s: until everybody who waits now has a first token, predicted.
    """

    running: int
    waiting: int
    blocked: int
    num_pages: int
    pages_in_use: int
    pages_cached: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    preemptions: int
    swaps: int
    recomputed_tokens: int
    steps: int
    failed_steps: int
    prompt_tokens: int
    output_tokens: int
    step_s: float
    rejected: int
    expired: int
    promises_kept: int
    promises_broken: int
    places_claimed: int
    places_kept: int
    ttft_error: float
    step_error: float
    drain_s: float


class Face:
    """A running engine. Use LLM or AsyncEngine.

    Args:
        model: a GGUF file, a Hugging Face folder, the name of a packaged model, or a LoadedModel.
        backend: of every op; "auto" takes the best there is.
        dtype, quantize: of the weights; as load_model.
        kv_dtype: of keys and values: "float32", "bfloat16", "float16", "int8", "float8_e4m3fn" or "int4"; "auto":
            bfloat16, or float32 where all the weights are.
        page_size: tokens of a page.
        num_pages, memory_bytes: size of the pool, one or the other; None: what max_seqs requests of full length need,
            but at most an eighth of the machine's memory.
        max_seqs: requests computed at once; others wait.
        max_step_tokens: tokens of a step, decodes and prompt chunks together.
        max_model_len: tokens of a request, prompt and output; None: what the model and the pool allow.
        prefix_cache: keep computed prompts for requests that begin the same.
        num_host_pages: pages beside the pool that preempted requests may be moved to; 0: they are computed again.
        max_queue: requests that may wait; further ones are refused with a time to come back. None: any number.
        tpot_target_s: seconds that a step may take while anybody's tokens come, as far as prompts can wait.
        tenants: names and weights of those who share the engine; others are refused. None: anybody, all alike.
        seed: of requests that have none.
        event_log: a file for everything the scheduler is told; pagedserve replay reads it.
        observer: told of what happens; metrics.EngineMetrics counts it for Prometheus.
        clock: seconds, from any thread, never backwards; deadlines, metrics and the event log go by it.
        progress: called with (bytes read, bytes in all) while the model loads.

    Attributes:
        model: the LoadedModel. tokenizer: its Tokenizer.

    Raises:
        InvalidInput: an argument cannot be; the message names it.
        ModelError: the model cannot be read.
        BackendUnavailable: the backend cannot run here.
    """

    def __init__(
        self,
        model: str | PathLike[str] | LoadedModel,
        *,
        backend: str = "auto",
        dtype: str = "auto",
        quantize: str | None = None,
        kv_dtype: str = "auto",
        page_size: int = 16,
        num_pages: int | None = None,
        memory_bytes: int | None = None,
        max_seqs: int = 64,
        max_step_tokens: int = 512,
        max_model_len: int | None = None,
        prefix_cache: bool = True,
        num_host_pages: int = 0,
        max_queue: int | None = None,
        tpot_target_s: float | None = None,
        tenants: Mapping[str, float] | None = None,
        seed: int = 0,
        event_log: str | PathLike[str] | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if type(seed) is not int:
            raise InvalidInput(f"seed is {seed!r}; give a whole number")
        check_choices(backend=backend, kv_dtype=kv_dtype, prefix_cache=prefix_cache)
        if isinstance(model, (str, PathLike)):
            loaded = load_model(fspath(model), dtype=dtype, quantize=quantize, progress=progress)
        elif not isinstance(model, LoadedModel):
            raise InvalidInput(f"model is a {type(model).__name__}; give a path, a name, or what load_model returned")
        elif dtype == "auto" and quantize is None:
            loaded = model
        else:
            raise InvalidInput("dtype and quantize are chosen when a model is loaded; give them to load_model")
        runner, scheduler, event_log_file = build_parts(
            loaded,
            backend=backend,
            kv_dtype=kv_dtype,
            page_size=page_size,
            num_pages=num_pages,
            memory_bytes=memory_bytes,
            max_seqs=max_seqs,
            max_step_tokens=max_step_tokens,
            max_model_len=max_model_len,
            prefix_cache=prefix_cache,
            num_host_pages=num_host_pages,
            max_queue=max_queue,
            tpot_target_s=tpot_target_s,
            tenants=tenants,
            event_log=event_log,
        )
        close_log = event_log_file.close if event_log_file is not None else None
        core = EngineCore(scheduler, runner, clock=clock, on_end=close_log, observer=observer)
        tokenizer = loaded.tokenizer
        door = Door(
            tokenizer,
            lambda skip_special: Detokenizer(tokenizer, skip_special=skip_special),
            vocab_size=loaded.config.vocab_size,
            max_model_len=scheduler.config.max_model_len,
            seed=seed,
            clock=core.clock,
        )
        self.model = loaded
        self.tokenizer = tokenizer
        self._start(core, door, scheduler)

    def _start(self, core: EngineCore, door: Door, scheduler: Scheduler) -> None:
        """Take on a running core; it is closed when this object is dropped, or the program ends."""
        self._core = core
        self._door = door
        self._scheduler = scheduler
        weakref.finalize(self, core.close)

    @property
    def max_model_len(self) -> int:
        """Tokens of a request, prompt and output together."""
        return self._scheduler.config.max_model_len

    def stats(self) -> EngineStats:
        """What goes on now, and counts from the start. O(what runs); from any thread."""
        scheduler, loop = self._scheduler.stats(), self._core.counters
        return EngineStats(
            running=scheduler.running,
            waiting=scheduler.waiting,
            blocked=scheduler.blocked,
            num_pages=scheduler.pages_total,
            pages_in_use=scheduler.pages_used,
            pages_cached=scheduler.pages_cached,
            prefix_query_tokens=scheduler.prefix_query_tokens,
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
            preemptions=scheduler.preemptions,
            swaps=scheduler.swaps,
            recomputed_tokens=scheduler.recomputed_tokens,
            steps=loop.steps,
            failed_steps=loop.failed_steps,
            prompt_tokens=loop.prompt_tokens,
            output_tokens=loop.output_tokens,
            step_s=loop.step_s,
            rejected=scheduler.rejected,
            expired=scheduler.expired,
            promises_kept=scheduler.promises_kept,
            promises_broken=scheduler.promises_broken,
            places_claimed=scheduler.places_claimed,
            places_kept=scheduler.places_kept,
            ttft_error=scheduler.ttft_error,
            step_error=scheduler.step_error,
            drain_s=scheduler.drain_s,
        )

    def _encode(self, prompt: Prompt | Conversation) -> list[int]:
        """Token ids of a prompt or of a conversation."""
        if isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[0], Mapping):
            return self._door.encode_chat(prompt)[1]
        return self._door.encode(cast(Prompt, prompt))
