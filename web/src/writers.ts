// Which tab writes an answer: it holds a lock named by the answer, which ends with the tab, however that ends.

import { signal } from "@preact/signals";

const BEGIN = "backstop/";
/** Answers that this tab writes. */
const ours = new Set<string>();
/** Answers that other tabs write, each with its conversation. */
export const elsewhere = signal<ReadonlyMap<string, string>>(new Map());

/** Only an address that a browser trusts has locks: elsewhere it is not known who writes. */
const locks: LockManager | undefined = navigator.locks;

/** Holds an answer for this tab, of which `held` may tell others, until what this gives is called. */
export function holds(conversation: string, turn: string, held: () => void): () => void {
  let end = () => {};
  const whole = new Promise<void>((resolve) => (end = resolve));
  const work = () => {
    held();
    return whole;
  };
  const gone = () => void ours.delete(turn);
  ours.add(turn);
  locks?.request(`${BEGIN}${conversation}/${turn}`, work).then(gone, gone);
  return end;
}

/** Looks what other tabs write. `ended` reads what is there of an answer that nobody writes any more. */
export async function look(ended: (conversation: string, turn: string) => Promise<void>) {
  const { held = [] } = (await locks?.query().catch(() => undefined)) ?? {};
  for (const { name, mode } of held) {
    // Shared ones are those of tabs that wait.
    if (mode !== "exclusive") continue;
    const [conversation, turn] = name?.startsWith(BEGIN) ? name.slice(BEGIN.length).split("/") : [];
    if (!conversation || !turn || ours.has(turn) || elsewhere.value.has(turn)) continue;
    elsewhere.value = new Map(elsewhere.value).set(turn, conversation);
    // Several tabs may wait for the one that writes.
    const waits = locks!.request(name!, { mode: "shared" }, () => undefined);
    void waits
      .then(() => ended(conversation, turn))
      .catch(() => undefined)
      .finally(() => {
        const left = new Map(elsewhere.value);
        left.delete(turn);
        elsewhere.value = left;
      });
  }
}
