// One visit of one page in the browser: what goes wrong while it loads, how it is laid out, and what axe says.
import fs from "node:fs";
import { createRequire } from "node:module";

const AXE = fs.readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
export const LIMITS = { bytes: 1_000_000, shift: 0.1 };
const FIGURE = /^image\//;

/** Open a page. `say(check, text, fix)` takes complaints, also those that come up later. Gives the page and what it cost. */
export async function open(context, base, path, { width, height = 844, scheme = "light", still = false, slow = false }, say) {
  const page = await context.newPage();
  const session = await page.createCDPSession();
  await session.send("Emulation.setFocusEmulationEnabled", { enabled: true }); // keys reach it though others are open
  await session.send("Network.enable");
  if (slow) { // a telephone network: 4 Mbit/s, 100 ms
    await session.send("Network.emulateNetworkConditions", { offline: false, latency: 100, downloadThroughput: 5e5, uploadThroughput: 1e5 });
  }
  await page.setViewport({ width, height });
  await page.emulateMediaFeatures([
    { name: "prefers-color-scheme", value: scheme },
    { name: "prefers-reduced-motion", value: still ? "reduce" : "no-preference" },
  ]);
  await page.evaluateOnNewDocument(() => {
    window.shifts = [];
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) if (!entry.hadRecentInput) {
        const [first] = entry.sources.map((source) => source.node).filter(Boolean), parent = first?.parentElement;
        window.shifts.push({ value: entry.value, what: `<${(first?.tagName ? first : parent)?.cloneNode().outerHTML?.slice(1, 100)}` });
      }
    }).observe({ type: "layout-shift", buffered: true });
  });
  const cost = new Map(); // request -> { name, type, bytes }
  session.on("Network.responseReceived", ({ requestId, response }) =>
    cost.set(requestId, { name: response.url.replace(/.*\//, "").replace(/\?.*/, ""), type: response.mimeType, bytes: 0 }));
  session.on("Network.loadingFinished", ({ requestId, encodedDataLength }) => {
    if (cost.has(requestId)) cost.get(requestId).bytes = encodedDataLength;
  });
  listen(page, base, say);
  await page.goto(`${base}/${path}`, { waitUntil: "networkidle0", timeout: 60_000 });
  await page.evaluate(() => window.MathJax?.startup?.promise);
  return { page, cost };
}

/** Complain of everything on the console, errors of scripts, and requests that fail or leave the book. */
function listen(page, base, say) {
  page.on("console", (message) => {
    if (["error", "warn", "warning"].includes(message.type())) say("console", `${message.type()}: ${message.text()}`, "find the script that says so");
  });
  page.on("pageerror", (error) => say("console", `uncaught: ${error.message}`, "mend the script"));
  page.on("requestfailed", (request) => say("requests", `${request.url()} ${request.failure()?.errorText}`, "is the file in the book?"));
  page.on("response", (answer) => answer.status() >= 400 && say("requests", `${answer.url()} answers ${answer.status()}`, "is the file in the book?"));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(base) && !/^(data|blob|about):/.test(url)) say("other hosts", url, "serve the file with the book, from book/_static");
  });
}

/** The first load, compressed: bytes without figures, bytes of figures, and the largest parts. */
export function checkBytes(cost, say) {
  const files = [...cost.values()], sum = (list) => list.reduce((total, file) => total + file.bytes, 0);
  const bytes = sum(files.filter((file) => !FIGURE.test(file.type)));
  const parts = files.sort((a, b) => b.bytes - a.bytes).slice(0, 5).map((f) => `${f.name} ${Math.round(f.bytes / 1000)} kB`).join(", ");
  if (bytes > LIMITS.bytes) say("first load", `${bytes} bytes beside its figures, over ${LIMITS.bytes}: ${parts}`, "load less, or later");
  return { bytes, figures: sum(files) - bytes, parts };
}

/** Whether the page is wider than the screen, and which elements stick out. */
export async function checkLayout(page, say) {
  const problems = await page.evaluate(() => {
    const wide = document.documentElement.clientWidth, found = [];
    if (document.documentElement.scrollWidth > wide) found.push(`the page is ${document.documentElement.scrollWidth} px wide`);
    const scrolls = (e) => e && e !== document.body && (/auto|scroll|hidden|clip/.test(getComputedStyle(e).overflowX)
      && !e.matches("main, .bd-content, .bd-article, .bd-article-container") || scrolls(e.parentElement));
    for (const e of document.querySelectorAll("main *")) {
      const box = e.getBoundingClientRect();
      if (box.width > 1 && box.right > wide + 1 && getComputedStyle(e).visibility !== "hidden" && !scrolls(e.parentElement)) {
        found.push(`<${e.cloneNode().outerHTML.slice(1, 80)} ends at ${Math.round(box.right)} px: ${e.textContent.trim().slice(0, 40)}`);
      }
    }
    return found.slice(0, 5);
  });
  for (const text of problems) say("phone width", text, "let it wrap, or scroll inside its own box (custom.css)");
  return problems.length;
}

