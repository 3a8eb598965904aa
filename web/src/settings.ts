// What a person sets, kept in the browser.

import { effect, signal } from "@preact/signals";

export interface Settings {
  theme: "" | "light" | "dark";
  system: string;
  /** Fields of the request by name, as typed; empty: the model's own. */
  sampling: Record<string, string>;
  /** `reasoning_effort`; empty: the model's own. */
  effort: string;
  /** Whether tokens come with their alternatives. */
  alternatives: boolean;
  /** Whether Enter sends; otherwise Ctrl or ⌘ with it does, and the button. */
  enter: boolean;
  /** Whether long text that is pasted is a file beside the message. */
  long: boolean;
  /** More fields of requests, as JSON. */
  fields: string;
  sidebar: boolean;
}

export interface Field {
  name: string;
  label: string;
  min: number;
  max: number;
  step: number;
  hint: string;
  /** What it is without a value, where no model says it. */
  otherwise?: string;
}

export const FIELDS: Field[] = [
  {
    name: "temperature",
    label: "Temperature",
    min: 0,
    max: 100,
    step: 0.05,
    hint: "0 always takes the likeliest token; higher values vary more.",
  },
  { name: "top_k", label: "Top k", min: 0, max: 1e6, step: 1, hint: "Only the k likeliest tokens; 0 is all of them." },
  {
    name: "top_p",
    label: "Top p",
    min: 0,
    max: 1,
    step: 0.01,
    hint: "The likeliest tokens that together have this probability.",
  },
  {
    name: "min_p",
    label: "Min p",
    min: 0,
    max: 1,
    step: 0.01,
    hint: "Leaves out tokens less likely than this part of the likeliest.",
  },
  {
    name: "repeat_penalty",
    label: "Repeat penalty",
    min: 0.01,
    max: 10,
    step: 0.05,
    hint: "Over 1, tokens that were there before get less likely.",
  },
  {
    name: "presence_penalty",
    label: "Presence penalty",
    min: -2,
    max: 2,
    step: 0.1,
    hint: "The same for each token once, by subtraction.",
  },
  {
    name: "frequency_penalty",
    label: "Frequency penalty",
    min: -2,
    max: 2,
    step: 0.1,
    hint: "The same for each time that a token was there.",
  },
  {
    name: "max_tokens",
    label: "Most tokens",
    min: 1,
    max: 1e7,
    step: 1,
    hint: "Where an answer is cut; empty: where the context ends.",
    otherwise: "no limit",
  },
  {
    name: "seed",
    label: "Seed",
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    step: 1,
    hint: "The same seed draws the same answer again.",
    otherwise: "random",
  },
];

/** What `reasoning_effort` may be, and what it is called. */
export const EFFORTS = [
  ["", "Auto"],
  ["none", "Off"],
  ["low", "Low"],
  ["medium", "Medium"],
  ["high", "High"],
];

const NAME = "backstop.settings";
const INITIAL: Settings = {
  theme: "",
  system: "",
  sampling: {},
  effort: "",
  alternatives: true,
  // The keyboard of a phone has no other key for a new line.
  enter: !matchMedia("(hover: none) and (pointer: coarse)").matches,
  long: true,
  fields: "",
  sidebar: true,
};

function stored(): Settings {
  try {
    return { ...INITIAL, ...JSON.parse(localStorage.getItem(NAME) ?? "{}") };
  } catch {
    return INITIAL;
  }
}

export const settings = signal<Settings>(stored());
/** Whether the browser keeps them. */
export const kept = signal(true);
export const set = (change: Partial<Settings>) => (settings.value = { ...settings.value, ...change });

effect(() => {
  const { theme } = settings.value;
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  try {
    localStorage.setItem(NAME, JSON.stringify(settings.value));
    kept.value = true;
  } catch {
    kept.value = false;
  }
});

/** Whether a key in a message sends it. */
export const sends = (event: KeyboardEvent) =>
  event.key === "Enter" && !event.shiftKey && (event.ctrlKey || event.metaKey || settings.value.enter);

/** An object as it is written, or none where that is something else. */
export function object(typed: string): Record<string, unknown> | undefined {
  try {
    const value = JSON.parse(typed.trim() || "{}");
    return value && typeof value === "object" && !Array.isArray(value) ? value : undefined;
  } catch {
    return;
  }
}

/** The value of a field as a number in its range, or none. */
export function number(field: Field, typed: string | undefined): number | undefined {
  if (!typed?.trim()) return;
  const value = Number(typed);
  return Number.isFinite(value) && value >= field.min && value <= field.max ? value : undefined;
}
