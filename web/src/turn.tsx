// One message, and what can be done with it.

import { memo } from "preact/compat";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { again, more, reword, send } from "./chat";
import {
  IconAgain,
  IconClose,
  IconEdit,
  IconFile,
  IconFork,
  IconLeft,
  IconOn,
  IconRight,
  IconTokens,
  IconTrash,
} from "./icons";
import { Copy, Markdown } from "./markdown";
import { perSecond } from "./numbers";
import { sends } from "./settings";
import * as state from "./state";
import { Tokens } from "./tokens";
import * as tree from "./tree";
import type { Attachment, Conversation, Kind, Stats, Turn } from "./tree";
import { Words } from "./troubles";
import { elsewhere } from "./writers";

interface Props {
  conversation: Conversation;
  turn: Turn;
  last: boolean;
}

/** Drawn anew only where it has changed: a long conversation is drawn in many parts. */
export const Said = memo((props: Props) => (props.turn.role === "user" ? <Asked {...props} /> : <Answer {...props} />));

function Asked({ conversation, turn }: Props) {
  const [editing, setEditing] = useState(false);
  const busy = state.runs.value.has(conversation.id);
  return (
    <article class="user" aria-label="You">
      <h2 class="hidden">You</h2>
      {editing ? (
        <Editor turn={turn} onDone={() => setEditing(false)} />
      ) : (
        <div class="bubble">
          <Files files={turn.files ?? []} />
          {turn.text && <div class="text">{turn.text}</div>}
        </div>
      )}
      {!editing && (
        <div class="actions">
          <Branches conversation={conversation} turn={turn} />
          <Copy text={turn.text} label="Copy message" />
          <Action
            label="Edit and send again"
            icon={<IconEdit />}
            off={busy}
            does={() => setEditing(true)}
            name="edit"
          />
          <Delete conversation={conversation} turn={turn} off={busy} />
        </div>
      )}
    </article>
  );
}

function Answer({ conversation, turn, last }: Props) {
  const run = state.runs.value.get(conversation.id);
  const live = run?.turn === turn.id ? run.live.value : undefined;
  const { text, thoughts, stats } = { ...turn, ...live };
  const [asTokens, setAsTokens] = useState(false),
    [editing, setEditing] = useState(false);
  const busy = run !== undefined,
    theirs = !live && turn.end === "cut" && elsewhere.value.has(turn.id);
  const full = turn.end === "length" && context(turn);
  return (
    <article
      class={`assistant ${last ? "is-last" : ""}`}
      aria-label={turn.model ?? "Assistant"}
      aria-busy={live !== undefined || theirs}
    >
      <h2 class="hidden">{turn.model ?? "Assistant"}</h2>
      {thoughts && <Thoughts text={thoughts} live={live !== undefined && !text} />}
      {editing ? (
        <Editor turn={turn} onDone={() => setEditing(false)} />
      ) : asTokens && !live ? (
        <Tokens turn={turn} />
      ) : (
        text && <Markdown text={text} live={live !== undefined || theirs} />
      )}
      {live && !text && !thoughts && <p class="doing">{live.doing}</p>}
      {turn.trouble && !live && (
        <div class="alert" role="group" aria-label="Error">
          <Words trouble={turn.trouble} beside />
          {turn.trouble.kind === "context" ? (
            <button type="button" class="plain" onClick={state.fresh}>
              New conversation
            </button>
          ) : (
            <Tries turn={turn} kind={turn.trouble.kind} off={busy} />
          )}
        </div>
      )}
      {!live && turn.end === "length" && (
        <p class="note">
          {full
            ? "The context is full: start a new conversation, or shorten an earlier message."
            : "Cut at the limit of tokens."}
        </p>
      )}
      {!live && turn.end === "stopped" && <p class="note">Stopped.</p>}
      {theirs && <p class="note">Being written in another tab.</p>}
      {!live && !theirs && turn.end === "cut" && <p class="note">Not written to its end.</p>}
      {!live && turn.end === "edited" && <p class="note">Edited.</p>}
      {stats && !live && !theirs && (
        <Figures stats={stats} model={state.isOnly(turn.model) ? undefined : turn.model} />
      )}
      {!live && !theirs && !editing && (
        <div class="actions">
          <Branches conversation={conversation} turn={turn} />
          {text && <Copy text={text} label="Copy answer" />}
          <Action label="Answer again" icon={<IconAgain />} off={busy} does={() => void again(turn)} name="again" />
          {text && (
            <Action
              label="Edit this answer"
              icon={<IconEdit />}
              off={busy}
              does={() => setEditing(true)}
              name="edit-answer"
            />
          )}
          {last && turn.end && text && !full && (
            <Action label="Continue" icon={<IconOn />} off={busy} does={() => void more(turn)} name="continue" />
          )}
          {text && (
            <Action
              label="Go on from here in a new conversation"
              icon={<IconFork />}
              off={busy}
              does={() => void state.fork(conversation, turn.id)}
              name="fork"
            />
          )}
          {turn.tokens && (
            <Action
              label="Tokens and their alternatives"
              icon={<IconTokens />}
              pressed={asTokens}
              does={() => setAsTokens(!asTokens)}
              name="tokens"
            />
          )}
          <Delete conversation={conversation} turn={turn} off={busy} />
        </div>
      )}
    </article>
  );
}

