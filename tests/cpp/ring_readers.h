#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <vector>

#include "runtime.h"

namespace airi::testing {

// Who follows the KV events of a runtime: where none is missed, what it knows is what a snapshot tells;
// where some are, it starts again from a snapshot.
class KvFollower {
 public:
  // Reads at most `most` events, or all, and compares where all are read. Throws where they do not agree.
  void follow(const Runtime& runtime, std::size_t num_models, std::size_t most);
  [[nodiscard]] bool is_behind(const Runtime& runtime) const { return cursor_ < runtime.kv_events().next(); }

 private:
  struct Place {
    std::int32_t model = 0;
    std::int32_t tier = 0;
    std::uint64_t lo = 0, hi = 0;
    auto operator<=>(const Place&) const = default;
  };
  struct Parent {
    std::uint64_t lo = 0, hi = 0;
    bool operator==(const Parent&) const = default;
  };
  using Known = std::map<Place, Parent>;

  static Place place(const KvEvent& event);
  void apply(const KvEvent& event);
  void start_again(const Runtime& runtime, std::size_t num_models);
  void compare(const Runtime& runtime, std::size_t num_models) const;

  std::uint64_t cursor_ = 0;
  Known known_;
};

// Who follows the decisions: of every request that entered the queue it sees one end, if it misses nothing.
class DecisionFollower {
 public:
  void follow(const Runtime& runtime, std::size_t most);
  // REQUIRES: all requests have ended. Throws where something was recorded twice, or not at all.
  void check_counts(std::int64_t num_submitted, std::int64_t num_ended) const;

 private:
  std::uint64_t cursor_ = 0;
  std::uint64_t missed_ = 0;
  std::int64_t submitted_ = 0;
  std::int64_t finished_ = 0;
};

}  // namespace airi::testing
