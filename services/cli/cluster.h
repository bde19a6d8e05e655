// The four services: finding a cluster that runs, starting one as child processes, supervising it,
// stopping it. No gRPC here: a cluster is processes and addresses.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/cli/process.h"
#include "services/common/server.h"

namespace cogumi::cli {

// What the file $STATE/clusters/<supervisor's process id> says.
struct ClusterRecord {
  int64_t supervisor = 0;
  std::string mode;     // "serve" (one process), "split" (supervised processes), "run" (private)
  int64_t started = 0;  // Unix seconds
  // When the supervisor started, in clock ticks since the boot: a later process with its id is
  // another one.
  int64_t start_ticks = 0;
  std::string version;  // of the supervisor
  std::string binary;   // the supervisor's program
  std::string model;    // absolute path of the model file
  std::vector<services::ReadyLine> services;
  std::string path;  // of the file

  // nullptr when the cluster has no such service.
  const services::ReadyLine* Service(const std::string& name) const;
};

std::string FormatClusterRecord(const ClusterRecord& record);
absl::StatusOr<ClusterRecord> ParseClusterRecord(const std::string& text);

// The record of a cluster that this process supervises, without services and not written yet.
ClusterRecord RecordOfThisProcess(const std::string& mode, const std::string& model);
// Writes the record for other processes to find.
absl::Status WriteClusterRecord(ClusterRecord* record);
// True while the process that wrote the record runs.
bool IsRunning(const ClusterRecord& record);
// Records of clusters whose supervisor runs; files of dead ones are removed.
std::vector<ClusterRecord> FindClusters();
// The oldest cluster that serves others ("serve" or "split") with this model; "" is any model.
// With `this_build` only one whose program is the file that this process runs from.
std::optional<ClusterRecord> FindServingCluster(const std::string& model_path,
                                                bool this_build = false);

struct ClusterOptions {
  // For this program's own question: the gateway on a Unix socket only, no metrics, logs in files
  // that are shown when a start fails. Otherwise the services' own configuration decides, the
  // gateway's addresses included, and logs go to standard error.
  bool is_private = true;
  // A private cluster's sessions end with it unless this is set; then they are the user's.
  bool keep_sessions = false;
  std::string model;  // path
  std::string only;   // a single service by name; "": all four
  // The model that the catalogue's adapters are for; "": what its own configuration says.
  std::string adapter_base;
  // Where services behind the gateway listen; those that are not here get a socket of the
  // cluster's.
  std::map<std::string, std::string> addresses;
  // What the gateway dials instead of the cluster's own services, by their names.
  std::map<std::string, std::string> backends;
  // Further flags by service name.
  std::map<std::string, std::vector<std::string>> flags;
  double ready_seconds = 60;
};

class Cluster {
 public:
  // Starts the services and waits until each says that it is ready. The error names the service,
  // how it ended and the end of its log.
  static absl::StatusOr<std::unique_ptr<Cluster>> Start(const ClusterOptions& options);
  // Stops what still runs.
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  const ClusterRecord& record() const { return record_; }

  // Restarts services that end, with a growing pause, until SIGTERM or SIGINT comes; then drains:
  // the gateway first, so that running streams finish, then the rest. A second signal cuts it
  // short: what has not ended seconds after it is killed. What fails while a service is started
  // again is logged and tried again. SIGTERM, SIGINT and SIGCHLD must be blocked in this process:
  // see BlockSignals.
  absl::Status Supervise();
  static void BlockSignals();

 private:
  struct Member {
    std::string name;
    std::string address;  // to listen on; a free port becomes the one that was found
    std::vector<std::string> flags;
    std::string log_path;
    ChildProcess child;
    std::string output;  // of a start, until its ready line is complete
    bool ready = false;
    double started = 0;     // monotonic seconds
    double restart_at = 0;  // while it is down
    double pause = 0;       // before the next restart
  };

  explicit Cluster(const ClusterOptions& options) : options_(options) {}
  absl::Status Prepare();
  std::vector<std::string> FlagsOf(const Member& member) const;
  absl::Status Launch(Member& member);
  // Reads what the member wrote; true when its ready line is complete.
  absl::StatusOr<bool> ReadReady(Member& member);
  // Of those that were launched.
  absl::Status AwaitReady();
  absl::Status Failure(const Member& member, const std::string& what) const;
  void Reap(double now);
  // When a member is down: sets the time of its next start, each time later.
  static void Delay(Member& member, double now);
  // Launch and Record for Supervise.
  void Relaunch(Member& member, double now);
  void TryRecord(double now);
  // Waits for the end of the gateway's streams; `signals` is Supervise's descriptor.
  void Drain(int signals);
  // SIGTERM to the gateway, then to the others; SIGKILL to what does not end within seconds.
  void Stop();
  absl::Status Record();

  const ClusterOptions options_;
  ClusterRecord record_;
  std::vector<Member> members_;
  std::string socket_folder_;
  double record_at_ = 0;  // when the record is to be written again; 0: it is written
  bool stopped_ = false;
};

}  // namespace cogumi::cli
