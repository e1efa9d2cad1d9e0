#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "base/ids.h"
#include "kv/block_node.h"

namespace airi {

// Tenants with a quota are numbered from 1; all others together are 0, who have none.
enum class QuotaGroup : std::uint8_t {};
inline constexpr QuotaGroup kNoQuota{0};

// How many blocks the tenants with a quota own, have CACHED and were promised, and what follows from it.
// Promises are counted by tenant because what a tenant is promised may come out of what is protected for it.
//
// Thread safety: none.
class QuotaCounts {
 public:
  static constexpr std::size_t kMaxTenants = 64;
  struct Group {
    TenantId tenant{};
    bool is_used = false;
    std::int32_t wanted = 0;
    std::int32_t quota = 0;  // at most `wanted`
    std::int32_t owned = 0;  // in use or CACHED
    std::int32_t cached = 0;
    std::int32_t promised = 0;
  };

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] const Group& operator[](QuotaGroup group) const noexcept { return groups_[at(group)]; }
  [[nodiscard]] QuotaGroup group_of(TenantId tenant) const noexcept;
  [[nodiscard]] bool is_full() const noexcept;
  // REQUIRES: !is_full().
  QuotaGroup add(TenantId tenant) noexcept;
  // What the group was promised is nobody's in particular from now on.
  void remove(QuotaGroup group) noexcept;

  // Applies change(group) to quota, owned, cached or promised of it. REQUIRES: `owned` and `cached` of
  // kNoQuota stay 0.
  template <class Change>
  void change(QuotaGroup group, Change change) noexcept {
    num_idle_ -= num_idle(group);
    change(groups_[at(group)]);
    num_idle_ += num_idle(group);
  }

  // CACHED blocks of the group that anybody may evict: what it owns beyond its quota.
  [[nodiscard]] std::int32_t num_evictable(QuotaGroup group) const noexcept {
    const Group& own = groups_[at(group)];
    return std::min(own.cached, std::max(own.owned - own.quota, 0));
  }
  // CACHED blocks of the group that only it may evict.
  [[nodiscard]] std::int32_t num_protected(QuotaGroup group) const noexcept {
    return groups_[at(group)].cached - num_evictable(group);
  }
  // What is protected beyond what the group is promised: of no use to others.
  [[nodiscard]] std::int32_t num_idle(QuotaGroup group) const noexcept {
    return std::max(num_protected(group) - groups_[at(group)].promised, 0);
  }
  // Of all groups.
  [[nodiscard]] std::int32_t num_idle() const noexcept { return num_idle_; }
  // What would be idle after `count` blocks were promised to `group`, and `hits`, CACHED blocks by group,
  // were held.
  [[nodiscard]] std::int32_t num_idle_after(QuotaGroup group, std::int32_t count,
                                            std::span<const std::int32_t> hits) const noexcept;

 private:
  [[nodiscard]] static std::size_t at(QuotaGroup group) noexcept { return static_cast<std::size_t>(group); }

  std::size_t size_ = 1;  // kNoQuota, which means nothing, included
  std::array<Group, kMaxTenants + 1> groups_{};
  std::int32_t num_idle_ = 0;
};

// Which blocks of one pool belong to tenants with an occupancy quota, and how many of their CACHED blocks
// others must leave alone. A block belongs to the tenant whose request took it, from then until it is
// FREE. Of its CACHED blocks a tenant may lose to others what it owns beyond its quota; the rest is
// protected.
//
// Without a quota set, nothing is kept and nothing costs more than a branch.
//
// Thread safety: none.
// Invariant: a group's list holds its CACHED blocks in the order of their release.
class KvQuotas {
 public:
  explicit KvQuotas(const SlabShape& shape) : shape_(shape) {}

  [[nodiscard]] bool enabled() const noexcept { return counts_.size() > 1; }

  // Wants `blocks` to be the tenant's quota; a lower one holds at once, a higher one as far as settle()
  // finds blocks that nobody was promised. REQUIRES: QuotaCounts::kMaxTenants are not exceeded.
  void set(TenantId tenant, std::int32_t blocks);
  // Ends a quota: the group's blocks belong to no tenant from now on. Returns the CACHED ones, oldest first.
  // O(capacity).
  [[nodiscard]] std::vector<BlockId> dismiss(QuotaGroup group);
  [[nodiscard]] bool is_settled() const noexcept { return is_settled_; }
  // `available` blocks are FREE or CACHED, `outstanding` promised in all.
  void settle(std::int32_t available, std::int32_t outstanding) noexcept;

