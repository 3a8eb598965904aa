// A menu behind a button, by the keys that menus have.

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { IconMore } from "./icons";

export interface Item {
  label: string;
  does: () => void;
  danger?: boolean;
  /** Whether the menu stays open. */
  stays?: boolean;
  /** Whether the focus goes back to the button. */
  back?: boolean;
}

/** Closes what is open by a click elsewhere, by Escape, and by the focus that goes away. */
export function useOutside(open: boolean, close: (back: boolean) => void) {
  const place = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!open) return;
    const click = (event: Event) => {
      if (!place.current?.contains(event.target as Node)) close(false);
    };
    const escape = (event: KeyboardEvent) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation();
      close(true);
    };
    addEventListener("pointerdown", click);
    addEventListener("keydown", escape, true);
    return () => {
      removeEventListener("pointerdown", click);
      removeEventListener("keydown", escape, true);
    };
  }, [open]);
  return place;
}

export function Menu({
  label,
  items,
  icon,
  onClose,
}: {
  label: string;
  items: Item[];
  icon?: ComponentChildren;
  onClose?: () => void;
}) {
  const [open, setOpen] = useState(false);
  const button = useRef<HTMLButtonElement>(null);
  const close = (back: boolean) => {
    setOpen(false);
    onClose?.();
    if (back) button.current?.focus();
  };
  const place = useOutside(open, close);
  const all = () => [...place.current!.querySelectorAll<HTMLElement>("[role=menuitem]")];
  useEffect(() => {
    if (open) all()[0]?.focus();
  }, [open, items.length]);
  const move = (event: KeyboardEvent) => {
    const entries = all(),
      at = entries.indexOf(document.activeElement as HTMLElement),
      count = entries.length;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1 + count, Home: 0, End: count - 1 }[event.key];
    if (event.key === "Tab") close(false);
    if (to === undefined || !open) return;
    event.preventDefault();
    event.stopPropagation();
    entries[to % count].focus();
  };
  return (
    <div class={`menu ${open ? "is-open" : ""}`} ref={place} onKeyDown={move}>
      <button
        ref={button}
        type="button"
        class="quiet"
        aria-label={label}
        title={label}
        aria-haspopup="menu"
        aria-expanded={open}
        onClick={() => (open ? close(true) : setOpen(true))}
      >
        {icon ?? <IconMore />}
      </button>
      {open && (
        <div role="menu" aria-label={label} class="popup">
          {items.map((item) => (
            <button
              key={item.label}
              type="button"
              role="menuitem"
              tabIndex={-1}
              class={item.danger ? "danger" : undefined}
              onClick={() => {
                item.does();
                if (!item.stays) close(item.back ?? false);
              }}
            >
              {item.label}
            </button>
          ))}
        </div>
      )}
    </div>
  );
}
