"""GPU checks: programmatic launches (SPARROW_PDL=1), which are off by default until a GPU has shown that they pay: the
same tokens, and a round's time beside that of the part "round".
"""

import os
from collections.abc import Iterator

import torch

from bench.gpu_decode import greedy, load, loops
from bench.gpu_round import rounds
from bench.gpu_worker import Case, Place


def cases(place: Place) -> Iterator[Case]:
    os.environ["SPARROW_PDL"] = "1"  # read at the first launch, here and in the process of a round
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    new = 24 if place.small else 80
    for dtype in ("float32",) if place.small else ("float32", "bfloat16"):
        yield Case(f"captured and eager {dtype}", lambda d=dtype: loops(place, d, new))
    yield Case(
        "greedy float32",
        lambda: greedy(*load(place.device, "float32", 64), max_new_tokens=new, tree="30-4-8"),
    )
    for visual in (500,) if place.small else (500, 25000):
        yield Case(f"visual {visual}", lambda v=visual: rounds(place, v))
