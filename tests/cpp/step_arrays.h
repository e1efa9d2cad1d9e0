#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime.h"

namespace airi::testing {

// Arrays for one set of step buffers that is as small as these models allow.
struct StepArrays {
  std::vector<std::int64_t> ids, ops;
  std::vector<std::uint8_t> flags;
  std::vector<std::int32_t> slots, query_start, seq_lens, draw, tokens, positions, deltas;

  StepArrays(const std::vector<ModelConfig>& models, std::size_t num_ops) {
    std::size_t num_rows = 1;
    std::size_t num_tokens = 1;
    std::size_t num_deltas = 1;
    for (const ModelConfig& model : models) {
      check_config(model);
      num_rows = std::max(num_rows, static_cast<std::size_t>(model.max_num_seqs));
      num_tokens = std::max({num_tokens, num_rows, static_cast<std::size_t>(model.max_batch_tokens)});
      num_deltas = std::max(num_deltas, static_cast<std::size_t>(model.max_deltas()));
    }
    ids.resize(num_rows);
    flags.resize(num_rows);
    for (auto* v : {&slots, &seq_lens, &draw}) v->resize(num_rows);
    query_start.resize(num_rows + 1);
    for (auto* v : {&tokens, &positions}) v->resize(num_tokens);
    deltas.resize(3 * num_deltas);
    ops.resize(5 * num_ops);
  }

  StepBuffers buffers() {
    return {ids, slots, query_start, seq_lens, flags, draw, tokens, positions, deltas, ops};
  }
};

}  // namespace airi::testing
