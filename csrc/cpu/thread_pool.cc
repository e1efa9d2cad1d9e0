#include "cpu/thread_pool.h"
namespace airi::cpu {
int num_threads() { return 1; }
}  // namespace airi::cpu
