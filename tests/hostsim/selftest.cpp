// Self-test of the simulator: every primitive against a scalar model, and every complaint it must raise.
#include "kernels/ptx.cuh"
#ifdef HOSTSIM_RACE
#include "hostsim_race.hpp"
#endif
// As SPARROW_LAUNCH, without the name.
template <class... A>
void launch_kernel(A&&... args) { hostsim::launch(std::forward<A>(args)...); }

// Named barriers: no kernel has them, the simulator does.
static void bar_sync(int id, int threads, const char* hs_file = __FILE__, int hs_line = __LINE__) { hostsim::engine->barrier(id, threads, true, 0, HS_PASS); }
static void bar_arrive(int id, int threads, const char* hs_file = __FILE__, int hs_line = __LINE__) { hostsim::engine->barrier(id, threads, false, 0, HS_PASS); }

static int bad = 0, checks = 0;
#define CHECK(c) do { ++checks; if (!(c)) { ++bad; std::printf("FAIL seed %llu %s:%d %s\n", (unsigned long long)hostsim::options.seed, __FILE__, __LINE__, #c); } } while (0)
template <class F> std::string error_of(F f) { try { f(); } catch (std::exception& e) { return e.what(); } return ""; }
#define RAISES(text, ...) do { std::string e = error_of([&] { __VA_ARGS__; }); ++checks; if (e.find(text) == std::string::npos) { ++bad; std::printf("FAIL %s:%d wanted '%s' got '%s'\n", __FILE__, __LINE__, text, e.c_str()); } } while (0)

