// Bytes become operations on a small, tight runtime: whatever they say, invariants hold, no request is lost,
// and in the end nothing is held. LLVMFuzzerTestOneInput is what libFuzzer links against.

#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/check.h"
#include "random.h"
#include "simulated_runner.h"

namespace airi::testing {
namespace {

// Hands out bytes; zeros once they are used up.
class Bytes {
 public:
  explicit Bytes(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  std::int32_t below(std::int32_t bound) {
    if (bytes_.empty()) return 0;
    const std::int32_t value = bytes_.front() % bound;
    bytes_ = bytes_.subspan(1);
    return value;
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

ModelConfig draw_model(Bytes& bytes) {
  ModelConfig model;
  model.block_size = 1 + bytes.below(5);
  model.bytes_per_block = kGranuleBytes;
  model.max_model_len = 8 + bytes.below(40);
  model.max_num_seqs = 1 + bytes.below(6);
  model.max_batch_tokens = 1 + bytes.below(20);
  model.num_slabs = 4 + bytes.below(20);
  model.admission = bytes.below(2) == 0 ? AdmissionPolicy::kNoEvict : AdmissionPolicy::kMaxUtil;
  model.watermark = 0.1 * bytes.below(6);
  model.enable_prefix_caching = bytes.below(4) != 0;
  if (bytes.below(3) == 0) model.max_prefill_chunk = model.block_size + bytes.below(4);
  if (bytes.below(2) == 0) {
    const auto micros = [&] {
      return bytes.below(4) == 0 ? std::nullopt : std::optional<Micros>(Micros{10} * bytes.below(250));
    };
    model.targets.push_back({.ttft = micros(), .itl = micros()});
    model.itl_credit = 0.25 * bytes.below(5);
  }
  return model;
}

RuntimeConfig draw_config(Bytes& bytes, std::int64_t slabs) {
  RuntimeConfig config;
  config.arena_bytes = slabs * kGranuleBytes;
  config.slab_bytes = kGranuleBytes;
  config.max_queued = 1 + bytes.below(40);
  config.num_bands = 1 + bytes.below(4);
  if (bytes.below(2) == 0) config.aging_us = 1 + bytes.below(200);
  config.service = {bytes.below(3), bytes.below(3), bytes.below(2)};
  config.bypass_tokens = bytes.below(60);
  if (bytes.below(3) == 0) config.fairness_gap_tokens = 1 + bytes.below(60);
  if (bytes.below(2) == 0) config.locality_quantum_tokens = 1 + bytes.below(100);
  config.dedupe_steps = bytes.below(5);
  config.max_preemptions = bytes.below(4);
  config.steps_ahead = bytes.below(2);
  config.quantum_us = 1 + bytes.below(250);
  config.min_residency_us = bytes.below(100);
  return config;
}

class Session {
 public:
  explicit Session(Bytes& bytes)
      : bytes_(bytes),
        models_{draw_model(bytes), draw_model(bytes)},
        config_(draw_config(bytes, *models_[0].num_slabs + *models_[1].num_slabs)),
        runner_(config_, models_) {
    if (bytes.below(2) == 0) teach();
  }

  void run() {
    while (!bytes_.empty()) {
      const std::int32_t what = bytes_.below(8);
      if (what <= 2) submit();
      if (what == 3) runner_.runtime().cancel(RequestId{bytes_.below(64)});
      if (what == 4) runner_.runtime().set_tenant(TenantId{bytes_.below(4)}, 0.25 * (1 + bytes_.below(8)));
      if (what >= 5) step();
    }
    for (int i = 0; runner_.runtime().has_work(); ++i) {
      AIRI_CHECK(i < 20'000) << "requests that never end";
      step();
    }
    step();  // rows for requests that have ended may be in flight
    collect();
    AIRI_CHECK(live_.empty()) << live_.size() << " requests vanished";
    for (const ModelStats& stats : runner_.runtime().stats()) {
      AIRI_CHECK(stats.active_blocks == 0) << stats.active_blocks << " blocks leaked";
    }
  }

 private:
  // Lets both models know how long steps take; without it no target means anything.
  void teach() {
    for (const std::int32_t id : {0, 1}) {
      StepTimeModel& model = runner_.runtime().step_time(ModelId{id});
      for (int i = 1; i <= 40; ++i) {
        model.observe({.tokens = i, .seqs = i, .decode_context = 10 * i}, 50 + i);
        model.observe({.tokens = 2 * i, .seqs = 1, .prefill_pairs = 2.0 * i * i}, 20 + 8 * i);
      }
    }
  }

  void submit() {
    RequestSpec spec;
    spec.id = RequestId{bytes_.below(64)};
    spec.model = ModelId{bytes_.below(2)};
    spec.tenant = TenantId{bytes_.below(4)};
    spec.band = bytes_.below(config_.num_bands);
    const std::int32_t length = 1 + bytes_.below(24);
    for (std::int32_t i = 0; i < length; ++i) spec.tokens.push_back(i < 12 ? 1 : bytes_.below(2));
    if (bytes_.below(4) != 0) spec.max_new_tokens = 1 + bytes_.below(12);
    spec.min_new_tokens = bytes_.below(3);
    if (bytes_.below(2) == 0) spec.stop_ids = {bytes_.below(3)};
    spec.arrival = now_;
    if (bytes_.below(4) == 0) spec.deadline = now_ + bytes_.below(250);
    if (bytes_.below(4) == 0) spec.extras.push_back({ExtraKind::kSalt, bytes_.below(20), {1}});
    spec.compute_all = bytes_.below(6) == 0;
    const RequestId id = spec.id;
    const Admit admit = runner_.runtime().submit(std::move(spec));
    AIRI_CHECK((admit != Admit::kDuplicateId) || live_.contains(id)) << "a dead id counts as live";
    if (admit == Admit::kAccepted) AIRI_CHECK(live_.insert(id).second) << "a live id was accepted again";
  }

  void step() {
    const std::int32_t failing = bytes_.below(40);
    const Micros device_time = bytes_.below(120);
    const std::int32_t token = bytes_.below(3);
    runner_.step(now_, device_time, token,
                 [&](std::size_t row) { return failing == static_cast<std::int32_t>(row) + 30; });
    now_ = now_ + device_time + 1;
    collect();
    runner_.runtime().check_invariants();
  }

  void collect() {
    for (const FinishedEvent& event : runner_.runtime().drain_events()) {
      AIRI_CHECK(live_.erase(event.request_id) == 1) << "a request ended twice";
    }
  }

  Bytes& bytes_;
  std::vector<ModelConfig> models_;
  RuntimeConfig config_;
  SimulatedRunner runner_;
  std::set<RequestId> live_;
  TimePoint now_{};
};

}  // namespace
}  // namespace airi::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  airi::testing::Bytes bytes({data, size});
  airi::testing::Session(bytes).run();
  return 0;
}

#ifndef AIRI_LIBFUZZER
namespace {

std::vector<std::uint8_t> bytes_of(std::uint64_t seed) {
  airi::testing::Random random(seed);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(40 + random.below(1500)));
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random.next());
  return bytes;
}

// Runs the bytes; where they break something, leaves them in a file and says how to run them again.
bool survives(std::uint64_t seed, const char* program) {
  const std::vector<std::uint8_t> bytes = bytes_of(seed);
  try {
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    return true;
  } catch (const std::exception& error) {
    const std::string path = "crash-" + std::to_string(seed);
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
    std::cerr << "seed " << seed << ": " << error.what() << "\nreplay: " << program << ' ' << path << '\n';
    return false;
  }
}

void replay(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  const std::vector<char> read{std::istreambuf_iterator<char>(file), {}};
  const std::vector<std::uint8_t> bytes(read.begin(), read.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

}  // namespace

// fuzz_runtime                  a fixed number of seeds, the same every time
// fuzz_runtime --seeds A B      seeds from A up to B
// fuzz_runtime FILE...          inputs that broke something
int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  std::uint64_t first = 0;
  std::uint64_t last = 1500;
  if (args.size() == 3 && args[0] == "--seeds") {
    first = std::stoull(args[1]);
    last = std::stoull(args[2]);
  } else if (!args.empty()) {
    for (const std::string& path : args) replay(path.c_str());
    return 0;
  }
  for (std::uint64_t seed = first; seed < last; ++seed) {
    if (!survives(seed, argv[0])) return 1;
  }
  return 0;
}
#endif
