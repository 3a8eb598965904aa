"""Measure transformers on PyTorch's CPU once: a peer of `backstop bench`.

    pip install transformers torch
    python tools/peers/transformers_bench.py DIR [--threads 2] [--depth 0] [--prompt 512] [--generate 128]

The model keeps the type of its files. Prompts are computed in chunks, then greedy tokens one by one, with the cache that
`generate` uses. Prints one JSON object: rates in tokens per second, times in seconds, memory in bytes.
"""

import time

import torch
from shared import chunks, parser, report, seconds
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging


@torch.inference_mode()
def main():
    options = parser(__doc__)
    options.add_argument("--threads", type=int, default=2)
    args = options.parse_args()

    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto").eval()
    load = time.perf_counter() - started
    cache = DynamicCache(config=model.config)

    def forward(ids):
        logits = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return int(logits[0, -1].argmax())

    def prefill(start, count):
        for ids in chunks(start, count, model.config.vocab_size):
            forward(ids)

    def generate(count):
        token = 1
        for _ in range(count):
            token = forward([token])

    def cut(tokens):
        # Anew, since not every state can go back.
        nonlocal cache
        cache = DynamicCache(config=model.config)
        prefill(0, tokens)

    prefill(0, min(args.prompt, 8))
    cut(args.depth)
    prompt = seconds(lambda: prefill(args.depth, args.prompt))
    cut(args.depth)
    generation = seconds(lambda: generate(args.generate))
    report(args, load, prompt, generation)


main()
