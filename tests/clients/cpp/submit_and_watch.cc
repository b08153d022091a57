// Submits a study to medfleet, follows it to its end and prints the draft as one line of JSON.
//
// Everything this program knows of the API comes from the .proto files. Generate, compile and link with:
//
//     protoc -I proto --cpp_out=OUT --grpc_out=OUT --plugin=protoc-gen-grpc=$(which grpc_cpp_plugin) proto/medfleet/v1/*.proto
//     g++ -std=c++17 -I OUT submit_and_watch.cc OUT/medfleet/v1/*.cc -Wl,--copy-dt-needed-entries -lgrpc++ -lgrpc -lgpr
//         -lprotobuf -lpthread
//
// Usage: submit_and_watch ADDRESS TOKEN IMAGE [CA_FILE]        (ADDRESS is host:port)
//
// CA_FILE holds the authority of the fleet's certificate, as PEM. Without it token and image are sent in plain text: do that on
// one machine only.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>

#include "medfleet/v1/job_service.grpc.pb.h"

namespace api = medfleet::v1;

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
constexpr std::chrono::seconds kCallTime{60};
constexpr std::chrono::seconds kWatchTime{300};
constexpr std::chrono::seconds kLongestPause{8};

// A call with the tenant's token and a time by which it must have ended.
class Call {
 public:
  Call(const std::string& token, std::chrono::seconds time) {
    context.AddMetadata("authorization", "Bearer " + token);
    context.set_deadline(std::chrono::system_clock::now() + time);
  }
  grpc::ClientContext context;
};

void Check(const grpc::Status& status, const std::string& what) {
  if (!status.ok()) {
    throw std::runtime_error(what + ": " + status.error_message() + " (code " + std::to_string(status.error_code()) + ")");
  }
}

