"""sparrow's operators. Importing this package makes them available as `torch.ops.sparrow.*`, too."""

from sparrow_ext._library import cpu_isa, has_cuda_kernels, set_cpu_isa
from sparrow_ext.ops.tree_mask import tree_mask

__all__ = ["cpu_isa", "has_cuda_kernels", "set_cpu_isa", "tree_mask"]
