// Submits a study to medfleet, follows it to its end and prints the draft as one line of JSON.
//
// Everything this program knows of the API comes from the .proto files. Generate, compile and link with:
//
//     protoc -I proto -I tests/clients --cpp_out=OUT --grpc_out=OUT --plugin=protoc-gen-grpc=$(which grpc_cpp_plugin)
//         proto/medfleet/v1/*.proto tests/clients/details.proto
//     g++ -std=c++17 -I OUT submit_and_watch.cc OUT/*.cc OUT/medfleet/v1/*.cc -Wl,--copy-dt-needed-entries -lgrpc++ -lgrpc
//         -lgpr -lprotobuf -lpthread
//
// Usage: submit_and_watch ADDRESS TOKEN IMAGE [CA_FILE]        (ADDRESS is host:port)
//
// CA_FILE holds the authority of the fleet's certificate, as PEM. Without it token and image are sent in plain text: do that on
// one machine only.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
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

#include "details.pb.h"
#include "medfleet/v1/job_service.grpc.pb.h"

namespace api = medfleet::v1;

// Each comes whole within the minute that the fleet waits for it, also on a slow line.
constexpr std::size_t kChunkBytes = std::size_t{256} << 10;
constexpr std::chrono::seconds kCallTime{60};
// A watch goes on after it, from where it is: so a connection that died in silence is noticed.
constexpr std::chrono::seconds kWatchTime{300};
// The slowest line that an upload is given the time of.
constexpr std::uint64_t kUploadBytesPerSecondMin = 16 << 10;
constexpr double kLongestPauseSeconds = 30;
constexpr int kMostTries = 8;

// A call with the tenant's token and a time by which it must have ended.
class Call {
 public:
  Call(const std::string& token, std::chrono::seconds time) {
    context.AddMetadata("authorization", "Bearer " + token);
    context.set_deadline(std::chrono::system_clock::now() + time);
  }
  grpc::ClientContext context;
};

// The name of a value of an enumeration; the number of one that a later release has added, which is no error.
template <typename Enum>
std::string Word(Enum value) {
  const auto* known = google::protobuf::GetEnumDescriptor<Enum>()->FindValueByNumber(static_cast<int>(value));
  return known == nullptr ? std::to_string(static_cast<int>(value)) : std::string(known->name());
}

// Seconds that the fleet asks to wait: RetryInfo among the details of the status; below 0 without one.
double DelayAsked(const grpc::Status& status) {
  details::Status all;
  if (!all.ParseFromString(status.error_details())) return -1;
  for (const google::protobuf::Any& detail : all.details()) {
    const std::string& type = detail.type_url();
    details::RetryInfo info;
    if (type.substr(type.rfind('/') + 1) != "google.rpc.RetryInfo" || !info.ParseFromString(detail.value())) continue;
    return static_cast<double>(info.retry_delay().seconds()) + info.retry_delay().nanos() / 1e9;
  }
  return -1;
}

