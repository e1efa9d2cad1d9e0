#include <pybind11/functional.h>
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kv/memory_op.h"
#include "kv/tier_cache.h"
#include "kv/tier_space.h"
#include "kv/transfers.h"
#include "sched/load_split.h"

// The copies of blocks beyond the device, and what they cost; for tests. Lists cross here.

namespace py = pybind11;

namespace airi::bindings {
namespace {

using OpTuple = std::tuple<MemoryOpKind, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

Transfers::Rates to_rates(const std::vector<double>& rates) {
  if (rates.size() != kNumMemoryOpKinds) {
    throw InvalidArgument("rates must be one per kind of operation, got " + std::to_string(rates.size()));
  }
  Transfers::Rates to{};
  std::ranges::copy(rates, to.begin());
  return to;
}

std::vector<std::int64_t> multiples(std::int32_t count, std::int64_t of) {
  std::vector<std::int64_t> granules;
  for (std::int32_t i = 0; i < count; ++i) granules.push_back(i * of);
  return granules;
}

// A cache with what it refers to; blocks, slots and entries lie one after the other.
class PyTierCache {
 public:
  PyTierCache(std::int32_t entries, std::int32_t blocks, std::int32_t host, std::int32_t disk,
              std::int64_t granules, std::int32_t store_on_reuse, const std::vector<double>& rates)
      : num_entries_(entries), num_blocks_(blocks), transfers_(to_rates(rates)) {
    std::vector<std::int32_t> device;
    for (const std::int64_t at : multiples(blocks, granules)) device.push_back(static_cast<std::int32_t>(at));
    cache_ = std::make_unique<TierCache>(
        TierOptions{.granules_per_block = granules, .store_on_reuse = store_on_reuse}, std::move(device),
        num_entries_, TierSlots(multiples(host, granules)), TierSlots(multiples(disk, granules)), transfers_,
        ops_);
  }

  [[nodiscard]] EntryId entry(std::int32_t id) const {
    if (id >= 0 && id < num_entries_) return EntryId{id};
    throw InvalidArgument("entry must lie in [0, " + std::to_string(num_entries_) + "), got " +
                          std::to_string(id));
  }
  [[nodiscard]] BlockId block(std::int32_t id) const {
    if (id >= 0 && id < num_blocks_) return BlockId{id};
    throw InvalidArgument("block must lie in [0, " + std::to_string(num_blocks_) + "), got " +
                          std::to_string(id));
  }
  [[nodiscard]] TierCache& cache() noexcept { return *cache_; }
  [[nodiscard]] MemoryOps& ops() noexcept { return ops_; }
  [[nodiscard]] Transfers& transfers() noexcept { return transfers_; }

