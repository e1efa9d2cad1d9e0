#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "cpu/attention_plan.h"
#include "cpu/kv_layout.h"

namespace airi::cpu {

// What a step hands over: which tokens belong to which row, how many keys each row has,
// where its blocks are. A row's queries are the last of its keys' positions.
struct PagedBatchArrays {
  int rows = 0;
  int tokens = 0;
  const std::int32_t* query_start = nullptr;  // [rows + 1], from 0 to tokens
  const std::int32_t* seq_lens = nullptr;     // [rows], keys after this step
  const std::int32_t* slots = nullptr;        // [rows], the row's line of block_table
  const std::int32_t* block_table = nullptr;  // [slots, table_stride], in granules
  std::int64_t table_stride = 0;              // entries
};

// The rows of one step, built once and read by the calls of every layer. Never owns the
// arrays, which must stay as they are until the last of these calls.
//
// Thread safety: one thread (plans are cached between calls).
// Invariant: the arrays were consistent when the batch was built.
class PagedBatch {
 public:
  // Throws InvalidArgument naming the first array that is inconsistent. O(tokens).
  explicit PagedBatch(const PagedBatchArrays& arrays);
  PagedBatch(const PagedBatch&) = delete;
  PagedBatch& operator=(const PagedBatch&) = delete;

  [[nodiscard]] int rows() const noexcept { return arrays_.rows; }
  [[nodiscard]] int tokens() const noexcept { return arrays_.tokens; }
  [[nodiscard]] int query_begin(int row) const noexcept { return arrays_.query_start[row]; }
  [[nodiscard]] int query_len(int row) const noexcept {
    return arrays_.query_start[row + 1] - arrays_.query_start[row];
  }
  [[nodiscard]] int seq_len(int row) const noexcept { return arrays_.seq_lens[row]; }
  // The position of the row's first query.
  [[nodiscard]] int first_position(int row) const noexcept { return seq_len(row) - query_len(row); }
  [[nodiscard]] const std::int32_t* table(int row) const noexcept {
    return arrays_.block_table + arrays_.slots[row] * arrays_.table_stride;
  }
  [[nodiscard]] int row_of_token(int token) const noexcept {
    return token_rows_[static_cast<std::size_t>(token)];
  }

  // Throws InvalidArgument when a sequence needs more blocks than a line of the table holds.
  void check_blocks(const KvLayout& layout) const;

  // The plan for `shape`, made on first use; stays valid as long as the batch.
  [[nodiscard]] AttentionPlan& plan(const AttentionShape& shape);

 private:
  PagedBatchArrays arrays_;
  int max_seq_len_ = 0;
  std::vector<std::int32_t> token_rows_;
  std::deque<AttentionPlan> plans_;
};

}  // namespace airi::cpu
