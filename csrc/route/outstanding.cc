#include "route/outstanding.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace airi::route {
namespace {

constexpr double kFade = 1.0 / 64;

void fade(double& mean, double value) noexcept { mean += kFade * (value - mean); }

}  // namespace

PrefillWork Outstanding::rest(const Request& request) const noexcept {
  if (request.is_decoding) return {};
  const std::int64_t arrived = static_cast<std::int64_t>(request.arrived) * block_size_;
  const std::int64_t computed = std::min<std::int64_t>(request.cached + arrived, request.input_tokens);
  return PrefillWork::rest_of(request.input_tokens, computed);
}

void Outstanding::change_prefill(Replica& replica, const PrefillWork& from, const PrefillWork& to) {
  replica.prefill.tokens += to.tokens - from.tokens;
  replica.prefill.pairs += to.pairs - from.pairs;
  // What rounding has left does not stay.
  if (replica.prefill.tokens == 0) replica.prefill.pairs = 0;
}

void Outstanding::add(RequestId id, ReplicaSlot replica, std::int32_t input_tokens, std::int32_t cached,
                      SentId blocks) {
  const auto [place, is_new] = requests_.try_emplace(
      id, Request{.replica = replica, .blocks = blocks, .input_tokens = input_tokens, .cached = cached});
  AIRI_CHECK(is_new) << "request " << raw(id) << " is outstanding already";
  Replica& at = replicas_[index(replica)];
  const PrefillWork work = rest(place->second);
  change_prefill(at, {}, work);
  at.prompts.push_back(id);
  fade(mean_input_, input_tokens);
  fade(mean_tokens_, static_cast<double>(work.tokens));
  fade(mean_pairs_, work.pairs);
}

void Outstanding::leave_prompts(RequestId id, const Request& request) {
  Replica& at = replicas_[index(request.replica)];
  change_prefill(at, rest(request), {});
  at.prompts.erase(std::ranges::find(at.prompts, id));
}

bool Outstanding::note_first_token(RequestId id) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return false;
  Request& request = found->second;
  if (request.is_decoding) return true;
  leave_prompts(id, request);
  request.is_decoding = true;
  DecodeSet& decodes = replicas_[index(request.replica)].decodes;
  ++decodes.seqs;
  decodes.context += request.input_tokens;
  return true;
}

Outstanding::Ended Outstanding::end(RequestId id, std::int32_t output_tokens) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return {};
  const Request& request = found->second;
  const Ended ended{.was_outstanding = true, .brought_all = request.is_decoding, .blocks = request.blocks};
  if (request.is_decoding) {
    DecodeSet& decodes = replicas_[index(request.replica)].decodes;
    --decodes.seqs;
    decodes.context -= request.input_tokens;
    fade(mean_output_, output_tokens);
  } else {
    leave_prompts(id, request);
  }
  requests_.erase(found);
  return ended;
}

void Outstanding::forget(ReplicaSlot replica) {
  std::erase_if(requests_, [&](const auto& entry) { return entry.second.replica == replica; });
  replicas_[index(replica)] = {};
}

void Outstanding::follow(ReplicaSlot replica) {
  Replica& at = replicas_[index(replica)];
  const std::size_t followed = std::min(at.prompts.size(), kMostFollowed);
  for (std::size_t i = 0; i < followed; ++i) {
    Request& request = requests_.at(at.prompts[i]);
    const std::size_t arrived = sent_.num_arrived(request.blocks, request.arrived);
    if (arrived == 0) continue;
    const PrefillWork before = rest(request);
    request.arrived += arrived;
    change_prefill(at, before, rest(request));
  }
}

std::int64_t Outstanding::num_own(const Replica& replica) const noexcept {
  return replica.decodes.seqs + static_cast<std::int64_t>(replica.prompts.size());
}

void Outstanding::count(ReplicaSlot replica, const EngineCounts& counts) {
  Replica& at = replicas_[index(replica)];
  const auto own_prompts = static_cast<std::int64_t>(at.prompts.size());
  const std::int64_t others = std::max<std::int64_t>(counts.waiting + counts.running - num_own(at), 0);
  at.others.waiting = std::clamp<std::int64_t>(counts.waiting - own_prompts, 0, others);
  at.others.running = others - at.others.waiting;
}

PrefillWork Outstanding::prefill(ReplicaSlot replica) const noexcept {
  const Replica& at = replicas_[index(replica)];
  const auto others = static_cast<double>(at.others.waiting);
  return {.tokens = at.prefill.tokens + std::llround(others * mean_tokens_),
          .pairs = at.prefill.pairs + others * mean_pairs_};
}

DecodeSet Outstanding::decodes(ReplicaSlot replica) const noexcept {
  const Replica& at = replicas_[index(replica)];
  const auto others = static_cast<double>(at.others.running);
  return {.seqs = at.decodes.seqs + at.others.running,
          .context = at.decodes.context + std::llround(others * mean_input_)};
}

std::int64_t Outstanding::num_requests(ReplicaSlot replica) const noexcept {
  const Replica& at = replicas_[index(replica)];
  return num_own(at) + at.others.waiting + at.others.running;
}

void Outstanding::check_invariants() const {
  std::array<Replica, kMaxReplicas> sums;
  for (const auto& [id, request] : requests_) {
    Replica& sum = sums[index(request.replica)];
    const auto& prompts = replicas_[index(request.replica)].prompts;
    AIRI_CHECK(std::ranges::count(prompts, id) == (request.is_decoding ? 0 : 1))
        << "request " << raw(id) << " is not where it should be";
    sum.prefill += rest(request);
    if (!request.is_decoding) {
      sum.prompts.push_back(id);
      continue;
    }
    ++sum.decodes.seqs;
    sum.decodes.context += request.input_tokens;
  }
  for (std::size_t i = 0; i < kMaxReplicas; ++i) {
    AIRI_CHECK(sums[i].prompts.size() == replicas_[i].prompts.size()) << "a prompt of nobody";
    AIRI_CHECK(sums[i].prefill.tokens == replicas_[i].prefill.tokens) << "prompt tokens are miscounted";
    AIRI_CHECK(sums[i].decodes.seqs == replicas_[i].decodes.seqs &&
               sums[i].decodes.context == replicas_[i].decodes.context)
        << "streams are miscounted";
  }
}

}  // namespace airi::route
