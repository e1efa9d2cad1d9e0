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
  const std::uint32_t tag = tag_of(hash);
  std::size_t at = tag & mask();
  while (slots_[at].list != kEmpty && (slots_[at].tag != tag || list(slots_[at]).hash != hash)) {
    at = (at + 1) & mask();
  }
  return at;
}

void PrefixWatch::grow() {
  const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(2 * slots_.size()));
  for (const Slot& slot : old) {
    if (slot.list != kEmpty) slots_[find(list(slot).hash)] = slot;
  }
}

// REQUIRES: the hash has none.
void PrefixWatch::add_list(const Hash128& hash) {
  if (unused_.empty()) {
    unused_.push_back(static_cast<std::int32_t>(lists_.size()));
    lists_.emplace_back();
  }
  if (2 * (lists_.size() - unused_.size() + 1) > slots_.size()) grow();
  slots_[find(hash)] = {.tag = tag_of(hash), .list = unused_.back()};
  lists_[static_cast<std::size_t>(unused_.back())] = {.hash = hash};
  unused_.pop_back();
}

void PrefixWatch::watch(Request* request) {
  AIRI_DCHECK(!request->is_watched) << "request " << raw(request->id) << " is watched already";
  const Hash128& hash = awaited(request);
  std::size_t at = find(hash);
  if (slots_[at].list == kEmpty) {
    add_list(hash);
    at = find(hash);
  }
  List& own = list(slots_[at]);
  request->watch_prev = own.last;
  request->watch_next = nullptr;
  (own.last != nullptr ? own.last->watch_next : own.first) = request;
  own.last = request;
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
  List& own = list(slots_[at]);
  if (prev == nullptr) {
    AIRI_DCHECK(own.first == request) << "request " << raw(request->id) << " is not listed";
    own.first = next;
  }
  if (next == nullptr) own.last = prev;
  if (own.first == nullptr) erase(at);
}

void PrefixWatch::note_published(const Hash128& hash) {
  const Slot& slot = slots_[find(hash)];
  if (slot.list == kEmpty || list(slot).is_due) return;
  list(slot).is_due = true;
  due_.push_back(hash);
}

Request* PrefixWatch::first_due() {
  for (; !due_.empty(); due_.pop_back()) {
    const Slot& slot = slots_[find(due_.back())];
    if (slot.list != kEmpty && list(slot).is_due) return list(slot).first;
  }
  return nullptr;
}

void PrefixWatch::dismiss_due() {
  list(slots_[find(due_.back())]).is_due = false;
  due_.pop_back();
}

// Linear probing without tombstones: moves up whatever may still be reached from its home.
void PrefixWatch::erase(std::size_t hole) {
  unused_.push_back(slots_[hole].list);
  for (std::size_t at = (hole + 1) & mask(); slots_[at].list != kEmpty; at = (at + 1) & mask()) {
    const std::size_t home = slots_[at].tag & mask();
    if (((at - home) & mask()) < ((at - hole) & mask())) continue;
    slots_[hole] = slots_[at];
    hole = at;
  }
  slots_[hole] = {};
}

void PrefixWatch::check_invariants() const {
  std::size_t found = 0;
  for (std::size_t at = 0; at < slots_.size(); ++at) {
    if (slots_[at].list == kEmpty) continue;
    ++found;
    const List& own = list(slots_[at]);
    AIRI_CHECK(find(own.hash) == at && own.first != nullptr) << "a list of watched requests is unreachable";
    AIRI_CHECK(!own.is_due || std::ranges::count(due_, own.hash) > 0) << "a list that is due is not known";
    const Request* prev = nullptr;
    for (const Request* r = own.first; r != nullptr; prev = r, r = r->watch_next) {
      AIRI_CHECK(r->is_watched && r->watch_prev == prev) << "request " << raw(r->id) << " is badly linked";
      AIRI_CHECK(awaited(r) == own.hash) << "request " << raw(r->id) << " is listed for another block";
    }
    AIRI_CHECK(own.last == prev) << "a list of watched requests ends elsewhere";
  }
  const std::size_t counted = lists_.size() - unused_.size();
  AIRI_CHECK(found == counted) << "found " << found << " lists, counted " << counted;
}

}  // namespace airi