__global__ void warp_ops(int* o) {
  int t = threadIdx.x, l = t % 32;
  int* p = o + t * 16;
  p[0] = __shfl_sync(~0u, t, 5); p[1] = __shfl_sync(~0u, t, l + 1, 8); p[2] = __shfl_up_sync(~0u, t, 3); p[3] = __shfl_down_sync(~0u, t, 3, 16);
  p[4] = __shfl_xor_sync(~0u, t, 9); p[5] = int(__ballot_sync(~0u, l % 3 == 0)); p[6] = __any_sync(~0u, t == 40); p[7] = __all_sync(~0u, t < 64);
  p[8] = __reduce_add_sync(~0u, t); p[9] = __syncthreads_count(t % 5 == 0);
  unsigned half = l < 16 ? 0xFFFFu : 0xFFFF0000u;  // two masks of one warp under way at once
  for (int i = 0; i < (l < 16 ? 3 : 7); ++i) p[10] = __shfl_xor_sync(half, t, 1);
}
__global__ void producer_consumer(int* out, int rounds) {  // warp 0 fills, warp 1 reads; named barriers 1 (full), 2 (empty)
  SMEM_ARRAY(int, buf, 32);
  int w = threadIdx.x / 32, l = threadIdx.x % 32;
  for (int r = 0; r < rounds; ++r) {
    if (w == 0) { if (r) bar_sync(2, 64); buf[l] = r * 100 + l; bar_arrive(1, 64); }
    else { bar_sync(1, 64); out[r * 32 + l] = buf[31 - l]; if (r + 1 < rounds) bar_arrive(2, 64); }
  }
}
__global__ void histogram(const int* x, int n, int* hist, float* sum) {
  SMEM_ARRAY(int, h, 16);
  for (int i = threadIdx.x; i < 16; i += blockDim.x) h[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) { atomicAdd(&h[x[i]], 1); atomicAdd(sum, 0.5f); }
  __syncthreads();
  for (int i = threadIdx.x; i < 16; i += blockDim.x) atomicAdd(&hist[i], h[i]);
}
__global__ void last_block(const float* x, float* part, unsigned* ticket, float* out) {
  SMEM_ARRAY(bool, last, 1);
  if (threadIdx.x == 0) {
    part[blockIdx.x] = x[blockIdx.x];
    __threadfence();
    last[0] = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last[0] && threadIdx.x == 0) { float s = 0; for (unsigned i = 0; i < gridDim.x; ++i) s += part[i]; *out = s; }
}
__global__ void spin(int* flag, int* out) {
  if (threadIdx.x == 0) { while (atomicAdd(flag, 0) == 0) {} *out = 7; }
  if (threadIdx.x == 63) atomicExch(flag, 1);
}
__global__ void transpose_in_warp(float* o, bool sync) {  // lanes exchange through shared memory
  SMEM_ARRAY(float, s, 32);
  s[threadIdx.x] = float(threadIdx.x);
  if (sync) __syncwarp();
  o[threadIdx.x] = s[31 - threadIdx.x];
}
__global__ void uninitialised(float* o) { SMEM_ARRAY(float, s, 4); o[0] = s[threadIdx.x]; }
template <class T> __global__ void one_mma(const T* a, const T* b, float* d) {  // a [16][16], b [8][16] (n-major), through ldmatrix
  SMEM_DYNAMIC(raw);
  T *sa = reinterpret_cast<T*>(raw), *sb = sa + 256, *sbt = sb + 128;  // sbt: b as [k][n], read back transposed
  int l = threadIdx.x;
  for (int i = l; i < 256; i += 32) sa[i] = a[i];
  for (int i = l; i < 128; i += 32) { sb[i] = b[i]; sbt[i % 16 * 8 + i / 16] = b[i]; }
  __syncwarp();
  uint32_t fa[4], fb[4], ft[4];
  ptx::ldmatrix_x4(fa, sa + l % 16 * 16 + l / 16 * 8);
  ptx::ldmatrix_x4(fb, sb + l % 8 * 16 + l / 8 % 2 * 8);
  ptx::ldmatrix_x4_trans(ft, sbt + l % 16 * 8);
  float x[4] = {}, y[4] = {1, 1, 1, 1};
  ptx::mma_m16n8k16<T>(x, fa, fb[0], fb[1]);
  ptx::mma_m16n8k16<T>(y, fa, ft[0], ft[1]);
  for (int i = 0; i < 4; ++i) {
    d[(l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2] = x[i];
    d[128 + (l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2] = y[i];
  }
}
// The same layouts as thread/value strides (m + 16 k, n + 8 k, m + 16 n), a second spelling of the PTX manual's figures:
// A ((4,8),(2,2,2)):((32,1),(16,8,128))  B ((4,8),(2,2)):((16,1),(8,64))  C ((4,8),(2,2)):((32,1),(16,8))
template <class T> __global__ void mma_by_strides(const T* a, const T* b, float* d) {
  int l = threadIdx.x, t0 = l % 4, t1 = l / 4;
  uint32_t fa[4], fb[2];
  for (int v = 0; v < 8; ++v) { int i = t0 * 32 + t1 + v % 2 * 16 + v / 2 % 2 * 8 + v / 4 * 128; std::memcpy(reinterpret_cast<char*>(fa) + 2 * v, &a[i % 16 * 16 + i / 16], 2); }
  for (int v = 0; v < 4; ++v) { int i = t0 * 16 + t1 + v % 2 * 8 + v / 2 * 64; std::memcpy(reinterpret_cast<char*>(fb) + 2 * v, &b[i % 8 * 16 + i / 8], 2); }
  float x[4] = {};
  ptx::mma_m16n8k16<T>(x, fa, fb[0], fb[1]);
  for (int v = 0; v < 4; ++v) { int i = t0 * 32 + t1 + v % 2 * 16 + v / 2 * 8; d[i % 16 * 8 + i / 16] = x[v]; }
}
__global__ void complain(int what, uint4* g) {
  SMEM_DYNAMIC(raw);
  int t = threadIdx.x;
  uint32_t r[4];
  if (what == 0) __shfl_sync(0xFFFFu, t, 0);
  if (what == 1) __shfl_sync(t < 16 ? ~0u : 0xFFFFFFFEu, t, 0);
  if (what == 2) ptx::ldmatrix_x4(r, raw + 8);
  if (what == 3) ptx::ldmatrix_x4(r, raw + 1024);
  if (what == 4) { if (t == 3) ptx::cp_async16(raw + 16 * t + 4, g, true); }
  if (what == 5) { if (t == 3) ptx::cp_async16(g, g, true); }
  if (what == 6) {
    if (t < 8) __syncthreads();
    else __syncthreads();
  }
  if (what == 7) { if (t < 8) __syncthreads(); }
  if (what == 8) { if (t % 2) __shfl_sync(~0u, t, 0); else __ballot_sync(~0u, 1); }
  if (what == 9) { if (t == 1) __trap(); }
  if (what == 10) { if (t < 16) __shfl_xor_sync(0xFFFFu, t, 16); }
  if (what == 11) bar_sync(1, 48);
  if (what == 12) { ptx::cp_async16(raw + 16 * t, g, true); ptx::cp_async_commit(); }
}
int main() {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    hostsim::options.seed = seed;
    std::vector<int> o(64 * 16, -1);
    launch_kernel(warp_ops, dim3(1), dim3(64), 0, nullptr, o.data());
    for (int t = 0; t < 64; ++t) {
      int l = t % 32, w = t / 32 * 32; int* p = &o[t * 16];
      CHECK(p[0] == w + 5); CHECK(p[1] == w + (l & 24) + (l + 1) % 8); CHECK(p[2] == (l < 3 ? t : t - 3)); CHECK(p[3] == (l % 16 + 3 > 15 ? t : t + 3)); CHECK(p[4] == w + (l ^ 9));
      CHECK(p[5] == 0x49249249); CHECK(p[6] == (w == 32)); CHECK(p[7] == 1); CHECK(p[8] == 496 + 32 * w); CHECK(p[9] == 13); CHECK(p[10] == (t ^ 1));
    }
    std::vector<int> pc(320, -1);
    launch_kernel(producer_consumer, dim3(1), dim3(64), 0, nullptr, pc.data(), 10);
    for (int i = 0; i < 320; ++i) CHECK(pc[i] == i / 32 * 100 + 31 - i % 32);
    std::vector<int> x(1000), h(16); float sum = 0;
    for (int i = 0; i < 1000; ++i) x[i] = i * i % 16;
    for (int workers : {1, 3}) {
      hostsim::options.workers = workers; std::fill(h.begin(), h.end(), 0); sum = 0;
      launch_kernel(histogram, dim3(4), dim3(96), 0, nullptr, (const int*)x.data(), 1000, h.data(), &sum);
      for (int i = 0; i < 16; ++i) CHECK(h[i] == std::count(x.begin(), x.end(), i));
      CHECK(sum == 500.f);
      float in[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, part[9], res = 0; unsigned ticket = 0;
      launch_kernel(last_block, dim3(9), dim3(32), 0, nullptr, (const float*)in, (float*)part, &ticket, &res);
      CHECK(res == 45.f);
    }
    hostsim::options.workers = 1;
    int flag = 0, got = 0;
    launch_kernel(spin, dim3(1), dim3(64), 0, nullptr, &flag, &got); CHECK(got == 7);
    float tr[32];
    launch_kernel(transpose_in_warp, dim3(1), dim3(32), 0, nullptr, (float*)tr, true);
    for (int i = 0; i < 32; ++i) CHECK(tr[i] == 31 - i);
#ifdef HOSTSIM_RACE
    RAISES("race", launch_kernel(transpose_in_warp, dim3(1), dim3(32), 0, nullptr, (float*)tr, false));
#else
    launch_kernel(transpose_in_warp, dim3(1), dim3(32), 0, nullptr, (float*)tr, false);
    CHECK(std::any_of(tr, tr + 32, [](float v) { return std::isnan(v); }));
#endif
    launch_kernel(uninitialised, dim3(1), dim3(1), 0, nullptr, (float*)tr); CHECK(std::isnan(tr[0]));
    auto mma = [&]<class T>(T) {
      T a[256], b[128]; float d[256], e[128];
      for (int i = 0; i < 256; ++i) a[i] = T(float((i * 7 + seed) % 23) - 11.f);
      for (int i = 0; i < 128; ++i) b[i] = T(float((i * 5 + seed) % 19) * 0.25f);
      launch_kernel(one_mma<T>, dim3(1), dim3(32), 1024 + 256, nullptr, (const T*)a, (const T*)b, (float*)d);
      launch_kernel(mma_by_strides<T>, dim3(1), dim3(32), 0, nullptr, (const T*)a, (const T*)b, (float*)e);
      for (int m = 0; m < 16; ++m) for (int n = 0; n < 8; ++n) {
        float s = 0; for (int k = 0; k < 16; ++k) s += float(a[m * 16 + k]) * float(b[n * 16 + k]);
        CHECK(d[m * 8 + n] == s); CHECK(d[128 + m * 8 + n] == s + 1); CHECK(e[m * 8 + n] == s);
      }
    };
    mma(__nv_bfloat16()); mma(__half());
    alignas(16) uint4 g[64] = {};
    auto c = [&](int what, int threads = 32) { launch_kernel(complain, dim3(1), dim3(threads), 1024, nullptr, what, (uint4*)g); };
    RAISES("not in its mask", c(0)); RAISES("deadlock", c(1)); RAISES("misaligned row", c(2)); RAISES("outside shared memory", c(3));
    RAISES("cp.async: misaligned", c(4)); RAISES("outside shared memory", c(5)); RAISES("divergent __syncthreads", c(6)); RAISES("deadlock", c(7));
    RAISES("divergent warp collective", c(8)); RAISES("__trap", c(9)); RAISES("not in the mask", c(10)); RAISES("deadlock", c(11)); RAISES("in flight", c(12)); if (seed < 4) { int never = 0; RAISES("livelock", launch_kernel(spin, dim3(1), dim3(32), 0, nullptr, &never, &got)); }
    RAISES("shared memory limit", launch_kernel(complain, dim3(1), dim3(32), 300000, nullptr, -1, (uint4*)g));
    RAISES("invalid launch", launch_kernel(complain, dim3(1), dim3(2048), 0, nullptr, -1, (uint4*)g));
  }
  std::printf("%d checks, %d failed\n", checks, bad);
  return bad != 0;
}
