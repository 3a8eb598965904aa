// Markdown as elements. No markup of a text is ever parsed: what is HTML in it is shown as it is written, so that nothing a
// model says becomes anything but what is made here.

import { memo } from "preact/compat";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Component, type ComponentChildren } from "preact";
import { Marked, type Token, type Tokens } from "marked";
import { classes, highlighted, type Piece } from "./highlight";
import { IconCheck, IconCopy } from "./icons";
import { extensions, formula } from "./math";
import { decoded } from "./entities";

const marked = new Marked({ gfm: true, breaks: false, async: false, extensions });

/** Elements without attributes that answers use for want of Markdown. */
const PLAIN = new Set(["sub", "sup", "kbd", "mark", "u", "b", "i", "s", "small"]);

/** So many blocks at the end of a growing text are read anew: what comes may still become a part of them. */
const OPEN = 3;

/** Quotes and lists so deep within each other that the reader's stack would not hold them. */
const DEEP = /^[ \t]*(?:>[ \t]*|(?:[-*+]|\d+[.)])[ \t]+){64}/m;

/** The blocks of a text, or nothing where it is nested too deep to be read. */
function lexed(text: string): Token[] | undefined {
  if (DEEP.test(text)) return;
  try {
    return marked.lexer(text);
  } catch {
    return;
  }
}

/** A text as it is written, as one block. */
const plain = (text: string): Token[] => [{ type: "html", raw: text, text, block: true, pre: false }];

/** Shows a text as it is written where what shows it otherwise fails. */
export class Guard extends Component<{ text: string; children: ComponentChildren }, { failed: boolean }> {
  state = { failed: false };

  static getDerivedStateFromError() {
    return { failed: true };
  }

  render() {
    return this.state.failed ? <p class="raw">{this.props.text}</p> : this.props.children;
  }
}

/** The blocks of a text. Of one that grows (`live`) those that are done are not read again at each token. */
function useBlocks(text: string, live: boolean): Token[] {
  const last = useRef<{ text: string; tokens: Token[]; live: boolean }>({ text: "", tokens: [], live: false });
  return useMemo(() => {
    const whole = text.replace(/\r\n?/g, "\n");
    const { text: was, tokens } = last.current;
    let kept: Token[] = [];
    if (live && last.current.live && whole.startsWith(was)) {
      const solid = tokens.flatMap((token, i) => (token.type === "space" ? [] : [i]));
      kept = tokens.slice(0, solid.at(-OPEN) ?? 0);
    }
    const from = kept.reduce((sum, token) => sum + token.raw.length, 0);
    const rest = lexed(whole.slice(from));
    const all = rest ? [...kept, ...rest] : plain(whole);
    last.current = {
      text: whole,
      tokens: all,
      live: live && rest !== undefined && all.reduce((sum, { raw }) => sum + raw.length, 0) === whole.length,
    };
    return all;
  }, [text, live]);
}

export function Markdown({ text, live = false }: { text: string; live?: boolean }) {
  return (
    <div class="markdown">
      <Guard text={text}>
        <Blocks text={text} live={live} />
      </Guard>
    </div>
  );
}

function Blocks({ text, live }: { text: string; live: boolean }) {
  const blocks = useBlocks(text, live);
  return (
    <>
      {blocks.map((token, i) => (
        <Block key={i} token={token} raw={token.raw} />
      ))}
    </>
  );
}

/** While a text grows, only its last block is made anew. */
const Block = memo(
  ({ token }: { token: Token; raw: string }) => <>{block(token)}</>,
  (was, is) => was.raw === is.raw && was.token.type === is.token.type,
);

const list = (tokens: Token[] | undefined) =>
  tokens?.map((token, i) => <Block key={i} token={token} raw={token.raw} />);

function block(token: Token): ComponentChildren {
  switch (token.type) {
    case "heading": {
      // The page's own headings are above them.
      const Tag = `h${Math.min(6, token.depth + 2)}` as "h3";
      return <Tag class={`h${token.depth}`}>{inline(token.tokens)}</Tag>;
    }
    case "paragraph":
      return <p>{inline(token.tokens)}</p>;
    case "text":
      return token.tokens ? inline(token.tokens) : decoded(token.text);
    case "code":
      return <Code code={token.text} language={(token.lang ?? "").trim().split(/\s/)[0]} />;
    case "blockquote":
      return <blockquote>{list(token.tokens)}</blockquote>;
    case "hr":
      return <hr />;
    case "list":
      return <List token={token as Tokens.List} />;
    case "table":
      return <Table token={token as Tokens.Table} />;
    case "math":
      return <Formula tex={token.text} display={token.display} />;
    case "html":
      return <p class="raw">{token.raw.trimEnd()}</p>;
    case "space":
    case "def":
      return null;
    default:
      return inline([token]);
  }
}

function List({ token }: { token: Tokens.List }) {
  const items = token.items.map((item, i) => (
    <li key={i} class={item.task ? "task" : undefined}>
      {item.task && !item.tokens.some(({ type }) => type === "checkbox") && (
        <input type="checkbox" checked={item.checked} disabled aria-label={item.checked ? "done" : "to do"} />
      )}
      {list(item.tokens)}
    </li>
  ));
  return token.ordered ? <ol start={token.start === "" ? 1 : token.start}>{items}</ol> : <ul>{items}</ul>;
}

