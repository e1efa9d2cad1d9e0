#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "base/check.h"
#include "sched/slo_budget.h"
#include "sched/slo_target.h"

// The token budget under targets for latency.

namespace py = pybind11;

namespace airi::bindings {
namespace {

// (count, sum of contexts, due)
using DecodeTuple = std::tuple<std::int64_t, std::int64_t, std::optional<std::int64_t>>;
// (context, remaining, band, due)
using PrefillTuple = std::tuple<std::int32_t, std::int32_t, std::int32_t, std::optional<std::int64_t>>;

std::optional<TimePoint> to_moment(std::optional<std::int64_t> micros) {
  if (!micros) return std::nullopt;
  return TimePoint{*micros};
}

PrefillLoad to_prefill(const PrefillTuple& t) {
  return {std::get<0>(t), std::get<1>(t), std::get<2>(t), to_moment(std::get<3>(t))};
}

std::vector<PrefillLoad> to_prefills(const std::vector<PrefillTuple>& tuples) {
  std::vector<PrefillLoad> prefills;
  prefills.reserve(tuples.size());
  for (const PrefillTuple& t : tuples) prefills.push_back(to_prefill(t));
  return prefills;
}

void check_limits(std::int32_t tile, std::int32_t max_tokens) {
  if (tile >= 1 && max_tokens >= 1) return;
  throw InvalidArgument("tile and max_tokens must be at least 1, got " + std::to_string(tile) + " and " +
                        std::to_string(max_tokens));
}

SloBudget make_budget(std::int32_t tile, std::int32_t max_tokens) {
  check_limits(tile, max_tokens);
  return SloBudget({.tile = tile, .max_tokens = max_tokens});
}

std::tuple<std::int32_t, double, std::optional<std::int32_t>> decide(
    SloBudget& self, const StepTimeModel& model, std::int64_t start, const std::vector<DecodeTuple>& bands,
    const std::vector<PrefillTuple>& prefills, const std::optional<PrefillTuple>& waiting) {
  std::vector<DecodeLoad> loads;
  for (const auto& [count, context, due] : bands) loads.push_back({count, context, to_moment(due)});
  std::optional<PrefillLoad> next;
  if (waiting) next = to_prefill(*waiting);
  const SloBudget::Grant grant = self.decide(model, TimePoint{start}, loads, to_prefills(prefills), next);
  return {grant.prefill_tokens, grant.micros, grant.resting_from};
}

}  // namespace

void bind_slo(py::module_& parts) {
  using namespace pybind11::literals;
  py::class_<SloBudget>(parts, "SloBudget",
                        "How many prefill tokens a step takes: what the tightest decode can afford.")
      .def(py::init(&make_budget), "tile"_a, "max_tokens"_a)
      .def(
          "decide", &decide, "model"_a, "start"_a, "bands"_a, "prefills"_a, "waiting"_a,
          "(prefill tokens, microseconds, smallest resting band) of a step that starts at `start`. Bands are "
          "(decodes, sum of contexts, due), prefills (context, remaining, band, due).")
      .def(
          "note", [](SloBudget& self, bool late) { self.gain().note(late); }, "late"_a)
      .def_property_readonly("gain", [](const SloBudget& self) { return self.gain().value(); })
      .def_property_readonly("least_chunk", &SloBudget::least_chunk)
      .def_static(
          "is_feasible",
          [](const StepTimeModel& model, std::int64_t start, const PrefillTuple& prefill) {
            return SloBudget::is_feasible(model, TimePoint{start}, to_prefill(prefill));
          },
          "model"_a, "start"_a, "prefill"_a);
  parts.def(
      "largest_prefill",
      [](const StepTimeModel& model, const std::tuple<std::int64_t, std::int64_t, std::int64_t, double>& work,
         const std::vector<PrefillTuple>& prefills, double micros, std::int32_t tile, std::int32_t most) {
        check_limits(tile, std::max(most, 1));
        const StepWork decodes{std::get<0>(work), std::get<1>(work), std::get<2>(work), std::get<3>(work)};
        return largest_prefill(model, decodes, to_prefills(prefills), micros, tile, most);
      },
      "model"_a, "work"_a, "prefills"_a, "micros"_a, "tile"_a, "most"_a,
      "The most prefill tokens that a step with `work` takes within `micros`.");
  parts.def("largest_context", &largest_context, "model"_a, "micros"_a, "most"_a,
            "The longest context with which a decode alone takes at most `micros`.");
  parts.def(
      "next_token_due",
      [](std::int64_t due, std::int64_t emitted, std::int64_t itl, std::int64_t most_saved) {
        if (most_saved < 0) throw InvalidArgument("most_saved must not be negative");
        return static_cast<std::int64_t>(next_token_due(TimePoint{due}, TimePoint{emitted}, itl, most_saved));
      },
      "due"_a, "emitted"_a, "itl"_a, "most_saved"_a,
      "When the token after one that was due at `due` is due.");
}

}  // namespace airi::bindings
