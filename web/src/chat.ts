// Asking a model: the request, its stream, and what is kept of the answer.

import { signal } from "@preact/signals";
import * as api from "./api";
import * as drafts from "./drafts";
import * as queue from "./queue";
import { FIELDS, number, object, settings } from "./settings";
import * as state from "./state";
import * as store from "./store";
import type { Token } from "./store";
import * as tree from "./tree";
import type { Attachment, Conversation, Stats, Trouble, Turn } from "./tree";

const ALTERNATIVES = 5;

/** A turn's text as the model reads it: its files before it, each in a fence that none of its lines ends. */
export function written(turn: Turn): string {
  const files = (turn.files ?? []).map(({ name, text }) => {
    const longest = Math.max(2, ...(text.match(/^`{3,}/gm) ?? []).map((fence) => fence.length));
    const fence = "`".repeat(longest + 1);
    return `${name}:\n${fence}\n${text.replace(/\n$/, "")}\n${fence}\n\n`;
  });
  return files.join("") + turn.text;
}

function message(turn: Turn) {
  const thoughts = turn.thoughts ? { reasoning_content: turn.thoughts } : {};
  return { role: turn.role, content: written(turn), ...thoughts };
}

/** Turns that alternate, as templates want them: a question without an answer is the beginning of the next. */
function spoken(turns: Turn[]): Turn[] {
  const out: Turn[] = [];
  for (const turn of turns) {
    const last = out.at(-1);
    if (turn.role === "assistant" && !turn.text) continue;
    if (last?.role === "user" && turn.role === "user") {
      out[out.length - 1] = { ...turn, files: [], text: `${written(last)}\n\n${written(turn)}` };
    } else out.push(turn);
  }
  return out;
}

function body(conversation: Conversation, turns: Turn[], begun: Turn | undefined, model: string) {
  const system = conversation.system.trim();
  const messages: object[] = system ? [{ role: "system", content: system }] : [];
  messages.push(...spoken(turns).map(message));
  if (begun) messages.push(message(begun));
  const { sampling, effort, alternatives, fields } = settings.value;
  const numbers = FIELDS.map((field) => [field.name, number(field, sampling[field.name])]).filter(
    ([, value]) => value !== undefined,
  );
  return {
    // What the page itself says is not replaced; it shows one answer.
    ...object(fields),
    n: undefined,
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    ...Object.fromEntries(numbers),
    ...(effort && { reasoning_effort: effort }),
    ...(alternatives && { logprobs: true, top_logprobs: ALTERNATIVES }),
    ...(begun && { continue_final_message: true, add_generation_prompt: false }),
  };
}

/** Sends a question: a new turn below `parent`. */
export async function send(text: string, files: Attachment[], parent?: string | null, to = state.current.value) {
  let conversation = state.find(to) ?? state.begun();
  if (state.runs.value.has(conversation.id)) return;
  const from = parent === undefined ? (tree.path(conversation).at(-1)?.id ?? null) : parent;
  const turn: Turn = {
    id: tree.id(),
    parent: from,
    role: "user",
    text,
    time: Date.now(),
    ...(files.length && { files }),
  };
  conversation = tree.grown(conversation, turn);
  if (!conversation.title) conversation.title = tree.titled(text || files[0]?.name || "") || "Untitled";
  state.update(conversation);
  if (to !== conversation.id) state.open(conversation.id);
  await answer(conversation.id, turn.id);
}

/** Has the model answer `parent`; from `begun` on, where the answer has a beginning. */
export async function answer(id: string, parent: string, begun?: { text: string; thoughts?: string; tokens: Token[] }) {
  const conversation = state.find(id),
    model = state.model.value;
  if (!conversation || state.runs.value.has(id)) return;
  const beginning = begun?.text ?? "";
  const turn: Turn = {
    id: tree.id(),
    parent,
    role: "assistant",
    text: beginning,
    time: Date.now(),
    model: model?.id,
    end: "cut",
    ...(begun?.thoughts && { thoughts: begun.thoughts }),
  };
  const asked = body(conversation, tree.before(conversation, parent), begun && turn, model?.id ?? "");
  state.update(tree.grown(conversation, turn));
  const waits = model && !state.isLoaded(model) ? `Loading ${model.id}…` : "Reading the prompt…";
  const live = signal({ text: beginning, thoughts: begun?.thoughts ?? "", doing: waits, stats: {} as Stats });
  const run: state.Run = { turn: turn.id, stop: new AbortController(), live, tokens: [...(begun?.tokens ?? [])] };
  state.runs.value = new Map(state.runs.value).set(id, run);
  const release = state.writes(id, turn.id);
  state.said.value = waits;
  if (model && !state.isLoaded(model)) setTimeout(state.refresh, 300);

  let end: Partial<Turn> = { end: undefined };
  const saving = setInterval(() => void save(id, run, {}), 3000);
  try {
    // Tokens of the rest alone would be taken for all of them.
    const collects = !begun?.text || begun.tokens.length > 0;
    const finish = await streamed(asked, run, begun === undefined, collects);
    if (!finish) throw new api.Failure("gone", "The connection to the server broke before the answer was whole.");
    if (finish === "length") end = { end: "length" };
  } catch (error) {
    if ((error as Error).name === "AbortError") end = { end: "stopped" };
    else {
      const failed = api.failure(error);
      const trouble = failed.kind === "other" ? await blamed(failed.trouble, model?.id) : failed.trouble;
      end = { end: "trouble", trouble };
      if (failed.kind === "key" || failed.kind === "gone") state.trouble.value = failed.trouble;
    }
  }
  clearInterval(saving);
  // Other tabs read it where it is said to be whole.
  const saved = save(id, run, end).finally(release);
  const left = new Map(state.runs.value);
  left.delete(id);
  state.runs.value = left;
  void saved.then(() => state.catchUp(id));
  const count = live.value.stats.tokens;
  const proper = !end.end || end.end === "length";
  let back = "";
  if (state.isGone(id)) queue.clear(id);
  else if (!proper && queue.waiting(id).length) {
    drafts.back(id);
    // That of another conversation is not this one's box.
    if (id === state.current.value) back = " What was to be sent is in the box again.";
  }
  const next = proper ? queue.next(id) : undefined;
  if (next) void send(next.text, next.files, turn.id, id);
  state.said.value = end.trouble
    ? `No answer: ${end.trouble.message}${back}`
    : `${end.end === "stopped" ? "Stopped" : "Answered"}${count ? `, ${count} tokens` : ""}.${back} ${live.value.text.slice(0, 2000)}`;
  void state.refresh();
}

/** A failure is the model's own where the server lists it as one that does not load. */
async function blamed(trouble: Trouble, model: string | undefined): Promise<Trouble> {
  await state.refresh();
  const failed = state.models.value.find(({ id }) => id === model)?.state === "failed";
  return failed ? { ...trouble, kind: "load" } : trouble;
}

/** Puts what has come so far into the conversation. */
async function save(id: string, run: state.Run, end: Partial<Turn>) {
  const conversation = state.find(id);
  if (!conversation) return;
  const { text, thoughts, stats } = run.live.value;
  const tokens = run.tokens.length > 0;
  const change = {
    text,
    ...(thoughts && { thoughts }),
    ...(Object.keys(stats).length && { stats }),
    ...(tokens && { tokens }),
    ...end,
  };
  const stored = state.update(tree.changed(conversation, run.turn, change));
  // Where there is no room for them, the answer says so in their place.
  if (tokens) store.putTokens(run.turn, run.tokens).catch(() => undefined);
  await stored;
}

/** Reads a stream into `run`; how it finished. What comes is shown at a pace that the page keeps. */
async function streamed(asked: object, run: state.Run, trimmed: boolean, collects: boolean): Promise<string> {
  const start = performance.now();
  const response = await api.ask("v1/chat/completions", {
    method: "POST",
    body: JSON.stringify(asked),
    signal: run.stop.signal,
  });
  let { text, thoughts, doing, stats } = run.live.value;
  let first = 0,
    count = 0,
    finish = "",
    pace = 16,
    frame: ReturnType<typeof setTimeout> | 0 = 0;
  const show = () => {
    clearTimeout(frame);
    frame = 0;
    run.live.value = { text, thoughts, doing, stats };
    // Half of the time stays free, however long the text is.
    const began = performance.now();
    requestAnimationFrame(() => (pace = Math.min(250, Math.max(16, performance.now() - began))));
  };
  try {
    for await (const chunk of api.events(response)) {
      if (!chunk) continue;
      if (chunk.usage || chunk.timings) stats = { ...stats, ...measured(chunk) };
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      finish = choice.finish_reason ?? finish;
      const thought = choice.delta?.reasoning_content ?? "",
        said = choice.delta?.content ?? "";
      for (const one of (collects && choice.logprobs?.content) || []) {
        const others = (one.top_logprobs ?? []).map((other: any) => [other.token, rounded(other.logprob)]);
        run.tokens.push(
          thought && !said ? [one.token, rounded(one.logprob), others, 1] : [one.token, rounded(one.logprob), others],
        );
      }
      if (!thought && !said) continue;
      const now = performance.now();
      first ||= now;
      count += Math.max(1, choice.logprobs?.content?.length ?? 1);
      // Until the server tells: what came after the first token, by the clock here.
      if (count > 1 && now > first) stats = { ...stats, tokens: count, rate: ((count - 1) * 1000) / (now - first) };
      stats.first ??= (first - start) / 1000;
      thoughts += thought;
      text += text || !trimmed ? said : said.trimStart();
      doing = "";
      frame ||= setTimeout(show, pace);
    }
  } finally {
    show();
  }
  return finish;
}

const rounded = (value: number) => Math.round(Math.max(value, -100) * 1e4) / 1e4;

/** What the server says of its work; rates of a token or none say nothing. */
function measured({ usage, timings }: any): Stats {
  const stats: Stats = {};
  const put = (name: keyof Stats, value: unknown) => {
    if (typeof value === "number" && Number.isFinite(value)) stats[name] = value;
  };
  put("prompt", usage?.prompt_tokens);
  put("tokens", usage?.completion_tokens);
  put("cached", usage?.prompt_tokens_details?.cached_tokens ?? timings?.cached_n ?? timings?.cache_n);
  if (timings?.prompt_n > 0) put("promptRate", timings.prompt_per_second);
  if (timings?.predicted_n > 1) put("rate", timings.predicted_per_second);
  return stats;
}

export const stop = () => state.runs.value.get(state.current.value)?.stop.abort();

/** Another answer beside this one. */
export const again = (turn: Turn) => turn.parent && answer(state.current.value, turn.parent);

/** The rest of an answer that was cut, as a sibling that begins with it. */
export async function more(turn: Turn) {
  const tokens = turn.tokens ? await store.tokensOf(turn.id).catch(() => undefined) : undefined;
  if (turn.parent)
    await answer(state.current.value, turn.parent, { text: turn.text, thoughts: turn.thoughts, tokens: tokens ?? [] });
}

/** An answer in a person's words, beside it: what is asked next goes on from that one. */
export function reword({ parent, role, thoughts, model }: Turn, text: string) {
  const conversation = state.conversation.value;
  if (!conversation) return;
  const turn: Turn = { id: tree.id(), parent, role, text, time: Date.now(), model, thoughts, end: "edited" };
  state.update(tree.grown(conversation, turn));
}

/** Whether tokens are a text to go on from: a part of a character is none. */
export const isWhole = (tokens: Token[]) => !tokens.some(([text, , , thought]) => !thought && text.includes("\ufffd"));

/** A sibling of an answer that has another token at one place. */
export async function instead(turn: Turn, tokens: Token[], at: number, other: [string, number]) {
  const kept = tokens.slice(0, at);
  const [, , others] = tokens[at];
  const all: Token[] = [...kept, [other[0], other[1], others]];
  const text = all
    .filter(([, , , thought]) => !thought)
    .map(([text]) => text)
    .join("")
    .trimStart();
  if (turn.parent) await answer(state.current.value, turn.parent, { text, thoughts: turn.thoughts, tokens: all });
}
