// The tests of the tests: on each small page one thing is wrong, and exactly the check that is meant for it complains.
import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { launch } from "./browser.mjs";
import { moveEverything, movePlayers, search } from "./controls.mjs";
import { lighthouse } from "./lighthouse.mjs";
import { checkMarkup, elementsOf, pagesOf } from "./markup.mjs";
import { serve } from "./serve.mjs";
import { checkAxe, checkBytes, checkLayout, checkScrolling, checkStillness, open } from "./visit.mjs";

const HEAD = `<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>A page</title><link rel="icon" href="data:,">
<meta name="description" content="A page on which nothing is wrong, so that no check of the suite may complain of it.">
<meta property="og:title" content="A page"><meta property="og:description" content="A page."><meta property="og:type" content="article">
<meta name="twitter:card" content="summary"><meta name="theme-color" content="#fff">`;
const PLAYER = `<figure class="companion-player"><canvas width="40" height="40" role="img" aria-label="a square"></canvas>
<button type="button">Play</button><input type="range" min="0" max="9" value="9" aria-label="frame"><output>9</output></figure>
<script>{ const [canvas, button, slider, output] = ["canvas", "button", "input", "output"].map((tag) => document.querySelector(tag));
const draw = () => { canvas.width = 40; output.value = slider.value; canvas.getContext("2d").fillRect(0, 0, 4 * slider.value + 1, 9); };
let timer = 0; const stop = () => { clearInterval(timer); timer = 0; button.textContent = "Play"; };
button.onclick = () => { if (timer) return stop(); button.textContent = "Pause"; timer = setInterval(() => { slider.value = (+slider.value + 1) % 10; draw(); }, 60); };
slider.oninput = draw; draw(); }</script>`;
const TEXT = `<p>Words, and <a href="other.html#there">a link</a>, and <img src="dot.png" alt="a blue dot" width="8" height="8">.</p>`;
const pageOf = ({ head = HEAD, body = `<h1>A page</h1>${TEXT}${PLAYER}`, lang = ' lang="en"' } = {}) =>
  `<!DOCTYPE html><html${lang}><head>${head}</head><body><div class="skip-link"><a href="#main">Skip to the text</a></div><main id="main">${body}</main></body></html>`;
const DOT = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR42mNgYPiPFTEMLQkA3Lg/wXyOcqQAAAAASUVORK5CYII=", "base64");

let browser;
before(async () => { browser = await launch(); });
after(() => browser.close());

/** The names of the checks that complain of a page, each once, sorted; `more` are files beside it. */
async function complaintsOf(html, { more = {}, keep = false, visit = everything } = {}) {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), "pages-"));
  const other = pageOf({ head: HEAD.replaceAll("A page", "Another page"), body: '<h1 id="there">Another</h1>' });
  for (const [name, content] of Object.entries({ "page.html": html, "other.html": other, "dot.png": DOT, ...more })) {
    fs.writeFileSync(path.join(root, name), content);
  }
  const found = [], say = (check, text) => found.push({ check, text });
  checkMarkup(root, pagesOf(root), (check, page, text) => page === "page.html" && say(check, text));
  const server = await serve(root), context = await browser.createBrowserContext();
  await visit(context, server.base, say).finally(() => context.close());
  server.close();
  fs.rmSync(root, { recursive: true });
  return keep ? found : [...new Set(found.map((complaint) => complaint.check))].sort();
}

async function everything(context, base, say) {
  const { page, cost } = await open(context, base, "page.html", { width: 390, still: true }, say);
  checkBytes(cost, say);
  await checkStillness(page, say);
  await checkScrolling(page, say);
  await checkLayout(page, say);
  await checkAxe(page, say);
  await moveEverything(page, say);
}

const body = (html) => pageOf({ body: `<h1>A page</h1>${html}` });
const script = (code) => body(`${TEXT}<script>${code}</script>`);
const SQUARE = '<canvas width="40" height="40" role="img" aria-label="a square"></canvas>';
const deadPlayer = (control) => body(`<figure class="companion-player">${SQUARE}${control}</figure>`);

