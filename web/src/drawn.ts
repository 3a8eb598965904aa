// A long conversation is drawn from its end: what is seen first at once, and what is above it in parts, while there is
// nothing else to do.

import { flushSync } from "preact/compat";
import { useEffect, useReducer, useRef } from "preact/hooks";

/** So many turns are drawn at once: they fill a screen, mostly. */
const FIRST = 8;
/** So many are the next part, and as many more as are drawn within `SLICE` milliseconds: longer waits are felt. */
const PART = 4,
  SLICE = 40;

/** Does something when the browser has nothing else to do, unless what this gives is called before. */
function whenIdle(work: () => void): () => void {
  if (!self.requestIdleCallback) {
    const timer = setTimeout(work, 16);
    return () => clearTimeout(timer);
  }
  const handle = requestIdleCallback(work, { timeout: 200 });
  return () => cancelIdleCallback(handle);
}

/** How many of a conversation's `count` turns, from the first, are not drawn yet in `place`, which is scrolled. */
export function useUndrawn(id: string, count: number, place: { current: HTMLElement | null }): number {
  const at = useRef({ id: "", left: 0, part: PART });
  const [, again] = useReducer((times: number, _: void) => times + 1, 0);
  if (at.current.id !== id) at.current = { id, left: count, part: PART };
  const left = (at.current.left = Math.max(0, Math.min(at.current.left, count - FIRST)));
  useEffect(() => {
    if (left === 0) return;
    const draw = (part: number) => {
      const thread = place.current!,
        first = thread.querySelector("article");
      const start = performance.now(),
        was = first?.getBoundingClientRect().top ?? 0;
      at.current.left = Math.max(0, left - part);
      flushSync(() => again());
      // What is read stays in its place. At the very top no browser sees to that, and Safari nowhere.
      if (first && !(thread.scrollTop > 0 && CSS.supports("overflow-anchor", "auto")))
        thread.scrollTop += first.getBoundingClientRect().top - was;
      const rate = part / Math.max(1, performance.now() - start);
      at.current.part = Math.min(64, Math.max(1, Math.round(rate * SLICE)));
    };
    const all = () => draw(left);
    const cancel = whenIdle(() => draw(at.current.part));
    addEventListener("beforeprint", all);
    return () => {
      cancel();
      removeEventListener("beforeprint", all);
    };
  }, [id, left]);
  return left;
}
