#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/check.h"

namespace airi {

// Where an element stands in an IndexedHeap; kOutsideHeap when it is in none.
using HeapPlace = std::uint32_t;
inline constexpr HeapPlace kOutsideHeap = 0xFFFFFFFFU;

// A min-heap whose elements know their own place, so that any of them can be
// removed or re-ordered in O(log n). Never owns what its elements refer to.
//
// Less is a strict order of elements; it must be total for the heap to be
// deterministic. PlaceOf maps an element to the HeapPlace& kept for it. An element may
// carry its key: update() then replaces it by the element with the new key.
//
// Thread safety: none.
// Invariant: no element is less than its parent; PlaceOf of element i is i.
template <class T, class Less, class PlaceOf>
class IndexedHeap {
 public:
  explicit IndexedHeap(Less less = {}, PlaceOf place_of = {})
      : less_(std::move(less)), place_of_(std::move(place_of)) {}

  [[nodiscard]] bool empty() const noexcept { return items_.empty(); }
  [[nodiscard]] std::size_t size() const noexcept { return items_.size(); }
  [[nodiscard]] const T& top() const noexcept { return items_.front(); }
  [[nodiscard]] const std::vector<T>& items() const noexcept { return items_; }

  // REQUIRES: `item` stands in no heap that shares its place. O(log n).
  void push(T item) {
    items_.push_back(item);
    sift_up(items_.size() - 1, item);
  }

  // REQUIRES: `item` is in this heap. O(log n).
  void remove(T item) {
    const std::size_t at = place_of_(item);
    AIRI_DCHECK(at < items_.size());
    place_of_(item) = kOutsideHeap;
    T last = items_.back();
    items_.pop_back();
    if (at < items_.size()) settle(at, last);
  }

  // Restores the order after the key of `item` changed. REQUIRES: it is in this heap. O(log n).
  void update(T item) { settle(place_of_(item), item); }

  // Calls change(item) for every element. REQUIRES: the order of elements stays as it is. O(n).
  template <class Change>
  void change_all(Change change) {
    for (T& item : items_) change(item);
  }

  T pop() {
    T first = items_.front();
    remove(first);
    return first;
  }

  // Calls visit(item) in ascending order until it returns false or `limit` items were
  // seen. O(limit log limit), not O(n); `frontier` is scratch that keeps its capacity.
  template <class Visit>
  void visit_in_order(std::size_t limit, std::vector<std::uint32_t>& frontier, Visit visit) const {
    frontier.clear();
    if (!items_.empty()) frontier.push_back(0);
    const auto later = [this](std::uint32_t a, std::uint32_t b) { return less_(items_[b], items_[a]); };
    for (std::size_t seen = 0; seen < limit && !frontier.empty(); ++seen) {
      std::pop_heap(frontier.begin(), frontier.end(), later);
      const std::uint32_t at = frontier.back();
      frontier.pop_back();
      if (!visit(items_[at])) return;
      for (std::uint32_t n = 1; n <= kArity; ++n) {
        const std::uint32_t child = kArity * at + n;
        if (child >= items_.size()) break;
        frontier.push_back(child);
        std::push_heap(frontier.begin(), frontier.end(), later);
      }
    }
  }

  // Calls visit(item), in no order, for every item for which holds(item) does. REQUIRES: it holds for the
  // parent of whatever it holds for. O(items visited).
  template <class Holds, class Visit>
  void visit_while(Holds holds, Visit visit) const {
    visit_subtree(0, holds, visit);
  }

  // Throws InvariantError where order or places are broken. O(n).
  void check_invariants() const {
    for (std::size_t i = 0; i < items_.size(); ++i) {
      AIRI_CHECK(place_of_(items_[i]) == i) << "heap place " << i;
      AIRI_CHECK(i == 0 || !less_(items_[i], items_[(i - 1) / kArity])) << "heap order at " << i;
    }
  }

 private:
  // Four children to a node halve the depth of a binary heap; they lie side by side.
  static constexpr std::uint32_t kArity = 4;

  // As deep as the heap: a few calls.
  template <class Holds, class Visit>
  void visit_subtree(std::size_t at, Holds& holds, Visit& visit) const {
    if (at >= items_.size() || !holds(items_[at])) return;
    visit(items_[at]);
    for (std::size_t n = 1; n <= kArity; ++n) visit_subtree(kArity * at + n, holds, visit);
  }

  void put(std::size_t at, T item) {
    items_[at] = item;
    place_of_(item) = static_cast<HeapPlace>(at);
  }

  void settle(std::size_t at, T item) {
    if (at > 0 && less_(item, items_[(at - 1) / kArity])) {
      sift_up(at, item);
    } else {
      sift_down(at, item);
    }
  }

  void sift_up(std::size_t at, T item) {
    while (at > 0) {
      const std::size_t parent = (at - 1) / kArity;
      if (!less_(item, items_[parent])) break;
      put(at, items_[parent]);
      at = parent;
    }
    put(at, item);
  }

  void sift_down(std::size_t at, T item) {
    const std::size_t size = items_.size();
    for (std::size_t first = kArity * at + 1; first < size; first = kArity * at + 1) {
      const std::size_t end = std::min(first + kArity, size);
      std::size_t least = first;
      for (std::size_t child = first + 1; child < end; ++child) {
        if (less_(items_[child], items_[least])) least = child;
      }
      if (!less_(items_[least], item)) break;
      put(at, items_[least]);
      at = least;
    }
    put(at, item);
  }

  std::vector<T> items_;
  Less less_;
  PlaceOf place_of_;
};

}  // namespace airi
