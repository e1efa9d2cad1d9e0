#include "sched/step_writer.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace airi {

void forget_rows(Request& request) {
  PlannedRow* row = request.newest_row;
  for (std::int32_t left = request.rows_in_flight; left > 0; --left) {
    row->request = nullptr;
    row = row->earlier;
  }
  request.tokens.resize(request.tokens.size() - static_cast<std::size_t>(request.pending_tokens));
  request.rows_in_flight = request.pending_tokens = 0;
}

StepWriter::StepWriter(const StepBuffers& buffers) : buffers_(buffers) {
  rows_.reserve(buffers.slots.size());
  buffers_.query_start[0] = 0;
}

void StepWriter::clear() noexcept {
  rows_.clear();
  num_tokens_ = num_deltas_ = num_samples_ = num_decodes_ = 0;
  work_ = {};
}

void StepWriter::add_row(Request& request, std::int32_t count, bool samples) noexcept {
  const std::size_t row = rows_.size();
  const std::int32_t end = request.num_computed + count;
  buffers_.request_ids[row] = raw(request.id);
  buffers_.slots[row] = raw(request.slot);
  buffers_.seq_lens[row] = end;
  const bool pending = request.awaits_token();
  buffers_.row_flags[row] = static_cast<std::uint8_t>(
      (samples ? kRowSample : 0) | (request.first_step ? kRowFirst : 0) | (pending ? kRowPending : 0));
  buffers_.draw_index[row] = std::max(end - request.prompt_length, 0);
  num_tokens_ += count;
  buffers_.query_start[row + 1] = num_tokens_;
  num_samples_ += samples ? 1 : 0;
  request.first_step = false;
  rows_.push_back({.request = &request, .end = end, .num_tokens = count, .samples = samples});
}

void StepWriter::add_decode(Request& request) noexcept {
  const auto at = static_cast<std::size_t>(num_tokens_);
  buffers_.tokens[at] = request.last_token;
  buffers_.positions[at] = request.num_computed;
  work_.add_decode(request.num_computed + 1);
  add_row(request, 1, true);
  ++num_decodes_;
}

void StepWriter::add_chunk(Request& request, std::int32_t count) {
  const std::int32_t start = request.num_computed;
  AIRI_DCHECK(count > 0 && start + count <= request.length()) << "chunk of " << count;
  const auto size = static_cast<std::size_t>(count);
  const auto at = static_cast<std::size_t>(num_tokens_);
  std::copy_n(request.tokens.begin() + start, count, buffers_.tokens.subspan(at, size).begin());
  const auto positions = buffers_.positions.subspan(at, size);
  std::iota(positions.begin(), positions.end(), start);
  work_.add_chunk(start, count);
  add_row(request, count, start + count == request.length());
}

void StepWriter::set_ops(std::span<const MemoryOp> ops) {
  AIRI_CHECK(ops.size() * 5 <= buffers_.ops.size()) << "no room for " << ops.size() << " operations";
  auto out = buffers_.ops.begin();
  for (const MemoryOp& op : ops) {
    for (const std::int64_t value :
         {std::int64_t{static_cast<std::uint8_t>(op.kind)}, raw(op.id), op.from, op.to, op.granules}) {
      *out++ = value;
    }
  }
}

void StepWriter::add_delta(SlotId slot, std::int32_t column, std::int32_t entry) {
  AIRI_DCHECK(delta_room() > 0) << "no room for deltas";
  std::int32_t* out = &buffers_.deltas[3 * static_cast<std::size_t>(num_deltas_++)];
  out[0] = raw(slot);
  out[1] = column;
  out[2] = entry;
}

}  // namespace airi
