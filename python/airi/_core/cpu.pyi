"""Kernels for CPUs. Tensors cross as addresses; float32 unless a dtype is given."""

import enum
from collections.abc import Sequence

from airi._core import _PybindType

class DType(enum.Enum):
    F32 = 0
    BF16 = 1

def isa() -> str: ...
def set_isa(name: str) -> None: ...
def supported_isas() -> list[str]: ...
def num_threads() -> int: ...
def wake_threads() -> None:
    """Has threads that sleep look for work, for who is about to bring some."""

def set_num_threads(threads: int) -> None: ...

class PackedLinear(metaclass=_PybindType):
    """y = x W^T + b with W [n, k] copied into panels once; the source may be freed.

    x is [m, k] in the compute dtype without gaps, y is float32. A row of y depends on its
    row of x alone, bit for bit, whatever m or the number of threads.
    """

    def __init__(
        self, weight: int, n: int, k: int, weight_dtype: DType, compute: DType, bias: int = 0
    ) -> None: ...
    @staticmethod
    def fused(
        blocks: Sequence[tuple[int, int]], k: int, weight_dtype: DType, compute: DType, bias: int = 0
    ) -> PackedLinear:
        """Several matrices over the same x, given as (address, rows); their outputs follow each other."""

    def forward(self, x: int, m: int, out: int, ldo: int = 0) -> None:
        """out[m, n] = y; rows of out are ldo floats apart (0: n)."""

    def forward_add(self, x: int, m: int, out: int, ldo: int = 0) -> None:
        """out[m, n] += y."""

    def forward_activated(self, x: int, m: int, out: int, activation: str) -> None:
        """out[m, n] = activation(y): gelu, gelu_tanh or relu."""

    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def move_to(self, memory: int) -> None:
        """Copies the packed weights to nbytes bytes of the caller's and uses them there; 64-byte aligned."""
    def precede(self, next: PackedLinear) -> None:
        """What is multiplied next: products of few rows bring its first weights into cache as they end."""

class PackedGLU(metaclass=_PybindType):
    """activation(x gate^T) * (x up^T), in the compute dtype. Activations: silu, gelu_tanh."""

    def __init__(
        self,
        gate: int,
        up: int,
        n: int,
        k: int,
        weight_dtype: DType,
        compute: DType,
        activation: str,
        gate_bias: int = 0,
        up_bias: int = 0,
    ) -> None: ...
    def forward(self, x: int, m: int, out: int) -> None:
        """out [m, n] in the compute dtype, without gaps."""

    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def move_to(self, memory: int) -> None:
        """Copies the packed weights to nbytes bytes of the caller's and uses them there; 64-byte aligned."""

def rms_norm(
    x: int, weight: int, out: int, out_dtype: DType, m: int, h: int, eps: float, ldx: int = 0
) -> None:
    """out[i] = x[i] / sqrt(mean(x[i]^2) + eps) * weight; rows of x are ldx floats apart (0: h)."""

def rms_norm_add(x: int, weight: int, residual: int, m: int, h: int, eps: float) -> None:
    """residual[i] += x[i] / sqrt(mean(x[i]^2) + eps) * weight."""

def layer_norm(weight: int, bias: int, x: int, m: int, h: int, eps: float) -> None:
    """x[i] = (x[i] - mean(x[i])) / sqrt(var(x[i]) + eps) * weight + bias, in place."""

def embed(
    table: int,
    dtype: DType,
    ids: int,
    m: int,
    h: int,
    out: int,
    scale: float = 1.0,
    rows: int | None = None,
) -> None:
    """out[i] = table[ids[i]] * scale, float32; ids int32. With rows: ValueError for an id outside of it."""

def gather_rows(x: int, row_bytes: int, rows: int, m: int, out: int) -> None:
    """out[i] = x[rows[i]]; rows int32."""

def to_bf16(x: int, out: int, count: int) -> None:
    """Rounds float32 to bfloat16, to nearest even."""

def to_f32(x: int, out: int, count: int) -> None:
    """Widens bfloat16 to float32."""

class KvLayout(metaclass=_PybindType):
    """Where one model's keys and values lie in the arena; strides in bytes."""

    def __init__(
        self,
        *,
        base: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: DType,
        head_stride: int,
        kv_stride: int,
        token_stride: int,
    ) -> None: ...
    @property
    def block_size(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def dtype(self) -> DType: ...

class PagedBatch(metaclass=_PybindType):
    """The rows of one step; the arrays must outlive the step's calls."""

    def __init__(
        self,
        *,
        rows: int,
        tokens: int,
        query_start: int,
        seq_lens: int,
        slots: int,
        block_table: int,
        table_stride: int,
    ) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def tokens(self) -> int: ...

def paged_attention(
    batch: PagedBatch,
    layout: KvLayout,
    layer_offset: int,
    q: int,
    out: int,
    num_q_heads: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    is_causal: bool = True,
) -> None:
    """Where it is not causal every query sees all keys of its row; there is no window then."""

def rope_kv_write(
    batch: PagedBatch,
    layout: KvLayout,
    layer_offset: int,
    qkv: int,
    positions: int,
    cos_sin: int,
    rot_dim: int,
    q_out: int,
    num_q_heads: int,
    q_norm: int = 0,
    k_norm: int = 0,
    eps: float = ...,
) -> None: ...
def sample(
    logits: int,
    rows: int,
    vocab: int,
    temperature: int,
    top_k: int,
    top_p: int,
    min_p: int,
    seed: int,
    draw: int,
    out_tokens: int,
    nan_flags: int,
    stride: int = 0,
) -> None: ...
def log_softmax_gather(
    logits: int,
    rows: int,
    vocab: int,
    tokens: int,
    logprobs: int,
    ranks: int,
    top: int = 0,
    top_ids: int = 0,
    top_logprobs: int = 0,
    stride: int = 0,
) -> None: ...
def apply_penalties(
    row: int,
    vocab: int,
    prompt_ids: int,
    num_prompt: int,
    output_ids: int,
    num_output: int,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
) -> None: ...
def apply_bias(row: int, vocab: int, ids: int, values: int, count: int) -> None: ...
def apply_token_mask(row: int, vocab: int, mask: int, words: int) -> None: ...
