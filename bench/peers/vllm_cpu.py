# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine on the CPU, stepped in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence

from bench.peers.dequantised import folder_of
from bench.peers.protocol import serve
from bench.workload import Emit

# vLLM is configured by these; they must stand before it is imported.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

DTYPES = {"bf16": "bfloat16", "f32": "float32"}


class Vllm:
    def __init__(self, model: str, threads: int, variant: str) -> None:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")
        import vllm
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self._vllm = vllm
        self.version = vllm.__version__
        self.precision = f"{variant} weights and arithmetic"
        arguments = EngineArgs(
            model=str(folder_of(model)),
            dtype=DTYPES[variant],
            max_num_seqs=64,
            max_model_len=8192,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self._engine = LLMEngine.from_engine_args(arguments)
        self._given: dict[str, int] = {}  # tokens already handed out

    def add(self, request: int, prompt: Sequence[int], max_tokens: int) -> None:
        params = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=max_tokens, min_tokens=max_tokens, ignore_eos=True, detokenize=False
        )
        self._given[str(request)] = 0
        self._engine.add_request(str(request), {"prompt_token_ids": list(prompt)}, params)

    def step(self, emit: Emit, timeout_s: float | None) -> None:
        for output in self._engine.step():
            tokens = list(output.outputs[0].token_ids)
            new = tokens[self._given[output.request_id] :]
            self._given[output.request_id] = len(tokens)
            if new:
                emit(int(output.request_id), new)

    def logits(self, token_ids: Sequence[int]) -> None:
        return None


if __name__ == "__main__":
    serve(Vllm)
