#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/check.h"
#include "checked_device.h"
#include "fuzz_draw.h"
#include "ring_readers.h"

namespace airi::testing {

// True iff the call is refused, as a caller's mistake.
template <class Call>
bool is_refused(Call call) {
  try {
    call();
  } catch (const InvalidArgument&) {
    return true;
  }
  return false;
}

// Bytes as a sequence of calls of everything that a Runtime offers, in the order in which an engine could
// make them. After each call: the invariants of the runtime, and what its clients and its device rely on.
class FuzzSession {
 public:
  explicit FuzzSession(Bytes& bytes);

  // Throws where anything is wrong.
  void run();

 private:
  // Calls of clients.
  void submit();
  void cancel();
  void set_weight();
  void set_quota();

  // Calls of the owner.
  void step();
  void commit();
  void change_models();
  void add_model();
  void replace_buffers();
  void teach_or_be_rude();
  void teach_models();
  void be_rude();

  // The world outside.
  void end_transfers(bool all);
  void report_nonsense();
  void move_clock();
  void read_rings(std::size_t most);

  void collect();
  void check_end(const FinishedEvent& event, const Client& client) const;
  [[nodiscard]] bool may_end(FinishReason reason, const Client& client) const;
  void check();
  void drop_what_is_gone();
  // A model's state asks for its weights to be moved.
  bool move_weights(ModelId model);
  void finish();
  void wake_all();
  void let_go();

  [[nodiscard]] ModelId draw_model() {
    return ModelId{bytes_.below(static_cast<std::int32_t>(models_.size()))};
  }
  [[nodiscard]] Runtime& runtime() { return *runtime_; }
  [[nodiscard]] std::vector<StepBuffers> new_buffers();

  Bytes& bytes_;
  Setting setting_;
  std::vector<ModelConfig>& models_;
  std::vector<StepArrays> arrays_;
  std::unique_ptr<Runtime> runtime_;
  CheckedDevice device_;
  Clients clients_;  // alive
  KvFollower eager_, lazy_;
  DecisionFollower decisions_;
  TimePoint now_{};
  TimePoint latest_{};
  Micros last_device_time_ = 0;
  std::int64_t num_accepted_ = 0;
  std::int64_t num_ended_ = 0;
  bool memory_shrank_ = false;  // what requests can count on, at some time
  bool loses_transfers_ = false;
  std::vector<TransferId> ended_transfers_;
};

}  // namespace airi::testing
