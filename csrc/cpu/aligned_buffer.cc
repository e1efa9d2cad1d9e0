#include "cpu/aligned_buffer.h"

#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace airi::cpu {
namespace {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kHugeFrom = std::size_t{1} << 20;

constexpr std::size_t round_up(std::size_t value, std::size_t to) { return (value + to - 1) / to * to; }

}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  const std::size_t alignment = bytes >= kHugeFrom ? kHugePage : kCacheLine;
  const std::size_t padded = round_up(bytes, alignment);
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, padded)));
  if (data_ == nullptr) throw std::bad_alloc();
#ifdef __linux__
  // Advice only: without huge pages everything still works.
  if (alignment == kHugePage) (void)madvise(data_.get(), padded, MADV_HUGEPAGE);
#endif
}

void AlignedBuffer::Free::operator()(std::byte* p) const noexcept { std::free(p); }

}  // namespace airi::cpu
