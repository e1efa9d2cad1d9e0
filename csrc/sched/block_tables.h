#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kv/block_pool.h"
#include "kv/hash_chain.h"
#include "kv/slab_source.h"
#include "sched/admission.h"
#include "sched/request.h"
#include "sched/step_writer.h"

namespace airi {

// What a waiting request would hit in the prefix cache. To be used again and again: it keeps its memory.
struct PrefixMatch {
  std::vector<BlockId> blocks;  // hits, the request's first ones
  std::int32_t num_cached = 0;  // of them, those that nobody holds
  EntrySerial tail = kRootSerial;
  std::array<std::int32_t, QuotaCounts::kMaxTenants + 1> cached_of{};  // and by owner, if quotas are set

  [[nodiscard]] std::int32_t num_blocks() const noexcept { return static_cast<std::int32_t>(blocks.size()); }
};

// Gives the requests of one model their blocks, takes them back, and publishes full ones. Joins
// pool, hash chain and admission accounting; decides nothing about who runs.
//
// Thread safety: none.
// Invariant: a running request holds one reference per entry of its table; a block that is
// written to is held once and unpublished.
class BlockTables {
 public:
  // `entries` are the block-table entries of the model's blocks, by block: as many as `shape` has.
  // Its slabs are absent at first.
  BlockTables(std::vector<std::int32_t> entries, const SlabShape& shape, const AdmissionControl& admission,
              std::shared_ptr<const HashChain> chain, bool caches_prefixes);

  // Where to ask for more blocks; null: nowhere. It must outlive the tables.
  void set_source(SlabSource* source) noexcept { source_ = source; }
  void begin_step(TimePoint now) noexcept {
    settle_quotas();
    if (source_ != nullptr) source_->begin_step(now);
  }
  // True iff there are more blocks than before, perhaps fewer than `blocks` more.
  [[nodiscard]] bool try_extend(std::int32_t blocks) { return source_ != nullptr && source_->grow(blocks); }

  [[nodiscard]] const BlockPool& pool() const noexcept { return pool_; }
  [[nodiscard]] BlockPool& pool() noexcept { return pool_; }
  [[nodiscard]] const AdmissionControl& admission() const noexcept { return admission_; }
  [[nodiscard]] std::int32_t block_size() const noexcept { return chain_->block_size(); }

  // The block-table entry of every block.
  [[nodiscard]] const std::vector<std::int32_t>& entries() const noexcept { return entries_; }

  // The longest published prefix that leaves at least one token to compute, as of now. O(blocks).
  void match(Request& request, PrefixMatch& out);
  // How many blocks that is.
  [[nodiscard]] std::int32_t num_hits(Request& request);

  // From now on blocks have copies in `tiers`, at most `num_copies` of them.
  void attach(TierCache& tiers, std::int32_t num_copies) { pool_.attach(tiers, num_copies); }
  // What follows the match and has a copy in a tier that can be read; up to the last token, which is to be
  // computed. Valid until the next call. O(blocks).
  [[nodiscard]] std::span<const BlockPool::Known> loadable(const Request& request, const PrefixMatch& match);

  // Takes the blocks of the match, which is the request's, and promises the rest. Writes their deltas.
  // REQUIRES: nothing has changed since it was found; the request holds no block.
  void admit(Request& request, const PrefixMatch& match, const AdmissionControl::Demand& demand,
             StepWriter& out);

  // What a request with this match needs.
  [[nodiscard]] AdmissionControl::Demand demand(const Request& request, const PrefixMatch& match) const {
    return admission_.demand(request, match.num_blocks(), match.num_cached);
  }
  // The blocks that admission may count on for it: those available, less what quotas keep from it.
  [[nodiscard]] std::int32_t available_for(const Request& request, const PrefixMatch& match,
                                           const AdmissionControl::Demand& demand) const noexcept;
  // True iff a request that is promised nothing would fit but for quotas of other tenants.
  [[nodiscard]] bool is_held_by_quotas(const Request& request, const PrefixMatch& match,
                                       const AdmissionControl::Demand& demand,
                                       bool nothing_runs) const noexcept {
    return pool_.quotas().enabled() && admission_.fits(demand, pool_.num_available(), nothing_runs) &&
           !admission_.fits(demand, available_for(request, match, demand), nothing_runs);
  }
  // Promises, and what is protected for tenants beyond theirs.
  [[nodiscard]] std::int32_t num_spoken_for() const noexcept {
    return admission_.outstanding() + pool_.quotas().counts().num_idle();
  }
  // True iff what the running request gives back may serve `needy`: no tenant within its quota loses memory
  // to another.
  [[nodiscard]] bool may_yield_to(const Request& running, const Request& needy) const noexcept {
    return running.tenant == needy.tenant || pool_.quotas().is_over(running.quota_group);
  }

  // Wants the tenant to keep `blocks` of the cache, in use or not, whatever others need.
  // 0 ends it; then no running request may name its group any more.
  void set_quota(TenantId tenant, std::int32_t blocks) {
    if (blocks == 0) {
      pool_.end_quota(tenant);
    } else {
      pool_.quotas().set(tenant, blocks);
    }
  }
  // Lets quotas that were raised rise as far as promises allow.
  void settle_quotas() noexcept {
    if (pool_.quotas().is_settled()) return;
    pool_.quotas().settle(pool_.num_available(), admission_.outstanding());
  }

  // True iff one more block can be had for the request.
  [[nodiscard]] bool can_grow(const Request& request) const noexcept {
    const QuotaCounts& counts = pool_.quotas().counts();
    const std::int32_t kept = counts.num_idle() - counts.num_idle(request.quota_group);
    return admission_.can_grow(request, pool_.num_available() - kept);
  }

  // Extends the table to cover `count` tokens after the computed ones. REQUIRES: they were
  // promised at admission, or can_grow() for the one block they need.
  void grow(Request& request, std::int32_t count, StepWriter& out);

  // Publishes the blocks that the first `computed` tokens, all of them known, have filled.
  // O(new full blocks).
  void publish(Request& request, std::int32_t computed);

  // Forgets the contents of every block this request computed itself: they cannot be trusted.
  void distrust(Request& request);

  // Gives back every block.
  void release(Request& request);

  // Blocks that a release would make available, promises included.
  [[nodiscard]] std::int32_t gain_of_release(const Request& request) const noexcept;

  // True iff admission would let `request` in once all of `leaving` were released, after which
  // `nothing_runs` or not. O(blocks), but O(leaving) where even all their blocks would not do.
  [[nodiscard]] bool would_fit(Request& request, std::span<Request* const> leaving, bool nothing_runs);

 private:
  template <class Visit>
  void visit_hits(Request& request, Visit visit);
  [[nodiscard]] QuotaCounts counts_without(std::span<Request* const> leaving);

  std::vector<std::int32_t> entries_;  // by block
  BlockPool pool_;
  AdmissionControl admission_;
  std::shared_ptr<const HashChain> chain_;
  bool caches_prefixes_;
  SlabSource* source_ = nullptr;
  PrefixMatch match_;                             // scratch
  std::vector<BlockPool::Known> loadable_;        // of the latest loadable()
  std::vector<std::int32_t> leaving_references_;  // by block; zeros outside would_fit()
};

}  // namespace airi
