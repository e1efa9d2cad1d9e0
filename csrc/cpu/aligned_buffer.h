#pragma once

#include <cstddef>
#include <memory>

namespace airi::cpu {

// Owned uninitialised memory aligned to a cache line. From 2 MiB on it is aligned to and
// advised for pages of that size: streaming weights through 4 KiB pages costs TLB misses.
//
// Thread safety: none.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t bytes);

  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }
  [[nodiscard]] std::byte* data() noexcept { return data_.get(); }
  [[nodiscard]] const std::byte* data() const noexcept { return data_.get(); }

  template <class T>
  [[nodiscard]] T* as() noexcept {
    return reinterpret_cast<T*>(data_.get());
  }
  template <class T>
  [[nodiscard]] const T* as() const noexcept {
    return reinterpret_cast<const T*>(data_.get());
  }

  // Makes room for `bytes`; the contents are lost when it grows.
  void reserve(std::size_t bytes) {
    if (bytes > bytes_) *this = AlignedBuffer(bytes);
  }

 private:
  struct Free {
    void operator()(std::byte* p) const noexcept;
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t bytes_ = 0;
};

}  // namespace airi::cpu
