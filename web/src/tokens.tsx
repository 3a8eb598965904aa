// An answer token by token: how likely each was, and what else could have stood there.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Bar } from "./bar";
import { instead, isWhole } from "./chat";
import { useOutside } from "./menu";
import { percent } from "./numbers";
import * as state from "./state";
import * as store from "./store";
import type { Token } from "./store";
import type { Turn } from "./tree";

const shown = (text: string) => text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";

/** How far a token is from certain, in five steps. */
const doubt = (logprob: number) => Math.min(4, Math.floor((1 - Math.exp(logprob)) * 5));

export function Tokens({ turn }: { turn: Turn }) {
  const [tokens, setTokens] = useState<Token[] | undefined>();
  const [at, setAt] = useState(-1);
  const place = useOutside(at >= 0, () => setAt(-1));
  useEffect(() => {
    let here = true;
    store.tokensOf(turn.id).then(
      (found) => here && setTokens(found ?? []),
      () => here && setTokens([]),
    );
    return () => void (here = false);
  }, [turn.id]);
  if (!tokens) return <p class="faint">…</p>;
  if (tokens.length === 0) return <p class="faint">The tokens of this answer are not kept.</p>;
  const move = (event: KeyboardEvent) => {
    const from = (event.target as HTMLElement).dataset.at;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (from === undefined || !step) return;
    event.preventDefault();
    place.current!.querySelector<HTMLElement>(`[data-at="${Number(from) + step}"]`)?.focus();
  };
  const focus = at < 0 ? 0 : at;
  return (
    <div
      class="tokens"
      ref={place}
      onKeyDown={move}
      // What the keyboard has opened the pointer does not close.
      onMouseLeave={(event) => event.currentTarget.querySelector(":focus-visible") || setAt(-1)}
      onFocusOut={(event) => event.currentTarget.contains(event.relatedTarget as Node) || setAt(-1)}
    >
      <p class="note">
        The darker, the less likely a token was. Point at one for its alternatives; choose one to answer on from there.
      </p>
      <div class="stream" role="group" aria-label="Tokens">
        {tokens.map((token, i) => (
          <span key={i} class="place">
            <span
              role="button"
              data-at={i}
              tabIndex={i === focus ? 0 : -1}
              class={`token doubt-${doubt(token[1])} ${token[3] ? "thought" : ""}`}
              aria-label={`${token[0].trim() || shown(token[0])}, ${percent(Math.exp(token[1]))}`}
              aria-expanded={i === at}
              onMouseEnter={() => setAt(i)}
              onFocus={() => setAt(i)}
            >
              {token[0]}
            </span>
            {i === at && <Others turn={turn} tokens={tokens} at={i} />}
          </span>
        ))}
      </div>
    </div>
  );
}

function Others({ turn, tokens, at }: { turn: Turn; tokens: Token[]; at: number }) {
  const [text, logprob, others, thought] = tokens[at];
  const card = useRef<HTMLSpanElement>(null);
  const [side, setSide] = useState("");
  useLayoutEffect(() => {
    const { right, bottom, height } = card.current!.getBoundingClientRect();
    const thread = card.current!.closest(".thread")!.getBoundingClientRect();
    const above = card.current!.parentElement!.getBoundingClientRect().top - thread.top;
    const upward = bottom > thread.bottom && above >= height;
    setSide(`${right > innerWidth - 8 ? "to-left" : ""} ${upward ? "upward" : ""}`);
  }, [at]);
  const listed = others.some(([other]) => other === text) ? others : [[text, logprob] as [string, number], ...others];
  const whole = isWhole(tokens.slice(0, at));
  const busy = state.runs.value.has(state.current.value);
  return (
    <span class={`others ${side}`} ref={card} role="group" aria-label="Alternatives">
      {listed.map((other) => {
        const same = other[0] === text,
          part = Math.exp(other[1]);
        // A part of a character is no text to go on from.
        const off = same || busy || !whole || Boolean(thought) || other[0].includes("\ufffd") || !other[0];
        return (
          <button
            type="button"
            class={same ? "same" : undefined}
            disabled={off}
            aria-current={same || undefined}
            title={same ? "The token that was taken" : off ? undefined : "Answer on from here"}
            onClick={() => void instead(turn, tokens, at, other)}
          >
            <code>{shown(other[0])}</code>
            <span class="likely">
              <Bar part={part} />
              {percent(part)}
            </span>
          </button>
        );
      })}
    </span>
  );
}
