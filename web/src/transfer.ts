// Conversations as files: out in this page's form or as Markdown, in from it or from llama.cpp's page.

import * as state from "./state";
import * as store from "./store";
import * as tree from "./tree";
import type { Attachment, Conversation, Turn } from "./tree";

const FORMAT = "backstop-conversations";
/** Larger files are none that this page has written. */
const MOST = 512 * 1024 * 1024;

function download(name: string, type: string, text: string) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

const named = (title: string) =>
  title
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 60)
    .toLowerCase() || "conversation";
const day = () => new Date().toISOString().slice(0, 10);

/** What a file says of conversations; the alternatives of tokens stay behind. */
export const text = (conversations: Conversation[]) => {
  const bare = conversations.map((one) => ({ ...one, turns: one.turns.map(({ tokens: _, ...turn }) => turn) }));
  return JSON.stringify({ format: FORMAT, version: 1, conversations: bare }, null, 1);
};

export const exportAll = () =>
  download(`conversations-${day()}.json`, "application/json", text(state.conversations.value));
export const exportOne = (one: Conversation) => download(`${named(one.title)}.json`, "application/json", text([one]));

export function exportMarkdown(one: Conversation) {
  const turns = tree.path(one).map((turn) => {
    const files = (turn.files ?? []).map(({ name }) => `*${name}*\n\n`).join("");
    return `## ${turn.role === "user" ? "You" : (turn.model ?? "Assistant")}\n\n${files}${turn.text}\n`;
  });
  const system = one.system ? `> ${one.system.replace(/\n/g, "\n> ")}\n\n` : "";
  download(`${named(one.title)}.md`, "text/markdown", `# ${one.title}\n\n${system}${turns.join("\n")}`);
}

/** Takes conversations in from a file; how many there were. */
export async function importFile(file: File): Promise<number> {
  if (file.size > MOST) throw new Error(`${file.name} is larger than 512 MiB`);
  const found = read(await file.text(), file.name);
  // Another tab may have stored one that is not known here.
  const stored = await store.ids().catch(() => []);
  const known = new Set([...stored, ...state.conversations.value.map(({ id }) => id)]);
  // One that is here already comes in beside itself.
  const added = found.map((one) => {
    const id = /^[\w-]{1,64}$/.test(one.id) && !known.has(one.id) ? one.id : tree.id();
    known.add(id);
    return { ...one, id };
  });
  state.conversations.value = [...state.conversations.value, ...added];
  await state.keep(store.putAll(added), { all: true }, added.map(({ id }) => id));
  return added.length;
}

/** What a file holds, each part of it checked. */
export function read(text: string, name: string): Conversation[] {
  let value: any;
  try {
    value = JSON.parse(text);
  } catch {
    // llama.cpp's page writes lines of JSON, too.
    try {
      value = text
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line));
    } catch {
      throw new Error(`${name} is no JSON file`);
    }
  }
  const own = value?.format === FORMAT && Array.isArray(value.conversations);
  const theirs = (Array.isArray(value) ? value : [value]).filter((one) => one?.conv && Array.isArray(one.messages));
  const all: (Conversation | undefined)[] = own ? value.conversations.map(ours) : theirs.map(llama);
  const found = all.filter((one) => one !== undefined);
  if (found.length === 0) throw new Error(`${name} holds no conversations that this page or llama.cpp's has exported`);
  return found;
}

const string = (value: unknown, otherwise = "") => (typeof value === "string" ? value : otherwise);
const number = (value: unknown, otherwise: number) =>
  typeof value === "number" && Number.isFinite(value) ? value : otherwise;

function files(value: unknown): Attachment[] {
  const all = Array.isArray(value) ? value : [];
  return all
    .filter((one) => typeof one?.text === "string")
    .map((one) => ({ name: string(one.name, "file"), text: one.text }));
}