  [[nodiscard]] const QuotaCounts& counts() const noexcept { return counts_; }
  [[nodiscard]] bool is_over(QuotaGroup group) const noexcept {
    return group == kNoQuota || counts_[group].owned > counts_[group].quota;
  }
  // The group was promised `count` blocks more, or, below 0, takes or gives them up.
  void promise(QuotaGroup group, std::int32_t count) noexcept {
    counts_.change(group, [=](QuotaCounts::Group& own) { own.promised += count; });
  }

  // The life of a block: taken, CACHED or in use again, FREE. REQUIRES, but for owner(): enabled().
  [[nodiscard]] QuotaGroup owner(std::int32_t block) const noexcept {
    return enabled() ? owners_[static_cast<std::size_t>(block)] : kNoQuota;
  }
  void take(std::int32_t block, QuotaGroup group) noexcept;
  void set_free(std::int32_t block) noexcept;
  // As set_free(), of a block in use that is FREE for nobody: its slab leaves. No more of the group is
  // protected than before, or others would lose what they were promised: its quota falls until settle()
  // raises it.
  void lose(std::int32_t block) noexcept;
  // Of a block that has an owner.
  void cache(std::int32_t block) noexcept;
  void uncache(std::int32_t block) noexcept;
  // Of any CACHED block: when it was released, against others.
  void stamp(std::int32_t block) noexcept { place(block).stamp = ++last_stamp_; }

  // The block that a request of `group` evicts next, given the one it would evict of those without an owner;
  // one of its own where `only_own`. As in `common`, the capacity where there is none.
  [[nodiscard]] std::int32_t choose_victim(QuotaGroup group, std::int32_t common,
                                           bool only_own) const noexcept;

  // CACHED blocks that have an owner.
  [[nodiscard]] std::int32_t num_cached() const noexcept { return num_cached_; }
  [[nodiscard]] std::int32_t num_cached_in(SlabId slab) const noexcept {
    return enabled() ? cached_in_[index(slab)] : 0;
  }
  // Group by group, oldest first. O(num_cached()).
  [[nodiscard]] std::vector<BlockId> order() const;

  // Throws InvariantError naming the first broken invariant. O(capacity).
  void check_invariants() const;

 private:
  static constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();
  // Where a block stands among those that were released: `stamp` against all, the links within its group.
  struct Place {
    std::int32_t prev = 0, next = 0;
    std::uint64_t stamp = kNever;
  };

  [[nodiscard]] std::int32_t end_of(QuotaGroup group) const noexcept {
    return shape_.capacity() + static_cast<std::int32_t>(group);
  }
  [[nodiscard]] Place& place(std::int32_t block) noexcept { return places_[static_cast<std::size_t>(block)]; }
  [[nodiscard]] const Place& place(std::int32_t block) const noexcept {
    return places_[static_cast<std::size_t>(block)];
  }
  [[nodiscard]] std::int32_t oldest(QuotaGroup group) const noexcept { return place(end_of(group)).next; }
  // When the block was released that the group loses next to others; kNever if it loses none.
  [[nodiscard]] std::uint64_t exposed_since(QuotaGroup group) const noexcept {
    return counts_.num_evictable(group) > 0 ? place(oldest(group)).stamp : kNever;
  }
  template <class Change>
  void change(QuotaGroup group, Change change) noexcept {
    counts_.change(group, change);
    exposed_since_[index(group)] = exposed_since(group);
  }
  void begin();

  SlabShape shape_;
  QuotaCounts counts_;
  std::array<std::uint64_t, QuotaCounts::kMaxTenants + 1> exposed_since_{};  // by group; of used ones
  bool is_settled_ = true;
  std::int32_t num_cached_ = 0;

  // Empty until a quota is set.
  std::vector<QuotaGroup> owners_;       // by block
  std::vector<Place> places_;            // by block, then one end per group
  std::vector<std::int32_t> cached_in_;  // by slab
  std::uint64_t last_stamp_ = 0;
};

}  // namespace airi
