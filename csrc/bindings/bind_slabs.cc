#include <pybind11/functional.h>
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kv/slab_arena.h"
#include "kv/slab_exchange.h"
#include "model_lifecycle.h"

// Slabs and who has them; for tests. Lists and callbacks cross here.

namespace py = pybind11;

namespace airi::bindings {
namespace {

SlabId to_slab(const SlabArena& arena, std::int32_t slab) {
  if (slab >= 0 && slab < arena.num_slabs()) return SlabId{slab};
  throw InvalidArgument("slab must lie in [0, " + std::to_string(arena.num_slabs()) + "), got " +
                        std::to_string(slab));
}

// A model of PySlabExchange: what a test says that its requests need, and a pool that the test fills.
class PyHolder final : public SlabHolder {
 public:
  PyHolder(const SlabShape& shape, std::int32_t id, std::function<void(std::int32_t, std::int32_t)>& vacate)
      : pool_(shape, 1), id_(id), vacate_(vacate) {}

  [[nodiscard]] BlockPool& slab_pool() noexcept override { return pool_; }
  [[nodiscard]] std::int32_t num_promised() const noexcept override { return promised; }
  [[nodiscard]] std::int64_t num_wanted() const noexcept override { return wanted; }
  [[nodiscard]] bool is_running() const noexcept override { return pool_.num_active() > 0; }
  void vacate(SlabId slab, TimePoint /*now*/) override { vacate_(id_, raw(slab)); }

  std::int32_t promised = 0;
  std::int64_t wanted = 0;

 private:
  BlockPool pool_;
  std::int32_t id_;
  std::function<void(std::int32_t, std::int32_t)>& vacate_;
};

// An arena of one-granule blocks with an exchange between the pools of its models.
class PySlabExchange {
 public:
  PySlabExchange(std::int32_t num_slabs, std::int32_t blocks_per_slab, std::int64_t hysteresis_us,
                 std::function<void(std::int32_t, std::int32_t)> vacate)
      : per_slab_(blocks_per_slab),
        arena_(std::int64_t{num_slabs} * blocks_per_slab * kGranuleBytes, blocks_per_slab * kGranuleBytes),
        exchange_(arena_, hysteresis_us),
        vacate_(std::move(vacate)) {}

  std::int32_t add_model(std::int32_t min, std::int32_t max, double weight) {
    const ModelId id = arena_.add_model({.min = min, .max = max, .weight = weight}, 0);
    holders_.emplace_back(SlabShape{arena_.num_slabs(), per_slab_}, raw(id), vacate_);
    exchange_.attach(id, &holders_.back());
    return raw(id);
  }
  [[nodiscard]] PyHolder& holder(std::int32_t model) {
    if (model >= 0 && static_cast<std::size_t>(model) < holders_.size()) {
      return holders_[static_cast<std::size_t>(model)];
    }
    throw InvalidArgument("model must be one of the exchange, got " + std::to_string(model));
  }
  // Whether the pool grew, and the slabs to be zeroed.
  std::pair<bool, std::vector<std::int64_t>> grow(std::int32_t model, std::int32_t blocks, std::int64_t now,
                                                  std::int32_t room) {
    (void)holder(model);
    ops_.begin_step(room);
    const bool grew = exchange_.grow(ModelId{model}, blocks, TimePoint{now}, ops_);
    std::vector<std::int64_t> zeroed;
    for (const MemoryOp& op : ops_.step()) zeroed.push_back(op.from / per_slab_);
    ops_.end_step();
    return {grew, zeroed};
  }
  void set_awake(std::int32_t model, bool is_awake) {
    (void)holder(model);
    arena_.set_awake(ModelId{model}, is_awake);
  }
  void lend(std::int32_t model) {
    (void)holder(model);
    exchange_.lend(ModelId{model});
  }
  [[nodiscard]] SlabArena& arena() noexcept { return arena_; }
  [[nodiscard]] SlabExchange& exchange() noexcept { return exchange_; }

