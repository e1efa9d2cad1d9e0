#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/broadcast_ring.h"
#include "base/check.h"

namespace airi::bindings {

// A copy of the records as a structured array. REQUIRES: bind_events() has run.
template <class Record>
pybind11::array_t<Record> to_array(const std::vector<Record>& records) {
  return pybind11::array_t<Record>(static_cast<pybind11::ssize_t>(records.size()), records.data());
}

// (records, cursor to read on from, records missed); at most `limit` records. For any thread.
template <class Record>
pybind11::tuple read_ring(const BroadcastRing<Record>& ring, std::uint64_t cursor, std::int64_t limit) {
  if (limit < 1) throw InvalidArgument("limit must be at least 1, got " + std::to_string(limit));
  const std::uint64_t waiting = ring.next() - std::min(cursor, ring.next());
  std::vector<Record> records(
      static_cast<std::size_t>(std::min({waiting, ring.capacity(), static_cast<std::uint64_t>(limit)})));
  const RingRead read = ring.read(cursor, records);
  records.resize(read.count);
  return pybind11::make_tuple(to_array(records), read.cursor, read.missed);
}

}  // namespace airi::bindings
