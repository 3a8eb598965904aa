// TeX as MathML, made as nodes: no markup is parsed.

import temml from "temml";

const cache = new Map<string, Node>();
const MOST = 500;

/** The formula, or what was written where it is none. */
export function formula(tex: string, display: boolean): Node {
  const key = (display ? "d" : "i") + tex;
  let node = cache.get(key);
  if (!node) {
    node = made(tex, display);
    if (cache.size >= MOST) cache.clear();
    cache.set(key, node);
  }
  return node.cloneNode(true);
}

function made(tex: string, display: boolean): Node {
  // What is longer than any formula is none, and would take long.
  if (tex.length > 5000) return document.createTextNode(tex);
  let node: Node;
  try {
    node = temml
      .__renderToMathMLTree(tex, {
        displayMode: display,
        throwOnError: true,
        trust: false,
        maxExpand: 500,
        maxSize: [20, 20],
        annotate: true,
      })
      .toNode();
  } catch {
    return document.createTextNode(display ? `$$${tex}$$` : `$${tex}$`);
  }
  if (node instanceof Element) {
    // Labels would become names in the document.
    for (const element of [node, ...node.querySelectorAll("*")])
      ["id", "href", "src"].forEach((name) => element.removeAttribute(name));
  }
  return node;
}

const NEAR = /^\$(?!\s|\$)((?:\\.|[^\\$\n])+?)(?<!\s)\$(?!\d)/;
const FAR = /^\$\$([\s\S]+?)\$\$/;
const ROUND = /^\\\(([\s\S]+?)\\\)/;
const SQUARE = /^\\\[([\s\S]+?)\\\]/;

/** Where a formula may begin in a text. */
const beginning = (text: string) => {
  const at = text.search(/\$|\\\(|\\\[/);
  return at < 0 ? undefined : at;
};

/** Where the first paragraph of a text ends: what is behind it is looked at when its turn comes. */
const paragraph = (text: string) => {
  const at = text.indexOf("\n\n");
  return at < 0 ? text.length : at;
};

/** Formulas in Markdown, for marked: `$…$` and `\(…\)` in a line, `$$…$$` and `\[…\]` by themselves. */
export const extensions = [
  {
    name: "display",
    level: "block" as const,
    start: (text: string) => /^ {0,3}(\$\$|\\\[)/m.exec(text.slice(0, paragraph(text)))?.index,
    tokenizer(text: string) {
      const found =
        /^ {0,3}\$\$([\s\S]+?)\$\$[ \t]*(?:\n|$)/.exec(text) ?? /^ {0,3}\\\[([\s\S]+?)\\\][ \t]*(?:\n|$)/.exec(text);
      if (found) return { type: "math", raw: found[0], text: found[1].trim(), display: true };
    },
  },
  {
    name: "inline",
    level: "inline" as const,
    start: beginning,
    tokenizer(text: string) {
      const far = FAR.exec(text) ?? SQUARE.exec(text);
      if (far) return { type: "math", raw: far[0], text: far[1].trim(), display: true };
      const near = ROUND.exec(text) ?? NEAR.exec(text);
      if (near) return { type: "math", raw: near[0], text: near[1].trim(), display: false };
    },
  },
];
