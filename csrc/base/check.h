#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace airi {

// A broken invariant inside the core: always a bug of AIRI, never of its caller.
class InvariantError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// A caller's argument that the core refuses. The text names the argument, its
// value and what is accepted, and never holds request content.
class InvalidArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

namespace internal {

// Collects the message of a failed check and throws it when the statement ends.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  CheckFailure(const CheckFailure&) = delete;
  CheckFailure& operator=(const CheckFailure&) = delete;
  ~CheckFailure() noexcept(false);

  std::ostream& stream() { return message_; }

 private:
  std::ostringstream message_;
};

// Turns the stream expression into void, so that both arms of ?: agree.
struct Voidify {
  void operator&(std::ostream&) const {}
};

}  // namespace internal
}  // namespace airi

// NOLINTBEGIN(bugprone-macro-parentheses): what follows the macro is streamed into it.
// Always on. Throws InvariantError with file, line, condition and what is streamed in.
#define AIRI_CHECK(condition)                 \
  (condition) ? (void)0                       \
              : ::airi::internal::Voidify() & \
                    ::airi::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()

// On in test and sanitizer builds only: for hot paths.
#ifdef AIRI_ENABLE_DCHECK
#define AIRI_DCHECK(condition) AIRI_CHECK(condition)
#else
#define AIRI_DCHECK(condition) AIRI_CHECK(true || (condition))
#endif
// NOLINTEND(bugprone-macro-parentheses)
