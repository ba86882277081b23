// SPDX-License-Identifier: Apache-2.0
// machine.cpp: the processor's instruction sets, and the teams of threads that kernels run on.
#include <pybind11/stl.h>

#include <vector>

#include "../cpu/isa.h"
#include "../cpu/team.h"
#include "bind.h"

namespace pagedserve::bind {

namespace py = pybind11;
using cpu::Isa;
using cpu::Team;

void bind_machine(py::module_& m) {
  py::enum_<Isa>(m, "Isa")
      .value("portable", Isa::kPortable)
      .value("avx2", Isa::kAvx2)
      .value("avx512", Isa::kAvx512)
      .value("avx512bf16", Isa::kAvx512Bf16);
  m.def("detect_isa", &cpu::detect, "The best instruction set that is compiled in and that this processor has.");
  m.def(
      "supported_isas",
      [] {
        std::vector<Isa> isas;
        for (int i = 0; i < cpu::kNumIsas; ++i) {
          if (cpu::supported(static_cast<Isa>(i))) isas.push_back(static_cast<Isa>(i));
        }
        return isas;
      },
      "Every instruction set that can run here, the plainest first.");
  py::class_<Team>(m, "Team", "Threads and their scratch memory. One caller at a time.")
      .def(py::init<int>(), py::arg("num_threads"))
      .def_property_readonly("num_threads", &Team::size)
      .def_property_readonly("alone", &Team::alone,
                             "Runs go on one thread for now: other programs kept the team from running together.");
}

}  // namespace pagedserve::bind