/** So many models are offered in place of one. */
const OFFERED = 4;

/** Asks once more: another model, where this one does not answer. */
function Tries({ turn, kind, off }: { turn: Turn; kind: Kind; off: boolean }) {
  const models = state.answering.value;
  const others = models.filter(({ id, state }) => id !== turn.model && state !== "failed").slice(0, OFFERED);
  const instead = kind === "missing" || kind === "load" ? others : [];
  const listed = models.some(({ id }) => id === turn.model);
  return (
    <div class="buttons">
      {instead.map(({ id }) => (
        <button
          key={id}
          type="button"
          class="plain"
          disabled={off}
          onClick={() => {
            state.choose(id);
            void again(turn);
          }}
        >
          Answer with {id}
        </button>
      ))}
      {(listed || instead.length === 0) && (
        <button type="button" class="plain" disabled={off} onClick={() => void again(turn)}>
          Try again
        </button>
      )}
    </div>
  );
}

/** Whether an answer ended where the context does. */
function context({ stats, model }: Turn): boolean {
  const whole = state.models.value.find(({ id }) => id === model)?.context_length;
  return Boolean(whole && stats?.prompt && stats.prompt + (stats.tokens ?? 0) >= whole - 1);
}

function Action({
  label,
  icon,
  does,
  off,
  pressed,
  name,
}: {
  label: string;
  icon: any;
  does: () => void;
  off?: boolean;
  pressed?: boolean;
  name: string;
}) {
  return (
    <button
      type="button"
      class={`quiet do-${name}`}
      aria-label={label}
      title={label}
      disabled={off}
      aria-pressed={pressed}
      onClick={does}
    >
      {icon}
    </button>
  );
}

/** A second click deletes. */
function Delete({ conversation, turn, off }: { conversation: Conversation; turn: Turn; off: boolean }) {
  const [sure, setSure] = useState(false);
  useEffect(() => {
    if (!sure) return;
    const timer = setTimeout(() => setSure(false), 4000);
    return () => clearTimeout(timer);
  }, [sure]);
  const label = sure ? "Delete with all that follows?" : "Delete";
  return (
    <button
      type="button"
      class={`quiet do-delete ${sure ? "danger" : ""}`}
      aria-label={label}
      title={label}
      disabled={off}
      onClick={() => (sure ? state.prune(conversation, turn.id) : setSure(true))}
    >
      <IconTrash />
      {sure && <span class="told">{label}</span>}
    </button>
  );
}

/** ‹ 2/3 › where there are siblings. */
function Branches({ conversation, turn }: { conversation: Conversation; turn: Turn }) {
  const all = tree.children(conversation, turn.parent),
    at = all.findIndex(({ id }) => id === turn.id);
  if (all.length < 2) return null;
  const busy = state.runs.value.has(conversation.id);
  const step = (by: number) => state.update(tree.turned(conversation, turn, by));
  return (
    <span class="branches" role="group" aria-label="Versions">
      <button
        type="button"
        class="quiet"
        aria-label="Previous version"
        disabled={busy || at === 0}
        onClick={() => step(-1)}
      >
        <IconLeft />
      </button>
      <span aria-label={`Version ${at + 1} of ${all.length}`}>
        {at + 1}/{all.length}
      </span>
      <button
        type="button"
        class="quiet"
        aria-label="Next version"
        disabled={busy || at === all.length - 1}
        onClick={() => step(1)}
      >
        <IconRight />
      </button>
    </span>
  );
}

