// Where a message is written, and files are attached.

import { signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { send, stop } from "./chat";
import * as drafts from "./drafts";
import { Effort } from "./effort";
import { IconClip, IconClose, IconEnd, IconSend, IconStop, IconThought } from "./icons";
import { perSecond } from "./numbers";
import * as queue from "./queue";
import { sends, settings } from "./settings";
import * as state from "./state";
import type { Attachment } from "./tree";
import { importFile } from "./transfer";
import { Files } from "./turn";

const refused = signal("");
/** A file of more characters fits no context that there is. */
const MOST = 4_000_000;
/** Pasted text of more characters is a file beside the message: so much is read about, and not as, what is asked. */
const LONG = 4000;
const LATER = "Send when the answer ends";

/** pasted.txt, or with the first number that none of these files has. */
function pasted(text: string, files: Attachment[]): Attachment {
  const taken = new Set(files.map(({ name }) => name));
  let name = "pasted.txt";
  for (let n = 2; taken.has(name); n++) name = `pasted-${n}.txt`;
  return { name, text: text.replace(/\r\n?/g, "\n") };
}

/** A file's text; what is no text is refused in words. */
export async function textOf(file: File): Promise<Attachment> {
  if (file.size > MOST) throw new Error(`${file.name} is larger than 4 MB, which no model's context holds`);
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} is no text (it is not UTF-8): models here read text alone`);
  }
  if (text.includes("\0")) throw new Error(`${file.name} is no text: models here read text alone`);
  return { name: file.name, text: text.replace(/\r\n/g, "\n") };
}

/** Whether a file holds exported conversations; of a large one its beginning tells. */
async function exported(file: File): Promise<boolean> {
  if (!file.name.endsWith(".json")) return false;
  const text = await (file.size > MOST ? file.slice(0, 4096) : file).text();
  return text.includes('"backstop-conversations"');
}

/** Puts files beside what is written in a conversation. */
const attach = (id: string, ...files: Attachment[]) =>
  drafts.write(id, { files: [...drafts.draft(id).files, ...files] });

/** Takes files: exported conversations in, all others to the message. */
async function take(files: File[]) {
  // Another one may be open when they have been read.
  const id = state.current.value;
  refused.value = "";
  for (const file of files) {
    try {
      if (await exported(file)) {
        const count = await importFile(file);
        state.said.value = `${count} conversations imported.`;
      } else attach(id, await textOf(file));
    } catch (error) {
      refused.value = `${(error as Error).message}.`;
    }
  }
  document.getElementById("question")?.focus();
}

export function Composer() {
  const id = state.current.value,
    run = state.runs.value.get(id);
  const { text, files } = drafts.draft(id);
  const field = useRef<HTMLTextAreaElement>(null),
    chooser = useRef<HTMLInputElement>(null);
  const [over, setOver] = useState(false);
  useLayoutEffect(() => {
    const area = field.current!;
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
  }, [id, text]);
  useLayoutEffect(() => {
    if (matchMedia("(hover: hover)").matches) field.current!.focus();
  }, [id]);
  useEffect(() => {
    const carries = (event: DragEvent) => event.dataTransfer?.types.includes("Files");
    const hover = (event: DragEvent) => {
      if (!carries(event)) return;
      event.preventDefault();
      setOver(true);
    };
    const leave = (event: DragEvent) => {
      if (!event.relatedTarget) setOver(false);
    };
    const drop = (event: DragEvent) => {
      setOver(false);
      if (!carries(event)) return;
      event.preventDefault();
      void take([...event.dataTransfer!.files]);
    };
    addEventListener("dragover", hover);
    addEventListener("dragleave", leave);
    addEventListener("drop", drop);
    return () => {
      removeEventListener("dragover", hover);
      removeEventListener("dragleave", leave);
      removeEventListener("drop", drop);
    };
  }, []);
  const submit = () => {
    const { files } = drafts.draft(id);
    const text = field.current!.value.trim();
    if (!text && files.length === 0) return;
    drafts.write(id, { text: "", files: [] });
    refused.value = "";
    if (state.runs.value.has(id)) {
      queue.wait(id, { text, files });
      state.said.value = "It is sent when the answer ends.";
    } else void send(text, files);
  };
  const waits = queue.waiting(id);
  const keys = (event: KeyboardEvent) => {
    if (event.isComposing) return;
    if (sends(event)) {
      event.preventDefault();
      submit();
    }
    if (event.key === "ArrowUp" && !field.current!.value && state.conversation.value && !run) {
      const last = [...document.querySelectorAll<HTMLElement>("article.user .do-edit")].at(-1);
      if (last) {
        event.preventDefault();
        last.click();
      }
    }
  };
  const paste = (event: ClipboardEvent) => {
    const text = event.clipboardData?.getData("text/plain") ?? "";
    // Office programs copy a picture of the text with it.
    const files = [...(event.clipboardData?.files ?? [])].filter(({ type }) => !text || !type.startsWith("image/"));
    if (files.length > 0) {
      event.preventDefault();
      void take(files);
    } else if (settings.value.long && text.length > LONG) {
      event.preventDefault();
      const file = pasted(text, drafts.draft(id).files);
      attach(id, file);
      state.said.value = `${file.name} is beside the message.`;
    }
  };
  const send_ = text.trim() !== "" || files.length > 0;
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <div class="column">
        {refused.value && (
          <p class="alarm" role="alert">
            {refused.value}
          </p>
        )}
        {waits.length > 0 && (
          <section class="queue" aria-labelledby="queued">
            <h2 class="note" id="queued">
              Sent when the answer ends
            </h2>
            <ol>
              {waits.map((message, i) => (
                <li key={i}>
                  <span class="name" title={message.text}>
                    {message.text || message.files.map(({ name }) => name).join(", ")}
                  </span>
                  {message.text && message.files.length > 0 && (
                    <span class="faint">
                      {message.files.length} file{message.files.length === 1 ? "" : "s"}
                    </span>
                  )}
                  <button
                    type="button"
                    class="quiet"
                    aria-label="Do not send: back to the box"
                    title="Do not send: back to the box"
                    onClick={() => {
                      drafts.back(id, [message]);
                      field.current!.focus();
                    }}
                  >
                    <IconClose />
                  </button>
                </li>
              ))}
            </ol>
          </section>
        )}
        <div class="box">
          <Files files={files} onRemove={(at) => drafts.write(id, { files: files.filter((_, i) => i !== at) })} />
          <label class="hidden" for="question">
            Message
          </label>
          <textarea
            ref={field}
            id="question"
            rows={1}
            placeholder="Write a message"
            enterkeyhint={settings.value.enter ? "send" : "enter"}
            aria-describedby="hint"
            value={text}
            onInput={(event) => drafts.write(id, { text: event.currentTarget.value })}
            onKeyDown={keys}
            onPaste={paste}
          />
          <span class="hidden" id="hint">
            {settings.value.enter ? "Enter sends, Shift and Enter begin a new line." : "Enter begins a new line."}
          </span>
          <div class="buttons">
            <input
              ref={chooser}
              type="file"
              multiple
              hidden
              aria-label="Files"
              onChange={(event) => {
                void take([...(event.currentTarget.files ?? [])]);
                event.currentTarget.value = "";
              }}
            />
            <button
              type="button"
              class="quiet"
              aria-label="Attach text files"
              title="Attach text files"
              onClick={() => chooser.current!.click()}
            >
              <IconClip />
            </button>
            {state.model.value?.capabilities?.includes("thinking") && (
              <label class="effort" title="Thinking">
                <IconThought />
                <span class="hidden">Thinking</span>
                <Effort id="thinking" />
              </label>
            )}
            <Rate />
            {state.toEnd.value && (
              <button
                type="button"
                class="quiet to-end"
                aria-label="To the end"
                title="To the end"
                onClick={state.toEnd.value}
              >
                <IconEnd />
              </button>
            )}
            {run && send_ && (
              <button type="submit" class="quiet" aria-label={LATER} title={LATER} id="later">
                <IconSend />
              </button>
            )}
            {run ? (
              <button type="button" class="main round" aria-label="Stop" title="Stop (Escape)" id="stop" onClick={stop}>
                <IconStop />
              </button>
            ) : (
              <button type="submit" class="main round" aria-label="Send" title="Send" id="send" disabled={!send_}>
                <IconSend />
              </button>
            )}
          </div>
        </div>
      </div>
      {over && (
        <div class="dropping" aria-hidden="true">
          <p>Drop text files, or exported conversations</p>
        </div>
      )}
    </form>
  );
}

/** How fast it writes just now. */
function Rate() {
  const live = state.runs.value.get(state.current.value)?.live.value;
  const { tokens, rate } = live?.stats ?? {};
  return (
    <p class="rate faint" id="rate">
      {live ? live.doing || (rate ? `${tokens!.toLocaleString()} tokens, ${perSecond(rate)}` : "…") : ""}
    </p>
  );
}
