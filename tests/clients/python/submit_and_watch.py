"""Submits a study to medfleet, follows it to its end and prints the draft as one line of JSON.

Everything this program knows of the API comes from the .proto files. Make the two modules it imports with:

    python -m grpc_tools.protoc -I proto --python_out=OUT --grpc_python_out=OUT proto/medfleet/v1/*.proto

Usage: submit_and_watch.py ADDRESS TOKEN IMAGE [CA_FILE]        (ADDRESS is host:port, OUT is on PYTHONPATH)

CA_FILE holds the authority of the fleet's certificate, as PEM. Without it token and image are sent in plain text: do that on
one machine only.
"""

import json
import os
import sys
import time
import uuid

import grpc

from medfleet.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc

CHUNK_BYTES = 1 << 20
CALL_SECONDS = 60
WATCH_SECONDS = 300
PAUSES_SECONDS = (1, 2, 4, 8)
RESUMABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def connect(address, ca_file):
    """With TLS where there is an authority to trust."""
    if ca_file is None:
        return grpc.insecure_channel(address)
    with open(ca_file, "rb") as file:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(file.read()))


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


def upload(jobs, metadata, path):
    """Uploads the image and returns the name of the upload; goes on from what is stored when a stream breaks."""
    options = {"metadata": metadata, "timeout": CALL_SECONDS}
    # Opened by a stream of its own: without a name there would be nothing to go on with.
    start = job_service_pb2.UploadStart(total_bytes=os.path.getsize(path))
    opened = jobs.UploadInput(iter([job_service_pb2.UploadInputRequest(start=start)]), **options)
    request = job_service_pb2.GetUploadRequest(name=opened.upload.name)
    for pause in (*PAUSES_SECONDS, None):
        try:
            known = jobs.GetUpload(request, **options).upload
            return jobs.UploadInput(missing(path, known), **options).upload.name
        except grpc.RpcError as error:
            if pause is None or error.code() not in RESUMABLE:
                raise
            time.sleep(pause)


def submit(jobs, metadata, uploaded):
    """Submits a report job for the upload; returns the job's name."""
    request = job_service_pb2.SubmitJobRequest(
        # Sent again after a broken connection, the same id gives the same job.
        request_id=str(uuid.uuid4()),
        task=job_pb2.Task(report=job_pb2.ReportTask()),
        inputs=[job_pb2.Input(upload=uploaded)],
    )
    return jobs.SubmitJob(request, metadata=metadata, timeout=CALL_SECONDS).job.name


def watch(jobs, metadata, name):
    """Follows the job to its end; returns it as it ended, the stages it went through and the text as streamed."""
    stages, text, final = [], b"", None
    request = job_service_pb2.WatchJobRequest(name=name)
    for event in jobs.WatchJob(request, metadata=metadata, timeout=WATCH_SECONDS):
        kind = event.WhichOneof("event")
        if kind == "progress":
            stage = job_pb2.JobState.Name(event.progress.state)
            if stage not in stages:
                stages.append(stage)
        elif kind == "text":
            text += event.text.text.encode()
        elif kind == "reset":
            text = b""
        elif kind == "final":
            final = event.final
    return final, stages, text.decode()


def main():
    address, token, path, ca_file = (*sys.argv[1:], None)[:4]
    metadata = [("authorization", f"Bearer {token}")]
    with connect(address, ca_file) as channel:
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        name = submit(jobs, metadata, upload(jobs, metadata, path))
        final, stages, streamed = watch(jobs, metadata, name)
        state = job_pb2.JobState.Name(final.state)
        if final.state != job_pb2.JOB_STATE_COMPLETED:
            # Such a job has no result. Only a failed one says more: a refused image, for example.
            reason = job_pb2.FailureReason.Name(final.failure.reason)
            why = f": {reason}: {final.failure.message}" if final.HasField("failure") else ""
            sys.exit(f"{name} ended {state}{why}")
        request = job_service_pb2.GetResultRequest(name=name)
        result = jobs.GetResult(request, metadata=metadata, timeout=CALL_SECONDS).result
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
