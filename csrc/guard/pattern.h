#pragma once

#include <cstdint>
#include <string>

namespace airi::guard {

// Which pattern of an automaton; the index in the list it was built from.
enum class PatternId : std::int32_t {};

// What a complete match must pass beside the pattern. See validators.h.
enum class Validator : std::uint8_t { kNone, kLuhn, kIban };

// One rule's text and how it is read. What is meant by a match of it: see scanner.h.
struct Pattern {
  std::string text;  // UTF-8; a literal may hold any bytes
  std::string name;  // what errors call it
  bool literal = false;
  // ASCII letters only.
  bool ignore_case = false;
  // Matches neither follow nor precede a letter, a digit or an underscore of ASCII.
  bool word_boundary = false;
  Validator validator = Validator::kNone;
  // Whether Scanner::open_start() waits for it; matches are reported either way.
  bool holds = true;
};

}  // namespace airi::guard
