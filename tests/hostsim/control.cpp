// What the tests set and read in the simulated library: schedule seed, threads, statistics, names of launched kernels.
#include <string>

#include "cuda_host.hpp"
#if defined(HOSTSIM_RACE)
#include "hostsim_race.hpp"
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void hostsim_configure(uint64_t seed, int workers) {
  hostsim::options.seed = seed;
  hostsim::options.workers = workers;
}
EXPORT void hostsim_stats(uint64_t* out) { std::memcpy(out, &hostsim::stats, sizeof hostsim::stats); }
EXPORT const char* hostsim_launched() {
  static std::string names;
  names.clear();
  for (const std::string& name : hostsim::launched) names += name + "\n";
  return names.c_str();
}
