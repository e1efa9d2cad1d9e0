#include "route/sent_blocks.h"

#include <utility>

#include "base/ids.h"

namespace airi::route {

const SentBlocks::Group* SentBlocks::find(SentId id) const noexcept {
  const std::uint64_t place = raw(id) - first_;
  return raw(id) >= first_ && place < groups_.size() ? &groups_[place] : nullptr;
}

SentId SentBlocks::add(ReplicaSlot replica, std::span<const Hash128> hashes, TimePoint now) {
  Group group{.replica = replica, .expires = now + ttl_, .hashes = {}};
  // The deeper ones are of no use without those before them.
  for (const Hash128& hash : hashes) {
    if (static_cast<std::int64_t>(group.hashes.size()) + 1 >= max_blocks_) break;
    if (locations_.mark_sent(replica, hash)) group.hashes.push_back(hash);
  }
  num_kept_ += 1 + static_cast<std::int64_t>(group.hashes.size());
  const SentId id{first_ + groups_.size()};
  groups_.push_back(std::move(group));
  while (num_kept_ > max_blocks_) drop_oldest();
  return id;
}

void SentBlocks::unmark(Group& group) {
  for (const Hash128& hash : group.hashes) locations_.unmark_sent(group.replica, hash);
  num_kept_ -= static_cast<std::int64_t>(group.hashes.size());
  group.hashes = {};
}

void SentBlocks::drop_oldest() {
  unmark(groups_.front());
  groups_.pop_front();
  ++first_;
  --num_kept_;
}

void SentBlocks::take_back(SentId id) {
  if (find(id) != nullptr) unmark(groups_[raw(id) - first_]);
}

void SentBlocks::forget(ReplicaSlot replica) {
  for (Group& group : groups_) {
    if (group.replica == replica) unmark(group);
  }
}

void SentBlocks::expire(TimePoint now) {
  while (!groups_.empty() && groups_.front().expires <= now) drop_oldest();
}

std::size_t SentBlocks::num_arrived(SentId id, std::size_t done) const noexcept {
  const Group* group = find(id);
  if (group == nullptr) return 0;
  std::size_t at = done;
  while (at < group->hashes.size() && !locations_.is_sent(group->replica, group->hashes[at])) ++at;
  return at - done;
}

}  // namespace airi::route
