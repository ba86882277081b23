# SPDX-License-Identifier: Apache-2.0
"""Where calls are timed: the host's clock around a call, or device events around a graph that holds it many times."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.timing import cache_bytes, seconds_of
from pagedserve.errors import BackendUnavailable

MIN_CALLS_IN_GRAPH = 20  # so that starting the graph, some microseconds, is shared by as many
Call = Callable[[], object]


def last_cache_bytes(device: str) -> int:
    """Size of the cache that stands before a device's memory."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    return cache_bytes()


def placed(value: Any, device: str) -> Any:
    """A tensor on the device, or a mapping with its tensors there; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: placed(each, device) for name, each in value.items()}
    return value


@dataclass(frozen=True)
class Sampler:
    """Seconds a call, each time it is asked.

    Attributes:
        way: "host": a call between two looks at the clock, its own overhead included; "graph": device events around a
            replay of many calls; "events": device events around one call, for what no graph can hold.
    """

    way: str
    sample: Callable[[], float]


def sampler(device: str, calls: Sequence[Call]) -> Sampler:
    """How to time calls that take turns, one for each copy of their inputs."""
    return cuda_sampler(calls) if device == "cuda" else Sampler("host", in_turn(calls, seconds_of))


def in_turn(calls: Sequence[Call], seconds: Callable[[Call], float]) -> Callable[[], float]:
    """Seconds of the next call, from the first again after the last."""
    turns = itertools.cycle(calls)
    return lambda: seconds(next(turns))


def cuda_sampler(calls: Sequence[Call]) -> Sampler:
    for call in calls:
        call()  # loads modules, makes workspaces: neither is possible in a capture
    torch.cuda.synchronize()
    try:
        graph, num_calls = captured(calls)
    except RuntimeError:  # torch's own word for what cannot be captured
        torch.cuda.synchronize()
        return Sampler("events", in_turn(calls, between_events))
    return Sampler("graph", lambda: between_events(graph.replay) / num_calls)


def captured(calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of every call, several times over if they are few, and how many it holds."""
    num_calls = -(-MIN_CALLS_IN_GRAPH // len(calls)) * len(calls)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(num_calls):
            calls[index % len(calls)]()
    return graph, num_calls


def between_events(call: Call) -> float:
    """Device seconds from the start of a call's first kernel to the end of its last."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def require(device: str) -> None:
    """Raises BackendUnavailable where this machine has no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable("there is no CUDA device here; time on it with --device cuda where there is one")
