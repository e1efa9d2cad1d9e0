// Bytes become calls on a small, tight runtime, over all it offers: whatever they say, invariants hold, no
// request is lost, no byte is read or written by whom it does not belong to, and in the end nothing is held.

#include <cstdint>
#include <span>

#include "fuzz_bytes.h"
#include "fuzz_main.h"
#include "fuzz_session.h"

namespace {

void run(std::span<const std::uint8_t> input) {
  airi::testing::Bytes bytes(input);
  airi::testing::FuzzSession(bytes).run();
}

}  // namespace

int main(int argc, char** argv) { return airi::testing::fuzz_main(argc, argv, run); }
