// SPDX-License-Identifier: Apache-2.0
// team.h: the threads that run CPU kernels.
//
// A kernel is one function that every thread of a team calls with its own Worker. It shares work by
// rank or by take(), meets the others at barrier(), and need not end with a barrier: who runs it puts
// one behind it. A kernel's result never depends on the size of the team or on who took what.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pagedserve::cpu {

// Memory that grows and is reused; 64-byte aligned.
class Arena {
 public:
  Arena() = default;
  Arena(Arena&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();
  void* at_least(size_t bytes);

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

class Team;

struct Range {
  int64_t begin, end;
};

class Worker {
 public:
  Worker(Team& team, int rank) : team_(team), rank_(rank) {}
  int rank() const { return rank_; }
  int size() const;
  void barrier();
  // This thread's contiguous part of `count` tasks.
  Range share(int64_t count) const;
  // The first of `count` task numbers nobody else gets; numbers start again at 0 behind each barrier.
  int64_t take(int64_t count = 1);
  // This thread's own memory; valid until its next call.
  void* scratch(size_t bytes);
  // Memory the whole team sees; every thread calls it with the same size, and it holds a barrier.
  // Valid until the next call.
  void* shared_scratch(size_t bytes);

 private:
  Team& team_;
  int rank_;
};

// Threads that meet hundreds of times in a few milliseconds must run at the same time. Where other programs
// take their processors, each barrier can cost a time slice: a step of 4 ms took 570 ms on 2 cores with a load
// of 8. A team that took longer than one thread would have goes on alone for a time in proportion, then tries again.
class Team {
 public:
  explicit Team(int num_threads);
  int size() const { return static_cast<int>(arenas_.size()); }
  // Whether a run that starts now would be on one thread.
  bool alone() const;

  // Calls body(worker) on every thread. One caller at a time.
  template <class Body>
  void run(const Body& body) {
    run([](const void* f, Worker& worker) { (*static_cast<const Body*>(f))(worker); }, &body);
  }

 private:
  friend class Worker;
  void run(void (*call)(const void*, Worker&), const void* body);
  void run_alone(void (*call)(const void*, Worker&), const void* body);
  void judge(int64_t end_ns, int64_t wall_ns, int64_t least_cpu_ns);

  std::vector<Arena> arenas_;  // one a thread
  int64_t alone_until_ns_ = 0;  // of the monotonic clock
  int running_ = 1;  // threads of this run: the runtime may give fewer than asked for
  Arena shared_;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace pagedserve::cpu
