# SPDX-License-Identifier: Apache-2.0
"""What a model costs on a GPU, from data sheets: every number says where it comes from.

No number here was measured by this project on a GPU. A cost fitted to measured steps (calibrate.py) goes before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pagedserve.errors import InvalidInput
from pagedserve.simulate.cost import StepCurve, StepLaw
from pagedserve.simulate.pace import Paced


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, and where it is from. kind: "datasheet", "model" (its own configuration), "assumed" or "measured"."""

    name: str
    value: float
    unit: str
    kind: str
    source: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """A data sheet. Dense rates, without sparsity; capacity in bytes as sold, 10^9 a GB."""

    name: str
    bytes_per_s: float
    flops_per_s: float  # bf16, dense
    fp8_flops_per_s: float  # dense; that of bf16 where the card has no fp8
    memory_bytes: float
    sheet: str


GPUS = {
    "b200": Gpu("B200", 7.7e12, 2.25e15, 4.5e15, 180e9, "NVIDIA DGX B200 data sheet, an eighth of the system"),
    "h200": Gpu("H200", 4.8e12, 989e12, 1979e12, 141e9, "NVIDIA H200 data sheet, SXM"),
    "h100": Gpu("H100", 3.35e12, 989e12, 1979e12, 80e9, "NVIDIA H100 data sheet, SXM"),
    "a100": Gpu("A100", 2.039e12, 312e12, 312e12, 80e9, "NVIDIA A100 data sheet, SXM 80 GB"),
    "l40s": Gpu("L40S", 0.864e12, 362e12, 733e12, 48e9, "NVIDIA L40S data sheet"),
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model's configuration decides its cost. matrix_weights: multiplied for each token of a prompt."""

    name: str
    num_layers: int
    hidden_size: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    tied: bool = False
    weight_bytes_each: float = 2.0
    kv_bytes_each: float = 2.0
    source: str = "its config.json"

    @property
    def matrix_weights(self) -> int:
        q, kv = self.num_q_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.num_layers * self.hidden_size * (2 * q + 2 * kv + 3 * self.intermediate_size)

    @property
    def head_weights(self) -> int:
        """Multiplied for each sampled token."""
        return self.vocab_size * self.hidden_size

    @property
    def weight_bytes(self) -> float:
        """Held in memory, embeddings included."""
        return self.weight_bytes_each * (self.matrix_weights + self.head_weights * (1 if self.tied else 2))

    @property
    def kv_token_bytes(self) -> float:
        """Keys and values of a token, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.kv_bytes_each


MODELS = {
    "llama-3-8b": ModelShape("llama-3-8b", 32, 4096, 32, 8, 128, 14336, 128256, 8192),
    "llama-3.1-8b": ModelShape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, 131072),
    "llama-3-70b": ModelShape("llama-3-70b", 80, 8192, 64, 8, 128, 28672, 128256, 8192),
    "mistral-7b": ModelShape("mistral-7b", 32, 4096, 32, 8, 128, 14336, 32768, 32768),
    "qwen3-8b": ModelShape("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936, 40960),
    "smollm2-135m": ModelShape("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, 8192, tied=True),
}

# What real steps reach of a data sheet, and what they pay besides. Assumed: no run of this project has measured them.
BYTES_SHARE = 0.80
FLOPS_SHARE = 0.55
STEP_OVERHEAD_S = 1.0e-3
ROW_S = 2.0e-6
MEMORY_SHARE = 0.90
ACTIVATION_BYTES = 4e9
PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class Machine:
    """A model on a device: what a step costs, how many pages there are, and where all that is from.

    Attributes:
        paced: the cost at the paces of measured steps; None where none were measured.
    """

    name: str
    cost: StepCurve
    num_pages: int
    page_size: int
    context_length: int
    constants: tuple[Constant, ...]
    paced: Paced | None = None

    @property
    def law(self) -> StepLaw:
        """What a simulated step takes."""
        return self.paced or self.cost


def find_gpu(name: str) -> Gpu:
    """By name; InvalidInput lists those there are."""
    if name.lower() not in GPUS:
        raise InvalidInput(f"gpu {name!r} is not known; supported: {', '.join(GPUS)}, or steps measured on your own")
    return GPUS[name.lower()]


def find_model(name: str, weights: str = "bf16") -> ModelShape:
    """By name, its weights held as bf16 or fp8; InvalidInput lists those there are."""
    if name.lower() not in MODELS:
        raise InvalidInput(
            f"model {name!r} is not known; supported: {', '.join(MODELS)}, or a folder with a config.json"
        )
    return with_weights(MODELS[name.lower()], weights)


def with_weights(model: ModelShape, weights: str) -> ModelShape:
    """The model with its weights held in another format."""
    widths = {"bf16": 2.0, "fp8": 1.0}
    if weights not in widths:
        raise InvalidInput(f"weights {weights!r}; supported: {', '.join(widths)}")
    return replace(model, weight_bytes_each=widths[weights])


def roofline(model: ModelShape, gpu: Gpu) -> Machine:
    """A model on one GPU, by its data sheet.

    Raises:
        InvalidInput: it does not fit; the message says by how much.
    """
    free = gpu.memory_bytes * MEMORY_SHARE - model.weight_bytes - ACTIVATION_BYTES
    num_pages = int(free // (model.kv_token_bytes * PAGE_SIZE))
    if num_pages * PAGE_SIZE < 2:
        raise InvalidInput(
            f"{model.name} has {model.weight_bytes / 1e9:.1f} GB of weights; {gpu.name} has "
            f"{gpu.memory_bytes / 1e9:.0f} GB, of which {MEMORY_SHARE:.0%} less {ACTIVATION_BYTES / 1e9:.0f} GB can be "
            f"used: take fp8 weights or a larger GPU"
        )
    bytes_per_s = gpu.bytes_per_s * BYTES_SHARE
    peak, peak_name = (gpu.fp8_flops_per_s, "fp8") if model.weight_bytes_each < 2 else (gpu.flops_per_s, "bf16")
    flops_per_s = peak * FLOPS_SHARE
    read_s = model.weight_bytes_each * (model.matrix_weights + model.head_weights) / bytes_per_s
    token_s = 2 * model.matrix_weights / flops_per_s
    ridge = max(read_s / token_s, 1.0)  # tokens at which multiplying takes as long as reading the weights
    attend_s = 4 * model.num_layers * model.num_q_heads * model.head_dim / (gpu.flops_per_s * FLOPS_SHARE)
    cost = StepCurve(
        [(tokens, 1e3 * (STEP_OVERHEAD_S + tokens * token_s)) for tokens in (ridge, 2 * ridge)],
        context_ms=1e3 * model.kv_token_bytes / bytes_per_s,
        pair_ms=1e3 * attend_s,
        seq_ms=1e3 * (ROW_S + 2 * model.head_weights / flops_per_s),
    )
    sheet, own = gpu.sheet, f"{model.name}: {model.source}"
    constants = (
        Constant("memory bandwidth", gpu.bytes_per_s / 1e12, "TB/s", "datasheet", sheet),
        Constant(f"matrix rate, {peak_name} dense", peak / 1e12, "TFLOP/s", "datasheet", sheet),
        Constant("memory", gpu.memory_bytes / 1e9, "GB", "datasheet", sheet),
        Constant("weights", model.weight_bytes / 1e9, "GB", "model", own),
        Constant("keys and values of a token", model.kv_token_bytes / 1e3, "kB", "model", own),
        Constant("share of the bandwidth reached", BYTES_SHARE, "", "assumed", "not measured by this project"),
        Constant("share of the matrix rate reached", FLOPS_SHARE, "", "assumed", "not measured by this project"),
        Constant("overhead of a step", STEP_OVERHEAD_S * 1e3, "ms", "assumed", "not measured by this project"),
        Constant("sampling a token", ROW_S * 1e6, "us", "assumed", "not measured by this project"),
        Constant(
            "share of the memory used", MEMORY_SHARE, "", "assumed", "the rest is the driver's and the allocator's"
        ),
        Constant("activations and buffers", ACTIVATION_BYTES / 1e9, "GB", "assumed", "not measured by this project"),
        Constant("pages of 16 tokens", num_pages, "", "model", "what the memory leaves, by the lines above"),
    )
    return Machine(f"{model.name} on {gpu.name}", cost, num_pages, PAGE_SIZE, model.context_length, constants)
