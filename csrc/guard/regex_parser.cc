#include "guard/regex_parser.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"
#include "guard/code_ranges.h"

namespace airi::guard {
namespace {

constexpr std::int32_t kMostRepeats = 1000;
constexpr int kMostNested = 100;

const CodeRanges kDigits = {{'0', '9'}};
const CodeRanges kSpaces = {{'\t', '\r'}, {' ', ' '}};
const CodeRanges kWords = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};

[[nodiscard]] Node look(const ByteSet& before, const ByteSet& after) {
  return {.kind = NodeKind::kLook, .before = before, .bytes = after};
}
[[nodiscard]] Node choice(Node a, Node b) {
  Node node{.kind = NodeKind::kChoice};
  node.parts.push_back(std::move(a));
  node.parts.push_back(std::move(b));
  return node;
}
[[nodiscard]] Node word_edge() {
  return choice(look(ByteSet::word(), ~ByteSet::word()), look(~ByteSet::word(), ByteSet::word()));
}
[[nodiscard]] Node no_word_edge() {
  return choice(look(ByteSet::word(), ByteSet::word()), look(~ByteSet::word(), ~ByteSet::word()));
}
[[nodiscard]] bool is_digit(char32_t c) { return c >= '0' && c <= '9'; }
[[nodiscard]] bool is_letter(char32_t c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// Reads one regular expression from left to right.
class Parser {
 public:
  explicit Parser(const Pattern& pattern) : pattern_(pattern), ignore_case_(pattern.ignore_case) { decode(); }

  [[nodiscard]] Node parse_all() {
    if (take_word(U"(?i)")) ignore_case_ = true;
    Node node = parse_choice(0);
    if (at_ != text_.size()) refuse("this ) closes no group");
    return node;
  }
  [[noreturn]] void refuse(const std::string& what) const { refuse_at(at_, what); }

 private:
  [[noreturn]] void refuse_at(std::size_t at, const std::string& what) const {
    throw InvalidArgument("pattern '" + pattern_.name + "', character " + std::to_string(at + 1) + ": " +
                          what);
  }

  void decode() {
    const std::string& text = pattern_.text;
    for (std::size_t i = 0; i < text.size();) {
      const auto lead = static_cast<std::uint8_t>(text[i]);
      const std::size_t length = lead < 0x80   ? 1
                                 : lead < 0xC2 ? 0
                                 : lead < 0xE0 ? 2
                                 : lead < 0xF0 ? 3
                                 : lead < 0xF5 ? 4
                                               : 0;
      if (length == 0 || i + length > text.size()) refuse_at(text_.size(), "the text is not UTF-8");
      char32_t code = length == 1 ? lead : lead & (0x7F >> length);
      for (std::size_t k = 1; k < length; ++k) {
        const auto byte = static_cast<std::uint8_t>(text[i + k]);
        if ((byte & 0xC0) != 0x80) refuse_at(text_.size(), "the text is not UTF-8");
        code = (code << 6) | (byte & 0x3F);
      }
      text_.push_back(code);
      i += length;
    }
  }

  [[nodiscard]] bool at_end() const { return at_ == text_.size(); }
  [[nodiscard]] bool next_is(char32_t c) const { return !at_end() && text_[at_] == c; }
  [[nodiscard]] bool take(char32_t c) {
    if (!next_is(c)) return false;
    ++at_;
    return true;
  }
  [[nodiscard]] bool take_word(std::u32string_view word) {
    if (!std::u32string_view(text_).substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }

  Node parse_choice(int depth) {
    if (depth > kMostNested) refuse("groups nest deeper than " + std::to_string(kMostNested));
    Node first = parse_sequence(depth);
    if (!next_is('|')) return first;
    Node node{.kind = NodeKind::kChoice};
    node.parts.push_back(std::move(first));
    while (take('|')) node.parts.push_back(parse_sequence(depth));
    return node;
  }

  Node parse_sequence(int depth) {
    Node node;
    while (!at_end() && !next_is('|') && !next_is(')')) node.parts.push_back(parse_repeat(depth));
    return node;
  }

  Node parse_repeat(int depth) {
    const std::size_t begin = at_;
    Node atom = parse_atom(depth);
    if (at_end() || std::u32string_view(U"*+?{").find(text_[at_]) == std::u32string_view::npos) return atom;
    if (atom.kind == NodeKind::kLook || is_word_edge(begin)) refuse("an assertion cannot be repeated");
    Node node{.kind = NodeKind::kRepeat};
    parse_bounds(node);
    node.parts.push_back(std::move(atom));
    if (next_is('?')) refuse("matches are longest: a repetition cannot be lazy");
    if (next_is('+')) refuse("possessive repetitions are not supported");
    if (next_is('*') || next_is('{')) refuse("a repetition cannot be repeated; use a group");
    return node;
  }
  [[nodiscard]] bool is_word_edge(std::size_t begin) const {
    return text_[begin] == '\\' && at_ == begin + 2 && (text_[begin + 1] == 'b' || text_[begin + 1] == 'B');
  }

  void parse_bounds(Node& node) {
    const char32_t c = text_[at_++];
    if (c == '*' || c == '+') {
      node.least = c == '+' ? 1 : 0;
    } else if (c == '?') {
      node.most = 1;
    } else {
      parse_counts(node);
    }
  }

  void parse_counts(Node& node) {
    const std::size_t begin = at_ - 1;
    const auto least = parse_count();
    if (take(',')) {
      node.most = parse_count();
      if (!least && !node.most) refuse_at(begin, "a { that begins no count must be escaped");
    } else {
      node.most = least;
    }
    if (!take('}') || (!least && !node.most)) refuse_at(begin, "a { that begins no count must be escaped");
    node.least = least.value_or(0);
    if (node.most && *node.most < node.least) refuse_at(begin, "the largest count is below the smallest");
  }

  std::optional<std::int32_t> parse_count() {
    if (at_end() || !is_digit(text_[at_])) return std::nullopt;
    const std::size_t begin = at_;
    std::int32_t count = 0;
    for (; !at_end() && is_digit(text_[at_]); ++at_) {
      count = 10 * count + static_cast<std::int32_t>(text_[at_] - '0');
      if (count > kMostRepeats) refuse_at(begin, "counts go up to " + std::to_string(kMostRepeats));
    }
    return count;
  }

  Node parse_atom(int depth) {
    switch (text_[at_]) {
      case '(':
        return parse_group(depth);
      case '[':
        return characters(parse_class());
      case '.':
        ++at_;
        return characters(complement({{'\n', '\n'}}));
      case '^':
        ++at_;
        return look(ByteSet::edge(), ByteSet::all());
      case '$':
        ++at_;
        return look(ByteSet::all(), ByteSet::edge());
      case '\\':
        return parse_escape();
      case '*':
      case '+':
      case '?':
        refuse("there is nothing to repeat");
      case '{':
        refuse("a { that begins no count must be escaped");
      default:
        return one(text_[at_++]);
    }
  }

  Node parse_group(int depth) {
    const std::size_t begin = at_++;
    for (const auto& [opening, ahead, negated] : kLooks) {
      if (take_word(opening)) return parse_look(begin, ahead, negated);
    }
    const bool outer = ignore_case_;
    if (take_word(U"?i:")) {
      ignore_case_ = true;
    } else if (next_is('?') && !take_word(U"?:")) {
      refuse("of groups only (?:, (?i:, (?=, (?!, (?<= and (?<! are supported, and (?i) in front");
    }
    Node node = parse_choice(depth + 1);
    if (!take(')')) refuse_at(begin, "this ( is never closed");
    ignore_case_ = outer;
    // So that a repetition takes it whole and a look inside it is no bare assertion.
    Node group;
    group.parts.push_back(std::move(node));
    return group;
  }

  Node parse_look(std::size_t begin, bool ahead, bool negated) {
    const std::size_t inside = at_;
    if (at_end()) refuse_at(begin, "this ( is never closed");
    if (next_is('(')) refuse_at(inside, "a look sees a single character or class");
    const Node node = parse_atom(0);
    if (!take(')')) refuse_at(inside, "a look sees a single character or class");
    if (node.kind != NodeKind::kCharacter) refuse_at(inside, "a look sees a single character or class");
    ByteSet set;
    for (const CodeRange& range : node.ranges) {
      for (std::uint32_t c = range.first; c <= std::min<std::uint32_t>(range.last, 0x7F); ++c) {
        set.add(static_cast<std::uint8_t>(c));
      }
      if (range.last <= 0x7F) continue;
      if (range.first > 0x80 || range.last != kLastCodePoint) {
        refuse_at(inside, "a look must treat all characters beyond ASCII alike");
      }
      set = set | ByteSet::range(0x80, 0xFF);
    }
    if (negated) set = ~set;
    return ahead ? look(ByteSet::all(), set) : look(set, ByteSet::all());
  }

  Node parse_escape() {
    const std::size_t begin = at_++;
    if (at_end()) refuse_at(begin, "a \\ at the end escapes nothing");
    if (take('b')) return word_edge();
    if (take('B')) return no_word_edge();
    if (take('A')) return look(ByteSet::edge(), ByteSet::all());
    if (take('z') || take('Z')) return look(ByteSet::all(), ByteSet::edge());
    if (auto named = parse_named_class()) return characters(std::move(*named));
    return one(parse_escaped_character(begin));
  }

  // \d and the like; the backslash is read already.
  std::optional<CodeRanges> parse_named_class() {
    const auto named = [&](const CodeRanges& ranges, char32_t lower) -> std::optional<CodeRanges> {
      if (take(lower)) return ranges;
      if (take(lower - 'a' + 'A')) return complement(ranges);
      return std::nullopt;
    };
    if (auto digits = named(kDigits, 'd')) return digits;
    if (auto words = named(kWords, 'w')) return words;
    return named(kSpaces, 's');
  }

  std::uint32_t parse_escaped_character(std::size_t begin) {
    const char32_t c = text_[at_++];
    switch (c) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case 'a':
        return '\a';
      case 'x':
        return parse_hex(begin, 2);
      case 'u':
        return parse_hex(begin, 4);
      case 'U':
        return parse_hex(begin, 8);
      default:
        break;
    }
    if (c == '0' && (at_end() || !is_digit(text_[at_]))) return 0;
    if (is_digit(c)) refuse_at(begin, "references to groups and octal numbers are not supported");
    if (is_letter(c)) refuse_at(begin, "this escape is not supported");
    return c;
  }

  std::uint32_t parse_hex(std::size_t begin, int digits) {
    std::uint32_t code = 0;
    for (int i = 0; i < digits; ++i, ++at_) {
      const char32_t c = at_end() ? 0 : text_[at_];
      const char32_t lower = is_letter(c) ? (c | 0x20) : c;
      if (!is_digit(c) && !(lower >= 'a' && lower <= 'f')) {
        refuse_at(begin, "this escape takes " + std::to_string(digits) + " hexadecimal digits");
      }
      code = 16 * code + (is_digit(c) ? c - '0' : lower - 'a' + 10);
    }
    if (code > kLastCodePoint) refuse_at(begin, "there is no such character");
    return code;
  }

  CodeRanges parse_class() {
    const std::size_t begin = at_++;
    const bool negated = take('^');
    CodeRanges ranges;
    for (bool first = true; first || !next_is(']'); first = false) {
      if (at_end()) refuse_at(begin, "this [ is never closed");
      if (next_is('[') && at_ + 1 < text_.size() && text_[at_ + 1] == ':')
        refuse("classes by name are not supported");
      parse_class_part(begin, ranges);
    }
    ++at_;
    normalize(ranges);
    if (ignore_case_) add_other_case(ranges);
    if (negated) ranges = complement(ranges);
    if (ranges.empty()) refuse_at(begin, "this class has no character");
    return ranges;
  }

  void parse_class_part(std::size_t begin, CodeRanges& ranges) {
    const std::size_t part = at_;
    if (next_is('\\') && at_ + 1 < text_.size()) {
      ++at_;
      if (const auto named = parse_named_class()) {
        ranges.insert(ranges.end(), named->begin(), named->end());
        return;
      }
      at_ = part;
    }
    const std::uint32_t first = parse_class_character(begin);
    const bool is_range = next_is('-') && at_ + 1 < text_.size() && text_[at_ + 1] != ']';
    if (!is_range) {
      ranges.push_back({first, first});
      return;
    }
    ++at_;
    const std::uint32_t last = parse_class_character(begin);
    if (last < first) refuse_at(part, "this range runs backwards");
    ranges.push_back({first, last});
  }

  std::uint32_t parse_class_character(std::size_t begin) {
    if (at_end()) refuse_at(begin, "this [ is never closed");
    const std::size_t escape = at_;
    if (!take('\\')) return text_[at_++];
    if (at_end()) refuse_at(begin, "this [ is never closed");
    if (take('b')) return '\b';
    return parse_escaped_character(escape);
  }

  [[nodiscard]] Node one(std::uint32_t code) const {
    CodeRanges ranges{{code, code}};
    if (ignore_case_) add_other_case(ranges);
    return characters(std::move(ranges));
  }
  [[nodiscard]] static Node characters(CodeRanges ranges) {
    return {.kind = NodeKind::kCharacter, .ranges = std::move(ranges)};
  }

  struct Look {
    std::u32string_view opening;
    bool ahead;
    bool negated;
  };
  static constexpr std::array<Look, 4> kLooks = {
      {{U"?=", true, false}, {U"?!", true, true}, {U"?<=", false, false}, {U"?<!", false, true}}};

  const Pattern& pattern_;
  std::u32string text_;
  std::size_t at_ = 0;
  bool ignore_case_;
};

Node parse_literal(const Pattern& pattern) {
  Node node;
  for (const char c : pattern.text) {
    const auto byte = static_cast<std::uint8_t>(c);
    Node one{.kind = NodeKind::kByte};
    one.bytes.add(byte);
    if (pattern.ignore_case && is_letter(byte)) one.bytes.add(byte ^ 0x20);
    node.parts.push_back(std::move(one));
  }
  return node;
}

}  // namespace

Node parse(const Pattern& pattern) {
  Node node = pattern.literal ? parse_literal(pattern) : Parser(pattern).parse_all();
  if (min_length(node) == 0) {
    throw InvalidArgument("pattern '" + pattern.name + "' matches the empty text");
  }
  if (!pattern.word_boundary) return node;
  Node whole;
  whole.parts.push_back(look(~ByteSet::word(), ByteSet::all()));
  whole.parts.push_back(std::move(node));
  whole.parts.push_back(look(ByteSet::all(), ~ByteSet::word()));
  return whole;
}

}  // namespace airi::guard
