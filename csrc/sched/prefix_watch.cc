#include "sched/prefix_watch.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace airi {
namespace {

const Hash128& awaited(const Request* request) {
  return request->hashes[static_cast<std::size_t>(request->num_matched)];
}

}  // namespace

// The slot of this hash, or the empty one where it would go.
std::size_t PrefixWatch::find(const Hash128& hash) const noexcept {
  std::size_t at = hash.lo & mask();
  while (slots_[at].first != nullptr && slots_[at].hash != hash) at = (at + 1) & mask();
  return at;
}

void PrefixWatch::grow() {
  const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(2 * slots_.size()));
  for (const Slot& slot : old) {
    if (slot.first != nullptr) slots_[find(slot.hash)] = slot;
  }
}

void PrefixWatch::watch(Request* request) {
  AIRI_DCHECK(!request->is_watched) << "request " << raw(request->id) << " is watched already";
  std::size_t at = find(awaited(request));
  if (slots_[at].first == nullptr) {
    if (2 * ++num_lists_ > slots_.size()) {
      grow();
      at = find(awaited(request));
    }
    slots_[at].hash = awaited(request);
  }
  Slot& slot = slots_[at];
  request->watch_prev = slot.last;
  request->watch_next = nullptr;
  (slot.last != nullptr ? slot.last->watch_next : slot.first) = request;
  slot.last = request;
  request->is_watched = true;
}

void PrefixWatch::unwatch(Request* request) {
  AIRI_DCHECK(request->is_watched) << "request " << raw(request->id) << " is not watched";
  Request* prev = request->watch_prev;
  Request* next = request->watch_next;
  request->is_watched = false;
  if (prev != nullptr) prev->watch_next = next;
  if (next != nullptr) next->watch_prev = prev;
  if (prev != nullptr && next != nullptr) return;
  const std::size_t at = find(awaited(request));
  Slot& slot = slots_[at];
  if (prev == nullptr) {
    AIRI_DCHECK(slot.first == request) << "request " << raw(request->id) << " is not listed";
    slot.first = next;
  }
  if (next == nullptr) slot.last = prev;
  if (slot.first == nullptr) erase(at);
}

void PrefixWatch::note_published(const Hash128& hash) {
  Slot& slot = slots_[find(hash)];
  if (slot.first == nullptr || slot.is_due) return;
  slot.is_due = true;
  due_.push_back(hash);
}

Request* PrefixWatch::first_due() {
  for (; !due_.empty(); due_.pop_back()) {
    const Slot& slot = slots_[find(due_.back())];
    if (slot.first != nullptr && slot.is_due) return slot.first;
  }
  return nullptr;
}

void PrefixWatch::dismiss_due() {
  slots_[find(due_.back())].is_due = false;
  due_.pop_back();
}

// Linear probing without tombstones: moves up whatever may still be reached from its home.
void PrefixWatch::erase(std::size_t hole) {
  --num_lists_;
  for (std::size_t at = (hole + 1) & mask(); slots_[at].first != nullptr; at = (at + 1) & mask()) {
    const std::size_t home = slots_[at].hash.lo & mask();
    if (((at - home) & mask()) < ((at - hole) & mask())) continue;
    slots_[hole] = slots_[at];
    hole = at;
  }
  slots_[hole] = {};
}

void PrefixWatch::check_invariants() const {
  std::size_t lists = 0;
  for (std::size_t at = 0; at < slots_.size(); ++at) {
    const Slot& slot = slots_[at];
    if (slot.first == nullptr) continue;
    ++lists;
    AIRI_CHECK(find(slot.hash) == at) << "a list of watched requests is unreachable";
    AIRI_CHECK(!slot.is_due || std::ranges::count(due_, slot.hash) > 0) << "a list that is due is not known";
    const Request* prev = nullptr;
    for (const Request* r = slot.first; r != nullptr; prev = r, r = r->watch_next) {
      AIRI_CHECK(r->is_watched && r->watch_prev == prev) << "request " << raw(r->id) << " is badly linked";
      AIRI_CHECK(awaited(r) == slot.hash) << "request " << raw(r->id) << " is listed for another block";
    }
    AIRI_CHECK(slot.last == prev) << "a list of watched requests ends elsewhere";
  }
  AIRI_CHECK(lists == num_lists_) << "found " << lists << " lists, counted " << num_lists_;
}

}  // namespace airi
