// Makes crates/model/tests/fixtures/llama_cpp_270m.json: what llama.cpp says of the prompts of gemma3_270m.json with the same
// GGUF, multiplied as stored: of each step the best logits and the logarithm of the sum of all exponentials.
//
//   npm i --ignore-scripts --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
//   node make_llama_cpp.mjs GEMMA.gguf crates/model/tests/fixtures

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [gguf, fixtures] = process.argv.slice(2);
// From the folder in which npm was run.
const installed = createRequire(pathToFileURL(join(process.cwd(), "here.js")));
const { getLlama } = await import(pathToFileURL(installed.resolve("node-llama-cpp")));
const versionOf = (name) => JSON.parse(readFileSync(join(process.cwd(), "node_modules", name, "package.json"))).version;

const STEPS = 4;
const TOP = 48;

const { cases } = JSON.parse(readFileSync(join(fixtures, "gemma3_270m.json")));
const llama = await getLlama({ gpu: false, build: "never" });
const model = await llama.loadModel({ modelPath: gguf, gpuLayers: 0 });
const found = [];
for (const { prompt, greedy } of cases) {
  const context = await model.createContext({ contextSize: 2048, sequences: 1 });
  const sequence = context.getSequence();
  const tokens = [...prompt, ...greedy.slice(0, STEPS - 1)];
  const first = prompt.length - 1;
  const input = tokens.map((token, at) => (at < first ? token : [token, { generateNext: { logits: true, token: false } }]));
  const outputs = await sequence.controlledEvaluate(input);
  const steps = outputs.slice(first).map(({ next }) => {
    const all = [...next.logits.entries()];
    const max = all[0][1];
    const logSum = max + Math.log(all.reduce((sum, [, logit]) => sum + Math.exp(logit - max), 0));
    const top = all.slice(0, TOP);
    return { ids: top.map(([id]) => Number(id)), logits: top.map(([, logit]) => Number(logit.toFixed(4))), log_sum: Number(logSum.toFixed(4)), tokens: all.length };
  });
  found.push(steps);
  await context.dispose();
}
const made_with = { "node-llama-cpp": versionOf("node-llama-cpp"), "llama.cpp": llama.llamaCppRelease.release };
writeFileSync(join(fixtures, "llama_cpp_270m.json"), JSON.stringify({ made_with, cases: found }) + "\n");
process.exit(0);
