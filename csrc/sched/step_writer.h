#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "kv/memory_op.h"
#include "sched/request.h"
#include "sched/step_time.h"

namespace airi {

// Bits of StepBuffers::row_flags.
inline constexpr std::uint8_t kRowSample = 1;  // the row needs one token
inline constexpr std::uint8_t kRowFirst = 2;   // first step of the request in this slot
// The row's token is what the step before samples in this slot; kPendingToken stands in its place.
inline constexpr std::uint8_t kRowPending = 4;

// One set of arrays that a step is written into. The caller owns the memory; R rows, T tokens,
// D deltas, M operations. Nothing is written beyond the counts that StepInfo reports.
struct StepBuffers {
  std::span<std::int64_t> request_ids;  // [R]
  std::span<std::int32_t> slots;        // [R] stable while a request runs, unique per model
  std::span<std::int32_t> query_start;  // [R + 1]
  std::span<std::int32_t> seq_lens;     // [R] KV length after this step
  std::span<std::uint8_t> row_flags;    // [R]
  std::span<std::int32_t> draw_index;   // [R] of the token to sample, from 0
  std::span<std::int32_t> tokens;       // [T]
  std::span<std::int32_t> positions;    // [T]
  std::span<std::int32_t> deltas;       // [D * 3] slot, column, entry
  std::span<std::int64_t> ops;          // [M * 5] kind, id, from, to, granules: before the batch, in order
};

// One row of a planned step, kept until its commit.
struct PlannedRow {
  Request* request = nullptr;  // null: it ended, or was taken off, since
  std::int32_t end = 0;        // tokens with KV once the step has run
  std::int32_t num_tokens = 0;
  bool samples = false;
  PlannedRow* earlier = nullptr;  // the request's row in the step before, where that is uncommitted too
};

// What the uncommitted steps compute for the request, if they do, means nothing any more: the request keeps
// the tokens that are known.
void forget_rows(Request& request);

// Writes a step into one set of buffers and remembers its rows. Decides nothing.
//
// Thread safety: none.
class StepWriter {
 public:
  static constexpr std::size_t kOpColumns = 5;

  explicit StepWriter(const StepBuffers& buffers);

  void clear() noexcept;

  [[nodiscard]] std::int32_t num_rows() const noexcept { return static_cast<std::int32_t>(rows_.size()); }
  [[nodiscard]] std::int32_t num_tokens() const noexcept { return num_tokens_; }
  [[nodiscard]] std::int32_t num_deltas() const noexcept { return num_deltas_; }
  [[nodiscard]] std::int32_t num_samples() const noexcept { return num_samples_; }
  [[nodiscard]] std::int32_t num_decodes() const noexcept { return num_decodes_; }
  [[nodiscard]] const StepWork& work() const noexcept { return work_; }
  [[nodiscard]] std::int32_t delta_room() const noexcept {
    return static_cast<std::int32_t>(buffers_.deltas.size() / 3) - num_deltas_;
  }
  // How many memory operations a step can bring.
  [[nodiscard]] std::int32_t max_ops() const noexcept {
    return static_cast<std::int32_t>(buffers_.ops.size() / 5);
  }
  [[nodiscard]] std::span<PlannedRow> rows() noexcept { return rows_; }
  [[nodiscard]] std::span<const PlannedRow> rows() const noexcept { return rows_; }

  // A decode: the last known token of `request`.
  void add_decode(Request& request) noexcept;
  // A prefill chunk: the next `count` known tokens. REQUIRES: 1 <= count <= what is left.
  void add_chunk(Request& request, std::int32_t count);
  void add_delta(SlotId slot, std::int32_t column, std::int32_t entry);
  // Writes the step's memory operations. REQUIRES: at most max_ops().
  void set_ops(std::span<const MemoryOp> ops);

 private:
  void add_row(Request& request, std::int32_t count, bool samples) noexcept;

  StepBuffers buffers_;
  std::vector<PlannedRow> rows_;  // capacity taken once
  std::int32_t num_tokens_ = 0;
  std::int32_t num_deltas_ = 0;
  std::int32_t num_samples_ = 0;
  std::int32_t num_decodes_ = 0;
  StepWork work_;
};

}  // namespace airi
