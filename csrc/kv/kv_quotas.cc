#include "kv/kv_quotas.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace airi {

QuotaGroup QuotaCounts::group_of(TenantId tenant) const noexcept {
  for (std::size_t i = 1; i < size_; ++i) {
    if (groups_[i].is_used && groups_[i].tenant == tenant) return static_cast<QuotaGroup>(i);
  }
  return kNoQuota;
}

bool QuotaCounts::is_full() const noexcept {
  return std::ranges::all_of(groups_.begin() + 1, groups_.end(), &Group::is_used);
}

QuotaGroup QuotaCounts::add(TenantId tenant) noexcept {
  const auto place = std::ranges::find(groups_.begin() + 1, groups_.end(), false, &Group::is_used);
  place->tenant = tenant;
  place->is_used = true;
  const auto at = static_cast<std::size_t>(place - groups_.begin());
  size_ = std::max(size_, at + 1);
  return static_cast<QuotaGroup>(at);
}

void QuotaCounts::remove(QuotaGroup group) noexcept {
  groups_[at(kNoQuota)].promised += groups_[at(group)].promised;
  change(group, [](Group& own) { own = {}; });
  while (size_ > 1 && !groups_[size_ - 1].is_used) --size_;
}

std::int32_t QuotaCounts::num_idle_after(QuotaGroup group, std::int32_t count,
                                         std::span<const std::int32_t> hits) const noexcept {
  std::int32_t idle = 0;
  for (std::size_t i = 1; i < size_; ++i) {
    const auto other = static_cast<QuotaGroup>(i);
    const std::int32_t left = std::max(num_protected(other) - hits[i], 0);  // hits take protected ones first
    const std::int32_t promised = groups_[i].promised + (other == group ? count : 0);
    idle += std::max(left - promised, 0);
  }
  return idle;
}

void KvQuotas::begin() {
  const auto capacity = static_cast<std::size_t>(shape_.capacity());
  owners_.resize(capacity, kNoQuota);
  places_.resize(capacity, {.stamp = 0});
  places_.resize(capacity + QuotaCounts::kMaxTenants + 1);
  for (auto i = capacity; i < places_.size(); ++i) {
    places_[i].prev = places_[i].next = static_cast<std::int32_t>(i);
  }
  cached_in_.resize(static_cast<std::size_t>(shape_.num_slabs), 0);
}

void KvQuotas::set(TenantId tenant, std::int32_t blocks) {
  if (!enabled()) begin();
  QuotaGroup group = counts_.group_of(tenant);
  if (group == kNoQuota) {
    AIRI_CHECK(!counts_.is_full()) << "too many tenants with quotas";
    group = counts_.add(tenant);
  }
  change(group, [=](QuotaCounts::Group& own) {
    own.wanted = blocks;
    own.quota = std::min(own.quota, blocks);
  });
  is_settled_ = false;
}

std::vector<BlockId> KvQuotas::dismiss(QuotaGroup group) {
  std::vector<BlockId> cached;
  while (oldest(group) != end_of(group)) {
    cached.push_back(BlockId{oldest(group)});
    uncache(oldest(group));
  }
  std::ranges::replace(owners_, group, kNoQuota);
  counts_.remove(group);
  is_settled_ = false;
  return cached;
}

// A quota that rises turns evictable blocks into protected ones; what others were promised limits how many.
void KvQuotas::settle(std::int32_t available, std::int32_t outstanding) noexcept {
  is_settled_ = true;
  for (std::size_t i = 1; i < counts_.size(); ++i) {
    const auto group = static_cast<QuotaGroup>(i);
    const std::int32_t spare = available - outstanding - counts_.num_idle() +
                               std::max(counts_[group].promised - counts_.num_protected(group), 0);
    const std::int32_t evictable = counts_.num_evictable(group);
    change(group, [=](QuotaCounts::Group& own) {
      own.quota = evictable <= spare ? own.wanted : std::min(own.wanted, own.owned - evictable + spare);
    });
    is_settled_ = is_settled_ && counts_[group].quota == counts_[group].wanted;
  }
}

void KvQuotas::take(std::int32_t block, QuotaGroup group) noexcept {
  owners_[static_cast<std::size_t>(block)] = group;
  if (group != kNoQuota) change(group, [](QuotaCounts::Group& own) { ++own.owned; });
}

