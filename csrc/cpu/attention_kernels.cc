#include "cpu/attention_kernels.h"

#include <type_traits>

#include "cpu/attention_microkernel.h"
#include "cpu/attention_pack.h"
#include "cpu/vec.h"

namespace airi::cpu::AIRI_ISA {
namespace {

constexpr int kLanes = VecF::kLanes;
constexpr int kSubtile = AttentionScratch::kSubtileKeys;
constexpr float kInfinity = __builtin_inff();

AIRI_INLINE int least(int a, int b) { return a < b ? a : b; }
AIRI_INLINE int most(int a, int b) { return a > b ? a : b; }
AIRI_INLINE int round_down(int x, int step) { return x / step * step; }
AIRI_INLINE int round_up(int x, int step) { return (x + step - 1) / step * step; }

// Keys [begin, end), by position in the sequence.
struct KeyRange {
  int begin;
  int end;
};
AIRI_INLINE KeyRange intersect(KeyRange a, KeyRange b) {
  return {most(a.begin, b.begin), least(a.end, b.end)};
}

// Asks the memory for K and V rows well before they are packed: they lie scattered in
// pieces too short for the processor to see ahead by itself. Goes on with the first keys
// of the next item when its own are all asked for.
class KeysAhead {
 public:
  // Of 64 to 192 keys of 256 bytes each, 160 are best by a little: decoding 64 rows of 320
  // keys of the 135 M Llama shape takes 24 ms of CPU, 83 without (Zen 5).
  static constexpr int kAheadBytes = 40 * 1024;

  AIRI_INLINE explicit KeysAhead(const AttentionTile& t)
      : t_(t), bytes_(t.head_dim * (t.dtype == DType::kF32 ? 4 : 2)), table_(t.table), kv_(t.kv) {
    key_ = t.split_begin * kSplitKeys;
    if (t.window > 0) key_ = most(key_, t.first_position - t.window + 1);
    end_ = least(t.split_end * kSplitKeys, t.first_position + t.num_queries);
    enter_block();
  }

  // Gets ahead of the tile by `kAheadBytes`; from then on fetch() keeps the distance.
  AIRI_INLINE void start() { fetch(most(1, kAheadBytes / (2 * bytes_))); }

  // Asks for the rows of the next `count` keys.
  AIRI_INLINE void fetch(int count) {
    for (; count > 0; --count) {
      if (key_ == end_ && !enter_next_item()) return;
      for (int at = 0; at < bytes_; at += 64) {
        __builtin_prefetch(row_ + at);
        __builtin_prefetch(row_ + t_.kv_stride + at);
      }
      row_ += t_.token_stride;
      if (++key_ == block_end_ && key_ < end_) enter_block();
    }
  }

 private:
  AIRI_INLINE void enter_block() {
    const int block = key_ / t_.block_size;
    block_end_ = (block + 1) * t_.block_size;
    row_ = kv_ + table_[block] * kGranuleBytes + (key_ - block * t_.block_size) * t_.token_stride;
  }

  bool enter_next_item() {
    if (table_ == t_.next_table && kv_ == t_.next_kv) return false;
    if (t_.next_begin >= t_.next_end) return false;
    table_ = t_.next_table;
    kv_ = t_.next_kv;
    key_ = t_.next_begin;
    end_ = t_.next_end;
    enter_block();
    return true;
  }

  const AttentionTile& t_;
  const int bytes_;
  const std::int32_t* table_;
  const std::byte* kv_;
  int key_;
  int end_;
  int block_end_ = 0;
  const std::byte* row_ = nullptr;
};

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
      for (int r = 0; r < rows_; ++r) softmax(r);
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
      float* partial = partial_of(split - t_.split_begin);
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
    const int low = t_.first_position + first / t_.num_heads;
    const int high = t_.first_position + last / t_.num_heads;
    const int begin = t_.window > 0 ? low - t_.window + 1 : 0;
    return intersect({split_, split_ + kSplitKeys}, {begin, high + 1});
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

  // Turns a row's scores into unnormalised probabilities, zero for keys that the row does
  // not see but its tile does; leaves their maximum and sum.
  void softmax(int r) {
    float* x = s_.scores + r * kSplitKeys;
    const KeyRange own = visible(r, r);
    const KeyRange seen = visible(0, rows_ - 1);
    const int end = round_up(seen.end - split_, kLanes);
    int key = round_down(seen.begin - split_, kLanes);
    s_.split_max[r] = -kInfinity;
    s_.split_sum[r] = 0;
    if (own.begin < own.end) {
      const int first = round_down(own.begin - split_, kLanes);
      const int last = round_up(own.end - split_, kLanes);
      for (int i = first; i < own.begin - split_; ++i) x[i] = -kInfinity;
      for (int i = own.end - split_; i < last; ++i) x[i] = -kInfinity;
      const VecF greatest = scale_scores(x + first, last - first);
      s_.split_max[r] = reduce_max(greatest);
      s_.split_sum[r] = exponentiate(x + first, last - first, s_.split_max[r]);
      for (; key < first; key += kLanes) VecF::zero().store(x + key);
      key = last;
    }
    for (; key < end; key += kLanes) VecF::zero().store(x + key);
    if constexpr (kPaired) round_to_pairs(x, round_down(seen.begin - split_, kLanes), end);
  }

  VecF scale_scores(float* x, int count) const {
    const VecF scale = VecF::set1(t_.softcap > 0 ? t_.scale / t_.softcap : t_.scale);
    const VecF cap = VecF::set1(t_.softcap);
    VecF greatest = VecF::set1(-kInfinity);
    for (int i = 0; i < count; i += kLanes) {
      const VecF raw = VecF::load(x + i);
      VecF y = raw * scale;
      if (t_.softcap > 0) {
        // A masked score stays minus infinity: the cap must not bring it back.
        y = select_below(VecF::set1(-kInfinity), raw, tanh(y) * cap, raw);
      }
      y.store(x + i);
      greatest = max(greatest, y);
    }
    return greatest;
  }

  static float exponentiate(float* x, int count, float greatest) {
    VecF sum = VecF::zero();
    for (int i = 0; i < count; i += kLanes) {
      const VecF p = exp(VecF::load(x + i) - VecF::set1(greatest));
      p.store(x + i);
      sum = sum + p;
    }
    return reduce_add(sum);
  }

  // Rewrites floats [begin, end) of x as bfloat16, each at half of its former offset.
  static void round_to_pairs(float* x, int begin, int end) {
    auto* out = reinterpret_cast<std::uint16_t*>(x);
    for (int key = begin; key < end; key += kLanes) VecF::load(x + key).store_bf16(out + key);
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
