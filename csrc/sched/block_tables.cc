#include "sched/block_tables.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kv/tier_cache.h"

namespace airi {
namespace {

// The block's key, given that its past is `parent`.
BlockKey key_of(const Request& request, std::int32_t block, std::int32_t block_size, EntrySerial parent) {
  const auto size = static_cast<std::size_t>(block_size);
  const auto i = static_cast<std::size_t>(block);
  return {.parent = parent,
          .hash = request.hashes[i],
          .tokens = std::span(request.tokens).subspan(i * size, size),
          .extras = request.extras_of(block)};
}

}  // namespace

BlockTables::BlockTables(std::vector<std::int32_t> entries, const SlabShape& shape,
                         const AdmissionControl& admission, std::shared_ptr<const HashChain> chain,
                         bool caches_prefixes)
    : entries_(std::move(entries)),
      pool_(shape, chain->block_size()),
      admission_(admission),
      chain_(std::move(chain)),
      caches_prefixes_(caches_prefixes),
      leaving_references_(entries_.size()) {
  AIRI_CHECK(static_cast<std::size_t>(shape.capacity()) == entries_.size()) << "an entry per block";
}

// Calls visit(hit) for each block of the longest published prefix, from the first on.
template <class Visit>
void BlockTables::visit_hits(Request& request, Visit visit) {
  if (!caches_prefixes_) return;
  chain_->extend(request.tokens, request.extras, request.hashes);  // also for those that wait for its blocks
  if (request.compute_all) return;
  const std::int32_t most = (request.length() - 1) / block_size();
  EntrySerial tail = kRootSerial;
  for (std::int32_t i = 0; i < most; ++i) {
    const auto hit = pool_.find(key_of(request, i, block_size(), tail));
    if (!hit) return;
    tail = hit->serial;
    visit(*hit);
  }
}

std::int32_t BlockTables::num_hits(Request& request) {
  std::int32_t hits = 0;
  visit_hits(request, [&](const BlockPool::Hit&) { ++hits; });
  return hits;
}

void BlockTables::match(Request& request, PrefixMatch& out) {
  out.blocks.clear();
  out.num_cached = 0;
  out.tail = kRootSerial;
  const bool has_quotas = pool_.quotas().enabled();
  if (has_quotas) out.cached_of.fill(0);
  visit_hits(request, [&](const BlockPool::Hit& hit) {
    out.blocks.push_back(hit.block);
    out.tail = hit.serial;
    if (pool_.ref_count(hit.block) > 0) return;
    ++out.num_cached;
    if (has_quotas) ++out.cached_of[index(pool_.quotas().owner(raw(hit.block)))];
  });
}

std::span<const BlockPool::Known> BlockTables::loadable(const Request& request, const PrefixMatch& match) {
  loadable_.clear();
  const TierCache* tiers = pool_.tiers();
  if (tiers == nullptr || !caches_prefixes_ || request.compute_all) return loadable_;
  const std::int32_t most = (request.length() - 1) / block_size();
  EntrySerial tail = match.tail;
  for (std::int32_t i = match.num_blocks(); i < most; ++i) {
    const auto known = pool_.find_known(key_of(request, i, block_size(), tail));
    if (!known || tiers->source(known->entry) == TierCache::Source::kNone) break;
    tail = known->serial;
    loadable_.push_back(*known);
  }
  return loadable_;
}

// Blocks for which shortage() comes out as what would be idle after the admission tells.
std::int32_t BlockTables::available_for(const Request& request, const PrefixMatch& match,
                                        const AdmissionControl::Demand& demand) const noexcept {
  const KvQuotas& quotas = pool_.quotas();
  if (!quotas.enabled()) return pool_.num_available();
  const std::int32_t promised = demand.blocks - match.num_cached;
  const QuotaCounts& counts = quotas.counts();
  return pool_.num_available() -
         counts.num_idle_after(counts.group_of(request.tenant), promised, match.cached_of);
}

void BlockTables::admit(Request& request, const PrefixMatch& match, const AdmissionControl::Demand& demand,
                        StepWriter& out) {
  AIRI_DCHECK(request.block_table.empty()) << "request " << raw(request.id) << " holds blocks";
  request.block_table.assign(match.blocks.begin(), match.blocks.end());
  for (std::int32_t i = 0; i < match.num_blocks(); ++i) {
    const BlockId hit = match.blocks[static_cast<std::size_t>(i)];
    pool_.hold(hit);
    if (pool_.tiers() != nullptr) pool_.tiers()->on_reuse(pool_.entry_of(hit), hit);
    out.add_delta(request.slot, i, entries_[index(hit)]);
  }
  request.covered = match.num_blocks() * block_size();
  request.num_computed = request.covered;
  request.num_published = request.num_hit_blocks = match.num_blocks();
  request.chain_tail = match.tail;
  admission_.admit(request, demand);
  request.quota_group = pool_.quotas().counts().group_of(request.tenant);
  pool_.quotas().promise(request.quota_group, AdmissionControl::promised(request));
  pool_.drop_lost();
}

void BlockTables::grow(Request& request, std::int32_t count, StepWriter& out) {
  const std::int32_t missing = request.num_computed + count - request.covered;
  if (missing <= 0) return;
  const std::size_t held = request.block_table.size();
  const std::int32_t blocks = ceil_div(missing, block_size());
  pool_.quotas().promise(request.quota_group, -std::min(blocks, AdmissionControl::promised(request)));
  admission_.grow(request, blocks);
  request.block_table.resize(held + static_cast<std::size_t>(blocks));
  const auto taken = std::span(request.block_table).subspan(held);
  const bool took = pool_.try_take_for(request.quota_group, admission_.outstanding(), taken);
  AIRI_CHECK(took) << "promised blocks are missing: wanted " << blocks << ", available "
                   << pool_.num_available();
  for (std::size_t i = 0; i < taken.size(); ++i) {
    out.add_delta(request.slot, static_cast<std::int32_t>(held + i), entries_[index(taken[i])]);
  }
  request.covered += blocks * block_size();
}

void BlockTables::publish(Request& request, std::int32_t computed) {
  if (!caches_prefixes_) return;
  const std::int32_t full = computed / block_size();
  if (full == request.num_published) return;
  const auto known = std::span(request.tokens).first(static_cast<std::size_t>(computed));
  chain_->extend(known, request.extras, request.hashes);
  for (std::int32_t block = request.num_published; block < full; ++block) {
    pool_.prefetch(request.hashes[static_cast<std::size_t>(block)]);
  }
  for (; request.num_published < full; ++request.num_published) {
    const std::int32_t block = request.num_published;
    const auto at = static_cast<std::size_t>(block);
    BlockKey key = key_of(request, block, block_size(), request.chain_tail);
    key.parent_hash = block == 0 ? chain_->root() : request.hashes[at - 1];
    request.chain_tail = pool_.publish(request.block_table[at], key);
  }
}

void BlockTables::distrust(Request& request) {
  // After a preemption its hits may be blocks it had computed itself.
  const std::int32_t trusted = request.num_preemptions == 0 ? request.num_hit_blocks : 0;
  const auto hits = static_cast<std::size_t>(trusted);
  for (std::size_t i = hits; i < request.block_table.size(); ++i) {
    pool_.unpublish(request.block_table[i]);
  }
}

void BlockTables::release(Request& request) {
  pool_.quotas().promise(request.quota_group, -AdmissionControl::promised(request));
  admission_.release(request);
  pool_.release(request.block_table);
  request.block_table.clear();
  request.covered = request.num_computed = request.num_published = 0;
  request.chain_tail = kRootSerial;
}

std::int32_t BlockTables::gain_of_release(const Request& request) const noexcept {
  const auto exclusive = std::ranges::count_if(request.block_table, [this](BlockId block) {
    return pool_.ref_count(block) == 1 && pool_.returns(block);
  });
  return static_cast<std::int32_t>(exclusive) + AdmissionControl::promised(request);
}

bool BlockTables::would_fit(Request& request, std::span<Request* const> leaving, bool nothing_runs) {
  match(request, match_);
  std::int32_t available = pool_.num_available();
  std::int32_t most = available;
  for (const Request* r : leaving) {
    available += AdmissionControl::promised(*r);
    most += AdmissionControl::promised(*r) + static_cast<std::int32_t>(r->block_table.size());
  }
  const auto fits = [&](std::int32_t blocks) {
    return admission_.fits(demand(request, match_), blocks, nothing_runs);
  };
  if (!fits(most)) return false;
  for (const Request* r : leaving) {
    for (const BlockId block : r->block_table) {
      const bool is_last = ++leaving_references_[index(block)] == pool_.ref_count(block);
      if (is_last && pool_.returns(block)) ++available;
    }
  }
  const auto stays_held = [&](BlockId b) { return pool_.ref_count(b) > leaving_references_[index(b)]; };
  const auto is_cached_then = [&](BlockId hit) { return !pool_.any_twin(hit, stays_held); };
  match_.num_cached = static_cast<std::int32_t>(std::ranges::count_if(match_.blocks, is_cached_then));
  if (pool_.quotas().enabled()) {
    match_.cached_of.fill(0);
    for (const BlockId hit : match_.blocks) {
      if (is_cached_then(hit)) ++match_.cached_of[index(pool_.quotas().owner(raw(hit)))];
    }
    const std::int32_t promised = demand(request, match_).blocks - match_.num_cached;
    const QuotaCounts then = counts_without(leaving);
    available -= then.num_idle_after(then.group_of(request.tenant), promised, match_.cached_of);
  }
  for (const Request* r : leaving) {
    for (const BlockId block : r->block_table) leaving_references_[index(block)] = 0;
  }
  return fits(available);
}

// The counts once `leaving` have left, whose references to blocks are counted; forgets those of blocks that
// nobody else holds.
QuotaCounts BlockTables::counts_without(std::span<Request* const> leaving) {
  QuotaCounts counts = pool_.quotas().counts();
  for (const Request* r : leaving) {
    counts.change(r->quota_group,
                  [&](QuotaCounts::Group& own) { own.promised -= AdmissionControl::promised(*r); });
    for (const BlockId block : r->block_table) {
      if (leaving_references_[index(block)] < pool_.ref_count(block)) continue;
      leaving_references_[index(block)] = 0;
      const QuotaGroup owner = pool_.quotas().owner(raw(block));
      if (owner == kNoQuota) continue;
      const bool stays = pool_.is_published(block) && pool_.returns(block);
      counts.change(owner, [=](QuotaCounts::Group& own) { stays ? ++own.cached : --own.owned; });
    }
  }
  return counts;
}

}  // namespace airi
