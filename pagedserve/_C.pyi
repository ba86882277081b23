# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels. Nothing here checks its arguments: call pagedserve.ops.

Params structs are those of csrc/params.h, field by field; a pointer is an address as an int, 0 for none.
"""

class _Enum:
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class DType(_Enum):
    f32: DType
    f16: DType
    bf16: DType
    i8: DType
    f8e4m3: DType
    i4: DType

class Activation(_Enum):
    silu: Activation
    gelu_tanh: Activation

class WeightFormat(_Enum):
    f32: WeightFormat
    bf16: WeightFormat
    q8: WeightFormat
    q4: WeightFormat

class Isa(_Enum):
    portable: Isa
    avx2: Isa
    avx512: Isa
    avx512bf16: Isa

class Per(_Enum):
    token: Per
    row: Per

class KvPages:
    def __init__(self, **fields: object) -> None: ...
    data: int
    scales: int
    page_stride: int
    token_stride: int
    head_stride: int
    scale_page_stride: int
    scale_token_stride: int
    scale_head_stride: int
    dtype: DType

class PagedAttentionParams:
    def __init__(self, **fields: object) -> None: ...
    q: int
    out: int
    lse: int
    k: KvPages
    v: KvPages
    page_table: int
    kv_lens: int
    q_starts: int
    tree_mask: int
    sinks: int
    alibi_slopes: int
    q_token_stride: int
    q_head_stride: int
    out_token_stride: int
    out_head_stride: int
    page_table_stride: int
    num_seqs: int
    q_len: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    window: int
    scale: float
    soft_cap: float
    q_dtype: DType
    bf16_products: bool
    workspace: int
    workspace_bytes: int
    max_pages: int
    num_blocks: int

class PlanDecodeParams:
    def __init__(self, **fields: object) -> None: ...
    kv_lens: int
    workspace: int
    workspace_bytes: int
    num_seqs: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    q_len: int
    window: int
    num_blocks: int

class MergeStatesParams:
    def __init__(self, **fields: object) -> None: ...
    states: int
    state_lse: int
    out: int
    lse: int
    num_tokens: int
    num_states: int
    num_heads: int
    head_dim: int
    dtype: DType

class AppendKvParams:
    def __init__(self, **fields: object) -> None: ...
    k: int
    v: int
    k_pages: KvPages
    v_pages: KvPages
    slot_mapping: int
    num_tokens: int
    k_token_stride: int
    k_head_stride: int
    v_token_stride: int
    v_head_stride: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    src_dtype: DType

class CopyPagesParams:
    def __init__(self, **fields: object) -> None: ...
    src: int
    dst: int
    src_pages: int
    dst_pages: int
    num_copies: int
    page_bytes: int
    src_page_stride_bytes: int
    dst_page_stride_bytes: int

class RmsNormParams:
    def __init__(self, **fields: object) -> None: ...
    x: int
    residual: int
    out: int
    weight: int
    num_tokens: int
    x_token_stride: int
    x_head_stride: int
    residual_token_stride: int
    out_token_stride: int
    out_head_stride: int
    num_heads: int
    hidden: int
    accumulate: int
    eps: float
    dtype: DType
    quantized: int

class RopeParams:
    def __init__(self, **fields: object) -> None: ...
    x: int
    positions: int
    cos_sin: int
    num_tokens: int
    token_stride: int
    head_stride: int
    max_position: int
    num_heads: int
    head_dim: int
    rotary_dim: int
    interleaved: int
    dtype: DType

class ActMulParams:
    def __init__(self, **fields: object) -> None: ...
    gate_up: int
    out: int
    num_tokens: int
    gate_up_stride: int
    out_stride: int
    intermediate: int
    activation: Activation
    dtype: DType
    quantized: int

class QuantizeRowsParams:
    def __init__(self, **fields: object) -> None: ...
    x: int
    quantized: int
    num_tokens: int
    x_stride: int
    width: int

class LinearParams:
    def __init__(self, **fields: object) -> None: ...
    x: int
    weight: int
    bias: int
    out: int
    num_tokens: int
    x_stride: int
    out_stride: int
    in_features: int
    out_features: int
    accumulate: int
    format: WeightFormat
    quantized: int

class EmbedParams:
    def __init__(self, **fields: object) -> None: ...
    token_ids: int
    weight: int
    out: int
    num_tokens: int
    out_stride: int
    vocab_size: int
    hidden: int
    scale: float
    format: WeightFormat

class TakeRowsParams:
    def __init__(self, **fields: object) -> None: ...
    x: int
    rows: int
    out: int
    num_rows: int
    x_stride: int
    out_stride: int
    hidden: int

class SoftCapParams:
    def __init__(self, **fields: object) -> None: ...
    x: int
    num_tokens: int
    x_stride: int
    hidden: int
    cap: float

class SampleParams:
    def __init__(self, **fields: object) -> None: ...
    logits: int
    temperature: int
    top_k: int
    top_p: int
    min_p: int
    repetition: int
    presence: int
    frequency: int
    seeds: int
    offsets: int
    history: int
    history_starts: int
    output_starts: int
    tokens: int
    logprobs: int
    top_tokens: int
    top_logprobs: int
    logits_stride: int
    num_rows: int
    vocab_size: int
    num_top: int

class PackWeightParams:
    def __init__(self, **fields: object) -> None: ...
    data: int
    scales: int
    minimums: int
    packed: int
    out_features: int
    in_features: int
    half_scales: int
    format: WeightFormat

class StepInputs:
    def __init__(self, **fields: object) -> None: ...
    token_ids: int
    positions: int
    slot_mapping: int
    q_starts: int
    kv_lens: int
    page_table: int
    logit_rows: int
    max_tokens: int
    max_seqs: int
    max_pages: int
    max_rows: int
    vocab_size: int
    max_position: int
    num_pages: int
    page_size: int

class Timing:
    @property
    def name(self) -> str: ...
    @property
    def calls(self) -> int: ...
    @property
    def ns(self) -> int: ...

class Program:
    """A list of ops, replayed in one parallel region. One caller at a time."""

    def __init__(self, isa: Isa, inputs: StepInputs) -> None: ...
    def add(
        self,
        params: EmbedParams
        | RmsNormParams
        | QuantizeRowsParams
        | LinearParams
        | RopeParams
        | AppendKvParams
        | PagedAttentionParams
        | ActMulParams
        | TakeRowsParams
        | SoftCapParams,
        per: Per = ...,
    ) -> None: ...
    def run(self, team: Team, num_tokens: int, num_seqs: int, num_rows: int) -> None: ...
    def start_profile(self) -> None: ...
    def profile(self) -> list[Timing]: ...

class Team:
    """Threads and their scratch memory. One caller at a time."""

    def __init__(self, num_threads: int) -> None: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def alone(self) -> bool: ...

def paged_attention(params: PagedAttentionParams, team: Team, isa: Isa) -> None: ...
def merge_states(params: MergeStatesParams, team: Team, isa: Isa) -> None: ...
def append_kv(params: AppendKvParams, team: Team, isa: Isa) -> None: ...
def rms_norm(params: RmsNormParams, team: Team, isa: Isa) -> None: ...
def rope(params: RopeParams, team: Team, isa: Isa) -> None: ...
def quantize_rows(params: QuantizeRowsParams, team: Team, isa: Isa) -> None: ...
def act_mul(params: ActMulParams, team: Team, isa: Isa) -> None: ...
def linear(params: LinearParams, team: Team, isa: Isa) -> None: ...
def embed(params: EmbedParams, team: Team, isa: Isa) -> None: ...
def take_rows(params: TakeRowsParams, team: Team, isa: Isa) -> None: ...
def soft_cap(params: SoftCapParams, team: Team, isa: Isa) -> None: ...
def sample(params: SampleParams, team: Team, isa: Isa) -> None: ...
def copy_pages(params: CopyPagesParams, team: Team) -> None: ...
def plan_decode(params: PlanDecodeParams) -> bool: ...
def pack_weight(params: PackWeightParams, team: Team) -> None: ...
def packed_bytes(format: WeightFormat, out_features: int, in_features: int, half_scales: bool) -> int: ...
def quantized_bytes(num_tokens: int, width: int) -> int: ...
def fits_half(values: int, count: int) -> bool: ...
def detect_isa() -> Isa: ...
def supported_isas() -> list[Isa]: ...
