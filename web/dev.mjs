// `npm run dev [URL]`: the page, built anew at each visit, before a server that runs already (http://127.0.0.1:8080).

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync } from "node:fs";
import { createServer, request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

const server = new URL(process.argv[2] ?? "http://127.0.0.1:8080");
const folder = mkdtempSync(join(tmpdir(), "backstop-page-"));

/** The policy that src/server/page.rs sends with the page. */
function policy(page) {
  const hash = (tag) => {
    const text = page.split(`<${tag}>`)[1].split(`</${tag}>`)[0];
    return `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
  };
  return (
    `default-src 'none'; script-src ${hash("script")}; style-src ${hash("style")}; connect-src 'self'; img-src data:; ` +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
  );
}

createServer((asked, answer) => {
  if (asked.url === "/") {
    try {
      execFileSync("node", ["build.mjs", folder]);
      const page = readFileSync(join(folder, "page.html"), "utf8");
      answer.writeHead(200, { "content-type": "text/html; charset=utf-8", "content-security-policy": policy(page) });
      answer.end(page);
    } catch (error) {
      answer.writeHead(500).end(String(error));
    }
    return;
  }
  const { host: _host, origin: _origin, ...headers } = asked.headers;
  const options = { method: asked.method, headers: { ...headers, host: server.host } };
  const sent = request(new URL(asked.url, server), options, (got) => {
    answer.writeHead(got.statusCode, got.headers);
    got.pipe(answer);
  });
  sent.on("error", () => answer.destroy());
  answer.on("close", () => sent.destroy());
  asked.pipe(sent);
}).listen(Number(process.env.PORT ?? 8390), "127.0.0.1", function () {
  console.log(`http://127.0.0.1:${this.address().port} before ${server.href}`);
});
