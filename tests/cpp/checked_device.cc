#include "checked_device.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace airi::testing {
namespace {

// What lies where nothing has been computed, or what was has been lost.
constexpr std::uint64_t kGarbage = ~std::uint64_t{0};

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t x = (a ^ (b + 0x9E3779B97F4A7C15ULL)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 29)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 32);
}

std::size_t at(std::int64_t value) { return static_cast<std::size_t>(value); }

}  // namespace

Client::Client(const RequestSpec& request, const ModelConfig& model) : spec(request) {
  for (const std::int32_t token : request.tokens) deliver(token, model.block_size);
  most_tokens = request.max_new_tokens.value_or(model.max_model_len - static_cast<std::int32_t>(text.size()));
}

void Client::deliver(std::int32_t token, std::int32_t block_size) {
  const auto position = static_cast<std::int32_t>(text.size());
  marks.push_back(mark(position, token, block_size, mark_before(position)));
  text.push_back(token);
}

std::uint64_t Client::mark_before(std::int32_t position) const {
  return position == 0 ? mix(1, static_cast<std::uint64_t>(raw(spec.model))) : marks.at(at(position - 1));
}

std::uint64_t Client::mark(std::int32_t position, std::int32_t token, std::int32_t block_size,
                           std::uint64_t before) const {
  std::uint64_t result = mix(before, static_cast<std::uint64_t>(token));
  if (position % block_size != 0) return result;
  for (const ExtraKey& extra : spec.extras) {
    if (extra.offset / block_size != position / block_size) continue;
    result = mix(mix(result, static_cast<std::uint64_t>(extra.kind)), at(extra.offset));
    for (const std::uint8_t byte : extra.bytes) result = mix(result, byte);
  }
  return result;
}

CheckedDevice::CheckedDevice(const Setting& setting)
    : slab_granules_(setting.config.slab_bytes / kGranuleBytes),
      device_(at(setting.config.arena_bytes / kGranuleBytes)),
      host_(at(setting.config.tiers.host_bytes / kGranuleBytes)),
      disk_(at(setting.config.tiers.disk_bytes / kGranuleBytes)) {
  for (const ModelConfig& model : setting.models) add_model(model);
}

void CheckedDevice::add_model(const ModelConfig& model) { models_.emplace_back().config = model; }

void CheckedDevice::place_weights(ModelId model, std::optional<SlabId> slab) {
  if (!slab) return;
  models_.at(index(model)).weights_at = slab;
  const std::int64_t first = raw(*slab) * slab_granules_;
  const std::int64_t end = first + models_.at(index(model)).config.weight_slabs * slab_granules_;
  for (std::int64_t granule = first; granule < end; ++granule) {
    for (const Running& running : transfers_) {
      AIRI_CHECK(running.op.kind != MemoryOpKind::kLoad || granule < running.op.to ||
                 granule >= running.op.to + running.op.granules)
          << "weights come where a transfer still writes";
    }
    AIRI_CHECK(!device_.at(at(granule)).is_needed) << "weights over weights in use";
    device_.at(at(granule)) = {.owner = SlabOwner{model, SlabUse::kWeights}, .is_needed = true};
  }
}

void CheckedDevice::drop_weights(ModelId model) {
  models_.at(index(model)).weights_at.reset();
  for (Granule& granule : device_) {
    if (granule.owner == SlabOwner{model, SlabUse::kWeights}) granule.is_needed = false;
  }
}

