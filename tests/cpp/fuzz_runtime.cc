// Bytes become calls on a small, tight runtime, over all it offers: whatever they say, invariants hold, no
// request is lost, no byte is read or written by whom it does not belong to, and in the end nothing is held.

#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "fuzz_bytes.h"
#include "fuzz_session.h"
#include "random.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

void run(std::span<const std::uint8_t> input) {
  airi::testing::Bytes bytes(input);
  airi::testing::FuzzSession(bytes).run();
}

std::vector<std::uint8_t> bytes_of(std::uint64_t seed) {
  airi::testing::Random random(seed);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(150 + random.below(3000)));
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random.next());
  return bytes;
}

const char* program = "fuzz_runtime";
std::uint64_t running_seed = 0;

// Leaves the bytes of the seed in a file and says how to run them again.
void keep_crash(std::uint64_t seed, const char* what) {
  const std::vector<std::uint8_t> bytes = bytes_of(seed);
  const std::string path = "crash-" + std::to_string(seed);
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
  std::cerr << "seed " << seed << ": " << what << "\nreplay: " << program << ' ' << path << '\n';
}

bool survives(std::uint64_t seed) {
  const std::vector<std::uint8_t> bytes = bytes_of(seed);
  running_seed = seed;
  try {
    run(bytes);
    return true;
  } catch (const std::exception& error) {
    keep_crash(seed, error.what());
    return false;
  }
}

void replay(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  const std::vector<char> read{std::istreambuf_iterator<char>(file), {}};
  const std::vector<std::uint8_t> bytes(read.begin(), read.end());
  run(bytes);
}

}  // namespace

// fuzz_runtime                  a fixed number of seeds, the same every time
// fuzz_runtime --seeds A B      seeds from A up to B
// fuzz_runtime FILE...          inputs that broke something
int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  program = argv[0];
  std::uint64_t first = 0;
  std::uint64_t last = 300;
  if (args.size() == 3 && args[0] == "--seeds") {
    first = std::stoull(args[1]);
    last = std::stoull(args[2]);
  } else if (!args.empty()) {
    for (const std::string& path : args) replay(path.c_str());
    return 0;
  }
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_set_death_callback([] { keep_crash(running_seed, "see above"); });
#endif
  for (std::uint64_t seed = first; seed < last; ++seed) {
    if (!survives(seed)) return 1;
  }
  return 0;
}
