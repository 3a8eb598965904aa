// Errors in words, and what to do about them.

import type { Signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { setKey } from "./api";
import { IconClose } from "./icons";
import * as state from "./state";
import { exportAll } from "./transfer";
import type { Kind, Trouble } from "./tree";

const ADVICE: Record<Kind, string> = {
  gone: "It may have been stopped, or be about to start. Start it again with “backstop serve”: this page finds it by itself.",
  key: "",
  context:
    "Start a new conversation, make an earlier message shorter (that branches off), leave out attached files, or start the server with a larger --ctx.",
  busy: "",
  missing: "It was unloaded or removed since.",
  load: "Choose another model at the top, or try again once there is more free memory; the server's output says more.",
  storage: "They go on while the page is open: export what you want to keep.",
  other: "",
};

const TITLES: Record<Kind, string> = {
  gone: "The server is gone",
  key: "The server asks for its key",
  context: "The conversation is longer than the model's context",
  busy: "The server is busy",
  missing: "This model is not there",
  load: "The model could not be loaded",
  storage: "Conversations are not kept",
  other: "That did not work",
};

/** `beside`: below what says of the whole page what to do. */
export function Words({ trouble, beside = false }: { trouble: Trouble; beside?: boolean }) {
  const advice = beside && trouble.kind === "gone" ? "" : ADVICE[trouble.kind];
  return (
    <div class="words">
      <strong>{TITLES[trouble.kind]}</strong>
      <p>{trouble.message}</p>
      {advice && <p>{advice}</p>}
      {trouble.kind === "busy" && <When key={trouble.until} until={trouble.until} />}
    </div>
  );
}

/** When it is worth trying again. */
function When({ until }: { until?: number }) {
  const left = until === undefined ? undefined : Math.ceil((until - Date.now()) / 1000);
  const [, setTick] = useState(0);
  const waits = left !== undefined && left > 0;
  useEffect(() => {
    if (!waits) return;
    const timer = setInterval(() => setTick((tick) => tick + 1), 500);
    return () => clearInterval(timer);
  }, [waits]);
  if (left === undefined) return <p>Try again in a moment.</p>;
  const time = left < 100 ? `${left} s` : `${Math.ceil(left / 60)} min`;
  return <p>{waits ? `It is worth trying again in ${time}.` : "It is worth trying again now."}</p>;
}

/** What concerns the whole page. */
export function Banner() {
  const trouble = state.trouble.value,
    unkept = state.unkept.value;
  return (
    <div role="alert" class="banner">
      {trouble && (
        <div class="alert">
          {trouble.kind === "key" ? <KeyForm trouble={trouble} /> : <Words trouble={trouble} />}
          {(trouble.kind === "gone" || trouble.kind === "busy") && (
            <button type="button" class="plain" onClick={() => void state.refresh()}>
              Try now
            </button>
          )}
          {trouble.kind !== "gone" && trouble.kind !== "key" && <Close of={state.trouble} />}
        </div>
      )}
      {unkept && (
        <div class="alert">
          <Words trouble={unkept} />
          <button type="button" class="plain" disabled={state.conversations.value.length === 0} onClick={exportAll}>
            Export all
          </button>
          <Close of={state.unkept} />
        </div>
      )}
    </div>
  );
}

function Close({ of }: { of: Signal<Trouble | null> }) {
  return (
    <button type="button" class="quiet" aria-label="Close" onClick={() => (of.value = null)}>
      <IconClose />
    </button>
  );
}

function KeyForm({ trouble }: { trouble: Trouble }) {
  const [value, setValue] = useState(""),
    [keep, setKeep] = useState(false);
  return (
    <form
      class="words"
      onSubmit={(event) => {
        event.preventDefault();
        setKey(value, keep);
        void state.refresh();
      }}
    >
      <strong>{TITLES.key}</strong>
      <p>
        {/wrong/.test(trouble.message) ? "The key is wrong." : "It was started with --api-key."} Who started the server
        knows it.
      </p>
      <div class="line">
        <label class="hidden" for="key">
          API key
        </label>
        <input
          id="key"
          type="password"
          autocomplete="off"
          placeholder="API key"
          value={value}
          onInput={(event) => setValue(event.currentTarget.value)}
        />
        <button type="submit" class="main" disabled={!value.trim()}>
          Use it
        </button>
      </div>
      <label class="check">
        <input type="checkbox" checked={keep} onChange={(event) => setKeep(event.currentTarget.checked)} /> Keep it in
        this browser
      </label>
    </form>
  );
}
