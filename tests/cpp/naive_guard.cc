#include "naive_guard.h"

#include <algorithm>
#include <set>

#include "guard/regex_parser.h"
#include "guard/validators.h"

namespace airi::testing {
namespace {

using guard::Node;
using guard::NodeKind;
using Ends = std::set<std::size_t>;

std::uint8_t byte_at(std::string_view text, std::size_t i) { return static_cast<std::uint8_t>(text[i]); }

bool sees(const guard::ByteSet& set, std::string_view text, std::size_t i) {
  return i < text.size() ? set.contains(byte_at(text, i)) : set.has_edge();
}

// Where the character at `i` ends, if it is well formed and one of the ranges.
Ends end_of_character(const Node& node, std::string_view text, std::size_t i) {
  if (i >= text.size()) return {};
  const std::uint32_t lead = byte_at(text, i);
  const std::size_t length = lead < 0x80 ? 1 : lead < 0xC0 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (length == 0 || i + length > text.size()) return {};
  std::uint32_t code = length == 1 ? lead : lead & (0x7FU >> length);
  for (std::size_t k = 1; k < length; ++k) {
    if ((byte_at(text, i + k) & 0xC0) != 0x80) return {};
    code = (code << 6) | (byte_at(text, i + k) & 0x3FU);
  }
  const std::size_t shortest = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  const bool fits =
      shortest == length && std::ranges::any_of(node.ranges, [&](const guard::CodeRange& range) {
        return range.first <= code && code <= range.last;
      });
  return fits ? Ends{i + length} : Ends{};
}

Ends ends_of(const Node& node, std::string_view text, const Ends& starts) {
  Ends ends;
  switch (node.kind) {
    case NodeKind::kCharacter:
      for (const std::size_t i : starts) ends.merge(end_of_character(node, text, i));
      return ends;
    case NodeKind::kByte:
      for (const std::size_t i : starts) {
        if (i < text.size() && node.bytes.contains(byte_at(text, i))) ends.insert(i + 1);
      }
      return ends;
    case NodeKind::kLook:
      for (const std::size_t i : starts) {
        const bool before = i == 0 ? node.before.has_edge() : node.before.contains(byte_at(text, i - 1));
        if (before && sees(node.bytes, text, i)) ends.insert(i);
      }
      return ends;
    case NodeKind::kSequence:
      ends = starts;
      for (const Node& part : node.parts) ends = ends_of(part, text, ends);
      return ends;
    case NodeKind::kChoice:
      for (const Node& part : node.parts) ends.merge(ends_of(part, text, starts));
      return ends;
    case NodeKind::kRepeat:
      break;
  }
  Ends at = starts;
  for (std::int32_t i = 0; i < node.least; ++i) at = ends_of(node.parts.front(), text, at);
  ends = at;
  for (std::int32_t i = node.least; !at.empty() && i < node.most.value_or(i + 1); ++i) {
    Ends next = ends_of(node.parts.front(), text, at);
    at.clear();
    for (const std::size_t end : next) {
      if (ends.insert(end).second) at.insert(end);
    }
  }
  return ends;
}

}  // namespace

NaiveMatcher::NaiveMatcher(const guard::Pattern& pattern) : pattern_(pattern), node_(guard::parse(pattern)) {}

bool NaiveMatcher::is_candidate(std::string_view text, std::size_t start, std::size_t end) const {
  if (!ends_of(node_, text, {start}).contains(end)) return false;
  const std::string_view match = text.substr(start, end - start);
  return guard::passes(pattern_.validator,
                       {reinterpret_cast<const std::uint8_t*>(match.data()), match.size()});
}

std::vector<guard::Match> NaiveMatcher::matches(std::string_view text, guard::PatternId id) const {
  std::vector<guard::Match> found;
  for (std::size_t start = 0; start < text.size();) {
    const Ends ends = ends_of(node_, text, {start});
    const auto longest = std::find_if(ends.rbegin(), ends.rend(),
                                      [&](std::size_t end) { return is_candidate(text, start, end); });
    if (longest == ends.rend()) {
      ++start;
      continue;
    }
    found.push_back({id, static_cast<std::int64_t>(start), static_cast<std::int64_t>(*longest)});
    start = *longest;
  }
  return found;
}

}  // namespace airi::testing
