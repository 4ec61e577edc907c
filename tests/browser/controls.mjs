// Every control of a page is moved, and something must change. `say(check, text, fix)` takes complaints.
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const label = (handle) => handle.evaluate((e) =>
  `<${e.tagName.toLowerCase()}${e.type ? ` type=${e.type}` : ""}> "${(e.getAttribute("aria-label") || e.labels?.[0]?.textContent || e.textContent).trim().slice(0, 60)}"`);

/** What a reader sees of a player: the pixels of its pictures, and where it has none, its text. */
const picture = (figure) => figure.evaluate((e) => {
  const drawn = [...e.querySelectorAll("canvas")].map((c) => c.toDataURL()).concat([...e.querySelectorAll("svg")].map((s) => s.outerHTML));
  return drawn.length ? drawn.join() : [...e.querySelectorAll("output, p, td, [role=status]")].map((t) => t.textContent).join();
});

async function changes(figure, before, limit = 4000) {
  for (let waited = 0; waited < limit; waited += 50) {
    if (await picture(figure) !== before) return true;
    await pause(50);
  }
  return false;
}

/** After a movement, wait until the picture is the same four times, so that the next control is not credited with this one. */
async function settled(figure, limit = 6000) {
  let last = await picture(figure), same = 0;
  for (let waited = 0; waited < limit && same < 3; waited += 100) {
    await pause(100);
    const now = await picture(figure);
    same = now === last ? same + 1 : 0;
    last = now;
  }
  return last;
}

/** Ways to move one control, each a function; a control counts as moved if one press or a few change the picture. */
async function movesOf(page, control) {
  const { tag, type, value, max } = await control.evaluate((e) => ({ tag: e.tagName, type: e.type, value: +e.value, max: +e.max }));
  const press = (...keys) => async () => { await control.focus(); for (const key of keys) await page.keyboard.press(key); };
  const click = () => control.click();
  if (tag === "SELECT") {
    const index = await control.evaluate((e) => e.selectedIndex);
    const other = await control.evaluate((e) => [...e.options].find((o) => !o.selected && !o.disabled)?.value);
    return { mouse: () => control.select(other), keyboard: press(index ? "ArrowUp" : "ArrowDown", "Enter") };
  }
  if (type === "range") {
    const at = async (share) => { const box = await control.boundingBox(); await page.mouse.click(box.x + share * box.width, box.y + box.height / 2); };
    return { mouse: () => at(value > max / 2 ? 0.2 : 0.8), keyboard: press(...Array(6).fill(value > max / 2 ? "ArrowLeft" : "ArrowRight")) };
  }
  if (type === "number") return { mouse: press("ArrowUp"), keyboard: press(value < max ? "ArrowUp" : "ArrowDown") };
  if (type === "text" || type === "search") return { mouse: press("7"), keyboard: press("8") };
  if (type === "radio") return { mouse: click, keyboard: press("ArrowDown") };
  return { mouse: click, keyboard: press("Space") };
}

/** A button that turned into "Pause" must stop what it started when it is pressed again. */
async function stopPlaying(button, figure, say) {
  if (!/pause|stop/i.test(await button.evaluate((e) => e.textContent))) return;
  await button.click();
  const still = await settled(figure, 300);
  await pause(700);
  if (await picture(figure) !== still) say("controls", `${await label(button)} does not stop it`, "a second press stops what the first one started");
}

/** Move one enabled control by mouse and by keyboard. */
async function moveControl(page, figure, control, say) {
  for (const way of ["mouse", "keyboard"]) {
    await control.scrollIntoView();
    if (await control.evaluate((e) => e.disabled)) return; // the other way of moving it used it up
    const before = await settled(figure);
    try {
      const move = (await movesOf(page, control))[way];
      await move();
    } catch (error) {
      say("controls", `${await label(control)} cannot be reached by ${way}: ${error.message.split("\n")[0]}`, "is it covered, or of no size?");
      continue;
    }
    if (!await changes(figure, before)) say("controls", `${await label(control)} moved by ${way}, and nothing changed`,
      "draw again on its event, or set its `disabled` attribute while it has no effect");
    await stopPlaying(control, figure, say);
  }
}

