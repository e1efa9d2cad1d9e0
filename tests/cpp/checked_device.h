#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "fuzz_draw.h"
#include "runtime.h"
#include "step_arrays.h"

namespace airi::testing {

// A request as its client knows it.
struct Client {
  RequestSpec spec;
  std::vector<std::int32_t> text;    // prompt, and what was delivered
  std::vector<std::uint64_t> marks;  // of the text up to each position: what its KV must be
  std::int32_t most_tokens = 0;      // that it may be given
  bool has_ended = false;
  bool may_cancel = false;
  bool has_failed = false;  // some row of it ended in an error

  explicit Client(const RequestSpec& request, const ModelConfig& model);
  void deliver(std::int32_t token, std::int32_t block_size);
  // Of the position, given the mark of the one before it.
  [[nodiscard]] std::uint64_t mark(std::int32_t position, std::int32_t token, std::int32_t block_size,
                                   std::uint64_t before) const;
  [[nodiscard]] std::uint64_t mark_before(std::int32_t position) const;
};

using Clients = std::map<RequestId, std::shared_ptr<Client>>;

// Runs steps in the order in which they were handed out, over memory that knows what every position's KV was
// computed from. Throws where a row is not its request's text, where its past is not in the blocks of its
// table, or where somebody writes into what is another's: a model's slabs, its weights, a running transfer.
class CheckedDevice {
 public:
  explicit CheckedDevice(const Setting& setting);

  void add_model(const ModelConfig& model);
  // The weights of a model come into its slabs, or need not be there any more.
  void place_weights(ModelId model, std::optional<SlabId> at);
  void drop_weights(ModelId model);

  // A step was written into `arrays`. REQUIRES: each row's request is among the clients.
  void take(const StepInfo& info, const StepArrays& arrays, const Clients& clients);
  [[nodiscard]] std::size_t num_uncommitted() const { return steps_.size(); }

  // Runs the oldest step that has not been run, if there is one. Rows whose bit in `failing` is set bring no
  // KV and no token, or one that means nothing.
  void run_next(std::int32_t token, std::uint32_t failing);

  // Tells the runtime what the oldest step brought, and delivers its tokens.
  void commit_next(Runtime& runtime, Micros device_time);

  // Ends the transfer at this place among those that have begun.
  Inbox::TransferReport end_transfer(std::size_t place, bool is_ok, Micros micros);
  [[nodiscard]] std::size_t num_transfers() const { return transfers_.size(); }

 private:
  struct Granule {
    std::array<std::uint64_t, kMostBlockSize> marks{};  // of the positions of the block that starts here
    std::optional<SlabOwner> owner;                     // whose bytes lie here; nobody's are zero
    bool is_needed = false;                             // by weights in use
  };
  struct Row {
    std::shared_ptr<Client> client;
    std::int32_t slot = 0;
    std::int32_t start = 0;
    std::vector<std::int32_t> tokens;
    std::int32_t draw = 0;
    std::uint8_t flags = 0;
  };
  struct Step {
    StepInfo info;
    std::vector<Row> rows;
    std::vector<std::array<std::int32_t, 3>> deltas;
    std::vector<MemoryOp> ops;
    bool has_run = false;
    std::vector<std::int32_t> tokens, counts;
    std::vector<std::uint8_t> status;
  };
  struct Model {
    ModelConfig config;
    std::map<std::array<std::int32_t, 2>, std::int32_t> table;  // entries by slot and column
    std::map<std::int32_t, std::int32_t> last;                  // token by slot
    std::map<std::int32_t, std::shared_ptr<Client>> in_slot;
    std::optional<SlabId> weights_at;
  };
  struct Running {
    MemoryOp op;
    std::vector<Granule> content;  // of a store, which reads when it begins
  };
  using Memory = std::vector<Granule>;

  void check_row(const StepInfo& info, const Row& row) const;
  void begin(const MemoryOp& op);
  void zero(const MemoryOp& op);
  void check_places(const MemoryOp& op) const;
  // What it gives, and what is KV of, for a row of the model.
  std::int32_t run_row(Model& model, ModelId id, Row& row, bool fails, std::int32_t token);
  // True iff its blocks hold the KV of all that stands before the row.
  [[nodiscard]] bool knows_past(Model& model, const Row& row);
  void check_slot(Model& model, const Row& row) const;
  void check_weights(const Model& model, ModelId id) const;
  [[nodiscard]] std::uint64_t& cell(Model& model, const Row& row, std::int32_t position);
  void claim(const Model& model, ModelId id, std::int32_t entry);
  [[nodiscard]] Memory& source(MemoryOpKind kind);
  [[nodiscard]] Memory& target(MemoryOpKind kind);

  std::int64_t slab_granules_;
  Memory device_, host_, disk_;
  std::vector<Model> models_;
  std::vector<Step> steps_;  // uncommitted, oldest first
  std::vector<Running> transfers_;
};

}  // namespace airi::testing
