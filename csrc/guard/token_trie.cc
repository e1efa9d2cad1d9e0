#include "guard/token_trie.h"

#include <algorithm>

namespace airi::guard {

TokenTrie::TokenTrie(std::span<const std::string> tokens) {
  for (std::uint32_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty()) order_.push_back(id);
  }
  // By bytes as unsigned numbers, as std::string compares, then by id.
  std::ranges::sort(order_, [&](std::uint32_t a, std::uint32_t b) {
    const int order = tokens[a].compare(tokens[b]);
    return order != 0 ? order < 0 : a < b;
  });
  std::vector<std::uint32_t> path;  // nodes of the prefix at hand
  const std::string* previous = nullptr;
  const auto close = [&](std::size_t depth, std::uint32_t token) {
    for (; path.size() > depth; path.pop_back()) {
      nodes_[path.back()].skip = static_cast<std::uint32_t>(nodes_.size());
      nodes_[path.back()].end_token = token;
      if (path.size() > 1) {
        Node& parent = nodes_[path[path.size() - 2]];
        parent.below |= nodes_[path.back()].below | byte_mark(nodes_[path.back()].byte);
      }
    }
  };
  for (std::uint32_t i = 0; i < order_.size(); ++i) {
    const std::string& token = tokens[order_[i]];
    std::size_t common = 0;
    if (previous != nullptr) {
      common = static_cast<std::size_t>(std::ranges::mismatch(*previous, token).in2 - token.begin());
    }
    close(common, i);
    for (std::size_t k = common; k < token.size(); ++k) {
      path.push_back(static_cast<std::uint32_t>(nodes_.size()));
      nodes_.push_back({.byte = static_cast<std::uint8_t>(token[k]),
                        .depth = static_cast<std::uint32_t>(k + 1),
                        .first_token = i});
    }
    max_depth_ = std::max(max_depth_, token.size());
    previous = &token;
  }
  close(0, static_cast<std::uint32_t>(order_.size()));
}

}  // namespace airi::guard
