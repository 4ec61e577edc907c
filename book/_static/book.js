// What the theme's scripts leave undone.
"use strict";

// A formula wider than its column scrolls in its own box, which must then be reachable by keyboard; all others do not scroll.
const setScrollBoxes = () => {
  for (const math of document.querySelectorAll(".math:has(mjx-math)")) {
    const box = math.matches("div") ? math.querySelector("mjx-container") : math;
    const scrolls = math.querySelector("mjx-math").getBoundingClientRect().width > box.clientWidth + 1;
    box.classList.toggle("scrolls", scrolls);
    if (scrolls) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
window.addEventListener("load", async () => {
  if (!window.MathJax?.startup) return;
  await MathJax.startup.promise;
  setScrollBoxes();
  window.addEventListener("resize", setScrollBoxes);
});

// Sphinx looks for an excerpt by "#companion.noise", where the dot would be read as a class.
if (typeof Search !== "undefined") {
  const { htmlToText } = Search;
  Search.htmlToText = (html, anchor) => htmlToText(html, anchor && `#${CSS.escape(anchor.slice(1))}`);
}
