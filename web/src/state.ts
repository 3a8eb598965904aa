// What the page shows: conversations, models, and what goes on.

import { computed, effect, signal, type Signal } from "@preact/signals";
import * as api from "./api";
import { settings } from "./settings";
import * as store from "./store";
import type { Token } from "./store";
import * as tree from "./tree";
import type { Conversation, Stats, Trouble } from "./tree";
import * as writers from "./writers";

/** An answer that is being written. */
export interface Run {
  turn: string;
  stop: AbortController;
  live: Signal<{ text: string; thoughts: string; doing: string; stats: Stats }>;
  tokens: Token[];
}

/** What the chosen model is kept by. */
const MODEL = "backstop.model";

export const conversations = signal<Conversation[]>([]);
export const current = signal("");
export const runs = signal<ReadonlyMap<string, Run>>(new Map());
export const models = signal<api.Model[]>([]);
export const chosen = signal(remembered());
/** What went wrong beside any answer. */
export const trouble = signal<Trouble | null>(null);
/** Why conversations are not kept, where they are not. */
export const unkept = signal<Trouble | null>(null);
/** What a screen reader says. */
export const said = signal("");
export const ready = signal(false);
export const dialog = signal<"" | "settings" | "keys" | "about">("");
/** On a narrow screen the sidebar is a drawer. */
export const drawer = signal(false);
/** Goes to the end of the conversation, where that is not seen. */
export const toEnd = signal<(() => void) | null>(null);

export const conversation = computed(() => conversations.value.find(({ id }) => id === current.value));
/** Models by the names that they are listed by themselves. */
const named = computed(() => {
  const ids = new Set(models.value.map(({ id }) => id));
  return models.value.filter(({ id, root }) => !root || root === id || !ids.has(root));
});
/** Other names of a model. */
export const aliases = (of: api.Model) => models.value.filter(({ id, root }) => root === of.id && id !== root);
/** The models that answer: embedders do not. */
export const answering = computed(() =>
  named.value.filter(({ capabilities }) => !capabilities?.length || capabilities.includes("completion")),
);
export const model = computed(() => {
  const { root } = models.value.find(({ id }) => id === chosen.value) ?? {};
  const called = (name?: string) => answering.value.find(({ id }) => id === name);
  return called(chosen.value) ?? called(root) ?? answering.value[0];
});
/** Whether there is no other model that could answer. */
export const isOnly = (id?: string) => answering.value.length === 1 && answering.value[0].id === id;
export const isLoaded = (model: api.Model) => !model.state || model.state === "loaded";
export const isChanging = ({ state }: api.Model) => state === "loading" || state === "unloading";
/** Whether the server holds several models, or tells of their states. */
export const several = computed(() => named.value.length > 1 || models.value.some(({ state }) => state));

function remembered(): string {
  try {
    return localStorage.getItem(MODEL) ?? "";
  } catch {
    return "";
  }
}

export function choose(id: string) {
  chosen.value = id;
  try {
    localStorage.setItem(MODEL, id);
  } catch {
    /* It holds while the page is open. */
  }
}

/** Other tabs of this page hear what changes here. */
const channel = connected();
function connected(): BroadcastChannel | undefined {
  try {
    return new BroadcastChannel("backstop");
  } catch {
    // There is none, or a browser that keeps nothing refuses it.
  }
}
channel?.addEventListener("message", ({ data }) => {
  if (data.all || data.id || data.writes) void look();
  // What cannot be read is told where it is to be kept.
  if (data.all || data.id) heard(data).catch(() => undefined);
});

const look = () => writers.look((id) => heard({ id }));

/** Has other tabs know that an answer is written here, until what this gives is called. */
export const writes = (id: string, turn: string) =>
  writers.holds(id, turn, () => channel?.postMessage({ writes: turn }));

/** Conversations that other tabs changed while they were answered here. */
const missed = new Set<string>();

