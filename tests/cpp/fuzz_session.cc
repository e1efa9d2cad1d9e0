#include "fuzz_session.h"

#include <algorithm>
#include <span>
#include <utility>

#include "base/check.h"

namespace airi::testing {
namespace {

constexpr std::size_t kMostModels = 6;
constexpr std::size_t kAll = 1 << 12;

}  // namespace

FuzzSession::FuzzSession(Bytes& bytes)
    : bytes_(bytes), setting_(draw_setting(bytes)), models_(setting_.models), device_(setting_) {
  // Of models that share what is left, one with a small part may be left with nothing.
  if (is_refused([&] { runtime_ = std::make_unique<Runtime>(setting_.config, models_, new_buffers()); }))
    return;
  for (std::int32_t i = 0; i < std::ssize(models_); ++i) {
    device_.place_weights(ModelId{i}, runtime().weights_at(ModelId{i}));
  }
  if (bytes.below(2) == 0) teach_models();
  loses_transfers_ = bytes.below(8) == 0;
}

std::vector<StepBuffers> FuzzSession::new_buffers() {
  arrays_.assign(setting_.num_sets, StepArrays(models_, setting_.num_ops));
  std::vector<StepBuffers> buffers;
  for (StepArrays& arrays : arrays_) buffers.push_back(arrays.buffers());
  return buffers;
}

void FuzzSession::run() {
  if (!runtime_) return;
  while (!bytes_.empty()) {
    const std::int32_t what = bytes_.below(40);
    if (what < 12) submit();
    if (what == 12) cancel();
    if (what == 13) set_weight();
    if (what == 14 || what == 22) set_quota();
    if (what == 15) change_models();
    if (what == 16 && bytes_.below(3) == 0) add_model();
    if (what == 17) replace_buffers();
    if (what == 18) teach_or_be_rude();
    if (what == 19) report_nonsense();
    if (what == 20) move_clock();
    if (what == 21) read_rings(static_cast<std::size_t>(bytes_.below(40)));
    if (what == 23) device_.run_next(bytes_.below(3), 0);
    if (what == 24) commit();
    if (what >= 25 && what < 28) end_transfers(false);
    if (what >= 28) step();
    collect();
    check();
  }
  finish();
}

void FuzzSession::submit() {
  const RequestSpec spec = draw_request(bytes_, setting_.config, models_.size(), now_);
  const ModelConfig& model = models_[index(spec.model)];
  const bool is_alive = clients_.contains(spec.id);
  const ModelState state = runtime().state(spec.model);
  const auto prompt = static_cast<std::int32_t>(spec.tokens.size());
  const bool is_long = prompt + spec.max_new_tokens.value_or(1) > model.max_model_len;
  const bool is_gone = state == ModelState::kRemoving || state == ModelState::kRemoved;
  const Admit admit = runtime().submit(spec);
  AIRI_CHECK((admit == Admit::kModelGone) == is_gone);
  AIRI_CHECK((admit == Admit::kTooLong) == (is_long && !is_gone));
  AIRI_CHECK(admit != Admit::kDuplicateId || is_alive) << "a dead id counts as live";
  if (admit != Admit::kAccepted) return;
  AIRI_CHECK(!is_alive) << "a live id was accepted again";
  clients_.emplace(spec.id, std::make_shared<Client>(spec, model));
  ++num_accepted_;
}

void FuzzSession::cancel() {
  const RequestId id{bytes_.below(kNumIds)};
  const auto known = clients_.find(id);
  AIRI_CHECK(runtime().cancel(id) == (known != clients_.end()));
  if (known != clients_.end()) known->second->may_cancel = true;
}

void FuzzSession::set_weight() {
  const TenantId tenant{bytes_.below(kNumTenants)};
  runtime().set_tenant(tenant, 0.25 * (1 + bytes_.below(8)));
}

void FuzzSession::set_quota() {
  memory_shrank_ = true;
  const TenantId tenant{bytes_.below(kNumTenants)};
  const ModelId model = draw_model();
  runtime().set_kv_quota(tenant, model, bytes_.below(bytes_.one_in(6) ? 200 : 8));
}

void FuzzSession::step() {
  const bool is_full = device_.num_uncommitted() > static_cast<std::size_t>(setting_.config.steps_ahead);
  std::optional<StepInfo> planned;
  if (is_full) {
    AIRI_CHECK(is_refused([&] { (void)runtime().step(now_); }));
  } else {
    latest_ = std::max(latest_, now_);
    planned = runtime().step(now_);
    collect();
    if (planned) device_.take(*planned, arrays_.at(static_cast<std::size_t>(planned->buffer)), clients_);
    std::int64_t standing = 0;
    for (const ModelStats& stats : runtime().stats()) standing += stats.waiting + stats.running;
    AIRI_CHECK(standing == std::ssize(clients_)) << standing << " requests stand somewhere";
  }
  // As many are left uncommitted as there can be, or one less: whatever is called next must cope with both.
  if (!planned || bytes_.below(3) == 0) commit();
}

void FuzzSession::commit() {
  if (device_.num_uncommitted() == 0) return;
  const std::int32_t rough = bytes_.below(24);
  const auto failing = rough == 23 ? static_cast<std::uint32_t>(bytes_.below(64)) : 0;
  device_.run_next(bytes_.below(3), failing);
  last_device_time_ = rough == 22 ? 0 : rough == 21 && bytes_.one_in(8) ? kMaxMicros : bytes_.below(120);
  device_.commit_next(runtime(), last_device_time_);
  collect();  // what has ended gets no token of a step that is still uncommitted
  if (last_device_time_ < kMaxMicros) now_ = now_ + last_device_time_ + 1;
}

void FuzzSession::replace_buffers() {
  if (bytes_.below(3) != 0) return;
  while (device_.num_uncommitted() > 0) commit();
  const std::size_t num_ops =
      std::exchange(setting_.num_ops, static_cast<std::size_t>(16 + bytes_.below(40)));
  setting_.num_sets = static_cast<std::size_t>(setting_.config.steps_ahead) + (bytes_.below(2) == 0 ? 1 : 2);
  std::vector<StepArrays> old = std::move(arrays_);
  if (!is_refused([&] { runtime().replace_buffers(new_buffers()); })) return;
  // The step that is next has more operations already than these would hold.
  AIRI_CHECK(setting_.num_ops < num_ops && setting_.config.tiers.host_bytes > 0);
  arrays_ = std::move(old);
  setting_.num_ops = num_ops;
  setting_.num_sets = arrays_.size();
}

void FuzzSession::teach_or_be_rude() {
  if (bytes_.below(4) == 0) {
    teach_models();
  } else {
    be_rude();
  }
}

void FuzzSession::teach_models() {
  StepTimeModel& model = runtime().step_time(draw_model());
  teach(bytes_, model);
  StepTimeModel& other = runtime().step_time(draw_model());
  if (bytes_.below(2) == 0) other.import_state(model.export_state());
}

bool FuzzSession::move_weights(ModelId model) {
  const ModelState state = runtime().state(model);
  if (state == ModelState::kMovingIn) device_.place_weights(model, runtime().weights_at(model));
  if (state == ModelState::kMovingOut) device_.drop_weights(model);
  if (state != ModelState::kMovingIn && state != ModelState::kMovingOut) return false;
  runtime().confirm_moved(model);
  return true;
}

void FuzzSession::change_models() {
  const ModelId model = draw_model();
  const ModelState state = runtime().state(model);
  if (move_weights(model)) return;
  const bool is_settled = state == ModelState::kAwake || state == ModelState::kAsleep;
  if (is_settled && bytes_.one_in(6)) {
    const bool drains = bytes_.below(2) == 0;
    for (const auto& [id, client] : clients_) {
      if (client->spec.model == model && (!drains || state == ModelState::kAsleep)) client->may_cancel = true;
    }
    return runtime().remove_model(model, drains);
  }
  if (state == ModelState::kAwake) return runtime().sleep(model);
  if (state == ModelState::kAsleep) return runtime().wake(model);
  AIRI_CHECK(is_refused([&] { runtime().sleep(model); }) && is_refused([&] { runtime().wake(model); }));
  AIRI_CHECK(is_refused([&] { runtime().confirm_moved(model); }));
}

void FuzzSession::add_model() {
  if (models_.size() == kMostModels) return;
  models_.push_back(draw_elastic_model(bytes_, setting_.config));
  const bool replaces_buffers = bytes_.below(2) == 0;  // else it comes beside steps in flight, if it fits
  while (replaces_buffers && device_.num_uncommitted() > 0) commit();
  collect();
  const std::vector<StepArrays> old = replaces_buffers ? std::move(arrays_) : std::vector<StepArrays>{};
  if (replaces_buffers) runtime().replace_buffers(new_buffers());
  if (is_refused([&] { (void)runtime().add_model(models_.back()); })) {
    models_.pop_back();
    AIRI_CHECK(runtime().stats().size() == models_.size());
    return;
  }
  device_.add_model(models_.back());
  memory_shrank_ = true;
}

// What no engine should do changes nothing.
void FuzzSession::be_rude() {
  const ModelId unknown{static_cast<std::int32_t>(models_.size())};
  switch (bytes_.below(6)) {
    case 0:
      AIRI_CHECK(is_refused([&] { runtime().set_kv_quota(TenantId{0}, unknown, 1); }));
      AIRI_CHECK(is_refused([&] { runtime().set_kv_quota(TenantId{0}, ModelId{0}, -1); }));
      return;
    case 1:
      AIRI_CHECK(is_refused([&] { runtime().sleep(unknown); }));
      AIRI_CHECK(is_refused([&] { runtime().remove_model(unknown, false); }));
      return;
    case 2:
      AIRI_CHECK(is_refused([&] { runtime().commit(StepId{-1}, {}, {}, {}, 0); }));
      return;
    case 3:
      AIRI_CHECK(is_refused([&] { (void)runtime().step(TimePoint{kMaxMicros} + 1); }));
      return;
    case 4:
      AIRI_CHECK(is_refused([&] { runtime().replace_buffers({}); }));
      return;
    default: {
      RequestSpec spec;
      spec.model = unknown;
      AIRI_CHECK(is_refused([&] { (void)runtime().submit(spec); }));
    }
  }
}

void FuzzSession::end_transfers(bool all) {
  std::vector<Inbox::TransferReport> reports;
  std::int32_t count = all ? 1 << 20 : loses_transfers_ ? 0 : 1 + bytes_.below(6);
  while (device_.num_transfers() > 0 && count-- > 0) {
    const auto place = static_cast<std::size_t>(bytes_.below(256)) % device_.num_transfers();
    const bool is_ok = !bytes_.one_in(6);
    reports.push_back(device_.end_transfer(place, is_ok, bytes_.below(200)));
    ended_transfers_.push_back(reports.back().id);
  }
  runtime().complete_transfers(reports);
}

// Reports of what has ended before, or was never begun.
void FuzzSession::report_nonsense() {
  std::vector<Inbox::TransferReport> reports;
  for (std::int32_t i = bytes_.below(4); i > 0; --i) {
    TransferId id{bytes_.below(2) == 0 ? -1 - bytes_.below(4) : (std::int64_t{1} << 40) + bytes_.below(4)};
    if (!ended_transfers_.empty() && bytes_.below(2) == 0) {
      id = ended_transfers_[static_cast<std::size_t>(bytes_.below(256)) % ended_transfers_.size()];
    }
    reports.push_back({.id = id, .ok = bytes_.below(2) == 0, .micros = bytes_.below(200) - 20});
  }
  runtime().complete_transfers(reports);
}

void FuzzSession::move_clock() {
  switch (bytes_.below(5)) {
    case 0:
      now_ = now_ + -Micros{bytes_.below(250)};
      return;
    case 1:
      now_ = now_ + Micros{1000} * bytes_.below(200);
      return;
    case 2:
      now_ = now_ + -(last_device_time_ < kMaxMicros ? last_device_time_ + 1 : 0);  // it stood still
      return;
    default:
      now_ = now_ + bytes_.below(250);
  }
}

void FuzzSession::read_rings(std::size_t most) {
  lazy_.follow(runtime(), models_.size(), most);
  decisions_.follow(runtime(), most);
}

void FuzzSession::collect() {
  for (const FinishedEvent& event : runtime().drain_events()) {
    const auto known = clients_.find(event.request_id);
    AIRI_CHECK(known != clients_.end()) << "request " << raw(event.request_id) << " ended twice";
    check_end(event, *known->second);
    known->second->has_ended = true;
    clients_.erase(known);
    ++num_ended_;
  }
  drop_what_is_gone();
}

void FuzzSession::check_end(const FinishedEvent& event, const Client& client) const {
  const auto prompt = static_cast<std::int32_t>(client.spec.tokens.size());
  const auto generated = static_cast<std::int32_t>(client.text.size()) - prompt;
  AIRI_CHECK(event.model == client.spec.model && event.num_prompt_tokens == prompt);
  AIRI_CHECK(event.num_generated_tokens == generated)
      << event.num_generated_tokens << " tokens counted, " << generated << " delivered";
  AIRI_CHECK(event.num_cached_tokens >= 0 && event.num_cached_tokens < prompt);
  AIRI_CHECK(event.num_cached_tokens == 0 || !client.spec.compute_all);
  AIRI_CHECK(generated <= client.most_tokens);
  AIRI_CHECK(may_end(event.reason, client))
      << "request " << raw(event.request_id) << " ended by " << int{raw(event.reason)};
}

bool FuzzSession::may_end(FinishReason reason, const Client& client) const {
  const auto generated = static_cast<std::int32_t>(client.text.size() - client.spec.tokens.size());
  // Without a limit of its own a request may be given less than its minimum: what its model has memory for.
  const std::int32_t most = client.spec.max_new_tokens.value_or(generated);
  const std::int32_t least = std::min(client.spec.min_new_tokens, most);
  const bool is_stop =
      generated > 0 && generated >= least && std::ranges::count(client.spec.stop_ids, client.text.back()) > 0;
  switch (reason) {
    case FinishReason::kStop:
      return is_stop;
    case FinishReason::kLength:
      return !is_stop && (!client.spec.max_new_tokens || generated == client.most_tokens);
    case FinishReason::kCancelled:
      return client.may_cancel;
    case FinishReason::kDeadline:
      return client.spec.deadline && *client.spec.deadline <= latest_;
    case FinishReason::kFailed:
    case FinishReason::kNan:
      return client.has_failed;
    case FinishReason::kNeverFits:
      return memory_shrank_;
  }
  return false;
}

void FuzzSession::check() {
  runtime().check_invariants();
  eager_.follow(runtime(), models_.size(), kAll);
  AIRI_CHECK(runtime().has_work() == !clients_.empty());
  const std::vector<ModelStats> stats = runtime().stats();
  for (std::size_t i = 0; i < stats.size(); ++i) {
    // What is FREE in a slab that drains is nobody's.
    const std::int64_t counted = stats[i].free_blocks + stats[i].cached_blocks + stats[i].active_blocks;
    AIRI_CHECK(counted == stats[i].capacity || (models_[i].is_elastic() && counted < stats[i].capacity));
  }
}

// Nobody needs the weights of a model that is gone.
void FuzzSession::drop_what_is_gone() {
  for (std::int32_t i = 0; i < std::ssize(runtime().stats()); ++i) {
    if (runtime().state(ModelId{i}) == ModelState::kRemoved) device_.drop_weights(ModelId{i});
  }
}

void FuzzSession::wake_all() {
  for (std::int32_t i = 0; i < std::ssize(models_); ++i) {
    if (!move_weights(ModelId{i}) && runtime().state(ModelId{i}) == ModelState::kAsleep) {
      runtime().wake(ModelId{i});
    }
  }
}

// Every request ends by itself, whatever transfers do within their time.
void FuzzSession::finish() {
  for (int i = 0; runtime().has_work(); ++i) {
    AIRI_CHECK(i < 20'000) << clients_.size() << " requests never end";
    wake_all();
    const std::size_t before = device_.num_uncommitted();
    step();
    collect();
    check();
    now_ = std::max(now_, latest_) + 1;
    // What is never loaded is given up when its time is over; the blocks are the transfer's until it ends.
    if (before == 0 && device_.num_uncommitted() == 0 && i % 4 == 3) {
      const Micros timeout = setting_.config.tiers.load_timeout_us;
      if (timeout < kMaxMicros) now_ = now_ + timeout;
      if (!loses_transfers_ || timeout == kMaxMicros || i % 64 == 63) end_transfers(true);
    }
  }
  let_go();
}

// Nothing is held once all that was handed out has ended.
void FuzzSession::let_go() {
  while (device_.num_uncommitted() > 0) commit();
  for (int i = 0; i < 3 || device_.num_transfers() > 0; ++i) {
    AIRI_CHECK(i < 1000) << "transfers without end";
    end_transfers(true);
    step();
    collect();
    check();
  }
  AIRI_CHECK(clients_.empty() && num_accepted_ == num_ended_) << clients_.size() << " requests vanished";
  for (const ModelStats& stats : runtime().stats()) {
    AIRI_CHECK(stats.active_blocks == 0) << stats.active_blocks << " blocks leaked";
  }
  read_rings(kAll);
  if (!lazy_.is_behind(runtime())) lazy_.follow(runtime(), models_.size(), 1);
  decisions_.check_counts(num_accepted_, num_ended_);
}

}  // namespace airi::testing
