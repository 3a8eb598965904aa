// Conversations as trees of turns: what is edited or asked again is a sibling of what was there before.

export interface Attachment {
  name: string;
  text: string;
}

/** What a request cost. Counts are of tokens, rates of tokens in a second. */
export interface Stats {
  prompt?: number;
  cached?: number;
  tokens?: number;
  promptRate?: number;
  rate?: number;
  /** Seconds to the first token. */
  first?: number;
}

export type Kind = "gone" | "key" | "context" | "busy" | "missing" | "load" | "storage" | "other";

export interface Trouble {
  kind: Kind;
  message: string;
  /** When it is worth trying again, as the server says: milliseconds since 1970. */
  until?: number;
}

export interface Turn {
  id: string;
  parent: string | null;
  role: "user" | "assistant";
  text: string;
  time: number;
  thoughts?: string;
  files?: Attachment[];
  model?: string;
  stats?: Stats;
  /** Why it ended, where it was not the model's own end; "edited" where a person wrote it, "cut" until its end is known. */
  end?: "length" | "stopped" | "trouble" | "edited" | "cut";
  trouble?: Trouble;
  /** Whether its tokens are kept with their alternatives. */
  tokens?: boolean;
}

export interface Conversation {
  id: string;
  title: string;
  /** Whether a person gave the title, and when. */
  named?: boolean;
  titledAt?: number;
  /** Whether it stays at the top of the list, and when a person last said so or otherwise. */
  pinned?: boolean;
  pinnedAt?: number;
  system: string;
  /** When a person last changed the system prompt. */
  systemAt?: number;
  created: number;
  changed: number;
  turns: Turn[];
  /** Of each turn the child that is shown; of "", the first turn. */
  chosen: Record<string, string>;
}

export const id = () =>
  crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("-");

export function started(system: string): Conversation {
  const now = Date.now();
  return { id: id(), title: "", system, created: now, changed: now, turns: [], chosen: {} };
}

export const children = (conversation: Conversation, parent: string | null) =>
  conversation.turns.filter((turn) => turn.parent === parent);

/** The child that is shown: the chosen one, or the last. */
function shown(conversation: Conversation, parent: string | null): Turn | undefined {
  const all = children(conversation, parent);
  return all.find((turn) => turn.id === conversation.chosen[parent ?? ""]) ?? all.at(-1);
}

/** The turns that are shown, from the first. */
export function path(conversation: Conversation): Turn[] {
  const turns: Turn[] = [];
  for (let turn = shown(conversation, null); turn; turn = shown(conversation, turn.id)) turns.push(turn);
  return turns;
}

/** The turns before one, from the first, without it. */
export function before(conversation: Conversation, parent: string | null): Turn[] {
  const byId = new Map(conversation.turns.map((turn) => [turn.id, turn]));
  const turns: Turn[] = [];
  for (let turn = byId.get(parent ?? ""); turn; turn = byId.get(turn.parent ?? "")) turns.unshift(turn);
  return turns;
}

/** A conversation of its own with all up to a turn, and what its turns are called there. */
export function forked(conversation: Conversation, last: string): [Conversation, Map<string, string>] {
  const names = new Map<string, string>();
  const turns = before(conversation, last).map((turn): Turn => {
    names.set(turn.id, id());
    return { ...turn, id: names.get(turn.id)!, parent: turn.parent && names.get(turn.parent)! };
  });
  return [{ ...started(conversation.system), turns }, names];
}

/** With one more turn, which is shown. */
export function grown(conversation: Conversation, turn: Turn): Conversation {
  return {
    ...conversation,
    changed: Date.now(),
    turns: [...conversation.turns, turn],
    chosen: { ...conversation.chosen, [turn.parent ?? ""]: turn.id },
  };
}

/** With other contents of one turn. */
export function changed(conversation: Conversation, id: string, change: Partial<Turn>): Conversation {
  const turns = conversation.turns.map((turn) => (turn.id === id ? { ...turn, ...change } : turn));
  return { ...conversation, changed: Date.now(), turns };
}

/** With a sibling of `turn` shown in its place, `step` further. */
export function turned(conversation: Conversation, turn: Turn, step: number): Conversation {
  const all = children(conversation, turn.parent);
  const to = all[all.findIndex((other) => other.id === turn.id) + step];
  if (!to) return conversation;
  return { ...conversation, chosen: { ...conversation.chosen, [turn.parent ?? ""]: to.id } };
}

