// cuda_host.hpp - runs CUDA C++ kernel sources on the CPU. For tests only.
//
// A thread block runs as fibers, one per CUDA thread, on one OS thread. A fiber runs until it meets a synchronising
// operation; which fiber goes on is chosen by a seeded policy, so code that relies on an order nobody promised gives
// another result under another seed. The model is on purpose as unkind as CUDA allows:
//   * shared memory starts as 0xFF bytes in every block: NaN in fp32, fp16, bf16; -1 in integers;
//   * cp.async overwrites its destination with 0xFF when issued and copies only when the issuing thread waits for it;
//   * lanes of a warp are not in lockstep: only a *_sync operation orders them.
// It reports: barrier divergence, deadlock, divergent warp collectives, misaligned or out-of-range ldmatrix and
// cp.async addresses, cp.async still in flight at exit, too much shared memory. With ASan: any overrun of an array.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <sys/mman.h>
#include <vector_functions.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define HS_ASAN(...) __VA_ARGS__
#else
#define HS_ASAN(...)
#endif
#if defined(HOSTSIM_UCONTEXT) || !defined(__x86_64__)
#include <ucontext.h>
#undef HOSTSIM_UCONTEXT
#define HOSTSIM_UCONTEXT 1
#endif

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __shared__ HOSTSIM_declare_shared_memory_with_SMEM_ARRAY_or_SMEM_DYNAMIC
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define HS_LOC const char *hs_file = __builtin_FILE(), int hs_line = __builtin_LINE()
#define HS_PASS hs_file, hs_line
#define HS_QUIET __attribute__((no_sanitize("thread")))  // not an access of the kernel

inline constinit thread_local uint3 threadIdx{}, blockIdx{};
inline constinit thread_local dim3 blockDim{}, gridDim{};
inline constexpr int warpSize = 32;

namespace hostsim {

struct Options {
  uint64_t seed = 0;               // 0: in order; otherwise a random schedule
  int workers = 1;                 // OS threads that run blocks
  size_t smem_limit = 227 * 1024;  // per block; sm_90
  bool must_await = false;         // a thread that ends without await_previous_kernel() is a fault
};
inline Options options;
struct Stats { uint64_t switches = 0, blocks = 0, mma = 0, ldmatrix = 0, ldmatrix_conflicts = 0, cp_async = 0; };
inline Stats stats;
inline std::map<std::string, size_t> launched;  // kernel, as written at the launch -> dynamic shared memory, the last time
inline void record_launch(const char* name, size_t smem) { launched[name] = smem; }
inline constexpr size_t kStack = 64 * 1024 HS_ASAN(* 4), kGuard = 4096;

struct RaceHooks {  // filled in by hostsim_race.hpp
  void (*begin)(int threads) = nullptr;
  void (*range)(const void* p, size_t n) = nullptr;  // this is shared memory
  void (*arrive)(int lin, int slot) = nullptr;       // what lin did so far ...
  void (*depart)(int lin, int slot) = nullptr;       // ... is ordered before what this lin does from now on
  void (*access)(const void* p, size_t n, bool write, const char* file, int line) = nullptr;
  void (*flight)(const void* p, size_t n, bool in_flight, const char* file, int line) = nullptr;  // of cp.async
};
inline RaceHooks race;

struct Copy { void* dst; const void* src; int bytes, src_bytes; const char* file; int line; };
struct Fiber {
  int lin = 0;
  uint3 tid{};
  bool done = false, waited = false;  // for the kernel before
  const char *op = "", *file = "";  // where it waits
  int line = 0;
  std::vector<Copy> open;                // cp.async issued since the last commit
  std::deque<std::vector<Copy>> groups;  // committed and not waited for, oldest first
  char* stack = nullptr;
#if defined(HOSTSIM_UCONTEXT)
  ucontext_t ctx;
#else
  void* ctx = nullptr;
#endif
  HS_ASAN(void* fake = nullptr;)
};
struct Collective { uint32_t mask = 0, arrived = 0; const char *op = "", *file = ""; int line = 0; };
struct Warp {
  alignas(64) unsigned char in[32][64], out[32][64];
  Collective coll[32];  // indexed by the lowest lane of the mask: disjoint masks can be under way at once
};
struct Barrier { std::vector<int> waiters; int arrived = 0, acc = 0, result = 0; const char* file = ""; int line = 0; };

#if !defined(HOSTSIM_UCONTEXT)
extern "C" void hs_switch(void** save, void* load);
asm(".text\n.weak hs_switch\n.type hs_switch,@function\nhs_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\nmov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.size hs_switch,.-hs_switch\n");
#endif

class Engine;
inline thread_local Engine* engine = nullptr;

class Engine {
 public:
  Stats stats;
  ~Engine() { if (arena_) munmap(arena_, arena_bytes_); }

