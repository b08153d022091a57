// Submits a study to medfleet, follows it to its end and prints the draft as one line of JSON.
//
// Everything this program knows of the API it reads from the .proto files when it starts; nothing is generated.
// Usage: node submit_and_watch.js ADDRESS TOKEN IMAGE PROTO_FOLDER [CA_FILE]        (ADDRESS is host:port)
//
// CA_FILE holds the authority of the fleet's certificate, as PEM. Without it token and image are sent in plain text: do that
// on one machine only.
"use strict";

const crypto = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const { Readable, pipeline } = require("node:stream");
const { setTimeout: pause } = require("node:timers/promises");
const { promisify } = require("node:util");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const CHUNK_BYTES = 1 << 20;
const CALL_MS = 60_000;
const WATCH_MS = 300_000;
const PAUSES_MS = [1_000, 2_000, 4_000, 8_000];
const RESUMABLE = [grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED];

// With TLS where there is an authority to trust.
function connect(address, protoFolder, caFile) {
  const file = path.join("medfleet", "v1", "job_service.proto");
  const definition = loader.loadSync(file, {
    includeDirs: [protoFolder],
    enums: String,
    longs: String,
    defaults: true,
    oneofs: true,
  });
  const { JobService } = grpc.loadPackageDefinition(definition).medfleet.v1;
  const { credentials } = grpc;
  return new JobService(address, caFile ? credentials.createSsl(fs.readFileSync(caFile)) : credentials.createInsecure());
}

function deadline(milliseconds) {
  return { deadline: Date.now() + milliseconds };
}

// One upload stream: what it is about, then the bytes of the image from there on; without an image it only opens the upload.
async function* messages(start, image) {
  yield { start };
  if (image) {
    const file = fs.createReadStream(image, { start: Number(start.offset), highWaterMark: CHUNK_BYTES });
    for await (const chunk of file) yield { chunk };
  }
}

// Sends the messages, never faster than the server takes them.
function send(jobs, metadata, start, image) {
  return new Promise((resolve, reject) => {
    const source = Readable.from(messages(start, image));
    const call = jobs.UploadInput(metadata, deadline(CALL_MS), (error, answer) => {
      if (!error) return resolve(answer.upload);
      source.destroy();
      return reject(error);
    });
    pipeline(source, call, (error) => {
      if (!error) return;
      // The image cannot be read. When it is the call that ended, its own error came first and counts.
      reject(error);
      call.cancel();
    });
  });
}

// Goes on from what is stored when a stream breaks.
async function upload(jobs, metadata, image) {
  const totalBytes = fs.statSync(image).size;
  // Opened by a stream of its own: without a name there would be nothing to go on with.
  const { name } = await send(jobs, metadata, { totalBytes });
  const getUpload = promisify(jobs.GetUpload.bind(jobs));
  for (let tries = 0; ; tries += 1) {
    try {
      const known = (await getUpload({ name }, metadata, deadline(CALL_MS))).upload;
      return await send(jobs, metadata, { upload: name, offset: known.committedBytes, totalBytes }, image);
    } catch (error) {
      if (tries === PAUSES_MS.length || !RESUMABLE.includes(error.code)) throw error;
      await pause(PAUSES_MS[tries]);
    }
  }
}

function watch(jobs, metadata, name) {
  return new Promise((resolve, reject) => {
    const seen = { final: null, stages: [], streamed: "" };
    const call = jobs.WatchJob({ name }, metadata, deadline(WATCH_MS));
    call.on("data", (message) => {
      if (message.event === "progress" && !seen.stages.includes(message.progress.state)) {
        seen.stages.push(message.progress.state);
      } else if (message.event === "text") {
        seen.streamed += message.text.text;
      } else if (message.event === "reset") {
        seen.streamed = "";
      } else if (message.event === "final") {
        seen.final = message.final;
      }
    });
    call.on("end", () => resolve(seen));
    call.on("error", reject);
  });
}

async function run(jobs, metadata, image) {
  const uploaded = await upload(jobs, metadata, image);
  const request = {
    // Sent again after a broken connection, the same id gives the same job.
    requestId: crypto.randomUUID(),
    task: { report: {} },
    inputs: [{ upload: uploaded.name }],
  };
  const { job } = await promisify(jobs.SubmitJob.bind(jobs))(request, metadata, deadline(CALL_MS));
  const { final, stages, streamed } = await watch(jobs, metadata, job.name);
  if (final.state !== "JOB_STATE_COMPLETED") {
    // Such a job has no result. Only a failed one says more: a refused image, for example.
    const why = final.failure ? `: ${final.failure.reason}: ${final.failure.message}` : "";
    throw new Error(`${job.name} ended ${final.state}${why}`);
  }
  const { result } = await promisify(jobs.GetResult.bind(jobs))({ name: job.name }, metadata, deadline(CALL_MS));
  return { job: job.name, state: final.state, stages, draft: result.draft, streamed, text: result.report.text };
}

async function main() {
  const [address, token, image, protoFolder, caFile] = process.argv.slice(2);
  const jobs = connect(address, protoFolder, caFile);
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${token}`);
  try {
    console.log(JSON.stringify(await run(jobs, metadata, image)));
  } finally {
    jobs.close();
  }
}

main().catch((error) => {
  console.error(`submit_and_watch: ${error.message}`);
  process.exitCode = 1;
});
