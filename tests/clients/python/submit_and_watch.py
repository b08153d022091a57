"""Submits a study to medfleet, follows it to its end and prints the draft as one line of JSON.

Everything this program knows of the API comes from the .proto files. Make the two modules it imports with:

    python -m grpc_tools.protoc -I proto --python_out=OUT --grpc_python_out=OUT proto/medfleet/v1/*.proto

Usage: submit_and_watch.py ADDRESS TOKEN IMAGE        (ADDRESS is host:port, OUT is on PYTHONPATH)
"""

import json
import os
import sys
import uuid

import grpc

from medfleet.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc

CHUNK_BYTES = 1 << 20
CALL_SECONDS = 60
WATCH_SECONDS = 300


def upload_requests(path):
    """The messages of an upload: first what is coming, then the bytes in order."""
    start = job_service_pb2.UploadStart(total_bytes=os.path.getsize(path))
    yield job_service_pb2.UploadInputRequest(start=start)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield job_service_pb2.UploadInputRequest(chunk=chunk)


def submit(jobs, metadata, path):
    """Uploads the image and submits a report job for it; returns the job's name."""
    uploaded = jobs.UploadInput(upload_requests(path), metadata=metadata, timeout=CALL_SECONDS)
    request = job_service_pb2.SubmitJobRequest(
        # Sent again after a broken connection, the same id gives the same job.
        request_id=str(uuid.uuid4()),
        task=job_pb2.Task(report=job_pb2.ReportTask()),
        inputs=[job_pb2.Input(upload=uploaded.upload.name)],
    )
    return jobs.SubmitJob(request, metadata=metadata, timeout=CALL_SECONDS).job.name


def watch(jobs, metadata, name):
    """Follows the job to its end; returns its final state, the stages it went through and the text as streamed."""
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
            final = job_pb2.JobState.Name(event.final.state)
    return final, stages, text.decode()


def main():
    address, token, path = sys.argv[1:]
    metadata = [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(address) as channel:
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        name = submit(jobs, metadata, path)
        final, stages, streamed = watch(jobs, metadata, name)
        request = job_service_pb2.GetResultRequest(name=name)
        result = jobs.GetResult(request, metadata=metadata, timeout=CALL_SECONDS).result
    print(
        json.dumps(
            {
                "job": name,
                "state": final,
                "stages": stages,
                "draft": result.draft,
                "streamed": streamed,
                "text": result.report.text,
            }
        )
    )


if __name__ == "__main__":
    main()
