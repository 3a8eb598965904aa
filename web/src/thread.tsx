// The conversation that is open.

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { Bar } from "./bar";
import { useUndrawn } from "./drawn";
import { Guard } from "./markdown";
import { facts } from "./models";
import * as state from "./state";
import { set, settings } from "./settings";
import { Said } from "./turn";
import * as tree from "./tree";
import type { Conversation } from "./tree";

/** So near the end, in pixels, it follows what is written. */
const NEAR = 60;

export function Thread() {
  const conversation = state.conversation.value;
  const place = useRef<HTMLDivElement>(null),
    inner = useRef<HTMLDivElement>(null);
  const follows = useRef(true),
    top = useRef(0);
  const near = () => {
    const { scrollHeight, scrollTop, clientHeight } = place.current!;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  };
  const setAway = (away: boolean) => (state.toEnd.value = away ? end : null);
  const end = () => {
    const thread = place.current!;
    follows.current = true;
    thread.scrollTop = thread.scrollHeight;
    top.current = thread.scrollTop;
  };
  useLayoutEffect(end, [state.current.value]);
  const run = state.runs.value.get(state.current.value);
  useLayoutEffect(() => {
    if (run) end();
  }, [run?.turn]);
  useEffect(() => {
    const watched = new ResizeObserver(() => {
      if (follows.current) end();
      else setAway(!near());
    });
    watched.observe(inner.current!);
    watched.observe(place.current!);
    return () => watched.disconnect();
  }, []);
  // Who goes up leaves the end: a text that has grown since it was scrolled to does not.
  const scrolled = () => {
    const { scrollTop } = place.current!;
    if (near()) follows.current = true;
    else if (scrollTop < top.current) follows.current = false;
    top.current = scrollTop;
    setAway(!follows.current);
  };
  // What is unfolded stays where it is, unless an answer goes on below it.
  const clicked = (event: MouseEvent) => {
    if (!run && (event.target as Element).closest("summary")) follows.current = false;
  };
  const turns = conversation ? tree.path(conversation) : [];
  const undrawn = useUndrawn(conversation?.id ?? "", turns.length, place);
  return (
    <div
      ref={place}
      class="thread"
      role="log"
      aria-live="off"
      aria-label="Conversation"
      aria-busy={run !== undefined || undrawn > 0}
      tabIndex={0}
      onScroll={scrolled}
      onClickCapture={clicked}
    >
      <div ref={inner} class="column">
        {conversation ? (
          <>
            <h1 class="hidden">{conversation.title}</h1>
            <System conversation={conversation} />
            {turns.slice(undrawn).map((turn) => (
              <Guard key={turn.id} text={turn.text}>
                <Said conversation={conversation} turn={turn} last={turn === turns.at(-1)} />
              </Guard>
            ))}
          </>
        ) : (
          state.ready.value && <Empty />
        )}
      </div>
    </div>
  );
}

function Empty() {
  const model = state.model.value,
    { system } = settings.value;
  return (
    <div class="welcome">
      <h1>{model ? `Talk with ${model.id}` : "backstop"}</h1>
      <p class="faint">{model ? facts(model) : "No model is known yet."}</p>
      <SystemField label="System prompt of new conversations" value={system} onChange={(system) => set({ system })} />
    </div>
  );
}

/** The system prompt of a conversation; what is changed holds from the next answer on. */
function System({ conversation }: { conversation: Conversation }) {
  return (
    <SystemField
      key={conversation.id}
      label="System prompt"
      value={conversation.system}
      onChange={(system) => state.update(tree.prompted(conversation, system))}
    />
  );
}

function SystemField({ label, value, onChange }: { label: string; value: string; onChange: (value: string) => void }) {
  return (
    <details class="system">
      <summary>
        {label}
        {value.trim() ? `: ${value.trim().split("\n")[0].slice(0, 120)}` : ": none"}
      </summary>
      <textarea
        aria-label={label}
        rows={4}
        value={value}
        placeholder="What the model is told before the conversation: who it is, how it answers."
        onChange={(event) => onChange(event.currentTarget.value)}
      />
    </details>
  );
}

/** How much of the model's context the conversation takes, as of its last answer. */
export function Context() {
  const conversation = state.conversation.value,
    whole = state.model.value?.context_length;
  if (!conversation || !whole) return null;
  const live = state.runs.value.get(conversation.id)?.live.value.stats;
  const stats = tree.path(conversation).findLast(({ stats }) => stats?.prompt !== undefined)?.stats;
  const used =
    live?.prompt !== undefined ? live.prompt + (live.tokens ?? 0) : stats && stats.prompt! + (stats.tokens ?? 0);
  if (used === undefined) return null;
  const part = Math.min(1, used / whole);
  const text = `${used.toLocaleString()} of ${whole.toLocaleString()} tokens of context`;
  return (
    <span class={`context ${part > 0.85 ? "is-full" : ""}`} title={text}>
      <span class="hidden">{text}</span>
      <Bar part={part} />
      <span class="count" aria-hidden="true">
        <span class="wide-only">
          {used.toLocaleString()} / {whole.toLocaleString()}
        </span>
        <span class="phone-only">{Math.ceil(part * 100)} %</span>
      </span>
    </span>
  );
}