/** A conversation whose turns have been checked: each has an id of its own and comes after its parent. */
function whole(
  one: Omit<Conversation, "turns" | "chosen">,
  turns: Turn[],
  chosen: [string, unknown][],
): Conversation | undefined {
  const kept: Turn[] = [];
  const there = new Map<string, string>();
  for (let left = turns; ;) {
    const next = left.filter((turn) => turn.parent === null || there.has(turn.parent));
    for (const turn of next) {
      if (there.has(turn.id)) continue;
      // Ids are made anew, so that what is kept beside turns of other conversations stays theirs.
      there.set(turn.id, tree.id());
      kept.push({ ...turn, id: there.get(turn.id)!, parent: turn.parent && there.get(turn.parent)! });
    }
    if (next.length === 0) break;
    left = left.filter((turn) => !there.has(turn.id));
  }
  if (kept.length === 0) return;
  const pairs = chosen.map(([from, to]) => [from === "" ? "" : there.get(from), there.get(string(to))]);
  return { ...one, turns: kept, chosen: Object.fromEntries(pairs.filter(([from, to]) => from !== undefined && to)) };
}

function ours(value: any): Conversation | undefined {
  if (!Array.isArray(value?.turns)) return;
  const now = Date.now();
  const turns: Turn[] = value.turns
    .filter((turn: any) => typeof turn?.id === "string" && ["user", "assistant"].includes(turn.role))
    .map((turn: any) => {
      const stats = Object.entries(turn.stats ?? {}).filter(([, count]) => typeof count === "number");
      const attached = files(turn.files);
      return {
        id: turn.id,
        parent: typeof turn.parent === "string" ? turn.parent : null,
        role: turn.role,
        text: string(turn.text),
        time: number(turn.time, now),
        ...(turn.thoughts && { thoughts: string(turn.thoughts) }),
        ...(attached.length && { files: attached }),
        ...(turn.model && { model: string(turn.model) }),
        ...(stats.length && { stats: Object.fromEntries(stats) }),
        ...(["length", "stopped", "edited", "cut"].includes(turn.end) && { end: turn.end }),
      };
    });
  const one = {
    id: string(value.id) || tree.id(),
    title: string(value.title, "Untitled"),
    named: value.named === true,
    ...(value.pinned === true && { pinned: true }),
    system: string(value.system),
    created: number(value.created, now),
    changed: number(value.changed, now),
  };
  return whole(one, turns, Object.entries(value.chosen ?? {}));
}

/** One of llama.cpp's page: its root and its system's message are turns there. */
function llama({ conv, messages }: any): Conversation | undefined {
  const now = Date.now();
  const all = messages.filter((message: any) => typeof message?.id === "string");
  const byId = new Map<string, any>(all.map((message: any) => [message.id, message]));
  const spoken = (message: any) => message.type !== "root" && ["user", "assistant"].includes(message.role);
  const above = (message: any): string | null => {
    const seen = new Set();
    for (let at = byId.get(message.parent); at && !seen.has(at); at = byId.get(at.parent)) {
      if (spoken(at)) return at.id;
      seen.add(at);
    }
    return null;
  };
  const turns: Turn[] = all.filter(spoken).map((message: any) => {
    const extra = Array.isArray(message.extra) ? message.extra : [];
    const attached = files(extra.map((file: any) => ({ name: file?.name, text: file?.content })));
    const thoughts = string(message.reasoningContent ?? message.thinking);
    return {
      id: message.id,
      parent: above(message),
      role: message.role,
      text: string(message.content),
      time: number(message.timestamp, now),
      ...(thoughts && { thoughts }),
      ...(attached.length && { files: attached }),
      ...(message.model && { model: string(message.model) }),
    };
  });
  const chosen: [string, string][] = [];
  for (
    let at: Turn | undefined = turns.find(({ id }) => id === conv.currNode), steps = 0;
    at && steps < turns.length;
    steps++
  ) {
    chosen.push([at.parent ?? "", at.id]);
    const { parent }: Turn = at;
    at = turns.find(({ id }) => id === parent);
  }
  const system = string(all.find((message: any) => message.role === "system" && message.type !== "root")?.content);
  const changed = number(conv.lastModified, now);
  return whole(
    {
      id: string(conv.id) || tree.id(),
      title: string(conv.name, "Untitled"),
      named: true,
      ...(conv.pinned === true && { pinned: true }),
      system,
      created: changed,
      changed,
    },
    turns,
    chosen,
  );
}
