// What module.cpp sets and reads in the simulated library: schedule seed, threads, names of launched kernels.
#include <string>
#include <vector>

#include "cuda_host.hpp"
#if defined(HOSTSIM_RACE)
#include "hostsim_race.hpp"
#endif

void configure_simulator(uint64_t seed, int workers) {
  hostsim::options.seed = seed;
  hostsim::options.workers = workers;
}
std::vector<std::string> launched_kernels() { return {hostsim::launched.begin(), hostsim::launched.end()}; }
