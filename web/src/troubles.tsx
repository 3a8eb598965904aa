// Errors in words, and what to do about them.

import { useState } from "preact/hooks";
import { setKey } from "./api";
import { IconClose } from "./icons";
import * as state from "./state";
import type { Kind, Trouble } from "./tree";

const ADVICE: Record<Kind, string> = {
  gone: "It may have been stopped, or be about to start. Start it again with “backstop serve”: this page finds it by itself.",
  key: "",
  context:
    "Start a new conversation, make an earlier message shorter (that branches off), leave out attached files, or start the server with a larger --ctx.",
  busy: "As many requests wait as the server takes. Try again in a moment.",
  missing: "Choose a model from the list at the top.",
  load: "Choose another model at the top, or try again once there is more free memory; the server's output says more.",
  other: "",
};

const TITLES: Record<Kind, string> = {
  gone: "The server is gone",
  key: "The server asks for its key",
  context: "The conversation is longer than the model's context",
  busy: "The server is busy",
  missing: "This model is not there",
  load: "The model could not be loaded",
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
    </div>
  );
}

/** What concerns the whole page. */
export function Banner() {
  const trouble = state.trouble.value;
  return (
    <div role="alert" class="banner">
      {trouble && (
        <div class="alert">
          {trouble.kind === "key" ? <KeyForm trouble={trouble} /> : <Words trouble={trouble} />}
          {trouble.kind === "gone" ? (
            <button type="button" class="plain" onClick={() => void state.refresh()}>
              Try now
            </button>
          ) : (
            trouble.kind !== "key" && (
              <button type="button" class="quiet" aria-label="Close" onClick={() => (state.trouble.value = null)}>
                <IconClose />
              </button>
            )
          )}
        </div>
      )}
    </div>
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