/** Every control of every player. A disabled one must come alive under some choice of a select, checkbox or radio. */
export async function movePlayers(page, say, selector = "figure.companion-player") {
  let moved = 0;
  await page.evaluate(() => document.querySelectorAll("details").forEach((e) => { e.open = true; }));
  for (const figure of await page.$$(selector)) {
    const controls = [];
    for (const control of await figure.$$("button, input, select, textarea, [role=slider], [tabindex='0']:not(canvas):not(div)")) {
      if (await control.evaluate((e) => e.checkVisibility() && e.tabIndex >= 0 && e.type !== "hidden")) controls.push(control);
      else if (await control.evaluate((e) => e.checkVisibility())) say("controls", `${await label(control)} cannot be reached by Tab`, "no tabindex below 0");
    }
    const waiting = new Set(controls);
    const moveEnabled = async () => {
      for (const control of [...waiting]) if (!await control.evaluate((e) => e.disabled)) {
        waiting.delete(control);
        moved += 1;
        await moveControl(page, figure, control, say);
      }
    };
    await moveEnabled();
    for (const choice of controls) {
      const options = await choice.evaluate((e) => (e.tagName === "SELECT" ? [...e.options].map((o) => o.value) : []));
      for (const option of options) if (waiting.size && !await choice.evaluate((e) => e.disabled)) {
        await choice.select(option);
        await settled(figure);
        await moveEnabled();
      }
    }
    for (const control of waiting) say("controls", `${await label(control)} is disabled, and no choice enables it`, "take it out, or say when it works");
  }
  return moved;
}

/** The theme's own controls. Each says what must differ after it: [what, selector, what to look at, optional]. */
const LOOKS = {
  theme: () => document.documentElement.dataset.mode + getComputedStyle(document.body).backgroundColor,
  left: () => document.querySelector("#pst-primary-sidebar-modal")?.open + document.querySelector("#pst-primary-sidebar")?.className,
  right: () => document.querySelector("#pst-secondary-sidebar-modal")?.open + document.querySelector("#pst-secondary-sidebar")?.className,
  search: () => String(document.querySelector("#pst-search-dialog")?.open || document.activeElement.matches("input[type=search]")),
  menu: () => [...document.querySelectorAll("[data-bs-toggle=dropdown]")].map((e) => e.ariaExpanded).join(),
  full: () => String(Boolean(document.fullscreenElement)),
};
const THEME = [
  ["theme switch", ".theme-switch-button", "theme"],
  ["left sidebar", ".primary-toggle", "left"],
  ["right sidebar", ".secondary-toggle", "right"],
  ["search field", ".search-button-field", "search"],
  ["search button", ".search-button:not(.search-button-field)", "search"],
  ["menu", "[data-bs-toggle=dropdown]", "menu"],
  ["full screen", ".btn-fullscreen-button", "full"],
];

export async function moveTheme(page, say) {
  const worked = {};
  for (const [name, selector, look] of THEME) for (const control of await page.$$(selector)) {
    if (!await control.evaluate((e) => e.checkVisibility() && e.getBoundingClientRect().width > 0)) continue;
    const steps = [["click", () => control.click()], ["Enter", () => page.keyboard.press("Enter")]];
    for (const [way, step] of steps) {
      await atRest(page);
      await control.focus();
      const before = await page.evaluate(LOOKS[look]);
      const attempt = () => step().then(() => page.waitForFunction(`(${LOOKS[look]})() !== ${JSON.stringify(before)}`, { timeout: 4000, polling: 50 }));
      // A busy machine sometimes loses the click that follows a closing dialog; a control that is dead stays so.
      const done = await attempt().catch(() => atRest(page).then(attempt)).catch(() => null);
      if (!done) say("controls", `the ${name} (${selector}) by ${way}: nothing changed`, "is the theme's script loaded?");
      else worked[name] = (worked[name] ?? 0) + 1;
      if (look !== "theme" && done) await putBack(page, control, look, before);
    }
  }
  return worked;
}

async function putBack(page, control, look, before) {
  const open = await page.evaluate(() => document.querySelector("dialog[open]") !== null);
  if (open || look === "menu") await page.keyboard.press("Escape");
  else if (look !== "search") await control.evaluate((e) => e.click());
  if (look !== "search") await page.waitForFunction(`(${LOOKS[look]})() === ${JSON.stringify(before)}`, { timeout: 8000, polling: 50 }).catch(() => 0);
  await atRest(page);
}

/** Wait until nothing slides any more: a mouse would miss a button that moves. */
const atRest = (page) => page.evaluate(async () => {
  scrollTo({ top: 0, behavior: "instant" });
  await new Promise((done) => setTimeout(done, 150)); // leaving full screen changes the size a little later
  await Promise.all(document.getAnimations().map((animation) => animation.finished.catch(() => 0)));
});

