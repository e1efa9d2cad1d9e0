#include "cpu/attention_kernels.h"

#include <type_traits>

#include "cpu/attention_keys.h"
#include "cpu/attention_microkernel.h"
#include "cpu/attention_pack.h"
#include "cpu/attention_softmax.h"
#include "cpu/vec.h"

namespace airi::cpu::AIRI_ISA {
namespace {

constexpr int kLanes = VecF::kLanes;
constexpr int kSubtile = AttentionScratch::kSubtileKeys;

// Computes one tile. kPacking says how the cache's elements enter the products.
template <Packing kPacking>
class TileRun {
 public:
  TileRun(const AttentionTile& tile, AttentionScratch& scratch)
      : t_(tile),
        s_(scratch),
        rows_(tile.num_queries * tile.num_heads),
        words_(packed_words<kPacking>(tile.head_dim)),
        padded_(round_up(tile.head_dim, 16)),
        ahead_(tile) {
    groups_ = (rows_ + kTileM - 1) / kTileM;
    group_rows_ = (rows_ + groups_ - 1) / groups_;
    for (int query = 0, r = 0; query < t_.num_queries; ++query) {
      for (int head = 0; head < t_.num_heads; ++head) {
        s_.positions[r++] = t_.first_position + query * t_.position_step;
      }
    }
  }

  void run() {
    ahead_.start();
    load_queries();
    for (int r = 0; r < rows_; ++r) {
      s_.total_max[r] = -kInfinity;
      s_.total_sum[r] = 0;
    }
    for (int split = t_.split_begin; split < t_.split_end; ++split) {
      split_ = split * kSplitKeys;
      compute_scores();
      softmax();
      compute_values();
      t_.partials == nullptr ? merge_split(s_.split_max, s_.split_sum, s_.values)
                             : keep_partial(split - t_.split_begin);
    }
    if (t_.partials == nullptr) write_out();
  }

  void merge() {
    for (int r = 0; r < rows_; ++r) {
      s_.total_max[r] = -kInfinity;
      s_.total_sum[r] = 0;
    }
    for (int split = t_.split_begin; split < t_.split_end; ++split) {
      const float* partial = partial_of(split - t_.split_begin);
      merge_split(partial, partial + rows_, partial + 2 * rows_);
    }
    write_out();
  }

 private:
  static constexpr bool kPaired = kPacking == Packing::kPairs;
#ifdef __AVX512BF16__
  using Step = std::conditional_t<kPaired, PairStep, FloatStep>;
#else
  using Step = FloatStep;
#endif

  // What the rows [first, last] see of the current split.
  KeyRange visible(int first, int last) const {
    const int begin = t_.window > 0 ? s_.positions[first] - t_.window + 1 : 0;
    return intersect({split_, split_ + kSplitKeys}, {begin, s_.positions[last] + 1});
  }
  int last_row(int group) const { return least((group + 1) * group_rows_, rows_) - 1; }

  void load_queries() {
    for (int r = 0; r < rows_; ++r) {
      const std::byte* q = t_.q + r / t_.num_heads * t_.query_stride;
      const int head = r % t_.num_heads;
      float* out = s_.queries + r * words_;
      if constexpr (kPacking == Packing::kWidened) {
        const auto* from = reinterpret_cast<const std::uint16_t*>(q) + head * t_.head_dim;
        for (int d = 0; d < t_.head_dim; d += kLanes) {
          const int count = least(kLanes, t_.head_dim - d);
          VecF::load_bf16_partial(from + d, count).store_partial(out + d, count);
        }
      } else {
        __builtin_memcpy(out, q + std::int64_t{head} * words_ * 4, static_cast<std::size_t>(words_) * 4);
      }
    }
  }

