// What the row-copying kernels (kv_commit, gather_rows) share. Rows of any dtype are copied as units of 16, 8, 4, 2 or
// 1 bytes: the widest that every address and every length is a multiple of.
#pragma once
#include <initializer_list>

#include "kernels/portable.cuh"

namespace sparrow {

constexpr int kMaxUnit = 16;  // bytes of the widest load

// `address_bits` = all pointers, strides and lengths in bytes, or-ed together.
inline int copy_unit(uint64_t address_bits) {
  int unit = kMaxUnit;
  while (address_bits % static_cast<uint64_t>(unit) != 0) unit /= 2;
  return unit;
}

inline uint64_t address_bits(const void* p) { return reinterpret_cast<uintptr_t>(p); }

// Calls launch(U{}) with the unsigned type of that many bytes.
template <class F>
cudaError_t with_copy_unit(int unit, const F& launch) {
  switch (unit) {
    case 16: return launch(uint4{});
    case 8: return launch(uint2{});
    case 4: return launch(uint32_t{});
    case 2: return launch(uint16_t{});
    default: return launch(uint8_t{});
  }
}

// Threads of a block that copies a row of `units`: whole warps, at most 256, so that a short row idles few lanes.
inline int copy_threads(int64_t units) { return units >= 256 ? 256 : static_cast<int>((units + 31) / 32 * 32); }

// Blocks along a row; the kernels stride by the grid, so the launch limit of 65535 is no limit of the row.
inline unsigned copy_blocks(int64_t units, int threads) {
  const int64_t blocks = (units + threads - 1) / threads;
  return static_cast<unsigned>(blocks < 65535 ? blocks : 65535);
}

}  // namespace sparrow
