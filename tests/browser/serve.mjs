// Serves a folder as a plain host would: text compressed, a wrong address answered with 404.
import fs from "node:fs";
import http from "node:http";
import path from "node:path";
import zlib from "node:zlib";

const TYPES = {
  css: "text/css", gif: "image/gif", html: "text/html", ico: "image/x-icon", ipynb: "application/json", js: "text/javascript",
  json: "application/json", mjs: "text/javascript", png: "image/png", svg: "image/svg+xml", ttf: "font/ttf", txt: "text/plain",
  webmanifest: "application/manifest+json", webp: "image/webp", woff: "font/woff", woff2: "font/woff2",
};
const PACKED = /^text|json$|svg/;

/** Start a server of `root` on a free port; gives { base, close }. */
export async function serve(root) {
  const packed = new Map();
  const server = http.createServer((request, response) => {
    let file = path.join(root, decodeURIComponent(new URL(request.url, "http://x").pathname));
    if (file.endsWith("/")) file += "index.html";
    if (!fs.existsSync(file) || fs.statSync(file).isDirectory()) return response.writeHead(404).end();
    const type = TYPES[path.extname(file).slice(1)] ?? "application/octet-stream";
    const headers = { "content-type": PACKED.test(type) ? `${type}; charset=utf-8` : type, "cache-control": "max-age=600" };
    if (!PACKED.test(type)) return response.writeHead(200, headers).end(fs.readFileSync(file));
    if (!packed.has(file)) packed.set(file, zlib.gzipSync(fs.readFileSync(file)));
    response.writeHead(200, { ...headers, "content-encoding": "gzip", vary: "accept-encoding" }).end(packed.get(file));
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return { base: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}
