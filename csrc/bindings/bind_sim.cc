#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/check.h"
#include "bindings/arrays.h"
#include "sim/simulator.h"

namespace py = pybind11;

namespace airi::bindings {
namespace {

using PieceTuple = std::tuple<double, double, double, double, double>;

std::unique_ptr<Simulator> make_simulator(const RuntimeConfig& runtime, const ModelConfig& model,
                                          const std::array<PieceTuple, 2>& step_time,
                                          std::array<std::vector<double>, 2> step_ratios,
                                          std::int32_t replicas, std::string router, double load_guard,
                                          std::int32_t part_tokens, std::optional<std::int64_t> concurrency,
                                          std::optional<std::int64_t> ttft_us,
                                          std::optional<std::int64_t> itl_us, bool keep_rows,
                                          std::int32_t threads) {
  SimulatorConfig config{.runtime = runtime,
                         .model = model,
                         .cost = {},
                         .replicas = replicas,
                         .router = std::move(router),
                         .load_guard = load_guard,
                         .part_tokens = part_tokens,
                         .concurrency = concurrency,
                         .targets = {.ttft = ttft_us, .itl = itl_us},
                         .keeps_rows = keep_rows,
                         .threads = threads};
  for (std::size_t i = 0; i < 2; ++i) {
    const auto& [step, token, seq, context, pair] = step_time[i];
    config.cost.pieces[i] = {.step = step, .token = token, .seq = seq, .context = context, .pair = pair};
  }
  const auto is_ratio = [](double ratio) { return ratio > 0 && std::isfinite(ratio); };
  for (const std::vector<double>& ratios : step_ratios) {
    if (!std::ranges::all_of(ratios, is_ratio) || !std::ranges::is_sorted(ratios)) {
      throw InvalidArgument("step_ratios must be positive and ascending");
    }
  }
  config.cost.ratios = std::move(step_ratios);
  return std::make_unique<Simulator>(config);
}

void feed(Simulator& self, const py::array& arrival_us, const py::array& tenant, const py::array& band,
          const py::array& input_tokens, const py::array& output_tokens, const py::array& part_start,
          const py::array& parts) {
  const RequestColumns columns{.arrival_us = as_span<std::int64_t>("arrival_us", arrival_us),
                               .tenant = as_span<std::int64_t>("tenant", tenant),
                               .band = as_span<std::int32_t>("band", band),
                               .input_tokens = as_span<std::int32_t>("input_tokens", input_tokens),
                               .output_tokens = as_span<std::int32_t>("output_tokens", output_tokens),
                               .part_start = as_span<std::int64_t>("part_start", part_start),
                               .parts = as_span<std::int64_t>("parts", parts)};
  const py::gil_scoped_release nogil;
  self.feed(columns);
}

py::array_t<RequestRow> take_rows(Simulator& self) {
  const std::vector<RequestRow> rows = self.take_rows();
  py::array_t<RequestRow> out(static_cast<py::ssize_t>(rows.size()));
  std::ranges::copy(rows, out.mutable_data());
  return out;
}

py::dict counts_of(const Metrics& m) {
  using namespace pybind11::literals;
  return py::dict("accepted"_a = m.accepted, "finished"_a = m.finished, "failed"_a = m.failed,
                  "refused_queue_full"_a = m.refused[raw(Refusal::kQueueFull)],
                  "refused_too_long"_a = m.refused[raw(Refusal::kTooLong)],
                  "refused_never_fits"_a = m.refused[raw(Refusal::kNeverFits)],
                  "refused_empty"_a = m.refused[raw(Refusal::kEmpty)], "prompt_tokens"_a = m.prompt_tokens,
                  "cached_tokens"_a = m.cached_tokens, "generated_tokens"_a = m.generated_tokens,
                  "within_ttft"_a = m.within_ttft, "within_itl"_a = m.within_itl,
                  "within_both"_a = m.within_both, "within_worst_itl"_a = m.within_worst_itl);
}

py::dict fleet_of(const FleetStats& f) {
  using namespace pybind11::literals;
  return py::dict("steps"_a = f.steps, "preemptions"_a = f.preemptions, "evictions"_a = f.evictions,
                  "query_tokens"_a = f.query_tokens, "hit_tokens"_a = f.hit_tokens, "waiting"_a = f.waiting,
                  "running"_a = f.running, "capacity"_a = f.capacity, "peak_kv"_a = f.peak_kv,
                  "mean_kv"_a = f.mean_kv, "busy"_a = f.busy, "end_us"_a = f.end_us,
                  "accepted"_a = f.accepted, "loaded_tokens"_a = f.loaded_tokens, "swaps"_a = f.swaps,
                  "tiers"_a = f.tiers);
}

py::list tenants_of(const Metrics& m) {
  using namespace pybind11::literals;
  py::list list;
  for (const auto& [tenant, t] : m.tenants) {
    list.append(py::dict("tenant"_a = raw(tenant), "requests"_a = t.requests, "refused"_a = t.refused,
                         "finished"_a = t.finished, "prompt_tokens"_a = t.prompt_tokens,
                         "cached_tokens"_a = t.cached_tokens, "generated_tokens"_a = t.generated_tokens,
                         "attained"_a = t.attained, "ttft"_a = t.ttft));
  }
  return list;
}

py::list timeline_of(const Timeline& timeline) {
  using namespace pybind11::literals;
  py::list list;
  for (const TimelineBucket& b : timeline.buckets()) {
    list.append(py::dict("accepted"_a = b.accepted, "refused"_a = b.refused, "finished"_a = b.finished,
                         "prefill_tokens"_a = b.prefill_tokens, "decode_tokens"_a = b.decode_tokens,
                         "running_us"_a = b.running, "waiting_us"_a = b.waiting,
                         "active_block_us"_a = b.active_blocks, "busy_us"_a = b.busy, "ttft"_a = b.ttft,
                         "itl"_a = b.itl));
  }
  return list;
}

py::dict results_of(Simulator& self) {
  using namespace pybind11::literals;
  const std::unique_ptr<Metrics> merged = self.metrics();
  const Metrics& metrics = *merged;
  return py::dict("counts"_a = counts_of(metrics), "fleet"_a = fleet_of(self.stats()),
                  "ttft"_a = metrics.ttft, "itl"_a = metrics.itl, "e2e"_a = metrics.e2e,
                  "tenants"_a = tenants_of(metrics), "timeline_width_us"_a = metrics.timeline.width(),
                  "timeline"_a = timeline_of(metrics.timeline));
}

void bind_histogram(const py::module_& sim) {
  using namespace pybind11::literals;
  py::class_<LogHistogram>(sim, "LogHistogram", "Counts of microseconds in buckets of 1/64 of their value.")
      .def(py::init())
      .def("add", &LogHistogram::add, "value"_a, "count"_a = 1)
      .def(
          "merge", [](LogHistogram& h, const LogHistogram& other) { h += other; }, "other"_a)
      .def(
          "quantile",
          [](const LogHistogram& h, double q) {
            if (!(q >= 0 && q <= 1)) throw InvalidArgument("q must be in [0, 1], got " + std::to_string(q));
            return h.quantile(q);
          },
          "q"_a)
      .def_property_readonly("count", &LogHistogram::count)
      .def_property_readonly("mean", &LogHistogram::mean)
      .def_property_readonly("max", &LogHistogram::max);
}

// A router of its own, for tests: ids of requests are counted.
struct PyRouter {
  PyRouter(const std::string& name, std::size_t replicas, std::int32_t part_tokens, std::int64_t kv_tokens,
           double load_guard) {
    if (hears_replicas(name)) throw InvalidArgument("router '" + name + "' needs replicas that it hears");
    if (replicas < 1 || part_tokens < 1) throw InvalidArgument("replicas and part_tokens must be at least 1");
    router = make_router(
        name,
        {.replicas = replicas, .part_tokens = part_tokens, .kv_tokens = kv_tokens, .load_guard = load_guard});
    size = replicas;
  }