/** Takes over what other tabs did to a conversation while it was answered here; what is shown here stays shown. */
export async function catchUp(id: string) {
  if (!missed.has(id)) return;
  const found = await store.get(id).catch(() => undefined);
  const here = find(id);
  if (!found || !here || runs.value.has(id)) return;
  missed.delete(id);
  const both = tree.merged(found, here);
  conversations.value = conversations.value.map((one) => (one === here ? both : one));
}

async function heard(data: { all?: true; id?: string }) {
  // What is being answered here is this tab's until that is done.
  if (data.all) {
    const stored = await store.all();
    const ours = conversations.value.filter(({ id }) => runs.value.has(id));
    ours.forEach(({ id }) => missed.add(id));
    conversations.value = [...stored.filter(({ id }) => !runs.value.has(id)), ...ours];
  } else if (data.id) {
    const found = await store.get(data.id);
    if (runs.value.has(data.id)) return void missed.add(data.id);
    const rest = conversations.value.filter(({ id }) => id !== data.id);
    conversations.value = found ? [...rest, found] : rest;
  }
}

/** Conversations that are not stored as they are here. */
const unsaved = new Set<string>();
let told = false;
/** Keeps something in the browser, `ids` of conversations perhaps, or says once that it cannot. */
export async function keep(work: Promise<unknown>, message: object = {}, ids: string[] = []) {
  try {
    await work;
  } catch (error) {
    ids.forEach((id) => unsaved.add(id));
    if (!told) unkept.value = { kind: "storage", message: whyUnkept(error as DOMException | undefined) };
    told = true;
    return;
  }
  channel?.postMessage(message);
  ids.forEach((id) => unsaved.delete(id));
  if (told) saveRest();
}

/** Where something was stored there may be room for what was not. */
function saveRest() {
  const next = [...unsaved].map(find).find((one) => one && !forgotten.has(one.id));
  if (next) return void keep(put(next), { id: next.id }, [next.id]);
  unsaved.clear();
  unkept.value = null;
  told = false;
}

function whyUnkept(error?: DOMException): string {
  if (error?.name === "QuotaExceededError") return "The room that this browser has for the page is full.";
  if (error?.name === "SecurityError") return "This browser keeps nothing of the page, as in a private window.";
  return `This browser does not keep conversations${error?.message ? ` (${error.message.replace(/\.$/, "")})` : ""}.`;
}

/** What of a conversation is merged beside its turns. */
const SAID = ["title", "titledAt", "system", "systemAt", "pinned", "pinnedAt"] as const;

/** Stores a conversation, and takes over what other tabs did to it. */
async function put(changed: Conversation) {
  const stored = await store.put(changed);
  const here = find(changed.id);
  if (!here) return;
  if (!stored) return vanished(here);
  const both = tree.merged(stored, here);
  const ids = new Set(here.turns.map(({ id }) => id));
  const grown = both.turns.length !== ids.size || both.turns.some(({ id }) => !ids.has(id));
  if (grown || SAID.some((name) => both[name] !== here[name]))
    conversations.value = conversations.value.map((one) => (one === here ? both : one));
}

/** Another tab has deleted it. */
function vanished(gone: Conversation) {
  runs.value.get(gone.id)?.stop.abort();
  conversations.value = conversations.value.filter(({ id }) => id !== gone.id);
  if (current.value === gone.id) fresh();
  void keep(store.removeTokens(gone.turns.filter(({ tokens }) => tokens).map(({ id }) => id)));
}

/** Puts a changed conversation in its place; done once it is stored, or is not. */
export async function update(changed: Conversation) {
  if (forgotten.has(changed.id)) return;
  const known = conversations.value.some(({ id }) => id === changed.id);
  conversations.value = known
    ? conversations.value.map((one) => (one.id === changed.id ? changed : one))
    : [...conversations.value, changed];
  await keep(put(changed), { id: changed.id }, [changed.id]);
}

export const find = (id: string) => conversations.value.find((one) => one.id === id);

export function open(id: string) {
  location.hash = id ? `#/${id}` : "#/";
}

export function fresh() {
  open("");
  drawer.value = false;
  document.getElementById("question")?.focus();
}

/** Those that are being deleted: what still comes of an answer does not bring them back. */
const forgotten = new Set<string>();

