"""The specification of the kernels in plain torch and numpy: written to be read, not to be fast.

Attention over paged memory. A sequence's keys and values lie in blocks of `block_size` tokens; entry j of its
line in the block table is where block j starts in the arena, in granules of 4,096 bytes. A row's queries stand
at the last positions of its sequence and see the keys up to their own position:

    out[i] = sum_k softmax_k(cap(scale * q_i . k_k)) v_k      over max(0, p_i - window + 1) <= k <= p_i

A window of 0 is none; cap(s) = softcap * tanh(s / softcap), or s when softcap is 0.

Quantised keys and values. A row x of head_dim elements is stored as round(x / s) with one float32 scale s:

    float8_e4m3fn: s = max|x| / 448      int8: s = max|x| / 127      and s = 1 where x is zero

Sampling. The token is argmax(logits / temperature + noise) over the tokens that the filters keep; the noise is
Gumbel distributed and a function of (seed, draw, token) alone, by Philox4x32-10.
"""

from ..layout import GRANULE_BYTES, KvLayout
from .attention import PagedBatch, gather_kv, paged_attention
from .blocks import copy_blocks, gather_dequant, zero_granules
from .decode import combine_partials, paged_decode
from .experts import expert_matmul, route_experts
from .logits import count_tokens, edit_logits, gather_logprobs, penalise, penalise_row, start_counts
from .norms import add_rms_norm, glu, rms_norm, rms_norm_add
from .plan import plan_attention
from .prefill import paged_prefill
from .sampling import GREEDY_TEMPERATURE, gumbel_noise, keep_mask, philox, sample, sample_row
from .token_masks import mask_tokens
from .tokens import apply_table_deltas, fill_tokens, map_tokens
from .writes import qkv_post, quantise, rope, rope_kv_write, write_kv

__all__ = [
    "GRANULE_BYTES",
    "GREEDY_TEMPERATURE",
    "KvLayout",
    "PagedBatch",
    "add_rms_norm",
    "apply_table_deltas",
    "combine_partials",
    "copy_blocks",
    "count_tokens",
    "edit_logits",
    "expert_matmul",
    "fill_tokens",
    "gather_dequant",
    "gather_kv",
    "gather_logprobs",
    "glu",
    "gumbel_noise",
    "keep_mask",
    "map_tokens",
    "mask_tokens",
    "paged_attention",
    "paged_decode",
    "paged_prefill",
    "penalise",
    "penalise_row",
    "philox",
    "plan_attention",
    "qkv_post",
    "quantise",
    "rms_norm",
    "rms_norm_add",
    "rope",
    "rope_kv_write",
    "route_experts",
    "sample",
    "sample_row",
    "start_counts",
    "write_kv",
    "zero_granules",
]