  std::string run_block(dim3 grid, dim3 block, uint3 bid, size_t smem, uint64_t seed, void (*body)(void*), void* arg) {
    engine = this;
    blockIdx = bid; blockDim = block; gridDim = grid;
    n_ = live_ = int(block.x * block.y * block.z);
    policy_ = seed == 0 ? kInOrder : Policy(1 + seed % 3);
    rng_ = seed * 0x9E3779B97F4A7C15ull + (bid.x + 977ull * bid.y + 99991ull * bid.z) * 0xD1342543DE82EF95ull + 88172645463325252ull;
    for (int i = 0; i < 8; ++i) random();
    body_ = body; arg_ = arg; error_.clear();
    statics_.clear(); smem_used_ = 0; spins_ = 0; ready_.clear();
    if (race.begin) race.begin(n_);
    dyn_ = new_shared(smem, 1024, __FILE__, __LINE__);
    warps_.assign((n_ + 31) / 32, Warp{});
    for (auto& b : bars_) b = Barrier{};
    if (error_.size()) return error_;
    make_stacks();
    for (int i = 0; i < n_; ++i) {
      Fiber& f = fibers_[i];
      f.lin = i; f.done = f.waited = false; f.op = "start"; f.open.clear(); f.groups.clear();
      f.tid = make_uint3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
      make_context(f);
      ready_.push_back(i);
    }
    reorder();
    switch_to(nullptr, &fibers_[next()], false);  // comes back when all fibers ended or one of them failed
    HS_ASAN(__asan_unpoison_memory_region(arena_, arena_bytes_);)
    ++stats.blocks;
    return error_;
  }

  [[noreturn]] void fail(const std::string& msg, const char* file = "", int line = 0) {
    error_ = msg + " [block " + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + "," + std::to_string(blockIdx.z) +
             " thread " + std::to_string(cur_->lin) + (line ? std::string(" at ") + file + ":" + std::to_string(line) : "") + "]";
    switch_to(cur_, nullptr, false);
    std::abort();  // not reached: the block is given up
  }

  // ---- block barriers: count < 0 is __syncthreads (all threads of the block, all at one place) -------------------
  int barrier(int id, int count, bool wait, int pred, HS_LOC) {
    if (id < 0 || id > 15) fail("barrier id out of range", HS_PASS);
    Barrier& b = bars_[id];
    if (b.arrived == 0) { b.file = hs_file; b.line = hs_line; b.acc = 0; }
    else if (count < 0 && (b.line != hs_line || std::strcmp(b.file, hs_file)))
      fail("divergent __syncthreads: other threads wait at " + std::string(b.file) + ":" + std::to_string(b.line), HS_PASS);
    ++b.arrived;
    b.acc += pred != 0;
    if (race.arrive) race.arrive(cur_->lin, id);
    if (wait) b.waiters.push_back(cur_->lin);
    if (b.arrived == (count < 0 ? n_ : count)) release(b, id);
    if (wait) block("barrier", HS_PASS);
    return b.result;
  }

