// What mlx-rs links against and mlx-c lacks on Linux.
#include <cstdint>
#include <cstring>
#include <ctime>

#include "mlx/c/array.h"
#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"

namespace {

template <typename Half>
int item(std::uint16_t* res, mlx_array arr) {
  static_assert(sizeof(Half) == sizeof(std::uint16_t));
  try {
    Half value = mlx_array_get_(arr).item<Half>();
    std::memcpy(res, &value, sizeof(value));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}

template <typename Half>
const std::uint16_t* data(mlx_array arr) {
  try {
    return reinterpret_cast<const std::uint16_t*>(mlx_array_get_(arr).data<Half>());
  } catch (std::exception& e) {
    mlx_error(e.what());
    return nullptr;
  }
}

} // namespace

extern "C" {

// mlx-c has these only where the compiler offers ARM's half types. Here they pass the bits on every architecture.
int mlx_array_item_float16(std::uint16_t* res, const mlx_array arr) {
  return item<mlx::core::float16_t>(res, arr);
}
int mlx_array_item_bfloat16(std::uint16_t* res, const mlx_array arr) {
  return item<mlx::core::bfloat16_t>(res, arr);
}
const std::uint16_t* mlx_array_data_float16(const mlx_array arr) {
  return data<mlx::core::float16_t>(arr);
}
const std::uint16_t* mlx_array_data_bfloat16(const mlx_array arr) {
  return data<mlx::core::bfloat16_t>(arr);
}

// mlx-rs seeds its default random state from this clock of macOS.
std::uint64_t mach_approximate_time() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1000000000u + static_cast<std::uint64_t>(now.tv_nsec);
}
}
