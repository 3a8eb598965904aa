// The server's API, and its errors in words that say what to do.

import { signal } from "@preact/signals";
import type { Trouble, Kind } from "./tree";

export interface Model {
  id: string;
  /** The model that this is another name of; its own name, where it is none. */
  root?: string;
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
  /** `until`: when to ask again, as the server says. */
  constructor(
    readonly kind: Kind,
    message: string,
    readonly until?: number,
  ) {
    super(message);
  }

  get trouble(): Trouble {
    return { kind: this.kind, message: this.message, ...(this.until && { until: this.until }) };
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

/** What the server says of a refusal. */
interface Said {
  message?: string;
  code?: string;
}

/** What a refusal is; a 503 without a word is of something between here and the server. */
function kind(status: number, { code, message = "" }: Said, until?: number): Kind {
  if (status === 401) return "key";
  if (status === 502 || status === 504 || /about to end|^the server ends/.test(message)) return "gone";
  if (status === 429 || (status === 503 && (until || !message))) return "busy";
  if (code === "context_length_exceeded" || /context length|kv-memory/i.test(message)) return "context";
  if (status === 404) return "missing";
  return code === "model_load_failed" || /fail(ed|s) to load|could not be loaded/i.test(message) ? "load" : "other";
}

/** `Retry-After`: seconds or a date, as milliseconds since 1970. */
function retryAfter(said: string | null): number | undefined {
  const time = said && (/^\s*\d+\s*$/.test(said) ? Date.now() + Number(said) * 1000 : Date.parse(said));
  return time || undefined;
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
  let said: Said | undefined;
  try {
    const { error } = JSON.parse(text);
    said = typeof error === "string" ? { message: error } : error;
  } catch {
    /* Something between here and the server, which says it in its own way. */
  }
  const message =
    said?.message ?? (`${response.status} ${response.statusText}`.trim() || "The server refused the request.");
  const until = retryAfter(response.headers.get("retry-after"));
  throw new Failure(kind(response.status, said ?? {}, until), message, until);
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
          throw new Failure(kind(500, { ...chunk.error, message }), message);
        }
        yield chunk;
      }
    }
  }
}
