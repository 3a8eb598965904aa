"""Coding agents in their default settings, each through one whole task against a server.

    python3 tests/clients/coding_agents.py [AGENT…] [--url URL | --mock] [--json] [--record DIR] [--keep DIR] [--offline]

Without `--url` and `--mock` it is the server that BACKSTOP names (the binary), with a model that answers by the agent's
script (scripted.py). The agents are installed into the folder that AGENTS names, by default target/agents, unless they are there. Each runs in a
home and a git repository of its own, is pointed at the server by its own variables and files alone, and is done when the
file that it was asked for is there and it has ended with 0.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import mock
import scripted

HERE = Path(__file__).resolve().parent
TASK = "Create a file hello.txt that holds the word hi."
# The packages of newer agents want a newer Node than many systems have; npm has it as a package of its own.
NODE = "22.23.3"
# Longest time of one run. An agent that gets no answer it likes tries again and again.
LIMIT = 180


@dataclasses.dataclass
class Place:
    """Where an agent is to work, and with whom."""

    url: str
    model: str
    context: int
    home: Path
    project: Path


@dataclasses.dataclass
class Agent:
    name: str
    # The package and its version: of npm, or of PyPI where `python` is set.
    package: str
    version: str
    binary: str
    arguments: Callable[[Place], list[str]]
    environment: Callable[[Place], dict[str, str]]
    # Files of its home, by their path there.
    files: Callable[[Place], dict[str, str]] = lambda place: {}
    python: bool = False


def claude_environment(place):
    return {
        "ANTHROPIC_BASE_URL": place.url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": place.model,
        # Titles, summaries and the like go to a smaller model, which is the same here.
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": place.model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def codex_files(place):
    return {".codex/config.toml": f"""
model = {json.dumps(place.model)}
model_provider = "backstop"
check_for_update_on_startup = false

# Its list of plugins is another host's.
[features]
plugins = false

[model_providers.backstop]
name = "backstop"
base_url = {json.dumps(place.url + "/v1")}
wire_api = "responses"

[analytics]
enabled = false
"""}


def opencode_files(place):
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "backstop",
        "options": {"baseURL": place.url + "/v1", "apiKey": "none"},
        "models": {place.model: {"name": place.model}},
    }
    config = {
        "$schema": "https://opencode.ai/config.json",
        "model": f"backstop/{place.model}",
        "provider": {"backstop": provider},
        "autoupdate": False,
        "share": "disabled",
    }
    return {".config/opencode/opencode.json": json.dumps(config)}


def aider_files(place):
    # Else it asks another host for the prices of models; one that is empty counts as none.
    prices = {f"openai/{place.model}": {"max_input_tokens": place.context}}
    return {".aider/caches/model_prices_and_context_window.json": json.dumps(prices)}


def qwen_files(place):
    settings = {
        "security": {"auth": {"selectedType": "openai"}},
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
        "general": {"enableAutoUpdate": False},
    }
    return {".qwen/settings.json": json.dumps(settings)}


AGENTS = [
    Agent(
        "claude",
        "@anthropic-ai/claude-code",
        "2.1.332",
        "claude",
        lambda place: ["--print", TASK, "--permission-mode", "acceptEdits"],
        claude_environment,
    ),
    Agent(
        "codex",
        "@openai/codex",
        "0.171.0",
        "codex",
        lambda place: ["exec", "--dangerously-bypass-approvals-and-sandbox", TASK],
        lambda place: {"CODEX_HOME": str(place.home / ".codex")},
        codex_files,
    ),
    Agent(
        "opencode",
        "opencode-ai",
        "1.18.33",
        "opencode",
        lambda place: ["run", TASK],
        lambda place: {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_LSP_DOWNLOAD": "1"},
        opencode_files,
    ),
    Agent(
        "qwen",
        "@qwen-code/qwen-code",
        "0.24.4",
        "qwen",
        lambda place: ["--approval-mode", "auto-edit", "--prompt", TASK],
        lambda place: {
            "OPENAI_BASE_URL": place.url + "/v1",
            "OPENAI_API_KEY": "none",
            "OPENAI_MODEL": place.model,
        },
        qwen_files,
    ),
    Agent(
        "aider",
        "aider-chat",
        "0.86.2",
        "aider",
        lambda place: ["--message", TASK, "--yes-always", "--model", f"openai/{place.model}"],
        lambda place: {
            "OPENAI_API_BASE": place.url + "/v1",
            "OPENAI_API_KEY": "none",
            "AIDER_ANALYTICS": "false",
            "AIDER_CHECK_UPDATE": "false",
            "AIDER_SHOW_RELEASE_NOTES": "false",
            # Where the model is unknown it would ask a person whether to open a page about it.
            "AIDER_SHOW_MODEL_WARNINGS": "false",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        },
        aider_files,
        python=True,
    ),
]


def npm(folder, package, node):
    folder.mkdir(parents=True, exist_ok=True)
    path = {"PATH": f"{node / 'node_modules/.bin'}{os.pathsep}{os.environ['PATH']}"} if node else {}
    command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel", "error", "--prefix", str(folder), package]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **path})


def install(agent, home):
    """Installs an agent under `home`, unless this version is there, and gives its command's path."""
    folder, stamp = home / agent.name, home / agent.name / "version.txt"
    binary = folder / ("bin" if agent.python else "node_modules/.bin") / agent.binary
    if not (stamp.exists() and stamp.read_text() == agent.version):
        shutil.rmtree(folder, ignore_errors=True)
        if agent.python:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            pip = [str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, f"{agent.package}=={agent.version}"], check=True)
        else:
            node = home / "node"
            if not (node / "node_modules/.bin/node").exists():
                npm(node, f"node@{NODE}", None)
            npm(folder, f"{agent.package}@{agent.version}", node)
        stamp.write_text(agent.version)
    return binary


