// SPDX-License-Identifier: Apache-2.0
// params.h: lets Python fill a params struct by field name; a pointer field takes an address as an int.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <type_traits>

namespace pagedserve::bind {

namespace py = pybind11;

template <class P>
class ParamsClass {
 public:
  ParamsClass(py::module_& m, const char* name) : class_(m, name) {
    class_.def(py::init([](const py::kwargs& fields) {
      py::object self = py::cast(P{});
      for (const auto& [key, value] : fields) py::setattr(self, key, value);
      return self.cast<P>();
    }));
  }

  template <class T>
  ParamsClass& field(const char* name, T P::* member) {
    if constexpr (std::is_pointer_v<T>) {
      class_.def_property(
          name, [member](const P& p) { return reinterpret_cast<std::uintptr_t>(p.*member); },
          [member](P& p, std::uintptr_t address) { p.*member = reinterpret_cast<T>(address); });
    } else {
      class_.def_readwrite(name, member);
    }
    return *this;
  }

 private:
  py::class_<P> class_;
};

}  // namespace pagedserve::bind
