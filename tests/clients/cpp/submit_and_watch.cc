// Submits a study to medfleet, follows it to its end and prints the draft as one line of JSON.
//
// Everything this program knows of the API comes from the .proto files. Generate, compile and link with:
//
//     protoc -I proto --cpp_out=OUT --grpc_out=OUT --plugin=protoc-gen-grpc=$(which grpc_cpp_plugin) proto/medfleet/v1/*.proto
//     g++ -std=c++17 -I OUT submit_and_watch.cc OUT/medfleet/v1/*.cc -lgrpc++ -lprotobuf
//
// Usage: submit_and_watch ADDRESS TOKEN IMAGE        (ADDRESS is host:port)

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>

#include "medfleet/v1/job_service.grpc.pb.h"

namespace api = medfleet::v1;

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
constexpr std::chrono::seconds kCallTime{60};
constexpr std::chrono::seconds kWatchTime{300};

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

// Sends what is coming, then the bytes in order; returns the upload's name.
std::string Upload(api::JobService::Stub& jobs, const std::string& token, const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot open the image");
  api::UploadInputRequest request;
  request.mutable_start()->set_total_bytes(static_cast<std::uint64_t>(file.tellg()));
  file.seekg(0);

  Call call(token, kCallTime);
  api::UploadInputResponse response;
  auto writer = jobs.UploadInput(&call.context, &response);
  bool open = writer->Write(request);
  std::vector<char> buffer(kChunkBytes);
  while (open && file) {
    file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    if (file.gcount() == 0) break;
    request.set_chunk(buffer.data(), static_cast<std::size_t>(file.gcount()));
    open = writer->Write(request);
  }
  // A refused write is not the whole story: the status says why.
  writer->WritesDone();
  Check(writer->Finish(), "UploadInput");
  return response.upload().name();
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
  std::string state;
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
        seen.state = api::JobState_Name(event.final().state());
        break;
      default:
        break;  // A kind of event newer than this program.
    }
  }
  Check(reader->Finish(), "WatchJob");
  return seen;
}

void Print(const std::string& name, const Seen& seen, const api::Result& result) {
  google::protobuf::Struct line;
  auto& fields = *line.mutable_fields();
  fields["job"].set_string_value(name);
  fields["state"].set_string_value(seen.state);
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
  if (argc != 4) {
    std::cerr << "usage: submit_and_watch ADDRESS TOKEN IMAGE" << std::endl;
    return 2;
  }
  try {
    const std::string token = argv[2];
    auto jobs = api::JobService::NewStub(grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials()));
    const std::string name = Submit(*jobs, token, Upload(*jobs, token, argv[3]));
    const Seen seen = Watch(*jobs, token, name);
    Call call(token, kCallTime);
    api::GetResultRequest request;
    request.set_name(name);
    api::GetResultResponse response;
    Check(jobs->GetResult(&call.context, request, &response), "GetResult");
    Print(name, seen, response.result());
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "submit_and_watch: " << error.what() << std::endl;
    return 1;
  }
}