const CASES = {
  "nothing is wrong": [pageOf(), []],
  "an error on the console": [script('console.error("no")'), ["console"]],
  "a warning on the console": [script('console.warn("no")'), ["console"]],
  "a script that throws": [script("nowhere()"), ["console"]],
  "a file that is missing": [script('fetch("none.json")'), ["console", "requests"]],
  "another host": [script('new Image().src = "http://localhost:9/x.png"'), ["console", "other hosts", "requests"]],
  "a link to no page": [body('<a href="none.html">none</a>'), ["links"]],
  "a link to no anchor": [body('<a href="other.html#nowhere">nowhere</a>'), ["links"]],
  "a link to no anchor of the same page": [body('<a href="#nowhere">nowhere</a>'), ["links"]],
  "an image that is no image": [body('<img src="bad.png" alt="bad" width="8" height="8">'), ["images"], { "bad.png": "no picture" }],
  "an image that is missing": [body('<img src="gone.png" alt="gone" width="8" height="8">'), ["console", "images", "links", "requests"]],
  "no alt text": [body('<img src="dot.png" width="8" height="8">'), ["alt text", "axe"]],
  "a file name for alt text": [body('<img src="dot.png" alt="dot.png" width="8" height="8">'), ["alt text"]],
  "an image without a size": [body('<img src="dot.png" alt="a dot">'), ["image size"]],
  "an image far below that is not lazy": [body(`${TEXT}<div style="height:3000px"></div><img src="dot.png" alt="a dot" width="8" height="8">`), ["lazy images"]],
  "two things of one id": [body('<p id="a">one</p><p id="a">two</p>'), ["unique ids"]],
  "no description": [pageOf({ head: HEAD.replace(/<meta name="description".*/, "") }), ["head"]],
  "a description that is too long": [pageOf({ head: HEAD.replace("nothing is wrong", "nothing is wrong ".repeat(9)) }), ["head"]],
  "the title of another page": [pageOf({ head: HEAD.replace("<title>A page", "<title>Another page") }), ["head"]],
  "no card for a shared link": [pageOf({ head: HEAD.replace(/<meta name="twitter:card".*?>/, "") }), ["head"]],
  "no language": [pageOf({ lang: "" }), ["axe", "head"]],
  "a level of headings is skipped": [body("<h3>Third</h3>"), ["headings"]],
  "a path of the machine": [body("<p>= PosixPath('there')</p>"), ["machine path"]],
  "two titles": [body("<h1>Second</h1>"), ["headings"]],
  "wider than a phone": [body('<div style="width:600px">wide</div>'), ["phone width"]],
  "a formula that failed": [body('<p><mjx-merror title="Undefined control sequence">x</mjx-merror></p>'), ["formulas"]],
  "a formula that is not typeset": [body('<p class="math">\\(x\\)</p>'), ["formulas"]],
  "grey on grey": [body('<p style="color:#aaa;background:#ccc">pale</p>'), ["axe"]],
  "a button without a name": [body('<figure class="companion-player"><button></button></figure>'), ["axe", "controls"]],
  "a text that jumps": [body(`<p id="late"></p><p style="height:500px">below</p><script>setTimeout(() => { late.style.height = "400px"; }, 300)</script>`), ["layout shift"]],
  "over a megabyte": [script(""), ["first load"], { "big.bin": Buffer.alloc(1_100_000, 7) }, '<script>fetch("big.bin")</script>'],
  "moves though asked not to": [body('<style>@keyframes k{to{opacity:.9}}p{animation:k 1s infinite}</style><p>moving</p>'), ["reduced motion"]],
  "plays by itself": [body(`${SQUARE}<script>const c = document.querySelector("canvas"); setInterval(() => { c.width = 40; c.getContext("2d").fillRect(0, 0, Math.random() * 40, 9); }, 50)</script>`), ["reduced motion"]],
  "a slider that does nothing": [deadPlayer('<input type="range" max="9" aria-label="dead">'), ["controls"]],
  "a button that does nothing": [deadPlayer('<button type="button">Play</button>'), ["controls"]],
  "a select that does nothing": [deadPlayer('<select aria-label="dead"><option>a</option><option>b</option></select>'), ["controls"]],
  "a checkbox that does nothing": [deadPlayer('<input type="checkbox" aria-label="dead">'), ["controls"]],
  "a number that does nothing": [deadPlayer('<input type="number" value="3" max="9" aria-label="dead">'), ["controls"]],
  "a disabled control that nothing enables": [deadPlayer('<button type="button" disabled>Never</button>'), ["controls"]],
  "a control outside the order of Tab": [body(PLAYER.replace('type="range"', 'type="range" tabindex="-1"')), ["controls"]],
  "a slider for the mouse alone": [body(PLAYER.replace("slider.oninput = draw", "slider.onpointerup = draw")), ["controls"]],
  "a Play button that does not stop": [body(PLAYER.replace("return stop()", "return")), ["controls"]],
  "a control that the suite does not know": [body("<button>Strange</button>"), ["controls"]],
  "a fold that does not open": [body('<details><summary>Show</summary>code</details><script>document.querySelector("summary").onclick = (e) => e.preventDefault()</script>'), ["controls"]],
  "a solution that does not open": [body('<div class="admonition"><p class="admonition-title">Solution <button class="toggle-button" aria-expanded="false">open</button></p><p>answer</p></div>'), ["controls"]],
  "a copy button that does not copy": [body('<button class="copybtn">copy</button>'), ["controls"]],
  "a theme switch that does nothing": [body('<button class="theme-switch-button">theme</button>'), ["controls"]],
  "no skip link": [pageOf().replace(/<div class="skip-link">.*?<\/div>/, ""), ["controls"]],
};

