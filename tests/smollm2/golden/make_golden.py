"""Writes llama_cpp.json: what llama.cpp (pip install xllamacpp) makes of the same file.

python -m tests.smollm2.golden.make_golden
"""

import importlib.metadata
import pathlib

import xllamacpp

from sparrow.files import write_json
from sparrow.smollm2 import convert
from sparrow.smollm2.package import cache_folder, gguf, sha256
from sparrow.smollm2.texts import chat
from tests.smollm2.golden.corpus import GREEDY, HAND, texts

FILE = pathlib.Path(__file__).parent / "llama_cpp.json"
NEW_TOKENS = 64


def digest(rows: list[list[int]]) -> str:
    import hashlib

    return hashlib.sha256(repr(rows).encode()).hexdigest()


def main() -> None:
    model = gguf(cache_folder())
    tokenizer = convert.read(model).tokenizer
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.warmup = 1024, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    rows = [server.handle_tokenize({"content": t, "add_special": False, "parse_special": True})["tokens"]
            for t in texts()]  # fmt: skip
    greedy = []
    for prompt in GREEDY:
        done = server.handle_completions(
            {"prompt": chat(tokenizer, prompt), "n_predict": NEW_TOKENS, "max_tokens": NEW_TOKENS, "temperature": 0.0,
             "top_k": 1, "return_tokens": True, "cache_prompt": False, "repeat_penalty": 1.0}
        )  # fmt: skip
        greedy.append({"prompt": prompt, "text": done["choices"][0]["text"]})
        print(done["choices"][0]["text"][:80].replace("\n", " "), flush=True)
    write_json(
        FILE,
        {"xllamacpp": importlib.metadata.version("xllamacpp"), "gguf_sha256": sha256(model), "texts": len(rows),
         "digest": digest(rows), "hand": rows[: len(HAND)], "greedy": greedy},
        indent=None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