  // Addresses of the rows of keys (or values) [begin, end) into rows[0..); the entries of
  // [from, begin) and [end, to) become null.
  void find_rows(KeyRange keys, KeyRange all, std::int64_t offset, const float** rows) const {
    for (int key = all.begin; key < keys.begin; ++key) *rows++ = nullptr;
    for (int key = keys.begin; key < keys.end;) {
      const int block = key / t_.block_size;
      const int begin = key - block * t_.block_size;
      const int count = least(t_.block_size - begin, keys.end - key);
      const std::byte* p = t_.kv + t_.table[block] * kGranuleBytes + offset + begin * t_.token_stride;
      for (int i = 0; i < count; ++i, p += t_.token_stride) *rows++ = reinterpret_cast<const float*>(p);
      key += count;
    }
    for (int key = keys.end; key < all.end; ++key) *rows++ = nullptr;
  }

  // scores[r][key - split] = q_r . k_key for every key that some row of r's group sees.
  void compute_scores() {
    const float* rows[kSubtile];
    const KeyRange seen = visible(0, rows_ - 1);
    for (int sub = round_down(seen.begin, kSubtile); sub < seen.end; sub += kSubtile) {
      const KeyRange keys = intersect(seen, {sub, sub + kSubtile});
      const KeyRange vectors{round_down(keys.begin - sub, kLanes), round_up(keys.end - sub, kLanes)};
      find_rows(keys, {sub, sub + vectors.end}, 0, rows);
      pack_keys<kPacking>(rows, vectors.begin, vectors.end, t_.head_dim, kSubtile, s_.packed, ahead_);
      for (int g = 0; g < groups_; ++g) {
        const int first = g * group_rows_;
        const KeyRange own = intersect(visible(first, last_row(g)), keys);
        if (own.begin >= own.end) continue;
        const int begin = round_down(own.begin - sub, kLanes);
        const Product product{.a = s_.queries + first * words_,
                              .lda = words_,
                              .b = s_.packed + begin,
                              .ldb = kSubtile,
                              .c = s_.scores + first * kSplitKeys + sub - split_ + begin,
                              .ldc = kSplitKeys,
                              .k = words_,
                              .accumulate = false};
        multiply<Step>(product, last_row(g) - first + 1, (own.end - sub - begin + kLanes - 1) / kLanes);
      }
    }
  }

  // Turns every row's scores into unnormalised probabilities.
  void softmax() {
    const KeyRange seen = visible(0, rows_ - 1);
    const int begin = round_down(seen.begin - split_, kLanes);
    const int end = round_up(seen.end - split_, kLanes);
    for (int r = 0; r < rows_; ++r) {
      const KeyRange own = visible(r, r);
      const ScoreRow row{s_.scores + r * kSplitKeys, begin, own.begin - split_, own.end - split_, end};
      const RowSum result = softmax_row<kPaired>(row, t_.scale, t_.softcap);
      s_.split_max[r] = result.greatest;
      s_.split_sum[r] = result.sum;
    }
  }

  // values[r][d] = sum over the split's keys of p[r][key] v[key][d].
  void compute_values() {
    constexpr int kKeys = kPaired ? 2 : 1;  // per step of the product
    const float* rows[kSubtile + 1];
    const KeyRange seen = visible(0, rows_ - 1);
    __builtin_memset(s_.values, 0, static_cast<std::size_t>(rows_) * padded_ * sizeof(float));
    for (int sub = round_down(seen.begin, kSubtile); sub < seen.end; sub += kSubtile) {
      const KeyRange keys = intersect(seen, {sub, sub + kSubtile});
      find_rows(keys, {sub, round_up(keys.end, 2)}, t_.kv_stride, rows);
      const int packed_begin = round_down(keys.begin - sub, 2);
      pack_values<kPacking>(rows, packed_begin, keys.end - sub, t_.head_dim, padded_, s_.packed, ahead_);
      for (int g = 0; g < groups_; ++g) {
        const int first = g * group_rows_;
        const KeyRange own = intersect(visible(first, last_row(g)), keys);
        if (own.begin >= own.end) continue;
        const int begin = (own.begin - sub) / kKeys;
        const Product product{.a = s_.scores + first * kSplitKeys + (sub - split_) / kKeys + begin,
                              .lda = kSplitKeys,
                              .b = s_.packed + begin * padded_,
                              .ldb = padded_,
                              .c = s_.values + first * padded_,
                              .ldc = padded_,
                              .k = (own.end - sub + kKeys - 1) / kKeys - begin,
                              .accumulate = true};
        multiply<Step>(product, last_row(g) - first + 1, padded_ / kLanes);
      }
    }
  }