  // ---- warp collectives: every lane of mask brings an In; the last to arrive works out everybody's Out -----------
  template <class In, class Out> struct View {
    Warp& w;
    In& in(int l) { return *reinterpret_cast<In*>(w.in[l]); }
    Out& out(int l) { return *reinterpret_cast<Out*>(w.out[l]); }
  };
  template <class Out, class In, class F> Out collective(uint32_t mask, const char* op, const In& in, F f, HS_LOC) {
    static_assert(sizeof(In) <= 64 && sizeof(Out) <= 64);
    int lane = cur_->lin & 31, base = cur_->lin & ~31;
    Warp& w = warps_[cur_->lin >> 5];
    if (!(mask >> lane & 1)) fail(std::string(op) + ": the calling lane is not in its mask", HS_PASS);
    Collective& c = w.coll[std::countr_zero(mask)];
    if (!c.arrived) c = {mask, 0, op, hs_file, hs_line};
    else if (c.mask != mask || std::strcmp(c.op, op) || c.line != hs_line)
      fail(std::string("divergent warp collective: ") + op + " meets " + c.op + " of line " + std::to_string(c.line), HS_PASS);
    std::memcpy(w.in[lane], &in, sizeof in);
    c.arrived |= 1u << lane;
    if (c.arrived != mask) {
      block(op, HS_PASS);
    } else {
      c.arrived = 0;
      View<In, Out> v{w};
      f(v);
      size_t from = ready_.size();
      for (int l = 0; l < 32; ++l) if (l != lane && (mask >> l & 1)) ready_.push_back(base + l);
      if (policy_ != kInOrder) shuffle(from);
    }
    return *reinterpret_cast<Out*>(w.out[lane]);
  }
  void sync_lanes(uint32_t mask) {  // __syncwarp orders memory, other collectives do not
    int base = cur_->lin & ~31, slot = 16 + base + std::countr_zero(mask);
    if (race.arrive) for (int l = 0; l < 32; ++l) if (mask >> l & 1) race.arrive(base + l, slot);
    if (race.depart) for (int l = 0; l < 32; ++l) if (mask >> l & 1) race.depart(base + l, slot);
  }
  void yield_point() {  // at atomics and cp.async, so that spinning threads let others run
    if (++spins_ > 4'000'000) fail("livelock: spins for something that does not come, perhaps from another block");
    if (policy_ == kUniform ? random() % 8 != 0 : spins_ % 64 != 0) return;
    policy_ == kInOrder ? ready_.push_back(cur_->lin) : ready_.push_front(cur_->lin);  // behind all the others
    block("yield");
  }

  void await_previous_kernel() { cur_->waited = true; }

  // ---- cp.async --------------------------------------------------------------------------------------------------
  void cp_async(void* dst, const void* src, int bytes, int src_bytes, HS_LOC) {
    if (uintptr_t(dst) % bytes || (src_bytes && uintptr_t(src) % bytes)) fail("cp.async: misaligned address", HS_PASS);
    check_shared(dst, bytes, true, HS_PASS);
    if (race.flight) race.flight(dst, bytes, true, HS_PASS);
    std::memset(dst, 0xFF, bytes);
    cur_->open.push_back({dst, src, bytes, src_bytes, HS_PASS});
    ++stats.cp_async;
    yield_point();
  }
  void cp_commit() { cur_->groups.push_back(std::move(cur_->open)); cur_->open.clear(); }
  void cp_wait(size_t pending) {
    for (; cur_->groups.size() > pending; cur_->groups.pop_front())
      for (Copy& c : cur_->groups.front()) {
        if (race.flight) race.flight(c.dst, c.bytes, false, c.file, c.line);
        check_shared(c.dst, c.bytes, true, c.file, c.line);
        if (c.src_bytes) std::memcpy(c.dst, c.src, c.src_bytes);
        std::memset(static_cast<char*>(c.dst) + c.src_bytes, 0, c.bytes - c.src_bytes);
      }
  }

