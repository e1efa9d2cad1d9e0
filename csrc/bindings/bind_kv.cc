#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/check.h"
#include "bindings/convert.h"
#include "bindings/rings.h"
#include "kv/block_pool.h"
#include "kv/hash_chain.h"

// Single pieces of the core, for tests and for engines with a scheduler of their own. Lists cross
// here: none of this is on a step's path.

namespace py = pybind11;

namespace airi::bindings {
namespace {

using Tokens = std::vector<std::int32_t>;
using HashPair = std::pair<std::uint64_t, std::uint64_t>;

HashPair to_pair(const Hash128& hash) { return {hash.lo, hash.hi}; }

BlockId to_block(const BlockPool& pool, std::int32_t block) {
  if (block >= 0 && block < pool.capacity()) return BlockId{block};
  throw InvalidArgument("block must lie in [0, " + std::to_string(pool.capacity()) + "), got " +
                        std::to_string(block));
}

BlockId to_held_or_cached(const BlockPool& pool, std::int32_t id) {
  const BlockId block = to_block(pool, id);
  if (pool.ref_count(block) > 0 || pool.is_published(block)) return block;
  throw InvalidArgument("block " + std::to_string(id) + " is FREE: only ACTIVE and CACHED ones can be held");
}

SlabId to_pool_slab(const BlockPool& pool, std::int32_t slab) {
  if (slab >= 0 && slab < pool.shape().num_slabs) return SlabId{slab};
  throw InvalidArgument("slab must lie in [0, " + std::to_string(pool.shape().num_slabs) + "), got " +
                        std::to_string(slab));
}

SlabId to_present_slab(const BlockPool& pool, std::int32_t slab) {
  const SlabId id = to_pool_slab(pool, slab);
  if (pool.has_slab(id)) return id;
  throw InvalidArgument("slab " + std::to_string(slab) + " is absent");
}

std::vector<BlockId> to_blocks(const BlockPool& pool, const std::vector<std::int32_t>& ids) {
  std::vector<BlockId> blocks;
  blocks.reserve(ids.size());
  for (const std::int32_t id : ids) blocks.push_back(to_block(pool, id));
  return blocks;
}

std::vector<std::int32_t> to_ints(const std::vector<BlockId>& blocks) {
  std::vector<std::int32_t> ids;
  ids.reserve(blocks.size());
  for (const BlockId block : blocks) ids.push_back(raw(block));
  return ids;
}

// What a key's spans point into.
struct KeyParts {
  KeyParts(std::uint64_t parent_serial, const HashPair& hash_pair, Tokens token_list,
           const py::bytes& extra_bytes)
      : tokens(std::move(token_list)),
        extras(to_bytes(extra_bytes)),
        parent(parent_serial),
        hash{hash_pair.first, hash_pair.second} {}
  [[nodiscard]] BlockKey key() const {
    return {.parent = EntrySerial{parent}, .hash = hash, .tokens = tokens, .extras = extras};
  }

