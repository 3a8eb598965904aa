"""Measure llama.cpp with several sequences at a time: a peer of clients of `backstop serve`.

    pip install llama-cpp-python
    python tools/peers/llama_cpp_clients.py FILE.gguf [--clients 8] [--threads 2] [--prompt 128] [--generate 128]

The steps are those of llama.cpp's own server: prompts fill a batch, then each step decodes one token of every sequence, which is
the likeliest. There is no HTTP, no text and no queue, so that the server is at most as fast. Prints one JSON object: tokens per
second of all sequences from the first prompt on, and seconds to the first token of each.
"""

import argparse
import ctypes
import json
import resource
import time
from pathlib import Path

import llama_cpp as llama

# Tokens of a step of llama.cpp's server at most, by default.
BATCH = 2048


@llama.llama_log_callback
def silent(*_):
    pass


class Sequences:
    """Sequences in one context, each as long as it has tokens."""

    def __init__(self, args):
        parameters = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(str(args.model).encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {args.model}")
        parameters = llama.llama_context_default_params()
        # Whole blocks of 256 cells for each.
        parameters.n_ctx = args.clients * (-(-(args.prompt + args.generate) // 256) * 256)
        parameters.n_seq_max = args.clients
        parameters.n_batch = BATCH
        parameters.n_threads = parameters.n_threads_batch = args.threads
        # As the server has it: nothing behind a window is kept.
        parameters.swa_full = False
        self.context = llama.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise SystemExit(f"llama.cpp has no room for {args.clients} sequences of {args.model}")
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.greedy = llama.llama_sampler_init_greedy()
        self.batch = llama.llama_batch_init(BATCH, 0, 1)
        self.lengths = [0] * args.clients

    def step(self, tokens):
        """Computes pairs of sequence and token, of which the flag says whether the next one is asked for; those, by sequence."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        asked = {}
        for i, (sequence, token, last) in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.lengths[sequence]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = last
            self.lengths[sequence] += 1
            if last:
                asked[sequence] = i
        if llama.llama_decode(self.context, batch):
            raise SystemExit("llama.cpp cannot decode a step")
        return {of: llama.llama_sampler_sample(self.greedy, self.context, i) for of, i in asked.items()}

    def run(self, prompt, generate):
        """Tokens that came, seconds to the first one of each sequence, and seconds in all."""
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        self.lengths = [0] * len(self.lengths)
        started = time.perf_counter()
        waiting = []
        for sequence in range(len(self.lengths)):
            # No sequence begins like another.
            ids = [(sequence * prompt + i) * 7919 % self.vocab for i in range(prompt)]
            waiting += [(sequence, token, i + 1 == prompt) for i, token in enumerate(ids)]
        left = {sequence: generate for sequence in range(len(self.lengths))}
        first, next_tokens, came = {}, {}, 0
        while waiting or next_tokens:
            # Sequences that generate come first, then as much of the prompts as the batch holds.
            tokens = [(sequence, token, True) for sequence, token in next_tokens.items()]
            room = BATCH - len(tokens)
            tokens, waiting = tokens + waiting[:room], waiting[room:]
            next_tokens = self.step(tokens)
            for sequence in list(next_tokens):
                first.setdefault(sequence, time.perf_counter() - started)
                came += 1
                left[sequence] -= 1
                if not left[sequence]:
                    del next_tokens[sequence]
        return came, list(first.values()), time.perf_counter() - started


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", type=Path)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--prompt", type=int, default=128)
    options.add_argument("--generate", type=int, default=128)
    args = options.parse_args()

    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    sequences = Sequences(args)
    # Pages are touched, threads are there.
    sequences.run(min(args.prompt, 16), 2)
    came, first, seconds = sequences.run(args.prompt, args.generate)
    if came != args.clients * args.generate:
        raise SystemExit(f"{came} tokens came")
    result = {
        "rate": came / seconds,
        "first": first,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(result))


main()