/** Everything that opens: "show code", solutions, tables that fold; and what copies. */
async function moveFolds(page, say) {
  return page.evaluate(async () => {
    const worked = {}, failed = [];
    const count = (name, good, what) => { if (good) worked[name] = (worked[name] ?? 0) + 1; else failed.push(`${name}: ${what}`); };
    const frame = () => new Promise((done) => setTimeout(done, 20));
    for (const fold of document.querySelectorAll("main details")) {
      const seen = fold.open;
      fold.querySelector("summary")?.click();
      await frame();
      count("show code", fold.open !== seen && fold.querySelector("summary").tabIndex >= 0, fold.outerHTML.slice(0, 80));
    }
    for (const button of document.querySelectorAll("main .toggle-button")) {
      const box = button.closest(".admonition"), inside = box.querySelector(".admonition-title ~ *");
      const seen = inside.checkVisibility({ visibilityProperty: true });
      button.click();
      await frame();
      count("solution", inside.checkVisibility({ visibilityProperty: true }) !== seen && button.ariaExpanded === String(!seen)
        && button.tabIndex >= 0, box.id);
    }
    for (const button of document.querySelectorAll("button.copybtn")) {
      button.click();
      await frame();
      count("copy", button.classList.contains("success"), button.dataset.clipboardTarget);
    }
    for (const button of document.querySelectorAll("button[onclick='window.print()']")) {
      let asked = 0;
      window.print = () => { asked += 1; };
      button.click();
      count("print", asked === 1, "window.print is not called");
    }
    return { worked, failed };
  }).then(({ worked, failed }) => {
    for (const text of failed) say("controls", `${text} did not work`, "is the extension's script loaded?");
    return worked;
  });
}

/** A control that no part of the suite knows would never be moved. */
async function findUnknown(page, say) {
  const known = [...THEME.map(([, selector]) => selector), "figure.companion-player *", "main details *", ".toggle-button", ".copybtn",
    "button[onclick='window.print()']", "#pst-back-to-top", "#pst-search-dialog *", "form.bd-search *", "#search-documentation *"].join();
  const strange = await page.evaluate((known) => [...document.querySelectorAll("button, input, select, textarea, summary, [onclick], [role=button]")]
    .filter((e) => !e.matches(known) && e.checkVisibility() && !e.closest("form[action*='search']")).map((e) => e.cloneNode().outerHTML.slice(0, 120)), known);
  for (const text of strange) say("controls", `the suite does not move ${text}`, "add it to tests/browser/controls.mjs");
}

/** The first press of Tab reaches the skip link, and Enter jumps to the text. */
async function useSkipLink(page, say) {
  await page.evaluate(() => { scrollTo(0, 0); document.activeElement?.blur(); });
  await page.keyboard.press("Tab");
  const good = await page.evaluate(() => document.activeElement.matches("#pst-skip-link a, .skip-link a") && document.activeElement.checkVisibility());
  if (good) await page.keyboard.press("Enter");
  if (!good || !await page.evaluate(() => document.querySelector(location.hash || "none") !== null)) {
    say("controls", "the first Tab does not reach a link that skips to the text", "the theme's skip link comes first on the page");
    return {};
  }
  return { "skip link": 1 };
}

/** All of it; gives how many of each kind worked. */
export async function moveEverything(page, say) {
  const worked = { ...await useSkipLink(page, say), ...await moveTheme(page, say), ...await moveFolds(page, say) };
  await findUnknown(page, say);
  worked.player = await movePlayers(page, say);
  return worked;
}

/** Type a word into the search field of a page; there must be results, and the first must exist. */
export async function search(page, word, say) {
  const field = await page.$("#pst-search-dialog input");
  await page.keyboard.down("Control");
  await page.keyboard.press("k");
  await page.keyboard.up("Control");
  await pause(300);
  await field.type(word);
  await Promise.all([page.waitForNavigation({ waitUntil: "networkidle0" }), page.keyboard.press("Enter")]);
  const found = await page.waitForFunction(() => {
    const links = document.querySelectorAll("#search-results li a");
    return links.length && /finished|found/i.test(document.querySelector(".search-summary, #search-results p")?.textContent) ? links.length : 0;
  }, { timeout: 10_000, polling: 50 }).then((handle) => handle.jsonValue()).catch(() => 0);
  if (!found) say("search", `no result for "${word}"`, "is searchindex.js built and loaded?");
  return found;
}
