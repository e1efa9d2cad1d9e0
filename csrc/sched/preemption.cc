#include "sched/preemption.h"

namespace airi {

bool goes_before(const VictimKey& a, const VictimKey& b) noexcept {
  if (a.band != b.band) return a.band > b.band;
  if (a.counter != b.counter) return a.counter > b.counter;
  // lost / freed, compared crosswise; one that frees nothing costs more than any other.
  const bool a_frees = a.freed_blocks > 0;
  const bool b_frees = b.freed_blocks > 0;
  if (a_frees != b_frees) return a_frees;
  const std::int64_t x = a.lost_tokens * b.freed_blocks;
  const std::int64_t y = b.lost_tokens * a.freed_blocks;
  if (x != y) return x < y;
  if (a.arrival != b.arrival) return a.arrival > b.arrival;
  return a.id > b.id;
}

}  // namespace airi
