#include "cpu/paged_batch.h"

#include <algorithm>
#include <string>

#include "base/check.h"

namespace airi::cpu {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw InvalidArgument("PagedBatch: " + what); }

void check_sizes(const PagedBatchArrays& a) {
  if (a.rows < 1) refuse("rows is " + std::to_string(a.rows) + ", accepted is 1 or more");
  if (a.tokens < 1) refuse("tokens is " + std::to_string(a.tokens) + ", accepted is 1 or more");
  if (a.table_stride < 1) {
    refuse("table_stride is " + std::to_string(a.table_stride) + ", accepted is 1 or more");
  }
  const bool null =
      a.query_start == nullptr || a.seq_lens == nullptr || a.slots == nullptr || a.block_table == nullptr;
  if (null) refuse("query_start, seq_lens, slots and block_table must be addresses, got 0");
  if (a.query_start[0] != 0 || a.query_start[a.rows] != a.tokens) {
    refuse("query_start must go from 0 to tokens (" + std::to_string(a.tokens) + "), got " +
           std::to_string(a.query_start[0]) + " to " + std::to_string(a.query_start[a.rows]));
  }
}

void check_row(const PagedBatchArrays& a, int row) {
  const auto name = [row](const char* array) {
    return std::string(array) + "[" + std::to_string(row) + "] is ";
  };
  const std::int32_t queries = a.query_start[row + 1] - a.query_start[row];
  if (queries < 0) refuse("query_start falls after entry " + std::to_string(row));
  if (a.seq_lens[row] < queries) {
    refuse(name("seq_lens") + std::to_string(a.seq_lens[row]) + ", less than the row's " +
           std::to_string(queries) + " queries");
  }
  if (a.slots[row] < 0) refuse(name("slots") + std::to_string(a.slots[row]) + ", accepted is 0 or more");
}

}  // namespace

PagedBatch::PagedBatch(const PagedBatchArrays& arrays) : arrays_(arrays) {
  check_sizes(arrays);
  // All lengths before any fill: a falling query_start must not write out of range.
  for (int row = 0; row < arrays.rows; ++row) check_row(arrays, row);
  token_rows_.resize(static_cast<std::size_t>(arrays.tokens));
  for (int row = 0; row < arrays.rows; ++row) {
    std::fill(token_rows_.begin() + arrays.query_start[row],
              token_rows_.begin() + arrays.query_start[row + 1], row);
    max_seq_len_ = std::max(max_seq_len_, arrays.seq_lens[row]);
  }
}

void PagedBatch::check_blocks(const KvLayout& layout) const {
  const std::int64_t blocks = (max_seq_len_ + std::int64_t{layout.block_size} - 1) / layout.block_size;
  if (blocks > arrays_.table_stride) {
    refuse("a sequence of " + std::to_string(max_seq_len_) + " keys needs " + std::to_string(blocks) +
           " blocks, table_stride is " + std::to_string(arrays_.table_stride));
  }
}

AttentionPlan& PagedBatch::plan(const AttentionShape& shape) {
  const auto found = std::find_if(plans_.begin(), plans_.end(),
                                  [&](const AttentionPlan& plan) { return plan.shape == shape; });
  if (found != plans_.end()) return *found;
  return plans_.emplace_back(plan_attention(*this, shape));
}

}  // namespace airi::cpu
