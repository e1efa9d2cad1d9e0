#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <unordered_map>

namespace airi {

// The `capacity` keys that were touched last. What a router believes to be in a replica's cache.
//
// Thread safety: none.
// Invariant: size() <= capacity; a key that is in has been touched more recently than any that was dropped
// since.
class RecentSet {
 public:
  explicit RecentSet(std::size_t capacity) : capacity_(capacity) {}
  RecentSet(const RecentSet&) = delete;
  RecentSet& operator=(const RecentSet&) = delete;
  RecentSet(RecentSet&&) = default;

  [[nodiscard]] bool contains(std::uint64_t key) const { return places_.contains(key); }
  [[nodiscard]] std::size_t size() const noexcept { return places_.size(); }

  void touch(std::uint64_t key) {
    if (const auto found = places_.find(key); found != places_.end()) {
      order_.splice(order_.begin(), order_, found->second);
      return;
    }
    if (capacity_ == 0) return;
    if (places_.size() == capacity_) {
      places_.erase(order_.back());
      order_.pop_back();
    }
    order_.push_front(key);
    places_.emplace(key, order_.begin());
  }

 private:
  std::size_t capacity_;
  std::list<std::uint64_t> order_;  // last touched first
  std::unordered_map<std::uint64_t, std::list<std::uint64_t>::iterator> places_;
};

}  // namespace airi
