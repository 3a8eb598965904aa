// The settings' dialog.

import { useRef, useState } from "preact/hooks";
import { key, setKey } from "./api";
import { Dialog } from "./dialog";
import { Effort } from "./effort";
import { FIELDS, kept, number, object, set, settings, type Field } from "./settings";
import * as state from "./state";
import { exportAll, importFile } from "./transfer";

export function SettingsDialog() {
  return (
    <Dialog name="settings" title="Settings">
      {!kept.value && <p class="alarm">This browser does not keep settings: these hold while the page is open.</p>}
      <Sampling />
      <section>
        <h3>New conversations</h3>
        <label for="system">System prompt</label>
        <textarea
          id="system"
          rows={3}
          value={settings.value.system}
          onInput={(event) => set({ system: event.currentTarget.value })}
        />
      </section>
      <section>
        <h3>Page</h3>
        <div class="pair">
          <label for="theme">Colours</label>
          <select
            id="theme"
            value={settings.value.theme}
            onChange={(event) => set({ theme: event.currentTarget.value as "" })}
          >
            <option value="">As the system</option>
            <option value="light">Light</option>
            <option value="dark">Dark</option>
          </select>
        </div>
        <Check
          label="Enter sends (otherwise Ctrl or ⌘ and Enter do, and the button)"
          checked={settings.value.enter}
          set={(enter) => set({ enter })}
        />
        <Check
          label="Long text that is pasted is a file beside the message"
          checked={settings.value.long}
          set={(long) => set({ long })}
        />
        <Check
          label="Keep each token's alternatives (its button below an answer shows them)"
          checked={settings.value.alternatives}
          set={(alternatives) => set({ alternatives })}
        />
        <button type="button" class="plain" onClick={() => (state.dialog.value = "keys")}>
          Keys
        </button>
      </section>
      <Data />
    </Dialog>
  );
}

function Check({ label, checked, set }: { label: string; checked: boolean; set: (value: boolean) => void }) {
  return (
    <label class="check">
      <input type="checkbox" checked={checked} onChange={(event) => set(event.currentTarget.checked)} /> {label}
    </label>
  );
}

function Sampling() {
  const model = state.model.value,
    { sampling, effort, fields } = settings.value;
  const some = Object.values(sampling).some(Boolean) || effort || fields.trim();
  const wrong = object(fields) === undefined;
  return (
    <section>
      <h3>Sampling</h3>
      <p class="faint">
        What is empty is as {model?.id ?? "the model"} has it{model?.defaults ? ", shown in grey" : ""}.
      </p>
      <div class="fields">
        {FIELDS.map((field) => (
          <NumberField key={field.name} field={field} otherwise={model?.defaults?.[field.name]} />
        ))}
        <div class="field">
          <label for="effort">Thinking</label>
          <Effort id="effort" />
        </div>
      </div>
      <details>
        <summary>More fields of requests{wrong ? ": left out" : fields.trim() && ": set"}</summary>
        <textarea
          id="fields"
          rows={3}
          spellcheck={false}
          aria-label="More fields of requests, as JSON"
          aria-invalid={wrong}
          aria-describedby="fields-hint"
          placeholder='{"stop": ["END"], "min_tokens": 20}'
          value={fields}
          onInput={(event) => set({ fields: event.currentTarget.value })}
        />
        <p id="fields-hint" class={wrong ? "alarm" : "faint"}>
          {wrong
            ? "This is no JSON object, and is left out."
            : "An object in JSON: stop, response_format, logit_bias, chat_template_kwargs and others of /v1/chat/completions."}
        </p>
      </details>
      {some && (
        <button type="button" class="plain" onClick={() => set({ sampling: {}, effort: "", fields: "" })}>
          Reset to the model's
        </button>
      )}
    </section>
  );
}

function NumberField({ field, otherwise }: { field: Field; otherwise?: number | null }) {
  const typed = settings.value.sampling[field.name] ?? "";
  const wrong = typed !== "" && number(field, typed) === undefined;
  const range = `from ${field.min.toLocaleString()} to ${field.max.toLocaleString()}`;
  return (
    <div class="field">
      <label for={field.name}>{field.label}</label>
      <input
        id={field.name}
        type="number"
        inputMode="decimal"
        min={field.min}
        max={field.max}
        step={field.step}
        value={typed}
        aria-invalid={wrong}
        aria-describedby={`${field.name}-hint`}
        placeholder={
          otherwise === null || otherwise === undefined
            ? (field.otherwise ?? "model's")
            : String(Math.round(otherwise * 1e4) / 1e4)
        }
        onInput={(event) => set({ sampling: { ...settings.value.sampling, [field.name]: event.currentTarget.value } })}
      />
      <span id={`${field.name}-hint`} class={wrong ? "alarm" : "hidden hint"}>
        {wrong ? `A number ${range}; this is left out.` : field.hint}
      </span>
    </div>
  );
}

function Data() {
  const chooser = useRef<HTMLInputElement>(null);
  const [told, setTold] = useState(""),
    [sure, setSure] = useState(false);
  const count = state.conversations.value.length;
  const take = async (files: File[]) => {
    let all = 0;
    try {
      for (const file of files) all += await importFile(file);
      setTold(`${all} ${all === 1 ? "conversation" : "conversations"} imported.`);
    } catch (error) {
      setTold(`Not imported: ${(error as Error).message}.`);
    }
  };
  return (
    <section>
      <h3>Conversations</h3>
      <p class="faint">{count} in this browser. They are sent nowhere but, as a prompt, to this server.</p>
      <div class="buttons">
        <button type="button" class="plain" disabled={count === 0} onClick={exportAll}>
          Export all
        </button>
        <input
          ref={chooser}
          id="import"
          type="file"
          accept=".json,.jsonl,application/json"
          multiple
          hidden
          aria-label="Import"
          onChange={(event) => {
            void take([...(event.currentTarget.files ?? [])]);
            event.currentTarget.value = "";
          }}
        />
        <button
          type="button"
          class="plain"
          title="What this page or llama.cpp's has exported"
          onClick={() => chooser.current!.click()}
        >
          Import…
        </button>
        <button
          type="button"
          class="plain danger"
          disabled={count === 0}
          onClick={() => {
            if (sure) void state.forgetAll();
            setSure(!sure);
          }}
        >
          {sure ? `Delete all ${count} for good?` : "Delete all…"}
        </button>
        {key.value && (
          <button
            type="button"
            class="plain"
            onClick={() => {
              setKey("", false);
              void state.refresh();
            }}
          >
            Forget the API key
          </button>
        )}
      </div>
      <p role="status">{told}</p>
    </section>
  );
}