void CheckedDevice::take(const StepInfo& info, const StepArrays& arrays, const Clients& clients) {
  Step step;
  step.info = info;
  std::int32_t decodes = 0;
  for (std::size_t i = 0; i < at(info.num_rows); ++i) {
    const auto begin = arrays.tokens.begin() + arrays.query_start[i];
    const auto end = arrays.tokens.begin() + arrays.query_start[i + 1];
    const std::int32_t start = arrays.positions[at(arrays.query_start[i])];
    const auto known = clients.find(RequestId{arrays.ids[i]});
    AIRI_CHECK(known != clients.end()) << "a row of a request that is not alive";
    step.rows.push_back(
        {known->second, arrays.slots[i], start, {begin, end}, arrays.draw[i], arrays.flags[i]});
    AIRI_CHECK(arrays.seq_lens[i] == start + (end - begin)) << "a row's length is not its end";
    check_row(info, step.rows.back());
    if (i < at(info.num_decodes)) decodes += static_cast<std::int32_t>(end - begin);
  }
  AIRI_CHECK(decodes == info.num_decodes && decodes + info.num_prefill_tokens == info.num_tokens);
  const std::int32_t most = models_.at(index(info.model)).config.max_batch_tokens;
  AIRI_CHECK(info.num_tokens <= std::max(most, info.num_decodes)) << "the step is over its budget";
  for (std::size_t i = 0; i < at(info.num_deltas); ++i) {
    const auto* delta = &arrays.deltas[3 * i];
    step.deltas.push_back({delta[0], delta[1], delta[2]});
  }
  for (std::size_t i = 0; i < at(info.num_ops); ++i) {
    const auto* op = &arrays.ops[5 * i];
    step.ops.push_back({static_cast<MemoryOpKind>(op[0]), TransferId{op[1]}, op[2], op[3], op[4]});
  }
  steps_.push_back(std::move(step));
}

// The row is the next part of the request's text, or the token that the step before it samples.
void CheckedDevice::check_row(const StepInfo& info, const Row& row) const {
  const Client& client = *row.client;
  AIRI_CHECK(client.spec.model == info.model && !client.has_ended);
  std::int32_t pending = 0;
  for (const Step& step : steps_) {
    for (std::size_t i = 0; i < step.rows.size(); ++i) {
      const bool samples = (step.rows[i].flags & kRowSample) != 0;
      if (step.rows[i].client == row.client && samples) ++pending;
    }
  }
  const auto length = static_cast<std::int32_t>(client.text.size());
  const auto end = row.start + static_cast<std::int32_t>(row.tokens.size());
  AIRI_CHECK(((row.flags & kRowSample) != 0) == (end == length + pending));
  AIRI_CHECK(((row.flags & kRowPending) != 0) == (row.start >= length) && end <= length + pending);
  if ((row.flags & kRowPending) != 0) {
    AIRI_CHECK(row.tokens == std::vector{kPendingToken});
  } else {
    AIRI_CHECK(std::equal(row.tokens.begin(), row.tokens.end(), client.text.begin() + row.start));
  }
  if ((row.flags & kRowSample) == 0) return;
  AIRI_CHECK(row.draw == length + pending - static_cast<std::int32_t>(client.spec.tokens.size()));
}

void CheckedDevice::run_next(std::int32_t token, std::uint32_t failing) {
  const auto next = std::ranges::find(steps_, false, &Step::has_run);
  if (next == steps_.end()) return;
  next->has_run = true;
  for (const MemoryOp& op : next->ops) begin(op);
  const ModelId id = next->info.model;
  Model& model = models_.at(index(id));
  check_weights(model, id);
  for (const auto& [slot, column, entry] : next->deltas) model.table[{slot, column}] = entry;
  for (std::size_t i = 0; i < next->rows.size(); ++i) {
    Row& row = next->rows[i];
    const bool fails = ((failing >> i) & 1U) != 0;
    const bool brings = (row.flags & kRowSample) != 0 && !(fails && token == 0);
    const std::int32_t sampled = run_row(model, id, row, fails, token);
    const RowStatus error = token == 1 ? RowStatus::kFailed : RowStatus::kNan;
    next->status.push_back(raw(fails ? error : RowStatus::kOk));
    next->counts.push_back(brings ? 1 : 0);
    if (brings) next->tokens.push_back(sampled);
  }
}

