// Lighthouse as a phone sees the page; accessibility and best practices must reach 95.
import audit from "lighthouse";

const LEAST = { accessibility: 95, "best-practices": 95 };

const errorsOf = (lhr) => Object.values(lhr.audits).filter((audit) => audit.scoreDisplayMode === "error").map((audit) => `${audit.id}: ${audit.errorMessage}`);

async function measure(browser, url) {
  const page = await browser.newPage();
  const flags = { logLevel: "error", onlyCategories: ["accessibility", "best-practices", "seo", "performance"] };
  const { lhr } = await audit(url, flags, undefined, page);
  await page.close();
  return lhr;
}

/** The scores of a page; one that a busy machine was too slow to measure is measured once more. */
export async function lighthouse(browser, url, say) {
  let lhr = await measure(browser, url);
  if (errorsOf(lhr).length) lhr = await measure(browser, url);
  const scores = Object.fromEntries(Object.values(lhr.categories).map(({ id, score }) => [id, Math.round(score * 100)]));
  for (const [id, least] of Object.entries(LEAST)) if (!(scores[id] >= least)) {
    const broke = errorsOf(lhr);
    if (broke.length) { say(`${id} could not be measured: ${broke.slice(0, 3).join("; ")}`, "run it again on a machine that is less busy"); continue; }
    const lost = lhr.categories[id].auditRefs.filter(({ id, weight }) => weight && lhr.audits[id].score !== null && lhr.audits[id].score < 1);
    say(`${id} ${scores[id]}, under ${least}: ${lost.map((ref) => lhr.audits[ref.id].title).join("; ")}`, "mend the audits named");
  }
  return scores;
}
