#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "guard/byte_set.h"

namespace airi::guard {

// Code points from first to last, both within.
struct CodeRange {
  std::uint32_t first = 0;
  std::uint32_t last = 0;
  friend auto operator<=>(const CodeRange&, const CodeRange&) = default;
};

inline constexpr std::uint32_t kLastCodePoint = 0x10FFFF;

enum class NodeKind : std::uint8_t {
  kCharacter,  // one of `ranges`, as UTF-8
  kByte,       // one of `bytes`
  kLook,       // no byte: the one before is in `before`, the one after in `bytes`
  kSequence,   // all `parts`; with none, the empty text
  kChoice,     // one of `parts`
  kRepeat,     // the one part, from `least` to `most` times
};

// A regular expression. A value: it owns its parts.
struct Node {
  NodeKind kind = NodeKind::kSequence;
  std::vector<CodeRange> ranges{};
  ByteSet before{};
  ByteSet bytes{};
  std::vector<Node> parts{};
  std::int32_t least = 0;
  std::optional<std::int32_t> most{};  // none: any number
};

// How many bytes a match has at least; and at most, none where it may have any number.
[[nodiscard]] std::size_t min_length(const Node& node);
[[nodiscard]] std::optional<std::size_t> max_length(const Node& node);

}  // namespace airi::guard