 private:
  std::int32_t per_slab_;
  SlabArena arena_;
  SlabExchange exchange_;
  MemoryOps ops_;
  std::function<void(std::int32_t, std::int32_t)> vacate_;
  std::deque<PyHolder> holders_;
};

std::optional<std::int32_t> kv_owner(const SlabArena& arena, std::int32_t slab) {
  const auto owner = arena.owner(to_slab(arena, slab));
  return owner ? std::optional(raw(owner->model)) : std::nullopt;
}

void bind_arena(const py::module_& m) {
  using namespace pybind11::literals;
  py::class_<SlabArena>(m, "SlabArena", "Who owns which slab of one device's arena.")
      .def(py::init<std::int64_t, std::int64_t>(), "arena_bytes"_a, "slab_bytes"_a)
      .def_property_readonly("num_slabs", &SlabArena::num_slabs)
      .def_property_readonly("num_free", &SlabArena::num_free)
      .def(
          "add_model",
          [](SlabArena& self, std::int32_t min, std::int32_t max, double weight, std::int32_t weights) {
            return raw(self.add_model({.min = min, .max = max, .weight = weight}, weights));
          },
          "min"_a, "max"_a, "weight"_a = 1.0, "weights"_a = 0)
      .def("owner", &kv_owner, "slab"_a)
      .def(
          "guaranteed",
          [](const SlabArena& self, std::int32_t model) { return self.guaranteed(ModelId{model}); },
          "model"_a)
      .def(
          "targets",
          [](SlabArena& self, const std::vector<std::int64_t>& wanted) {
            const auto targets = self.targets(wanted);
            return std::vector<std::int32_t>(targets.begin(), targets.end());
          },
          "wanted"_a)
      .def(
          "block_entries",
          [](const SlabArena& self, const std::vector<std::int32_t>& slabs, std::int64_t bytes_per_block) {
            std::vector<SlabId> ids;
            for (const std::int32_t slab : slabs) ids.push_back(to_slab(self, slab));
            return self.block_entries(ids, bytes_per_block);
          },
          "slabs"_a, "bytes_per_block"_a)
      .def("check_invariants", &SlabArena::check_invariants);
}

void bind_exchange(const py::module_& m) {
  using namespace pybind11::literals;
  py::class_<PySlabExchange>(m, "SlabExchange", "Slabs that move between pools of blocks of one granule.")
      .def(py::init<std::int32_t, std::int32_t, std::int64_t,
                    std::function<void(std::int32_t, std::int32_t)>>(),
           "num_slabs"_a, "blocks_per_slab"_a, "hysteresis_us"_a, "vacate"_a)
      .def("add_model", &PySlabExchange::add_model, "min"_a, "max"_a, "weight"_a = 1.0)
      .def(
          "pool",
          [](PySlabExchange& self, std::int32_t model) -> BlockPool& {
            return self.holder(model).slab_pool();
          },
          "model"_a, py::return_value_policy::reference_internal)
      .def(
          "set_needs",
          [](PySlabExchange& self, std::int32_t model, std::int64_t wanted, std::int32_t promised) {
            self.holder(model).wanted = wanted;
            self.holder(model).promised = promised;
          },
          "model"_a, "wanted"_a, "promised"_a)
      .def("grow", &PySlabExchange::grow, "model"_a, "blocks"_a, "now_us"_a, "room"_a)
      .def("collect_drained", [](PySlabExchange& self) { self.exchange().collect_drained(); })
      .def("set_awake", &PySlabExchange::set_awake, "model"_a, py::kw_only(), "awake"_a)
      .def("lend", &PySlabExchange::lend, "model"_a)
      .def(
          "owner", [](PySlabExchange& self, std::int32_t slab) { return kv_owner(self.arena(), slab); },
          "slab"_a)
      .def(
          "waits",
          [](PySlabExchange& self, std::int32_t model) { return self.exchange().waits(ModelId{model}); },
          "model"_a)
      .def_property_readonly("num_reclaims",
                             [](PySlabExchange& self) { return self.exchange().num_reclaims(); })
      .def_property_readonly("num_vacates",
                             [](PySlabExchange& self) { return self.exchange().num_vacates(); })
      .def("check_invariants", [](PySlabExchange& self) {
        self.arena().check_invariants();
        self.exchange().check_invariants();
      });
}

}  // namespace

void bind_slabs(py::module_& parts) {
  using namespace pybind11::literals;
  bind_arena(parts);
  bind_exchange(parts);
  py::native_enum<ModelEvent>(parts, "ModelEvent", "enum.IntEnum", "What changes where a model stands.")
      .value("SLEEP", ModelEvent::kSleep)
      .value("WAKE", ModelEvent::kWake)
      .value("REMOVE", ModelEvent::kRemove)
      .value("QUIET", ModelEvent::kQuiet)
      .value("MOVED", ModelEvent::kMoved)
      .finalize();
  parts.def("next_state", &next_state, "state"_a, "event"_a);
}

}  // namespace airi::bindings
