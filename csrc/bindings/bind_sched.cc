#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "base/check.h"
#include "sched/planner.h"
#include "sched/preemption.h"
#include "sched/priority.h"
#include "sched/step_time.h"

// The planner's pure functions and the step-time model.

namespace py = pybind11;

namespace airi::bindings {
namespace {

std::vector<std::int32_t> split(const std::vector<std::pair<std::int32_t, std::int32_t>>& prefills,
                                std::int32_t budget, std::int32_t block_size, std::int32_t cap) {
  if (block_size < 1 || cap < block_size || budget < 0) {
    throw InvalidArgument("block_size must be at least 1, cap at least block_size, budget at least 0, got " +
                          std::to_string(block_size) + ", " + std::to_string(cap) + " and " +
                          std::to_string(budget));
  }
  std::vector<PrefillDemand> demands;
  demands.reserve(prefills.size());
  for (const auto& [start, remaining] : prefills) demands.push_back({start, remaining});
  std::vector<std::int32_t> chunks(demands.size());
  split_budget(demands, budget, {.block_size = block_size, .cap = cap}, chunks);
  return chunks;
}

// (band, counter, lost tokens, freed blocks, arrival, id)
using VictimTuple =
    std::tuple<std::int32_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

VictimKey to_key(const VictimTuple& t) {
  return {std::get<0>(t),           std::get<1>(t), std::get<2>(t), std::get<3>(t), TimePoint{std::get<4>(t)},
          RequestId{std::get<5>(t)}};
}

}  // namespace

void bind_sched(py::module_& parts) {
  using namespace pybind11::literals;
  // (tokens, seqs, decode context, prefill pairs)
  using WorkTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t, double>;
  using PieceTuple = std::tuple<double, double, double, double, double>;
  const auto to_work = [](const WorkTuple& t) {
    return StepWork{std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t)};
  };
  py::class_<StepTimeModel>(parts, "StepTimeModel",
                            "How long a step takes, learnt from how long earlier ones took. Work is (tokens, "
                            "sequences, sum of decode contexts, sum over chunks of q * (context + q / 2)).")
      .def(py::init())
      .def(
          "observe", [=](StepTimeModel& m, const WorkTuple& w, double us) { m.observe(to_work(w), us); },
          "work"_a, "micros"_a)
      .def(
          "estimate", [=](const StepTimeModel& m, const WorkTuple& w) { return m.estimate(to_work(w)); },
          "work"_a, "Microseconds; 0 before the first observation.")
      .def_property_readonly("sigma", &StepTimeModel::sigma)
      .def(
          "ratio",
          [](const StepTimeModel& m, double share) {
            if (!(share >= 0 && share <= 1)) {
              throw InvalidArgument("share must be in [0, 1], got " + std::to_string(share));
            }
            return m.ratio(share);
          },
          "share"_a, "What steps took over estimates: the ratio that this share of them lay below.")
      .def_property_readonly("is_trained", &StepTimeModel::is_trained)
      .def_property_readonly(
          "pieces",
          [](const StepTimeModel& m) {
            std::vector<PieceTuple> pieces;
            for (const StepTimePiece& p : m.pieces()) {
              pieces.emplace_back(p.step, p.token, p.seq, p.context, p.pair);
            }
            return pieces;
          },
          "Bound by memory, bound by arithmetic: microseconds per step, token, sequence, token of decode "
          "context, prefill pair.")
      .def(
          "export_state",
          [](const StepTimeModel& m) {
            const StepTimeModel::State state = m.export_state();
            return std::vector<double>(state.begin(), state.end());
          },
          "All that was learnt.")
      .def(
          "import_state", [](StepTimeModel& m, const std::vector<double>& state) { m.import_state(state); },
          "state"_a, "Goes on as the model that exported the state would.");
  parts.def("split_budget", &split, "prefills"_a, "budget"_a, "block_size"_a, "cap"_a,
            "Tokens of each running prefill, given as (start, remaining) in order of decision.");
  parts.def(
      "is_preempted_before",
      [](const VictimTuple& a, const VictimTuple& b) { return goes_before(to_key(a), to_key(b)); }, "a"_a,
      "b"_a, "Keys are (band, counter, lost tokens, freed blocks, arrival, request id).");
  parts.def(
      "aged_band",
      [](std::int32_t first_band, std::optional<std::int64_t> aging_us, std::int64_t waited_us) {
        if (aging_us && *aging_us < 1) {
          throw InvalidArgument("aging_us must be at least 1, got " + std::to_string(*aging_us));
        }
        return AgingRule(aging_us).band(first_band, waited_us);
      },
      "first_band"_a, "aging_us"_a, "waited_us"_a, "The band a request stands in after waiting.");
}

}  // namespace airi::bindings
