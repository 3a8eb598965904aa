"""Measure llama.cpp once: a peer of `backstop bench`.

    pip install llama-cpp-python
    python tools/peers/llama_cpp_bench.py FILE.gguf [--threads 2] [--depth 0] [--prompt 512] [--generate 128] [--no-repack]

The model is loaded, a short prompt warms it up, and a prompt and then single tokens are decoded after `depth` cached
tokens, as llama-bench does it. Prints one JSON object: rates in tokens per second, times in seconds, memory in bytes.
"""

import ctypes
import time

import llama_cpp as llama
from shared import chunks, parser, report, seconds


@llama.llama_log_callback
def silent(*_):
    pass


def main():
    options = parser(__doc__)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--no-repack", action="store_true", help="leave weights as they lie in the file")
    args = options.parse_args()

    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    started = time.perf_counter()
    parameters = llama.llama_model_default_params()
    parameters.use_extra_bufts = not args.no_repack
    model = llama.llama_model_load_from_file(str(args.model).encode(), parameters)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {args.model}")
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = args.depth + max(args.prompt, args.generate) + 64
    parameters.n_threads = parameters.n_threads_batch = args.threads
    context = llama.llama_init_from_model(model, parameters)
    load = time.perf_counter() - started
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    memory = llama.llama_get_memory(context)

    def decode(start, count):
        for chunk in chunks(start, count, vocab):
            tokens = (llama.llama_token * len(chunk))(*chunk)
            if llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(chunk))):
                raise SystemExit(f"llama.cpp cannot decode {args.model}")
        llama.llama_synchronize(context)

    def cut(tokens):
        # A state that cannot go back is made anew.
        if not llama.llama_memory_seq_rm(memory, 0, tokens, -1):
            llama.llama_memory_clear(memory, True)
            decode(0, tokens)

    decode(0, min(args.prompt, 64))
    cut(0)
    decode(0, args.depth)
    prompt = seconds(lambda: decode(args.depth, args.prompt))
    cut(args.depth)
    decode(args.depth, 1)
    cut(args.depth)
    generation = seconds(lambda: [decode(args.depth + i, 1) for i in range(args.generate)])
    report(args, load, prompt, generation)


main()
