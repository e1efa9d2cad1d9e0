// Models of a Runtime: how they come, sleep, wake and go.

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "base/check.h"
#include "runtime.h"

namespace airi {

std::shared_ptr<const Runtime::ModelLimits> Runtime::limits_of(ModelId model) const {
  const MutexLock lock(limits_mu_);
  return index(model) < limits_.size() ? limits_[index(model)] : nullptr;
}

// What submit() goes by. A request can count on the slabs that its model gets while all others want
// everything.
void Runtime::publish_limits(ModelId model) {
  Hosted& hosted = models_[index(model)];
  ModelLimits limits{.max_model_len = hosted.config.max_model_len,
                     .caches_prefixes = hosted.config.enable_prefix_caching,
                     .is_gone = hosted.state == ModelState::kRemoving || hosted.state == ModelState::kRemoved,
                     .chain = hosted.chain};
  if (hosted.scheduler) limits.capacity = capacity_of(model);
  hosted.room.has_shrunk = hosted.room.has_shrunk || limits.capacity < hosted.room.capacity;
  hosted.room.capacity = limits.capacity;
  const MutexLock lock(limits_mu_);
  limits_.resize(std::max(limits_.size(), models_.size()));
  limits_[index(model)] = std::make_shared<const ModelLimits>(std::move(limits));
}

std::int32_t Runtime::capacity_of(ModelId model) const {
  const Hosted& hosted = models_[index(model)];
  if (!hosted.source) return hosted.scheduler->tables().pool().capacity();
  return arena_.guaranteed(model) * arena_.blocks_per_slab(hosted.config.bytes_per_block);
}

void Runtime::host(ModelId id, const ModelConfig& model) {
  std::vector<SlabId> slabs;
  if (model.is_elastic()) {
    for (std::int32_t i = 0; i < arena_.num_slabs(); ++i) slabs.push_back(SlabId{i});
  } else {
    slabs = take_fixed_slabs(id);
  }
  auto entries = arena_.block_entries(slabs, model.bytes_per_block);
  const std::int32_t per_slab = arena_.blocks_per_slab(model.bytes_per_block);
  const auto all = static_cast<std::int32_t>(entries.size());
  const SlabShape shape = model.is_elastic() ? SlabShape{arena_.num_slabs(), per_slab} : SlabShape{1, all};
  const std::int32_t counted_on = model.is_elastic() ? arena_.guaranteed(id) * per_slab : all;
  auto chain = std::make_shared<const HashChain>(config_.hash_key, model.hash_seed, model.block_size);
  const AdmissionControl admission(model.admission, counted_on, model.block_size, model.watermark,
                                   config_.max_preemptions);
  const SchedulerOptions options{
      .max_num_seqs = model.max_num_seqs,
      .max_batch_tokens = model.max_batch_tokens,
      .max_prefill_chunk = model.max_prefill_chunk.value_or(std::numeric_limits<std::int32_t>::max() / 2),
      .whole_prompts = model.whole_prompts,
      .bypass_tokens = config_.bypass_tokens,
      .fairness_gap_tokens = config_.fairness_gap_tokens,
      .locality_quantum_tokens = config_.locality_quantum_tokens,
      .dedupe_steps = config_.dedupe_steps,
      .num_bands = config_.num_bands,
      .service = config_.service,
      .load_timeout = config_.tiers.load_timeout_us,
      .targets = model.targets,
      .itl_credit = model.itl_credit};
  BlockTables tables(std::move(entries), shape, admission, chain, model.enable_prefix_caching);
  if (!model.is_elastic()) tables.pool().add_slab(SlabId{0});
  tables.pool().send_events_to(KvEventSink(&kv_events_, id, model.block_size));
  Hosted& hosted = models_.emplace_back();
  hosted.config = model;
  hosted.chain = std::move(chain);
  hosted.scheduler = std::make_unique<ModelScheduler>(options, std::move(tables), AgingRule(config_.aging_us),
                                                      weights_, hosted.step_time, log_);
  if (model.is_elastic()) {
    hosted.source = std::make_unique<SlabSource>(exchange_, ops_, id);
    hosted.scheduler->set_source(hosted.source.get());
  }
  exchange_.attach(id, model.is_elastic() ? hosted.scheduler.get() : nullptr);
}

std::vector<SlabId> Runtime::take_fixed_slabs(ModelId model) {
  const SlabOwner owner{model, SlabUse::kKv};
  for (std::int32_t i = arena_.limits(model).max; i > 0; --i) {
    const std::optional<SlabId> slab = arena_.find_free(owner);
    AIRI_CHECK(slab) << "no slab is left for model " << raw(model);
    arena_.give(*slab, owner, now_);
  }
  return arena_.owned_by(model);
}

// Adjacent slabs for weights that nobody else's weights have their home in, with as few in use as can be.
std::optional<SlabId> Runtime::find_home(std::int32_t count) const {
  std::vector<std::int32_t> cost(static_cast<std::size_t>(arena_.num_slabs()), 0);
  const std::int32_t never = arena_.num_slabs() + 1;
  for (std::int32_t i = 0; i < arena_.num_slabs(); ++i) {
    const auto owner = arena_.owner(SlabId{i});
    if (!owner) continue;
    const bool moves = owner->use == SlabUse::kKv && models_[index(owner->model)].source;
    cost[static_cast<std::size_t>(i)] = moves ? 1 : never;
  }
  for (const Hosted& other : models_) {
    if (!other.weights_at) continue;
    const auto first = cost.begin() + raw(*other.weights_at);
    std::fill(first, first + other.config.weight_slabs, never);
  }
  std::optional<SlabId> best;
  std::int64_t least = never;
  for (std::int32_t i = 0; i + count <= arena_.num_slabs(); ++i) {
    const auto first = cost.begin() + i;
    const std::int64_t total = std::accumulate(first, first + count, std::int64_t{0});
    if (total >= least) continue;
    least = total;
    best = SlabId{i};
  }
  return best;
}

// True once all of it is the model's own.
bool Runtime::occupy_home(ModelId model) {
  const Hosted& hosted = models_[index(model)];
  if (!hosted.weights_at) return true;
  const SlabOwner weights{model, SlabUse::kWeights};
  bool is_complete = true;
  for (std::int32_t i = 0; i < hosted.config.weight_slabs; ++i) {
    const SlabId slab{raw(*hosted.weights_at) + i};
    if (arena_.owner(slab) == weights) continue;
    if (exchange_.try_clear(slab, now_)) {
      arena_.give(slab, weights, now_);
      take_back_ops(slab);
    } else {
      is_complete = false;
    }
  }
  return is_complete;
}

void Runtime::leave_home(ModelId model) {
  const Hosted& hosted = models_[index(model)];
  if (!hosted.weights_at) return;
  for (std::int32_t i = 0; i < hosted.config.weight_slabs; ++i) {
    arena_.take_back(SlabId{raw(*hosted.weights_at) + i});
  }
}

ModelId Runtime::add_model(const ModelConfig& model) {
  check_config(model);
  check_targets(model, config_);
  if (!model.is_elastic()) {
    throw InvalidArgument("a model that is added needs min_slabs or max_slabs: slabs are moved to it");
  }
  for (const StepBuffers& set : buffers_) check_buffers(set, {model});
  (void)ModelArbiter({}, {model.device_weight});
  (void)arena_.blocks_per_slab(model.bytes_per_block);
  std::optional<SlabId> home;
  if (model.weight_slabs > 0) {
    home = find_home(model.weight_slabs);
    if (!home) {
      throw InvalidArgument("weight_slabs must be at most what can be cleared side by side, got " +
                            std::to_string(model.weight_slabs));
    }
  }
  read_inbox();  // quotas that were lowered to make room count
  settle();      // also where there is no room all the same
  const ModelId id = arena_.add_model(slab_limits({model}, arena_.num_slabs()).front(), model.weight_slabs);
  arbiter_.add_model(model.device_weight);
  host(id, model);
  attach_tiers_late(id);
  Hosted& hosted = models_.back();
  hosted.weights_at = home;
  if (home) {
    hosted.state = ModelState::kReclaiming;
    hosted.is_home = occupy_home(id);
    hosted.quiet_from = next_step_;
  }
  for (std::int32_t i = 0; i < std::ssize(models_); ++i) publish_limits(ModelId{i});
  end_what_never_fits();
  settle();
  go_on_with_changes();
  return id;
}

Runtime::Hosted& Runtime::hosted(ModelId model) {
  if (index(model) < models_.size()) return models_[index(model)];
  throw InvalidArgument("model must be a model of this runtime, got " + std::to_string(raw(model)));
}

void Runtime::remove_model(ModelId model, bool drains) {
  Hosted& removed = hosted(model);
  const ModelState removing = next_state(removed.state, ModelEvent::kRemove);
  const bool was_awake = removed.state == ModelState::kAwake;
  read_inbox();  // what is on its way counts as taken
  removed.state = removing;
  removed.drains = drains && was_awake;
  if (!was_awake) removed.weights_at.reset();  // they are elsewhere
  publish_limits(model);
  if (!removed.drains) {
    std::vector<Request*> ending;
    for (const auto& [id, request] : requests_) {
      if (request->model == model) ending.push_back(request.get());
    }
    std::ranges::sort(ending, {}, &Request::serial);
    for (Request* request : ending) drop(request, FinishReason::kCancelled);
  }
  settle();
  go_on_with_changes();
}

void Runtime::sleep(ModelId model) {
  Hosted& sleeping = hosted(model);
  sleeping.state = next_state(sleeping.state, ModelEvent::kSleep);
  sleeping.quiet_from = next_step_;
  sleeping.scheduler->preempt_all(now_);
  arena_.set_awake(model, false);
  go_on_with_changes();
}

void Runtime::wake(ModelId model) {
  Hosted& waking = hosted(model);
  waking.state = next_state(waking.state, ModelEvent::kWake);
  waking.is_home = occupy_home(model);
  waking.quiet_from = next_step_;
  arena_.set_awake(model, true);
  go_on_with_changes();
}

void Runtime::confirm_moved(ModelId model) {
  Hosted& moved = hosted(model);
  const bool goes_out = moved.state == ModelState::kMovingOut;
  moved.state = next_state(moved.state, ModelEvent::kMoved);
  if (goes_out) leave_home(model);
}

ModelState Runtime::state(ModelId model) const { return models_.at(index(model)).state; }

std::optional<SlabId> Runtime::weights_at(ModelId model) const { return models_.at(index(model)).weights_at; }

bool Runtime::may_plan(const Hosted& hosted) {
  const bool may =
      hosted.state == ModelState::kAwake || (hosted.state == ModelState::kRemoving && hosted.drains);
  return may && hosted.scheduler->has_work();
}

// Takes every change as far as it can go.
void Runtime::go_on_with_changes() {
  for (std::int32_t i = 0; i < std::ssize(models_); ++i) {
    Hosted& hosted = models_[static_cast<std::size_t>(i)];
    if (hosted.state == ModelState::kRemoving) {
      const auto is_own = [=](const InFlight& step) { return step.info.model == ModelId{i}; };
      const bool is_written = hosted.tiers && !hosted.tiers->blocks_being_loaded().empty();
      if (hosted.scheduler->has_work() || is_written || std::ranges::any_of(in_flight_, is_own)) continue;
      release_everything(ModelId{i});
    } else if (hosted.state == ModelState::kReclaiming && !hosted.is_home) {
      hosted.is_home = occupy_home(ModelId{i});
      hosted.quiet_from = next_step_;
      continue;
    } else if (!in_flight_.empty() && raw(in_flight_.front().info.step_id) < hosted.quiet_from) {
      continue;
    }
    hosted.state = next_state(hosted.state, ModelEvent::kQuiet);
  }
}

void Runtime::release_everything(ModelId model) {
  Hosted& gone = models_[index(model)];
  if (gone.tiers) {
    gone.tiers->close();
    gone.scheduler->slab_pool().drop_lost();
  }
  if (gone.source) {
    exchange_.lend(model);
    exchange_.attach(model, nullptr);
  } else {
    tell_that_all_is_gone(model);
    for (const SlabId slab : arena_.owned_by(model)) arena_.take_back(slab);
  }
  leave_home(model);
  gone.weights_at.reset();
  arena_.remove_model(model);
  gone.scheduler.reset();
  gone.source.reset();
  release_quiet_tiers(model);
  arbiter_.set_backlogged(model, false);
  for (std::int32_t i = 0; i < std::ssize(models_); ++i) {
    if (models_[static_cast<std::size_t>(i)].scheduler) publish_limits(ModelId{i});
  }
}

// Nothing is evicted from a pool that ends with its scheduler; whoever follows the events must not keep it.
void Runtime::tell_that_all_is_gone(ModelId model) {
  const KvEventSink sink(&kv_events_, model, models_[index(model)].config.block_size);
  if (!sink.enabled()) return;
  const std::vector<KvEvent> stored = kv_snapshot(model).stored;
  for (auto event = stored.rbegin(); event != stored.rend(); ++event) sink.removed(event->tier, event->hash);
}

void Runtime::replace_buffers(const std::vector<StepBuffers>& buffers) {
  const auto num_sets = static_cast<std::int64_t>(buffers.size());
  if (num_sets <= config_.steps_ahead) {
    throw InvalidArgument("buffers must hold at least " + std::to_string(config_.steps_ahead + 1) +
                          " sets, got " + std::to_string(num_sets));
  }
  if (!in_flight_.empty()) throw InvalidArgument("buffers cannot be replaced while a step is uncommitted");
  for (const StepBuffers& set : buffers) {
    for (const Hosted& model : models_) check_buffers(set, {model.config});
  }
  check_tier_buffers(buffers);
  buffers_ = buffers;
  writers_.clear();
  for (const StepBuffers& set : buffers) writers_.emplace_back(set);
}

}  // namespace airi
