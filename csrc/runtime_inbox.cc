// What reaches a Runtime from other threads: requests, cancels, weights.

#include <algorithm>
#include <string>
#include <utility>

#include "runtime.h"

namespace airi {
namespace {

// How many sampled tokens a request's arrays have room for before they grow.
constexpr std::int64_t kExpectedTokens = 512;

void check_spec(const RequestSpec& spec, bool knows_model, std::int32_t num_bands) {
  const auto refuse = [](const char* name, std::int64_t value, const char* accepted) {
    throw InvalidArgument(std::string(name) + " must be " + accepted + ", got " + std::to_string(value));
  };
  if (!knows_model) refuse("model", raw(spec.model), "a model of this runtime");
  if (spec.band < 0 || spec.band >= num_bands) refuse("band", spec.band, "in [0, num_bands)");
  check_moment("arrival_us", spec.arrival);
  if (spec.tokens.empty()) refuse("len(tokens)", 0, "at least 1");
  if (spec.max_new_tokens && *spec.max_new_tokens < 1) {
    refuse("max_new_tokens", *spec.max_new_tokens, "at least 1");
  }
  if (spec.min_new_tokens < 0) refuse("min_new_tokens", spec.min_new_tokens, "at least 0");
  if (std::ranges::any_of(spec.tokens, [](std::int32_t t) { return t < 0; })) {
    throw InvalidArgument("tokens must not be negative");
  }
  for (const ExtraKey& extra : spec.extras) {
    if (extra.offset < 0) refuse("salt offset", extra.offset, "at least 0");
  }
}

}  // namespace

std::unique_ptr<Request> Runtime::make_request(RequestSpec&& spec, const ModelLimits& limits) {
  auto request = std::make_unique<Request>();
  const auto prompt = static_cast<std::int32_t>(spec.tokens.size());
  request->id = spec.id;
  request->model = spec.model;
  request->tenant = spec.tenant;
  request->first_band = request->band = spec.band;
  request->arrival = spec.arrival;
  request->deadline = spec.deadline;
  request->compute_all = spec.compute_all;
  request->prompt_length = prompt;
  const std::int64_t window = std::min<std::int64_t>(
      limits.max_model_len, std::int64_t{limits.capacity} * limits.chain->block_size());
  const std::int64_t max_new = spec.max_new_tokens.value_or(static_cast<std::int32_t>(window) - prompt);
  request->max_length = static_cast<std::int32_t>(prompt + max_new);
  request->min_length =
      prompt + std::min<std::int32_t>(spec.min_new_tokens, static_cast<std::int32_t>(max_new));
  request->stop_ids = std::move(spec.stop_ids);
  request->extras = encode_extras(spec.extras, limits.chain->block_size());
  request->tokens = std::move(spec.tokens);
  const std::int64_t expected = prompt + std::min(max_new, kExpectedTokens);
  request->tokens.reserve(static_cast<std::size_t>(expected));
  const auto blocks = static_cast<std::size_t>(ceil_div<std::int64_t>(expected, limits.chain->block_size()));
  request->block_table.reserve(blocks);
  request->hashes.reserve(blocks);
  if (limits.caches_prefixes) limits.chain->extend(request->tokens, request->extras, request->hashes);
  return request;
}

Admit Runtime::submit(RequestSpec spec) {
  const std::shared_ptr<const ModelLimits> known = limits_of(spec.model);
  check_spec(spec, known != nullptr, config_.num_bands);
  ModelLimits limits = *known;
  limits.capacity -= static_cast<std::int32_t>(
      std::min<std::int64_t>(inbox_.kept_for_others(spec.model, spec.tenant), limits.capacity));
  const auto prompt = static_cast<std::int64_t>(spec.tokens.size());
  const std::int64_t least = prompt + spec.max_new_tokens.value_or(1);
  DecisionRecord refusal{.request = spec.id, .tenant = spec.tenant, .model = spec.model};
  const auto refuse = [&](Admit answer, Decision why, std::int64_t a, std::int64_t b) {
    refusal.decision = raw(why);
    refusal.a = a;
    refusal.b = b;
    if (log_.enabled()) inbox_.note_refusal(refusal);
    return answer;
  };
  if (limits.is_gone) return refuse(Admit::kModelGone, Decision::kRefusedModelGone, 0, 0);
  if (least > limits.max_model_len) {
    return refuse(Admit::kTooLong, Decision::kRefusedTooLong, least, limits.max_model_len);
  }
  const std::int64_t blocks = ceil_div<std::int64_t>(least, limits.chain->block_size());
  if (blocks > limits.capacity) {
    return refuse(Admit::kNeverFits, Decision::kRefusedNeverFits, blocks, limits.capacity);
  }
  std::unique_ptr<Request> request = make_request(std::move(spec), limits);
  switch (inbox_.put(request)) {
    case Inbox::Put::kAccepted:
      return Admit::kAccepted;
    case Inbox::Put::kFull:
      return refuse(Admit::kQueueFull, Decision::kRefusedQueueFull, config_.max_queued, 0);
    case Inbox::Put::kDuplicate:
      break;
  }
  return refuse(Admit::kDuplicateId, Decision::kRefusedDuplicateId, 0, 0);
}

bool Runtime::cancel(RequestId id) { return inbox_.cancel(id); }

void Runtime::set_tenant(TenantId tenant, double weight) { inbox_.set_weight(tenant, TenantWeight(weight)); }

void Runtime::read_inbox() {
  inbox_.take(mail_);
  end_transfers();
  for (const auto& [tenant, weight] : mail_.weights) {
    weights_.set(tenant, weight);
    for (Hosted& model : models_) {
      if (model.scheduler) model.scheduler->queue().reweigh(tenant);
    }
  }
  take_quotas();
  for (std::unique_ptr<Request>& request : mail_.requests) {
    Request* accepted = request.get();
    requests_.emplace(accepted->id, std::move(request));
    if (accepted->deadline) deadlines_.push(accepted);
    Hosted& model = models_[index(accepted->model)];
    if (model.scheduler) {
      model.scheduler->accept(accepted, now_);
      // It was on its way when the model began to go, or when what it can count on became less.
      if (model.state == ModelState::kRemoving && !model.drains) {
        drop(accepted, FinishReason::kCancelled);
      } else if (never_fits(*accepted)) {
        drop(accepted, FinishReason::kNeverFits);
      }
    } else {
      end(accepted, FinishReason::kCancelled);
    }
  }
  for (const auto& [id, serial] : mail_.cancels) {
    const auto known = requests_.find(id);
    if (known == requests_.end() || known->second->serial != serial) continue;
    drop(known->second.get(), FinishReason::kCancelled);
  }
  if (!mail_.quotas.empty()) end_what_never_fits();
  for (const DecisionRecord& refusal : mail_.refusals) log_.write_refused(refusal);
  mail_.weights.clear();
  mail_.quotas.clear();
  mail_.refusals.clear();
  mail_.requests.clear();
  mail_.cancels.clear();
}

}  // namespace airi
