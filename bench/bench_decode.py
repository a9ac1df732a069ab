"""The decode loop on a small random target: what a token costs plainly, and what verifying a tree costs on top.

No drafter here is trained, so nothing here is a speed-up by speculation: `plain` is our loop without a drafter beside
transformers' generate, and `verify` is the time of one pass over N nodes in units of one over a single node.
"""

import pytest
import torch

import sparrow
from sparrow.targets.adapter import Target
from sparrow.targets.tiny import TinySize, tiny_target
from sparrow_ext.ops.tree_mask import tree_mask

SIZE = TinySize(
    vocab_size=8192, hidden_size=256, num_layers=6, num_heads=8, num_kv_heads=2, intermediate_size=704,
    image_token_id=8000, video_token_id=8001, vision_start_token_id=8002, vision_end_token_id=8003,
)  # fmt: skip
NEW = 16


@pytest.fixture(scope="module")
def model():
    import transformers

    transformers.logging.set_verbosity_error()
    return tiny_target("llava_onevision", 0, SIZE)


def prompt(length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 7000, (1, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("impl", ["sparrow", "transformers"])
@pytest.mark.parametrize("context", [64, 1024, 4096])
def test_plain(benchmark, model, context, impl):
    benchmark.group = f"decode plain, {NEW} tokens at {context}"
    inputs = prompt(context)
    options = {"max_new_tokens": NEW, "eos_token_id": None, "do_sample": False}
    run = (lambda: sparrow.generate(model, None, **inputs, **options)) if impl == "sparrow" else None
    benchmark.pedantic(run or (lambda: model.generate(**inputs, **options)), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("impl", ["sparrow", "sdpa with a dense mask"])
@pytest.mark.parametrize("nodes", [1, 8, 26, 64])
@pytest.mark.parametrize("context", [64, 1024, 4096])
def test_verify(benchmark, model, context, nodes, impl):
    """One verify pass; the peer is transformers' own 4-D mask over the same preallocated cache."""
    benchmark.group = f"decode verify, N={nodes} at {context}"
    target = Target(model)
    cache = target.new_cache(context + 2 * nodes)
    positions = torch.arange(context)[None]
    target.prefill(prompt(context)["input_ids"], {target.cache_argument: cache, "position_ids": positions}, 6)
    parent = torch.tensor([[max(-1, (i - 1) // 2) if i else -1 for i in range(nodes)]], dtype=torch.int32)
    anc, depth = tree_mask(parent)
    tokens = torch.arange(3, 3 + nodes)[None]
    if impl == "sparrow":
        with torch.no_grad(), target.verifying():
            benchmark(lambda: target.verify(tokens, anc, context + depth, cache, 6))
        return
    from sparrow_ext.ops.tree_mask import unpack_words

    visible = torch.cat([torch.ones(nodes, context, dtype=torch.bool), unpack_words(anc[0], nodes)], dim=1)[None, None]

    def dense():
        out = model(input_ids=tokens, attention_mask=visible, position_ids=context + depth,
                    use_cache=True, output_hidden_states=[6], **{target.cache_argument: cache})  # fmt: skip
        cache.set_length(context)
        return out

    with torch.no_grad():
        benchmark(dense)
