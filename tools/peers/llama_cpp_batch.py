"""Measure llama.cpp once with several sequences side by side: the most that a server on it can reach.

    pip install llama-cpp-python numpy
    python tools/peers/llama_cpp_batch.py FILE.gguf [--threads 2] [--clients 8] [--prompt 128] [--generate 128]

All prompts come at once and are decoded together; then each step decodes a token of every sequence, the likeliest. There is no
server in it: no HTTP, no queue, no text. Prints one JSON object: tokens per second of all sequences, and the seconds to the
first token of each.
"""

import argparse
import ctypes
import json
import time

import llama_cpp as llama
import numpy as np


@llama.llama_log_callback
def silent(*_):
    pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=128)
    args = parser.parse_args()

    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(args.model.encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {args.model}")
    options = llama.llama_context_default_params()
    options.n_seq_max = args.clients
    options.n_ctx = args.clients * (args.prompt + args.generate)
    options.n_batch = max(args.clients * args.prompt, 512)
    options.n_threads = options.n_threads_batch = args.threads
    context = llama.llama_init_from_model(model, options)
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    memory = llama.llama_get_memory(context)
    batch = llama.llama_batch_init(options.n_batch, 0, 1)

    def decode(tokens):
        """(sequence, position, id, whether its logits are wanted) → the likeliest token of each that is wanted."""
        batch.n_tokens = len(tokens)
        wanted = []
        for i, (sequence, position, token, logits) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, logits
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            wanted += [i] if logits else []
        if llama.llama_decode(context, batch):
            raise SystemExit(f"llama.cpp cannot decode {args.model}")
        rows = [llama.llama_get_logits_ith(context, i) for i in wanted]
        return [int(np.ctypeslib.as_array(row, shape=(vocab,)).argmax()) for row in rows]

    def run(prompt, generate):
        llama.llama_memory_clear(memory, True)
        started = time.perf_counter()
        tokens = []
        for sequence in range(args.clients):
            ids = [(sequence * 104729 + i * 7919) % vocab for i in range(prompt)]
            tokens += [(sequence, i, token, i == prompt - 1) for i, token in enumerate(ids)]
        last = decode(tokens)
        first = time.perf_counter() - started
        for i in range(generate - 1):
            last = decode([(sequence, prompt + i, token, True) for sequence, token in enumerate(last)])
        return first, time.perf_counter() - started

    run(8, 4)
    first, total = run(args.prompt, args.generate)
    rate = args.clients * args.generate / total
    print(json.dumps({"rate": rate, "first": [first] * args.clients}))


main()
