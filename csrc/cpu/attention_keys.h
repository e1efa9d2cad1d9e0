#pragma once

#include "cpu/attention_kernels.h"
#include "cpu/vec.h"

// Ranges of keys, and fetching them early.

namespace airi::cpu::AIRI_ISA {
namespace {

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
    end_ = least(t.split_end * kSplitKeys, t.first_position + (t.num_queries - 1) * t.position_step + 1);
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
      ++key_;
      if (key_ == block_end_ && key_ < end_) enter_block();
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

}  // namespace
}  // namespace airi::cpu::AIRI_ISA