  // ---- shared memory ---------------------------------------------------------------------------------------------
  unsigned char* dynamic_shared() { return dyn_.p.get(); }
  void* static_shared(const char* file, int line, size_t bytes, size_t align) {  // one array per place in the source
    Shared& s = statics_[{file, line}];
    if (!s.p) s = new_shared(bytes, align, file, line);
    if (error_.size()) fail(error_, file, line);
    return s.p.get();
  }
  void check_shared(const void* p, size_t n, bool write, HS_LOC) {
    auto inside = [&](const Shared& s) { auto q = static_cast<const unsigned char*>(p); return s.p && q >= s.p.get() && q + n <= s.p.get() + s.bytes; };
    bool ok = inside(dyn_);
    for (auto& [k, s] : statics_) ok = ok || inside(s);
    if (!ok) fail("address outside shared memory", HS_PASS);
    if (race.access) race.access(p, n, write, HS_PASS);
  }
  HS_QUIET int lin() const { return cur_->lin; }
  HS_QUIET bool in_fiber() const { return cur_; }

 private:
  enum Policy { kInOrder, kUniform, kRunAhead, kRunAheadReversed };
  struct Free { void operator()(unsigned char* p) const { std::free(p); } };
  struct Shared { std::unique_ptr<unsigned char, Free> p; size_t bytes = 0; };

  Shared new_shared(size_t bytes, size_t align, const char* file, int line) {
    void* p = nullptr;
    if (bytes == 0) return {};
    if (posix_memalign(&p, std::max<size_t>(align, 64), bytes)) throw std::bad_alloc();
    std::memset(p, 0xFF, bytes);
    if (race.range) race.range(p, bytes);
    if ((smem_used_ += bytes) > options.smem_limit) error_ = "shared memory limit exceeded at " + std::string(file) + ":" + std::to_string(line);
    return {std::unique_ptr<unsigned char, Free>(static_cast<unsigned char*>(p)), bytes};
  }
  uint64_t random() { rng_ ^= rng_ << 13; rng_ ^= rng_ >> 7; rng_ ^= rng_ << 17; return rng_ >> 11; }
  void shuffle(size_t from) { for (size_t i = ready_.size(); i-- > from + 1;) std::swap(ready_[i], ready_[from + random() % (i - from + 1)]); }
  void reorder() {  // after a block-wide event, choose the order in which threads go on
    if (policy_ == kUniform) return shuffle(0);
    if (policy_ == kInOrder) return;
    std::vector<uint64_t> key(warps_.size());
    for (auto& k : key) k = random();
    auto rank = [&](int t) { return std::tuple(key[t / 32], policy_ == kRunAhead ? -t : t); };
    std::sort(ready_.begin(), ready_.end(), [&](int a, int b) { return rank(a) < rank(b); });
  }
  int next() {  // run-ahead policies take the youngest: one warp goes as far as it can
    if (ready_.empty()) deadlock();
    if (policy_ == kUniform) std::swap(ready_[random() % ready_.size()], ready_.back());
    int t = policy_ == kInOrder ? ready_.front() : ready_.back();
    policy_ == kInOrder ? ready_.pop_front() : ready_.pop_back();
    return t;
  }
  void release(Barrier& b, int id) {
    b.result = b.acc; b.arrived = 0;
    for (int t : b.waiters) { ready_.push_back(t); if (race.depart) race.depart(t, id); }
    b.waiters.clear();
    reorder();
  }
  void block(const char* op, HS_LOC) {
    cur_->op = op; cur_->file = hs_file; cur_->line = hs_line;
    int t = next();
    if (t != cur_->lin) switch_to(cur_, &fibers_[t], false);
  }
  [[noreturn]] void deadlock() {
    std::map<std::string, int> at;
    for (int i = 0; i < n_; ++i) ++at[fibers_[i].done ? "the end" : std::string(fibers_[i].op) + " at " + fibers_[i].file + ":" + std::to_string(fibers_[i].line)];
    std::string m = "deadlock:";
    for (auto& [where, n] : at) m += " " + std::to_string(n) + " threads in " + where + ";";
    if (cur_->done) for (auto& f : fibers_) if (!f.done) cur_ = &f;
    fail(m);
  }
  static void entry() {
    HS_ASAN(__sanitizer_finish_switch_fiber(nullptr, engine->first_ ? &engine->main_bottom_ : nullptr, engine->first_ ? &engine->main_size_ : nullptr); engine->first_ = false;)
    engine->body_(engine->arg_);
    engine->finish();
  }
  void finish() {
    if (options.must_await && !cur_->waited) fail("thread ends without having waited for the kernel before");
    cp_commit();
    for (auto& g : cur_->groups) if (!g.empty()) fail("thread ends with cp.async in flight", g[0].file, g[0].line);
    cur_->done = true; --live_;
    switch_to(cur_, live_ ? &fibers_[next()] : nullptr, true);
  }

