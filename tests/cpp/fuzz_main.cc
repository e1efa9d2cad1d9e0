#include "fuzz_main.h"

#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "random.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace airi::testing {
namespace {

std::vector<std::uint8_t> bytes_of(std::uint64_t seed) {
  Random random(seed);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(150 + random.below(3000)));
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random.next());
  return bytes;
}

const char* program = "";
void (*run_input)(std::span<const std::uint8_t>) = nullptr;
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
    run_input(bytes);
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
  run_input(bytes);
}

}  // namespace

int fuzz_main(int argc, char** argv, void (*run)(std::span<const std::uint8_t>)) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  program = argv[0];
  run_input = run;
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

}  // namespace airi::testing