@contextlib.contextmanager
def served(agent, folder, options):
    """The URL of the server that the agent is to be measured against, or the script of the mock."""
    text = (HERE / "scripts" / f"{agent.name}.json").read_text()
    script = json.loads(text.replace("{{project}}", str(folder / "project")))
    if options.url:
        yield options.url, None
    elif options.mock:
        yield None, script
    else:
        model = scripted.make(folder / "scripted", script)
        command = [os.environ["BACKSTOP"], "serve", str(model), "--port", "0", *options.serve]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            heads = (line.removeprefix("listening on ").strip() for line in process.stderr if "listening on " in line)
            url = next(heads, None)
            if not url:
                raise SystemExit(f"{' '.join(command)}: it did not start")
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield url, None
        finally:
            process.terminate()
            process.wait(timeout=120)


def described(url):
    """The first model's name and context."""
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        model = json.load(answer)["data"][0]
    return model["id"], model.get("context_length", 200_000)


def run(agent, options):
    """One agent's whole task, and what came of it."""
    binary = install(agent, options.agents)
    folder = Path(tempfile.mkdtemp(prefix=f"agent-{agent.name}-", dir=options.keep))
    home, project = folder / "home", folder / "project"
    home.mkdir()
    project.mkdir()
    record = options.record / agent.name if options.record else None
    try:
        with served(agent, folder, options) as (url, script):
            with mock.Mock(script, url, fail=options.fail) as relay:
                model, context = described(relay.url)
                place = Place(relay.url, model, context, home, project)
                relay.begin_record(record)
                return outcome(agent, place, relay, drive(agent, binary, place, options), options)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def drive(agent, binary, place, options):
    """Runs the agent, and gives its exit code (none where it took too long), its words and its seconds."""
    for name, text in agent.files(place).items():
        path = place.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (place.home / ".gitconfig").write_text("[user]\n\tname = A\n\temail = a@example.org\n")
    node = options.agents / "node/node_modules/.bin"
    environment = {
        "HOME": str(place.home),
        "PATH": f"{node}{os.pathsep}{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        # What an agent asks of other hosts comes here, is written down, and is refused.
        "HTTP_PROXY": place.url,
        "HTTPS_PROXY": place.url,
        "NO_PROXY": "127.0.0.1,localhost",
        **agent.environment(place),
    }
    subprocess.run(["git", "init", "--quiet"], cwd=place.project, env=environment, check=True)
    command = [str(binary), *agent.arguments(place)]
    began = time.monotonic()
    try:
        ran = subprocess.run(
            command,
            cwd=place.project,
            env=environment,
            timeout=options.limit,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        code, said = ran.returncode, ran.stdout
    except subprocess.TimeoutExpired as late:
        code, said = None, (late.stdout or b"").decode(errors="replace")
    return code, said, time.monotonic() - began


def outcome(agent, place, relay, ran, options):
    code, said, seconds = ran
    made = place.project / "hello.txt"
    held = made.read_text() if made.exists() else None
    outside = [r["path"] for r in relay.requests if r["method"] == "CONNECT" or "://" in r["path"]]
    asked = [r for r in relay.requests if r["path"] not in outside]
    refused = [f"{r['status']} {r['method']} {r['path']}: {r['refusal']}" for r in asked if r["status"] >= 400]
    return {
        "agent": agent.name,
        "version": agent.version,
        "requests": len(asked),
        "bytes": max((r["bytes"] for r in asked), default=0),
        "seconds": round(seconds, 1),
        "exit": code,
        "file": held,
        "ok": code == 0 and held is not None and held.strip() == "hi",
        "outside": sorted(set(outside)),
        "refused": list(dict.fromkeys(refused)),
        "said": said[-options.words :],
    }


def table(results):
    rows = [("agent", "version", "requests", "largest", "seconds", "exit", "outcome")]
    for r in results:
        word = "done" if r["ok"] else (r["refused"] or [r["said"].strip()[-200:] or "no file"])[0]
        exit_code = "-" if r["exit"] is None else str(r["exit"])
        rows.append((r["agent"], r["version"], str(r["requests"]), str(r["bytes"]), str(r["seconds"]), exit_code, word))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[6]]))
    for r in results:
        if r["outside"]:
            print(f"{r['agent']} asked other hosts, and was refused: {', '.join(r['outside'])}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="AGENT", help=", ".join(agent.name for agent in AGENTS))
    parser.add_argument("--url", help="a server that runs")
    parser.add_argument("--mock", action="store_true", help="mock.py, by the agent's script")
    parser.add_argument("--serve", nargs="*", default=[], help="further options of `backstop serve`")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", type=Path, metavar="DIR", help="writes each request into DIR/AGENT")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keeps homes and projects in DIR")
    parser.add_argument("--fail", action="append", default=[], metavar="PATH=STATUS[xTIMES][:JSON]", help="as mock.py has it")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of a run")
    parser.add_argument("--words", type=int, default=2000, help="characters of what an agent said that are kept")
    parser.add_argument("--offline", action="store_true", help="in a network of this process' own (Linux)")
    options = parser.parse_args()
    options.agents = Path(os.environ.get("AGENTS", HERE.parents[1] / "target/agents")).resolve()
    chosen = [agent for agent in AGENTS if not options.names or agent.name in options.names]
    unknown = set(options.names) - {agent.name for agent in AGENTS}
    if unknown:
        parser.error(f"no such agent: {', '.join(sorted(unknown))}")
    if options.offline and not os.environ.get("AGENTS_OFFLINE"):
        for agent in chosen:
            install(agent, options.agents)
        again = 'ip link set lo up && exec "$@"'
        os.environ["AGENTS_OFFLINE"] = "1"
        os.execvp("unshare", ["unshare", "-rn", "sh", "-c", again, "sh", sys.executable, *sys.argv])
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    results = [run(agent, options) for agent in chosen]
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        table(results)
    sys.exit(0 if all(r["ok"] for r in results) else 1)


if __name__ == "__main__":
    main()
