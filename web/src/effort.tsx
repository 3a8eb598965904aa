import { EFFORTS, set, settings } from "./settings";

/** How much the model thinks before it answers. */
export function Effort({ id }: { id: string }) {
  return (
    <select id={id} value={settings.value.effort} onChange={(event) => set({ effort: event.currentTarget.value })}>
      {EFFORTS.map(([value, name]) => (
        <option key={value} value={value}>
          {name}
        </option>
      ))}
    </select>
  );
}