void KvQuotas::set_free(std::int32_t block) noexcept {
  const QuotaGroup owner = std::exchange(owners_[static_cast<std::size_t>(block)], kNoQuota);
  if (owner != kNoQuota) change(owner, [](QuotaCounts::Group& own) { --own.owned; });
}

void KvQuotas::lose(std::int32_t block) noexcept {
  const QuotaGroup group = owner(block);
  const std::int32_t evictable = counts_.num_evictable(group);
  set_free(block);
  if (group == kNoQuota || counts_.num_evictable(group) == evictable) return;
  change(group, [=](QuotaCounts::Group& own) { own.quota = own.owned - evictable; });
  is_settled_ = false;
}

void KvQuotas::cache(std::int32_t block) noexcept {
  const QuotaGroup group = owner(block);
  Place& end = place(end_of(group));
  place(block) = {.prev = end.prev, .next = end_of(group), .stamp = ++last_stamp_};
  place(end.prev).next = block;
  end.prev = block;
  ++cached_in_[index(shape_.slab_of(block))];
  ++num_cached_;
  change(group, [](QuotaCounts::Group& own) { ++own.cached; });
}

void KvQuotas::uncache(std::int32_t block) noexcept {
  const Place& own = place(block);
  place(own.prev).next = own.next;
  place(own.next).prev = own.prev;
  --cached_in_[index(shape_.slab_of(block))];
  --num_cached_;
  change(owner(block), [](QuotaCounts::Group& group) { --group.cached; });
}

std::int32_t KvQuotas::choose_victim(QuotaGroup group, std::int32_t common, bool only_own) const noexcept {
  std::int32_t victim = only_own ? shape_.capacity() : common;
  std::uint64_t since = victim == shape_.capacity() ? kNever : place(victim).stamp;
  const auto consider = [&](QuotaGroup other, std::uint64_t stamp) {
    if (stamp >= since) return;
    victim = oldest(other);
    since = stamp;
  };
  if (group != kNoQuota && counts_[group].cached > 0) consider(group, place(oldest(group)).stamp);
  if (only_own) return victim;
  for (std::size_t i = 1; i < counts_.size(); ++i) consider(static_cast<QuotaGroup>(i), exposed_since_[i]);
  return victim;
}

std::vector<BlockId> KvQuotas::order() const {
  std::vector<BlockId> order;
  for (std::size_t i = 1; i < counts_.size(); ++i) {
    const auto group = static_cast<QuotaGroup>(i);
    for (std::int32_t block = oldest(group); block != end_of(group); block = place(block).next) {
      order.push_back(BlockId{block});
      AIRI_CHECK(order.size() <= owners_.size()) << "the list of group " << i << " is a loop";
    }
  }
  return order;
}

void KvQuotas::check_invariants() const {
  if (!enabled()) return;
  std::array<std::int32_t, QuotaCounts::kMaxTenants + 1> owned{};
  for (const QuotaGroup owner : owners_) ++owned[index(owner)];
  std::array<std::int32_t, QuotaCounts::kMaxTenants + 1> cached{};
  std::uint64_t last = 0;
  QuotaGroup of_last = kNoQuota;
  for (const BlockId block : order()) {
    const QuotaGroup group = owner(raw(block));
    ++cached[index(group)];
    const std::uint64_t stamp = place(raw(block)).stamp;
    AIRI_CHECK(group != of_last || stamp > last) << "block " << raw(block) << " is out of order";
    last = stamp;
    of_last = group;
  }
  std::int32_t idle = 0;
  for (std::size_t i = 1; i < counts_.size(); ++i) {
    const auto id = static_cast<QuotaGroup>(i);
    const QuotaCounts::Group& group = counts_[id];
    AIRI_CHECK(owned[i] == group.owned) << "group " << i << " owns " << owned[i] << ", not " << group.owned;
    AIRI_CHECK(cached[i] == group.cached) << "group " << i << " has " << cached[i] << " CACHED blocks";
    AIRI_CHECK(group.promised >= 0 && group.quota <= group.wanted) << "group " << i;
    AIRI_CHECK(exposed_since_[i] == exposed_since(id)) << "group " << i << " loses another block next";
    idle += counts_.num_idle(id);
  }
  AIRI_CHECK(idle == counts_.num_idle()) << "idle are " << idle << " blocks, not " << counts_.num_idle();
}

}  // namespace airi
