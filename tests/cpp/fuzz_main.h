#pragma once

#include <cstdint>
#include <span>

namespace airi::testing {

// What a fuzz target's main does:
//
//   PROGRAM                  a fixed number of seeds, the same every time
//   PROGRAM --seeds A B      seeds from A up to B
//   PROGRAM FILE...          inputs that broke something
//
// `run` throws on what is wrong. The bytes of a seed that breaks are left in a file.
int fuzz_main(int argc, char** argv, void (*run)(std::span<const std::uint8_t>));

}  // namespace airi::testing