std::int32_t CheckedDevice::run_row(Model& model, ModelId id, Row& row, bool fails, std::int32_t token) {
  Client& client = *row.client;
  check_slot(model, row);
  model.in_slot[row.slot] = row.client;
  if ((row.flags & kRowPending) != 0) row.tokens = {model.last.at(row.slot)};
  const auto end = row.start + static_cast<std::int32_t>(row.tokens.size());
  const bool has_past = knows_past(model, row);
  AIRI_CHECK(has_past || client.has_failed || client.has_ended)
      << "what request " << raw(client.spec.id) << " has computed is not in its blocks";
  const bool is_real = !fails && has_past && !client.has_ended;
  client.has_failed = client.has_failed || fails;
  for (std::int32_t i = row.start; i < end; ++i) {
    const std::int32_t size = model.config.block_size;
    claim(model, id, model.table.at({row.slot, i / size}));
    cell(model, row, i) =
        is_real ? client.mark(i, row.tokens[at(i - row.start)], size, client.mark_before(i)) : kGarbage;
  }
  model.last[row.slot] = token;
  return token;
}

bool CheckedDevice::knows_past(Model& model, const Row& row) {
  const std::vector<std::uint64_t>& marks = row.client->marks;
  for (std::int32_t i = 0; i < row.start; ++i) {
    if (at(i) >= marks.size() || cell(model, row, i) != marks[at(i)]) return false;
  }
  return true;
}

// A slot is one request's from a row with kRowFirst on.
void CheckedDevice::check_slot(Model& model, const Row& row) const {
  if ((row.flags & kRowFirst) != 0) return;
  AIRI_CHECK(model.in_slot.at(row.slot) == row.client) << "a slot changes hands in silence";
}

void CheckedDevice::check_weights(const Model& model, ModelId id) const {
  if (!model.weights_at) return;
  const std::int64_t first = raw(*model.weights_at) * slab_granules_;
  for (std::int64_t i = 0; i < model.config.weight_slabs * slab_granules_; ++i) {
    const SlabOwner weights{id, SlabUse::kWeights};
    AIRI_CHECK(device_.at(at(first + i)).owner == weights) << "the weights of " << raw(id) << " are gone";
  }
}

std::uint64_t& CheckedDevice::cell(Model& model, const Row& row, std::int32_t position) {
  const std::int32_t size = model.config.block_size;
  const std::int32_t entry = model.table.at({row.slot, position / size});
  return device_.at(at(entry)).marks.at(at(position % size));
}

// A row of the model writes into the block: nobody else's bytes lie there, and no transfer writes to it.
void CheckedDevice::claim(const Model& model, ModelId id, std::int32_t entry) {
  const SlabOwner kv{id, SlabUse::kKv};
  for (std::int64_t i = 0; i < model.config.bytes_per_block / kGranuleBytes; ++i) {
    std::optional<SlabOwner>& owner = device_.at(at(entry + i)).owner;
    AIRI_CHECK(!owner || owner == kv) << "model " << raw(id) << " writes over bytes of " << raw(owner->model);
    owner = kv;
  }
  for (const Running& running : transfers_) {
    AIRI_CHECK(running.op.kind != MemoryOpKind::kLoad || running.op.to != entry)
        << "a row writes into a block that is being loaded";
  }
}

void CheckedDevice::begin(const MemoryOp& op) {
  if (op.kind == MemoryOpKind::kZero) return zero(op);
  check_places(op);
  Running running;
  running.op = op;
  if (op.kind == MemoryOpKind::kStore) {
    const auto first = device_.begin() + op.from;
    running.content.assign(first, first + op.granules);
  }
  transfers_.push_back(std::move(running));
}

void CheckedDevice::zero(const MemoryOp& op) {
  for (std::int64_t granule = op.from; granule < op.from + op.granules; ++granule) {
    AIRI_CHECK(!device_.at(at(granule)).is_needed) << "weights in use become zero";
    for (const Running& running : transfers_) {
      AIRI_CHECK(running.op.kind != MemoryOpKind::kLoad || running.op.to != granule)
          << "what is being loaded becomes zero";
    }
    device_.at(at(granule)) = {};
  }
}