// With TLS where there is an authority to trust.
std::shared_ptr<grpc::Channel> Connect(const std::string& address, const char* ca_file) {
  if (ca_file == nullptr) return grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  std::ifstream file(ca_file, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open the authority's file");
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  return grpc::CreateChannel(address, grpc::SslCredentials(options));
}

// One upload stream: what it is about, then the bytes of the image from there on; without an image it only opens the upload.
grpc::Status Send(api::JobService::Stub& jobs, const std::string& token, const api::UploadStart& start, std::ifstream* image,
                  api::Upload* upload) {
  Call call(token, kCallTime);
  api::UploadInputResponse response;
  auto writer = jobs.UploadInput(&call.context, &response);
  api::UploadInputRequest request;
  *request.mutable_start() = start;
  bool open = writer->Write(request);
  std::vector<char> buffer(kChunkBytes);
  while (open && image != nullptr && *image) {
    image->read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    if (image->gcount() == 0) break;
    request.set_chunk(buffer.data(), static_cast<std::size_t>(image->gcount()));
    open = writer->Write(request);
  }
  // A refused write is not the whole story: the status says why.
  writer->WritesDone();
  grpc::Status status = writer->Finish();
  if (status.ok()) *upload = response.upload();
  return status;
}

// How much of an upload is stored.
grpc::Status Ask(api::JobService::Stub& jobs, const std::string& token, api::Upload* upload) {
  Call call(token, kCallTime);
  api::GetUploadRequest request;
  request.set_name(upload->name());
  api::GetUploadResponse response;
  grpc::Status status = jobs.GetUpload(&call.context, request, &response);
  if (status.ok()) *upload = response.upload();
  return status;
}

// Uploads the image and returns the name of the upload; goes on from what is stored when a stream breaks.
std::string Upload(api::JobService::Stub& jobs, const std::string& token, const std::string& path) {
  std::ifstream image(path, std::ios::binary | std::ios::ate);
  if (!image) throw std::runtime_error("cannot open the image");
  api::UploadStart start;
  start.set_total_bytes(static_cast<std::uint64_t>(image.tellg()));
  // Opened by a stream of its own: without a name there would be nothing to go on with.
  api::Upload upload;
  Check(Send(jobs, token, start, nullptr, &upload), "UploadInput");
  start.set_upload(upload.name());
  for (std::chrono::seconds pause{1};; pause *= 2) {
    grpc::Status status = Ask(jobs, token, &upload);
    if (status.ok()) {
      start.set_offset(upload.committed_bytes());
      image.clear();
      image.seekg(static_cast<std::streamoff>(upload.committed_bytes()));
      status = Send(jobs, token, start, &image, &upload);
    }
    const bool resumable =
        status.error_code() == grpc::StatusCode::UNAVAILABLE || status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
    if (!resumable || pause > kLongestPause) {
      Check(status, "UploadInput");
      return upload.name();
    }
    std::this_thread::sleep_for(pause);
  }
}

std::string Submit(api::JobService::Stub& jobs, const std::string& token, const std::string& upload) {
  Call call(token, kCallTime);
  api::SubmitJobRequest request;
  // Sent again after a broken connection, the same id gives the same job.
  std::random_device random;
  request.set_request_id("cpp-" + std::to_string(random()) + "-" + std::to_string(random()));
  request.mutable_task()->mutable_report();
  request.add_inputs()->set_upload(upload);
  api::SubmitJobResponse response;
  Check(jobs.SubmitJob(&call.context, request, &response), "SubmitJob");
  return response.job().name();
}

struct Seen {
  api::Job ended;
  std::vector<std::string> stages;
  std::string streamed;
};

Seen Watch(api::JobService::Stub& jobs, const std::string& token, const std::string& name) {
  Call call(token, kWatchTime);
  api::WatchJobRequest request;
  request.set_name(name);
  auto reader = jobs.WatchJob(&call.context, request);
  Seen seen;
  api::WatchJobResponse event;
  while (reader->Read(&event)) {
    switch (event.event_case()) {
      case api::WatchJobResponse::kProgress: {
        const std::string& stage = api::JobState_Name(event.progress().state());
        if (std::find(seen.stages.begin(), seen.stages.end(), stage) == seen.stages.end()) seen.stages.push_back(stage);
        break;
      }
      case api::WatchJobResponse::kText:
        seen.streamed += event.text().text();
        break;
      case api::WatchJobResponse::kReset:
        seen.streamed.clear();
        break;
      case api::WatchJobResponse::kFinal:
        seen.ended = event.final();
        break;
      default:
        break;  // A kind of event newer than this program.
    }
  }
  Check(reader->Finish(), "WatchJob");
  return seen;
}

// A job that did not complete has no result. Only a failed one says more: a refused image, for example.
void CheckCompleted(const api::Job& job) {
  if (job.state() == api::JOB_STATE_COMPLETED) return;
  std::string what = job.name() + " ended " + api::JobState_Name(job.state());
  if (job.has_failure()) what += ": " + api::FailureReason_Name(job.failure().reason()) + ": " + job.failure().message();
  throw std::runtime_error(what);
}

void Print(const Seen& seen, const api::Result& result) {
  google::protobuf::Struct line;
  auto& fields = *line.mutable_fields();
  fields["job"].set_string_value(seen.ended.name());
  fields["state"].set_string_value(api::JobState_Name(seen.ended.state()));
  for (const std::string& stage : seen.stages) {
    fields["stages"].mutable_list_value()->add_values()->set_string_value(stage);
  }
  fields["draft"].set_bool_value(result.draft());
  fields["streamed"].set_string_value(seen.streamed);
  fields["text"].set_string_value(result.report().text());
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(line, &json).ok()) throw std::runtime_error("cannot write JSON");
  std::cout << json << std::endl;
}

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    std::cerr << "usage: submit_and_watch ADDRESS TOKEN IMAGE [CA_FILE]" << std::endl;
    return 2;
  }
  try {
    const std::string token = argv[2];
    auto jobs = api::JobService::NewStub(Connect(argv[1], argc == 5 ? argv[4] : nullptr));
    const std::string name = Submit(*jobs, token, Upload(*jobs, token, argv[3]));
    const Seen seen = Watch(*jobs, token, name);
    CheckCompleted(seen.ended);
    Call call(token, kCallTime);
    api::GetResultRequest request;
    request.set_name(name);
    api::GetResultResponse response;
    Check(jobs->GetResult(&call.context, request, &response), "GetResult");
    Print(seen, response.result());
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "submit_and_watch: " << error.what() << std::endl;
    return 1;
  }
}
