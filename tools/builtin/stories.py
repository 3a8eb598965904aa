"""Writes the corpus of the built-in model: little stories from a hand-written grammar.

    python stories.py --seed 7 --count 30000 --train train.txt --held-out held.txt
    python stories.py --seed 7 --show 5

The templates are in plots.py, their notation in grammar.py. Every story is a function of the seed and its number;
a story is held out by a hash of its text, so that none is in both parts.
"""

import argparse
import hashlib
import random

from grammar import Story
from plots import PLOTS, request


def story(seed, index):
    """Returns a request, mostly empty, and a story."""
    rng = random.Random(f"{seed}:{index}")
    while True:
        s = Story(rng)
        plot = rng.choices([p for p, _ in PLOTS], [w for _, w in PLOTS])[0]
        plot(s)
        text = s.text()
        if 70 <= len(text.split()) <= 215:
            return (request(s, plot) + "\n\n" if s.chance(0.08) else ""), text


def is_held_out(text):
    """About one story in fifty, by its text alone: equal texts fall on the same side."""
    return hashlib.sha256(text.encode()).digest()[0] < 5


def corpus(seed, count):
    """Returns (training documents, held-out documents); no story is in both or twice in one."""
    seen, train, held = set(), [], []
    for i in range(count):
        ask, text = story(seed, i)
        if text not in seen:
            seen.add(text)
            (held if is_held_out(text) else train).append(ask + text)
    return train, held


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--seed", type=int, default=7)
    ap.add_argument("--count", type=int, default=30000)
    ap.add_argument("--show", type=int, help="print this many stories and stop")
    ap.add_argument("--train", default="train.txt")
    ap.add_argument("--held-out", default="held.txt")
    a = ap.parse_args()
    if a.show:
        for i in range(a.show):
            print("".join(story(a.seed, i)), end="\n\n---\n\n")
        return
    train, held = corpus(a.seed, a.count)
    for path, part in ((a.train, train), (a.held_out, held)):
        with open(path, "w", encoding="utf-8") as f:
            f.write("\n<|story|>\n".join(part) + "\n")
    print(f"{len(train)} training stories, {len(held)} held out")


if __name__ == "__main__":
    main()
