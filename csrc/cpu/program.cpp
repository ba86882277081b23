// SPDX-License-Identifier: Apache-2.0
#include "program.h"

#include <algorithm>
#include <chrono>
#include <iterator>

namespace pagedserve::cpu {

namespace {

// Below this many elements an op takes less than a barrier (about 0.3 us) more on one thread than on two.
constexpr int64_t kAloneElements = 2048;
constexpr int64_t kNeverAlone = INT64_MAX;

template <class... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};
template <class... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;

void set_count(Program::Params& params, Per per, const StepCounts& counts) {
  const int64_t rows = per == Per::kRow ? counts.rows : counts.tokens;
  std::visit(Overloaded{[&](PagedAttentionParams& p) { p.num_seqs = static_cast<int32_t>(counts.seqs); },
                        [&](TakeRowsParams& p) { p.num_rows = counts.rows; }, [&](auto& p) { p.num_tokens = rows; }},
             params);
}

// Elements an op works on, weighted by what one costs beside a norm's.
int64_t elements(const Program::Params& params) {
  return std::visit(Overloaded{[](const EmbedParams& p) { return 4 * p.num_tokens * p.hidden; },
                               [](const RmsNormParams& p) { return p.num_tokens * p.num_heads * p.hidden; },
                               [](const QuantizeRowsParams& p) { return p.num_tokens * p.width; },
                               [](const RopeParams& p) { return p.num_tokens * p.num_heads * p.rotary_dim; },
                               [](const AppendKvParams& p) { return p.num_tokens * p.num_kv_heads * p.head_dim * 2; },
                               [](const ActMulParams& p) { return 4 * p.num_tokens * p.intermediate; },
                               [](const TakeRowsParams& p) { return p.num_rows * p.hidden; },
                               [](const SoftCapParams& p) { return 8 * p.num_tokens * p.hidden; },
                               [](const auto&) { return kNeverAlone; }},
                    params);
}

std::string name(const Program::Params& params) {
  constexpr const char* ops[] = {"embed",     "rms_norm",  "quantize_rows", "linear",    "rope",
                                 "append_kv", "attention", "act_mul",       "take_rows", "soft_cap"};
  static_assert(std::variant_size_v<Program::Params> == std::size(ops));
  constexpr const char* formats[] = {"f32", "bf16", "q8", "q4"};
  const std::string op = ops[params.index()];
  const auto* linear = std::get_if<LinearParams>(&params);
  if (linear == nullptr) return op;
  return op + " " + formats[static_cast<int>(linear->format)] + " " + std::to_string(linear->out_features) + "x" +
         std::to_string(linear->in_features);
}

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

void Program::call(Op& op, Worker& worker) {
  std::visit(Overloaded{[&](const EmbedParams& p) { kernels_.embed(p, worker); },
                        [&](const RmsNormParams& p) { kernels_.rms_norm(p, worker); },
                        [&](const QuantizeRowsParams& p) { kernels_.quantize_rows(p, worker); },
                        [&](const LinearParams& p) { kernels_.linear(p, worker); },
                        [&](const RopeParams& p) { kernels_.rope(p, worker); },
                        [&](const AppendKvParams& p) { kernels_.append_kv(p, worker); },
                        [&](const PagedAttentionParams& p) { kernels_.paged_attention(p, worker); },
                        [&](const ActMulParams& p) { kernels_.act_mul(p, worker); },
                        [&](const TakeRowsParams& p) { kernels_.take_rows(p, worker); },
                        [&](const SoftCapParams& p) { kernels_.soft_cap(p, worker); }},
             op.params);
}

void Program::group(const StepCounts& counts) {
  groups_.clear();
  int64_t sum = 0;
  for (size_t i = 0; i < ops_.size(); ++i) {
    set_count(ops_[i].params, ops_[i].per, counts);
    const int64_t own = elements(ops_[i].params);
    const bool alone = own <= kAloneElements;
    if (alone && !groups_.empty() && groups_.back().alone && sum + own <= kAloneElements) {
      groups_.back().end = i + 1;
      sum += own;
    } else {
      groups_.push_back({i, i + 1, alone});
      sum = own;
    }
  }
}

void Program::run(Team& team, const StepCounts& counts) {
  check(inputs_, counts);
  group(counts);
  // A team that is alone for a few milliseconds is so for a few ops of a long step: it is asked again behind each.
  for (size_t next = 0; next < groups_.size();) {
    const size_t end = team.size() > 1 && team.alone() ? next + 1 : groups_.size();
    team.run([&](Worker& worker) { run_groups(worker, next, end); });
    next = end;
  }
}

void Program::run_groups(Worker& worker, size_t begin, size_t end) {
  Worker alone(alone_, 0);
  int64_t before = profiling_ ? now_ns() : 0;
  const auto done = [&](Op& op) {
    if (!profiling_ || worker.rank() != 0) return;
    const int64_t now = now_ns();
    op.ns += now - before, op.calls += 1;
    before = now;
  };
  for (size_t at = begin; at < end; ++at) {
    const Group& group = groups_[at];
    if (group.alone && worker.rank() == 0) {
      for (size_t i = group.begin; i + 1 < group.end; ++i) call(ops_[i], alone), done(ops_[i]);
      call(ops_[group.end - 1], alone);
    }
    if (!group.alone) call(ops_[group.begin], worker);
    worker.barrier();
    done(ops_[group.end - 1]);
  }
}

void Program::start_profile() {
  profiling_ = true;
  for (Op& op : ops_) op.calls = op.ns = 0;
}

std::vector<Program::Timing> Program::profile() const {
  std::vector<Timing> timings;
  for (const Op& op : ops_) {
    const std::string kind = name(op.params);
    auto at = std::find_if(timings.begin(), timings.end(), [&](const Timing& t) { return t.name == kind; });
    if (at == timings.end()) at = timings.insert(at, {kind, 0, 0});
    at->calls += op.calls, at->ns += op.ns;
  }
  return timings;
}

}  // namespace pagedserve::cpu
