"""Measure mlx-lm once on MLX's default device: the peer of `backstop bench`.

    pip install mlx-lm
    python tools/peers/mlx_lm_bench.py DIR [--depth 0] [--prompt 512] [--generate 128]

The steps are those of `mlx_lm.generate.generate_step`: prompts in chunks, greedy tokens each built while the one before
runs. Prints one JSON object: rates in tokens per second, times in seconds, memory in bytes.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--depth", type=int, default=0, help="tokens cached before")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    args = parser.parse_args()

    started = time.perf_counter()
    model, config = load_model(args.model)
    load = time.perf_counter() - started
    cache = make_prompt_cache(model)

    def prefill(start, count):
        ids = [position * 7919 % config["vocab_size"] for position in range(start, start + count)]
        for i in range(0, count, 512):
            logits = model(mx.array([ids[i : i + 512]]), cache=cache)[:, -1, :]
            mx.eval(logits, [layer.state for layer in cache])

    def cut(tokens):
        for layer in cache:
            layer.trim(layer.offset - tokens)

    def generate(count):
        token = mx.array([1])
        before = None
        for _ in range(count):
            token = mx.argmax(model(token[None], cache=cache)[:, -1, :], axis=-1)
            mx.async_eval(token)
            if before is not None:
                before.item()
            before = token
        mx.eval(before)

    prefill(0, min(args.prompt, 8))
    generate(1)
    cut(0)
    prefill(0, args.depth)
    started = time.perf_counter()
    prefill(args.depth, args.prompt)
    prompt = time.perf_counter() - started
    cut(args.depth)
    started = time.perf_counter()
    generate(args.generate)
    generation = time.perf_counter() - started
    result = {
        "load": load,
        "prompt": args.prompt / prompt,
        "generation": args.generate / generation,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(result))


main()
