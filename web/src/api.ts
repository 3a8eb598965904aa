// The server's API, and its errors in words that say what to do.

import { signal } from "@preact/signals";
import type { Trouble, Kind } from "./tree";

export interface Model {
  id: string;
  state?: "loaded" | "loading" | "unloading" | "unloaded" | "failed";
  /** Seconds until it is unloaded where nobody asks it; null where it stays. */
  expires_in?: number | null;
  context_length?: number | null;
  size?: number | null;
  reason?: string | null;
  backend?: string;
  capabilities?: string[];
  defaults?: Record<string, number | null> | null;
}

export class Failure extends Error {
  /** `wait`: seconds after which to ask again, as the server says. */
  constructor(
    readonly kind: Kind,
    message: string,
    readonly wait?: number,
  ) {
    super(message);
  }

  get trouble(): Trouble {
    return { kind: this.kind, message: this.message };
  }
}

const KEY = "backstop.key";
const stores = () => [sessionStorage, localStorage];

/** The key that is sent, kept for this tab or for this browser. */
export const key = signal(read());

function read(): string {
  try {
    return (
      stores()
        .map((store) => store.getItem(KEY))
        .find(Boolean) ?? ""
    );
  } catch {
    return "";
  }
}

export function setKey(value: string, keep: boolean) {
  key.value = value.trim();
  try {
    stores().forEach((store) => store.removeItem(KEY));
    if (key.value) stores()[keep ? 1 : 0].setItem(KEY, key.value);
  } catch {
    /* It holds while the page is open. */
  }
}

/** What a refusal is, by its status and code. */
function kind(status: number, code: string | undefined, message: string): Kind {
  if (status === 401) return "key";
  if (code === "context_length_exceeded" || /context length|kv-memory/i.test(message)) return "context";
  if (status === 429) return "busy";
  if (status === 404) return "missing";
  if (code === "model_load_failed" || /fail(ed|s) to load|could not be loaded/i.test(message)) return "load";
  return status === 502 || status === 504 || /about to end/.test(message) ? "gone" : "other";
}

export async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  // The browser would refuse a header with others.
  if (/[^\x20-\x7e]/.test(key.value)) throw new Failure("key", "The API key is wrong: no key has such characters.");
  if (key.value) headers.set("authorization", `Bearer ${key.value}`);
  if (init.body) headers.set("content-type", "application/json");
  let response;
  try {
    response = await fetch(path, { ...init, headers });
  } catch (error) {
    if ((error as Error).name === "AbortError") throw error;
    throw new Failure("gone", "The server does not answer.");
  }
  if (response.ok) return response;
  const text = await response.text().catch(() => "");
  let said: { message?: string; code?: string } = {};
  try {
    const { error } = JSON.parse(text);
    said = typeof error === "string" ? { message: error } : error;
  } catch {
    /* Something between here and the server, which says it in its own way. */
  }
  const message =
    said?.message ?? (`${response.status} ${response.statusText}`.trim() || "The server refused the request.");
  const wait = Number(response.headers.get("retry-after")) || undefined;
  throw new Failure(kind(response.status, said?.code, message), message, wait);
}

export const failure = (error: unknown) =>
  error instanceof Failure ? error : new Failure("other", (error as Error)?.message ?? String(error));

export async function models(): Promise<Model[]> {
  const { data } = await (await ask("v1/models")).json();
  if (!Array.isArray(data)) throw new Failure("other", "The server's list of models is none.");
  return data.filter((model) => typeof model?.id === "string");
}

export const load = (model: string) => ask("v1/models/load", { method: "POST", body: JSON.stringify({ model }) });
export const unload = (model: string) => ask("v1/models/unload", { method: "POST", body: JSON.stringify({ model }) });

/** A chunk of a streamed answer; null for a comment, which says that the server is at work. */
export async function* events(response: Response): AsyncGenerator<any> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if ((error as Error).name === "AbortError") throw error;
      throw new Failure("gone", "The connection to the server broke.");
    }
    if (part.done) return;
    const events = (held + part.value).split(/\r?\n\r?\n/);
    held = events.pop()!;
    for (const event of events) {
      const data = event
        .split(/\r?\n/)
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart());
      if (data.length === 0) yield null;
      else if (data.join("") !== "[DONE]") {
        const chunk = JSON.parse(data.join("\n"));
        if (chunk.error) {
          const message = chunk.error.message ?? String(chunk.error);
          throw new Failure(kind(500, chunk.error.code, message), message);
        }
        yield chunk;
      }
    }
  }
}
