// The open-loop sender: requests at fixed times, whatever becomes of earlier ones. bench/open_loop.py starts it
// and says what its arguments and its report mean. Linux 5.11 and glibc 2.35 at least, for epoll_pwait2.
//
// One thread, and as few instructions a request as possible, since it shares the cores of what it measures: a request
// stands ready, its number is written into its places, and it is sent from where it lies.

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr int CONNECTIONS_AT_FIRST = 32;
constexpr int SEND_BUFFER_BYTES = 1 << 20;
constexpr int EVENTS = 256;
constexpr size_t MORE_THAN_COMES = SIZE_MAX / 2;

[[noreturn]] void refuse(const char *why) {
  std::fprintf(stderr, "%s\n", why);
  std::exit(1);
}

[[noreturn]] void fail(const char *what) {
  const bool timed_out = errno == EINPROGRESS || errno == EAGAIN;
  refuse((std::string(what) + ": " + (timed_out ? "timed out" : std::strerror(errno))).c_str());
}

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

timespec timespec_of(double seconds) {
  const double whole = std::floor(std::max(0.0, seconds));
  return {static_cast<time_t>(whole), static_cast<long>(1e9 * (std::max(0.0, seconds) - whole))};
}

struct Job {
  sockaddr_in address{};
  double rate, seconds;
  double begin_at;   // on CLOCK_MONOTONIC
  double answers_s;  // how long the last answers are waited for
  size_t most_connections;
  bool send_late, prompt;
  std::string run;    // what every number begins with
  std::string marks;  // stand where a number goes
};

// A whole request, and where its number goes.
struct Request {
  std::string text;
  std::vector<size_t> places;

  Request(std::string whole, const std::string &marks) : text(std::move(whole)) {
    for (size_t at = text.find(marks); at != std::string::npos; at = text.find(marks, at + marks.size()))
      places.push_back(at);
    if (places.empty()) refuse("a request has no place for its number");
  }

  void put(const std::string &number) {
    for (const size_t at : places) std::memcpy(&text[at], number.data(), number.size());
  }
};

struct Connection {
  explicit Connection(int open) : fd(open) {}

  int fd;
  bool waits = false;  // a request is under way
  double due_at = 0;
  std::string unsent, received;
};

