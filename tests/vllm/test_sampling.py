"""At temperature 1 drafted output follows vLLM's own distribution; the CPU platform's bug would show here."""

import random
from collections import Counter

import pytest

from tests.vllm.cases import asked, drafting, run

pytestmark = pytest.mark.skipif(not asked(), reason="vLLM has an environment of its own: `make test-vllm`")
DRAWS, PERMUTATIONS = 1500, 999


def distance(some: list, others: list) -> float:
    """Total variation of two samples' distributions."""
    p, q = Counter(some), Counter(others)
    return 0.5 * sum(abs(p[t] / len(some) - q[t] / len(others)) for t in {*p, *q})


@pytest.mark.slow
def test_draws_follow_the_targets_distribution(tmp_path):
    """Permutation tests of the first 2, 4 and 6 tokens; false alarm: 3 in 1000 at most."""
    sampling = {"temperature": 1.0, "max_tokens": 6, "n": DRAWS, "ignore_eos": True}
    one = {"cases": [{"prompt": "Describe the video in detail.", "frames": 4}], "sampling": sampling}
    options = {"max_num_seqs": 64, "max_model_len": 512, "enable_prefix_caching": True, "seed": 5}
    results = []
    for more in ({}, drafting(text_rows=128)):
        (result,) = run(tmp_path, [one], **options, **more)
        results.append([tuple(x) for x in result["tokens"][0]])
    assert result["metrics"]["accepted"] > 100
    shuffled = random.Random(0)
    for length in (2, 4, 6):
        some, others = ([x[:length] for x in result] for result in results)
        pool = some + others
        assert len(set(pool)) > 3
        seen, larger = distance(some, others), 0
        for _ in range(PERMUTATIONS):
            shuffled.shuffle(pool)
            larger += distance(pool[:DRAWS], pool[DRAWS:]) >= seen
        assert (1 + larger) / (1 + PERMUTATIONS) > 0.001, (length, seen)
