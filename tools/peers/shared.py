"""What the scripts beside this one share: the options, the tokens, and what is printed."""

import argparse
import json
import resource
import time
from pathlib import Path

# Tokens of a prompt that are computed at once, as llama.cpp does by default.
CHUNK = 512


def parser(doc):
    """The options that every peer has."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", type=Path)
    options.add_argument("--depth", type=int, default=0, help="tokens cached before")
    options.add_argument("--prompt", type=int, default=512)
    options.add_argument("--generate", type=int, default=128)
    return options


def chunks(start, count, vocab):
    """The tokens of positions `start` to `start + count`, those of `backstop bench`, in chunks."""
    ids = [position * 7919 % vocab for position in range(start, start + count)]
    return [ids[i : i + CHUNK] for i in range(0, count, CHUNK)]


def seconds(work):
    """What `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report(args, load, prompt, generation):
    """One JSON object from three times in seconds: rates in tokens per second, memory in bytes."""
    result = {
        "load": load,
        "prompt": args.prompt / prompt,
        "generation": args.generate / generation,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(result))