  std::size_t pick(const std::vector<std::int64_t>& parts, const std::vector<std::int64_t>& load) const {
    if (load.size() != size) throw InvalidArgument("load must have one number per replica");
    return router->pick({.id = RequestId{0}, .parts = parts}, load);
  }

  std::unique_ptr<Router> router;
  std::size_t size = 0;
};

}  // namespace

void bind_sim(py::module_& m) {
  using namespace pybind11::literals;
  auto sim = m.def_submodule("sim", "Replicas of the runtime under virtual time.");
  PYBIND11_NUMPY_DTYPE(RequestRow, request_id, tenant, arrival_us, first_token_us, end_us, worst_itl_us,
                       replica, prompt_tokens, cached_tokens, generated_tokens);
  bind_histogram(sim);
  py::class_<PyRouter>(sim, "Router", "Chooses the replica of each request.")
      .def(py::init<const std::string&, std::size_t, std::int32_t, std::int64_t, double>(), "name"_a,
           py::kw_only(), "replicas"_a, "part_tokens"_a = 512, "kv_tokens"_a = 0, "load_guard"_a = 1.5)
      .def("pick", &PyRouter::pick, "parts"_a, "load"_a);
  sim.def(
      "prompt_tokens",
      [](std::int64_t request_id, std::int32_t input_tokens, const std::vector<std::int64_t>& parts,
         std::int32_t part_tokens) {
        if (input_tokens < 1 || part_tokens < 1) {
          throw InvalidArgument("input_tokens and part_tokens must be at least 1");
        }
        return prompt_tokens({.id = RequestId{request_id}, .input_tokens = input_tokens, .parts = parts},
                             part_tokens);
      },
      "request_id"_a, "input_tokens"_a, "parts"_a, "part_tokens"_a, "The tokens of a simulated prompt.");
  py::class_<Simulator>(sim, "Simulator", "N replicas of the runtime under virtual time behind a router.")
      .def(py::init(&make_simulator), py::kw_only(), "runtime"_a, "model"_a, "step_time"_a,
           "step_ratios"_a = std::array<std::vector<double>, 2>{}, "replicas"_a = 1, "router"_a = "prefix",
           "load_guard"_a = 1.5, "part_tokens"_a = 512, "concurrency"_a = std::nullopt,
           "ttft_us"_a = std::nullopt, "itl_us"_a = std::nullopt, "keep_rows"_a = false, "threads"_a = 1)
      .def(
          "set_tenant",
          [](Simulator& self, std::int64_t tenant, double weight) {
            self.set_tenant(TenantId{tenant}, weight);
          },
          "tenant"_a, "weight"_a)
      .def("feed", &feed, py::kw_only(), "arrival_us"_a, "tenant"_a, "band"_a, "input_tokens"_a,
           "output_tokens"_a, "part_start"_a, "parts"_a)
      .def("drain", &Simulator::drain, "span_us"_a, py::call_guard<py::gil_scoped_release>())
      .def("take_rows", &take_rows)
      .def("results", &results_of)
      .def_property_readonly("now_us", &Simulator::now_us)
      .def("check_invariants", &Simulator::check_invariants);
}

}  // namespace airi::bindings
