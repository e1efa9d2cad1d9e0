#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/check.h"
#include "fair/deficits.h"
#include "fair/model_arbiter.h"
#include "fair/tenant_ledger.h"

// The fairness pieces of the core, for tests and for engines with a scheduler of their own.

namespace py = pybind11;

namespace airi::bindings {
namespace {

// The ledger by tenant id: indices do not outlive a tenant's state, so Python never sees one.
class NamedLedger {
 public:
  explicit NamedLedger(std::size_t max_idle) : ledger_(max_idle) {}

  void enter(std::int64_t tenant, double weight, std::int64_t arrival, std::int64_t id) {
    ledger_.enter(TenantId{tenant}, TenantWeight(weight), {TimePoint{arrival}, RequestId{id}});
  }
  void set_head(std::int64_t tenant, std::int64_t arrival, std::int64_t id) {
    ledger_.set_head(queued(tenant), {TimePoint{arrival}, RequestId{id}});
  }
  void leave(std::int64_t tenant) { ledger_.leave(queued(tenant)); }
  void begin_work(std::int64_t tenant) { ledger_.begin_work(active(tenant)); }
  void end_work(std::int64_t tenant) { ledger_.end_work(known(tenant)); }
  void charge(std::int64_t tenant, std::int64_t service) {
    if (service < 0) throw InvalidArgument("service must be at least 0, got " + std::to_string(service));
    ledger_.charge(active(tenant), service);
  }
  void set_weight(std::int64_t tenant, double weight) {
    ledger_.set_weight(TenantId{tenant}, TenantWeight(weight));
  }
  [[nodiscard]] std::optional<std::int64_t> next() const {
    const auto first = ledger_.next();
    if (!first) return std::nullopt;
    return raw(ledger_.tenant(*first));
  }
  [[nodiscard]] std::vector<std::int64_t> order(std::size_t limit) {
    std::vector<std::int64_t> tenants;
    ledger_.visit_in_order(limit, [&](TenantIndex t) {
      tenants.push_back(raw(ledger_.tenant(t)));
      return true;
    });
    return tenants;
  }
  [[nodiscard]] std::optional<std::int64_t> counter(std::int64_t tenant) const {
    const auto found = ledger_.find(TenantId{tenant});
    if (!found) return std::nullopt;
    return ledger_.counter(*found);
  }
  [[nodiscard]] TenantLedger& ledger() noexcept { return ledger_; }

  [[nodiscard]] TenantIndex known(std::int64_t tenant) const {
    const auto found = ledger_.find(TenantId{tenant});
    if (!found) throw InvalidArgument("tenant " + std::to_string(tenant) + " is not known");
    return *found;
  }

  [[nodiscard]] TenantIndex queued(std::int64_t tenant) const {
    const TenantIndex found = known(tenant);
    if (!ledger_.has_queue(found)) {
      throw InvalidArgument("tenant " + std::to_string(tenant) + " has an empty queue");
    }
    return found;
  }
  [[nodiscard]] TenantIndex active(std::int64_t tenant) const {
    const TenantIndex found = known(tenant);
    if (!ledger_.has_queue(found) && !ledger_.has_running_work(found)) {
      throw InvalidArgument("tenant " + std::to_string(tenant) + " has neither a queue nor running work");
    }
    return found;
  }

 private:
  TenantLedger ledger_;
};

// Ledger and deficits, told of every change together.
class NamedDeficits {
 public:
  NamedDeficits(std::int64_t quantum, std::size_t max_idle)
      : named_(max_idle), deficits_(ledger(), checked(quantum)) {}

  void enter(std::int64_t tenant, double weight, std::int32_t rank, std::int64_t arrival, std::int64_t id) {
    named_.enter(tenant, weight, arrival, id);
    offer(tenant, rank, arrival, id);
  }
  void offer(std::int64_t tenant, std::int32_t rank, std::int64_t arrival, std::int64_t id) {
    deficits_.offer(named_.queued(tenant), {rank, {TimePoint{arrival}, RequestId{id}}});
  }
  void leave(std::int64_t tenant) {
    deficits_.withdraw(named_.queued(tenant));
    named_.leave(tenant);
  }
  [[nodiscard]] std::optional<std::int64_t> next() {
    const auto first = deficits_.next();
    if (!first) return std::nullopt;
    return raw(ledger().tenant(*first));
  }
  [[nodiscard]] std::int64_t deficit(std::int64_t tenant) { return deficits_.deficit(named_.known(tenant)); }
  [[nodiscard]] NamedLedger& named() noexcept { return named_; }
  [[nodiscard]] TenantLedger& ledger() noexcept { return named_.ledger(); }
  [[nodiscard]] const Deficits& deficits() const noexcept { return deficits_; }
  void check_invariants() {
    ledger().check_invariants();
    deficits_.check_invariants();
  }

 private:
  static std::int64_t checked(std::int64_t quantum) {
    if (quantum < 1) throw InvalidArgument("quantum must be at least 1, got " + std::to_string(quantum));
    return quantum;
  }