// Nobody reads what is being written, nor writes what is being read. Of the device only the target of a load
// counts: stores have read when the step's rows run.
void CheckedDevice::check_places(const MemoryOp& op) const {
  const auto from_host = [](MemoryOpKind k) { return k == MemoryOpKind::kLoad || k == MemoryOpKind::kSpill; };
  const auto to_host = [](MemoryOpKind k) { return k == MemoryOpKind::kStore || k == MemoryOpKind::kFetch; };
  for (const Running& running : transfers_) {
    const MemoryOp& other = running.op;
    const bool reads_write = from_host(op.kind) && to_host(other.kind) && op.from == other.to;
    const bool writes_read = to_host(op.kind) && from_host(other.kind) && op.to == other.from;
    const bool same_target =
        op.to == other.to && (op.kind == other.kind || (to_host(op.kind) && to_host(other.kind)));
    const bool disk_read =
        op.kind == MemoryOpKind::kFetch && other.kind == MemoryOpKind::kSpill && op.from == other.to;
    const bool disk_write =
        op.kind == MemoryOpKind::kSpill && other.kind == MemoryOpKind::kFetch && op.to == other.from;
    const bool stores_load =
        op.kind == MemoryOpKind::kStore && other.kind == MemoryOpKind::kLoad && op.from == other.to;
    AIRI_CHECK(!reads_write && !writes_read && !same_target && !disk_read && !disk_write && !stores_load)
        << "transfer " << raw(op.id) << " meets transfer " << raw(other.id);
    AIRI_CHECK(op.id != other.id);
  }
}

CheckedDevice::Memory& CheckedDevice::source(MemoryOpKind kind) {
  return kind == MemoryOpKind::kFetch ? disk_ : kind == MemoryOpKind::kStore ? device_ : host_;
}

CheckedDevice::Memory& CheckedDevice::target(MemoryOpKind kind) {
  return kind == MemoryOpKind::kLoad ? device_ : kind == MemoryOpKind::kSpill ? disk_ : host_;
}

Inbox::TransferReport CheckedDevice::end_transfer(std::size_t place, bool is_ok, Micros micros) {
  const Running done = std::move(transfers_.at(place));
  transfers_.erase(transfers_.begin() + static_cast<std::ptrdiff_t>(place));
  Memory& to = target(done.op.kind);
  for (std::int64_t i = 0; i < done.op.granules; ++i) {
    const Granule& content = done.op.kind == MemoryOpKind::kStore
                                 ? done.content.at(at(i))
                                 : source(done.op.kind).at(at(done.op.from + i));
    AIRI_CHECK(!to.at(at(done.op.to + i)).is_needed) << "a transfer writes over weights";
    to.at(at(done.op.to + i)).marks = content.marks;
    if (!is_ok) to.at(at(done.op.to + i)).marks.fill(kGarbage);
  }
  return {.id = done.op.id, .ok = is_ok, .micros = micros};
}

void CheckedDevice::commit_next(Runtime& runtime, Micros device_time) {
  if (!steps_.front().has_run) run_next(0, 0);
  const Step step = std::move(steps_.front());
  steps_.erase(steps_.begin());
  runtime.commit(step.info.step_id, step.tokens, step.counts, step.status, device_time);
  auto token = step.tokens.begin();
  for (std::size_t i = 0; i < step.rows.size(); ++i) {
    Client& client = *step.rows[i].client;
    const bool delivers = step.counts[i] == 1 && step.status[i] == raw(RowStatus::kOk);
    if (delivers && !client.has_ended) {
      client.deliver(*token, models_.at(index(client.spec.model)).config.block_size);
    }
    if (step.counts[i] == 1) ++token;
  }
}

}  // namespace airi::testing
