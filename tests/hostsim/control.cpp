// What module.cpp sets and reads in the simulated library: schedule seed, threads, shared memory, launched kernels.
#include <map>
#include <string>


#include "cuda_host.hpp"
#if defined(HOSTSIM_RACE)
#include "hostsim_race.hpp"
#endif

void configure_simulator(uint64_t seed, int workers, int64_t shared_limit) {
  hostsim::options.seed = seed;
  hostsim::options.workers = workers;
  hostsim::options.smem_limit = static_cast<size_t>(shared_limit);
}
int64_t simulated_shared_limit() { return static_cast<int64_t>(hostsim::options.smem_limit); }
std::map<std::string, size_t> launched_kernels() { return hostsim::launched; }
