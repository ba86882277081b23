// SPDX-License-Identifier: Apache-2.0
// program.cpp: recorded steps.
#include "../cpu/program.h"

#include <pybind11/stl.h>

#include "bind.h"
#include "params.h"

namespace pagedserve::bind {

namespace py = pybind11;
using cpu::Per;
using cpu::Program;
using cpu::StepInputs;

namespace {

// One `add` for each params struct that a program takes.
template <class... Ps>
void def_adds(py::class_<Program>& program, std::variant<Ps...>*) {
  (program.def(
       "add", [](Program& self, const Ps& params, Per per) { self.add(params, per); }, py::arg("params"),
       py::arg("per") = Per::kToken),
   ...);
}

}  // namespace

void bind_program(py::module_& m) {
  py::enum_<Per>(m, "Per").value("token", Per::kToken).value("row", Per::kRow);
  ParamsClass<StepInputs>(m, "StepInputs")
      .field("token_ids", &StepInputs::token_ids)
      .field("positions", &StepInputs::positions)
      .field("slot_mapping", &StepInputs::slot_mapping)
      .field("q_starts", &StepInputs::q_starts)
      .field("kv_lens", &StepInputs::kv_lens)
      .field("page_table", &StepInputs::page_table)
      .field("logit_rows", &StepInputs::logit_rows)
      .field("max_tokens", &StepInputs::max_tokens)
      .field("max_seqs", &StepInputs::max_seqs)
      .field("max_pages", &StepInputs::max_pages)
      .field("max_rows", &StepInputs::max_rows)
      .field("vocab_size", &StepInputs::vocab_size)
      .field("max_position", &StepInputs::max_position)
      .field("num_pages", &StepInputs::num_pages)
      .field("page_size", &StepInputs::page_size);
  py::class_<Program::Timing>(m, "Timing")
      .def_readonly("name", &Program::Timing::name)
      .def_readonly("calls", &Program::Timing::calls)
      .def_readonly("ns", &Program::Timing::ns);
  py::class_<Program> program(m, "Program", "A list of ops, replayed in one parallel region. One caller at a time.");
  program.def(py::init<cpu::Isa, const StepInputs&>(), py::arg("isa"), py::arg("inputs"));
  def_adds(program, static_cast<Program::Params*>(nullptr));
  program
      .def(
          "run",
          [](Program& self, cpu::Team& team, int64_t num_tokens, int64_t num_seqs, int64_t num_rows) {
            self.run(team, {num_tokens, num_seqs, num_rows});
          },
          py::arg("team"), py::arg("num_tokens"), py::arg("num_seqs"), py::arg("num_rows"),
          py::call_guard<py::gil_scoped_release>())
      .def("start_profile", &Program::start_profile)
      .def("profile", &Program::profile);
}

}  // namespace pagedserve::bind
