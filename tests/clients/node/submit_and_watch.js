// Submits a study to medfleet, follows it to its end and prints the draft as one line of JSON.
//
// Everything this program knows of the API it reads from the .proto files when it starts; nothing is generated.
// Usage: node submit_and_watch.js ADDRESS TOKEN IMAGE PROTO_FOLDER        (ADDRESS is host:port)
"use strict";

const crypto = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const { promisify } = require("node:util");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const CHUNK_BYTES = 1 << 20;
const CALL_MS = 60_000;
const WATCH_MS = 300_000;

function connect(address, protoFolder) {
  const file = path.join("medfleet", "v1", "job_service.proto");
  const definition = loader.loadSync(file, {
    includeDirs: [protoFolder],
    enums: String,
    longs: String,
    defaults: true,
    oneofs: true,
  });
  const { JobService } = grpc.loadPackageDefinition(definition).medfleet.v1;
  return new JobService(address, grpc.credentials.createInsecure());
}

function deadline(milliseconds) {
  return { deadline: Date.now() + milliseconds };
}

// Sends what is coming, then the bytes in order, never faster than the server takes them.
function upload(jobs, metadata, image) {
  return new Promise((resolve, reject) => {
    const call = jobs.UploadInput(metadata, deadline(CALL_MS), (error, answer) => (error ? reject(error) : resolve(answer.upload)));
    call.write({ start: { totalBytes: fs.statSync(image).size } });
    const file = fs.createReadStream(image, { highWaterMark: CHUNK_BYTES });
    file.on("data", (chunk) => {
      if (!call.write({ chunk })) {
        file.pause();
        call.once("drain", () => file.resume());
      }
    });
    file.on("end", () => call.end());
    file.on("error", reject);
  });
}

function watch(jobs, metadata, name) {
  return new Promise((resolve, reject) => {
    const seen = { state: null, stages: [], streamed: "" };
    const call = jobs.WatchJob({ name }, metadata, deadline(WATCH_MS));
    call.on("data", (message) => {
      if (message.event === "progress" && !seen.stages.includes(message.progress.state)) {
        seen.stages.push(message.progress.state);
      } else if (message.event === "text") {
        seen.streamed += message.text.text;
      } else if (message.event === "reset") {
        seen.streamed = "";
      } else if (message.event === "final") {
        seen.state = message.final.state;
      }
    });
    call.on("end", () => resolve(seen));
    call.on("error", reject);
  });
}

async function main() {
  const [address, token, image, protoFolder] = process.argv.slice(2);
  const jobs = connect(address, protoFolder);
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${token}`);

  const uploaded = await upload(jobs, metadata, image);
  const request = {
    // Sent again after a broken connection, the same id gives the same job.
    requestId: crypto.randomUUID(),
    task: { report: {} },
    inputs: [{ upload: uploaded.name }],
  };
  const { job } = await promisify(jobs.SubmitJob.bind(jobs))(request, metadata, deadline(CALL_MS));
  const seen = await watch(jobs, metadata, job.name);
  const { result } = await promisify(jobs.GetResult.bind(jobs))({ name: job.name }, metadata, deadline(CALL_MS));
  console.log(JSON.stringify({ job: job.name, ...seen, draft: result.draft, text: result.report.text }));
  jobs.close();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
