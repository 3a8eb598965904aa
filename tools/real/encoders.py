"""Write tests/fixtures/real/all-minilm-l6-v2: what sentence-transformers makes of 100 sentences.

    cargo xtask real-models all-minilm-l6-v2        # 91 MB
    pip install sentence-transformers transformers torch
    python tools/real/encoders.py [FOLDER]

`all-minilm-l6-v2.json` has `sentences` and their token ids `ids`; `all-minilm-l6-v2.safetensors` their `vectors`, f32 [100, 384]. The
sentences are those of docs.txt, some of them joined, with a few in other languages.
"""

import importlib.metadata
import json
import os
import re
import sys
from pathlib import Path

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

import numpy as np
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "all-minilm-l6-v2"
OUT = ROOT / "tests" / "fixtures" / "real"
OTHERS = ["", "x", "Der Hund schläft, während die Katze wacht.", "L'école est fermée à cause de la neige.", "El niño comió 3,5 kg de piñones.",
          "猫は今日も寝ている。", "Привет, как дела?", "한국어 문장입니다.", "🦊🦊 emoji, and\tcontrol\u0000 characters \ufffd", "e\u0301cole ÉCOLE ecole"]


def sentences():
    docs = (OUT / "docs.txt").read_text()
    found = [" ".join(part.split()) for part in re.split(r"(?<=[.:?!])\s+", docs)]
    found = [part for part in found if 20 < len(part) < 500]
    joined = [" ".join(found[i : i + 4])[:700] for i in range(0, 40, 4)]
    return (OTHERS + joined + found)[:100]


def main():
    folder = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "target" / "real-models" / NAME
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"attn_implementation": "eager"})
    model.tokenizer.backend_tokenizer.no_truncation()
    texts = sentences()
    ids = [model.tokenizer(text)["input_ids"] for text in texts]
    assert len(texts) == 100 and max(map(len, ids)) <= model.max_seq_length, max(map(len, ids))
    vectors = np.stack([model.encode(text) for text in texts]).astype(np.float32)
    batched = model.encode(texts, batch_size=100)
    assert (vectors * batched).sum(1).min() > 0.999999
    versions = {name: importlib.metadata.version(name) for name in ("sentence-transformers", "transformers", "torch")}
    record = {"versions": versions, "sentences": texts, "ids": ids}
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).replace('","', '",\n"').replace("],[", "],\n[")
    (OUT / f"{NAME}.json").write_text(text + "\n")
    save_file({"vectors": vectors}, OUT / f"{NAME}.safetensors")
    print(f"{len(texts)} sentences, {min(map(len, ids))} to {max(map(len, ids))} tokens")


if __name__ == "__main__":
    main()
