// SPDX-License-Identifier: Apache-2.0
// params.h: lets Python fill a params struct by field name; a pointer field takes an address as an int.
//
// A field's struct is forgotten at once, so that pybind11's templates are instantiated once for each type of field and
// not once for each field: they are most of a build.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <type_traits>

namespace pagedserve::bind {

namespace py = pybind11;

struct Field {
  std::ptrdiff_t offset;
  bool (*write)(char* at, py::handle value);  // false: the value is of another type
  py::object (*read)(const char* at);
};

using Fields = std::map<std::string, Field, std::less<>>;

// Writes fields by name into the struct at `params`. Raises AttributeError and TypeError.
void fill(char* params, const Fields& fields, const py::kwargs& values);

// A property of a bound struct.
void add_property(const py::object& type, const std::string& name, const Field& field);

template <class T>
bool write_as(char* at, py::handle value) {
  py::detail::make_caster<T> caster;
  if (!caster.load(value, true)) return false;
  const T loaded = py::detail::cast_op<T>(caster);
  std::memcpy(at, &loaded, sizeof(T));
  return true;
}

template <class T>
py::object read_as(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return py::cast(value);
}

template <class P>
class ParamsClass {
 public:
  ParamsClass(py::module_& m, const char* name) : class_(m, name), fields_(std::make_shared<Fields>()) {
    static_assert(std::is_trivially_copyable_v<P>);
    class_.def(py::init([fields = fields_](const py::kwargs& values) {
      P params{};
      fill(reinterpret_cast<char*>(&params), *fields, values);
      return params;
    }));
  }

  template <class T>
  ParamsClass& field(const char* name, T P::* member) {
    using Held = std::conditional_t<std::is_pointer_v<T>, std::uintptr_t, T>;
    const P probe{};
    const auto offset = reinterpret_cast<const char*>(&(probe.*member)) - reinterpret_cast<const char*>(&probe);
    const Field field{offset, &write_as<Held>, &read_as<Held>};
    fields_->emplace(name, field);
    add_property(class_, name, field);
    return *this;
  }

 private:
  py::class_<P> class_;
  std::shared_ptr<Fields> fields_;
};

}  // namespace pagedserve::bind
