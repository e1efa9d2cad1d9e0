#include "guard/regex_ast.h"

#include <algorithm>

namespace airi::guard {

std::size_t min_length(const Node& node) {
  std::size_t length = 0;
  switch (node.kind) {
    case NodeKind::kCharacter:
      for (std::size_t bytes = 1; const std::uint32_t last : {0x7FU, 0x7FFU, 0xFFFFU, kLastCodePoint}) {
        if (node.ranges.front().first <= last) return bytes;
        ++bytes;
      }
      return 4;
    case NodeKind::kByte:
      return 1;
    case NodeKind::kLook:
      return 0;
    case NodeKind::kSequence:
      for (const Node& part : node.parts) length += min_length(part);
      return length;
    case NodeKind::kChoice:
      length = min_length(node.parts.front());
      for (const Node& part : node.parts) length = std::min(length, min_length(part));
      return length;
    case NodeKind::kRepeat:
      return static_cast<std::size_t>(node.least) * min_length(node.parts.front());
  }
  return length;
}

std::optional<std::size_t> max_length(const Node& node) {
  std::size_t length = 0;
  switch (node.kind) {
    case NodeKind::kCharacter:
      return node.ranges.back().last <= 0x7F ? 1 : 4;
    case NodeKind::kByte:
      return 1;
    case NodeKind::kLook:
      return 0;
    case NodeKind::kSequence:
    case NodeKind::kChoice:
      for (const Node& part : node.parts) {
        const auto most = max_length(part);
        if (!most) return std::nullopt;
        length = node.kind == NodeKind::kChoice ? std::max(length, *most) : length + *most;
      }
      return length;
    case NodeKind::kRepeat:
      const auto most = max_length(node.parts.front());
      if (!most || (!node.most && *most > 0)) return std::nullopt;
      return *most * static_cast<std::size_t>(node.most.value_or(0));
  }
  return length;
}

}  // namespace airi::guard
