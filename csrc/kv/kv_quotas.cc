#include "kv/kv_quotas.h"

#include <algorithm>

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
  groups_[at(group)] = {};
  while (size_ > 1 && !groups_[size_ - 1].is_used) --size_;
}

std::int32_t QuotaCounts::num_evictable(QuotaGroup group) const noexcept {
  const Group& own = groups_[at(group)];
  return std::min(own.cached, std::max(own.owned - own.quota, 0));
}

std::int32_t QuotaCounts::num_protected(QuotaGroup group) const noexcept {
  return groups_[at(group)].cached - num_evictable(group);
}

std::int32_t QuotaCounts::num_idle(QuotaGroup group) const noexcept {
  return std::max(num_protected(group) - groups_[at(group)].promised, 0);
}

std::int32_t QuotaCounts::num_idle() const noexcept {
  std::int32_t idle = 0;
  for (std::size_t i = 1; i < size_; ++i) idle += num_idle(static_cast<QuotaGroup>(i));
  return idle;
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
  stamps_.resize(capacity, 0);
  links_.resize(capacity + QuotaCounts::kMaxTenants + 1);
  for (auto i = capacity; i < links_.size(); ++i) {
    links_[i] = {.prev = static_cast<std::int32_t>(i), .next = static_cast<std::int32_t>(i)};
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
  QuotaCounts::Group& own = counts_[group];
  own.wanted = blocks;
  own.quota = std::min(own.quota, blocks);
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
    QuotaCounts::Group& own = counts_[group];
    const std::int32_t spare = available - outstanding - counts_.num_idle() +
                               std::max(own.promised - counts_.num_protected(group), 0);
    const std::int32_t evictable = counts_.num_evictable(group);
    own.quota = evictable <= spare ? own.wanted : std::min(own.wanted, own.owned - evictable + spare);
    is_settled_ = is_settled_ && own.quota == own.wanted;
  }
}

void KvQuotas::take(std::int32_t block, QuotaGroup group) noexcept {
  owners_[static_cast<std::size_t>(block)] = group;
  if (group != kNoQuota) ++counts_[group].owned;
}

void KvQuotas::set_free(std::int32_t block) noexcept {
  QuotaGroup& owner = owners_[static_cast<std::size_t>(block)];
  if (owner != kNoQuota) --counts_[owner].owned;
  owner = kNoQuota;
}

void KvQuotas::lose(std::int32_t block) noexcept {
  const QuotaGroup group = owner(block);
  const std::int32_t evictable = counts_.num_evictable(group);
  set_free(block);
  if (group == kNoQuota || counts_.num_evictable(group) == evictable) return;
  counts_[group].quota = counts_[group].owned - evictable;
  is_settled_ = false;
}

void KvQuotas::cache(std::int32_t block) noexcept {
  const QuotaGroup group = owner(block);
  Links& end = links(end_of(group));
  links(block) = {.prev = end.prev, .next = end_of(group)};
  links(end.prev).next = block;
  end.prev = block;
  stamp(block);
  ++counts_[group].cached;
  ++cached_in_[index(shape_.slab_of(block))];
  ++num_cached_;
}

void KvQuotas::uncache(std::int32_t block) noexcept {
  const Links own = links(block);
  links(own.prev).next = own.next;
  links(own.next).prev = own.prev;
  --counts_[owner(block)].cached;
  --cached_in_[index(shape_.slab_of(block))];
  --num_cached_;
}

std::int32_t KvQuotas::choose_victim(QuotaGroup group, std::int32_t common, bool only_own) const noexcept {
  std::int32_t victim = only_own ? shape_.capacity() : common;
  const auto stamp_of = [this](std::int32_t block) { return stamps_[static_cast<std::size_t>(block)]; };
  for (std::size_t i = 1; i < counts_.size(); ++i) {
    const auto other = static_cast<QuotaGroup>(i);
    const bool eligible =
        other == group ? counts_[other].cached > 0 : !only_own && counts_.num_evictable(other) > 0;
    if (!eligible) continue;
    const std::int32_t block = oldest(other);
    if (victim == shape_.capacity() || stamp_of(block) < stamp_of(victim)) victim = block;
  }
  return victim;
}

std::vector<BlockId> KvQuotas::order() const {
  std::vector<BlockId> order;
  for (std::size_t i = 1; i < counts_.size(); ++i) {
    const auto group = static_cast<QuotaGroup>(i);
    for (std::int32_t block = oldest(group); block != end_of(group);
         block = links_[static_cast<std::size_t>(block)].next) {
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
    const std::uint64_t stamp = stamps_[index(block)];
    AIRI_CHECK(group != of_last || stamp > last) << "block " << raw(block) << " is out of order";
    last = stamp;
    of_last = group;
  }
  for (std::size_t i = 1; i < counts_.size(); ++i) {
    const QuotaCounts::Group& group = counts_[static_cast<QuotaGroup>(i)];
    AIRI_CHECK(owned[i] == group.owned) << "group " << i << " owns " << owned[i] << ", not " << group.owned;
    AIRI_CHECK(cached[i] == group.cached) << "group " << i << " has " << cached[i] << " CACHED blocks";
    AIRI_CHECK(group.promised >= 0 && group.quota <= group.wanted) << "group " << i;
  }
}

}  // namespace airi
