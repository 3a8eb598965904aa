// The page as a whole: the list of conversations, the one that is open, and the keys that work everywhere.

import { render } from "preact";
import { stop } from "./chat";
import { Composer } from "./composer";
import { About, Keys } from "./about";
import { IconMenu, IconPlus, IconSettings } from "./icons";
import { Models } from "./models";
import { SettingsDialog } from "./options";
import { set, settings } from "./settings";
import { Sidebar } from "./sidebar";
import * as state from "./state";
import { Context, Thread } from "./thread";
import { Banner } from "./troubles";

const wide = () => matchMedia("(min-width: 60rem)").matches;

function toggle() {
  if (wide()) set({ sidebar: !settings.value.sidebar });
  else state.drawer.value = !state.drawer.value;
}

function keys(event: KeyboardEvent) {
  if (event.isComposing || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  const command = event.ctrlKey || event.metaKey,
    key = event.key.toLowerCase();
  const does = (work: () => void) => {
    event.preventDefault();
    work();
  };
  if (command && event.shiftKey && key === "o") does(state.fresh);
  else if (command && key === "k") {
    does(() => {
      if (wide()) set({ sidebar: true });
      else state.drawer.value = true;
      requestAnimationFrame(() => document.getElementById("search")?.focus());
    });
  } else if (command && key === "b") does(toggle);
  else if (command && key === ",") does(() => (state.dialog.value = "settings"));
  else if (command && key === "/") does(() => (state.dialog.value = "keys"));
  else if (key === "escape") {
    if (state.drawer.value) state.drawer.value = false;
    else if (state.runs.value.has(state.current.value)) does(stop);
    else document.getElementById("question")?.focus();
  }
}

function Page() {
  const open = settings.value.sidebar,
    drawer = state.drawer.value;
  return (
    <div class={`frame ${open ? "with-sidebar" : ""} ${drawer ? "with-drawer" : ""}`}>
      <a
        class="skip"
        href="#question"
        onClick={(event) => {
          event.preventDefault();
          document.getElementById("question")?.focus();
        }}
      >
        Skip to the message
      </a>
      <Sidebar />
      <div class="veil" onClick={() => (state.drawer.value = false)} />
      <div class="stage">
        <header>
          <button
            type="button"
            class="quiet"
            aria-label="Conversations"
            title="Conversations (Ctrl B)"
            aria-expanded={wide() ? open : drawer}
            onClick={toggle}
          >
            <IconMenu />
          </button>
          <Models />
          <span class="stretch" />
          <Context />
          <button type="button" class="quiet narrow-only" aria-label="New conversation" onClick={state.fresh}>
            <IconPlus />
          </button>
          <button
            type="button"
            class="quiet"
            aria-label="Settings"
            title="Settings (Ctrl ,)"
            onClick={() => (state.dialog.value = "settings")}
          >
            <IconSettings />
          </button>
        </header>
        <main>
          <Banner />
          <Thread />
          <Composer />
        </main>
      </div>
      <SettingsDialog />
      <Keys />
      <About />
      <div class="hidden" role="status" aria-live="polite" id="said">
        {state.said.value}
      </div>
    </div>
  );
}

addEventListener("keydown", keys);
void state.begin();
render(<Page />, document.getElementById("page")!);
