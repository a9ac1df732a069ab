// ptx.cuh - every instruction we need that CUDA C++ has no name for. One device and one CPU meaning for each, side by
// side; nothing else in the project contains inline PTX. Pointers are generic pointers throughout.
#pragma once
#include "kernels/portable.cuh"

namespace ptx {

#if !defined(SPARROW_HOSTSIM)
#define PTX_FN __device__ __forceinline__
#define PTX_AT
#define PTX_AT0
PTX_FN uint32_t smem(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
#else
#define PTX_FN inline
#define PTX_AT , HS_LOC
#define PTX_AT0 HS_LOC
#endif

// 16 bytes global -> shared, asynchronously; zeros when !valid (src is then not read).
PTX_FN void cp_async16(void* dst, const void* src, bool valid PTX_AT) {
#if defined(SPARROW_HOSTSIM)
  hostsim::engine->cp_async(dst, src, 16, valid ? 16 : 0, HS_PASS);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem(dst)), "l"(src), "r"(valid ? 16 : 0)
               : "memory");
#endif
}
PTX_FN void cp_async_commit() {
#if defined(SPARROW_HOSTSIM)
  hostsim::engine->cp_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most N of this thread's newest groups are in flight.
template <int N>
PTX_FN void cp_async_wait() {
#if defined(SPARROW_HOSTSIM)
  hostsim::engine->cp_wait(N);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// 16 bytes of data that nobody writes during the launch and that is read once: past the L1 cache.
PTX_FN uint4 ld_nc16(const void* p PTX_AT) {
#if defined(SPARROW_HOSTSIM)
  if (uintptr_t(p) % 16) hostsim::engine->fail("ld.global.nc: misaligned address", HS_PASS);
  uint4 v;
  std::memcpy(&v, p, 16);
  return v;
#else
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
#endif
}

// x, of which the compiler knows nothing: what follows from it is computed here, not kept in registers through a loop.
PTX_FN int fresh(int x) {
#if !defined(SPARROW_HOSTSIM)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

PTX_FN float exp2_approx(float x) {
#if defined(SPARROW_HOSTSIM)
  return std::exp2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

#if defined(SPARROW_HOSTSIM)
// Four 8x8 matrices of 16-bit elements; lane 8i+r holds the address of row r of matrix i.
// Plain: lane l gets of matrix i the elements [l/4][2(l%4)], [l/4][2(l%4)+1]. Transposed: [2(l%4)][l/4],
// [2(l%4)+1][l/4].
inline void ldmatrix_x4_host(uint32_t (&r)[4], const void* row, bool trans, HS_LOC) {
  struct Out {
    uint32_t r[4];
  };
  auto* e = hostsim::engine;
  if (uintptr_t(row) % 16) e->fail("ldmatrix: misaligned row address", HS_PASS);
  e->check_shared(row, 16, false, HS_PASS);
  Out o = e->collective<Out>(
      ~0u, trans ? "ldmatrix.trans" : "ldmatrix", row,
      [&](auto& w) HS_QUIET {
        for (int i = 0; i < 4; ++i) {
          uint16_t m[8][8];
          int bank[8] = {}, worst = 0;
          for (int k = 0; k < 8; ++k) {
            std::memcpy(m[k], w.in(8 * i + k), 16);
            worst = std::max(worst, ++bank[uintptr_t(w.in(8 * i + k)) / 16 % 8]);
          }
          e->stats.ldmatrix_conflicts += worst - 1;
          for (int l = 0; l < 32; ++l) {
            int a = l / 4, b = l % 4 * 2;
            w.out(l).r[i] = trans ? m[b][a] | uint32_t(m[b + 1][a]) << 16 : m[a][b] | uint32_t(m[a][b + 1]) << 16;
          }
        }
        ++e->stats.ldmatrix;
      },
      HS_PASS);
  std::copy(o.r, o.r + 4, r);
}
// d[16x8] += a[16x16] b[16x8]. With g = lane/4, t = lane%4 a lane holds (low half first)
//   a0: (g, 2t..) a1: (g+8, 2t..) a2: (g, 2t+8..) a3: (g+8, 2t+8..)   b0: (2t.., g) b1: (2t+8.., g)
//   d0,d1: (g, 2t..) d2,d3: (g+8, 2t..)
template <class T>
void mma_host(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const char* op, HS_LOC) {
  struct In {
    float d[4];
    uint32_t a[4], b[2];
  } in{{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  struct Out {
    float d[4];
  };
  auto half = [](uint32_t x, int h) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      return std::bit_cast<float>(h ? x & 0xFFFF0000u : x << 16);
    else
      return float(std::bit_cast<_Float16>(uint16_t(x >> 16 * h)));
  };
  Out o = hostsim::engine->collective<Out>(
      ~0u, op, in,
      [&](auto& w) {
        float A[16][16], B[16][8], D[16][8];
        for (int l = 0; l < 32; ++l) {
          const In& x = w.in(l);
          int g = l / 4, t = l % 4 * 2;
          for (int h = 0; h < 2; ++h) {
            for (int i = 0; i < 4; ++i) {
              A[g + i % 2 * 8][t + i / 2 * 8 + h] = half(x.a[i], h);
              if (i < 2) {
                B[t + i * 8 + h][g] = half(x.b[i], h);
                D[g + i * 8][t + h] = x.d[i * 2 + h];
              }
            }
          }
        }
        for (int i = 0; i < 16; ++i)
          for (int k = 0; k < 16; ++k)
            for (int j = 0; j < 8; ++j) D[i][j] += A[i][k] * B[k][j];
        for (int l = 0; l < 32; ++l)
          for (int i = 0; i < 4; ++i) w.out(l).d[i] = D[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
        ++hostsim::engine->stats.mma;
      },
      HS_PASS);
  std::copy(o.d, o.d + 4, d);
}
#endif

PTX_FN void ldmatrix_x4(uint32_t (&r)[4], const void* row PTX_AT) {
#if defined(SPARROW_HOSTSIM)
  ldmatrix_x4_host(r, row, false, HS_PASS);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem(row))
               : "memory");
#endif
}
PTX_FN void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row PTX_AT) {
#if defined(SPARROW_HOSTSIM)
  ldmatrix_x4_host(r, row, true, HS_PASS);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem(row))
               : "memory");
#endif
}

template <class T>
PTX_FN void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 PTX_AT) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
#if defined(SPARROW_HOSTSIM)
  mma_host<T>(d, a, b0, b1, "mma.m16n8k16", HS_PASS);
#else
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

template <class T>
PTX_FN uint32_t pack2(float lo, float hi) {
  uint32_t r;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    memcpy(&r, &v, 4);
  } else {
    const __half2 v = __floats2half2_rn(lo, hi);
    memcpy(&r, &v, 4);
  }
  return r;
}
// Half 0 (low) or 1 of pack2's result.
template <class T>
PTX_FN float unpack(uint32_t pair, int half) {
  const uint16_t bits = static_cast<uint16_t>(pair >> half * 16);
  T x;
  memcpy(&x, &bits, 2);
  return static_cast<float>(x);
}
}  // namespace ptx