  NamedLedger named_;
  Deficits deficits_;
};

void bind_ledger(const py::module_& m) {
  using namespace pybind11::literals;
  py::class_<NamedLedger>(m, "TenantLedger", "Virtual token counters of tenants: who is next.")
      .def(py::init<std::size_t>(), "max_idle"_a = 65'536)
      .def("enter", &NamedLedger::enter, "tenant"_a, "weight"_a, "arrival"_a, "request_id"_a)
      .def("set_head", &NamedLedger::set_head, "tenant"_a, "arrival"_a, "request_id"_a)
      .def("leave", &NamedLedger::leave, "tenant"_a)
      .def("begin_work", &NamedLedger::begin_work, "tenant"_a)
      .def("end_work", &NamedLedger::end_work, "tenant"_a)
      .def("charge", &NamedLedger::charge, "tenant"_a, "service"_a)
      .def("set_weight", &NamedLedger::set_weight, "tenant"_a, "weight"_a)
      .def("next", &NamedLedger::next)
      .def("order", &NamedLedger::order, "limit"_a)
      .def("counter", &NamedLedger::counter, "tenant"_a)
      .def("rebase", [](NamedLedger& self) { self.ledger().rebase(); })
      .def_property_readonly("virtual_time", [](NamedLedger& self) { return self.ledger().virtual_time(); })
      .def_property_readonly("num_known", [](NamedLedger& self) { return self.ledger().num_known(); })
      .def_property_readonly("lost_debt", [](NamedLedger& self) { return self.ledger().lost_debt(); })
      .def("check_invariants", [](NamedLedger& self) { self.ledger().check_invariants(); });
}

void bind_deficits(const py::module_& m) {
  using namespace pybind11::literals;
  py::class_<NamedDeficits>(m, "DeficitLedger", "A tenant ledger whose order candidates bend.")
      .def(py::init<std::int64_t, std::size_t>(), "quantum"_a, "max_idle"_a = 65'536)
      .def("enter", &NamedDeficits::enter, "tenant"_a, "weight"_a, "rank"_a, "arrival"_a, "request_id"_a)
      .def("offer", &NamedDeficits::offer, "tenant"_a, "rank"_a, "arrival"_a, "request_id"_a)
      .def("leave", &NamedDeficits::leave, "tenant"_a)
      .def(
          "begin_work", [](NamedDeficits& self, std::int64_t tenant) { self.named().begin_work(tenant); },
          "tenant"_a)
      .def(
          "end_work", [](NamedDeficits& self, std::int64_t tenant) { self.named().end_work(tenant); },
          "tenant"_a)
      .def(
          "charge",
          [](NamedDeficits& self, std::int64_t tenant, std::int64_t service) {
            self.named().charge(tenant, service);
          },
          "tenant"_a, "service"_a)
      .def("next", &NamedDeficits::next)
      .def(
          "counter", [](NamedDeficits& self, std::int64_t tenant) { return self.named().counter(tenant); },
          "tenant"_a)
      .def("deficit", &NamedDeficits::deficit, "tenant"_a)
      .def("rebase", [](NamedDeficits& self) { self.ledger().rebase(); })
      .def_property_readonly("num_known", [](NamedDeficits& self) { return self.ledger().num_known(); })
      .def_property_readonly("num_refills",
                             [](const NamedDeficits& self) { return self.deficits().num_refills(); })
      .def("check_invariants", &NamedDeficits::check_invariants);
}

void bind_arbiter(const py::module_& m) {
  using namespace pybind11::literals;
  py::class_<ModelArbiter>(m, "ModelArbiter", "Whose step is next on one device.")
      .def(py::init([](const std::vector<double>& weights, std::int64_t quantum_us,
                       std::int64_t min_residency_us, std::int64_t max_borrow_us) {
             return std::make_unique<ModelArbiter>(
                 ModelArbiter::Options{
                     .quantum = quantum_us, .min_residency = min_residency_us, .max_borrow = max_borrow_us},
                 weights);
           }),
           "weights"_a, "quantum_us"_a, "min_residency_us"_a = 0, "max_borrow_us"_a = 0)
      .def(
          "pass_turn", [](ModelArbiter& self, std::int32_t model) { self.pass(ModelId{model}); }, "model"_a)
      .def(
          "set_pressed",
          [](ModelArbiter& self, std::int32_t model, bool pressed) {
            self.set_pressed(ModelId{model}, pressed);
          },
          "model"_a, py::kw_only(), "pressed"_a)
      .def(
          "set_backlogged",
          [](ModelArbiter& self, std::int32_t model, bool backlogged) {
            self.set_backlogged(ModelId{model}, backlogged);
          },
          "model"_a, py::kw_only(), "backlogged"_a)
      .def("next",
           [](ModelArbiter& self) -> std::optional<std::int32_t> {
             const auto model = self.next();
             if (!model) return std::nullopt;
             return raw(*model);
           })
      .def(
          "charge",
          [](ModelArbiter& self, std::int32_t model, std::int64_t device_us) {
            self.charge(ModelId{model}, device_us);
          },
          "model"_a, "device_us"_a)
      .def(
          "deficit",
          [](const ModelArbiter& self, std::int32_t model) { return self.deficit(ModelId{model}); },
          "model"_a);
}

}  // namespace

void bind_fair(const py::module_& parts) {
  bind_ledger(parts);
  bind_deficits(parts);
  bind_arbiter(parts);
}

}  // namespace airi::bindings
