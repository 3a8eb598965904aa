// Messages that are sent when the answer has ended that is being written.

import { signal } from "@preact/signals";
import type { Attachment } from "./tree";

export interface Message {
  text: string;
  files: Attachment[];
}

/** Of each conversation, the next one first. */
export const queue = signal<ReadonlyMap<string, Message[]>>(new Map());

export const waiting = (id: string) => queue.value.get(id) ?? [];

function put(id: string, messages: Message[]) {
  const all = new Map(queue.value);
  if (messages.length) all.set(id, messages);
  else all.delete(id);
  queue.value = all;
}

export const wait = (id: string, message: Message) => put(id, [...waiting(id), message]);

/** Takes one of them out. */
export const drop = (id: string, message: Message) => put(id, waiting(id).filter((one) => one !== message));

/** Takes the next one out. */
export function next(id: string): Message | undefined {
  const [first, ...rest] = waiting(id);
  if (first) put(id, rest);
  return first;
}

/** Takes out all of them. */
export const clear = (id: string) => put(id, []);

/** Several messages as one. */
export function joined(messages: Message[]): Message {
  const texts = messages.map(({ text }) => text).filter(Boolean);
  return { text: texts.join("\n\n"), files: messages.flatMap(({ files }) => files) };
}
