#include "sim/copies.h"

#include <algorithm>
#include <cmath>

#include "kv/slab_arena.h"
#include "sched/step_writer.h"

namespace airi {
namespace {

bool touches_disk(MemoryOpKind kind) noexcept {
  return kind == MemoryOpKind::kSpill || kind == MemoryOpKind::kFetch;
}

// The first whole microsecond that is not before.
TimePoint whole(double micros) noexcept {
  return TimePoint{std::llround(std::ceil(std::min(micros, static_cast<double>(kMaxMicros))))};
}

}  // namespace

void Copies::begin(std::span<const std::int64_t> ops, TimePoint start) {
  std::array<std::size_t, kNumMemoryOpKinds> earlier{};
  for (std::size_t i = 0; i < queues_.size(); ++i) earlier[i] = queues_[i].running.size();
  for (; !ops.empty(); ops = ops.subspan(StepWriter::kOpColumns)) {
    begin(static_cast<MemoryOpKind>(ops[0]), TransferId{ops[1]}, ops[4], start);
  }
  for (const MemoryOpKind kind : {MemoryOpKind::kStore, MemoryOpKind::kLoad}) {
    std::deque<Running>& running = queues_[index(kind)].running;
    for (std::size_t i = earlier[index(kind)]; i < running.size(); ++i) running[i].due = running.back().due;
  }
}

void Copies::begin(MemoryOpKind kind, TransferId id, std::int64_t granules, TimePoint start) {
  const double rate = touches_disk(kind) ? disk_bytes_per_us_ : host_bytes_per_us_;
  if (kind == MemoryOpKind::kZero || rate <= 0) return;
  Queue& queue = queues_[index(kind)];
  const double from = std::max(queue.free_us, static_cast<double>(start));
  queue.free_us = from + static_cast<double>(granules * kGranuleBytes) / rate;
  // Cut to whole microseconds as moments are, many short copies have their sum.
  const TimePoint end = whole(queue.free_us);
  queue.running.push_back({.report = {.id = id, .ok = true, .micros = end - whole(from)}, .due = end});
}

const Copies::Queue* Copies::next_queue() const noexcept {
  const Queue* next = nullptr;
  for (const Queue& queue : queues_) {
    if (queue.running.empty()) continue;
    if (next == nullptr || queue.running.front().due < next->running.front().due) next = &queue;
  }
  return next;
}

std::optional<TimePoint> Copies::next_report() const noexcept {
  const Queue* next = next_queue();
  if (next == nullptr) return std::nullopt;
  return next->running.front().due;
}

std::span<const Inbox::TransferReport> Copies::take_due(TimePoint now) {
  due_.clear();
  for (const Queue* next = next_queue(); next != nullptr && next->running.front().due <= now;
       next = next_queue()) {
    due_.push_back(next->running.front().report);
    queues_[static_cast<std::size_t>(next - queues_.data())].running.pop_front();
  }
  return due_;
}

}  // namespace airi
