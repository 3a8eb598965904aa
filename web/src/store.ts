// What the browser keeps: conversations, and the tokens of answers with their alternatives.

import { merged, noted, type Conversation } from "./tree";

/** A token: its text, its log-probability, and what else could have stood there. */
export type Token = [text: string, logprob: number, others: [text: string, logprob: number][], thought?: 1];

const CONVERSATIONS = "conversations",
  TOKENS = "tokens";
let database: Promise<IDBDatabase> | undefined;

function opened(): Promise<IDBDatabase> {
  const again = () => (database = undefined);
  database ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("backstop", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(CONVERSATIONS, { keyPath: "id" });
      request.result.createObjectStore(TOKENS);
    };
    request.onsuccess = () => {
      // Another tab may bring a newer form of it.
      request.result.onversionchange = () => request.result.close();
      request.result.onclose = again;
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  database.catch(again);
  return database;
}

/** Does something in one transaction. */
async function within<T>(
  mode: IDBTransactionMode,
  work: (conversations: IDBObjectStore, tokens: IDBObjectStore) => IDBRequest<T> | void,
) {
  const transaction = (await opened()).transaction([CONVERSATIONS, TOKENS], mode);
  const request = work(transaction.objectStore(CONVERSATIONS), transaction.objectStore(TOKENS));
  await new Promise<void>((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    // A request that failed says so before the transaction knows its error: it aborts then.
    transaction.onabort = () => reject(transaction.error);
  });
  return request?.result;
}

/** Conversations that were stored once: one of them that is gone was deleted, perhaps by another tab. */
const known = new Set<string>();

export async function all(): Promise<Conversation[]> {
  const found = ((await within("readonly", (store) => store.getAll())) ?? []) as Conversation[];
  for (const one of found) known.add(noted(one).id);
  return found;
}

export const ids = async () => ((await within("readonly", (store) => store.getAllKeys())) ?? []) as string[];

export async function get(id: string): Promise<Conversation | undefined> {
  const found = noted((await within("readonly", (store) => store.get(id))) as Conversation | undefined);
  if (found) known.add(id);
  return found;
}

/** Puts a conversation together with what other tabs stored of it: what is stored then, unless it was deleted. */
export async function put(conversation: Conversation): Promise<Conversation | undefined> {
  const { id } = conversation;
  let stored: Conversation | undefined;
  await within("readwrite", (store) => {
    const request: IDBRequest<Conversation | undefined> = store.get(id);
    request.onsuccess = () => {
      if (!request.result && known.has(id)) return;
      stored = request.result ? merged(noted(request.result), conversation) : conversation;
      store.put(stored);
    };
  });
  if (stored) known.add(noted(conversation).id);
  return stored;
}

export async function putAll(all: Conversation[]) {
  await within("readwrite", (store) => all.forEach((one) => store.put(one)));
  for (const one of all) known.add(noted(one).id);
}

export const remove = (conversation: Conversation) =>
  within("readwrite", (store, tokens) => {
    store.delete(conversation.id);
    for (const turn of conversation.turns) if (turn.tokens) tokens.delete(turn.id);
  });

export const clear = () =>
  within("readwrite", (store, tokens) => {
    store.clear();
    tokens.clear();
  });

export const putTokens = (turn: string, all: Token[]) => within("readwrite", (_, store) => store.put(all, turn));
export const tokensOf = (turn: string) =>
  within("readonly", (_, store) => store.get(turn)) as Promise<Token[] | undefined>;
export const removeTokens = (turns: string[]) =>
  within("readwrite", (_, store) => turns.forEach((turn) => store.delete(turn)));
