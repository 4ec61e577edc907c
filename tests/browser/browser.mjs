// Finds and starts a browser of the Chromium family.
import fs from "node:fs";
import path from "node:path";
import puppeteer from "puppeteer-core";

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];

export function launch() {
  const folders = (process.env.PATH ?? "").split(path.delimiter);
  const found = process.env.CHROME ?? NAMES.flatMap((name) => folders.map((folder) => path.join(folder, name))).find((file) => fs.existsSync(file));
  if (!found) throw new Error("no browser: install chromium (apt-get install chromium), or name one in the variable CHROME");
  return puppeteer.launch({
    executablePath: found,
    protocolTimeout: 600_000, // axe needs long for the reference page where the machine is busy
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--force-color-profile=srgb"],
  });
}
