#pragma once

#include <cstdint>
#include <optional>

#include "base/time.h"

namespace airi {

// Bands with aging: a request starts in its class's band and moves up one band per `aging` of
// waiting. Without aging bands are strict.
//
// Thread safety: immutable.
class AgingRule {
 public:
  explicit AgingRule(std::optional<Micros> aging) : aging_(aging) {}

  // Waiting that moves a request by one band; nothing: it never moves.
  [[nodiscard]] std::optional<Micros> interval() const noexcept { return aging_; }
  [[nodiscard]] bool moves(std::int32_t band) const noexcept { return aging_ && band > 0; }

  // The band of a request that started in `first_band` and has waited `waited` in all.
  [[nodiscard]] std::int32_t band(std::int32_t first_band, Micros waited) const noexcept {
    if (!aging_ || waited <= 0) return first_band;
    const Micros steps = waited / *aging_;
    return steps >= first_band ? 0 : first_band - static_cast<std::int32_t>(steps);
  }

  // How long a request waits in all until it leaves `band`. REQUIRES: moves(band).
  [[nodiscard]] Micros wait_to_leave(std::int32_t first_band, std::int32_t band) const noexcept {
    return (first_band - band + 1) * aging_.value_or(0);
  }

 private:
  std::optional<Micros> aging_;
};

}  // namespace airi