  float* partial_of(int split) const { return t_.partials + split * partial_floats(rows_, t_.head_dim); }

  void keep_partial(int split) {
    float* partial = partial_of(split);
    const auto rows = static_cast<std::size_t>(rows_);
    __builtin_memcpy(partial, s_.split_max, rows * sizeof(float));
    __builtin_memcpy(partial + rows_, s_.split_sum, rows * sizeof(float));
    __builtin_memcpy(partial + 2 * rows_, s_.values, rows * padded_ * sizeof(float));
  }

  // Adds a split to the total. A split of which a row sees nothing leaves the row's bits.
  void merge_split(const float* split_max, const float* split_sum, const float* values) {
    for (int r = 0; r < rows_; ++r) {
      float* total = s_.total + r * padded_;
      const float* value = values + r * padded_;
      const auto bytes = static_cast<std::size_t>(padded_) * sizeof(float);
      if (s_.total_sum[r] == 0) {
        s_.total_max[r] = split_max[r];
        s_.total_sum[r] = split_sum[r];
        __builtin_memcpy(total, value, bytes);
        continue;
      }
      if (split_sum[r] == 0) continue;
      const float greatest = s_.total_max[r] > split_max[r] ? s_.total_max[r] : split_max[r];
      const VecF old_scale = exp(VecF::set1(s_.total_max[r] - greatest));
      const VecF new_scale = exp(VecF::set1(split_max[r] - greatest));
      for (int d = 0; d < padded_; d += kLanes) {
        const VecF scaled = VecF::load(total + d) * old_scale;
        fma(VecF::load(value + d), new_scale, scaled).store(total + d);
      }
      float factors[2][kLanes];
      old_scale.store(factors[0]);
      new_scale.store(factors[1]);
      s_.total_sum[r] = s_.total_sum[r] * factors[0][0] + split_sum[r] * factors[1][0];
      s_.total_max[r] = greatest;
    }
  }

  void write_out() {
    for (int r = 0; r < rows_; ++r) {
      std::byte* row = t_.out + r / t_.num_heads * t_.query_stride;
      const int offset = r % t_.num_heads * t_.head_dim;
      const VecF sum = VecF::set1(s_.total_sum[r]);
      for (int d = 0; d < t_.head_dim; d += kLanes) {
        const int count = least(kLanes, t_.head_dim - d);
        const VecF y = VecF::load(s_.total + r * padded_ + d) / sum;
        if constexpr (kPacking == Packing::kFloat) {
          y.store_partial(reinterpret_cast<float*>(row) + offset + d, count);
        } else {
          y.store_bf16_partial(reinterpret_cast<std::uint16_t*>(row) + offset + d, count);
        }
      }
    }
  }

  const AttentionTile& t_;
  AttentionScratch& s_;
  const int rows_;
  const int words_;   // of a query in the product with keys
  const int padded_;  // head_dim rounded up, as values are kept
  int groups_;        // of rows that share a register tile
  int group_rows_;
  KeysAhead ahead_;
  int split_ = 0;  // position of the current split's first key
};

#ifdef __AVX512BF16__
constexpr Packing kHalf = Packing::kPairs;
#else
constexpr Packing kHalf = Packing::kWidened;
#endif

void run(const AttentionTile& tile, AttentionScratch& scratch) {
  if (tile.dtype == DType::kF32) {
    TileRun<Packing::kFloat>(tile, scratch).run();
  } else {
    TileRun<kHalf>(tile, scratch).run();
  }
}

void merge(const AttentionTile& tile, AttentionScratch& scratch) {
  if (tile.dtype == DType::kF32) {
    TileRun<Packing::kFloat>(tile, scratch).merge();
  } else {
    TileRun<kHalf>(tile, scratch).merge();
  }
}

}  // namespace

extern const AttentionKernels kAttentionKernels = {&run, &merge};

}  // namespace airi::cpu::AIRI_ISA
