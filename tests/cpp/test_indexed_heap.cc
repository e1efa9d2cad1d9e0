// The indexed heap against std::set, which keeps the same order by another road.

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "base/indexed_heap.h"
#include "random.h"
#include "testing.h"

namespace airi {
namespace {

struct Item {
  std::int32_t key = 0;
  std::int32_t id = 0;
  HeapPlace place = kOutsideHeap;
};
struct ByKey {
  bool operator()(const Item* a, const Item* b) const {
    return a->key != b->key ? a->key < b->key : a->id < b->id;
  }
};
struct PlaceOf {
  HeapPlace& operator()(Item* item) const { return item->place; }
};
using Heap = IndexedHeap<Item*, ByKey, PlaceOf>;

TEST(a_hundred_thousand_operations_keep_the_order_of_a_set) {
  testing::Random random(7);
  std::vector<Item> items(300);
  for (std::size_t i = 0; i < items.size(); ++i) items[i].id = static_cast<std::int32_t>(i);
  Heap heap;
  std::set<Item*, ByKey> model;
  std::vector<std::uint32_t> frontier;
  for (int step = 0; step < 100'000; ++step) {
    Item* item = &items[static_cast<std::size_t>(random.below(300))];
    const bool inside = item->place != kOutsideHeap;
    EXPECT(inside == model.contains(item));
    if (!inside) {
      item->key = random.below(50);
      heap.push(item);
      model.insert(item);
    } else if (random.below(2) == 0) {
      heap.remove(item);
      model.erase(item);
    } else {
      model.erase(item);
      item->key = random.below(50);
      heap.update(item);
      model.insert(item);
    }
    EXPECT(heap.size() == model.size());
    EXPECT(heap.empty() || heap.top() == *model.begin());
    if (step % 1000 != 0) continue;
    heap.check_invariants();
    for (const std::size_t limit : {0, 1, 5, 1000}) {
      std::vector<Item*> seen;
      heap.visit_in_order(limit, frontier, [&](Item* i) {
        seen.push_back(i);
        return true;
      });
      EXPECT(seen.size() == std::min(limit, model.size()));
      auto expected = model.begin();
      for (Item* i : seen) EXPECT(i == *expected++);
    }
  }
  while (!heap.empty()) {
    EXPECT(heap.pop() == *model.begin());
    model.erase(model.begin());
  }
  EXPECT(model.empty());
}

TEST(a_visit_ends_where_it_is_told_to) {
  std::vector<Item> items(20);
  Heap heap;
  for (std::size_t i = 0; i < items.size(); ++i) {
    items[i].id = static_cast<std::int32_t>(i);
    heap.push(&items[i]);
  }
  std::vector<std::uint32_t> frontier;
  int seen = 0;
  heap.visit_in_order(20, frontier, [&](const Item*) { return ++seen < 3; });
  EXPECT(seen == 3);
}

TEST(a_broken_order_is_found) {
  std::vector<Item> items(5);
  Heap heap;
  for (Item& item : items) heap.push(&item);
  items[0].key = 9;
  EXPECT_THROW(heap.check_invariants(), InvariantError);
}

}  // namespace
}  // namespace airi

RUN_TESTS()
