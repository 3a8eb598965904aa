// What there is to know: the keys, and what the page is made of.

import licences from "licences";
import { Dialog } from "./dialog";
import { settings } from "./settings";

const KEYS: [string, string][] = [
  ["↑ in an empty message", "Edit the last message"],
  ["Escape", "Stop the answer; go to the message"],
  ["Ctrl Shift O", "New conversation"],
  ["Ctrl K", "Search conversations"],
  ["↑ ↓ in the list", "Next and previous conversation"],
  ["F2 in the list", "Rename"],
  ["Ctrl B", "Show or hide conversations"],
  ["← → among tokens", "Next and previous token"],
  ["Ctrl ,", "Settings"],
  ["Ctrl /", "These keys"],
];

/** Those that the setting of Enter changes. */
const sending = (): [string, string][] =>
  settings.value.enter
    ? [
        ["Enter", "Send"],
        ["Shift Enter", "New line"],
      ]
    : [
        ["Ctrl Enter", "Send"],
        ["Enter", "New line"],
      ];

export function Keys() {
  return (
    <Dialog name="keys" title="Keys">
      <table class="keys">
        <tbody>
          {[...sending(), ...KEYS].map(([keys, what]) => (
            <tr key={keys}>
              <th scope="row">
                {keys.split(" ").map((key) => (/^[a-z]{2,}$/.test(key) ? ` ${key} ` : <kbd>{key}</kbd>))}
              </th>
              <td>{what}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="faint">On a Mac, ⌘ does what Ctrl does.</p>
    </Dialog>
  );
}

export function About() {
  return (
    <Dialog name="about" title="backstop">
      <p>
        The page of this server. It asks nothing but the server that it came from, and keeps conversations in this
        browser.
      </p>
      <details>
        <summary>Packages within it, and their licences</summary>
        <pre tabIndex={0}>{licences}</pre>
      </details>
    </Dialog>
  );
}