// Waits after the `tries`-th failure in a row; throws where another try would not help.
void Pause(int tries, const grpc::Status& status, const std::string& what) {
  const double asked = DelayAsked(status);
  const grpc::StatusCode code = status.error_code();
  const char* name = nullptr;
  if (code == grpc::StatusCode::UNAVAILABLE) name = "UNAVAILABLE";
  if (code == grpc::StatusCode::DEADLINE_EXCEEDED) name = "DEADLINE_EXCEEDED";
  // An older stream of the upload has stored more meanwhile.
  if (code == grpc::StatusCode::ABORTED) name = "ABORTED";
  if (code == grpc::StatusCode::RESOURCE_EXHAUSTED && asked >= 0) name = "RESOURCE_EXHAUSTED";
  // Where the fleet has said nothing of it: some libraries call a connection that broke so.
  if (status.error_details().empty()) {
    if (code == grpc::StatusCode::UNKNOWN) name = "UNKNOWN";
    if (code == grpc::StatusCode::CANCELLED) name = "CANCELLED";
    if (code == grpc::StatusCode::INTERNAL) name = "INTERNAL";
  }
  if (name == nullptr || tries >= kMostTries) {
    throw std::runtime_error(what + ": " + status.error_message() + " (code " + std::to_string(code) + ")");
  }
  // A little longer by chance, so that many clients do not come back at once.
  static std::mt19937 random{std::random_device{}()};
  double seconds = asked >= 0 ? asked : std::min(static_cast<double>(1 << (tries - 1)), kLongestPauseSeconds);
  seconds *= std::uniform_real_distribution<double>(1, 1.25)(random);
  std::fprintf(stderr, "submit_and_watch: %s, again in %.1f s\n", name, seconds);
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

// Makes a call until it is answered; each try has a context of its own.
void Answer(const std::string& token, const std::string& what, const std::function<grpc::Status(grpc::ClientContext*)>& make) {
  for (int tries = 1;; ++tries) {
    Call call(token, kCallTime);
    const grpc::Status status = make(&call.context);
    if (status.ok()) return;
    Pause(tries, status, what);
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
grpc::Status Send(api::JobService::Stub& jobs, grpc::ClientContext* context, const api::UploadStart& start,
                  std::ifstream* image, api::Upload* upload) {
  api::UploadInputResponse response;
  auto writer = jobs.UploadInput(context, &response);
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

// Uploads the image and returns the name of the upload; goes on from what is stored when a stream breaks.
std::string Upload(api::JobService::Stub& jobs, const std::string& token, const std::string& path) {
  std::ifstream image(path, std::ios::binary | std::ios::ate);
  if (!image) throw std::runtime_error("cannot open the image");
  api::UploadStart start;
  start.set_total_bytes(static_cast<std::uint64_t>(image.tellg()));
  // Opened by a stream of its own: without a name there would be nothing to go on with.
  api::Upload known;
  Answer(token, "UploadInput", [&](auto* context) { return Send(jobs, context, start, nullptr, &known); });
  start.set_upload(known.name());
  for (int tries = 0; !known.complete();) {
    start.set_offset(known.committed_bytes());
    image.clear();
    image.seekg(static_cast<std::streamoff>(start.offset()));
    // A deadline that no part comes through in would begin the same part for ever.
    const std::uint64_t missing = start.total_bytes() - start.offset();
    Call call(token, kCallTime + std::chrono::seconds(missing / kUploadBytesPerSecondMin));
    const grpc::Status status = Send(jobs, &call.context, start, &image, &known);
    // Not complete all the same, where the file became shorter meanwhile: the fleet says so of the job.
    if (status.ok()) break;
    Pause(++tries, status, "UploadInput");
    api::GetUploadRequest request;
    request.set_name(start.upload());
    api::GetUploadResponse response;
    Answer(token, "GetUpload", [&](auto* context) { return jobs.GetUpload(context, request, &response); });
    known = response.upload();
    if (known.committed_bytes() > start.offset()) tries = 0;
  }
  return known.name();
}

std::string Submit(api::JobService::Stub& jobs, const std::string& token, const std::string& upload) {
  api::SubmitJobRequest request;
  // Sent again, the same id gives the same job. A program that may be restarted writes it down first.
  std::random_device random;
  request.set_request_id("cpp-" + std::to_string(random()) + "-" + std::to_string(random()));
  request.mutable_task()->mutable_report();
  request.add_inputs()->set_upload(upload);
  api::SubmitJobResponse response;
  Answer(token, "SubmitJob", [&](auto* context) { return jobs.SubmitJob(context, request, &response); });
  return response.job().name();
}

struct Seen {
  api::Job ended;
  std::vector<std::string> stages;
  std::string streamed;
};

// Takes in one event, and notes in the request where to go on.
void Note(const api::WatchJobResponse& event, Seen* seen, api::WatchJobRequest* request) {
  request->set_after_sequence(event.sequence());
  switch (event.event_case()) {
    case api::WatchJobResponse::kProgress: {
      const std::string stage = Word(event.progress().state());
      auto& stages = seen->stages;
      if (std::find(stages.begin(), stages.end(), stage) == stages.end()) stages.push_back(stage);
      break;
    }
    case api::WatchJobResponse::kText:
      seen->streamed.resize(event.text().offset_bytes());
      seen->streamed += event.text().text();
      request->mutable_text_position()->set_attempt(event.text().attempt());
      request->mutable_text_position()->set_offset_bytes(seen->streamed.size());
      break;
    case api::WatchJobResponse::kReset:
      seen->streamed.clear();
      request->mutable_text_position()->set_attempt(event.reset().attempt());
      request->mutable_text_position()->set_offset_bytes(0);
      break;
    case api::WatchJobResponse::kFinal:
      seen->ended = event.final();
      break;
    default:
      break;  // A kind of event newer than this program.
  }
}

// Follows the job to its end, from where it is when a stream breaks.
Seen Watch(api::JobService::Stub& jobs, const std::string& token, const std::string& name) {
  api::WatchJobRequest request;
  request.set_name(name);
  Seen seen;
  for (int tries = 1;; ++tries) {
    Call call(token, kWatchTime);
    auto reader = jobs.WatchJob(&call.context, request);
    api::WatchJobResponse event;
    while (reader->Read(&event)) {
      tries = 1;
      Note(event, &seen, &request);
    }
    grpc::Status status = reader->Finish();
    if (!seen.ended.name().empty()) return seen;
    if (status.ok()) status = grpc::Status(grpc::StatusCode::UNAVAILABLE, "the stream ended too soon");
    if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      // Nothing is wrong with a job that waits for its turn for so long, as long as the fleet answers.
      api::GetJobRequest asked;
      asked.set_name(name);
      api::GetJobResponse job;
      Answer(token, "GetJob", [&](auto* context) { return jobs.GetJob(context, asked, &job); });
      tries = 1;
    }
    Pause(tries, status, "WatchJob");
  }
}

// A job that did not complete has no result. Only a failed one says more: a refused image, for example.
void CheckCompleted(const api::Job& job) {
  if (job.state() == api::JOB_STATE_COMPLETED) return;
  std::string what = job.name() + " ended " + Word(job.state());
  if (job.has_failure()) what += ": " + Word(job.failure().reason()) + ": " + job.failure().message();
  throw std::runtime_error(what);
}

void Print(const Seen& seen, const api::Result& result) {
  google::protobuf::Struct line;
  auto& fields = *line.mutable_fields();
  fields["job"].set_string_value(seen.ended.name());
  fields["state"].set_string_value(Word(seen.ended.state()));
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
    api::GetResultRequest request;
    request.set_name(name);
    api::GetResultResponse response;
    Answer(token, "GetResult", [&](auto* context) { return jobs->GetResult(context, request, &response); });
    Print(seen, response.result());
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "submit_and_watch: " << error.what() << std::endl;
    return 1;
  }
}
