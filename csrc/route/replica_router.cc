#include "route/replica_router.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "base/check.h"

namespace airi::route {
namespace {

void require(bool holds, const char* name, const std::string& value, const char* accepted) {
  if (holds) return;
  throw InvalidArgument(std::string(name) + " must be " + accepted + ", got " + value);
}

void check_rates(const StepRates& rates) {
  require(rates.max_batch_tokens >= 1, "max_batch_tokens", std::to_string(rates.max_batch_tokens),
          "at least 1");
  for (const StepTimePiece& piece : rates.pieces) {
    for (const double weight : {piece.step, piece.token, piece.seq, piece.context, piece.pair}) {
      require(std::isfinite(weight) && weight >= 0, "step_time", std::to_string(weight),
              "finite and at least 0");
    }
  }
}

RouterOptions checked(const RouterOptions& options) {
  require(options.block_size >= 1, "block_size", std::to_string(options.block_size), "at least 1");
  require(options.load_guard >= 1 && options.load_guard <= 1e9, "load_guard",
          std::to_string(options.load_guard), "between 1 and 1e9");
  require(options.sent_ttl >= 1 && options.sent_ttl <= kMaxMicros, "sent_ttl",
          std::to_string(options.sent_ttl), "between 1 and 2^53");
  require(options.sent_blocks >= 2, "sent_blocks", std::to_string(options.sent_blocks), "at least 2");
  return options;
}

}  // namespace

ReplicaRouter::ReplicaRouter(const RouterOptions& options)
    : options_(checked(options)),
      sent_(locations_, options.sent_ttl, options.sent_blocks),
      outstanding_(sent_, options.block_size) {}

ReplicaId ReplicaRouter::add(const ReplicaOptions& options) {
  check_rates(options.rates);
  require(options.capacity_blocks >= 0, "capacity_blocks", std::to_string(options.capacity_blocks),
          "at least 0");
  const auto place = std::ranges::find_if(replicas_, [](const auto& replica) { return !replica; });
  if (place == replicas_.end()) {
    throw InvalidArgument("a router has " + std::to_string(kMaxReplicas) + " replicas at most");
  }
  const ReplicaId id{next_id_++};
  *place = Replica{.id = id, .options = options};
  locations_.set_capacity(ReplicaSlot{static_cast<std::int32_t>(place - replicas_.begin())},
                          options.capacity_blocks);
  return id;
}

ReplicaSlot ReplicaRouter::slot_of(ReplicaId replica) const {
  for (std::size_t i = 0; i < replicas_.size(); ++i) {
    if (replicas_[i] && replicas_[i]->id == replica) return ReplicaSlot{static_cast<std::int32_t>(i)};
  }
  throw InvalidArgument("there is no replica " + std::to_string(raw(replica)));
}

void ReplicaRouter::drain(ReplicaId replica) { at(replica).is_draining = true; }

void ReplicaRouter::remove(ReplicaId replica) {
  const ReplicaSlot slot = slot_of(replica);
  sent_.forget(slot);
  outstanding_.forget(slot);
  locations_.forget(slot);
  replicas_[index(slot)].reset();
}

void ReplicaRouter::sleep(ReplicaId replica, Micros wake_us) {
  require(wake_us >= 0 && wake_us <= kMaxMicros, "wake_us", std::to_string(wake_us), "between 0 and 2^53");
  Replica& found = at(replica);
  found.wake_us = wake_us;
  found.wakes_at.reset();
}

void ReplicaRouter::wake(ReplicaId replica) {
  Replica& found = at(replica);
  found.wake_us.reset();
  found.wakes_at.reset();
}

void ReplicaRouter::set_rates(ReplicaId replica, const StepRates& rates) {
  check_rates(rates);
  at(replica).options.rates = rates;
}

void ReplicaRouter::count(ReplicaId replica, const EngineCounts& counts) {
  require(counts.waiting >= 0, "waiting", std::to_string(counts.waiting), "at least 0");
  require(counts.running >= 0, "running", std::to_string(counts.running), "at least 0");
  outstanding_.count(slot_of(replica), counts);
}

void ReplicaRouter::apply(ReplicaId replica, std::span<const KvEvent> events) {
  const ReplicaSlot slot = slot_of(replica);
  locations_.apply(slot, at(replica).options.model, events);
  outstanding_.follow(slot);
}

void ReplicaRouter::replace(ReplicaId replica, std::span<const KvEvent> stored) {
  locations_.forget_stored(slot_of(replica));
  apply(replica, stored);
}

void ReplicaRouter::check(const RouteRequest& request) const {
  require(request.input_tokens >= 1, "input_tokens", std::to_string(request.input_tokens), "at least 1");
  require(request.chain.size() <= static_cast<std::size_t>(request.input_tokens / options_.block_size),
          "chain", std::to_string(request.chain.size()) + " blocks", "no longer than input_tokens");
}

// Never all of the prompt: the core computes its last token, for what comes after it.
std::int32_t ReplicaRouter::tokens_of(std::int32_t blocks, const RouteRequest& request) const noexcept {
  return std::min(blocks, (request.input_tokens - 1) / options_.block_size) * options_.block_size;
}

Candidate ReplicaRouter::judge(ReplicaSlot slot, const PrefixMatch& match, const RouteRequest& request,
                               TimePoint now) const {
  const Replica& replica = *replicas_[index(slot)];
  const StepRates& rates = replica.options.rates;
  const PrefillWork before = outstanding_.prefill(slot);
  const DecodeSet decodes = outstanding_.decodes(slot);
  Candidate found{.replica = replica.id,
                  .stored_tokens = tokens_of(match.stored, request),
                  .cached_tokens = tokens_of(match.expected, request),
                  .outstanding_requests = outstanding_.num_requests(slot),
                  .outstanding_tokens = before.tokens,
                  .last_sent = replica.last_sent};
  if (replica.wake_us) {
    const TimePoint awake = replica.wakes_at.value_or(now + *replica.wake_us);
    found.wake_us = static_cast<double>(std::max<Micros>(awake - now, 0));
  }
  PrefillWork with = before;
  with += PrefillWork::rest_of(request.input_tokens, found.cached_tokens);
  found.wait_us = rates.prefill(before, decodes);
  found.prefill_us = rates.prefill(with, decodes) - found.wait_us;
  const double step = rates.step(decodes);
  const double more = rates.step({decodes.seqs + 1, decodes.context + request.input_tokens}) - step;
  const double output = outstanding_.mean_output();
  found.delay_us = found.prefill_us + output * more * static_cast<double>(decodes.seqs);
  found.load_us = found.wait_us + output * (step - rates.step({}));
  return found;
}

std::vector<Candidate> ReplicaRouter::candidates(const RouteRequest& request, TimePoint now) const {
  std::uint64_t open = 0;
  for (std::size_t i = 0; i < replicas_.size(); ++i) {
    if (replicas_[i] && !replicas_[i]->is_draining) open |= std::uint64_t{1} << i;
  }
  std::array<PrefixMatch, kMaxReplicas> matches{};
  locations_.match(request.chain, open, matches);
  std::vector<Candidate> found;
  found.reserve(static_cast<std::size_t>(std::popcount(open)));
  for (; open != 0; open &= open - 1) {
    const ReplicaSlot slot{std::countr_zero(open)};
    found.push_back(judge(slot, matches[index(slot)], request, now));
  }
  return found;
}

std::optional<Choice> ReplicaRouter::choose(const RouteRequest& request, TimePoint now) {
  check(request);
  sent_.expire(now);
  Choice choice{.replica = {}, .candidates = candidates(request, now)};
  if (choice.candidates.empty()) return std::nullopt;
  double load = 0;
  double least_load = std::numeric_limits<double>::infinity();
  double most_work = 0;
  for (const Candidate& candidate : choice.candidates) {
    load += candidate.load_us;
    least_load = std::min(least_load, candidate.load_us);
    most_work = std::max(most_work, candidate.prefill_us);
  }
  const double mean = load / static_cast<double>(choice.candidates.size());
  // The mean of equal loads may be rounded to less than they are.
  const double limit = std::max(options_.load_guard * mean + most_work, least_load);
  const Candidate* best = nullptr;
  const auto key = [](const Candidate& c) {
    return std::tuple(c.score_us(), c.load_us, c.last_sent, raw(c.replica));
  };
  for (Candidate& candidate : choice.candidates) {
    candidate.is_overloaded = candidate.load_us > limit;
    if (candidate.is_overloaded) continue;
    if (best == nullptr || key(candidate) < key(*best)) best = &candidate;
  }
  choice.replica = best->replica;
  return choice;
}

void ReplicaRouter::sent(RequestId id, ReplicaId replica, const RouteRequest& request, TimePoint now) {
  check(request);
  const ReplicaSlot slot = slot_of(replica);
  if (outstanding_.contains(id)) {
    throw InvalidArgument("request " + std::to_string(raw(id)) + " is outstanding already");
  }
  sent_.expire(now);
  std::array<PrefixMatch, kMaxReplicas> matches{};
  locations_.match(request.chain, std::uint64_t{1} << index(slot), matches);
  const std::int32_t matched = matches[index(slot)].expected;
  const SentId blocks = sent_.add(slot, request.chain.subspan(static_cast<std::size_t>(matched)), now);
  outstanding_.add(id, slot, request.input_tokens, tokens_of(matched, request), blocks);
  Replica& found = *replicas_[index(slot)];
  found.last_sent = ++num_sent_;
  if (found.wake_us && !found.wakes_at) found.wakes_at = now + *found.wake_us;
}

bool ReplicaRouter::ended(RequestId id, std::int32_t output_tokens) {
  require(output_tokens >= 0, "output_tokens", std::to_string(output_tokens), "at least 0");
  const Outstanding::Ended ended = outstanding_.end(id, output_tokens);
  // What was computed is stored, and told to be; what was not never will be.
  if (ended.was_outstanding && !ended.brought_all) sent_.take_back(ended.blocks);
  return ended.was_outstanding;
}

std::int64_t ReplicaRouter::num_stored(ReplicaId replica) const {
  return locations_.num_stored(slot_of(replica));
}

std::int64_t ReplicaRouter::num_left_out(ReplicaId replica) const {
  return locations_.num_left_out(slot_of(replica));
}

void ReplicaRouter::check_invariants() const {
  locations_.check_invariants();
  outstanding_.check_invariants();
}

}  // namespace airi::route
