#pragma once

// A test is `TEST(a_sentence) { EXPECT(...); }`; `RUN_TESTS()` is main. Every test of the executable
// runs; a failed expectation ends its test and makes the process fail.

#include <exception>
#include <functional>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace airi::testing {

struct Test {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, std::function<void()> body) { tests().push_back({name, std::move(body)}); }
};

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::ostringstream text;
  text << file << ':' << line << ": " << what;
  throw Failure(text.str());
}

// Runs all tests; returns how many failed.
inline int run() {
  int failed = 0;
  for (const Test& test : tests()) {
    try {
      test.body();
      continue;
    } catch (const std::exception& error) {
      std::cerr << "FAILED " << test.name << "\n  " << error.what() << '\n';
    }
    ++failed;
  }
  std::cerr << tests().size() - static_cast<std::size_t>(failed) << " of " << tests().size() << " passed\n";
  return failed;
}

}  // namespace airi::testing

#define TEST(name)                                                             \
  static void name();                                                          \
  static const ::airi::testing::Registration name##_registration(#name, name); \
  static void name()

#define EXPECT(condition) \
  if (!(condition)) ::airi::testing::fail(__FILE__, __LINE__, "expected " #condition)

// The statement throws an exception of exactly or below this type.
#define EXPECT_THROW(statement, type)                                                       \
  do {                                                                                      \
    bool threw = false;                                                                     \
    try {                                                                                   \
      statement;                                                                            \
    } catch (const type&) {                                                                 \
      threw = true;                                                                         \
    }                                                                                       \
    if (!threw) ::airi::testing::fail(__FILE__, __LINE__, #statement " must throw " #type); \
  } while (false)

#define RUN_TESTS() \
  int main() { return ::airi::testing::run() == 0 ? 0 : 1; }