 private:
  std::int32_t num_entries_;
  std::int32_t num_blocks_;
  Transfers transfers_;
  MemoryOps ops_;
  std::unique_ptr<TierCache> cache_;
};

std::vector<OpTuple> step_ops(PyTierCache& self) {
  std::vector<OpTuple> rows;
  for (const MemoryOp& op : self.ops().step())
    rows.emplace_back(op.kind, raw(op.id), op.from, op.to, op.granules);
  return rows;
}

std::optional<bool> complete(PyTierCache& self, std::int64_t id, TransferEnd end, std::int64_t micros) {
  const auto transfer = self.transfers().end(TransferId{id}, end, micros);
  if (!transfer) return std::nullopt;
  return self.cache().complete(*transfer, end);
}

std::int64_t load(PyTierCache& self, std::int32_t entry, std::int32_t block) {
  if (self.cache().source(self.entry(entry)) != TierCache::Source::kHost) {
    throw InvalidArgument("entry " + std::to_string(entry) + " has no host copy to load");
  }
  return raw(self.cache().load(self.entry(entry), self.block(block), 0));
}

std::optional<std::int64_t> fetch(PyTierCache& self, std::int32_t entry) {
  if (self.cache().source(self.entry(entry)) != TierCache::Source::kDisk) {
    throw InvalidArgument("entry " + std::to_string(entry) + " has no disk copy to fetch");
  }
  const auto id = self.cache().fetch(self.entry(entry));
  return id ? std::optional(raw(*id)) : std::nullopt;
}

std::vector<std::int32_t> take_lost(PyTierCache& self) {
  std::vector<std::int32_t> ids;
  for (const EntryId entry : self.cache().lost()) ids.push_back(raw(entry));
  self.cache().lost().clear();
  return ids;
}

std::pair<std::int64_t, std::int64_t> to_pair(const TierRange& range) { return {range.first, range.count}; }

void bind_space(py::module_& m) {
  using namespace pybind11::literals;
  py::class_<TierSpace>(m, "TierSpace", "Which granules of a tier no model has. Ranges are (first, count).")
      .def(py::init<std::int64_t>(), "granules"_a)
      .def(
          "take", [](TierSpace& self, std::int64_t most) { return to_pair(self.take(most)); }, "most"_a)
      .def(
          "give_back",
          [](TierSpace& self, const std::pair<std::int64_t, std::int64_t>& range) {
            self.give_back({range.first, range.second});
          },
          "range"_a)
      .def("free", [](const TierSpace& self) {
        std::vector<std::pair<std::int64_t, std::int64_t>> free;
        for (const TierRange& range : self.free()) free.push_back(to_pair(range));
        return free;
      });
}

void bind_cache(py::module_& m) {
  using namespace pybind11::literals;
  py::class_<PyTierCache>(m, "TierCache", "Copies of one model's blocks in host memory and on disk.")
      .def(py::init<std::int32_t, std::int32_t, std::int32_t, std::int32_t, std::int64_t, std::int32_t,
                    const std::vector<double>&>(),
           py::kw_only(), "entries"_a, "blocks"_a, "host"_a, "disk"_a, "granules"_a, "store_on_reuse"_a,
           "rates"_a)
      .def(
          "begin_step",
          [](PyTierCache& s, std::int32_t capacity) {
            s.ops().end_step();
            s.ops().begin_step(capacity);
          },
          "capacity"_a)
      .def("ops", &step_ops, "Rows (kind, id, from, to, granules) of this step.")
      .def(
          "source", [](PyTierCache& s, std::int32_t e) { return s.cache().source(s.entry(e)); }, "entry"_a)
      .def(
          "keeps", [](PyTierCache& s, std::int32_t e) { return s.cache().keeps(s.entry(e)); }, "entry"_a)
      .def(
          "on_reuse",
          [](PyTierCache& s, std::int32_t e, std::int32_t b) { s.cache().on_reuse(s.entry(e), s.block(b)); },
          "entry"_a, "block"_a)
      .def(
          "store",
          [](PyTierCache& s, std::int32_t e, std::int32_t b) {
            return s.cache().store(s.entry(e), s.block(b));
          },
          "entry"_a, "block"_a)
      .def(
          "pin",
          [](PyTierCache& s, std::int32_t e) {
            const TierPin pin = s.cache().pin(s.entry(e));
            return std::pair(raw(pin.slot), pin.copy);
          },
          "entry"_a)
      .def(
          "unpin",
          [](PyTierCache& s, const std::pair<std::int32_t, std::uint64_t>& pin) {
            if (pin.first < 0 || pin.first >= s.cache().host().size())
              throw InvalidArgument("pin of no slot");
            s.cache().unpin({TierSlot{pin.first}, pin.second});
          },
          "pin"_a)
      .def("load", &load, "entry"_a, "block"_a)
      .def("fetch", &fetch, "entry"_a)
      .def("complete", &complete, "id"_a, "end"_a, "micros"_a)
      .def(
          "cancel_waiting", [](PyTierCache& s, std::int64_t id) { return s.ops().cancel(TransferId{id}); },
          "id"_a)
      .def(
          "forget", [](PyTierCache& s, std::int32_t e) { s.cache().forget(s.entry(e)); }, "entry"_a)
      .def("spill_oldest", [](PyTierCache& s) { s.cache().spill_oldest(); })
      .def("take_lost", &take_lost)
      .def(
          "estimate",
          [](PyTierCache& s, MemoryOpKind kind, std::int64_t count) {
            return s.transfers().estimate(kind, count, s.cache().block_bytes());
          },
          "kind"_a, "count"_a)
      .def(
          "forget_some", [](PyTierCache& s, MemoryOpKind kind) { s.transfers().forget_some(kind); }, "kind"_a)
      .def_property_readonly(
          "num_free",
          [](PyTierCache& s) { return std::pair(s.cache().host().num_free(), s.cache().disk().num_free()); })
      .def_property_readonly("num_pending", [](PyTierCache& s) { return s.transfers().num_pending(); })
      .def("check_invariants", [](PyTierCache& s) { s.cache().check_invariants(); });
}

}  // namespace

void bind_tiers(py::module_& parts) {
  using namespace pybind11::literals;
  py::native_enum<TierCache::Source>(parts, "TierSource", "enum.IntEnum", "Where a copy can be read.")
      .value("NONE", TierCache::Source::kNone)
      .value("HOST", TierCache::Source::kHost)
      .value("DISK", TierCache::Source::kDisk)
      .value("ARRIVING", TierCache::Source::kArriving)
      .finalize();
  py::native_enum<TransferEnd>(parts, "TransferEnd", "enum.IntEnum", "What became of a transfer.")
      .value("DONE", TransferEnd::kDone)
      .value("FAILED", TransferEnd::kFailed)
      .value("CANCELLED", TransferEnd::kCancelled)
      .finalize();
  bind_cache(parts);
  bind_space(parts);
  parts.def("prefill_micros", &prefill_micros, "model"_a, "begin"_a, "end"_a, "chunk"_a,
            "Microseconds that prefilling tokens [begin, end) takes in steps of `chunk` tokens.");
  parts.def(
      "best_load",
      [](const StepTimeModel& model, std::int32_t start, std::int32_t num_blocks, std::int32_t length,
         std::int32_t block_size, std::int32_t chunk,
         const std::function<double(std::int32_t)>& load_micros) {
        if (start < 0 || num_blocks < 0 || block_size < 1 || chunk < 1 ||
            length <= start + num_blocks * block_size) {
          throw InvalidArgument("length must exceed start + num_blocks * block_size, got " +
                                std::to_string(length));
        }
        return best_load(model, {start, num_blocks, length, block_size, chunk}, load_micros);
      },
      "model"_a, "start"_a, "num_blocks"_a, "length"_a, "block_size"_a, "chunk"_a, "load_micros"_a,
      "How many leading blocks to load, and not to compute.");
}

}  // namespace airi::bindings
