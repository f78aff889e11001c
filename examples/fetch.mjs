// SPDX-License-Identifier: Apache-2.0
// Ask with fetch, in node 18 or newer: node examples/fetch.mjs IMAGE [HOST:PORT]
import { readFile } from "node:fs/promises";
import { argv, exit } from "node:process";

/**
 * The caption of an image, which is a data URL or base64. This function runs in a browser, too.
 * Throws an Error with a `code` if the server has one.
 */
async function caption(address, image, options = {}) {
  const answer = await fetch(`${address}/v2/models/caption/generate`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ image, ...options }),
  });
  const { caption, error } = await answer.json();
  if (error === undefined) return caption;
  const [, code, sentence] = error.match(/\[([a-z_]+)\] (.*)/s) ?? [, undefined, error];
  throw Object.assign(new Error(sentence), { code });
}

const [file, server = "localhost:8000"] = argv.slice(2);
if (file === undefined) {
  console.error("usage: node examples/fetch.mjs IMAGE [HOST:PORT]");
  exit(1);
}
const address = (server.includes("://") ? server : `http://${server}`).replace(/\/+$/, "");
try {
  const image = await readFile(file, "base64");
  console.log(await caption(address, `data:image/jpeg;base64,${image}`, { num_beams: 3 }));
} catch (error) {
  const { cause, code, message } = error;
  if (cause) console.error(`Error: ${address} does not answer in HTTP: ${cause.code ?? cause.message}`);
  else console.error(`${code && !message.startsWith(code) ? code : "Error"}: ${message}`);
  exit(1);
}
