"""Submits a study to medfleet, follows it to its end and prints the draft as one line of JSON.

Everything this program knows of the API comes from the .proto files. Make the modules it imports with:

    python -m grpc_tools.protoc -I proto -I tests/clients --python_out=OUT --grpc_python_out=OUT \\
        proto/medfleet/v1/*.proto tests/clients/details.proto

Usage: submit_and_watch.py ADDRESS TOKEN IMAGE [CA_FILE]        (ADDRESS is host:port, OUT is on PYTHONPATH)

CA_FILE holds the authority of the fleet's certificate, as PEM. Without it token and image are sent in plain text: do that on
one machine only.
"""

import json
import os
import random
import sys
import time
import uuid

import grpc

import details_pb2
from medfleet.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc

# Each comes whole within the minute that the fleet waits for it, also on a slow line.
CHUNK_BYTES = 256 << 10
CALL_SECONDS = 60
# A watch goes on after it, from where it is: so a connection that died in silence is noticed.
WATCH_SECONDS = 300
PAUSE_SECONDS_MAX = 30
TRIES_MAX = 8
# The slowest line that an upload is given the time of.
UPLOAD_BYTES_PER_SECOND_MIN = 16 << 10
# ABORTED: an older stream of the upload has stored more meanwhile.
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED)
# The same where the fleet has said nothing of it: some libraries call a connection that broke so.
UNTOLD = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)


def connect(address, ca_file):
    """With TLS where there is an authority to trust."""
    if ca_file is None:
        return grpc.insecure_channel(address)
    with open(ca_file, "rb") as file:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(file.read()))


def told(error):
    """The details of the status, as bytes: empty where the fleet said nothing."""
    return dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")


def word(names, value):
    """The name of a value of an enumeration; the number of one that a later release has added, which is no error."""
    return names.Name(value) if value in names.values() else str(value)


def delay_asked(error):
    """Seconds that the fleet asks to wait: RetryInfo among the details of the status; None without one."""
    for detail in details_pb2.Status.FromString(told(error)).details:
        if detail.type_url.endswith("/google.rpc.RetryInfo"):
            return details_pb2.RetryInfo.FromString(detail.value).retry_delay.ToTimedelta().total_seconds()
    return None


def pause(tries, error=None):
    """Waits after the `tries`-th failure in a row (without an error, a stream ended too soon) or raises it: for good."""
    code = error.code() if error else grpc.StatusCode.UNAVAILABLE
    asked = delay_asked(error) if error else None
    busy = code == grpc.StatusCode.RESOURCE_EXHAUSTED and asked is not None
    broke = code in BROKEN or (code in UNTOLD and not told(error))
    if tries >= TRIES_MAX or not (busy or broke):
        raise error or ConnectionError("the stream ended too soon")
    seconds = min(2 ** (tries - 1), PAUSE_SECONDS_MAX) if asked is None else asked
    # A little longer by chance, so that many clients do not come back at once.
    seconds *= random.uniform(1, 1.25)
    print(f"submit_and_watch: {code.name}, again in {seconds:.1f} s", file=sys.stderr, flush=True)
    time.sleep(seconds)


def answer(call):
    """Makes a call until it is answered."""
    tries = 0
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            tries += 1
            pause(tries, error)


def missing(path, known):
    """The messages that resume an upload: first what is known of it, then the bytes that are not stored yet."""
    start = job_service_pb2.UploadStart(
        upload=known.name, offset=known.committed_bytes, total_bytes=known.total_bytes
    )
    yield job_service_pb2.UploadInputRequest(start=start)
    with open(path, "rb") as file:
        file.seek(known.committed_bytes)
        while chunk := file.read(CHUNK_BYTES):
            yield job_service_pb2.UploadInputRequest(chunk=chunk)


