#include "guard/code_ranges.h"

#include <algorithm>

#include "base/check.h"

namespace airi::guard {
namespace {

// The last code point that UTF-8 writes in 1, 2, 3 and 4 bytes.
constexpr std::array<std::uint32_t, 4> kLastOfLength = {0x7F, 0x7FF, 0xFFFF, kLastCodePoint};

std::array<std::uint8_t, 4> encode(std::uint32_t code, std::size_t length) {
  constexpr std::array<std::uint8_t, 5> kLead = {0, 0, 0xC0, 0xE0, 0xF0};
  std::array<std::uint8_t, 4> bytes{};
  for (std::size_t i = length; i-- > 1; code >>= 6)
    bytes[i] = static_cast<std::uint8_t>(0x80 | (code & 0x3F));
  bytes[0] = static_cast<std::uint8_t>(kLead[length] | code);
  return bytes;
}

// Splits until every byte's range is independent of the others'.
void append(CodeRange range, std::size_t length, std::vector<ByteSequence>& out) {
  for (std::size_t i = 1; i < length; ++i) {
    const std::uint32_t low = (std::uint32_t{1} << (6 * i)) - 1;  // what the last i bytes hold
    if ((range.first & ~low) == (range.last & ~low)) continue;
    if ((range.first & low) != 0) {
      append({range.first, range.first | low}, length, out);
      append({(range.first | low) + 1, range.last}, length, out);
      return;
    }
    if ((range.last & low) != low) {
      append({range.first, (range.last & ~low) - 1}, length, out);
      append({range.last & ~low, range.last}, length, out);
      return;
    }
  }
  const auto first = encode(range.first, length);
  const auto last = encode(range.last, length);
  ByteSequence sequence;
  sequence.length = length;
  for (std::size_t i = 0; i < length; ++i) sequence.ranges[i] = {first[i], last[i]};
  out.push_back(sequence);
}

}  // namespace

void normalize(CodeRanges& ranges) {
  std::ranges::sort(ranges);
  CodeRanges merged;
  for (const CodeRange& range : ranges) {
    if (!merged.empty() && range.first <= merged.back().last + 1) {
      merged.back().last = std::max(merged.back().last, range.last);
    } else {
      merged.push_back(range);
    }
  }
  ranges = std::move(merged);
}

CodeRanges complement(const CodeRanges& ranges) {
  CodeRanges rest;
  std::uint32_t next = 0;
  for (const CodeRange& range : ranges) {
    if (range.first > next) rest.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLastCodePoint) rest.push_back({next, kLastCodePoint});
  return rest;
}

void add_other_case(CodeRanges& ranges) {
  const std::size_t count = ranges.size();
  for (std::size_t i = 0; i < count; ++i) {
    const CodeRange range = ranges[i];
    const auto add = [&](std::uint32_t first, std::uint32_t last, std::int32_t shift) {
      const std::uint32_t low = std::max(first, range.first);
      const std::uint32_t high = std::min(last, range.last);
      if (low <= high)
        ranges.push_back({low + static_cast<std::uint32_t>(shift), high + static_cast<std::uint32_t>(shift)});
    };
    add('a', 'z', 'A' - 'a');
    add('A', 'Z', 'a' - 'A');
  }
  normalize(ranges);
}

std::vector<ByteSequence> byte_sequences(const CodeRanges& ranges) {
  std::vector<ByteSequence> sequences;
  for (const CodeRange& range : ranges) {
    AIRI_DCHECK(range.first <= range.last && range.last <= kLastCodePoint) << "a range of code points";
    std::uint32_t first_of_length = 0;
    for (std::size_t length = 1; length <= 4; ++length) {
      const CodeRange part{std::max(range.first, first_of_length),
                           std::min(range.last, kLastOfLength[length - 1])};
      if (part.first <= part.last) append(part, length, sequences);
      first_of_length = kLastOfLength[length - 1] + 1;
    }
  }
  return sequences;
}

}  // namespace airi::guard
