// Submits a study to medfleet, follows it to its end and prints the draft as one line of JSON.
//
// Everything this program knows of the API it reads from the .proto files when it starts; nothing is generated.
// Usage: node submit_and_watch.js ADDRESS TOKEN IMAGE PROTO_FOLDER [CA_FILE]        (ADDRESS is host:port)
// Beside this program lies details.proto, of the folder above.
//
// CA_FILE holds the authority of the fleet's certificate, as PEM. Without it token and image are sent in plain text: do that
// on one machine only.
"use strict";

const crypto = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const { Readable, pipeline } = require("node:stream");
const { setTimeout: sleep } = require("node:timers/promises");
const { promisify } = require("node:util");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

// Each comes whole within the minute that the fleet waits for it, also on a slow line.
const CHUNK_BYTES = 256 << 10;
const CALL_MS = 60_000;
// A watch goes on after it, from where it is: so a connection that died in silence is noticed.
const WATCH_MS = 300_000;
const PAUSE_MS_MAX = 30_000;
const TRIES_MAX = 8;
// The slowest line that an upload is given the time of.
const UPLOAD_BYTES_PER_MS_MIN = 16;
// ABORTED: an older stream of the upload has stored more meanwhile.
const BROKEN = [grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED, grpc.status.ABORTED];
// The same where the fleet has said nothing of it: some libraries call a connection that broke so.
const UNTOLD = [grpc.status.UNKNOWN, grpc.status.CANCELLED, grpc.status.INTERNAL];
const READING = { enums: String, longs: String, defaults: true, oneofs: true };
const details = loader.loadSync("details.proto", { ...READING, longs: Number, includeDirs: [__dirname] });

// With TLS where there is an authority to trust.
function connect(address, protoFolder, caFile) {
  const file = path.join("medfleet", "v1", "job_service.proto");
  const definition = loader.loadSync(file, { ...READING, includeDirs: [protoFolder] });
  const { JobService } = grpc.loadPackageDefinition(definition).medfleet.v1;
  const { credentials } = grpc;
  return new JobService(address, caFile ? credentials.createSsl(fs.readFileSync(caFile)) : credentials.createInsecure());
}

function deadline(milliseconds) {
  return { deadline: Date.now() + milliseconds };
}

// The details of the status, as bytes; undefined where the fleet said nothing.
function told(error) {
  return error.metadata?.get("grpc-status-details-bin")[0];
}

// Milliseconds that the fleet asks to wait: RetryInfo among the details of the status; null without one.
function delayAsked(error) {
  const bytes = told(error);
  if (!bytes) return null;
  const { details: all } = details["details.Status"].deserialize(bytes);
  const found = all.find((detail) => detail.type_url.endsWith("/google.rpc.RetryInfo"));
  if (!found) return null;
  const { retryDelay } = details["details.RetryInfo"].deserialize(found.value);
  return retryDelay.seconds * 1_000 + retryDelay.nanos / 1e6;
}

// Waits after the `tries`-th failure in a row; throws it where another try would not help.
async function pause(tries, error) {
  const asked = delayAsked(error);
  const busy = error.code === grpc.status.RESOURCE_EXHAUSTED && asked !== null;
  const broke = BROKEN.includes(error.code) || (UNTOLD.includes(error.code) && !told(error));
  if (tries >= TRIES_MAX || !(busy || broke)) throw error;
  // A little longer by chance, so that many clients do not come back at once.
  const wait = (asked ?? Math.min(1_000 * 2 ** (tries - 1), PAUSE_MS_MAX)) * (1 + Math.random() / 4);
  console.error(`submit_and_watch: ${grpc.status[error.code]}, again in ${(wait / 1_000).toFixed(1)} s`);
  await sleep(wait);
}

// Makes a call until it is answered.
async function answer(call) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await call();
    } catch (error) {
      await pause(tries, error);
    }
  }
}

// One method that takes and gives one message.
function method(jobs, metadata, name) {
  const call = promisify(jobs[name].bind(jobs));
  return (request) => answer(() => call(request, metadata, deadline(CALL_MS)));
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
    // A deadline that no part comes through in would begin the same part for ever.
    const bytes = image ? start.totalBytes - Number(start.offset) : 0;
    const call = jobs.UploadInput(metadata, deadline(CALL_MS + bytes / UPLOAD_BYTES_PER_MS_MIN), (error, answer) => {
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
  let known = await answer(() => send(jobs, metadata, { totalBytes }));
  const { name } = known;
  const getUpload = method(jobs, metadata, "GetUpload");
  for (let tries = 0; !known.complete; ) {
    try {
      // Not complete all the same, where the file became shorter meanwhile: the fleet says so of the job.
      await send(jobs, metadata, { upload: name, offset: known.committedBytes, totalBytes }, image);
      return name;
    } catch (error) {
      tries += 1;
      await pause(tries, error);
      const stored = known.committedBytes;
      known = (await getUpload({ name })).upload;
      if (known.committedBytes !== stored) tries = 0;
    }
  }
  return name;
}

// Follows the job to its end, from where it is when a stream breaks.
async function watch(jobs, metadata, name) {
  const stages = [];
  let text = Buffer.alloc(0);
  // Also where to go on: what it says of sequence and text is what was received.
  const request = { name };
  const getJob = method(jobs, metadata, "GetJob");
  for (let tries = 1; ; tries += 1) {
    try {
      for await (const message of jobs.WatchJob(request, metadata, deadline(WATCH_MS))) {
        tries = 1;
        request.afterSequence = message.sequence;
        if (message.event === "progress" && !stages.includes(message.progress.state)) {
          stages.push(message.progress.state);
        } else if (message.event === "text") {
          // Bytes of UTF-8 are counted, not characters.
          text = Buffer.concat([text.subarray(0, Number(message.text.offsetBytes)), Buffer.from(message.text.text)]);
          request.textPosition = { attempt: message.text.attempt, offsetBytes: text.length };
        } else if (message.event === "reset") {
          text = Buffer.alloc(0);
          request.textPosition = { attempt: message.reset.attempt, offsetBytes: 0 };
        } else if (message.event === "final") {
          return { final: message.final, stages, streamed: text.toString() };
        }
      }
      throw Object.assign(new Error("the stream ended too soon"), { code: grpc.status.UNAVAILABLE });
    } catch (error) {
      if (error.code === grpc.status.DEADLINE_EXCEEDED) {
        // Nothing is wrong with a job that waits for its turn for so long, as long as the fleet answers.
        await getJob({ name });
        tries = 1;
      }
      await pause(tries, error);
    }
  }
}

async function run(jobs, metadata, image) {
  const request = {
    // Sent again, the same id gives the same job. A program that may be restarted writes it down first.
    requestId: crypto.randomUUID(),
    task: { report: {} },
    inputs: [{ upload: await upload(jobs, metadata, image) }],
  };
  const { job } = await method(jobs, metadata, "SubmitJob")(request);
  const { final, stages, streamed } = await watch(jobs, metadata, job.name);
  if (final.state !== "JOB_STATE_COMPLETED") {
    // Such a job has no result. Only a failed one says more: a refused image, for example.
    const why = final.failure ? `: ${final.failure.reason}: ${final.failure.message}` : "";
    throw new Error(`${job.name} ended ${final.state}${why}`);
  }
  const { result } = await method(jobs, metadata, "GetResult")({ name: job.name });
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
