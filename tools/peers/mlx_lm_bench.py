"""Measure mlx-lm once on MLX's default device: a peer of `backstop bench`.

    pip install mlx-lm
    python tools/peers/mlx_lm_bench.py DIR [--depth 0] [--prompt 512] [--generate 128]

The steps are those of `mlx_lm.generate.generate_step`: prompts in chunks, greedy tokens each built while the one before
runs. Prints one JSON object: rates in tokens per second, times in seconds, memory in bytes.
"""

import time

import mlx.core as mx
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache
from mlx_lm.utils import load_model
from shared import chunks, parser, report, seconds


def main():
    args = parser(__doc__).parse_args()

    started = time.perf_counter()
    model, config = load_model(args.model)
    load = time.perf_counter() - started
    cache = make_prompt_cache(model)
    vocab = config.get("text_config", config)["vocab_size"]

    def prefill(start, count):
        for ids in chunks(start, count, vocab):
            logits = model(mx.array([ids]), cache=cache)[:, -1, :]
            mx.eval(logits, [layer.state for layer in cache])

    def cut(tokens):
        nonlocal cache
        if can_trim_prompt_cache(cache):
            for layer in cache:
                layer.trim(layer.offset - tokens)
        else:  # a state that cannot go back is made anew
            cache = make_prompt_cache(model)
            prefill(0, tokens)

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
    prompt = seconds(lambda: prefill(args.depth, args.prompt))
    cut(args.depth)
    generation = seconds(lambda: generate(args.generate))
    report(args, load, prompt, generation)


main()
