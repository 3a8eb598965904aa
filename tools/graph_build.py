"""Time mlx-lm building the graph of one decode step, without evaluating it: the peer of benches/graph.rs.

    pip install mlx-lm
    python tools/graph_build.py DIR [--tokens 128] [--steps 40]

A step is what `mlx_lm.generate.generate_step` does for one token of a greedy generation: the call of the model on the
last token (still an array), the logits of the last position, their log-probabilities, the argmax. It is evaluated,
caches included, between two timed steps. Prints the median of a round of steps in milliseconds; with --follow, runs a
round for each line on standard input, so that a caller can alternate rounds with its own.
"""

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model


def greedy(model, tokens, cache):
    """The next token and the log-probabilities, lazy: `_step` of `generate_step`."""
    logits = model(tokens[None], cache=cache)[:, -1, :]
    logprobs = logits - mx.logsumexp(logits, keepdims=True)
    return mx.argmax(logprobs, axis=-1), logprobs.squeeze(0)


def evaluate(token, logprobs, cache):
    mx.eval(token, logprobs, [layer.state for layer in cache])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=128, help="tokens cached before the first step")
    parser.add_argument("--steps", type=int, default=40, help="steps of a round")
    parser.add_argument("--follow", action="store_true", help="one round for each line on standard input")
    args = parser.parse_args()

    model, config = load_model(args.model)
    cache = make_prompt_cache(model)
    prompt = mx.array([i * 7919 % config["vocab_size"] for i in range(args.tokens)])
    token, logprobs = greedy(model, prompt, cache)
    evaluate(token, logprobs, cache)

    for _ in sys.stdin if args.follow else [None]:
        for layer in cache:
            layer.trim(layer.offset - args.tokens)
        times = []
        gc.collect()
        for _ in range(args.steps):
            start = time.perf_counter()
            token, logprobs = greedy(model, token, cache)
            times.append(time.perf_counter() - start)
            evaluate(token, logprobs, cache)
        print(f"{1e3 * statistics.median(times):.4f}", flush=True)


if __name__ == "__main__":
    main()
