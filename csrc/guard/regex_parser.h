#pragma once

#include "guard/pattern.h"
#include "guard/regex_ast.h"

namespace airi::guard {

// What a pattern's text means. Throws InvalidArgument in one line that names the pattern, what is not
// accepted and the character it stands at; never shows the text.
//
// A regular expression is made of characters, `.` (all but a newline), classes `[...]`, `\d \w \s \D \W \S`
// (of ASCII), `\n \r \t \f \v \0 \xHH \uHHHH \UHHHHHHHH`, groups `(...)`, `(?:...)` and `(?i:...)`, `(?i)` in
// front,
// `|`, `* + ? {n} {n,} {n,m} {,m}`, `^ \A` (only where the text begins), `$ \Z \z` (only where it ends), `\b
// \B` (of ASCII words), and looks at a single character, `(?=x) (?!x) (?<=x) (?<!x)`, whose class treats all
// characters beyond ASCII alike. Repetitions have no order of preference, as matches are longest: `*?` and
// `*+` are refused, as are references to groups, conditions and names. Case is ignored for ASCII letters
// only.
[[nodiscard]] Node parse(const Pattern& pattern);

}  // namespace airi::guard