  // ---- context switching; a null Fiber is the caller of run_block ------------------------------------------------
  void make_stacks() {
    if (int(fibers_.size()) >= n_) return;
    if (arena_) munmap(arena_, arena_bytes_);
    arena_bytes_ = (kStack + kGuard) * n_;
    arena_ = static_cast<char*>(mmap(nullptr, arena_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (arena_ == MAP_FAILED) { arena_ = nullptr; throw std::bad_alloc(); }
    fibers_.resize(n_);
    for (int i = 0; i < n_; ++i) {
      mprotect(arena_ + i * (kStack + kGuard), kGuard, PROT_NONE);
      fibers_[i].stack = arena_ + i * (kStack + kGuard) + kGuard;
    }
  }
#if defined(HOSTSIM_UCONTEXT)
  ucontext_t main_;
  void make_context(Fiber& f) {
    getcontext(&f.ctx);
    f.ctx.uc_stack.ss_sp = f.stack; f.ctx.uc_stack.ss_size = kStack; f.ctx.uc_link = nullptr;
    makecontext(&f.ctx, entry, 0);
  }
  void jump(Fiber* from, Fiber* to) { swapcontext(from ? &from->ctx : &main_, to ? &to->ctx : &main_); }
#else
  void* main_ = nullptr;
  void make_context(Fiber& f) {
    void** sp = reinterpret_cast<void**>(f.stack + kStack) - 8;
    std::memset(sp, 0, 64);
    sp[6] = reinterpret_cast<void*>(&entry);  // after six callee-saved registers; the word above it: no return address
    f.ctx = sp;
  }
  void jump(Fiber* from, Fiber* to) { hs_switch(from ? &from->ctx : &main_, to ? to->ctx : main_); }
#endif
  void switch_to(Fiber* from, Fiber* to, [[maybe_unused]] bool ends) {
    cur_ = to;
    if (to) threadIdx = to->tid;
    ++stats.switches;
    HS_ASAN(if (!from) first_ = true;
            __sanitizer_start_switch_fiber(ends ? nullptr : from ? &from->fake : &main_fake_, to ? to->stack : main_bottom_, to ? kStack : main_size_);)
    jump(from, to);
    HS_ASAN(__sanitizer_finish_switch_fiber(from ? from->fake : main_fake_, nullptr, nullptr);)
  }
  HS_ASAN(const void* main_bottom_ = nullptr; size_t main_size_ = 0; void* main_fake_ = nullptr; bool first_ = false;)

  int n_ = 0, live_ = 0;
  Policy policy_ = kInOrder;
  uint64_t rng_ = 1, spins_ = 0;
  std::deque<Fiber> fibers_;
  std::vector<Warp> warps_;
  Barrier bars_[16];
  std::deque<int> ready_;
  Fiber* cur_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* arg_ = nullptr;
  std::string error_;
  char* arena_ = nullptr;
  size_t arena_bytes_ = 0, smem_used_ = 0;
  Shared dyn_;
  std::map<std::pair<const char*, int>, Shared> statics_;
};

template <class... P, class... A> void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, cudaStream_t, A&&... a) {
  size_t threads = size_t(block.x) * block.y * block.z, blocks = size_t(grid.x) * grid.y * grid.z;
  if (!threads || threads > 1024 || block.z > 64 || !blocks || grid.y > 65535 || grid.z > 65535) throw std::runtime_error("hostsim: invalid launch configuration");
  struct Call { void (*k)(P...); std::tuple<P...> args; } call{kernel, {std::forward<A>(a)...}};
  auto body = [](void* p) { std::apply(static_cast<Call*>(p)->k, static_cast<Call*>(p)->args); };
  std::vector<size_t> order(blocks);
  uint64_t r = options.seed;
  for (size_t i = 0; i < blocks; ++i) {  // blocks run in no particular order either
    order[i] = i;
    if (options.seed) { r = r * 6364136223846793005ull + 1442695040888963407ull; std::swap(order[i], order[(r >> 33) % (i + 1)]); }
  }
  std::atomic<size_t> at{0};
  std::mutex mu;
  std::string error;
  auto work = [&] {
    static thread_local Engine e;
    for (size_t i; (i = at++) < blocks;) {
      size_t b = order[i];
      uint3 bid = make_uint3(b % grid.x, b / grid.x % grid.y, b / (size_t(grid.x) * grid.y));
      std::string err = e.run_block(grid, block, bid, smem, options.seed, body, &call);
      if (err.size()) { std::lock_guard l(mu); if (error.empty()) error = err; at = blocks; }
    }
    std::lock_guard l(mu);
    uint64_t *to = &stats.switches, *from = &e.stats.switches;
    for (size_t i = 0; i < sizeof(Stats) / 8; ++i) { to[i] += from[i]; from[i] = 0; }
  };
  std::vector<std::thread> pool;
  for (int i = 1; i < options.workers; ++i) pool.emplace_back(work);
  work();
  for (auto& t : pool) t.join();
  if (error.size()) throw std::runtime_error("hostsim: " + error);
}
}  // namespace hostsim

// ---- CUDA built-ins ------------------------------------------------------------------------------------------------
inline void __syncthreads(HS_LOC) { hostsim::engine->barrier(0, -1, true, 0, HS_PASS); }
inline int __syncthreads_count(int p, HS_LOC) { return hostsim::engine->barrier(0, -1, true, p, HS_PASS); }
inline int __syncthreads_or(int p, HS_LOC) { return hostsim::engine->barrier(0, -1, true, p, HS_PASS) != 0; }
inline int __syncthreads_and(int p, HS_LOC) { return hostsim::engine->barrier(0, -1, true, !p, HS_PASS) == 0; }
inline void __syncwarp(unsigned mask = ~0u, HS_LOC) {
  hostsim::engine->collective<int>(mask, "__syncwarp", 0, [&](auto&) { hostsim::engine->sync_lanes(mask); }, HS_PASS);
}
namespace hostsim {
template <class T, class F> T shuffle(unsigned mask, T v, const char* op, int width, int arg, F src, HS_LOC) {
  struct In { T v; int arg; };
  return engine->collective<T>(mask, op, In{v, arg}, [&](auto& w) {
    for (int l = 0; l < 32; ++l) if (mask >> l & 1) {
      int lo = l & ~(width - 1), s = src(l, w.in(l).arg, lo);
      if (s < lo || s >= lo + width) s = l;
      if (!(mask >> s & 1)) engine->fail(std::string(op) + ": source lane " + std::to_string(s) + " is not in the mask", HS_PASS);
      w.out(l) = w.in(s).v;
    } }, HS_PASS);
}
template <class T, class F> T reduce(unsigned mask, T v, const char* op, F f, HS_LOC) {
  return engine->collective<T>(mask, op, v, [&](auto& w) {
    int first = std::countr_zero(mask);
    T r = w.in(first);
    for (int l = first + 1; l < 32; ++l) if (mask >> l & 1) r = f(r, w.in(l));
    for (int l = 0; l < 32; ++l) w.out(l) = r; }, HS_PASS);
}
template <class T, class F> T rmw(T* p, F f) {  // atomics; returns the old value
  engine->yield_point();
  std::atomic_ref<T> a(*p);
  T old = a.load();
  while (!a.compare_exchange_weak(old, f(old))) {}
  return old;
}
}  // namespace hostsim
template <class T> T __shfl_sync(unsigned m, T v, int a, int width = 32, HS_LOC) { return hostsim::shuffle(m, v, "__shfl_sync", width, a, [=](int, int s, int lo) { return lo + (s & (width - 1)); }, HS_PASS); }
template <class T> T __shfl_xor_sync(unsigned m, T v, int a, int width = 32, HS_LOC) { return hostsim::shuffle(m, v, "__shfl_xor_sync", width, a, [](int l, int x, int) { return l ^ x; }, HS_PASS); }
template <class T> T __shfl_up_sync(unsigned m, T v, unsigned a, int width = 32, HS_LOC) { return hostsim::shuffle(m, v, "__shfl_up_sync", width, a, [](int l, int d, int) { return l - d; }, HS_PASS); }
template <class T> T __shfl_down_sync(unsigned m, T v, unsigned a, int width = 32, HS_LOC) { return hostsim::shuffle(m, v, "__shfl_down_sync", width, a, [](int l, int d, int) { return l + d; }, HS_PASS); }
inline unsigned __ballot_sync(unsigned m, int p, HS_LOC) { return hostsim::reduce(m, p ? 1u << (hostsim::engine->lin() & 31) : 0u, "__ballot_sync", [](unsigned a, unsigned b) { return a | b; }, HS_PASS); }
inline int __any_sync(unsigned m, int p, HS_LOC) { return hostsim::reduce(m, int(p != 0), "__any_sync", [](int a, int b) { return a | b; }, HS_PASS); }
inline int __all_sync(unsigned m, int p, HS_LOC) { return hostsim::reduce(m, int(p != 0), "__all_sync", [](int a, int b) { return a & b; }, HS_PASS); }
template <class T> T __reduce_add_sync(unsigned m, T v, HS_LOC) { return hostsim::reduce(m, v, "__reduce_add_sync", [](T a, T b) { return a + b; }, HS_PASS); }
template <class T> T __reduce_max_sync(unsigned m, T v, HS_LOC) { return hostsim::reduce(m, v, "__reduce_max_sync", [](T a, T b) { return a > b ? a : b; }, HS_PASS); }
template <class T> T __reduce_min_sync(unsigned m, T v, HS_LOC) { return hostsim::reduce(m, v, "__reduce_min_sync", [](T a, T b) { return a < b ? a : b; }, HS_PASS); }
template <class T> T atomicAdd(T* p, std::type_identity_t<T> v) { return hostsim::rmw(p, [=](T o) { return T(o + v); }); }
template <class T> T atomicMax(T* p, std::type_identity_t<T> v) { return hostsim::rmw(p, [=](T o) { return o > v ? o : v; }); }
template <class T> T atomicMin(T* p, std::type_identity_t<T> v) { return hostsim::rmw(p, [=](T o) { return o < v ? o : v; }); }
template <class T> T atomicOr(T* p, std::type_identity_t<T> v) { return hostsim::rmw(p, [=](T o) { return T(o | v); }); }
template <class T> T atomicExch(T* p, std::type_identity_t<T> v) { return hostsim::rmw(p, [=](T) { return v; }); }
template <class T> T atomicCAS(T* p, std::type_identity_t<T> c, std::type_identity_t<T> v) { return hostsim::rmw(p, [=](T o) { return o == c ? v : o; }); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() {}
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> void __stcs(T* p, T v) { *p = v; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
// Rounded each on its own: the host compiler must not fuse them, as nvcc may not.
inline float __fmul_rn(float a, float b) { float r = a * b; asm("" : "+x"(r)); return r; }
inline float __fadd_rn(float a, float b) { float r = a + b; asm("" : "+x"(r)); return r; }
inline float __fsub_rn(float a, float b) { float r = a - b; asm("" : "+x"(r)); return r; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
template <class T> T min(T a, std::type_identity_t<T> b) { return b < a ? b : a; }
template <class T> T max(T a, std::type_identity_t<T> b) { return a < b ? b : a; }
[[noreturn]] inline void __trap(HS_LOC) { hostsim::engine->fail("__trap", HS_PASS); std::abort(); }
