// The conversations: searched, opened, renamed, exported, deleted.

import { signal } from "@preact/signals";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { Menu } from "./menu";
import { IconPlus, IconSearch } from "./icons";
import * as state from "./state";
import { exportMarkdown, exportOne } from "./transfer";
import { entitled, path, pinned, type Conversation } from "./tree";
import { elsewhere } from "./writers";

const searched = signal("");
const renaming = signal("");
/** The one whose title was left by a key, which the focus goes back to. */
let renamed = "";
/** So many lines of the list are drawn at once. */
const MOST = 300;

const DAY = 24 * 3600 * 1000;

function age(time: number): string {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY) return "Yesterday";
  if (time >= today - 7 * DAY) return "Last 7 days";
  if (time >= today - 30 * DAY) return "Last 30 days";
  return new Date(time).toLocaleDateString(undefined, { month: "long", year: "numeric" });
}

/** Where the words are found in a conversation: a line of it; "" in its title; undefined nowhere. */
export function found(conversation: Conversation, words: string): string | undefined {
  const wanted = words.toLowerCase();
  if (conversation.title.toLowerCase().includes(wanted)) return "";
  for (const turn of [...path(conversation), ...conversation.turns]) {
    for (const text of [turn.text, ...(turn.files ?? []).map(({ name }) => name)]) {
      const at = text.toLowerCase().indexOf(wanted);
      if (at >= 0) return `${at > 20 ? "…" : ""}${text.slice(Math.max(0, at - 20), at + 60).replace(/\s+/g, " ")}`;
    }
  }
}

export function Sidebar() {
  const words = searched.value.trim();
  const listed = [...state.conversations.value]
    .sort((a, b) => Number(b.pinned ?? false) - Number(a.pinned ?? false) || b.changed - a.changed)
    .map((conversation) => ({ conversation, line: words ? found(conversation, words) : "" }))
    .filter(({ line }) => line !== undefined)
    .slice(0, MOST);
  const move = (event: KeyboardEvent) => {
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (!step || renaming.value) return;
    const links = [...(event.currentTarget as HTMLElement).querySelectorAll<HTMLElement>("#search, a.open")];
    const at = links.indexOf(document.activeElement as HTMLElement);
    links[at + step]?.focus();
    event.preventDefault();
  };
  let group = "";
  return (
    <nav class="sidebar" aria-label="Conversations" onKeyDown={move}>
      <div class="top">
        <button type="button" class="fresh" title="New conversation (Ctrl Shift O)" onClick={state.fresh}>
          <IconPlus /> New conversation
        </button>
        <label class="search">
          <IconSearch />
          <span class="hidden">Search conversations</span>
          <input
            id="search"
            type="search"
            placeholder="Search"
            value={searched.value}
            autocomplete="off"
            onInput={(event) => (searched.value = event.currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key === "Escape" && searched.value) {
                searched.value = "";
                event.preventDefault();
                event.stopPropagation();
              }
            }}
          />
        </label>
      </div>
      <ul class="conversations">
        {listed.map(({ conversation, line }) => {
          const named = conversation.pinned ? "Pinned" : age(conversation.changed),
            heading = named !== group;
          group = named;
          return (
            <Entry key={conversation.id} conversation={conversation} line={line!} heading={heading ? named : ""} />
          );
        })}
      </ul>
      {listed.length === 0 && state.ready.value && (
        <p class="faint empty">{words ? "Nothing is found." : "Conversations are kept here, in this browser alone."}</p>
      )}
      <p class="hidden" role="status">
        {words ? `${listed.length} found` : ""}
      </p>
      <button type="button" class="foot" onClick={() => (state.dialog.value = "about")}>
        backstop
      </button>
    </nav>
  );
}

function Entry({ conversation, line, heading }: { conversation: Conversation; line: string; heading: string }) {
  const { id, title } = conversation,
    open = state.current.value === id;
  const busy = state.runs.value.has(id) || [...elsewhere.value.values()].includes(id);
  const [sure, setSure] = useState(false);
  const link = useRef<HTMLAnchorElement>(null);
  useLayoutEffect(() => {
    if (renamed !== id || renaming.value === id) return;
    renamed = "";
    link.current!.focus();
  }, [renaming.value]);
  const items = sure
    ? [
        { label: "Delete for good", danger: true, does: () => void state.forget(conversation) },
        { label: "Keep it", does: () => setSure(false) },
      ]
    : [
        { label: "Rename", does: () => (renaming.value = id) },
        {
          label: conversation.pinned ? "Unpin" : "Pin",
          back: true,
          does: () => state.update(pinned(conversation)),
        },
        { label: "Export as JSON", does: () => exportOne(conversation) },
        { label: "Export as Markdown", does: () => exportMarkdown(conversation) },
        { label: "Delete…", danger: true, stays: true, does: () => setSure(true) },
      ];
  return (
    <li class={open ? "is-open" : undefined}>
      {heading && <h2>{heading}</h2>}
      <div class="entry">
        {renaming.value === id ? (
          <Rename conversation={conversation} />
        ) : (
          <a
            ref={link}
            class="open"
            href={`#/${id}`}
            aria-current={open ? "page" : undefined}
            title={title}
            onClick={() => (state.drawer.value = false)}
            onKeyDown={(event) => {
              if (event.key === "F2") renaming.value = id;
            }}
          >
            <span class="title">{title}</span>
            {line && <span class="line">{line}</span>}
          </a>
        )}
        {busy && (
          <span class="busy" title="An answer is being written">
            <span class="hidden">An answer is being written</span>
          </span>
        )}
        <Menu label={`More of ${title}`} items={items} onClose={() => setSure(false)} />
      </div>
    </li>
  );
}

function Rename({ conversation }: { conversation: Conversation }) {
  const field = useRef<HTMLInputElement>(null);
  useLayoutEffect(() => {
    field.current!.focus();
    field.current!.select();
  }, []);
  const done = (keep: boolean) => {
    if (renaming.value !== conversation.id) return;
    const title = field.current!.value.trim();
    if (keep && title && title !== conversation.title) state.update(entitled(conversation, title));
    renaming.value = "";
  };
  return (
    <input
      ref={field}
      class="rename"
      aria-label="Title"
      value={conversation.title}
      maxLength={200}
      onBlur={() => done(true)}
      onKeyDown={(event) => {
        if (event.key !== "Enter" && event.key !== "Escape") return;
        event.preventDefault();
        event.stopPropagation();
        renamed = conversation.id;
        done(event.key === "Enter");
      }}
    />
  );
}
