// SPDX-License-Identifier: Apache-2.0
#include "team.h"

#include <omp.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace pagedserve::cpu {

namespace {

constexpr size_t kAlign = 64;
// About 50 us on Zen 4: longer than most imbalance of a step, short beside a time slice.
constexpr int kSpinsBeforeYield = 2000;

// A run is judged if it lasted long enough for its share of running time to mean something.
constexpr int64_t kShortestJudged_ns = 500'000;
// Time alone for each nanosecond that a kept-up run lost: what trying again may cost is an eighth of what it may win.
constexpr int64_t kAlonePerLost = 8;

int64_t now_ns(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * int64_t{1'000'000'000} + t.tv_nsec;
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Arena::~Arena() { std::free(data_); }

void* Arena::at_least(size_t bytes) {
  if (bytes > size_) {
    const size_t rounded = (bytes + bytes / 2 + kAlign - 1) / kAlign * kAlign;
    std::free(data_);
    size_ = 0;
    data_ = std::aligned_alloc(kAlign, rounded);
    if (data_ == nullptr) throw std::bad_alloc();
    size_ = rounded;
  }
  return data_;
}

int Worker::size() const { return team_.running_; }

Range Worker::share(int64_t count) const { return {count * rank_ / size(), count * (rank_ + 1) / size()}; }

void Worker::barrier() {
  const uint32_t phase = team_.phase_.load(std::memory_order_relaxed);
  if (team_.arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == team_.running_) {
    team_.arrived_.store(0, std::memory_order_relaxed);
    team_.next_.store(0, std::memory_order_relaxed);
    team_.phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; team_.phase_.load(std::memory_order_acquire) == phase; ++spins) {
    if (spins < kSpinsBeforeYield) {
      relax();
    } else {
      sched_yield();
    }
  }
}

int64_t Worker::take(int64_t count) { return team_.next_.fetch_add(count, std::memory_order_relaxed); }

void* Worker::scratch(size_t bytes) { return team_.arenas_[rank_].at_least(bytes); }

void* Worker::shared_scratch(size_t bytes) {
  if (rank_ == 0) team_.shared_.at_least(bytes);
  barrier();
  return team_.shared_.at_least(0);
}

Team::Team(int num_threads) : arenas_(std::max(num_threads, 1)) {}

void Team::run_alone(void (*call)(const void*, Worker&), const void* body) {
  running_ = 1;
  Worker worker(*this, 0);
  call(body, worker);
}

void Team::judge(int64_t end_ns, int64_t wall_ns, int64_t least_cpu_ns) {
  // The thread that was kept from running longest did its share of the work and did not wait for others.
  const int64_t lost_ns = wall_ns - running_ * least_cpu_ns;
  if (wall_ns >= kShortestJudged_ns && lost_ns > 0) alone_until_ns_ = end_ns + kAlonePerLost * lost_ns;
}

bool Team::alone() const { return size() == 1 || now_ns(CLOCK_MONOTONIC) < alone_until_ns_; }

void Team::run(void (*call)(const void*, Worker&), const void* body) {
  next_.store(0, std::memory_order_relaxed);
  arrived_.store(0, std::memory_order_relaxed);
  if (size() == 1) return run_alone(call, body);
  const int64_t start = now_ns(CLOCK_MONOTONIC);
  if (start < alone_until_ns_) return run_alone(call, body);
  std::atomic<int64_t> least_cpu_ns{INT64_MAX};
#pragma omp parallel num_threads(size())
  {
#pragma omp single
    running_ = omp_get_num_threads();
    const int64_t cpu_start = now_ns(CLOCK_THREAD_CPUTIME_ID);
    Worker worker(*this, omp_get_thread_num());
    call(body, worker);
    const int64_t cpu_ns = now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_start;
    int64_t least = least_cpu_ns.load();
    while (cpu_ns < least && !least_cpu_ns.compare_exchange_weak(least, cpu_ns)) {
    }
  }
  const int64_t end = now_ns(CLOCK_MONOTONIC);
  judge(end, end - start, least_cpu_ns.load());
}

}  // namespace pagedserve::cpu
