// SPDX-License-Identifier: Apache-2.0
// params.cpp: the part of params.h that knows no struct.
#include "params.h"

#include <string_view>

namespace pagedserve::bind {

namespace {

void write(char* params, const std::string& name, const Field& field, py::handle value) {
  if (field.write(params + field.offset, value)) return;
  throw py::type_error(name + " cannot be " + std::string(py::repr(value)) + ", a " +
                       std::string(py::str(py::type::handle_of(value).attr("__name__"))));
}

}  // namespace

void fill(char* params, const Fields& fields, const py::kwargs& values) {
  for (const auto& [key, value] : values) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(key.ptr(), &size);
    if (text == nullptr) throw py::error_already_set();
    const auto found = fields.find(std::string_view(text, size));
    if (found == fields.end()) throw py::attribute_error("there is no field " + std::string(text, size));
    write(params, found->first, found->second, value);
  }
}

void add_property(const py::object& type, const std::string& name, const Field& field) {
  const auto* info = py::detail::get_type_info(reinterpret_cast<PyTypeObject*>(type.ptr()));
  const auto params_of = [info](py::handle self) {
    py::detail::type_caster_generic caster(info);
    if (!caster.load(self, false)) throw py::type_error("a field of another struct");
    return static_cast<char*>(caster.value);
  };
  const py::cpp_function get([=](py::handle self) { return field.read(params_of(self) + field.offset); });
  const py::cpp_function set([=](py::handle self, py::handle value) { write(params_of(self), name, field, value); });
  const auto property = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyProperty_Type));
  py::setattr(type, name.c_str(), property(get, set));
}

}  // namespace pagedserve::bind
