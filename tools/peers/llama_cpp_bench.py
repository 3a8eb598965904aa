"""Measure llama.cpp once: the peer of `backstop bench`.

    pip install llama-cpp-python
    python tools/peers/llama_cpp_bench.py FILE.gguf [--threads 2] [--depth 0] [--prompt 512] [--generate 128] [--no-repack]

The model is loaded, a short prompt warms it up, and a prompt and then single tokens are decoded after `depth` cached
tokens, as llama-bench does it. Prints one JSON object: rates in tokens per second, times in seconds, memory in bytes.
"""

import argparse
import ctypes
import json
import resource
import time

import llama_cpp as llama


@llama.llama_log_callback
def silent(*_):
    pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, default=0, help="tokens cached before")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--no-repack", action="store_true", help="leave weights as they lie in the file")
    args = parser.parse_args()

    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    started = time.perf_counter()
    options = llama.llama_model_default_params()
    options.use_extra_bufts = not args.no_repack
    model = llama.llama_model_load_from_file(args.model.encode(), options)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {args.model}")
    options = llama.llama_context_default_params()
    options.n_ctx = args.depth + max(args.prompt, args.generate) + 64
    options.n_threads = options.n_threads_batch = args.threads
    context = llama.llama_init_from_model(model, options)
    load = time.perf_counter() - started
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    memory = llama.llama_get_memory(context)

    def decode(start, count):
        ids = [position * 7919 % vocab for position in range(start, start + count)]
        for chunk in (ids[i : i + 512] for i in range(0, count, 512)):
            tokens = (llama.llama_token * len(chunk))(*chunk)
            if llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(chunk))):
                raise SystemExit(f"llama.cpp cannot decode {args.model}")
        llama.llama_synchronize(context)

    def cut(tokens):
        llama.llama_memory_seq_rm(memory, 0, tokens, -1)

    decode(0, min(args.prompt, 64))
    cut(0)
    decode(0, args.depth)
    started = time.perf_counter()
    decode(args.depth, args.prompt)
    prompt = time.perf_counter() - started
    cut(args.depth)
    decode(args.depth, 1)
    cut(args.depth)
    started = time.perf_counter()
    for i in range(args.generate):
        decode(args.depth + i, 1)
    generation = time.perf_counter() - started
    result = {
        "load": load,
        "prompt": args.prompt / prompt,
        "generation": args.generate / generation,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(result))


main()