/** Scroll to the end as a reader does, then: shifts of the layout, images that did not come, formulas that failed. */
export async function checkScrolling(page, say) {
  const { shift, worst, broken, formulas, eager } = await page.evaluate(async () => {
    const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)));
    const screen = innerHeight, first = document.querySelector(".bd-article img") ?? document.images[0];
    const eager = [...document.images].filter((e) => e !== first && e.loading !== "lazy" && e.getBoundingClientRect().top > 2 * screen);
    for (let y = 0; y < document.documentElement.scrollHeight; y += screen) { scrollTo(0, y); await frame(); }
    const late = [...document.images].filter((e) => e.checkVisibility()); // an image in a closed menu is not asked for
    await Promise.race([Promise.all(late.map((e) => e.decode().catch(() => 0))), new Promise((done) => setTimeout(done, 3000))]);
    await frame();
    const shifts = window.shifts, shift = shifts.reduce((total, entry) => total + entry.value, 0);
    return {
      shift, worst: shifts.sort((a, b) => b.value - a.value).slice(0, 3).map((e) => `${e.value.toFixed(3)} ${e.what}`),
      broken: late.filter((e) => !e.complete || !e.naturalWidth).map((e) => e.getAttribute("src")),
      formulas: [...document.querySelectorAll("mjx-merror, .MathJax_Error")].map((e) => e.getAttribute("title") || e.textContent)
        .concat([...document.querySelectorAll(".math:not(:has(mjx-container)):not(.mjx-container)")].map((e) => `not typeset: ${e.textContent}`)),
      eager: eager.map((e) => e.getAttribute("src")),
    };
  });
  if (shift >= LIMITS.shift) say("layout shift", `${shift.toFixed(3)} in all, mostly ${worst.join("; ")}`, "give what arrives late its size from the start");
  for (const src of broken) say("images", `${src} is not shown`, "is the file in the book?");
  for (const text of formulas) say("formulas", text.slice(0, 100), "mend the formula, or add the extension to book/_static/mathjax");
  for (const src of eager) say("lazy images", `${src} is below the second screen and not lazy`, 'loading="lazy"; see book/_ext/page_finish.py');
  return { shift, worst };
}

/** axe's violations: serious and critical ones are complaints, the others are counted. */
export async function checkAxe(page, say, options = {}) {
  await page.evaluate(AXE);
  const violations = await page.evaluate(async (options) => {
    const { violations } = await axe.run(document, { resultTypes: ["violations"], preload: false, ...options });
    return violations.map((v) => ({ id: v.id, impact: v.impact, help: v.help, count: v.nodes.length,
      where: v.nodes.slice(0, 3).map((n) => `${n.target.join(" ")} {${n.html.slice(0, 90)}}${(n.any[0] ?? n.all[0] ?? n.none[0])?.message.slice(0, 140) ?? ""}`) }));
  }, options);
  for (const v of violations) if (["serious", "critical"].includes(v.impact)) {
    say("axe", `${v.impact} ${v.id} at ${v.count} places: ${v.where.join(" | ")}`, v.help);
  }
  return violations.filter((v) => !["serious", "critical"].includes(v.impact)).map((v) => `${v.id} (${v.impact}, ${v.count})`);
}

/** Nothing may move by itself where the reader asked for stillness. */
export async function checkStillness(page, say) {
  const moving = await page.evaluate(async () => {
    const picture = () => [...document.querySelectorAll("canvas")].map((canvas) => canvas.toDataURL()).join();
    const before = picture();
    await new Promise((done) => setTimeout(done, 700));
    const running = document.getAnimations().filter((a) => a.playState === "running" && a.effect.getComputedTiming().duration > 50);
    const smooth = getComputedStyle(document.documentElement).scrollBehavior === "smooth";
    return [...running.map((a) => a.effect.target?.cloneNode().outerHTML.slice(0, 80)), before === picture() ? "" : "a canvas",
      smooth ? "smooth scrolling" : ""].filter(Boolean);
  });
  for (const text of moving) say("reduced motion", `moves: ${text}`, "stop it under @media (prefers-reduced-motion: reduce)");
}