  Tokens tokens;
  std::vector<std::uint8_t> extras;
  std::uint64_t parent;
  Hash128 hash;
};

std::vector<HashPair> hashes_of(const HashChain& chain, const Tokens& tokens,
                                const std::vector<std::tuple<ExtraKind, std::int32_t, py::bytes>>& extras) {
  std::vector<ExtraKey> keys;
  keys.reserve(extras.size());
  for (const auto& [kind, offset, bytes] : extras) keys.push_back({kind, offset, to_bytes(bytes)});
  std::vector<Hash128> hashes;
  chain.extend(tokens, encode_extras(keys, chain.block_size()), hashes);
  std::vector<HashPair> pairs;
  pairs.reserve(hashes.size());
  for (const Hash128& hash : hashes) pairs.push_back(to_pair(hash));
  return pairs;
}

void bind_hash_chain(const py::module_& m) {
  using namespace pybind11::literals;
  py::native_enum<ExtraKind>(m, "ExtraKind", "enum.IntEnum",
                             "What besides tokens determines the KV of a block.")
      .value("ADAPTER", ExtraKind::kAdapter)
      .value("SALT", ExtraKind::kSalt)
      .value("MEDIA", ExtraKind::kMedia)
      .finalize();
  py::class_<HashChain>(m, "HashChain", "The keyed hash chain of full blocks.")
      .def(py::init([](const py::bytes& key, const py::bytes& seed, std::int32_t block_size) {
             return HashChain(to_key(key), to_bytes(seed), block_size);
           }),
           "key"_a, "seed"_a, "block_size"_a)
      .def_property_readonly("root", [](const HashChain& self) { return to_pair(self.root()); })
      .def("hashes", &hashes_of, "tokens"_a, "extras"_a = py::list());
}

void bind_block_pool(const py::module_& m) {
  using namespace pybind11::literals;
  py::class_<KvEventRing>(m, "KvEventRing", "The last events of one writer, for any number of readers.")
      .def(py::init<std::int64_t>(), "capacity"_a)
      .def("read", &read_ring<KvEvent>, "cursor"_a, "limit"_a = 4096);
  py::class_<BlockPool>(m, "BlockPool", "Reference-counted blocks and the cache of full ones.")
      .def(py::init<std::int32_t, std::int32_t>(), "capacity"_a, "block_size"_a)
      .def_static(
          "of_slabs",
          [](std::int32_t num_slabs, std::int32_t blocks_per_slab, std::int32_t block_size) {
            return BlockPool(SlabShape{num_slabs, blocks_per_slab}, block_size);
          },
          "num_slabs"_a, "blocks_per_slab"_a, "block_size"_a)
      .def_property_readonly("num_present", &BlockPool::num_present)
      .def(
          "has_slab",
          [](const BlockPool& self, std::int32_t slab) { return self.has_slab(to_pool_slab(self, slab)); },
          "slab"_a)
      .def(
          "num_active_in",
          [](const BlockPool& self, std::int32_t slab) {
            return self.num_active_in(to_present_slab(self, slab));
          },
          "slab"_a)
      .def(
          "num_cached_in",
          [](const BlockPool& self, std::int32_t slab) {
            return self.num_cached_in(to_present_slab(self, slab));
          },
          "slab"_a)
      .def(
          "add_slab", [](BlockPool& self, std::int32_t slab) { self.add_slab(to_pool_slab(self, slab)); },
          "slab"_a)
      .def(
          "drain_slab", [](BlockPool& self, std::int32_t slab) { self.drain_slab(to_pool_slab(self, slab)); },
          "slab"_a)
      .def_property_readonly("num_draining", &BlockPool::num_draining)
      .def(
          "remove_slab",
          [](BlockPool& self, std::int32_t slab) { self.remove_slab(to_pool_slab(self, slab)); }, "slab"_a)
      .def_property_readonly("num_free", &BlockPool::num_free)
      .def_property_readonly("num_cached", &BlockPool::num_cached)
      .def_property_readonly("num_active", &BlockPool::num_active)
      .def(
          "ref_count",
          [](const BlockPool& self, std::int32_t b) { return self.ref_count(to_block(self, b)); }, "block"_a)
      .def(
          "is_published",
          [](const BlockPool& self, std::int32_t b) { return self.is_published(to_block(self, b)); },
          "block"_a)
      .def(
          "is_writable",
          [](const BlockPool& self, std::int32_t b) { return self.is_writable(to_block(self, b)); },
          "block"_a)
      .def(
          "find",
          [](const BlockPool& self, std::uint64_t parent, const HashPair& hash, Tokens tokens,
             const py::bytes& extras) -> std::optional<std::pair<std::int32_t, std::uint64_t>> {
            const KeyParts parts(parent, hash, std::move(tokens), extras);
            const auto hit = self.find(parts.key());
            if (!hit) return std::nullopt;
            return std::pair(raw(hit->block), raw(hit->serial));
          },
          "parent"_a, "hash"_a, "tokens"_a, "extras"_a = py::bytes())
      .def(
          "take",
          [](BlockPool& self, std::size_t count) -> std::optional<std::vector<std::int32_t>> {
            std::vector<BlockId> out(count);
            if (!self.try_take(out)) return std::nullopt;
            return to_ints(out);
          },
          "count"_a)
      .def(
          "take_for",
          [](BlockPool& self, std::int64_t tenant, std::int32_t outstanding,
             std::size_t count) -> std::optional<std::vector<std::int32_t>> {
            std::vector<BlockId> out(count);
            const QuotaGroup group = self.quotas().counts().group_of(TenantId{tenant});
            if (!self.try_take_for(group, outstanding, out)) return std::nullopt;
            return to_ints(out);
          },
          "tenant"_a, "outstanding"_a, "count"_a)
      .def(
          "set_quota",
          [](BlockPool& self, std::int64_t tenant, std::int32_t blocks) {
            self.quotas().set(TenantId{tenant}, blocks);
          },
          "tenant"_a, "blocks"_a)
      .def(
          "settle_quotas",
          [](BlockPool& self, std::int32_t outstanding) {
            self.quotas().settle(self.num_available(), outstanding);
          },
          "outstanding"_a)
      .def(
          "promise",
          [](BlockPool& self, std::int64_t tenant, std::int32_t count) {
            self.quotas().promise(self.quotas().counts().group_of(TenantId{tenant}), count);
          },
          "tenant"_a, "count"_a)
      .def(
          "quota_of",
          [](const BlockPool& self, std::int64_t tenant) {
            const QuotaCounts& counts = self.quotas().counts();
            const QuotaGroup group = counts.group_of(TenantId{tenant});
            const QuotaCounts::Group& own = counts[group];
            return std::tuple(own.quota, own.owned, own.cached, counts.num_protected(group));
          },
          "tenant"_a)
      .def_property_readonly("num_idle",
                             [](const BlockPool& self) { return self.quotas().counts().num_idle(); })
      .def(
          "hold", [](BlockPool& self, std::int32_t b) { self.hold(to_held_or_cached(self, b)); }, "block"_a)
      .def(
          "release",
          [](BlockPool& self, const std::vector<std::int32_t>& table) {
            self.release(to_blocks(self, table));
          },
          "table"_a)
      .def(
          "publish",
          [](BlockPool& self, std::int32_t block, std::uint64_t parent, const HashPair& hash, Tokens tokens,
             const py::bytes& extras, const HashPair& parent_hash) {
            const KeyParts parts(parent, hash, std::move(tokens), extras);
            BlockKey key = parts.key();
            key.parent_hash = {parent_hash.first, parent_hash.second};
            return raw(self.publish(to_block(self, block), key));
          },
          "block"_a, "parent"_a, "hash"_a, "tokens"_a, "extras"_a = py::bytes(),
          "parent_hash"_a = HashPair{0, 0})
      .def(
          "unpublish", [](BlockPool& self, std::int32_t b) { self.unpublish(to_block(self, b)); }, "block"_a)
      .def(
          "send_events_to",
          [](BlockPool& self, KvEventRing& ring, std::int32_t num_tokens) {
            self.send_events_to(KvEventSink(&ring, ModelId{0}, num_tokens));
          },
          "ring"_a, "num_tokens"_a, py::keep_alive<1, 2>())
      .def("stored_hashes", [](const BlockPool& self) { return to_array(self.stored_hashes()); })
      .def("eviction_order", [](const BlockPool& self) { return to_ints(self.eviction_order()); })
      .def("check_invariants", &BlockPool::check_invariants);
}

}  // namespace

void bind_kv(const py::module_& parts) {
  bind_hash_chain(parts);
  bind_block_pool(parts);
}

}  // namespace airi::bindings
