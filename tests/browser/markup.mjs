// What can be read from the HTML files alone: links, anchors, images, headings, the head of the page.
import fs from "node:fs";
import path from "node:path";
import { Parser } from "htmlparser2";

const GOOD_SCHEME = /^(https?:|mailto:|data:|javascript:)/;

/** Every page below `root`, as a path with slashes; the theme's template files are none. */
export const pagesOf = (root) =>
  fs.readdirSync(root, { recursive: true }).map((name) => name.split(path.sep).join("/"))
    .filter((name) => name.endsWith(".html") && !name.startsWith("_static/") && !isRedirect(path.join(root, name)));

const isRedirect = (file) => /<meta http-equiv="refresh"/i.test(fs.readFileSync(file, "utf8"));

/** A page's elements in order: { tag, attributes, text }, where text is that of the whole element. */
export function elementsOf(html) {
  const elements = [], open = [];
  const parser = new Parser({
    onopentag(tag, attributes) {
      const element = { tag, attributes, text: "", inside: open.flatMap((outer) => [outer.tag, `#${outer.attributes.id}`]) };
      elements.push(element);
      open.push(element);
    },
    ontext(text) { for (const element of open) element.text += text; },
    onclosetag() { open.pop(); },
  });
  parser.end(html);
  return elements;
}

/** The complaints about the markup of all pages. `complain(check, page, text, fix)`; gives figures for the table. */
export function checkMarkup(root, pages, complain, { base = "" } = {}) {
  const parsed = new Map(pages.map((page) => [page, elementsOf(fs.readFileSync(path.join(root, page), "utf8"))]));
  const anchors = new Map([...parsed].map(([page, elements]) => [page, new Set(elements.flatMap(({ tag, attributes: a }) =>
    [a.id, tag === "a" ? a.name : undefined].filter(Boolean)))]));
  const figures = { links: 0, images: 0, terms: Infinity }, seen = { title: new Map(), description: new Map() };

  for (const [page, elements] of parsed) {
    const say = (check, text, fix) => complain(check, page, text, fix);
    const all = (tag, filter = () => true) => elements.filter((e) => e.tag === tag && filter(e.attributes, e));
    const meta = (name) => all("meta", (a) => a.name === name || a.property === name).map((e) => e.attributes.content ?? "");

    for (const { tag, attributes: a } of elements) for (const address of [a.href, a.src].filter((x) => x !== undefined)) {
      figures.links += 1;
      const problem = brokenLink(root, page, address, anchors);
      if (problem) say("links", `<${tag}> to "${address.slice(0, 120)}": ${problem}`, "mend the address, or the label it is made from");
    }
    for (const { attributes: a } of all("img")) {
      figures.images += 1;
      const which = (a.src ?? "").slice(-70);
      if (!a.alt?.trim() && !(a.alt === "" && a.role === "presentation")) {
        say("alt text", `the image ${which} has none`, "give `alt` in the figure's options or the cell's metadata");
      } else if (/\.(png|svg|jpe?g|webp|gif)$|^_images/i.test(a.alt)) {
        say("alt text", `the image ${which} has its file name for one`, "say in words what it shows");
      }
      if (!(a.width > 0 && a.height > 0)) say("image size", `the image ${which} has no width and height`,
        "book/_ext/page_finish.py sets both: does it read this kind of file?");
    }

    if (elements.some((e) => e.tag === "body" && /\b(Posix|Windows)Path\(/.test(e.text))) {
      say("machine path", "a path of the machine that built it", "end the name's docstring with `:meta hide-value:`");
    }

    const count = {};
    for (const { attributes: { id } } of elements) if (id) count[id] = (count[id] ?? 0) + 1;
    const twice = Object.keys(count).filter((id) => count[id] > 1);
    if (twice.length) say("unique ids", `used more than once: ${twice.slice(0, 5).join(", ")}`, "an address with # finds only the first: rename");

    const titles = all("title", (a, e) => !e.inside.includes("svg")).map((e) => e.text.trim());
    if (titles.length !== 1 || !titles[0] || titles[0].length > 80) say("head", `the title is ${JSON.stringify(titles)}`, "one of 80 characters or fewer");
    if (!all("html")[0]?.attributes.lang) say("head", "<html> has no lang", "set `language` in _config.yml");
    const [description] = meta("description");
    if (!description || description.length < 50 || description.length > 160) {
      say("head", `the description has ${description?.length ?? 0} characters`, "book/_ext/page_head.py takes 50 to 160 from the first paragraph");
    }
    for (const name of ["og:title", "og:description", "og:type", "twitter:card", "theme-color", "viewport"]) {
      if (!meta(name)[0]) say("head", `no ${name}`, "book/_ext/page_head.py writes it");
    }
    if (!all("link", (a) => a.rel === "icon").length) say("head", "no icon", "set html.favicon in _config.yml");
    const canonical = all("link", (a) => a.rel === "canonical").map((e) => e.attributes.href);
    if (base ? canonical.length !== 1 || !canonical[0].startsWith(base) : canonical.length) {
      say("head", `canonical link ${JSON.stringify(canonical)}`, "exactly one, below html.baseurl, and none without it");
    }
    for (const [kind, value] of [["title", titles[0]], ["description", description]]) {
      if (value && seen[kind].has(value)) say("head", `the same ${kind} as ${seen[kind].get(value)}`, "each page says what it alone has");
      seen[kind].set(value, page);
    }

    if (path.dirname(page) !== "." && !all("link", (a) => a.rel === "next" || a.rel === "prev").length) {
      say("reading path", "no previous and no next page", "is it in _toc.yml?");
    }
    if (/\/\d\d-/.test(page)) {
      const terms = all("a", (a) => /glossary\.html#term-/.test(a.href ?? "")).length;
      figures.terms = Math.min(figures.terms, terms);
      if (!terms) say("reading path", "a chapter without a link to the glossary", "link a term where it first stands: {term}`schedule`");
    }

    const headings = elements.filter((e) => /^h[1-6]$/.test(e.tag) && !e.inside.includes("#jb-print-docs-body"));
    if (headings.filter((e) => e.tag === "h1").length !== 1) {
      say("headings", `${headings.filter((e) => e.tag === "h1").length} first-level headings`, "one title a page");
    }
    headings.slice(1).forEach((e, i) => {
      if (e.tag[1] - headings[i].tag[1] > 1) {
        say("headings", `<${e.tag}> "${e.text.trim().slice(0, 50)}" follows <${headings[i].tag}>`, "do not skip a level");
      }
    });
  }
  return figures;
}

/** Why an address leads nowhere, or "" where it does not. */
function brokenLink(root, page, address, anchors) {
  if (GOOD_SCHEME.test(address)) return "";
  const url = new URL(address, `http://x/${page}`);
  if (url.host !== "x") return "";
  let file = decodeURIComponent(url.pathname).slice(1), full = path.join(root, file);
  if (file === "" || file.endsWith("/")) full = path.join(root, (file += "index.html"));
  if (!fs.existsSync(full)) return "no such file";
  const anchor = decodeURIComponent(url.hash.slice(1));
  if (!anchor || !anchors.has(file) || anchors.get(file).has(anchor)) return "";
  return `nothing on ${file} has the id "${anchor}"`;
}