/** Without a turn and all that follows it; which ones went. */
export function pruned(conversation: Conversation, id: string): [Conversation, string[]] {
  const gone = new Set([id]);
  // A turn comes after its parent.
  for (const turn of conversation.turns) if (turn.parent && gone.has(turn.parent)) gone.add(turn.id);
  gone.forEach((id) => deleted.add(id));
  const chosen = Object.entries(conversation.chosen).filter(([from, to]) => !gone.has(from) && !gone.has(to));
  const turns = conversation.turns.filter((turn) => !gone.has(turn.id));
  return [{ ...conversation, changed: Date.now(), turns, chosen: Object.fromEntries(chosen) }, [...gone]];
}

/** Turns as they are stored, and not changed since. */
const asStored = new WeakSet<Turn>();
/** Turns that were deleted here. */
const deleted = new Set<string>();

/** Notes of a conversation that it is as it is stored. */
export function noted<T extends Conversation | undefined>(read: T): T {
  read?.turns.forEach((turn) => asStored.add(turn));
  return read;
}

/** Has a turn be there again, with all that it follows. */
function restore(byId: ReadonlyMap<string, Turn>, id: string | null) {
  for (let at = id; at && deleted.delete(at); ) at = byId.get(at)?.parent ?? null;
}

/**
 * What is stored of a conversation together with what is here: a turn that was written here is as it is here, and one that was
 * deleted in either place is gone, unless something was said below it that was not deleted.
 */
export function merged(stored: Conversation, here: Conversation): Conversation {
  const byId = new Map(stored.turns.map((turn) => [turn.id, turn]));
  for (const { id, parent } of stored.turns) if (!deleted.has(id)) restore(byId, parent);
  const ours = new Map(here.turns.map((turn) => [turn.id, turn]));
  const turns = stored.turns
    .filter(({ id }) => !deleted.has(id))
    .map((turn) => {
      const our = ours.get(turn.id);
      ours.delete(turn.id);
      return our && !asStored.has(our) ? our : turn;
    });
  // What was stored once and is no more was deleted by another tab. A turn comes after its parent.
  const said = new Set<string>();
  const rest = [...ours.values()].reverse().filter((turn) => {
    const stays = !asStored.has(turn) || said.has(turn.id);
    if (stays && turn.parent) said.add(turn.parent);
    return stays;
  });
  // What is shown here stays shown.
  const seen = Object.fromEntries(path(here).map(({ id, parent }) => [parent ?? "", id]));
  return {
    ...here,
    ...pin(stored, here),
    ...title(stored, here),
    ...prompt(stored, here),
    turns: [...turns, ...rest.reverse()],
    chosen: { ...stored.chosen, ...here.chosen, ...seen },
  };
}

/** Pinned, or no longer. */
export const pinned = (one: Conversation): Conversation => ({ ...one, pinned: !one.pinned, pinnedAt: Date.now() });

/** What was said last of whether it is pinned: where that is not known, it stays pinned. */
function pin(stored: Conversation, here: Conversation): Pick<Conversation, "pinned" | "pinnedAt"> {
  const [before = 0, now = 0] = [stored.pinnedAt, here.pinnedAt];
  const { pinned, pinnedAt } = now > before || (now === before && here.pinned) ? here : stored;
  return { pinned, pinnedAt };
}

/** With a title that a person gave. */
export const entitled = (one: Conversation, title: string): Conversation => ({
  ...one,
  title,
  named: true,
  titledAt: Date.now(),
});

/** The title that a person gave last: one of a first message is older than any. */
function title(stored: Conversation, here: Conversation): Pick<Conversation, "title" | "named" | "titledAt"> {
  const [before = 0, now = 0] = [stored.titledAt, here.titledAt];
  const { title, named, titledAt } = before > now || (stored.named && !here.named) ? stored : here;
  return { title, named, titledAt };
}

/** With another system prompt. */
export const prompted = (one: Conversation, system: string): Conversation => ({ ...one, system, systemAt: Date.now() });

/** The system prompt that was given last. */
function prompt(stored: Conversation, here: Conversation): Pick<Conversation, "system" | "systemAt"> {
  const { system, systemAt } = (stored.systemAt ?? 0) > (here.systemAt ?? 0) ? stored : here;
  return { system, systemAt };
}

/** A title like another one, with the first number behind it that none of `taken` has. */
export function numbered(title: string, taken: string[]): string {
  const bare = title.replace(/ \(\d+\)$/, "");
  for (let n = 2; ; n++) if (!taken.includes(`${bare} (${n})`)) return `${bare} (${n})`;
}

/** A title from a first message. */
export function titled(text: string): string {
  const line =
    text
      .split("\n")
      .find((line) => line.trim())
      ?.trim() ?? "";
  return line.length > 64 ? `${line.slice(0, 61).replace(/\s+\S*$/, "")}…` : line;
}