class Sender {
 public:
  Sender(Job job, std::vector<Request> requests) : job_(std::move(job)), requests_(std::move(requests)) {
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ < 0) fail("epoll_create1");
    total_ = static_cast<size_t>(job_.rate * job_.seconds);
    latencies_.reserve(total_);
    late_us_.reserve(total_);
  }

  void run() {
    for (int i = 0; i < CONNECTIONS_AT_FIRST; ++i) free_.push_back(connect());
    const double end_at = job_.begin_at + job_.seconds + (job_.send_late ? job_.answers_s : 0);
    for (double time; sent_ < total_ && (time = now()) < end_at;) {
      const double due_at = job_.begin_at + static_cast<double>(sent_) / job_.rate;
      Connection *connection;
      if (time >= due_at && (connection = take()) != nullptr) {
        send(*connection, due_at);
        receive(0);
      } else if (time < due_at && !job_.prompt) {
        const timespec until = timespec_of(due_at);  // an answer does not wake it
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
        receive(0);
      } else {
        receive((time < due_at ? due_at : end_at) - time);  // without a free connection only an answer helps
      }
    }
    const double give_up_at = now() + job_.answers_s;
    while (under_way_ > 0 && now() < give_up_at) receive(0.1);
  }

  void report() const {
    std::printf("{\"answered\":%zu,\"unsent\":%zu,\"unanswered\":%zu,\"connections\":%zu,\"statuses\":{",
                latencies_.size(), total_ - sent_, under_way_ + broken_, open_);
    const char *comma = "";
    for (const auto &[status, count] : statuses_) {
      std::printf("%s\"%s\":%zu", comma, status.c_str(), count);
      comma = ",";
    }
    std::printf("},\"sent_late_us\":[");
    comma = "";
    for (const double us : late_us_) {
      std::printf("%s%.1f", comma, us);
      comma = ",";
    }
    std::printf("],\"latencies\":[");
    comma = "";
    for (const auto &[at, us] : latencies_) {
      std::printf("%s[%.4f,%.1f]", comma, at, us);
      comma = ",";
    }
    std::printf("]}\n");
  }

 private:
  Connection *connect() {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("socket");
    const timeval patience{10, 0};
    const int yes = 1;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (::connect(fd, reinterpret_cast<const sockaddr *>(&job_.address), sizeof job_.address)) fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &SEND_BUFFER_BYTES, sizeof SEND_BUFFER_BYTES);
    all_.push_back(std::make_unique<Connection>(fd));
    ++open_;
    watch(*all_.back(), EPOLL_CTL_ADD, EPOLLIN);
    return all_.back().get();
  }

  void watch(Connection &connection, int how, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.ptr = &connection;
    if (epoll_ctl(epoll_, how, connection.fd, &event)) fail("epoll_ctl");
  }

  Connection *take() {
    if (!free_.empty()) {
      Connection *connection = free_.front();
      free_.pop_front();
      return connection;
    }
    return open_ < job_.most_connections ? connect() : nullptr;
  }

  void send(Connection &connection, double due_at) {
    const std::string count = std::to_string(sent_);
    Request &request = requests_[sent_ % requests_.size()];
    request.put(job_.run + std::string(job_.marks.size() - job_.run.size() - count.size(), '0') + count);
    connection.waits = true;
    connection.due_at = due_at;
    ++under_way_;
    ++sent_;
    late_us_.push_back(1e6 * (now() - due_at));
    push(connection, request.text);
  }

  void push(Connection &connection, std::string_view data) {
    const ssize_t done = ::send(connection.fd, data.data(), data.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (done < 0 && errno != EAGAIN) return cut(connection);
    connection.unsent = data.substr(done < 0 ? 0 : static_cast<size_t>(done));
    if (!connection.unsent.empty()) watch(connection, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
  }

  void push_on(Connection &connection) {
    const std::string rest = std::move(connection.unsent);
    push(connection, rest);
    if (connection.fd >= 0 && connection.unsent.empty()) watch(connection, EPOLL_CTL_MOD, EPOLLIN);
  }

  void receive(double timeout_s) {
    epoll_event events[EVENTS];
    const timespec timeout = timespec_of(timeout_s);
    const int count = epoll_pwait2(epoll_, events, EVENTS, &timeout, nullptr);
    if (count < 0 && errno != EINTR) fail("epoll_pwait2");
    for (int i = 0; i < count; ++i) {
      Connection &connection = *static_cast<Connection *>(events[i].data.ptr);
      if (events[i].events & EPOLLOUT && !connection.unsent.empty()) push_on(connection);
      if (events[i].events & ~EPOLLOUT && connection.fd >= 0) read(connection);
    }
  }

  void read(Connection &connection) {
    char buffer[65536];
    const ssize_t size = ::recv(connection.fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0 || !connection.waits) return cut(connection);
    connection.received.append(buffer, static_cast<size_t>(size));
    const std::string &data = connection.received;
    const size_t head = data.find("\r\n\r\n");
    if (head == std::string::npos || data.size() < head + 4 + content_length(data, head)) return;
    const std::string status = data.substr(0, 12);
    if (status.find("HTTP/1.") != 0 || status.find_first_not_of("0123456789", 9) != std::string::npos)
      return cut(connection);
    latencies_.emplace_back(connection.due_at - job_.begin_at, 1e6 * (now() - connection.due_at));
    ++statuses_[status.substr(9)];
    connection.received.clear();
    connection.waits = false;
    --under_way_;
    free_.push_back(&connection);
    if (!connection.unsent.empty()) cut(connection);  // the next request would follow half of this one
  }

  // Where it is missing, or no number, more than can come: such an answer is never whole.
  static size_t content_length(const std::string &data, size_t head) {
    static constexpr std::string_view NAME = "\r\ncontent-length:";
    for (size_t at = data.find("\r\n"); at < head; at = data.find("\r\n", at + 2)) {
      if (strncasecmp(&data[at], NAME.data(), NAME.size()) != 0) continue;
      const size_t value = data.find_first_not_of(' ', at + NAME.size());
      if (std::isdigit(static_cast<unsigned char>(data[value])))
        return std::min<unsigned long long>(std::strtoull(&data[value], nullptr, 10), MORE_THAN_COMES);
    }
    return MORE_THAN_COMES;
  }

  // The other side has closed it; a request that it carried has no answer.
  void cut(Connection &connection) {
    close(connection.fd);
    connection.fd = -1;
    connection.unsent.clear();
    --open_;
    if (connection.waits) {
      connection.waits = false;
      --under_way_;
      ++broken_;
    } else {
      free_.erase(std::remove(free_.begin(), free_.end(), &connection), free_.end());
    }
  }

  Job job_;
  std::vector<Request> requests_;
  int epoll_;
  std::vector<std::unique_ptr<Connection>> all_;
  std::deque<Connection *> free_;
  size_t total_, sent_ = 0, under_way_ = 0, broken_ = 0, open_ = 0;
  std::vector<std::pair<double, double>> latencies_;
  std::vector<double> late_us_;
  std::map<std::string, size_t> statuses_;
};

// Each stands behind its length, 4 bytes in the machine's order.
std::vector<Request> requests(FILE *file, const std::string &marks) {
  std::vector<Request> found;
  uint32_t size;
  while (const size_t got = std::fread(&size, 1, sizeof size, file)) {
    std::string text(got == sizeof size ? size : 0, '\0');
    if (got != sizeof size || std::fread(&text[0], 1, size, file) != size) refuse("a request is cut short");
    found.emplace_back(std::move(text), marks);
  }
  if (found.empty()) refuse("there is no request to send");
  return found;
}

}  // namespace

int main(int count, char **arguments) {
  if (count != 12) refuse("11 arguments are wanted");
  Job job{};
  job.address.sin_family = AF_INET;
  job.address.sin_port = htons(static_cast<uint16_t>(std::atoi(arguments[2])));
  if (inet_pton(AF_INET, arguments[1], &job.address.sin_addr) != 1) refuse("an IPv4 address is wanted");
  job.rate = std::atof(arguments[3]);
  job.seconds = std::atof(arguments[4]);
  job.begin_at = std::atof(arguments[5]);
  job.answers_s = std::atof(arguments[6]);
  job.most_connections = static_cast<size_t>(std::atoi(arguments[7]));
  job.send_late = std::atoi(arguments[8]) != 0;
  job.prompt = std::atoi(arguments[9]) != 0;
  job.run = arguments[10];
  job.marks = arguments[11];
  auto ready = requests(stdin, job.marks);
  Sender sender(std::move(job), std::move(ready));
  sender.run();
  sender.report();
}
