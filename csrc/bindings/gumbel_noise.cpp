#include "ops/gumbel_noise.h"

#include "bindings/checks.h"
#include "bindings/cuda.h"

namespace sparrow {
namespace {

constexpr const char* kOp = "gumbel_noise";

// Everything but the output.
GumbelNoiseParams checked(const Tensor& seed, const Tensor& position, int64_t vocab,
                          const std::optional<Tensor>& id_map) {
  check_tensors(kOp, {{"seed", seed}, {"position", position}, {"id_map", id_map}});
  Arg{kOp, "seed", seed}.dtype({ScalarType::Long}).dim(1).contiguous();
  Arg{kOp, "position", position}.dtype({ScalarType::Long}).dim(2).size(0, seed.size(0), "B").contiguous();
  check_count(kOp, "vocab", vocab, 1);
  if (id_map) Arg{kOp, "id_map", *id_map}.dtype({ScalarType::Long}).dim(1).size(0, vocab, "vocab").contiguous();
  GumbelNoiseParams p{};
  p.seed = seed.const_data_ptr<int64_t>();
  p.position = position.const_data_ptr<int64_t>();
  p.id_map = id_map ? id_map->const_data_ptr<int64_t>() : nullptr;
  p.batch = position.size(0);
  p.positions = position.size(1);
  p.vocab = vocab;
  return p;
}

Tensor output(const Tensor& like, GumbelNoiseParams& p) {
  const Tensor out = empty(kOp, like, {p.batch, p.positions, p.vocab}, ScalarType::Float);
  p.out = out.mutable_data_ptr<float>();
  return out;
}

}  // namespace

Tensor gumbel_noise_op_cpu(const Tensor& seed, const Tensor& position, int64_t vocab,
                           const std::optional<Tensor>& id_map) {
  GumbelNoiseParams p = checked(seed, position, vocab, id_map);
  const Tensor out = output(position, p);
  run_items(gumbel_noise_cpu, p, p.batch * p.positions * noise_pieces(vocab), /*grain=*/8);
  return out;
}

#if defined(SPARROW_CUDA)
Tensor gumbel_noise_op_cuda(const Tensor& seed, const Tensor& position, int64_t vocab,
                            const std::optional<Tensor>& id_map) {
  GumbelNoiseParams p = checked(seed, position, vocab, id_map);
  const Tensor out = output(position, p);
  const OnDevice on(kOp, position);
  check_launch(kOp, gumbel_noise_cuda(p, on.stream));
  return out;
}
#endif

}  // namespace sparrow

SPARROW_LIBRARY(m) { m.def("gumbel_noise(Tensor seed, Tensor position, int vocab, Tensor? id_map=None) -> Tensor"); }
SPARROW_CPU_IMPL(m) { m.impl(SPARROW_BOX("gumbel_noise", &sparrow::gumbel_noise_op_cpu)); }
#if defined(SPARROW_CUDA)
SPARROW_CUDA_IMPL(m) { m.impl(SPARROW_BOX("gumbel_noise", &sparrow::gumbel_noise_op_cuda)); }
#endif