function Table({ token }: { token: Tokens.Table }) {
  const cell = (cell: Tokens.TableCell, i: number) => {
    const Tag = cell.header ? "th" : "td";
    return (
      <Tag key={i} class={cell.align ? `to-${cell.align}` : undefined} scope={cell.header ? "col" : undefined}>
        {inline(cell.tokens)}
      </Tag>
    );
  };
  return (
    <div class="wide" tabIndex={0} role="region" aria-label="Table">
      <table>
        <thead>
          <tr>{token.header.map(cell)}</tr>
        </thead>
        <tbody>
          {token.rows.map((row, i) => (
            <tr key={i}>{row.map(cell)}</tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function inline(tokens: Token[] | undefined): ComponentChildren[] {
  const out: ComponentChildren[] = [];
  const all = tokens ?? [];
  for (let i = 0; i < all.length; i++) {
    const token = all[i];
    if (token.type === "html") {
      if (/^<br\s*\/?>$/i.test(token.raw)) {
        out.push(<br />);
        continue;
      }
      const name = /^<([a-z]+)>$/i.exec(token.raw)?.[1].toLowerCase();
      const end =
        name && PLAIN.has(name) ? all.findIndex((other, j) => j > i && other.raw.toLowerCase() === `</${name}>`) : -1;
      if (name && end > 0) {
        const Tag = name as "sub";
        out.push(<Tag>{inline(all.slice(i + 1, end))}</Tag>);
        i = end;
        continue;
      }
    }
    out.push(one(token));
  }
  return out;
}

function one(token: Token): ComponentChildren {
  switch (token.type) {
    case "text":
      return token.tokens ? inline(token.tokens) : decoded(token.text);
    case "escape":
      return token.text;
    case "strong":
      return <strong>{inline(token.tokens)}</strong>;
    case "em":
      return <em>{inline(token.tokens)}</em>;
    case "del":
      return <del>{inline(token.tokens)}</del>;
    case "codespan":
      return <code>{token.text}</code>;
    case "br":
      return <br />;
    case "checkbox":
      return <input type="checkbox" checked={token.checked} disabled aria-label={token.checked ? "done" : "to do"} />;
    case "link":
      return (
        <Link href={token.href} title={token.title}>
          {inline(token.tokens)}
        </Link>
      );
    case "image":
      return <Image href={token.href} text={token.text} />;
    case "math":
      return <Formula tex={token.text} display={token.display} />;
    default:
      return token.raw;
  }
}

/** The address of a link that may be followed: of another place, by its scheme. */
function outward(href: string): string | undefined {
  if (!/^(https?:\/\/|mailto:)/i.test(href)) return;
  try {
    return new URL(href).href;
  } catch {
    return;
  }
}

function Link({ href, title, children }: { href: string; title?: string; children: ComponentChildren }) {
  const to = outward(href);
  if (!to)
    return (
      <span class="dead" title={href.slice(0, 200)}>
        {children}
      </span>
    );
  return (
    <a href={to} title={title ? `${title} (${to})` : to} target="_blank" rel="noopener noreferrer nofollow">
      {children}
    </a>
  );
}

/** Only what a text brings along is shown: an image of elsewhere would tell its server that it was read. */
function Image({ href, text }: { href: string; text: string }) {
  if (/^data:image\/(png|jpeg|gif|webp);base64,[a-z0-9+/=]+$/i.test(href)) return <img src={href} alt={text} />;
  const label = `Image: ${decoded(text) || href.slice(0, 80)}`;
  return <Link href={href}>{label}</Link>;
}

function Formula({ tex, display }: { tex: string; display: boolean }) {
  const place = useRef<HTMLSpanElement>(null);
  useEffect(() => place.current!.replaceChildren(formula(tex, display)), [tex, display]);
  return <span ref={place} class={display ? "display-math" : "math"} />;
}

function pieces(all: Piece[]): ComponentChildren {
  return all.map((piece) => {
    if (typeof piece === "string") return piece;
    return piece.scope ? <span class={classes(piece.scope)}>{pieces(piece.children)}</span> : pieces(piece.children);
  });
}

export function Code({ code, language }: { code: string; language: string }) {
  const colours = useMemo(() => highlighted(code, language), [code, language]);
  return (
    <figure class="code">
      <figcaption>
        <span>{language || "text"}</span>
        <Copy text={code} label="Copy code" />
      </figcaption>
      <pre tabIndex={0}>
        <code>{colours ? pieces(colours) : code}</code>
      </pre>
    </figure>
  );
}

/** Copies a text, and says that it did. */
export function Copy({ text, label }: { text: string; label: string }) {
  const [done, setDone] = useState<"" | "Copied" | "Not copied">("");
  useEffect(() => {
    if (!done) return;
    const timer = setTimeout(() => setDone(""), 2000);
    return () => clearTimeout(timer);
  }, [done]);
  const copy = async () => setDone((await copied(text)) ? "Copied" : "Not copied");
  return (
    <button type="button" class="quiet" aria-label={done || label} title={done || label} onClick={copy}>
      {done === "Copied" ? <IconCheck /> : <IconCopy />}
      {done && (
        <span class="told" role="status">
          {done}
        </span>
      )}
    </button>
  );
}

/** By the clipboard's interface or, on an address that is not trusted with it (http beyond this machine), by a selection. */
async function copied(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "hidden";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
