// Which model answers, and whether it is loaded.

import { useEffect, useRef, useState } from "preact/hooks";
import type { Model } from "./api";
import { IconCheck, IconDown } from "./icons";
import { useOutside } from "./menu";
import * as state from "./state";

const STATES = {
  loaded: "loaded",
  loading: "loading…",
  unloading: "unloading…",
  unloaded: "not loaded",
  failed: "failed to load",
};

function size(bytes: number): string {
  const gib = bytes / 1024 ** 3;
  return gib >= 1 ? `${gib.toFixed(1)} GiB` : `${Math.max(1, Math.round(bytes / 1024 ** 2))} MiB`;
}

export function facts(model: Model): string {
  const parts = [];
  if (model.context_length) parts.push(`${model.context_length.toLocaleString()} tokens of context`);
  if (model.size) parts.push(size(model.size));
  if (model.backend) parts.push(model.backend);
  if (model.capabilities?.includes("thinking")) parts.push("thinks");
  return parts.join(" · ");
}

export function Models() {
  const [open, setOpen] = useState(false);
  const button = useRef<HTMLButtonElement>(null);
  const place = useOutside(open, (back) => {
    setOpen(false);
    if (back) button.current?.focus();
  });
  useEffect(() => {
    if (!open) return;
    void state.refresh();
    place.current?.querySelector<HTMLElement>("[aria-checked=true]")?.focus();
  }, [open]);
  const model = state.model.value;
  if (!model) {
    const none = state.trouble.value || state.models.value.length > 0;
    return <span class="model faint">{none ? "no model" : "…"}</span>;
  }
  const move = (event: KeyboardEvent) => {
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (!step) return;
    event.preventDefault();
    const all = [...place.current!.querySelectorAll<HTMLElement>("[role=menuitemradio]")];
    all[(all.indexOf(document.activeElement as HTMLElement) + step + all.length) % all.length]?.focus();
  };
  return (
    <div class="models" ref={place}>
      <button
        ref={button}
        type="button"
        class="model"
        aria-haspopup="true"
        aria-expanded={open}
        title={facts(model)}
        onClick={() => setOpen(!open)}
      >
        <Dot model={model} />
        <span class="name">{model.id}</span>
        <IconDown />
      </button>
      {open && (
        <div class="popup" role="menu" aria-label="Models" onKeyDown={move}>
          {state.answering.value.map((one) => (
            <div key={one.id} class="row" role="none">
              <button
                type="button"
                role="menuitemradio"
                aria-checked={one.id === model.id}
                class="pick"
                onClick={() => {
                  state.choose(one.id);
                  setOpen(false);
                  button.current?.focus();
                }}
              >
                <span class="tick">{one.id === model.id && <IconCheck />}</span>
                <span class="what">
                  <span class="name">
                    <Dot model={one} beside />
                    {one.id}
                  </span>
                  <span class="faint">{[one.state && STATES[one.state], facts(one)].filter(Boolean).join(" · ")}</span>
                  <Aliases of={one} />
                  {one.state === "failed" && one.reason && <span class="alarm">{one.reason}</span>}
                </span>
              </button>
              {state.several.value && one.state && !state.isChanging(one) && (
                <button
                  type="button"
                  role="menuitem"
                  class="plain"
                  aria-label={`${one.state === "loaded" ? "Unload" : "Load"} ${one.id}`}
                  onClick={() => void state.loading(one, one.state !== "loaded")}
                >
                  {one.state === "loaded" ? "Unload" : one.state === "failed" ? "Try again" : "Load"}
                </button>
              )}
            </div>
          ))}
        </div>
      )}
    </div>
  );
}

function Aliases({ of }: { of: Model }) {
  const names = state.aliases(of).map(({ id }) => id);
  return names.length > 0 ? <span class="faint">also {names.join(", ")}</span> : null;
}

/** Its state as a colour; in words, too, where they do not stand `beside`. */
function Dot({ model, beside = false }: { model: Model; beside?: boolean }) {
  const what = model.state ?? "loaded";
  return (
    <span class={`dot is-${what}`} title={STATES[what]}>
      {!beside && <span class="hidden">{STATES[what]}</span>}
    </span>
  );
}