def upload(jobs, options, path):
    """Uploads the image and returns the name of the upload; goes on from what is stored when a stream breaks."""
    # Opened by a stream of its own: without a name there would be nothing to go on with.
    start = job_service_pb2.UploadStart(total_bytes=os.path.getsize(path))
    opening = job_service_pb2.UploadInputRequest(start=start)
    known = answer(lambda: jobs.UploadInput(iter([opening]), **options)).upload
    tries = 0
    while not known.complete:
        stored = known.committed_bytes
        # A deadline that no part comes through in would begin the same part for ever.
        seconds = CALL_SECONDS + (known.total_bytes - stored) / UPLOAD_BYTES_PER_SECOND_MIN
        try:
            # Not complete all the same, where the file became shorter meanwhile: the fleet says so of the job.
            return jobs.UploadInput(missing(path, known), **{**options, "timeout": seconds}).upload.name
        except grpc.RpcError as error:
            tries += 1
            pause(tries, error)
            request = job_service_pb2.GetUploadRequest(name=known.name)
            known = answer(lambda: jobs.GetUpload(request, **options)).upload
            if known.committed_bytes > stored:
                tries = 0
    return known.name


def submit(jobs, options, uploaded):
    """Submits a report job for the upload; returns the job's name."""
    request = job_service_pb2.SubmitJobRequest(
        # Sent again, the same id gives the same job. A program that may be restarted writes it down first.
        request_id=str(uuid.uuid4()),
        task=job_pb2.Task(report=job_pb2.ReportTask()),
        inputs=[job_pb2.Input(upload=uploaded)],
    )
    return answer(lambda: jobs.SubmitJob(request, **options)).job.name


def watch(jobs, options, name):
    """Follows the job to its end; returns it as it ended, the stages it went through and the text as streamed."""
    get_job = job_service_pb2.GetJobRequest(name=name)
    stages, text, tries = [], b"", 0
    # Also where to go on: what it says of sequence and text is what was received.
    request = job_service_pb2.WatchJobRequest(name=name)
    while True:
        broken = None
        try:
            for event in jobs.WatchJob(request, **{**options, "timeout": WATCH_SECONDS}):
                tries = 0
                request.after_sequence = event.sequence
                kind = event.WhichOneof("event")
                if kind == "progress":
                    stage = word(job_pb2.JobState, event.progress.state)
                    if stage not in stages:
                        stages.append(stage)
                elif kind == "text":
                    text = text[: event.text.offset_bytes] + event.text.text.encode()
                    request.text_position.attempt = event.text.attempt
                    request.text_position.offset_bytes = len(text)
                elif kind == "reset":
                    text = b""
                    request.text_position.attempt = event.reset.attempt
                    request.text_position.offset_bytes = 0
                elif kind == "final":
                    return event.final, stages, text.decode()
        except grpc.RpcError as error:
            broken = error
        if broken and broken.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            # Nothing is wrong with a job that waits for its turn for so long, as long as the fleet answers.
            answer(lambda: jobs.GetJob(get_job, **options))
            tries = 0
        tries += 1
        pause(tries, broken)


def main():
    address, token, path, ca_file = (*sys.argv[1:], None)[:4]
    metadata = [("authorization", f"Bearer {token}")]
    with connect(address, ca_file) as channel:
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        options = {"metadata": metadata, "timeout": CALL_SECONDS}
        name = submit(jobs, options, upload(jobs, options, path))
        final, stages, streamed = watch(jobs, options, name)
        state = word(job_pb2.JobState, final.state)
        if final.state != job_pb2.JOB_STATE_COMPLETED:
            # Such a job has no result. Only a failed one says more: a refused image, for example.
            reason = word(job_pb2.FailureReason, final.failure.reason)
            why = f": {reason}: {final.failure.message}" if final.HasField("failure") else ""
            sys.exit(f"{name} ended {state}{why}")
        request = job_service_pb2.GetResultRequest(name=name)
        result = answer(lambda: jobs.GetResult(request, **options)).result
    print(
        json.dumps(
            {
                "job": name,
                "state": state,
                "stages": stages,
                "draft": result.draft,
                "streamed": streamed,
                "text": result.report.text,
            }
        )
    )


if __name__ == "__main__":
    main()
