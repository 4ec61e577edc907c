// node check.mjs [folder of the built book] [part of a page's name]: every check on every page, a table, and 1 if one failed.
import { readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { launch } from "./browser.mjs";
import { moveEverything, moveTheme, search } from "./controls.mjs";
import { lighthouse } from "./lighthouse.mjs";
import { checkMarkup, pagesOf } from "./markup.mjs";
import { serve } from "./serve.mjs";
import { LIMITS, checkAxe, checkBytes, checkLayout, checkScrolling, checkStillness, open } from "./visit.mjs";

const here = path.dirname(fileURLToPath(import.meta.url));
const root = path.resolve(process.argv[2] ?? path.join(here, "../../_build/html")), part = process.argv[3] ?? "";
const AUDITED = ["book/index.html", "book/05-full-ddpm.html", "book/coming-from.html"];
const NEEDED = ["theme switch", "left sidebar", "search field", "skip link"]; // on every page of the book
const SOMEWHERE = ["show code", "solution", "copy", "print", "menu", "full screen", "right sidebar", "player"];

const complaints = [], seen = new Set();
const complain = (check, where, text, fix) => {
  const line = `${where}: ${check}: ${text}\n    -> ${fix}`;
  if (!seen.has(line)) { seen.add(line); complaints.push({ check, line }); }
};
const worst = new Map(); // a figure's name -> { value, page, note }
const measure = (name, value, page, note = "") => {
  if (!(worst.get(name)?.value >= value)) worst.set(name, { value, page, note });
};
const total = {};

const count = (worked) => { for (const name in worked) total[name] = (total[name] ?? 0) + worked[name]; };

async function visitPhone(context, base, page_, found) {
  const say = (check, text, fix) => found(check, `${page_} at 390 px, light`, text, fix);
  const { page, cost } = await open(context, base, page_, { width: 390, still: true, slow: true }, say);
  const { bytes, figures, parts } = checkBytes(cost, say);
  measure("first load beside figures", bytes, page_, parts);
  measure("figures of a first load", figures, page_);
  await checkStillness(page, say);
  const { shift, worst: moved } = await checkScrolling(page, say);
  measure("layout shift", shift, page_, moved.join("; "));
  for (const width of [390, 320]) {
    await page.setViewport({ width, height: 844 });
    await checkLayout(page, (check, text, fix) => found(check, `${page_} at ${width} px`, text, fix));
  }
  await page.setViewport({ width: 390, height: 844 });
  count(await moveTheme(page, say));
  for (const rest of await checkAxe(page, say)) count({ [`axe, told only: ${rest.replace(/, .*/, ")")}`]: 1 });
}

async function visitDesk(context, base, page_, found) {
  const say = (check, text, fix) => found(check, `${page_} at 1280 px, dark`, text, fix);
  const { page } = await open(context, base, page_, { width: 1280, height: 800, scheme: "dark" }, say);
  await checkLayout(page, say);
  await checkAxe(page, say);
  const worked = await moveEverything(page, say);
  count(worked);
  for (const name of NEEDED) if (!worked[name]) say("controls", `the page has no ${name}`, "did the theme rename it? see controls.mjs");
  if (page_ === AUDITED[1]) await search(page, "schedule", say);
}

const started = Date.now(), pages = pagesOf(root).filter((name) => name.includes(part)).sort();
if (!pages.length) throw new Error(`${root} has no pages. Build the book first: make book`);
const figures = checkMarkup(root, pages, complain, { base: /^  baseurl: "?([^"\s#]*)/m.exec(readFileSync(path.join(here, "../../_config.yml"), "utf8"))[1] });
const server = await serve(root), browser = await launch();
const jobs = pages.flatMap((page) => [visitPhone, visitDesk].map((visit) => ({ page, visit })));
const times = [];
const visit = async (job) => {
  const found = [], context = await browser.createBrowserContext();
  await job.visit(context, server.base, job.page, (...complaint) => found.push(complaint))
    .catch((error) => found.push(["visit", job.page, error.stack.slice(0, 300), "the visit broke off"]));
  await context.close();
  return found;
};
await Promise.all(Array.from({ length: Number(process.env.WORKERS ?? 2) }, async () => {
  for (let job = jobs.shift(); job; job = jobs.shift()) {
    const from = Date.now();
    // A busy machine may break a visit off, or be too slow for a control: what a second visit finds as well is complained of.
    const first = new Set((await visit(job)).map(([check]) => check));
    if (first.size) for (const complaint of await visit(job)) if (first.has(complaint[0])) complain(...complaint);
    times.push([job.visit.name, job.page, (Date.now() - from) / 1000]);
  }
}));
if (!part) for (const name of SOMEWHERE) if (!total[name]) complain("controls", "the book", `has no working ${name}`, "see controls.mjs");
const audits = [];
for (const page of AUDITED.filter((name) => pages.includes(name))) {
  const scores = await lighthouse(browser, `${server.base}/${page}`, (text, fix) => complain("lighthouse", page, text, fix));
  audits.push([page, scores]);
}
await browser.close();
server.close();
report();

function report() {
  for (const { line } of complaints) console.log(line);
  const failed = {};
  for (const { check } of complaints) failed[check] = (failed[check] ?? 0) + 1;
  const row = (...cells) => console.log(`| ${cells.join(" | ")} |`);
  row("check", "figure", "worst page, and why");
  row("---", "---", "---");
  row("pages, each on a phone (light) and a desk (dark)", pages.length, "");
  row("links and addresses; images", `${figures.links}; ${figures.images}`, "");
  row("links to the glossary in a chapter, at least", figures.terms, "");
  for (const [name, { value, page, note }] of worst) row(name, value < 10 ? value.toFixed(3) : `${Math.round(value / 1000)} kB`, `${page} (${note})`);
  for (const [name, count] of Object.entries(total).sort()) row(name, count, "");
  for (const [page, scores] of audits) row("Lighthouse", Object.entries(scores).map(([k, v]) => `${k} ${v}`).join(", "), page);
  for (const [name, count] of Object.entries(failed)) row(`FAILED: ${name}`, count, "");
  if (process.env.TIMES) for (const [name, page, s] of times.sort((a, b) => b[2] - a[2]).slice(0, 12)) console.log(name, page, s.toFixed(1), "s");
  console.log(`limits: first load ${LIMITS.bytes / 1000} kB, layout shift ${LIMITS.shift}; ${Math.round((Date.now() - started) / 1000)} s`);
  console.log(`${Object.keys(failed).length ? "FAILED" : "passed"}: ${complaints.length} complaints on ${pages.length} pages`);
  process.exitCode = complaints.length ? 1 : 0;
}
