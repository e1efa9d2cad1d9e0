// Ids do not mix. Compiled once per CASE; 0 must compile, so that the others fail for the reason they name.

#include "base/ids.h"

#include <vector>

#include "kv/slab_arena.h"

namespace airi {

BlockId block_of(BlockId block) { return block; }

inline void cases(SlabArena& slabs) {
  const BlockId block{3};
  const SlotId slot{3};
  std::vector<int> by_block(8);
#if CASE == 0
  block_of(block);
  by_block[index(block)] = raw(slot);
  slabs.give(SlabId{2}, {ModelId{1}}, TimePoint{0});
#elif CASE == 1  // a slot where a block is meant
  block_of(slot);
#elif CASE == 2  // a number where a block is meant
  block_of(3);
#elif CASE == 3  // an id as an index, unless one says so
  by_block[block] = 1;
#elif CASE == 4  // comparing ids of two kinds
  const bool same = block == slot;
  (void)same;
#elif CASE == 5  // arithmetic on ids
  const auto sum = block + 1;
  (void)sum;
#elif CASE == 6  // arguments in the wrong order
  slabs.give(ModelId{1}, {SlabId{2}}, TimePoint{0});
#endif
}

}  // namespace airi
