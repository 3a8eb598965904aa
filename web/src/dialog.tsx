import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { IconClose } from "./icons";
import * as state from "./state";

/** One of the page's dialogs, while it is the open one. */
export function Dialog({
  name,
  title,
  children,
}: {
  name: "settings" | "keys" | "about";
  title: string;
  children: ComponentChildren;
}) {
  const place = useRef<HTMLDialogElement>(null);
  const open = state.dialog.value === name;
  useLayoutEffect(() => {
    if (open) return place.current!.showModal();
    place.current!.close();
    // Where a field of the dialog went away, Chromium leaves what has the focus again without a caret.
    const back = document.activeElement as HTMLElement | null;
    if (back?.matches("input, textarea")) {
      back.blur();
      back.focus();
    }
  }, [open]);
  const close = () => {
    if (open) state.dialog.value = "";
  };
  return (
    <dialog
      ref={place}
      aria-labelledby={`${name}-title`}
      onCancel={close}
      onClose={() => place.current!.open || close()}
      onClick={(event) => event.target === place.current && close()}
    >
      {open && (
        <div class="sheet">
          <div class="heading">
            <h2 id={`${name}-title`}>{title}</h2>
            <button type="button" class="quiet" aria-label="Close" onClick={close}>
              <IconClose />
            </button>
          </div>
          {children}
        </div>
      )}
    </dialog>
  );
}