function Thoughts({ text, live }: { text: string; live: boolean }) {
  return (
    <details class="thoughts">
      <summary>{live ? <span class="doing">Thinking…</span> : "Thoughts"}</summary>
      <Markdown text={text} live={live} />
    </details>
  );
}

export function Files({ files, onRemove }: { files: Attachment[]; onRemove?: (at: number) => void }) {
  if (files.length === 0) return null;
  return (
    <ul class="files">
      {files.map((file, i) => (
        <li key={i}>
          <details>
            <summary title={file.name}>
              <IconFile /> <span class="name">{file.name}</span>{" "}
              <span class="faint">
                {file.text.length.toLocaleString()} character{file.text.length === 1 ? "" : "s"}
              </span>
            </summary>
            <pre tabIndex={0}>
              {file.text.slice(0, 20_000)}
              {file.text.length > 20_000 && "\n…"}
            </pre>
          </details>
          {onRemove && (
            <button type="button" class="quiet" aria-label={`Remove ${file.name}`} onClick={() => onRemove(i)}>
              <IconClose />
            </button>
          )}
        </li>
      ))}
    </ul>
  );
}

/** A question is sent again as it is here; an answer is kept so, beside the one that there was. */
function Editor({ turn, onDone }: { turn: Turn; onDone: () => void }) {
  const asks = turn.role === "user";
  const field = useRef<HTMLTextAreaElement>(null);
  const [files, setFiles] = useState(turn.files ?? []);
  useLayoutEffect(() => {
    field.current!.focus();
    field.current!.setSelectionRange(turn.text.length, turn.text.length);
  }, []);
  // Another answer may have been asked for since it was opened.
  const busy = () => state.runs.value.has(state.current.value);
  const submit = () => {
    if (busy()) return;
    const text = field.current!.value.trim();
    if (!text && files.length === 0) return;
    onDone();
    if (asks) void send(text, files, turn.parent);
    else if (text && text !== turn.text.trim()) reword(turn, text);
  };
  return (
    <form
      class="editor"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <Files files={files} onRemove={(at) => setFiles(files.filter((_, i) => i !== at))} />
      <textarea
        ref={field}
        aria-label={asks ? "Message" : "Answer"}
        rows={Math.min(asks ? 12 : 20, turn.text.split("\n").length + 1)}
        defaultValue={turn.text}
        onKeyDown={(event) => {
          if (event.isComposing) return;
          const done = asks ? sends(event) : event.key === "Enter" && (event.ctrlKey || event.metaKey);
          if (event.key === "Escape" || done) {
            event.preventDefault();
            event.stopPropagation();
            if (event.key === "Escape") onDone();
            else submit();
          }
        }}
      />
      <div class="buttons">
        <button type="button" class="plain" onClick={onDone}>
          Cancel
        </button>
        <button type="submit" class="main" disabled={busy()}>
          {asks ? "Send" : "Save"}
        </button>
      </div>
    </form>
  );
}

/** What an answer took, in one line. */
function Figures({ stats, model }: { stats: Stats; model?: string }) {
  const parts: [string, string][] = [];
  if (model) parts.push([model, "The model that answered"]);
  if (stats.tokens) parts.push([`${stats.tokens.toLocaleString()} tokens`, "Tokens of the answer"]);
  if (stats.rate) parts.push([perSecond(stats.rate), "Tokens in a second"]);
  if (stats.prompt) {
    const cached = stats.cached ? `, ${stats.cached.toLocaleString()} cached` : "";
    parts.push([
      `prompt ${stats.prompt.toLocaleString()}${cached}`,
      `Tokens of the prompt${cached && "; cached ones did not have to be computed"}`,
    ]);
  }
  if (stats.promptRate) parts.push([`read at ${perSecond(stats.promptRate)}`, "Tokens of the prompt in a second"]);
  if (stats.first !== undefined)
    parts.push([`first after ${stats.first.toFixed(stats.first < 10 ? 2 : 1)} s`, "Time to the first token"]);
  if (parts.length === 0) return null;
  return (
    <p class="figures note">
      {parts.map(([text, title], i) => (
        <span key={i} title={title}>
          {text}
        </span>
      ))}
    </p>
  );
}
