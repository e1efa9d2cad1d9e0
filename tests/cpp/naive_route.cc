#include "naive_route.h"

#include <algorithm>
#include <cmath>

namespace airi::testing {
namespace {

// Of so many steps that do this work: tokens, rows, context of decodes, pairs.
double time_of(const route::StepRates& rates, double steps, double tokens, double rows, double context,
               double pairs) {
  double most = 0;
  bool is_known = false;
  for (const StepTimePiece& p : rates.pieces) {
    is_known |= p.step > 0 || p.token > 0 || p.seq > 0 || p.context > 0 || p.pair > 0;
    most = std::max(most, p.step + p.token * tokens + p.seq * rows + p.context * context + p.pair * pairs +
                              (steps - 1) * p.step);
  }
  return is_known ? most : tokens;
}

double prefill_time(const route::StepRates& rates, std::int64_t tokens, double pairs, std::int64_t decodes,
                    std::int64_t context) {
  if (tokens == 0) return 0;
  const std::int64_t room = std::max<std::int64_t>(1, rates.max_batch_tokens - decodes);
  std::int64_t steps = 0;
  for (std::int64_t left = tokens; left > 0; left -= room) ++steps;
  return time_of(rates, static_cast<double>(steps), static_cast<double>(tokens + steps * decodes),
                 static_cast<double>(steps * (decodes + 1)), static_cast<double>(steps * context), pairs);
}

double decode_time(const route::StepRates& rates, std::int64_t decodes, std::int64_t context) {
  const auto count = static_cast<double>(decodes);
  return time_of(rates, 1, count, count, static_cast<double>(context), 0);
}

double pairs_of(std::int64_t length, std::int64_t computed) {
  return static_cast<double>(length * length - computed * computed) / 2;
}

}  // namespace

KvEvent event_of(KvEventKind kind, KvTier tier, const Hash128& hash, ModelId model) {
  return {.hash = hash, .parent = {}, .kind = kind, .tier = tier, .model = model, .num_tokens = kBlock};
}

std::vector<KvEvent> all_stored(const std::vector<Hash128>& chain) {
  std::vector<KvEvent> events;
  for (const Hash128& hash : chain) events.push_back(stored(hash));
  return events;
}

std::vector<Hash128> draw_chain(Random& random, std::int32_t most, std::int32_t kinds) {
  std::vector<Hash128> chain;
  std::uint64_t hash = 0;
  for (std::int32_t left = random.below(most + 1); left > 0; --left) {
    hash = Random(hash * 31 + static_cast<std::uint64_t>(random.below(kinds))).next();
    // Some share their lower half, and all that lie around the same place in the table fight for it.
    chain.push_back({.lo = hash % 4 == 0 ? hash % 3 : hash, .hi = hash});
  }
  return chain;
}

std::vector<Hash128> numbered(std::uint64_t from, std::uint64_t count) {
  std::vector<Hash128> chain;
  for (std::uint64_t i = from; i < from + count; ++i) chain.push_back({Random(i).next(), i});
  return chain;
}

bool NaiveBlocks::has(const NaiveHash& hash) const {
  return std::ranges::any_of(stored, [&](const auto& tier) { return tier.contains(hash); });
}

std::size_t NaiveBlocks::num_stored() const {
  std::set<NaiveHash> all;
  for (const auto& tier : stored) all.insert(tier.begin(), tier.end());
  return all.size();
}

void NaiveBlocks::apply(const KvEvent& event) {
  auto& tier = stored[static_cast<std::size_t>(event.tier)];
  const NaiveHash hash = naive(event.hash);
  if (event.kind == KvEventKind::kRemoved) {
    tier.erase(hash);
    return;
  }
  sent.erase(hash);
  if (!has(hash) && num_stored() >= capacity) {
    ++left_out;
  } else {
    tier.insert(hash);
  }
}

route::PrefixMatch NaiveBlocks::match(std::span<const Hash128> chain) const {
  route::PrefixMatch found;
  for (const Hash128& hash : chain) {
    if (!has(naive(hash))) break;
    ++found.stored;
  }
  for (const Hash128& hash : chain) {
    if (!has(naive(hash)) && !sent.contains(naive(hash))) break;
    ++found.expected;
  }
  return found;
}

void NaiveRouter::add(route::ReplicaId id, const route::ReplicaOptions& options) {
  replicas_[id].options = options;
  replicas_[id].blocks.capacity = static_cast<std::size_t>(options.capacity_blocks);
}

void NaiveRouter::remove(route::ReplicaId id) {
  for (Sent& sent : sent_) {
    if (sent.replica == id) take_back(sent);
  }
  std::erase_if(live_, [&](const Live& live) { return live.replica == id; });
  replicas_.erase(id);
}

void NaiveRouter::sleep(route::ReplicaId id, Micros wake_us) {
  replicas_.at(id).wake_us = wake_us;
  replicas_.at(id).wakes_at.reset();
}

void NaiveRouter::wake(route::ReplicaId id) {
  replicas_.at(id).wake_us.reset();
  replicas_.at(id).wakes_at.reset();
}

void NaiveRouter::count(route::ReplicaId id, const route::EngineCounts& counts) {
  std::int64_t own = 0, prompts = 0;
  for (const Live& live : live_) {
    own += live.replica == id ? 1 : 0;
    prompts += live.replica == id && !live.is_decoding ? 1 : 0;
  }
  const std::int64_t others = std::max<std::int64_t>(counts.waiting + counts.running - own, 0);
  const std::int64_t waiting = std::min(std::max<std::int64_t>(counts.waiting - prompts, 0), others);
  replicas_.at(id).others = {.waiting = waiting, .running = others - waiting};
}

void NaiveRouter::apply(route::ReplicaId id, std::span<const KvEvent> events) {
  Replica& replica = replicas_.at(id);
  for (const KvEvent& event : events) {
    if (event.model == replica.options.model) replica.blocks.apply(event);
  }
  std::size_t looked = 0;
  for (Live& live : live_) {
    if (live.replica != id || live.is_decoding) continue;
    if (++looked > route::Outstanding::kMostFollowed) break;
    const std::vector<NaiveHash>& hashes = sent_[live.sent].hashes;
    while (static_cast<std::size_t>(live.arrived) < hashes.size() &&
           !replica.blocks.sent.contains(hashes[static_cast<std::size_t>(live.arrived)])) {
      ++live.arrived;
    }
  }
}

void NaiveRouter::replace(route::ReplicaId id, std::span<const KvEvent> stored) {
  for (auto& tier : replicas_.at(id).blocks.stored) tier.clear();
  apply(id, stored);
}

void NaiveRouter::take_back(Sent& sent) {
  const auto replica = replicas_.find(sent.replica);
  for (const NaiveHash& hash : sent.hashes) {
    if (replica != replicas_.end()) replica->second.blocks.sent.erase(hash);
  }
  sent.hashes.clear();
}

void NaiveRouter::drop_old(TimePoint now) {
  for (Sent& sent : sent_) {
    if (sent.expires > now || sent.is_dropped) continue;
    take_back(sent);
    sent.is_dropped = true;
  }
}

void NaiveRouter::drop_beyond_limit() {
  std::size_t kept = 0;
  for (const Sent& sent : sent_) kept += sent.is_dropped ? 0 : 1 + sent.hashes.size();
  for (Sent& sent : sent_) {
    if (kept <= static_cast<std::size_t>(options_.sent_blocks)) return;
    if (sent.is_dropped) continue;
    kept -= 1 + sent.hashes.size();
    take_back(sent);
    sent.is_dropped = true;
  }
}

route::Candidate NaiveRouter::judge(route::ReplicaId id, const route::RouteRequest& request, TimePoint now) {
  Replica& replica = replicas_.at(id);
  const route::StepRates& rates = replica.options.rates;
  const std::int32_t size = options_.block_size;
  const auto tokens = [&](std::int32_t blocks) {
    while (blocks * size >= request.input_tokens) --blocks;
    return blocks * size;
  };
  const route::PrefixMatch match = replica.blocks.match(request.chain);
  route::Candidate found;
  found.replica = id;
  found.stored_tokens = tokens(match.stored);
  found.cached_tokens = tokens(match.expected);
  found.last_sent = replica.last_sent;
  found.outstanding_requests = replica.others.waiting + replica.others.running;
  std::int64_t left = 0, decodes = 0, context = 0;
  double pairs = 0;
  for (const Live& live : live_) {
    if (live.replica != id) continue;
    ++found.outstanding_requests;
    if (live.is_decoding) {
      ++decodes;
      context += live.input_tokens;
      continue;
    }
    const std::int64_t computed = std::min(live.cached + live.arrived * size, live.input_tokens);
    left += live.input_tokens - computed;
    pairs += pairs_of(live.input_tokens, computed);
  }
  left += std::llround(static_cast<double>(replica.others.waiting) * mean_tokens_);
  pairs += static_cast<double>(replica.others.waiting) * mean_pairs_;
  context += std::llround(static_cast<double>(replica.others.running) * mean_input_);
  decodes += replica.others.running;
  found.outstanding_tokens = left;
  if (replica.wake_us) {
    const Micros wait = replica.wakes_at ? *replica.wakes_at - now : *replica.wake_us;
    found.wake_us = static_cast<double>(std::max<Micros>(wait, 0));
  }
  found.wait_us = prefill_time(rates, left, pairs, decodes, context);
  const std::int64_t own = request.input_tokens - found.cached_tokens;
  const double own_pairs = pairs_of(request.input_tokens, found.cached_tokens);
  found.prefill_us = prefill_time(rates, left + own, pairs + own_pairs, decodes, context) - found.wait_us;
  const double step = decode_time(rates, decodes, context);
  const double longer = decode_time(rates, decodes + 1, context + request.input_tokens) - step;
  found.delay_us = found.prefill_us + mean_output_ * longer * static_cast<double>(decodes);
  found.load_us = found.wait_us + mean_output_ * (step - decode_time(rates, 0, 0));
  return found;
}

std::vector<route::Candidate> NaiveRouter::candidates(const route::RouteRequest& request, TimePoint now) {
  drop_old(now);
  std::vector<route::Candidate> found;
  for (const auto& [id, replica] : replicas_) {
    if (!replica.is_draining) found.push_back(judge(id, request, now));
  }
  double load = 0, least_load = HUGE_VAL, most_work = 0;
  for (const route::Candidate& c : found) {
    load += c.load_us;
    least_load = std::min(least_load, c.load_us);
    most_work = std::max(most_work, c.prefill_us);
  }
  const double mean = load / static_cast<double>(found.size());
  for (route::Candidate& c : found) {
    c.is_overloaded = c.load_us > options_.load_guard * mean + most_work && c.load_us > least_load;
  }
  return found;
}

std::optional<route::ReplicaId> NaiveRouter::choose(const route::RouteRequest& request, TimePoint now) {
  std::vector<route::Candidate> found = candidates(request, now);
  std::erase_if(found, [](const route::Candidate& c) { return c.is_overloaded; });
  if (found.empty()) return std::nullopt;
  std::ranges::stable_sort(found, {}, &route::Candidate::last_sent);
  std::ranges::stable_sort(found, {}, &route::Candidate::load_us);
  std::ranges::stable_sort(
      found, {}, [](const route::Candidate& c) { return c.wake_us + c.wait_us + c.prefill_us + c.delay_us; });
  return found.front().replica;
}

void NaiveRouter::sent(RequestId id, route::ReplicaId replica, const route::RouteRequest& request,
                       TimePoint now) {
  drop_old(now);
  Replica& to = replicas_.at(replica);
  const route::Candidate before = judge(replica, request, now);
  const route::PrefixMatch match = to.blocks.match(request.chain);
  Sent sent{.replica = replica, .expires = now + options_.sent_ttl, .hashes = {}, .is_dropped = false};
  for (const Hash128& hash : request.chain.subspan(static_cast<std::size_t>(match.expected))) {
    if (sent.hashes.size() + 1 >= static_cast<std::size_t>(options_.sent_blocks)) break;
    if (to.blocks.has(naive(hash)) || !to.blocks.sent.insert(naive(hash)).second) continue;
    sent.hashes.push_back(naive(hash));
  }
  live_.push_back({.id = id,
                   .replica = replica,
                   .sent = sent_.size(),
                   .input_tokens = request.input_tokens,
                   .cached = before.cached_tokens});
  sent_.push_back(sent);
  drop_beyond_limit();
  to.last_sent = ++num_sent_;
  if (to.wake_us && !to.wakes_at) to.wakes_at = now + *to.wake_us;
  const auto fade = [](double& mean, double value) { mean += (value - mean) / 64; };
  fade(mean_input_, request.input_tokens);
  fade(mean_tokens_, request.input_tokens - before.cached_tokens);
  fade(mean_pairs_, pairs_of(request.input_tokens, before.cached_tokens));
}

bool NaiveRouter::first_token(RequestId id) {
  const auto live = std::ranges::find(live_, id, &Live::id);
  if (live == live_.end()) return false;
  live->is_decoding = true;
  return true;
}

bool NaiveRouter::ended(RequestId id, std::int32_t output_tokens) {
  const auto live = std::ranges::find(live_, id, &Live::id);
  if (live == live_.end()) return false;
  if (live->is_decoding) {
    mean_output_ += (output_tokens - mean_output_) / 64;
  } else {
    take_back(sent_[live->sent]);
  }
  live_.erase(live);
  return true;
}

}  // namespace airi::testing
