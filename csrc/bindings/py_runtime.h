#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

#include "runtime.h"

namespace airi::bindings {

// The arrays of one buffer set, and the spans into them.
struct PyStepBuffers {
  pybind11::array request_ids, slots, query_start, seq_lens, row_flags, draw_index, tokens, positions, deltas,
      ops;
  StepBuffers spans;
};

// Runtime plus the arrays it writes into.
struct PyRuntime {
  PyRuntime(const RuntimeConfig& config, const std::vector<ModelConfig>& models,
            std::vector<PyStepBuffers> sets)
      : buffers(std::move(sets)), runtime(config, models, spans_of(buffers)) {}

  static std::vector<StepBuffers> spans_of(const std::vector<PyStepBuffers>& sets) {
    std::vector<StepBuffers> spans;
    spans.reserve(sets.size());
    for (const PyStepBuffers& set : sets) spans.push_back(set.spans);
    return spans;
  }

  std::vector<PyStepBuffers> buffers;
  Runtime runtime;
};

// RuntimeConfig, ModelConfig and StepBuffers.
void bind_configs(const pybind11::module_& m);
// What methods return, and the method for events.
void bind_results(const pybind11::module_& m, pybind11::class_<PyRuntime>& runtime);
void bind_model_state(const pybind11::module_& m);
// The methods for models that come, sleep and go.
void bind_models(pybind11::class_<PyRuntime>& runtime);

}  // namespace airi::bindings