/** Whether a conversation is no more, or will not be in a moment. */
export const isGone = (id: string) => forgotten.has(id) || !find(id);

/** Deletes a conversation, which is listed until it is gone for good. */
export async function forget(gone: Conversation) {
  forgotten.add(gone.id);
  runs.value.get(gone.id)?.stop.abort();
  await keep(store.remove(gone), { id: gone.id });
  conversations.value = conversations.value.filter(({ id }) => id !== gone.id);
  forgotten.delete(gone.id);
  if (current.value === gone.id) fresh();
}

export async function forgetAll() {
  runs.value.forEach((run) => run.stop.abort());
  conversations.value = [];
  fresh();
  await keep(store.clear(), { all: true });
}

/** Goes on from a turn in a conversation of its own. */
export async function fork(from: Conversation, last: string) {
  const [begun, names] = tree.forked(from, last);
  const title = tree.numbered(from.title, conversations.value.map(({ title }) => title));
  for (const { id, tokens } of tree.before(from, last).filter(({ tokens }) => tokens)) {
    const kept = await store.tokensOf(id).catch(() => undefined);
    if (tokens && kept) await keep(store.putTokens(names.get(id)!, kept));
  }
  update({ ...begun, title, named: true });
  open(begun.id);
  said.value = `A new conversation goes on from here: ${title}.`;
}

export function prune(from: Conversation, turn: string) {
  const [left, gone] = tree.pruned(from, turn);
  update(left);
  void keep(store.removeTokens(gone));
}

/** Milliseconds until the first of them will have been unloaded; 0 where none will. */
function due(all: api.Model[]): number {
  const left = all.map(({ expires_in }) => expires_in).filter((seconds) => typeof seconds === "number");
  // A timer holds no more than some 24 days.
  return left.length ? Math.min((Math.max(0, Math.min(...left)) + 0.5) * 1000, 86_400_000) : 0;
}

let asking: ReturnType<typeof setTimeout> | undefined;
/** What went wrong when it was asked last. */
let unheard: Trouble | null = null;
/** Asks what models there are, and again while one changes, when one is due to, or while the server is away. */
export async function refresh() {
  clearTimeout(asking);
  let again = 0;
  try {
    models.value = await api.models();
    if (trouble.value === unheard || trouble.value?.kind === "gone" || trouble.value?.kind === "key") trouble.value = null;
    unheard = null;
    again = models.value.some(isChanging) ? 1000 : due(models.value);
  } catch (error) {
    const failed = api.failure(error);
    trouble.value = unheard = failed.trouble;
    if (failed.kind === "gone" || failed.kind === "busy") again = Math.max(3000, (failed.until ?? 0) - Date.now());
  }
  if (again) asking = setTimeout(refresh, again);
}

/** Loads or unloads a model, and says what became of it. */
export async function loading(of: api.Model, load: boolean) {
  const mark = (state: api.Model["state"]) =>
    (models.value = models.value.map((one) => (one.id === of.id ? { ...one, state } : one)));
  mark(load ? "loading" : "unloading");
  try {
    await (load ? api.load(of.id) : api.unload(of.id));
    said.value = `${of.id} is ${load ? "loaded" : "unloaded"}.`;
  } catch (error) {
    const failed = api.failure(error);
    trouble.value = { ...failed.trouble, kind: load && failed.kind === "other" ? "load" : failed.kind };
  }
  await refresh();
}

effect(() => {
  const name = conversation.value?.title || (model.value?.id ?? "");
  document.title = name ? `${name} · backstop` : "backstop";
});

export async function begin() {
  const go = () => {
    current.value = location.hash.replace(/^#\/?/, "");
    drawer.value = false;
  };
  addEventListener("hashchange", go);
  go();
  addEventListener("focus", () => void refresh());
  void refresh();
  try {
    conversations.value = await store.all();
  } catch (error) {
    await keep(Promise.reject(error));
  }
  if (current.value && !conversation.value) open("");
  await look();
  ready.value = true;
}

/** The system's message of a conversation that begins now. */
export const begun = () => tree.started(settings.value.system);
