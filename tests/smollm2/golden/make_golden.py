"""Writes llama_cpp.json: what llama.cpp (pip install xllamacpp) makes of the same file.

python -m tests.smollm2.golden.make_golden
"""

import importlib.metadata
import json
import pathlib
import urllib.request
from typing import Any

from sparrow.files import write_json
from sparrow.smollm2 import convert
from sparrow.smollm2.package import cache_folder, gguf, sha256
from sparrow.smollm2.texts import chat
from tests.smollm2.golden.corpus import GREEDY, HAND, digest, texts

FILE = pathlib.Path(__file__).parent / "llama_cpp.json"
NEW_TOKENS = 64


def serve(model: pathlib.Path) -> Any:
    """llama.cpp's server within this process, on one thread."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.warmup = 1024, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def main() -> None:
    """Token ids of the corpus and greedy answers."""
    model = gguf(cache_folder())
    tokenizer = convert.read(model).tokenizer
    server = serve(model)

    def post(path: str, **body: Any) -> Any:
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(server.listening_address + path, data, kind)) as answer:
            return json.load(answer)

    rows = [post("/tokenize", content=t, add_special=False, parse_special=True)["tokens"] for t in texts()]
    greedy = [
        {"prompt": prompt, "tokens": post(
            "/completion", prompt=chat(tokenizer, prompt), n_predict=NEW_TOKENS, temperature=0.0, return_tokens=True,
            samplers=["temperature"], cache_prompt=False,
        )["tokens"]}
        for prompt in GREEDY
    ]  # fmt: skip
    made_by = {"xllamacpp": importlib.metadata.version("xllamacpp"), "gguf_sha256": sha256(model)}
    write_json(FILE, {**made_by, "texts": len(rows), "digest": digest(rows), "hand": rows[: len(HAND)],
                      "greedy": greedy}, indent=1)  # fmt: skip


if __name__ == "__main__":
    main()
