#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "base/check.h"
#include "bindings/arrays.h"
#include "bindings/convert.h"
#include "bindings/rings.h"
#include "kv/hash_chain.h"
#include "route/replica_router.h"

// Which replica gets a request. Calls keep the GIL: it is the lock of a router.

namespace py = pybind11;

namespace airi::bindings {
namespace {

using route::Candidate;
using route::Choice;
using route::ReplicaId;
using route::ReplicaRouter;
using PieceTuple = std::tuple<double, double, double, double, double>;

route::StepRates to_rates(const std::optional<std::array<PieceTuple, 2>>& step_time,
                          std::int64_t max_batch_tokens) {
  route::StepRates rates{.pieces = {}, .max_batch_tokens = max_batch_tokens};
  for (std::size_t i = 0; step_time && i < rates.pieces.size(); ++i) {
    const auto& [step, token, seq, context, pair] = (*step_time)[i];
    rates.pieces[i] = {.step = step, .token = token, .seq = seq, .context = context, .pair = pair};
  }
  return rates;
}

route::RouteRequest to_request(const py::array& chain, std::int32_t input_tokens) {
  return {.chain = as_span<Hash128>("chain", chain), .input_tokens = input_tokens};
}

py::array_t<Hash128> chain_of(const HashChain& chain, const py::array& tokens,
                              const std::vector<std::pair<std::int32_t, py::bytes>>& salts) {
  std::vector<ExtraKey> extras;
  for (const auto& [offset, salt] : salts) {
    if (offset < 0)
      throw InvalidArgument("a salt's offset must be at least 0, got " + std::to_string(offset));
    extras.push_back({ExtraKind::kSalt, offset, to_bytes(salt)});
  }
  std::vector<Hash128> hashes;
  chain.extend(as_span<std::int32_t>("tokens", tokens), encode_extras(extras, chain.block_size()), hashes);
  return to_array(hashes);
}

void bind_choice(const py::module_& m) {
  py::class_<Candidate>(m, "Candidate", "Why one replica was chosen, or not. Times are microseconds.")
      .def_property_readonly("replica", [](const Candidate& c) { return raw(c.replica); })
      .def_readonly("stored_tokens", &Candidate::stored_tokens)
      .def_readonly("cached_tokens", &Candidate::cached_tokens)
      .def_readonly("outstanding_requests", &Candidate::outstanding_requests)
      .def_readonly("outstanding_tokens", &Candidate::outstanding_tokens)
      .def_readonly("load_us", &Candidate::load_us)
      .def_readonly("wake_us", &Candidate::wake_us)
      .def_readonly("wait_us", &Candidate::wait_us)
      .def_readonly("prefill_us", &Candidate::prefill_us)
      .def_readonly("delay_us", &Candidate::delay_us)
      .def_readonly("last_sent", &Candidate::last_sent)
      .def_readonly("is_overloaded", &Candidate::is_overloaded)
      .def_property_readonly("ttft_us", &Candidate::ttft_us)
      .def_property_readonly("score_us", &Candidate::score_us);
  py::class_<Choice>(m, "Choice", "The replica to send a request to, and all that it was chosen from.")
      .def_property_readonly("replica", [](const Choice& c) { return raw(c.replica); })
      .def_readonly("candidates", &Choice::candidates);
}

void bind_replicas(py::class_<ReplicaRouter>& router) {
  using namespace pybind11::literals;
  router
      .def(
          "add",
          [](ReplicaRouter& self, std::int64_t capacity_blocks, std::int32_t model,
             const std::optional<std::array<PieceTuple, 2>>& step_time, std::int64_t max_batch_tokens) {
            return raw(self.add({.model = ModelId{model},
                                 .capacity_blocks = capacity_blocks,
                                 .rates = to_rates(step_time, max_batch_tokens)}));
          },
          py::kw_only(), "capacity_blocks"_a, "model"_a = 0, "step_time"_a = std::nullopt,
          "max_batch_tokens"_a = 2048)
      .def(
          "drain", [](ReplicaRouter& self, std::int64_t replica) { self.drain(ReplicaId{replica}); },
          "replica"_a)
      .def(
          "remove", [](ReplicaRouter& self, std::int64_t replica) { self.remove(ReplicaId{replica}); },
          "replica"_a)
      .def(
          "sleep",
          [](ReplicaRouter& self, std::int64_t replica, std::int64_t wake_us) {
            self.sleep(ReplicaId{replica}, wake_us);
          },
          "replica"_a, "wake_us"_a)
      .def(
          "wake", [](ReplicaRouter& self, std::int64_t replica) { self.wake(ReplicaId{replica}); },
          "replica"_a)
      .def(
          "set_step_time",
          [](ReplicaRouter& self, std::int64_t replica, const std::array<PieceTuple, 2>& step_time,
             std::int64_t max_batch_tokens) {
            self.set_rates(ReplicaId{replica}, to_rates(step_time, max_batch_tokens));
          },
          "replica"_a, "step_time"_a, "max_batch_tokens"_a = 2048)
      .def(
          "count",
          [](ReplicaRouter& self, std::int64_t replica, std::int64_t waiting, std::int64_t running) {
            self.count(ReplicaId{replica}, {.waiting = waiting, .running = running});
          },
          "replica"_a, py::kw_only(), "waiting"_a, "running"_a)
      .def(
          "apply",
          [](ReplicaRouter& self, std::int64_t replica, const py::array& events) {
            self.apply(ReplicaId{replica}, as_span<KvEvent>("events", events));
          },
          "replica"_a, "events"_a)
      .def(
          "replace",
          [](ReplicaRouter& self, std::int64_t replica, const py::array& stored) {
            self.replace(ReplicaId{replica}, as_span<KvEvent>("stored", stored));
          },
          "replica"_a, "stored"_a)
      .def(
          "num_stored",
          [](const ReplicaRouter& self, std::int64_t replica) { return self.num_stored(ReplicaId{replica}); },
          "replica"_a)
      .def(
          "num_left_out",
          [](const ReplicaRouter& self, std::int64_t replica) {
            return self.num_left_out(ReplicaId{replica});
          },
          "replica"_a)
      .def_property_readonly("memory_bytes",
                             [](const ReplicaRouter& self) { return self.locations().memory_bytes(); });
}

void bind_requests(py::class_<ReplicaRouter>& router) {
  using namespace pybind11::literals;
  router
      .def(
          "choose",
          [](ReplicaRouter& self, const py::array& chain, std::int32_t input_tokens, std::int64_t now_us) {
            return self.choose(to_request(chain, input_tokens), TimePoint{now_us});
          },
          "chain"_a, "input_tokens"_a, py::kw_only(), "now_us"_a)
      .def(
          "sent",
          [](ReplicaRouter& self, std::int64_t request_id, std::int64_t replica, const py::array& chain,
             std::int32_t input_tokens, std::int64_t now_us) {
            self.sent(RequestId{request_id}, ReplicaId{replica}, to_request(chain, input_tokens),
                      TimePoint{now_us});
          },
          "request_id"_a, "replica"_a, "chain"_a, "input_tokens"_a, py::kw_only(), "now_us"_a)
      .def(
          "first_token",
          [](ReplicaRouter& self, std::int64_t request_id) {
            return self.first_token(RequestId{request_id});
          },
          "request_id"_a)
      .def(
          "ended",
          [](ReplicaRouter& self, std::int64_t request_id, std::int32_t output_tokens) {
            return self.ended(RequestId{request_id}, output_tokens);
          },
          "request_id"_a, "output_tokens"_a);
}

}  // namespace

void bind_route(py::module_& m) {
  using namespace pybind11::literals;
  auto module = m.def_submodule("route", "Which replica gets a request.");
  module.attr("MAX_REPLICAS") = route::kMaxReplicas;
  module.def("hash_chain", &chain_of, "chain"_a, "tokens"_a,
             "salts"_a = std::vector<std::pair<std::int32_t, py::bytes>>{},
             "The hashes of a prompt's full blocks, as the core makes them.");
  bind_choice(module);
  const route::RouterOptions defaults;
  py::class_<ReplicaRouter> router(module, "ReplicaRouter",
                                   "Chooses the replica of one model for each request.");
  router.def(py::init([](std::int32_t block_size, double load_guard, std::int64_t sent_ttl_us,
                         std::int64_t sent_blocks) {
               return std::make_unique<ReplicaRouter>(route::RouterOptions{.block_size = block_size,
                                                                           .load_guard = load_guard,
                                                                           .sent_ttl = sent_ttl_us,
                                                                           .sent_blocks = sent_blocks});
             }),
             py::kw_only(), "block_size"_a, "load_guard"_a = defaults.load_guard,
             "sent_ttl_us"_a = defaults.sent_ttl, "sent_blocks"_a = defaults.sent_blocks);
  bind_replicas(router);
  bind_requests(router);
  router.def("check_invariants", &ReplicaRouter::check_invariants);
}

}  // namespace airi::bindings
