// SPDX-License-Identifier: Apache-2.0
// program.h: a model's step, recorded once as a list of params structs and replayed by one team.
//
// A run enters one parallel region. Ops follow each other with a barrier between them; a run of small ops is done by
// one thread alone, which costs less than the barriers it saves. A program may not run on two threads at once: the
// counts of a run are written into its params.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "kernels.h"
#include "step_inputs.h"

namespace pagedserve::cpu {

// Which count says how many rows an op works on. Attention takes seqs, whatever its Per.
enum class Per : int32_t { kToken, kRow };

class Program {
 public:
  using Params = std::variant<EmbedParams, RmsNormParams, QuantizeRowsParams, LinearParams, RopeParams, AppendKvParams,
                              PagedAttentionParams, ActMulParams, TakeRowsParams, SoftCapParams>;
  struct Timing {
    std::string name;
    int64_t calls, ns;
  };

  Program(Isa isa, const StepInputs& inputs) : kernels_(kernels(isa)), inputs_(inputs) {}

  // Pointers must stay valid as long as the program runs; counts in params are overwritten.
  void add(const Params& params, Per per) { ops_.push_back({params, per}); }
  // Throws std::invalid_argument, having run nothing, where check() finds the inputs at fault.
  void run(Team& team, const StepCounts& counts);

  // Time of each kind of op on the first thread, its wait for the others included, since profiling began.
  void start_profile();
  std::vector<Timing> profile() const;

 private:
  struct Op {
    Params params;
    Per per;
    int64_t calls = 0, ns = 0;
  };
  struct Group {
    size_t begin, end;
    bool alone;  // by one thread, no barrier inside
  };

  void group(const StepCounts& counts);
  void run_groups(Worker& worker, size_t begin, size_t end);
  void call(Op& op, Worker& worker);

  const KernelTable& kernels_;
  const StepInputs inputs_;
  std::vector<Op> ops_;
  std::vector<Group> groups_;
  Team alone_{1};
  bool profiling_ = false;
};

}  // namespace pagedserve::cpu
