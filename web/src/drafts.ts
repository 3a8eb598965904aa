// What is written and not sent, of each conversation: the tab keeps it for after a reload, with what waits to be sent.

import { batch, signal } from "@preact/signals";
import * as queue from "./queue";
import type { Message } from "./queue";
import * as state from "./state";

const KEPT = "backstop.unsent";
const drafts = signal<ReadonlyMap<string, Message>>(kept());

function kept(): Map<string, Message> {
  try {
    return new Map(JSON.parse(sessionStorage.getItem(KEPT) ?? "[]"));
  } catch {
    return new Map();
  }
}

export const draft = (id: string): Message => drafts.value.get(id) ?? { text: "", files: [] };

export function write(id: string, change: Partial<Message>) {
  const { text, files } = { ...draft(id), ...change };
  const all = new Map(drafts.value);
  if (text || files.length) all.set(id, { text, files });
  else all.delete(id);
  drafts.value = all;
}

/** Puts messages that were to be sent, by default all of them, before what is written. */
export function back(id: string, messages = queue.waiting(id)) {
  // At no time are they in neither place, for a page that is being left.
  batch(() => {
    write(id, queue.joined([...messages, draft(id)]));
    messages.forEach((message) => queue.drop(id, message));
  });
}

function keep() {
  // Before conversations are read it is not known which are gone.
  if (!state.ready.value) return;
  const ids = new Set([...drafts.value.keys(), ...queue.queue.value.keys()]);
  const all = [...ids]
    .filter((id) => !id || !state.isGone(id))
    .map((id): [string, Message] => [id, queue.joined([...queue.waiting(id), draft(id)])]);
  const store = (all: [string, Message][]) => sessionStorage.setItem(KEPT, JSON.stringify(all));
  try {
    store(all);
  } catch {
    try {
      // There may be room for what is written, if not for files.
      store(all.map(([id, { text }]) => [id, { text, files: [] }]));
    } catch {
      /* It is there while the page is open. */
    }
  }
}

queue.queue.subscribe(keep);
addEventListener("pagehide", keep);
// A phone may end what is not seen without a word.
document.addEventListener("visibilitychange", keep);
