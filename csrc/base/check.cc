#include "base/check.h"

namespace airi::internal {

CheckFailure::CheckFailure(const char* file, int line, const char* condition) {
  const std::string path(file);
  const auto root = path.rfind("csrc/");
  message_ << (root == std::string::npos ? path : path.substr(root)) << ':' << line
           << ": check failed: " << condition << ' ';
}

CheckFailure::~CheckFailure() noexcept(false) { throw InvariantError(message_.str()); }

}  // namespace airi::internal
