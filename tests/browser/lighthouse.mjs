// Lighthouse as a phone sees the page; accessibility and best practices must reach 95.
import audit from "lighthouse";

const LEAST = { accessibility: 95, "best-practices": 95 };

export async function lighthouse(browser, url, say) {
  const page = await browser.newPage();
  const flags = { logLevel: "error", onlyCategories: ["accessibility", "best-practices", "seo", "performance"] };
  const { lhr } = await audit(url, flags, undefined, page);
  await page.close();
  const scores = Object.fromEntries(Object.values(lhr.categories).map(({ id, score }) => [id, Math.round(score * 100)]));
  for (const [id, least] of Object.entries(LEAST)) if (!(scores[id] >= least)) {
    const broke = Object.values(lhr.audits).filter((audit) => audit.scoreDisplayMode === "error").map((audit) => `${audit.id}: ${audit.errorMessage}`);
    if (broke.length) say(`${id} could not be measured: ${broke.slice(0, 3).join("; ")}`, "run it again on a machine that is less busy");
    const lost = lhr.categories[id].auditRefs.filter(({ id, weight }) => weight && lhr.audits[id].score !== null && lhr.audits[id].score < 1);
    say(`${id} ${scores[id]}, under ${least}: ${lost.map((ref) => lhr.audits[ref.id].title).join("; ")}`, "mend the audits named");
  }
  return scores;
}