describe("broken pages", { concurrency: 3 }, () => {
  for (const [name, [html, expected, more, tail = ""]] of Object.entries(CASES)) {
    test(name, { timeout: 120_000 }, async () => {
      assert.deepEqual(await complaintsOf(html.replace("</main>", `${tail}</main>`), { more }), expected);
    });
  }
});

test("a control that one choice disables is moved under the other", async () => {
  const html = body(`<figure class="companion-player">${SQUARE}<select aria-label="kind"><option value="9">plain</option><option value="20">noisy</option></select>
    <input type="range" max="9" value="0" aria-label="noise" disabled></figure><script>{ const [c, s, i] = ["canvas", "select", "input"].map((t) => document.querySelector(t));
    const draw = () => { i.disabled = s.value === "9"; c.width = 40; c.getContext("2d").fillRect(0, 0, +s.value + +i.value, 9); }; s.oninput = i.oninput = draw; draw(); }</script>`);
  assert.deepEqual(await complaintsOf(html, { keep: true }), []);
});

test("a chapter beside the reading path", () => {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), "pages-")), found = [];
  fs.mkdirSync(path.join(root, "book"));
  fs.writeFileSync(path.join(root, "book/01-first.html"), body("<p>Words.</p>"));
  checkMarkup(root, pagesOf(root), (check, page, text) => found.push(`${check}: ${text}`));
  fs.rmSync(root, { recursive: true });
  assert.deepEqual(found, ["reading path: no previous and no next page", "reading path: a chapter without a link to the glossary"]);
});

test("every control of a player is counted", async () => {
  let moved = 0;
  const visit = async (context, base, say) => {
    const { page } = await open(context, base, "page.html", { width: 390 }, say);
    moved = await movePlayers(page, say);
  };
  assert.deepEqual(await complaintsOf(pageOf(), { visit }), []);
  assert.equal(moved, 2);
});

test("a search without results", async () => {
  const dialog = '<dialog id="pst-search-dialog"><form action="other.html"><input name="q"></form></dialog>';
  const visit = async (context, base, say) => {
    const { page } = await open(context, base, "page.html", { width: 1280 }, say);
    await page.evaluate(() => document.querySelector("dialog").showModal());
    await search(page, "schedule", say);
  };
  assert.deepEqual(await complaintsOf(body(dialog), { visit }), ["search"]);
});

test("Lighthouse under 95", async () => {
  const poor = body('<img src="dot.png" width="8" height="8"><button></button><a href="other.html"></a>');
  const visit = async (context, base, say) => { await lighthouse(browser, `${base}/page.html`, (text) => say("lighthouse", text)); };
  const found = await complaintsOf(poor, { visit, keep: true });
  assert.match(found.find(({ check }) => check === "lighthouse").text, /accessibility \d+, under 95: .*alt/);
});

test("the elements of a page, with their text", () => {
  const [p, b] = elementsOf("<p>one <b>two</b><script>'<i>'</script></p>");
  assert.deepEqual([p.tag, p.text, b.text, b.inside[0]], ["p", "one two'<i>'", "two", "p"]);
});
