#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "guard/byte_set.h"

namespace airi::guard {

// The byte strings of a tokenizer's tokens as a tree, depth first in one array: what begins alike is walked
// once, and a subtree is skipped in one step. Tokens without bytes are not in it.
//
// Thread safety: immutable.
class TokenTrie {
 public:
  struct Node {
    std::uint8_t byte = 0;          // the last of the prefix
    std::uint32_t depth = 0;        // bytes of the prefix, at least 1
    std::uint64_t below = 0;        // byte_mark() of every byte that tokens below add
    std::uint32_t skip = 0;         // the next node that is not below this one
    std::uint32_t first_token = 0;  // in order(), of the tokens that begin with the prefix
    std::uint32_t end_token = 0;
  };

  explicit TokenTrie(std::span<const std::string> tokens);

  [[nodiscard]] std::span<const Node> nodes() const noexcept { return nodes_; }
  // Token ids in the order of their bytes.
  [[nodiscard]] std::span<const std::uint32_t> order() const noexcept { return order_; }
  [[nodiscard]] std::size_t max_depth() const noexcept { return max_depth_; }

 private:
  std::vector<Node> nodes_;
  std::vector<std::uint32_t> order_;
  std::size_t max_depth_ = 0;
};

}  // namespace airi::guard
